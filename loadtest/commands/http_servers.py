"""The servers that `python -m loadtest http` asks."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadtest.common.mix_supply import MixSupply
    from loadtest.sides.engines import Setup
    from loadtest.sides.servers import ServerSide

MakeServer = Callable[[int], "ServerSide"]


def make_servers(setup: Setup, mixes: MixSupply, wanted: Collection[str]) -> dict[str, MakeServer]:
    """Return what starts each server that is wanted, vLLM's own first, which the capacity is of."""
    from loadtest.sides import servers
    from loadtest.sides.stock import find_max_lora_rank, write_adapters

    makers: dict[str, MakeServer] = {
        "vllm": partial(servers.vllm, setup.base),
        "ours": partial(servers.ours, setup.base),
        "in_place": partial(servers.vllm_in_place, setup.base),
        "ray_direct": partial(servers.ray_direct, setup.base),
    }
    if "merged" in wanted:
        adapters = write_adapters(setup.folder, mixes.mixes, setup.library)
        rank = find_max_lora_rank(setup.library, mixes.width)
        makers["merged"] = partial(servers.vllm_merged, setup.base, adapters=adapters, rank=rank)
    return {name: make for name, make in makers.items() if name in wanted}
