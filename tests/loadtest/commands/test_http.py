"""`python -m loadtest http` asks a server that has no engine; and what its options refuse."""

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loadtest.__main__ import app
from loadtest.commands.http_asker import AskedServer, HttpAsker
from loadtest.commands.http_plan import MANY, SIDES, HttpPlan
from loadtest.common.http_client import PromptSupply
from loadtest.common.mix_supply import MixChoice, MixSupply
from loadtest.common.workload import numbers_of
from tests.factories.completions import serve_completions

PLAN = HttpPlan(1, firsts=1, alone=1, batches=1, arrivals=2, shares=(50,), whole=True)
MIXES = MixSupply.of(MixChoice.UNIFORM, ["dates", "math", "orders", "sql"], MANY, 0)


@pytest.fixture
def asker(base: Path, monkeypatch: pytest.MonkeyPatch) -> HttpAsker:
    # There is no engine that has to come to rest.
    monkeypatch.setattr("loadtest.commands.http_asker.SETTLE_S", 0)
    return HttpAsker(PLAN, PromptSupply(base, 0), MIXES, 0)


def at(url: str, keys: str) -> dict[str, AskedServer]:
    return {key: AskedServer(SIDES[key], url, SIDES[key].model or "base") for key in keys}


def test_sides_are_asked_in_all_cells_each_prompt_once(asker: HttpAsker) -> None:
    with serve_completions() as server:
        server.next_s = 0
        asker.ask(at(server.url, "ade"), 0)
    values = asker.found.values
    assert values["a"].keys() == values["e"].keys() == {"first", "alone", "many", "open_50"}
    fewer = {f"{cell}_{mixes}_mixes" for cell in ("many", "alone") for mixes in (1, 4)}
    assert values["d"].keys() - values["a"].keys() == fewer
    prompts = [body["prompt"] for body in server.bodies]
    assert len(prompts) == len(set(prompts))
    told = [body["merge"]["experts"] for body in server.bodies if "merge" in body]
    assert all(numbers_of(mix) in told for mix in MIXES.mixes)
    assert {body["model"] for body in server.bodies} == {"base", "smollm2"}
    assert asker.found.router_ms == {"e": [2.0]}
    assert asker.found.fallbacks == {"e": 0}


def test_an_open_loop_follows_the_capacity_of_a(asker: HttpAsker) -> None:
    asker.plan = replace(PLAN, trace=(0.0, 1.0))
    with serve_completions() as server:
        server.next_s = 0
        asker.ask(at(server.url, "c"), 0)
        assert "open_50" not in asker.found.values["c"], "nobody knows half of what"
        asker.ask(at(server.url, "a"), 0)
    capacity = asker.found.capacity
    assert capacity is not None
    # The last of them comes when so many are due; the second of a trace when one is.
    assert asker.found.values["a"]["open_50"]["requests_s"][0] < capacity / 2
    assert asker.found.values["a"]["trace"]["requests_s"][0] < capacity


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "a,z"], "'z'; there are a, b, c, d, e, f"),
        (["--out", "/dev/null/results"], "Not a directory"),
        (["--mixes", "some"], "'uniform', 'zipf', 'one-hot'"),
        (["--trace", "/nowhere.jsonl"], "No such file"),
        (["--trace", "/dev/null", "--only", "c"], "ask a too"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(options: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["http", "--quick", *options])
    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", " ").split())


def test_a_trace_that_is_too_short_is_refused_before_anything_starts(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text('{"timestamp": 0}\n{"timestamp": 5}\n', encoding="utf-8")
    done = CliRunner().invoke(app, ["http", "--quick", "--trace", str(file)])
    assert done.exit_code == 2
    assert "2 requests; 16 are asked" in " ".join(done.output.replace("│", " ").split())
