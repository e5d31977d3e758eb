"""Who asks the servers of `python -m loadtest http`, and keeps what is found."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from loadtest.commands.http_figures import HttpFindings, Row
from loadtest.commands.http_plan import MANY, AskedSide, Cell, HttpPlan, make_bodies, make_cells
from loadtest.common.console import progress
from loadtest.common.measure import SETTLE_S, rotate
from loadtest.common.mix_supply import MixChoice, MixSupply

if TYPE_CHECKING:
    from loadtest.common.http_client import PromptSupply, RequestLoad


class AskedServer(NamedTuple):
    """A side, and the server that answers it."""

    side: AskedSide
    url: str
    """The server's address."""
    model: str
    """The name that it is asked for."""


@dataclass
class HttpAsker:
    """Asks servers, and keeps what it finds."""

    plan: HttpPlan
    prompts: PromptSupply
    mixes: MixSupply
    seed: int
    found: HttpFindings = field(default_factory=HttpFindings)

    def ask(self, asked: Mapping[str, AskedServer], r: int) -> None:
        """Ask servers that run side by side: a warm-up each, then cell by cell in turn.

        What slows the machine down for a minute slows all of a cell down.

        Args:
            asked: By the side's letter. While one is asked, the others have nothing to do.
            r: The round.
        """
        from loadtest.common.http_client import ask_merges, count_fallbacks

        for one in asked.values():
            self._warm_up(one)
        before = {key: count_fallbacks(a.url) for key, a in asked.items() if a.side.policy}
        cells = {
            key: {cell.name: cell for cell in make_cells(self.plan, one.side)}
            for key, one in asked.items()
        }
        names = dict.fromkeys(name for own in cells.values() for name in own)
        for number, name in enumerate(names):
            for key in rotate(list(asked), r + number):
                if cell := cells[key].get(name):
                    self._ask_cell(key, asked[key], cell, r)
        for key, count in before.items():
            _, url, _ = asked[key]
            late = count_fallbacks(url) - count
            merges = ask_merges(url, self.prompts.draw_tasks(MANY), asked[key].side.body)
            self.found.add_decisions(key, merges, late)

    def _warm_up(self, one: AskedServer) -> None:
        """Ask for each mix once, whatever is asked later."""
        from loadtest.common.http_client import warm_up

        count = 2 if one.side.takes_turns else MANY
        each = replace(self.mixes, choice=MixChoice.UNIFORM)
        bodies = make_bodies(one.side, Cell("warm", count, MANY), each)
        warm_up(one.url, one.model, self.prompts.draw_tasks(count), bodies)

    def _ask_cell(self, key: str, one: AskedServer, cell: Cell, r: int) -> None:
        """Ask for one cell, and keep what is found; half of an unknown capacity is not asked."""
        from loadtest.common.http_client import FirstTokenClock, load

        if cell.share and self.found.capacity is None:
            return
        clock = FirstTokenClock(one.url)
        time.sleep(SETTLE_S)
        got = load(one.url, one.model, self._make_load(one.side, cell, r))
        self.found.add(key, cell.name, got)
        if engine_ms := clock.read_mean_ms():
            self.found.add_way(key, cell.name, got.ttft_mean_ms - engine_ms)
        progress.log(
            f"{key} {cell.name}: {got.tok_s:.1f} tokens/s, first token {got.ttft_ms:.0f} ms"
        )

    def summarise(self) -> Row:
        """Return all figures, and which mixes they are of."""
        mixes = {"mixes": self.plan.choice, "different_mixes": len(self.mixes.mixes)}
        return {**mixes, **self.found.summarise()}

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
            burstiness=cell.burstiness,
            times=[time / rate for time in cell.times],
        )
