"""Who asks the servers of `python -m loadtest http`, and keeps what is found."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from loadtest.commands.http_figures import HttpFindings, Row
from loadtest.commands.http_plan import MANY, AskedSide, Cell, HttpPlan, make_bodies, make_cells
from loadtest.common.console import progress
from loadtest.common.mix_supply import MixChoice, MixSupply

if TYPE_CHECKING:
    from loadtest.common.http_client import PromptSupply, RequestLoad


@dataclass
class HttpAsker:
    """Asks servers, and keeps what it finds."""

    plan: HttpPlan
    prompts: PromptSupply
    mixes: MixSupply
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
        # Whatever is asked later, each mix once.
        each = replace(self.mixes, choice=MixChoice.UNIFORM)
        bodies = make_bodies(side, Cell("warm", MANY, MANY), each)
        warm_up(url, model, self.prompts.draw_tasks(MANY), bodies)
        before = count_fallbacks(url) if side.policy else 0.0
        for cell in make_cells(self.plan, side):
            if cell.share and self.found.capacity is None:
                continue
            got = load(url, model, self._make_load(side, cell, r))
            self.found.add(key, cell.name, got)
            progress.log(
                f"{key} {cell.name}: {got.tok_s:.1f} tokens/s, first token {got.ttft_ms:.0f} ms"
            )
        if side.policy:
            late = count_fallbacks(url) - before
            merges = ask_merges(url, self.prompts.draw_tasks(MANY), side.body)
            self.found.add_decisions(key, merges, late)

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
