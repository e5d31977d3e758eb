"""`tta experts`: from a folder to a served, merged and exported expert, and every mistake one
message and status 2.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from adapters.files.checkpoint import Checkpoint
from adapters.files.finetune import TaskVector
from adapters.files.peft import load_peft
from adapters.library.library import Library
from adapters.merge.merged import merge_experts
from adapters.merge.registry import METHODS
from adapters.merge.twin import build_twins
from tests.factories.adapters import train_adapter
from tests.factories.experts import LLAMA, make_expert, make_plain_base
from tta_serve.cli import main as cli
from tta_serve.cli.experts import app


class Ended(NamedTuple):
    status: int
    out: str
    err: str


Tta = Callable[..., Ended]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two LoRAs of it, and a full fine-tune."""
    root = tmp_path_factory.mktemp("made")
    base = make_plain_base(root / "base", 0)
    for seed, name in enumerate(("sql", "math")):
        make_expert(root / name, base, seed=seed, layers=range(2), rank=2 + seed)
    (root / "sql" / "examples.txt").write_text("select\n\nfrom\n", encoding="utf-8")
    (root / "prompts.txt").write_text("one\ntwo\nthree\n", encoding="utf-8")
    make_plain_base(root / "tuned", 1)
    model = AutoModelForCausalLM.from_pretrained(base)
    merged = train_adapter(root / "dora", model, use_dora=True, target_modules=["q_proj"])
    save_file(merged, root / "dora-merged.safetensors")
    return root


