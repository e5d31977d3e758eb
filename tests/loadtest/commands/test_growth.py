"""`python -m loadtest growth` asks servers that have no engine."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from loadtest.__main__ import app
from loadtest.commands.growth import (
    GROUPS,
    LENGTHS,
    OTHERS,
    ROUTED,
    GrowthBench,
    GrowthPlan,
    KeyedServer,
    choose_groups,
    scrape,
)
from loadtest.common.http_client import PROMPT_TOKENS, PromptSupply
from loadtest.sides.grown_servers import DEMO_SERVER, SERVERS
from tests.factories.completions import serve_completions


@pytest.fixture
def bench(base: Path, monkeypatch: pytest.MonkeyPatch) -> GrowthBench:
    # There is no engine that has to come to rest.
    monkeypatch.setattr("loadtest.commands.growth.SETTLE_S", 0)
    return GrowthBench(GrowthPlan(1, firsts=1, batches=1, alike=2), PromptSupply(base, 0))


def test_every_server_is_beside_the_demo_once() -> None:
    assert {DEMO_SERVER, *OTHERS} == SERVERS.keys()
    assert len(OTHERS) == len(SERVERS) - 1


def test_some_servers_may_be_left_out() -> None:
    assert choose_groups("") == list(GROUPS)
    assert choose_groups("grid_0.25, experiment") == [("experiment",), ("grid_0.25",)]
    done = CliRunner().invoke(app, ["growth", "--only", "experts_65"])
    assert done.exit_code == 2
    said = " ".join(done.output.replace("│", " ").split())
    assert "no server is called 'experts_65'; there are experts_64" in said


def test_servers_are_compared_with_the_demo_each_prompt_once(bench: GrowthBench) -> None:
    with serve_completions() as demo, serve_completions() as other:
        demo.next_s = other.next_s = 0
        other.first_s = lambda body: 0.3
        bench.ask_group(
            {DEMO_SERVER: KeyedServer(demo.url, "a"), "log_none": KeyedServer(other.url, "b")}
        )
        bodies = demo.bodies + other.bodies
    found = bench.summarise()
    assert found["log_none_ttft"] > 2
    assert found["log_none_throughput"] < 0.5
    assert found["spreads"].keys() == {"log_none_ttft", "log_none_throughput"}
    prompts = [body["prompt"] for body in bodies]
    assert len(set(prompts)) == len(prompts)
    assert {body["model"] for body in bodies} == {ROUTED}


@pytest.mark.parametrize("tokens", [PROMPT_TOKENS, *LENGTHS])
def test_prompts_have_the_length_that_is_asked_for(base: Path, tokens: int) -> None:
    supply = PromptSupply(base, 1)
    counts = {len(supply._tokenizer(text).input_ids) for text in supply.draw_tasks(3, tokens)}
    assert counts == {tokens}


def test_metrics_are_read_meanwhile_and_must_be_there() -> None:
    with serve_completions() as server:
        with scrape(server.url, every_s=0.01) as answers:
            pass
        assert set(answers) <= {200}
        with (
            pytest.raises(AssertionError, match="metrics answered 404"),
            scrape(f"{server.url}/gone", every_s=0.01),
        ):
            pass
