"""`python -m loadtest http`: what adaptive merging costs a user, beside what there is without it.

a   vLLM's own server, the base
b   vLLM's own server, each mix merged into an adapter beforehand
c   ours, pinned to the base
d   ours, each request with a mix of its own choice
e   ours, by the default policy, which decides inside the pass; in full also `gate` by a probe,
    `twin` where the demo's config has it, and `t3-calibrated`
f   vLLM's own server, merging in place for one request at a time, as research code does
g   in full: Ray's own OpenAI app with direct streaming, the base

Every round starts each server anew, and asks it with vLLM's own client: so many at once, and as
requests come by chance, in bursts and as in a trace, at shares of the capacity that a has in the
first round. The servers of all sides but b and f, which are slow, run side by side and are asked in
turn, each while the others have nothing to do; b and f are alone on the machine. Any error ends the
run. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from loadtest.commands.http_asker import AskedServer, HttpAsker
from loadtest.commands.http_figures import make_rows, show_figures
from loadtest.commands.http_plan import (
    MANY,
    AskedSide,
    HttpPlan,
    choose_sides,
    group_sides,
    make_plan,
)
from loadtest.commands.http_plot import draw_sides
from loadtest.commands.http_servers import make_servers
from loadtest.common import machine
from loadtest.common.arrival_trace import read_arrivals
from loadtest.common.console import make_bar, progress
from loadtest.common.measure import rotate
from loadtest.common.mix_supply import MixChoice, MixSupply
from loadtest.common.result_files import describe_command, write_results


def command(  # noqa: PLR0913 - one option each
    context: typer.Context,
    quick: Annotated[bool, typer.Option("--quick", help="Two rounds, fewer requests.")] = False,
    only: Annotated[str, typer.Option(help="Some sides by their letters, as a,c; else all.")] = "",
    mixes: Annotated[
        MixChoice,
        typer.Option(
            help="Which mixes b, d and f name: 16 random ones equally often (uniform) or by Zipf's"
            " law, or one expert alone each (one-hot), so no more than there are experts."
        ),
    ] = MixChoice.UNIFORM,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Requests come also as in this trace, at half of a's capacity in the mean: a JSON"
            " object a line, with timestamp in milliseconds.",
            dir_okay=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write http.json, http.md and http.svg to this folder.",
            file_okay=False,
            writable=True,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of prompts, mixes and when requests come.")] = 0,
) -> None:
    """Measure what adaptive merging costs over HTTP, beside vLLM's server and merging in place."""
    plan = replace(make_plan(_list_policies(), quick=quick), choice=mixes)
    sides = _choose_sides(plan, only)
    if trace:
        plan = _add_trace(plan, trace, sides)
    if out:
        _make_folder(out)
    inherited = dict(os.environ)
    machine.set_environment()
    # So that servers are ended then too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    result = {
        "command": describe_command(context),
        **machine.describe_machine(),
        "quick": quick,
        "seed": seed,
        "rounds": plan.rounds,
    }
    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
        asker = _measure(Path(folder), plan, sides, inherited, seed)
    _report(machine.round_floats(result | asker.summarise()), out)


def _choose_sides(plan: HttpPlan, only: str) -> dict[str, AskedSide]:
    try:
        return choose_sides(plan, only)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--only") from error


def _add_trace(plan: HttpPlan, trace: Path, sides: Collection[str]) -> HttpPlan:
    """Return the plan with the arrivals of a trace."""
    if "a" not in sides:
        message = "its requests come at half of a's capacity; ask a too, as with --only a,c"
        raise typer.BadParameter(message, param_hint="--trace")
    try:
        return replace(plan, trace=read_arrivals(trace, plan.arrivals))
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{trace}: {error}", param_hint="--trace") from error


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(str(error), param_hint="--out") from error


def _report(result: dict[str, Any], out: Path | None) -> None:
    """Print the figures, and write them to a folder if there is one."""
    rows = make_rows(result["sides"])
    show_figures(result, rows)
    print(json.dumps(result), flush=True)
    if out:
        write_results(out, "http", result, rows, draw_sides(result["sides"]))


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
) -> HttpAsker:
    from loadtest.common.http_client import PromptSupply
    from loadtest.sides.servers import run_server
    from loadtest.sides.session import setup_in

    if "a" not in sides:
        progress.log("Without a there is no capacity, so nothing is asked at shares of it.")
    setup = setup_in(folder)
    mixes = MixSupply.of(plan.choice, setup.library.names, MANY, seed)
    servers = make_servers(setup, mixes, {side.server for side in sides.values()})
    asker = HttpAsker(plan, PromptSupply(setup.base, seed), mixes, seed)
    groups = [(r, group) for r in range(plan.rounds) for group in group_sides(plan, sides, r)]
    with make_bar() as bar:
        for r, group in bar.track(groups):
            with ExitStack() as stack:
                names = dict.fromkeys(side.server for side in group.values())
                running = {}
                for name in rotate(list(names), r):
                    progress.log(f"round {r + 1}: starts {name}")
                    running[name] = stack.enter_context(
                        run_server(servers[name], folder / f"{name}.log", inherited)
                    )
                asked = {}
                for key, side in group.items():
                    server = running[side.server]
                    asked[key] = AskedServer(side, server.url, side.model or server.side.model)
                asker.ask(asked, r)
                for key, side in group.items():
                    asker.found.add_memory(key, running[side.server].tree.read_memory())
    return asker
