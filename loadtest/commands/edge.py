"""`python -m loadtest edge`: what the way from client to engine costs, over HTTP.

vllm        vLLM's own server
ray_direct  Ray's own OpenAI app with direct streaming: client, HAProxy, replica
ours        ours, pinned to the base
default     ours, everyday prompts by the default policy
tasks       ours, the experts' example prompts by the default policy

Every round starts each server anew, alone on the machine, in an order that changes from round to
round, and asks it with vLLM's own client. Two processes of one and the same engine can differ by a
seventh for as long as they live, so only several starts can tell servers apart.
The last line of stdout is one JSON object.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from loadtest.common import machine
from loadtest.common.console import make_bar
from loadtest.common.load_figures import LoadFigures
from loadtest.common.measure import median_ratio, rotate, spread

if TYPE_CHECKING:
    from loadtest.common.http_client import PromptSupply
    from loadtest.sides.servers import ServerProcess

MANY = 16  # requests at once
IDLE_S = 20.0
_CALM_S = 5.0  # from the last answer until a server counts as idle
_WANTED = {
    "throughput_over_vllm_1": ">= 0.95",
    "throughput_over_vllm_16": ">= 0.95",
    "default_over_pinned_16": ">= 0.98",
    "ttft_over_vllm": "<= 1.1",
    "processes_idle_cores": "<= 0.05",
}

Row = dict[str, Any]
Series = dict[str, list[float]]


@dataclass(frozen=True)
class EdgePlan:
    """How much is asked."""

    rounds: int
    """How often each server is started."""
    alone: int
    """Requests that are sent one at a time, each round."""
    batches: int
    """Batches of 16 requests at once, each round."""
    ray: bool = True
    """Whether Ray's own app is compared too."""


@dataclass(frozen=True)
class EdgeSide:
    """One way of asking a server."""

    server: str
    """The server that is asked."""
    model: str | None = None
    """The name it is asked for, None for the one that pins the base."""
    tasks: bool = False
    """Whether the prompts are the experts' examples, not everyday ones."""
    alone: bool = True
    """Whether it is also asked one request at a time."""


SIDES = {
    "vllm": EdgeSide("vllm"),
    "ray_direct": EdgeSide("ray_direct"),
    "ours": EdgeSide("ours"),
    "default": EdgeSide("ours", "smollm2"),
    "tasks": EdgeSide("ours", "smollm2", tasks=True, alone=False),
}


@dataclass
class EdgeFindings:
    """What all rounds found: lists of one value a round."""

    values: dict[str, Series] = field(default_factory=dict)
    """Rates and times, by side."""
    cores: dict[str, Series] = field(default_factory=dict)
    """CPU seconds per second of a server's processes while 16 are asked, by side and process."""
    idle: dict[str, Series] = field(default_factory=dict)
    """The same while nothing is asked, by server and process."""
    routed: Series = field(default_factory=dict)
    """The share of prompts that the default policy gives to an expert, by kind of prompt."""

    def add(self, name: str, at_once: int, got: LoadFigures) -> None:
        """Keep what a run gave."""
        mine = self.values.setdefault(name, {})
        for key in ("tok_s", "ttft_ms", "tpot_ms", "client_cores"):
            mine.setdefault(f"{key}_{at_once}", []).append(getattr(got, key))

    def over(self, key: str, above: str, below: str) -> float:
        """Return the median over rounds of the ratio of two sides."""
        return median_ratio(self.values[above][key], self.values[below][key])


def command(
    quick: Annotated[bool, typer.Option("--quick", help="4 rounds, fewer requests.")] = False,
    ray: Annotated[bool, typer.Option(help="Also Ray's own app with direct streaming.")] = True,
    seed: Annotated[int, typer.Option(help="Of prompts.")] = 0,
) -> None:
    """Measure the way from client to engine, beside vLLM's server and Ray's direct streaming."""
    inherited = dict(os.environ)
    machine.set_environment()
    # So that servers are ended then too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    plan = EdgePlan(4, 2, 1, ray) if quick else EdgePlan(8, 4, 2, ray)
    result = {**machine.describe_machine(), "quick": quick, "seed": seed, "rounds": plan.rounds}
    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
        found = _measure(Path(folder), plan, inherited, seed)
    result |= _numbers(found)
    _show(result)
    print(json.dumps(machine.round_floats(result)), flush=True)


def _measure(folder: Path, plan: EdgePlan, inherited: Mapping[str, str], seed: int) -> EdgeFindings:
    from deploy.demo.base import ensure_base
    from loadtest.common.http_client import PromptSupply
    from loadtest.sides import servers

    base = ensure_base()
    sides = {"vllm": servers.vllm, "ray_direct": servers.ray_direct, "ours": servers.ours}
    asker = Asker(plan, PromptSupply(base, seed), EdgeFindings())
    names = ("vllm", "ray_direct", "ours") if plan.ray else ("vllm", "ours")
    with make_bar() as bar:
        task = bar.add_task("", total=plan.rounds * len(names))
        for r in range(plan.rounds):
            for name in rotate(names, r):
                bar.update(task, description=f"round {r + 1}: {name}")
                start = partial(sides[name], base)
                log = folder / f"{name}.log"
                with servers.run_server(start, log, inherited) as server:
                    asker.ask(server, name, r)
                bar.advance(task)
    return asker.found


