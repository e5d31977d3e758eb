"""`python -m loadtest edge`: what the way from client to engine costs over HTTP.

vllm        vLLM's own server
ray_direct  Ray's own OpenAI app with direct streaming: client, HAProxy, replica
ours        ours, pinned to the base
default     ours, everyday prompts by the default policy
tasks       ours, the experts' example prompts by the default policy

Three servers with the same engine, of which two are held still (SIGSTOP) while the third is asked
by vLLM's own client. They take 16 GB of memory together.
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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from loadtest import report
from loadtest.measure import ratio, spread

if TYPE_CHECKING:
    from loadtest.client import Load, Prompts
    from loadtest.processes import Meter
    from loadtest.servers import Server, Side

MANY = 16  # requests at once
IDLE_S = 30.0
_CALM_S = 10.0  # from the last answer until a server counts as idle
_WANTED = {
    "throughput_over_vllm_1": ">= 0.95",
    "throughput_over_vllm_16": ">= 0.95",
    "default_over_pinned_16": ">= 0.98",
    "ttft_over_vllm": "<= 1.1",
    "processes_idle_cores": "<= 0.05",
}

Row = dict[str, Any]
Series = dict[str, list[float]]
progress = Console(stderr=True)


@dataclass(frozen=True)
class Plan:
    """rounds: of all sides   alone: requests one at a time in each   batches: of 16 at once   ray: with Ray's own app"""

    rounds: int
    alone: int
    batches: int
    ray: bool = True


@dataclass(frozen=True)
class Asked:
    """One way of asking a server. tasks: with the experts' prompts   alone: also one at a time"""

    server: str
    model: str | None = None
    tasks: bool = False
    alone: bool = True


ASKED = {
    "vllm": Asked("vllm"),
    "ray_direct": Asked("ray_direct"),
    "ours": Asked("ours"),
    "default": Asked("ours", "smollm2"),
    "tasks": Asked("ours", "smollm2", tasks=True, alone=False),
}


@dataclass
class Found:
    """By side, one value a round. loaded: the processes of its server while 16 requests run"""

    values: dict[str, Series] = field(default_factory=dict)
    loaded: dict[str, Meter] = field(default_factory=dict)

    def add(self, name: str, at_once: int, got: Load) -> None:
        """Keep what a run gave."""
        mine = self.values.setdefault(name, {})
        for key in ("tok_s", "ttft_ms", "tpot_ms", "client_cores"):
            mine.setdefault(f"{key}_{at_once}", []).append(getattr(got, key))

    def over(self, key: str, above: str, below: str) -> float:
        """Median over rounds of the ratio of two sides."""
        return ratio(self.values[above][key], self.values[below][key])


def command(
    quick: Annotated[bool, typer.Option("--quick", help="3 rounds, fewer requests.")] = False,
    ray: Annotated[bool, typer.Option(help="Also Ray's own app with direct streaming.")] = True,
    seed: Annotated[int, typer.Option(help="Of prompts.")] = 0,
) -> None:
    """Measure the way from client to engine, beside vLLM's server and Ray's direct streaming."""
    inherited = dict(os.environ)
    report.environment()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are ended then too
    plan = Plan(3, 2, 1, ray) if quick else Plan(5, 4, 2, ray)
    result = {**report.machine(), "quick": quick, "seed": seed, "rounds": plan.rounds}
    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
        found, idle, routed = _measure(Path(folder), plan, inherited, seed)
    result |= _numbers(found, idle) | {"routed": routed}
    _show(result, found, idle)
    print(json.dumps(report.rounded(result)), flush=True)


def _measure(
    folder: Path, plan: Plan, inherited: Mapping[str, str], seed: int
) -> tuple[Found, dict[str, Meter], dict[str, float]]:
    from deploy.demo.base import ensure_base
    from loadtest.client import Prompts

    base = ensure_base()
    prompts = Prompts(base, seed)
    asker = Asker(plan, prompts, Found())
    with ExitStack() as stack:
        bar = stack.enter_context(_bar())
        task = bar.add_task("", total=(2 + plan.ray) * (1 + plan.rounds) + 1)
        servers: dict[str, Server] = {}
        for name, side, port in _sides(base, plan):
            bar.update(task, description=f"start {name}")
            log = folder / f"{name}.log"
            servers[name] = stack.enter_context(_running(side, port, log, inherited))
            bar.advance(task)
        for r in range(plan.rounds):
            for name in _rotated(tuple(servers), r):
                bar.update(task, description=f"round {r + 1}: {name}")
                asker.round(servers[name], name, r)
                bar.advance(task)
        routed = _routed(servers["ours"], prompts)
        bar.update(task, description="idle")
        return asker.found, _idle(servers), routed


def _sides(base: Path, plan: Plan) -> Iterator[tuple[str, Side, int]]:
    from loadtest.servers import free_port, ours, ray_direct, vllm

    port = free_port()
    yield "vllm", vllm(base, port), port
    if plan.ray:
        port = free_port()
        yield "ray_direct", ray_direct(base, port), port
    port = free_port()
    yield "ours", ours(base, port), port


