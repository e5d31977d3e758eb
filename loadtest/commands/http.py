"""`python -m loadtest http`: what adaptive merging costs a user, beside what there is without it.

a   vLLM's own server, the base
b   vLLM's own server, each mix merged into an adapter beforehand
c   ours, pinned to the base
d   ours, each request with a mix of its own choice
e   ours, by the default policy, which decides inside the pass; in full also `gate` by a probe,
    `twin` where the demo's config has it, and `t3-calibrated`
f   vLLM's own server, merging in place for one request at a time, as research code does

Every round starts each server anew, alone on the machine, in an order that changes from round to
round, and asks it with vLLM's own client: so many at once, and as requests come by chance, at
shares of the capacity that a has in the first round. Any error ends the run.
The last line of stdout is one JSON object.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

from loadtest.commands.http_figures import HttpFindings, make_rows, show_figures, write_markdown
from loadtest.commands.http_plan import (
    MANY,
    AskedSide,
    Cell,
    HttpPlan,
    choose_sides,
    make_bodies,
    make_cells,
    make_plan,
)
from loadtest.common import machine
from loadtest.common.console import make_bar, progress
from loadtest.common.measure import rotate

if TYPE_CHECKING:
    from adapters.mix import Mix
    from loadtest.common.http_client import PromptSupply, RequestLoad
    from loadtest.sides.engines import Setup
    from loadtest.sides.servers import ServerSide

MakeServer = Callable[[int], "ServerSide"]


def command(
    quick: Annotated[bool, typer.Option("--quick", help="Two rounds, fewer requests.")] = False,
    only: Annotated[str, typer.Option(help="Some sides by their letters, as a,c; else all.")] = "",
    markdown: Annotated[
        Path | None, typer.Option(help="Write the table to this file.", dir_okay=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of prompts, mixes and when requests come.")] = 0,
) -> None:
    """Measure what adaptive merging costs over HTTP, beside vLLM's server and merging in place."""
    plan = make_plan(_list_policies(), quick=quick)
    try:
        sides = choose_sides(plan, only)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--only") from error
    if markdown and not markdown.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {markdown.parent}", param_hint="--markdown")
    inherited = dict(os.environ)
    machine.set_environment()
    # So that servers are ended then too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    result = {**machine.describe_machine(), "quick": quick, "seed": seed, "rounds": plan.rounds}
    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
        found = _measure(Path(folder), plan, sides, inherited, seed)
    result |= found.summarise()
    rows = make_rows(found.summarise_sides())
    show_figures(result, rows)
    if markdown:
        write_markdown(markdown, rows)
    print(json.dumps(machine.round_floats(result)), flush=True)


def _list_policies() -> list[str]:
    """Return the policies that the demo's config has."""
    from loadtest.sides.servers import DEMO

    return list(yaml.safe_load(DEMO.read_text(encoding="utf-8"))["policies"])


def _measure(
    folder: Path,
    plan: HttpPlan,
    sides: Mapping[str, AskedSide],
    inherited: Mapping[str, str],
    seed: int,
) -> HttpFindings:
    from loadtest.common.http_client import PromptSupply
    from loadtest.common.workload import draw_mixes
    from loadtest.sides.servers import run_server
    from loadtest.sides.session import setup_in

    if "a" not in sides:
        progress.log("Without a there is no capacity, so nothing is asked at shares of it.")
    setup = setup_in(folder)
    mixes = draw_mixes(setup.library.names, MANY, seed)
    servers = _make_servers(setup, mixes, {side.server for side in sides.values()})
    asker = HttpAsker(plan, PromptSupply(setup.base, seed), mixes, seed)
    with make_bar() as bar:
        task = bar.add_task("", total=plan.rounds * len(sides))
        for r in range(plan.rounds):
            for name in rotate(list(servers), r):
                bar.update(task, description=f"round {r + 1}: starts {name}")
                with run_server(servers[name], folder / f"{name}.log", inherited) as server:
                    mine = [key for key, side in sides.items() if side.server == name]
                    for key in rotate(mine, r):
                        bar.update(task, description=f"round {r + 1}: asks {key}")
                        asker.ask(server.url, server.side.model, key, sides[key], r)
                        bar.advance(task)
    return asker.found


def _make_servers(setup: Setup, mixes: list[Mix], wanted: set[str]) -> dict[str, MakeServer]:
    """Return what starts each server that is wanted, vLLM's own first, which the capacity is of."""
    from loadtest.sides import servers
    from loadtest.sides.stock import find_max_lora_rank, write_adapters

    makers: dict[str, MakeServer] = {
        "vllm": partial(servers.vllm, setup.base),
        "ours": partial(servers.ours, setup.base),
        "in_place": partial(servers.vllm_in_place, setup.base),
    }
    if "merged" in wanted:
        adapters = write_adapters(setup.folder, mixes, setup.library)
        rank = find_max_lora_rank(setup.library)
        makers["merged"] = partial(servers.vllm_merged, setup.base, adapters=adapters, rank=rank)
    return {name: make for name, make in makers.items() if name in wanted}


@dataclass
class HttpAsker:
    """Asks servers, and keeps what it finds."""

    plan: HttpPlan
    prompts: PromptSupply
    mixes: list[Mix]
    seed: int
    found: HttpFindings = field(default_factory=HttpFindings)

    def ask(self, url: str, model: str, key: str, side: AskedSide, r: int) -> None:
        """Ask a server as one side does: a warm-up, then each cell of the plan.

        Args:
            url: The server's address.
            model: The name that it is asked for, if the side has none.
            key: The side's letter.
            side: The side.
            r: The round.
        """
        from loadtest.common.http_client import ask_merges, count_fallbacks, load, warm_up

        model = side.model or model
        bodies = make_bodies(side, Cell("warm", MANY, MANY), self.mixes)
        warm_up(url, model, self.prompts.draw_tasks(MANY), bodies)
        before = count_fallbacks(url) if side.policy else 0.0
        for cell in make_cells(self.plan, side):
            if cell.share and self.found.capacity is None:
                continue
            got = load(url, model, self._make_load(side, cell, r))
            self.found.add(key, cell.name, got)
        if side.policy:
            late = count_fallbacks(url) - before
            merges = ask_merges(url, self.prompts.draw_tasks(MANY), side.body)
            self.found.add_decisions(key, merges, late)

    def _make_load(self, side: AskedSide, cell: Cell, r: int) -> RequestLoad:
        """Make the requests of a cell; in one round they come to all sides at the same times."""
        from loadtest.common.http_client import RequestLoad

        rate = (self.found.capacity or math.inf) * cell.share / 100 if cell.share else math.inf
        return RequestLoad(
            self.prompts.draw_tasks(cell.requests),
            cell.at_once,
            make_bodies(side, cell, self.mixes),
            rate,
            seed=1000 * self.seed + r,
            tokens=cell.tokens,
        )
