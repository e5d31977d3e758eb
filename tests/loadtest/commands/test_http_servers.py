"""The servers of `python -m loadtest http`: one for each side, which none is left without."""

from pathlib import Path

from adapters.library.library import Library
from adapters.mix import Mix
from loadtest.commands.http_plan import SIDES
from loadtest.commands.http_servers import make_servers
from loadtest.common.mix_supply import MixSupply
from loadtest.sides.engines import Setup

MIXES = MixSupply([Mix.of({"sql": 1.0})])


def test_every_side_has_its_server_and_the_capacity_is_known_first(
    demo_experts: Path, tmp_path: Path
) -> None:
    setup = Setup(Path("/base"), Library.open(demo_experts), tmp_path)
    wanted = {side.server for side in SIDES.values()}
    makers = make_servers(setup, MIXES, wanted)
    assert next(iter(makers)) == "vllm"
    assert makers.keys() == wanted
    assert len({make(9000).command for make in makers.values()}) == len(wanted)
    merged = makers["merged"](9000).command
    assert merged[merged.index("--max-lora-rank") + 1] == "16", "what one expert alone needs"
    assert f"mix-0={tmp_path / 'mix-0'}" in merged


def test_nothing_is_made_for_a_side_that_is_not_asked(demo_experts: Path, tmp_path: Path) -> None:
    setup = Setup(Path("/base"), Library.open(demo_experts), tmp_path)
    assert list(make_servers(setup, MIXES, {"ours"})) == ["ours"]
    assert not list(tmp_path.iterdir())