@dataclass(frozen=True)
class Asker:
    """Asks servers, and keeps what it finds."""

    plan: EdgePlan
    prompts: PromptSupply
    found: EdgeFindings

    def ask(self, server: ServerProcess, name: str, r: int) -> None:
        """Ask one server in all ways, in an order that changes from round to round.

        Then it is left alone, to see what it takes while nothing is asked.
        """
        mine = tuple(key for key, asked in SIDES.items() if asked.server == name)
        for key in rotate(mine, r):
            self._ask(server, key)
        if name == "ours":
            self._count_routed(server)
        time.sleep(_CALM_S)
        with self._watched(server, self.found.idle.setdefault(name, {})):
            time.sleep(IDLE_S)

    def _ask(self, server: ServerProcess, key: str) -> None:
        """Warm up, then ask one at a time, then many at once."""
        from loadtest.common.http_client import RequestLoad, load, warm_up

        asked = SIDES[key]
        model = asked.model or server.side.model
        draw = self.prompts.draw_tasks if asked.tasks else self.prompts.draw_everyday
        warm_up(server.url, model, draw(MANY))
        if asked.alone:
            alone = RequestLoad(draw(self.plan.alone), 1)
            self.found.add(key, 1, load(server.url, model, alone))
        many = RequestLoad(draw(MANY * self.plan.batches), MANY)
        with self._watched(server, self.found.cores.setdefault(key, {})):
            got = load(server.url, model, many)
        self.found.add(key, MANY, got)

    def _count_routed(self, server: ServerProcess) -> None:
        draws = {"everyday": self.prompts.draw_everyday, "tasks": self.prompts.draw_tasks}
        for kind, draw in draws.items():
            self.found.routed.setdefault(kind, []).append(_share(server, draw(MANY)))

    @staticmethod
    @contextmanager
    def _watched(server: ServerProcess, into: Series) -> Iterator[None]:
        """Keep what each of the server's processes takes meanwhile."""
        from loadtest.common.processes import Meter

        with Meter(server.tree) as meter:
            yield
        for process, cores in meter.cores.items():
            into.setdefault(process, []).append(cores)


def _share(server: ServerProcess, prompts: list[str]) -> float:
    """Return the share of prompts that the default policy gives to an expert."""
    from loadtest.common.http_client import ask_merges

    return sum(bool(merge["experts"]) for merge in ask_merges(server.url, prompts)) / len(prompts)


def _numbers(found: EdgeFindings) -> Row:
    idle = {
        name: {process: median(cores) for process, cores in series.items()}
        for name, series in found.idle.items()
    }
    loaded = {
        name: {process: median(found.cores[name][process]) for process in found.cores[name]}
        for name in idle
    }
    ratios = {
        "throughput_over_vllm_1": found.over("tok_s_1", "ours", "vllm"),
        "throughput_over_vllm_16": found.over("tok_s_16", "ours", "vllm"),
        "default_over_pinned_16": found.over("tok_s_16", "default", "ours"),
        "tasks_over_pinned_16": found.over("tok_s_16", "tasks", "ours"),
        "ttft_over_vllm": found.over("ttft_ms_1", "ours", "vllm"),
        "processes_idle_cores": sum(idle["ours"].values()),
    }
    if "ray_direct" in found.values:
        ratios["ray_direct_over_vllm_1"] = found.over("tok_s_1", "ray_direct", "vllm")
        ratios["ray_direct_over_vllm_16"] = found.over("tok_s_16", "ray_direct", "vllm")
        ratios["ttft_ray_direct_over_vllm"] = found.over("ttft_ms_1", "ray_direct", "vllm")
    routed = {kind: median(shares) for kind, shares in found.routed.items()}
    sides = {name: _medians(series) for name, series in found.values.items()}
    rates = {name: series["tok_s_16"] for name, series in found.values.items()}
    cores = {name: {"idle": idle[name], "at_16": loaded[name]} for name in idle}
    return {**ratios, "routed": routed, "sides": sides, "tok_s_16_by_round": rates, "cores": cores}


def _medians(series: Series) -> Row:
    rates = {key: values for key, values in series.items() if key.startswith("tok_s")}
    spreads = {f"{key}_spread": spread(values) for key, values in rates.items()}
    return {key: median(values) for key, values in series.items()} | spreads


def _show(result: Row) -> None:
    console = Console()
    titles = {
        "tok_s": "tok/s",
        "ttft_ms": "first token, ms",
        "tpot_ms": "ms a token after it",
        "client_cores": "client, cores",
    }
    pairs = [(key, n) for n in (1, MANY) for key in titles]
    table = Table("side", *(f"{titles[key]}, {n} at once" for key, n in pairs))
    for name, side in result["sides"].items():
        keys = [f"{key}_{n}" for key, n in pairs]
        table.add_row(name, *(f"{side[key]:.4g}" if key in side else "" for key in keys))
    console.print(table)
    for name, cores in result["cores"].items():
        console.print(_processes(name, cores["idle"], cores["at_16"]))
    machine.show_wanted(console, result, _WANTED)


def _processes(name: str, idle: Mapping[str, float], loaded: Mapping[str, float]) -> Table:
    """Make a table of the cores that each process takes."""
    table = Table(f"{name}: cores", "idle", f"{MANY} at once")
    for process in {**loaded, **idle}:
        table.add_row(process, f"{idle.get(process, 0):.4f}", f"{loaded.get(process, 0):.4f}")
    table.add_row("all", f"{sum(idle.values()):.4f}", f"{sum(loaded.values()):.4f}", style="bold")
    return table
