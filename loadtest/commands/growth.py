"""`python -m loadtest growth`: what a server costs as it grows, and with other options.

Servers of ours that differ in one thing from the demo (`loadtest.sides.grown_servers`) run beside
it, two at a time, and are asked by the default policy, cell by cell in turn: first tokens, one at a
time, and whole answers, 16 at once. Figures are ratios to the demo's server in the same round. The
demo is also asked while its metrics are read once a second, and for first tokens of short and long
prompts, routed and pinned to the base; and servers of several grids for prompts of one beginning,
by a policy that mixes: what they find of it in the cache. The last line of stdout is one JSON
object.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import httpx
import typer

from loadtest.common.console import progress
from loadtest.common.measure import SETTLE_S, Series, rotate, spread
from loadtest.common.seeded_run import run_seeded
from loadtest.sides.grown_servers import DEMO_SERVER, SERVERS

if TYPE_CHECKING:
    from loadtest.common.http_client import PromptSupply, RequestLoad

GROUPS = (("experts_64", "tenants_64"), ("experiment", "log_none"), ("grid_0.01", "grid_0.25"))
"""Which servers run at a time, each time beside the demo's."""
OTHERS = tuple(name for group in GROUPS for name in group)
"""The servers that are compared with the demo's."""
LENGTHS = (16, 256, 1500)
"""Tokens of prompts whose first tokens are timed, routed and pinned."""
MANY = 16  # requests at once
ROUTED, BASE = "smollm2", "smollm2:base"
_MIXES = {"merge": {"policy": "retrieval-top3"}}
_PROMPT = 64  # tokens of a prompt, if nothing else is said
_BEGINNING = 256  # tokens that prompts of a grid have in common
_FIRST = 2  # tokens of an answer where the first is what matters


@dataclass(frozen=True)
class GrowthPlan:
    """How much is asked of each server."""

    rounds: int
    firsts: int
    """Requests whose first token is timed, one at a time, each round."""
    batches: int
    """Batches of 16 requests at once, each round."""
    alike: int
    """Prompts of one beginning."""


class KeyedServer(NamedTuple):
    """A server that runs."""

    url: str
    key: str
    """What its clients say."""


def command(
    quick: Annotated[bool, typer.Option("--quick", help="Two rounds, fewer requests.")] = False,
    only: Annotated[
        str, typer.Option(help=f"Some servers beside the demo's; else all: {', '.join(OTHERS)}.")
    ] = "",
    seed: Annotated[int, typer.Option(help="Of prompts.")] = 0,
) -> None:
    """Measure what experts, tenants, experiments, metrics, logs, grids and prompts cost."""
    run_seeded(partial(measure, groups=choose_groups(only)), quick=quick, seed=seed)


def choose_groups(only: str) -> list[tuple[str, ...]]:
    """Return the groups of servers, or what they have of some servers.

    Raises BadParameter for a server that there is not.
    """
    named = {name.strip() for name in only.split(",") if name.strip()}
    if unknown := sorted(named - {*OTHERS}):
        message = f"no server is called {unknown[0]!r}; there are {', '.join(OTHERS)}"
        raise typer.BadParameter(message, param_hint="--only")
    chosen = named or {*OTHERS}
    groups = [tuple(name for name in group if name in chosen) for group in GROUPS]
    return [group for group in groups if group]


def measure(
    folder: Path, *, quick: bool, seed: int, groups: Sequence[Sequence[str]] = GROUPS
) -> dict[str, Any]:
    """Measure groups of servers, one after the other."""
    from deploy.demo.base import ensure_base
    from loadtest.common.http_client import PromptSupply

    plan = GrowthPlan(2, 6, 1, 24) if quick else GrowthPlan(5, 16, 4, 96)
    base = ensure_base()
    bench = GrowthBench(plan, PromptSupply(base, seed))
    with _serve(DEMO_SERVER, folder, base) as demo:
        bench.ask_demo(demo)
        for group in groups:
            with ExitStack() as stack:
                others = {name: stack.enter_context(_serve(name, folder, base)) for name in group}
                bench.ask_group({DEMO_SERVER: demo, **others})
    return bench.summarise()


@contextmanager
def _serve(name: str, folder: Path, base: Path) -> Iterator[KeyedServer]:
    """Run a server meanwhile, with its experiment if it has one."""
    from loadtest.common.experiment_start import start_experiment
    from loadtest.sides.grown_servers import EXPERIMENT, write_config
    from loadtest.sides.servers import ours, run_server

    progress.log(f"starts {name}")
    key, admin_key = secrets.token_hex(16), secrets.token_hex(16)
    config = write_config(name, folder / name, key)
    inherited = {**os.environ, "TTA_ADMIN_KEY": admin_key}
    with run_server(
        lambda port: ours(base, port, config), folder / f"{name}.log", inherited
    ) as process:
        if SERVERS[name].experiment:
            headers = {"authorization": f"Bearer {admin_key}"}
            with httpx.Client(base_url=process.url, headers=headers, timeout=120) as admin:
                start_experiment(admin, "growth", EXPERIMENT)
        yield KeyedServer(process.url, key)


