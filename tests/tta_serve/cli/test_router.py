"""`tta router` on a tiny library: what its commands leave behind, and each mistake one message."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer
from typer.testing import CliRunner, Result

from adapters.coefficient import numbers_of
from adapters.errors import LibraryError
from adapters.files.checkpoint import Checkpoint
from adapters.library.entries import ENTRIES, read_entries
from adapters.library.library import Library
from router.errors import RouterError
from router.policies.pareto import read_front
from router.policies.recombined import read_entry_set
from router.scoring.trained_gate import Gate
from tests.factories.http_handler import serve_handler
from tests.factories.tiny_library import EVERYDAY, EXAMPLES, make_library
from tests.factories.twins import add_twins
from tta_serve.cli.router import app
from tta_serve.exceptions import ConfigError, PromptFileError
from tta_serve.offline.base_model import PlainModel
from tta_serve.offline.cocktail import TAU
from tta_serve.offline.features import EarlyFeatures

KEY = "secret"
ROW = {
    "policy": "retrieval",
    "experts": {"sql": 1.0, "math": [0.1, 0.3]},
    "then": [{"orders": 0.7}],
    "scores": {"math": 0.12, "sql": 0.52},
    "floor": 0.2,
    "abstained": False,
    "reason": "best margin 0.52",
    "fallback": None,
    "router_ms": 1.25,
    "passes": 1,
}


@pytest.fixture
def library(tmp_path: Path) -> Path:
    return make_library(tmp_path)


def tta(library: Path | None, *arguments: object) -> Result:
    where = () if library is None else (f"--library={library}", f"--base={library.parent / 'base'}")
    environment = {"COLUMNS": "200"}
    return CliRunner().invoke(
        app, [*map(str, arguments), *where], catch_exceptions=False, env=environment
    )


def prompts(folder: Path, everyday: bool = True) -> Path:
    folder.mkdir()
    for name, lines in {**EXAMPLES, **({"everyday": EVERYDAY} if everyday else {})}.items():
        (folder / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_a_gate_is_trained_on_given_prompts(library: Path, tmp_path: Path) -> None:
    where = prompts(tmp_path / "prompts")
    result = tta(library, "train", "--prompts", where, "--validation", where)
    assert result.exit_code == 0, result.output
    gate = Gate.load(library / "router")
    assert dict(gate.about.digests) == Library.open(library).digests
    assert gate.about.layer == 0
    assert gate.about.figures["right"] == 1
    assert "calibration error" in result.output


def test_each_voice_is_left_out_and_has_its_figures(library: Path, tmp_path: Path) -> None:
    where, voices = prompts(tmp_path / "prompts"), tmp_path / "voices"
    voices.mkdir()
    rows: list[dict[str, Any]] = [
        *({"task": name, "prompt": text} for name, lines in EXAMPLES.items() for text in lines),
        *({"task": None, "prompt": text, "want": None} for text in EVERYDAY),
    ]
    for name, own in (("ann", rows), ("bob", rows[::-1])):
        text = "".join(f"{json.dumps(row)}\n" for row in own)
        (voices / f"{name}.jsonl").write_text(text, encoding="utf-8")
    asked = ("train", "--prompts", where, "--voices", voices)
    (where / "sql+math.txt").write_text("w5 w6 w7\n" * 5, encoding="utf-8")
    result = tta(library, *asked)
    assert result.exit_code == 0, result.output
    assert {"ann", "bob"} <= set(result.output.split())
    about = Gate.load(library / "router").about
    assert about.voices.keys() == {"ann", "bob", "prompts"}
    assert about.voices["ann"]["right"] == 1
    assert "two found" in result.output
    assert "two_found" in about.figures

    (voices / "bob.jsonl").write_text(
        "".join(f"{json.dumps(row)}\n" for row in rows if row["task"] != "sql"), encoding="utf-8"
    )
    with pytest.raises(PromptFileError, match=r"bob\.jsonl has no prompt for sql"):
        tta(library, *asked)
    (voices / "bob.jsonl").unlink()
    with pytest.raises(PromptFileError, match=r"a file <voice>\.jsonl for each of two voices"):
        tta(library, *asked)


def test_a_gate_is_trained_on_examples_and_packaged_prompts(library: Path) -> None:
    result = tta(library, "train", "--hidden", 8, "--layer", 1, "--name", "other")
    assert result.exit_code == 0, result.output
    about = Gate.load(library / "router", "other").about
    assert (about.hidden, about.layer) == (8, 1)


def test_a_gate_learns_every_prompt_bare_and_as_a_user_turn(library: Path, tmp_path: Path) -> None:
    base, where = library.parent / "base", prompts(tmp_path / "prompts")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "w1 w2 {{ messages[0].content }} w3"
    tokenizer.save_pretrained(base)
    assert tta(library, "train", "--prompts", where, "--validation", where).exit_code == 0
    gate, features = (
        Gate.load(library / "router"),
        EarlyFeatures(PlainModel.load(Checkpoint.open(base)), 0),
    )
    assert gate.about.figures["prompts"] == 2 * (sum(map(len, EXAMPLES.values())) + len(EVERYDAY))
    texts = [*EXAMPLES["math"], *EXAMPLES["sql"], *EVERYDAY]
    both = torch.cat([features(texts), features(texts, chat=True)])
    torch.testing.assert_close(gate.mean, both.mean(0), rtol=1e-4, atol=1e-5)


def test_prompts_for_nobody_or_of_nobody_are_refused(library: Path, tmp_path: Path) -> None:
    where = prompts(tmp_path / "prompts", everyday=False)
    with pytest.raises(PromptFileError, match=r"has no everyday\.txt"):
        tta(library, "train", "--validation", where)
    (where / "sql.txt").rename(where / "sqlite.txt")
    with pytest.raises(PromptFileError, match=r"has no sql\.txt"):
        tta(library, "train", "--prompts", where)
    (where / "sql.txt").write_text("w1\n", encoding="utf-8")
    with pytest.raises(
        PromptFileError, match=r"has sqlite\.txt, but the library serves: math, sql"
    ):
        tta(library, "train", "--prompts", where)
    with pytest.raises(RouterError, match="no decoder layer 7"):
        tta(library, "train", "--layer", 7)


def test_an_entry_is_learned_and_says_how(library: Path) -> None:
    few = ("--prompts", 2, "--answer", 4, "--steps", 4)
    result = tta(library, "learn", "--name", "both", *few)
    assert result.exit_code == 0, result.output
    entry = read_entries(library / ENTRIES)["both"]
    assert entry.digests == Library.open(library).digests
    assert entry.source["loss"] == "alignment"
    assert float(entry.source["loss_after"]) < float(entry.source["loss_before"])
    with pytest.raises(LibraryError, match="is there already"):
        tta(library, "learn", "--name", "both", *few)
    alone = tta(
        library,
        "learn",
        "--name",
        "both",
        "--experts",
        "sql",
        "--loss",
        "entropy",
        "--replace",
        *few,
    )
    assert alone.exit_code == 0, alone.output
    assert read_entries(library / ENTRIES)["both"].coefficients.keys() == {"sql"}


def write_references(file: Path) -> Path:
    rows = [
        {"prompt": "w5 w6 w7", "want": "w8 w9", "task": "sql+math"},
        {"prompt": "w5 w5", "want": "w4", "task": "sql"},
        {"slice": "two_skills", "prompt": "w9", "want": "w3 w2", "task": "sql"},
    ]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


def test_a_cocktail_is_weighed_by_losses_on_wanted_answers(library: Path, tmp_path: Path) -> None:
    asked = ("cocktail", "--name", "mine", "--examples", write_references(tmp_path / "five.jsonl"))
    result = tta(library, *asked)
    assert result.exit_code == 0, result.output
    entry = read_entries(library / ENTRIES)["mine"]
    assert entry.digests == Library.open(library).digests
    assert (entry.source["tau"], entry.source["examples"]) == (TAU, 3)
    weights = [float(entry.source[f"weight_{model}"]) for model in ("base", "math", "sql")]
    assert sum(weights) == pytest.approx(1)
    assert f"{weights[0]:.4f}" in result.output
    with pytest.raises(LibraryError, match="is there already"):
        tta(library, *asked)
    cold = tta(library, *asked, "--replace", "--tau", 0)
    assert (cold.exit_code, "--tau must be above 0" in cold.output) == (2, True)
    alone = tta(library, *asked, "--replace", "--experts", "sql", "--tau", 100)
    assert alone.exit_code == 0, alone.output
    assert read_entries(library / ENTRIES)["mine"].coefficients == {"sql": 0.5}


def test_shares_are_learned_on_wanted_answers(library: Path, tmp_path: Path) -> None:
    file = write_references(tmp_path / "two.jsonl")
    asked = ("learn", "--name", "cat", "--loss", "references", "--steps", 8)
    result = tta(library, *asked, "--examples", file)
    assert result.exit_code == 0, result.output
    entry = read_entries(library / ENTRIES)["cat"]
    assert (entry.source["loss"], entry.source["examples"]) == ("references", 3)
    assert float(entry.source["loss_after"]) < float(entry.source["loss_before"])
    shares = zip(*(numbers_of(entry.coefficients[name]) for name in ("math", "sql")), strict=True)
    assert [sum(both) for both in shares] == pytest.approx([1, 1], abs=0.051)

    for wrong in ((*asked, "--replace"), ("learn", "--name", "other", "--examples", file)):
        refused = tta(library, *wrong)
        assert (refused.exit_code, "--examples FILE go together" in refused.output) == (2, True)
    file.write_text('{"prompt": "w5"}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"two\.jsonl: 'w5' has no wanted answer"):
        tta(library, *asked, "--replace", "--examples", file)


@pytest.mark.parametrize("name", ["sql", "base", "a b"])
def test_an_entry_cannot_have_the_name_of_something_else(library: Path, name: str) -> None:
    with pytest.raises(LibraryError, match=name):
        tta(library, "learn", "--name", name)


def test_an_expert_that_is_not_there_or_silent_is_refused(library: Path) -> None:
    result = tta(library, "learn", "--name", "new", "--experts", "sql,maths")
    assert result.exit_code == 2
    assert "maths; the low-rank experts are math, sql" in result.output
    (library / "sql" / "examples.txt").unlink()
    with pytest.raises(LibraryError, match="sql: without example prompts"):
        tta(library, "pareto", "--name", "new")


def test_a_front_is_made_with_its_entries_and_picture(library: Path, tmp_path: Path) -> None:
    few = ("--prompts", 1, "--answer", 4, "--samples", 10, "--points", 4)
    result = tta(library, "pareto", "--name", "demo", "--picture", tmp_path / "front.png", *few)
    assert result.exit_code == 0, result.output
    front = read_front(library / "router", "demo")
    assert read_entries(library / ENTRIES).keys() == {point.entry for point in front.points}
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(LibraryError, match="is there already"):
        tta(library, "pareto", "--name", "demo", *few)


def test_a_set_of_entries_is_recombined(library: Path) -> None:
    few = ("--prompts", 1, "--answer", 4, "--samples", 12, "--rounds", 1, "--thirds")
    result = tta(library, "recombine", "--name", "parts", *few)
    assert result.exit_code == 0, result.output
    made = read_entry_set(library / "router", "parts")
    assert read_entries(library / ENTRIES).keys() == {one.entry for one in made.entries}
    assert "error of the surrogate" in result.output
    with pytest.raises(LibraryError, match="is there already"):
        tta(library, "recombine", "--name", "parts", *few)
    with pytest.raises(RouterError, match="12 samples and 2 entries at least, got 3 samples"):
        tta(library, "recombine", "--name", "more", "--samples", 3, "--thirds")


def test_a_gate_of_exclusive_parts_is_trained_beside_that_of_their_experts(library: Path) -> None:
    add_twins(Library.open(library), ["math", "sql"])
    assert tta(library, "train").exit_code == 0
    assert tta(library, "train", "--twin", "t", "--name", "t").exit_code == 0
    names = {name: Gate.load(library / "router", name).names for name in ("gate", "t")}
    assert names == {"gate": ("math", "sql"), "t": ("t-math", "t-sql")}
    result = tta(library, "train", "--twin", "u")
    assert (result.exit_code, "no parts have the prefix 'u'; known are: t" in result.output) == (
        2,
        True,
    )
    result = tta(library, "learn", "--name", "new", "--experts", "sql,t-sql")
    assert (result.exit_code, "t-sql answer nothing alone" in result.output) == (2, True)


def test_features_are_compared_and_the_last_line_is_json(library: Path, tmp_path: Path) -> None:
    file = tmp_path / "labelled.jsonl"
    rows = [
        *((text, "sql", "validation") for text in EXAMPLES["sql"]),
        *((text, None, "validation") for text in EVERYDAY),
    ]
    rows.append(("w1", "math", "test"))
    file.write_text(
        "\n".join(json.dumps({"prompt": p, "task": t, "split": s, "want": ""}) for p, t, s in rows),
        encoding="utf-8",
    )
    result = tta(library, "features", "--prompts", file, "--layers", "1,0", "--split", "validation")
    assert result.exit_code == 0, result.output
    found = json.loads(result.output.splitlines()[-1])
    assert found["prompts"] == len(rows) - 1
    assert {row["source"] for row in found["features"]} == {
        "token embeddings",
        "layer 0",
        "layer 1",
    }
    assert {"quality", "ms", "per_ms", "pooling", "template", "standardised"} <= found["features"][
        0
    ].keys()


def test_silent_experts_and_no_everyday_prompts_are_named(library: Path, tmp_path: Path) -> None:
    where = prompts(tmp_path / "prompts")
    (where / "everyday.txt").write_text("", encoding="utf-8")
    with pytest.raises(PromptFileError, match="there are no everyday prompts"):
        tta(library, "train", "--prompts", where)
    (library / "sql" / "examples.txt").unlink()
    with pytest.raises(PromptFileError, match="no prompts of sql: add the expert again"):
        tta(library, "train")


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ('{"prompt": "w1", "task": "sql"}\n{"prompt": "w1"}', "line 2: wanted"),
        ('{"prompt": " ", "task": "sql"}', "line 1: a prompt"),
        ('{"prompt": "w1", "task": "other"}', "one of math, sql or null"),
        ('{"prompt": "w1", "task": "sql"}', "for none of them"),
        ("w1", "line 1: wanted"),
    ],
)
def test_labelled_prompts_that_mean_nothing_are_refused(
    library: Path, tmp_path: Path, lines: str, says: str
) -> None:
    (tmp_path / "labelled.jsonl").write_text(lines, encoding="utf-8")
    with pytest.raises(PromptFileError, match=says):
        tta(library, "features", "--prompts", tmp_path / "labelled.jsonl")


class _Server(BaseHTTPRequestHandler):
    """Answers as the real one does, and keeps what it was asked."""

    asked: list[Any] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        allowed = (
            self.headers["Authorization"] == f"Bearer {KEY}"
            and self.path == "/admin/policies/explain"
        )
        self.asked.append(body)
        answer = (
            {"policies": [ROW], "examples": [{"expert": "sql", "says": "12 pinned requests"}]}
            if allowed
            else {"error": {"message": "management wants its own key"}}
        )
        text = b"<html>" if body["prompt"] == "html" else json.dumps(answer).encode()
        self.send_response(200 if allowed else 401)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with serve_handler(_Server) as url:
        yield url


def test_explain_shows_what_the_server_says(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTA_ADMIN_KEY", KEY)
    result = tta(None, "explain", "how many", "--url", url, "--policy", "retrieval")
    assert result.exit_code == 0, result.output
    assert _Server.asked[-1] == {"prompt": "how many", "policies": ["retrieval"]}
    assert all(
        text in result.output
        for text in (
            "retrieval",
            "sql 1.00",
            "math 0.10 to 0.30",
            "then orders 0.70",
            "best margin 0.52",
        )
    )
    assert "12 pinned requests" in result.output
    assert json.loads(tta(None, "explain", "how many", "--url", url, "--json").output) == {
        "policies": [ROW],
        "examples": [{"expert": "sql", "says": "12 pinned requests"}],
    }
    assert _Server.asked[-1] == {"prompt": "how many"}


def test_explain_without_key_or_server_says_what_to_do(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TTA_ADMIN_KEY", raising=False)
    with pytest.raises(ConfigError, match="set TTA_ADMIN_KEY"):
        tta(None, "explain", "hi", "--url", url)
    monkeypatch.setenv("TTA_ADMIN_KEY", "wrong")
    with pytest.raises(ConfigError, match="refused, status 401: management wants its own key"):
        tta(None, "explain", "hi", "--url", url)
    monkeypatch.setenv("TTA_ADMIN_KEY", KEY)
    for wrong, says in (
        ("http://127.0.0.1:9", "no server answers"),
        ("file:///etc", "is http://HOST:PORT"),
    ):
        with pytest.raises(ConfigError, match=says):
            tta(None, "explain", "hi", "--url", wrong)
    with pytest.raises(ConfigError, match="is not this server"):
        tta(None, "explain", "html", "--url", url)