@contextmanager
def _running(side: Side, port: int, log: Path, inherited: Mapping[str, str]) -> Iterator[Server]:
    from loadtest.servers import Server

    server = Server(side, port, log, inherited)
    try:
        yield server
    finally:
        server.close()


def _bar() -> Progress:
    columns = (
        TextColumn("{task.description:24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=progress)


def _rotated(names: tuple[str, ...], by: int) -> tuple[str, ...]:
    shift = by % len(names)
    return names[shift:] + names[:shift]


@dataclass(frozen=True)
class Asker:
    """Asks servers, and keeps what it finds."""

    plan: Plan
    prompts: Prompts
    found: Found

    def round(self, server: Server, name: str, r: int) -> None:
        """All ways of asking one server, in an order that changes from round to round."""
        mine = tuple(key for key, asked in ASKED.items() if asked.server == name)
        with server:
            for key in _rotated(mine, r):
                self._ask(server, key)

    def _ask(self, server: Server, key: str) -> None:
        """Warm up, then one at a time, then many."""
        from loadtest.client import load, warm_up
        from loadtest.processes import Meter

        asked = ASKED[key]
        model = asked.model or server.side.model
        draw = self.prompts.tasks if asked.tasks else self.prompts.everyday
        warm_up(server, model, draw(MANY))
        if asked.alone:
            self.found.add(key, 1, load(server, model, draw(self.plan.alone), 1))
        meter = self.found.loaded.setdefault(key, Meter(server.tree))
        many = draw(MANY * self.plan.batches)
        with meter:
            got = load(server, model, many, MANY)
        self.found.add(key, MANY, got)


def _routed(server: Server, prompts: Prompts) -> dict[str, float]:
    """Share of prompts of either kind that the default policy gives to an expert."""
    with server:
        return {
            "everyday": _share(server, prompts.everyday(MANY)),
            "tasks": _share(server, prompts.tasks(MANY)),
        }


def _share(server: Server, prompts: list[str]) -> float:
    count = 0
    for prompt in prompts:
        body = {"model": "smollm2", "prompt": prompt, "max_tokens": 1}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
        merge = answer.raise_for_status().json()["merge"]
        count += bool((merge[0] if isinstance(merge, list) else merge)["experts"])
    return count / len(prompts)


def _idle(servers: Mapping[str, Server]) -> dict[str, Meter]:
    """All at once: CPU time is counted by process."""
    from loadtest.processes import Meter

    meters = {name: Meter(server.tree) for name, server in servers.items()}
    with ExitStack() as stack:
        for server in servers.values():
            stack.enter_context(server)
        time.sleep(_CALM_S)
        for meter in meters.values():
            stack.enter_context(meter)
        time.sleep(IDLE_S)
    return meters


def _numbers(found: Found, idle: Mapping[str, Meter]) -> Row:
    ratios = {
        "throughput_over_vllm_1": found.over("tok_s_1", "ours", "vllm"),
        "throughput_over_vllm_16": found.over("tok_s_16", "ours", "vllm"),
        "default_over_pinned_16": found.over("tok_s_16", "default", "ours"),
        "tasks_over_pinned_16": found.over("tok_s_16", "tasks", "ours"),
        "ttft_over_vllm": found.over("ttft_ms_1", "ours", "vllm"),
        "processes_idle_cores": sum(idle["ours"].cores.values()),
    }
    if "ray_direct" in found.values:
        ratios["ray_direct_over_vllm_1"] = found.over("tok_s_1", "ray_direct", "vllm")
        ratios["ray_direct_over_vllm_16"] = found.over("tok_s_16", "ray_direct", "vllm")
        ratios["ttft_ray_direct_over_vllm"] = found.over("ttft_ms_1", "ray_direct", "vllm")
    sides = {name: _medians(series) for name, series in found.values.items()}
    cores = {name: {"idle": idle[name].cores, "at_16": found.loaded[name].cores} for name in idle}
    return {**ratios, "sides": sides, "cores": cores}


def _medians(series: Series) -> Row:
    rates = {key: values for key, values in series.items() if key.startswith("tok_s")}
    spreads = {f"{key}_spread": spread(values) for key, values in rates.items()}
    return {key: median(values) for key, values in series.items()} | spreads


def _show(result: Row, found: Found, idle: Mapping[str, Meter]) -> None:
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
    for name, meter in idle.items():
        console.print(_processes(name, meter.cores, found.loaded[name].cores))
    table = Table("", "value", "wanted")
    for key, value in result.items():
        if isinstance(value, float):
            table.add_row(key, f"{value:.3f}", _WANTED.get(key, ""))
    console.print(table)


def _processes(name: str, idle: Mapping[str, float], loaded: Mapping[str, float]) -> Table:
    """Cores that each process takes."""
    table = Table(f"{name}: cores", "idle", f"{MANY} at once")
    for process in {**loaded, **idle}:
        table.add_row(process, f"{idle.get(process, 0):.4f}", f"{loaded.get(process, 0):.4f}")
    table.add_row("all", f"{sum(idle.values()):.4f}", f"{sum(loaded.values()):.4f}", style="bold")
    return table