@pytest.fixture
def tta(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tta:
    """`tta experts` in this process, on a library of its own."""
    monkeypatch.setenv("TTA_LIBRARY", str(tmp_path / "library"))
    monkeypatch.setenv("COLUMNS", "500")

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr("sys.argv", ["tta", "experts", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return Ended(int(end.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def filled(made: Path) -> Path:
    """A library of sql and math as they are, and full, the whole change of the fine-tune."""
    for folder, *others in (
        ("sql", "--name=sql", f"--base={made / 'base'}"),
        ("math", "--name=math"),
        ("tuned", "--name=full", "--dense"),
    ):
        arguments = ["add", str(made / folder), *others, f"--library={made / 'library'}"]
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    return made / "library"


@pytest.fixture
def library(filled: Path, tmp_path: Path) -> Path:
    return shutil.copytree(filled, tmp_path / "library")


def told(ended: Ended) -> Any:
    assert ended.status == 0, ended
    return json.loads(ended.out)


def test_added_folders_are_listed_with_what_is_known(tta: Tta, library: Path, made: Path) -> None:
    found = told(tta("list", "--json"))
    assert found["base"] == Checkpoint.open(made / "base").digest
    assert {
        n: (m["version"], m["report"]["form"], m["source"]["kind"])
        for n, m in found["experts"].items()
    } == {
        "full": (1, "dense", "finetune"),
        "math": (1, "low_rank", "peft"),
        "sql": (1, "low_rank", "peft"),
    }
    assert found["experts"]["sql"]["digest"] == load_peft(made / "sql").digest
    assert found["experts"]["sql"]["examples"] == ["select", "from"]
    assert found["experts"]["full"]["source"]["path"] == str(made / "tuned")
    ended = tta("list")
    assert all(name in ended.out for name in ("sql", "math", "full", "finetune"))


def test_what_the_owner_says_is_shown(tta: Tta, library: Path, made: Path) -> None:
    more = (
        "--licence",
        "MIT",
        "--description",
        "dates [red]\x1b[31m",
        "--examples",
        made / "prompts.txt",
    )
    assert tta("add", made / "sql", "--name", "dates", *more).status == 0
    found = told(tta("show", "dates", "--json"))
    assert (found["licence"], found["examples"]) == ("MIT", ["one", "two", "three"])
    ended = tta("show", "dates")
    assert "dates [red]" in ended.out
    assert "\x1b" not in ended.out
    assert found["digest"] in ended.out


def copy_changed(source: Path, target: Path, weight: str) -> Path:
    """Copy a checkpoint, 0.1 added to one of its weights."""
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    tensors[weight] += 0.1
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


def test_a_fine_tune_as_factors_reports_what_was_kept_and_dropped(
    tta: Tta, library: Path, made: Path, tmp_path: Path
) -> None:
    tuned = copy_changed(made / "tuned", tmp_path / "tuned", "model.norm.weight")
    ended = tta("add", tuned, "--name", "slim", "--rank", 4)
    assert ended.status == 0
    assert "slim, version 1: low_rank, rank 4" in ended.out
    report = told(tta("show", "slim", "--json"))["report"]
    change = TaskVector(Checkpoint.open(made / "base"), Checkpoint.open(tuned))
    assert list(report["dropped"]) == ["model.norm.weight"]
    weight = "model.layers.1.mlp.up_proj.weight"
    squares = torch.linalg.svdvals(change.delta(weight).double()).square()
    factors = Library.open(library).expert("slim").factors[weight.removesuffix(".weight")]
    lost = (change.delta(weight) - factors.dense()).double().square().sum()
    torch.testing.assert_close(lost, squares[4:].sum(), rtol=1e-4, atol=0)
    lines = [line for line in ended.out.splitlines() if "q_proj" in line or "norm" in line]
    assert f"{report['kept']['q_proj']:.4f}" in lines[1]
    assert "0.0000" in lines[0]
    assert f"{report['dropped']['model.norm.weight']:.3g}" in lines[0]


@pytest.mark.parametrize(
    ("option", "form"), [("--one-bit", "one_bit"), ("--energy=0.9", "low_rank")]
)
def test_a_fine_tune_takes_every_form(
    tta: Tta, library: Path, made: Path, option: str, form: str
) -> None:
    assert tta("add", made / "tuned", "--name", "other", option).status == 0
    assert told(tta("show", "other", "--json"))["report"]["form"] == form
    assert told(tta("verify", "other", "--json")) == {"other": "ok"}


def test_one_bit_of_one_part_says_what_each_part_keeps(tta: Tta, library: Path, made: Path) -> None:
    added = tta("add", made / "tuned", "--name", "other", "--one-bit", "--parts", "mlp")
    report = told(tta("show", "other", "--json"))["report"]
    assert {w for w in report["dropped"] if "self_attn" in w}
    assert report["parts"]["attention"]["kept"] == 0
    assert f"kept of it: {report['parts']['mlp']['kept']:.4f}" in added.out
    assert not report["unserved"]
    wrong = tta("add", made / "tuned", "--name", "more", "--rank", 2, "--parts", "mlp")
    assert wrong.status == 2
    assert "--one-bit" in wrong.err


def test_an_expert_of_any_form_is_compressed_to_factors(tta: Tta, library: Path) -> None:
    full = told(tta("show", "full", "--json"))
    assert tta("compress", "full", "--rank", 3).status == 0
    found = told(tta("show", "full", "--json"))
    assert (found["version"], found["source"]["kind"]) == (2, "compress")
    assert (found["source"]["options"], found["source"]["parents"]) == (
        {"rank": 3},
        {"full": full["digest"]},
    )
    assert set(found["report"]["ranks"].values()) == {3}
    assert tta("compress", "sql", "--energy", 0.5, "--as", "small").status == 0
    small, sql = (told(tta("show", name, "--json")) for name in ("small", "sql"))
    assert small["examples"] == sql["examples"]
    assert sum(small["report"]["ranks"].values()) < sum(sql["report"]["ranks"].values())
    assert Library.open(library).names == ("full", "math", "small", "sql")


MERGES: dict[str, tuple[tuple[str, ...], dict[str, float], list[float] | None]] = {
    "task_arithmetic": (("--weights", "0.5,-1"), {}, [0.5, -1.0]),
    "ties": (("--option", "density=0.4", "--dense"), {"density": 0.4}, None),
    "slerp": (("--option", "parallel=0.5", "--dense"), {"parallel": 0.5}, None),
}


@pytest.mark.parametrize("method", MERGES)
def test_a_merge_is_that_of_the_method(tta: Tta, library: Path, method: str) -> None:
    more, options, weights = MERGES[method]
    ended = tta("merge", "--method", method, "--experts", "sql,math", "--name", "both", *more)
    assert ended.status == 0, ended
    opened = Library.open(library)
    parts = [opened.deltas(name) for name in ("sql", "math")]
    base = Checkpoint.open(
        json.loads((library / "library.json").read_text(encoding="utf-8"))["base"]["source"]
    )
    expected, found = (
        merge_experts(method, parts, weights, options, base=base),
        opened.deltas("both"),
    )
    assert found.shapes.keys() == expected.shapes.keys()
    for weight in expected.shapes:
        torch.testing.assert_close(found.delta(weight), expected.delta(weight))
    source = told(tta("show", "both", "--json"))["source"]
    assert (source["kind"], source["method"]) == ("merge", method)
    assert source["parents"] == {name: opened.manifest(name).digest for name in ("sql", "math")}
    assert source["options"].items() >= options.items()


def test_a_merge_that_is_not_low_rank_must_be_given_a_form(tta: Tta, library: Path) -> None:
    ended = tta("merge", "--method", "ties", "--experts", "sql,math", "--name", "both")
    assert ended.status == 2
    assert "rank" in ended.err
    assert "both" not in told(tta("list", "--json"))["experts"]
    assert (
        tta(
            "merge", "--method", "ties", "--experts", "sql,math", "--name", "both", "--rank", 4
        ).status
        == 0
    )
    assert "both" in Library.open(library).names


def test_a_folder_of_peft_folders_is_a_library_too(
    tta: Tta, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sql", "math"):
        (made / name).rename(tmp_path / name)
    try:
        monkeypatch.setenv("TTA_LIBRARY", str(tmp_path))
        assert told(tta("list", "--json"))["experts"]["sql"]["version"] == 0
        assert (
            tta("merge", "--method", "linear", "--experts", "sql,math", "--name", "both").status
            == 0
        )
        assert told(tta("verify", "--json")) == {"both": "ok", "sql": "ok", "math": "ok"}
    finally:
        for name in ("sql", "math"):
            (tmp_path / name).rename(made / name)


def test_twins_add_up_to_the_expert(tta: Tta, library: Path) -> None:
    assert (
        tta(
            "twin", "--experts", "sql,math", "--rank", 8, "--prefix", "t", "--shared-weight", 0.4
        ).status
        == 0
    )
    opened = Library.open(library)
    shared, exclusive = build_twins({name: opened.deltas(name) for name in ("sql", "math")}, 0.4)
    for weight in shared.shapes:
        torch.testing.assert_close(
            opened.deltas("t-shared").delta(weight), shared.delta(weight), rtol=1e-4, atol=1e-6
        )
        part = opened.deltas("t-math").delta(weight)
        torch.testing.assert_close(part, exclusive["math"].delta(weight), rtol=1e-4, atol=1e-6)
        whole = opened.deltas("t-shared").delta(weight) + part
        torch.testing.assert_close(whole, opened.deltas("math").delta(weight), rtol=1e-4, atol=1e-6)
    assert opened.examples("t-sql") == ["select", "from"]


def test_twins_without_a_rank_are_exact_and_removed_the_shared_one_last(
    tta: Tta, library: Path
) -> None:
    assert tta("twin", "--experts", "sql,math", "--prefix", "t").status == 0
    assert "twin        exclusive, on beside t-shared" in tta("show", "t-sql").out
    assert "twin        shared, on beside its exclusive parts" in tta("show", "t-shared").out
    ended = tta("remove", "t-shared")
    assert (ended.status, "t-math, t-sql: would be left without" in ended.err) == (2, True)
    ended = tta("twin", "--experts", "sql", "--prefix", "t", "--rank", 2)
    assert (ended.status, "t-math: made with the t-shared that this" in ended.err) == (2, True)
    for name in ("t-sql", "t-math", "t-shared"):
        assert tta("remove", name).status == 0
    assert tta("twin", "--experts", "full,math", "--prefix", "u").status == 2


def test_exports_are_loaded_by_others(tta: Tta, library: Path, made: Path, tmp_path: Path) -> None:
    assert tta("export", "sql", tmp_path / "peft", "--as", "peft").status == 0
    assert load_peft(tmp_path / "peft").digest == load_peft(made / "sql").digest
    assert tta("export", "full", tmp_path / "checkpoint", "--as", "checkpoint").status == 0
    tokens = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        ours, theirs = (
            AutoModelForCausalLM.from_pretrained(f)(tokens).logits
            for f in (tmp_path / "checkpoint", made / "tuned")
        )
    torch.testing.assert_close(ours, theirs)


def test_dora_is_added_as_its_change_of_the_base(tta: Tta, library: Path, made: Path) -> None:
    """Whole, and as factors of all ranks that its weights have."""
    base, merged = Checkpoint.open(made / "base"), load_file(made / "dora-merged.safetensors")
    for name, form in (("whole", ("--dense",)), ("factors", ("--rank", 32))):
        assert tta("add", made / "dora", "--name", name, *form).status == 0
        deltas = Library.open(library).deltas(name)
        assert len(deltas.shapes) == 2
        for weight in deltas.shapes:
            value = base.read(weight) + deltas.delta(weight)
            torch.testing.assert_close(value, merged[weight], rtol=1e-5, atol=1e-5)
    assert tta("add", made / "dora", "--name", "short", "--rank", 2).status == 0
    kept = Library.open(library).manifest("short").report.kept
    assert 0 < kept["q_proj"] < 1


def test_dora_put_plainly_into_a_library_says_how_to_add_it(
    tta: Tta, library: Path, made: Path
) -> None:
    shutil.copytree(made / "dora", library / "plain")
    ended = tta("verify", "plain")
    assert ended.status == 2
    assert "use_dora is set" in ended.out + ended.err
    assert "tta experts add FOLDER --name NAME --rank R" in ended.out + ended.err


def test_verify_names_what_was_changed(tta: Tta, library: Path) -> None:
    assert told(tta("verify", "--json")) == {"full": "ok", "math": "ok", "sql": "ok"}
    weights = library / "math" / "v0001" / "weights-00001.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    ended = tta("verify", "--json")
    assert ended.status == 2
    found = json.loads(ended.out)
    assert (found["sql"], found["full"]) == ("ok", "ok")
    assert "not what was added" in found["math"]


def test_a_removed_expert_is_gone(tta: Tta, library: Path) -> None:
    assert tta("remove", "sql").status == 0
    assert tta("remove", "full", "--purge").status == 0
    assert list(told(tta("list", "--json"))["experts"]) == ["math"]
    assert (library / "sql" / "v0001").is_dir()
    assert not (library / "full" / "v0001").exists()


def test_diff_prints_means_by_type_of_module(tta: Tta, library: Path) -> None:
    ended = tta("diff", "sql", "sql")
    assert ended.status == 0
    row = next(line for line in ended.out.splitlines() if "q_proj" in line)
    assert row.split("\t")[1:7] == ["2", "1", "0", "0", "1", "1"]


def test_diff_draws_a_picture(tta: Tta, library: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert tta("diff", "sql", "math", "--picture", tmp_path / "d.png").status == 0
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")


def test_methods_tells_options_and_sources(tta: Tta) -> None:
    found = told(tta("methods", "--json"))
    assert found["methods"].keys() == METHODS.keys()
    assert (
        found["methods"]["ties"]["options"]["density"]["default"]
        == METHODS["ties"].options["density"].default
    )
    assert found["not_implemented"]
    ended = tta("methods")
    assert all(name in ended.out for name in METHODS)


MISTAKES: list[tuple[list[str], str]] = [
    (["add", "{made}/nowhere", "--name", "x", "--rank", "2"], "no such folder"),
    (["add", "{made}/tuned", "--name", "x"], "--one-bit"),
    (["add", "{made}/tuned", "--name", "x", "--dense", "--one-bit"], "give one"),
    (["add", "{made}/sql", "--name", "x", "--dense"], "low-rank as it is"),
    (["add", "{made}/dora", "--name", "x"], "more than a LoRA needs one of --rank"),
    (["add", "{made}/sql", "--name", "../x"], "expert name '../x'"),
    (
        ["add", "{made}/sql", "--name", "x", "--base", "{made}/tuned"],
        "another base need a library of their own",
    ),
    (["show", "nobody"], "holds no expert 'nobody'; it holds: full, math, sql"),
    (["remove", "nobody"], "no versions of 'nobody'; it does of: full, math, sql"),
    (["compress", "full"], "give --rank or --energy"),
    (["compress", "nobody", "--rank", "2"], "holds no expert 'nobody'"),
    (["merge", "--method", "magic", "--experts", "sql,math", "--name", "x"], "ties"),
    (
        ["merge", "--method", "ties", "--experts", "sql,math", "--name", "x", "--option", "oops=1"],
        "density",
    ),
    (
        [
            "merge",
            "--method",
            "ties",
            "--experts",
            "sql,math",
            "--name",
            "x",
            "--option",
            "density",
        ],
        "NAME=VALUE",
    ),
    (
        ["merge", "--method", "ties", "--experts", "sql,math", "--name", "x", "--weights", "1,b"],
        "--weights are numbers",
    ),
    (
        ["merge", "--method", "linear", "--experts", "sql,math", "--name", "x", "--weights", "1"],
        "1 weights for 2 experts",
    ),
    (["merge", "--method", "linear", "--experts", "sql,sql", "--name", "x"], "named twice"),
    (["export", "full", "{made}/out", "--as", "peft"], "tta experts compress full --rank R"),
    (["export", "sql", "{made}", "--as", "peft"], "exists"),
    (
        ["twin", "--experts", "sql,math", "--rank", "2", "--prefix", "../x"],
        "expert name '../x-shared'",
    ),
    (["list", "--library", "{made}/nowhere"], "no such folder"),
]


@pytest.mark.parametrize(
    ("arguments", "says"), MISTAKES, ids=[" ".join(a).replace("{made}/", "") for a, _ in MISTAKES]
)
def test_a_mistake_is_one_message_and_status_2(
    tta: Tta, library: Path, made: Path, arguments: list[str], says: str
) -> None:
    ended = tta(*(a.replace("{made}", str(made)) for a in arguments))
    assert ended.status == 2
    assert says in ended.err
    assert list(Library.open(library).manifests) == ["full", "math", "sql"]
    assert not list(library.glob(".staging-*"))


def test_the_first_expert_needs_the_base(tta: Tta, made: Path) -> None:
    ended = tta("add", made / "sql", "--name", "sql")
    assert ended.status == 2
    assert "name its folder with --base" in ended.err


def test_a_version_is_named_by_its_number_wherever_an_expert_is(
    tta: Tta, library: Path, tmp_path: Path
) -> None:
    assert tta("compress", "math", "--rank", 1).status == 0
    first, second = (told(tta("show", f"math@{n}", "--json")) for n in (1, 2))
    assert (first["report"]["ranks"], second["source"]["parents"]) != (
        second["report"]["ranks"],
        {},
    )
    assert second == told(tta("show", "math", "--json"))
    assert tta("verify", "math@1", "math@2").status == 0
    assert tta("export", "math@1", tmp_path / "out", "--as", "peft").status == 0
    exported = json.loads((tmp_path / "out" / "adapter_config.json").read_text(encoding="utf-8"))
    assert exported["r"] == 3
    assert tta("diff", "math@1", "math@2").status == 0
    merge = ("merge", "--method", "linear", "--experts", "math@1,math@2", "--name", "both")
    assert tta(*merge).status == 0
    parents = {"math@1": first["digest"], "math@2": second["digest"]}
    assert told(tta("show", "both", "--json"))["source"]["parents"] == parents
    twin = ("twin", "--experts", "math@1,sql", "--rank", 2, "--prefix", "t")
    assert tta(*twin).status == 0
    assert told(tta("show", "t-math-v1", "--json"))["source"]["parents"].keys() == {"math@1", "sql"}
    assert tta("compress", "math@1", "--rank", 2).status == 0
    assert told(tta("show", "math", "--json"))["version"] == 3


def test_an_expert_is_taken_back(tta: Tta, library: Path) -> None:
    digest = told(tta("show", "sql", "--json"))["digest"]
    assert tta("compress", "sql", "--rank", 1).status == 0
    assert "sql, version 3: low_rank, rank 2" in tta("restore", "sql").out
    assert told(tta("show", "sql", "--json"))["digest"] == digest
    assert tta("remove", "sql").status == 0
    assert "sql, version 5: low_rank, rank 1" in tta("restore", "sql@2").out
    assert tta("remove", "sql", "--purge").status == 0
    ended = tta("restore", "sql")
    assert (ended.status, "no version before 6" in ended.err) == (2, True)
    assert "Traceback" not in ended.err


def test_a_moved_base_is_remembered(tta: Tta, made: Path, tmp_path: Path) -> None:
    base = shutil.copytree(made / "base", tmp_path / "base")
    assert tta("add", made / "sql", "--name", "sql", "--base", base).status == 0
    place = base.rename(tmp_path / "elsewhere")
    ended = tta("export", "sql", tmp_path / "out", "--as", "checkpoint")
    assert ended.status == 2
    assert f"base was at {base} and is not there: name it with --base" in ended.err
    assert "another base" in tta("base", made / "tuned").err
    assert tta("base", place).status == 0
    ended = tta("export", "sql", tmp_path / "out", "--as", "checkpoint")
    assert ended.status == 0
    assert "of the change, rounded into the base: 1.0000 kept" in ended.out
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize(
    ("experts", "shared"), [("sql", "1"), ("sql,again", "0.5"), ("sql,again,more", "0.333333333")]
)
def test_twins_of_which_one_would_be_nothing_leave_nothing(
    tta: Tta, library: Path, made: Path, experts: str, shared: str
) -> None:
    for name in ("again", "more"):
        assert tta("add", made / "sql", "--name", name).status == 0
    before = told(tta("list", "--json"))["experts"].keys()
    options = ("--rank", 4, "--prefix", "t", "--shared-weight", shared)
    ended = tta("twin", "--experts", experts, *options)
    assert ended.status == 2
    assert "expert 't-sql': nothing to write: no weight changes" in ended.err
    assert told(tta("list", "--json"))["experts"].keys() == before


def test_twins_of_equal_fine_tunes_leave_no_rounding(tta: Tta, library: Path, made: Path) -> None:
    assert tta("add", made / "tuned", "--name", "again", "--dense").status == 0
    assert tta("add", made / "tuned", "--name", "more", "--dense").status == 0
    options = ("--rank", 4, "--prefix", "t", "--shared-weight", "0.333333333")
    ended = tta("twin", "--experts", "full,again,more", *options)
    assert (ended.status, "'t-full': nothing to write" in ended.err) == (2, True)


DAMAGED = (
    ("merge", "--method", "linear", "--experts", "{name},math", "--name", "new"),
    ("merge", "--method", "ties", "--option=density=0.5", "--experts", "math,{name}", "--name=new"),
    ("twin", "--experts", "math,{name}", "--rank", "2", "--prefix", "new"),
    ("compress", "{name}", "--rank", "1", "--as", "new"),
    ("diff", "math", "{name}"),
    ("export", "{name}", "{out}", "--as", "checkpoint"),
    ("restore", "{name}@1"),
    ("verify", "{name}"),
)


@pytest.mark.parametrize("name", ["sql", "full", "signs"])
@pytest.mark.parametrize("arguments", DAMAGED, ids=lambda arguments: arguments[0])
def test_no_command_reads_changed_weights(  # noqa: PLR0913 - its fixtures and its cases
    tta: Tta, library: Path, made: Path, tmp_path: Path, name: str, arguments: tuple[str, ...]
) -> None:
    assert tta("add", made / "tuned", "--name", "signs", "--one-bit").status == 0
    assert tta("add", made / "sql", "--name", name).status == 0
    shutil.rmtree(library / name / "v0002")
    if arguments[0] == "restore":
        assert tta("add", made / "math", "--name", name).status == 0
    file = library / name / "v0001" / "weights-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 2
    file.write_bytes(content)
    before = sorted(path.name for path in library.iterdir())
    ended = tta(*(a.format(name=name, out=tmp_path / "out") for a in arguments))
    assert ended.status == 2
    assert f"{name}/v0001 is not what was added" in ended.err + ended.out
    assert sorted(path.name for path in library.iterdir()) == before
    assert not (tmp_path / "out").exists()


def test_experts_of_two_bases_are_called_by_their_names(
    tta: Tta, made: Path, tmp_path: Path
) -> None:
    wide = LlamaConfig(**LLAMA.to_dict() | {"hidden_size": 64})
    LlamaForCausalLM(wide).save_pretrained(tmp_path / "wide")
    shutil.copytree(made / "sql", tmp_path / "library" / "narrow")
    make_expert(tmp_path / "library" / "broad", tmp_path / "wide", seed=0, layers=range(2))
    both = ("--experts", "narrow,broad")
    for arguments in (
        ("diff", "narrow", "broad"),
        ("merge", "--method", "linear", *both, "--name", "new"),
        ("merge", "--method", "ties", "--option=density=0.5", *both, "--name", "new"),
        ("twin", *both, "--rank", 2, "--prefix", "new"),
    ):
        ended = tta(*arguments)
        assert ended.status == 2
        assert "in broad and" in ended.err
        assert "in narrow: not of one base" in ended.err


@pytest.mark.parametrize("place", ["no/such.png", "", "model.safetensors/x.png"])
def test_a_picture_that_cannot_be_written_is_refused_before_the_work(
    tta: Tta, library: Path, made: Path, place: str
) -> None:
    ended = tta("diff", "sql", "math", "--picture", made / "base" / place)
    assert ended.status == 2
    assert "--picture" in ended.err
    assert not ended.out


def test_a_bad_folder_is_listed_and_never_stops_the_rest(
    tta: Tta, library: Path, tmp_path: Path
) -> None:
    (library / "sql" / "v0001" / "weights.bin").touch()
    (library / "away").symlink_to("nowhere")
    (library / "math" / "v0001" / ".DS_Store").touch()
    found = told(tta("list", "--json"))
    assert found["experts"].keys() == {"full", "math"}
    assert found["problems"].keys() == {"sql", "away"}
    ended = tta("list")
    assert "sql cannot be used: " in ended.out
    assert "weights.bin is no plain file of an expert; remove it" in ended.out
    assert tta("export", "math", tmp_path / "out", "--as", "peft").status == 0
    ended = tta("verify")
    assert ended.status == 2
    assert "weights.bin" in ended.out
    for arguments in (("show", "sql"), ("diff", "sql", "math"), ("compress", "sql", "--rank=1")):
        ended = tta(*arguments)
        assert (ended.status, "weights.bin" in ended.err) == (2, True)


MISTYPED = (
    ("nowhere", "no such folder"),
    ("org/adapter", "give a folder, not a hub id"),
    ("{made}/sql/adapter_model.safetensors", "is a file: give its folder, {made}/sql"),
    ("{made}", "there are adapters in: dora/, math/, sql/"),
    ("{tmp}/runs", "there are checkpoints in: checkpoint-1/"),
    ("{tmp}/mistral", "lora.safetensors, an adapter of mistral-finetune"),
    ("{tmp}/half", "no adapter_config.json"),
    ("{tmp}/empty", "is empty"),
    ("{tmp}/gguf", "GGUF is not read"),
    ("{tmp}/pickle", "is a pickle"),
    ("{tmp}/link", "is a link to nowhere, which is not there"),
)


@pytest.mark.parametrize(("path", "says"), MISTYPED)
def test_a_mistyped_path_says_what_is_there(
    tta: Tta, made: Path, tmp_path: Path, path: str, says: str
) -> None:
    shutil.copytree(made / "tuned", tmp_path / "runs" / "checkpoint-1")
    for folder in ("mistral", "half", "empty", "gguf", "pickle"):
        (tmp_path / folder).mkdir()
    (tmp_path / "mistral" / "lora.safetensors").touch()
    (tmp_path / "half" / "adapter_model.safetensors").touch()
    (tmp_path / "gguf" / "model.Q4.gguf").touch()
    (tmp_path / "pickle" / "pytorch_model.bin").touch()
    (tmp_path / "link").symlink_to("nowhere")
    names = {"made": str(made), "tmp": str(tmp_path)}
    for more in ((), ("--rank", 2)):
        place = path.format(**names)
        ended = tta("add", place, "--name", "x", "--base", made / "base", *more)
        assert ended.status == 2
        if more or "pickle" not in path:
            assert says.format(**names) in ended.err
    if not path.startswith("{"):
        ended = tta("add", made / "sql", "--name", "x", "--base", path)
        assert (ended.status, says in ended.err) == (2, True)