@dataclass
class GrowthBench:
    """Asks servers, and keeps what it finds."""

    plan: GrowthPlan
    prompts: PromptSupply
    ratios: Series = field(default_factory=dict)
    """By name, over the demo's server, or routed over pinned, one for each round."""
    shared: dict[str, float] = field(default_factory=dict)
    """By server, the share of prompt tokens that were in the cache."""
    mixes: dict[str, int] = field(default_factory=dict)
    """By server, how many different mixes those prompts got."""

    def ask_demo(self, demo: KeyedServer) -> None:
        """Ask the demo's server alone, in several ways."""
        self._warm_up(demo)
        for r in range(self.plan.rounds):
            self._compare_lengths(demo, r)
            self._compare_scraped(demo)

    def ask_group(self, servers: Mapping[str, KeyedServer]) -> None:
        """Ask servers that run side by side, the demo's the first of them."""
        for one in servers.values():
            self._warm_up(one)
        for r in range(self.plan.rounds):
            self._compare(servers, r)
        if any(name.startswith("grid") for name in servers):
            prompts = self._draw_alike()
            for name, one in servers.items():
                self._ask_alike(name, one, prompts)

    def _warm_up(self, one: KeyedServer) -> None:
        from loadtest.common.http_client import warm_up

        warm_up(one.url, ROUTED, self.prompts.draw_tasks(MANY), key=one.key)

    def _compare(self, servers: Mapping[str, KeyedServer], r: int) -> None:
        """Ask all servers for first tokens, then for whole answers, in an order that changes."""
        sent: dict[str, Callable[[str], RequestLoad]] = {
            "ttft": self._make_firsts,
            "throughput": self._make_many,
        }
        for figure, make in sent.items():
            found = {}
            for name in rotate(list(servers), r):
                found[name] = self._load(servers[name], ROUTED, make(servers[name].key), figure)
            for name in servers.keys() - {DEMO_SERVER}:
                self._keep(f"{name}_{figure}", found[name], found[DEMO_SERVER])

    def _compare_lengths(self, demo: KeyedServer, r: int) -> None:
        """Ask for first tokens behind prompts of several lengths, routed and pinned."""
        for tokens in LENGTHS:
            found = {}
            for model in rotate([ROUTED, BASE], r):
                sent = self._make_firsts(demo.key, tokens)
                found[model] = self._load(demo, model, sent, "ttft")
            self._keep(f"prompt_{tokens}_ttft_routed_over_pinned", found[ROUTED], found[BASE])

    def _compare_scraped(self, demo: KeyedServer) -> None:
        """Ask for whole answers while metrics are read once a second, and while nobody does."""
        quiet = self._load(demo, ROUTED, self._make_many(demo.key), "throughput")
        with scrape(demo.url):
            scraped = self._load(demo, ROUTED, self._make_many(demo.key), "throughput")
        self._keep("scraped_throughput", scraped, quiet)

    def _ask_alike(self, name: str, one: KeyedServer, prompts: Sequence[str]) -> None:
        """Ask for prompts of one beginning by a policy that mixes, one at a time."""
        from loadtest.commands.replicas import read_counters
        from loadtest.common.http_client import ask_merges

        with httpx.Client(base_url=one.url, timeout=120) as client:
            before = read_counters(client)
            merges = ask_merges(one.url, prompts, _MIXES)
            after = read_counters(client)
        hits, queries = (
            sum(after[key].values()) - sum(before[key].values()) for key in ("hits", "queries")
        )
        self.shared[name] = hits / queries
        self.mixes[name] = len({merge["mix"] for merge in merges})

    def _draw_alike(self) -> list[str]:
        """Draw prompts that begin alike, as those with examples in them do."""
        [beginning] = self.prompts.draw_tasks(1, _BEGINNING)
        return [f"{beginning}\n\n{end}" for end in self.prompts.draw_tasks(self.plan.alike)]

    def _make_firsts(self, key: str, tokens: int = _PROMPT) -> RequestLoad:
        from loadtest.common.http_client import RequestLoad

        prompts = self.prompts.draw_tasks(self.plan.firsts, tokens)
        return RequestLoad(prompts, 1, tokens=_FIRST, read=tokens, key=key)

    def _make_many(self, key: str) -> RequestLoad:
        from loadtest.common.http_client import RequestLoad

        return RequestLoad(self.prompts.draw_tasks(MANY * self.plan.batches), MANY, key=key)

    def _load(self, one: KeyedServer, model: str, sent: RequestLoad, figure: str) -> float:
        """Send requests; return tokens a second, or milliseconds to the first token."""
        from loadtest.common.http_client import load

        time.sleep(SETTLE_S)
        got = load(one.url, model, sent)
        return got.tok_s if figure == "throughput" else got.ttft_ms

    def _keep(self, name: str, value: float, of: float) -> None:
        self.ratios.setdefault(name, []).append(value / of)
        progress.log(f"{name}: {value:.1f} to {of:.1f}")

    def summarise(self) -> dict[str, Any]:
        """Return all figures."""
        return {
            **{name: median(values) for name, values in self.ratios.items()},
            **{f"{name}_cached": share for name, share in self.shared.items()},
            **{f"{name}_mixes": count for name, count in self.mixes.items()},
            "prompts_alike": self.plan.alike,
            "spreads": {name: spread(values) for name, values in self.ratios.items()},
        }


@contextmanager
def scrape(url: str, every_s: float = 1.0) -> Iterator[list[int]]:
    """Read a server's metrics again and again meanwhile, as Prometheus does; yield the statuses."""
    over = threading.Event()
    answers: list[int] = []

    def read() -> None:
        while True:
            answers.append(httpx.get(f"{url}/metrics", timeout=60).status_code)
            if over.wait(every_s):
                return

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield answers
    finally:
        over.set()
        thread.join()
    wrong = [status for status in answers if status != httpx.codes.OK]
    assert not wrong, f"metrics answered {wrong[0]}"
