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
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from adapters.files.checkpoint import Checkpoint
from adapters.files.finetune import TaskVector
from adapters.files.peft import load_peft
from adapters.library.library import Library
from adapters.merge.merged import merge_experts
from adapters.merge.registry import METHODS
from adapters.merge.twin import build_twins
from tests.factories.experts import make_expert, make_plain_base
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
    (root / "sql" / "examples.txt").write_text("select\n\nfrom\n")
    (root / "prompts.txt").write_text("one\ntwo\nthree\n")
    make_plain_base(root / "tuned", 1)
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


def test_a_fine_tune_as_factors_reports_what_was_kept_and_dropped(
    tta: Tta, library: Path, made: Path
) -> None:
    ended = tta("add", made / "tuned", "--name", "slim", "--rank", 4)
    assert ended.status == 0
    assert "slim, version 1: low_rank, rank 4" in ended.out
    report = told(tta("show", "slim", "--json"))["report"]
    change = TaskVector(Checkpoint.open(made / "base"), Checkpoint.open(made / "tuned"))
    assert "model.embed_tokens.weight" in report["dropped"]
    weight = "model.layers.1.mlp.up_proj.weight"
    squares = torch.linalg.svdvals(change.delta(weight).double()).square()
    factors = Library.open(library).expert("slim").factors[weight.removesuffix(".weight")]
    lost = (change.delta(weight) - factors.dense()).double().square().sum()
    torch.testing.assert_close(lost, squares[4:].sum(), rtol=1e-4, atol=0)
    lines = [line for line in ended.out.splitlines() if "q_proj" in line or "embed_tokens" in line]
    assert f"{report['kept']['q_proj']:.4f}" in lines[1]
    assert "0.0000" in lines[0]
    assert f"{report['dropped']['model.embed_tokens.weight']:.3g}" in lines[0]


@pytest.mark.parametrize(
    ("option", "form"), [("--one-bit", "one_bit"), ("--energy=0.9", "low_rank")]
)
def test_a_fine_tune_takes_every_form(
    tta: Tta, library: Path, made: Path, option: str, form: str
) -> None:
    assert tta("add", made / "tuned", "--name", "other", option).status == 0
    assert told(tta("show", "other", "--json"))["report"]["form"] == form
    assert told(tta("verify", "other", "--json")) == {"other": "ok"}


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
    base = Checkpoint.open(json.loads((library / "library.json").read_text())["base"]["source"])
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
    (["add", "{made}/nowhere", "--name", "x", "--rank", "2"], "has no model.safetensors"),
    (["add", "{made}/tuned", "--name", "x"], "--one-bit"),
    (["add", "{made}/tuned", "--name", "x", "--dense", "--one-bit"], "give one"),
    (["add", "{made}/sql", "--name", "x", "--dense"], "low-rank as it is"),
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
    (["list", "--library", "{made}/nowhere"], "is not a folder"),
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
