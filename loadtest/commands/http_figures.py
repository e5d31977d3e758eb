"""The figures of `python -m loadtest http`: ratios, medians, and the one table of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from loadtest.commands.http_plan import BURSTS, SIDES, TRACE
from loadtest.common import machine
from loadtest.common.load_figures import OBJECTIVES_MS, LoadFigures
from loadtest.common.measure import Series, spread

Row = dict[str, Any]
WANTED = {
    "ttft_ms_c_minus_a": "<= 15",
    "throughput_c_over_a": ">= 0.95",
    "throughput_e_over_c": ">= 0.98",
    "ttft_e_over_c": "<= 1.05",
    "throughput_d_over_c": ">= 0.95",
    "throughput_d_over_b_16": ">= 3.5",
    "throughput_d_over_f_16": ">= 8",
}


class SideRatio(NamedTuple):
    """A figure of one side over that of another."""

    figure: str
    cell: str
    above: str
    below: str


RATIOS = {
    "throughput_c_over_a": SideRatio("tok_s", "many", "c", "a"),
    "throughput_e_over_c": SideRatio("tok_s", "many", "e", "c"),
    "ttft_e_over_c": SideRatio("ttft_ms", "first", "e", "c"),
    "throughput_d_over_c": SideRatio("tok_s", "many", "d", "c"),
    "throughput_d_over_b_16": SideRatio("tok_s", "many", "d", "b"),
    "throughput_d_over_b_4": SideRatio("tok_s", "many_4_mixes", "d", "b"),
    "throughput_d_over_b_1": SideRatio("tok_s", "many_1_mixes", "d", "b"),
    "throughput_d_over_f_16": SideRatio("tok_s", "many", "d", "f"),
    "throughput_c_over_g": SideRatio("tok_s", "many", "c", "g"),
    "ttft_c_over_g": SideRatio("ttft_ms", "first", "c", "g"),
    **{
        f"{name}_{key}_over_c": SideRatio(figure, cell, key, "c")
        for key in SIDES
        if key.startswith("e_")
        for name, figure, cell in (("throughput", "tok_s", "many"), ("ttft", "ttft_ms", "first"))
    },
}
_MEMORY = "memory"
_COLUMNS = (
    ("first token alone, ms", "first", "{ttft_ms:.0f}"),
    ("tokens/s, one at a time", "alone", "{tok_s:.4g}"),
    ("16 at once", "many", "{tok_s:.4g}"),
    ("with 4 mixes", "many_4_mixes", "{tok_s:.4g}"),
    ("with 1 mix", "many_1_mixes", "{tok_s:.4g}"),
    ("half of a's load: first token p50 / p99, ms", "open_50", "{ttft_ms:.0f} / {ttft_p99_ms:.0f}"),
    ("between tokens p50 / p99, ms", "open_50", "{itl_ms:.0f} / {itl_p99_ms:.0f}"),
    ("whole answer p50 / p99, ms", "open_50", "{e2e_ms:.0f} / {e2e_p99_ms:.0f}"),
    ("goodput / answered, requests/s", "open_50", "{goodput_s:.3g} / {requests_s:.3g}"),
    ("in bursts: first token p50 / p99, ms", BURSTS, "{ttft_ms:.0f} / {ttft_p99_ms:.0f}"),
    ("as in the trace: first token p50 / p99, ms", TRACE, "{ttft_ms:.0f} / {ttft_p99_ms:.0f}"),
    ("memory, GB", _MEMORY, "{gb:.2f}"),
)


@dataclass
class HttpFindings:
    """What all rounds found: lists of one value a round."""

    values: dict[str, dict[str, Series]] = field(default_factory=dict)
    """Figures by side and cell."""
    router_ms: Series = field(default_factory=dict)
    """Milliseconds of a decision, by side: medians of requests that came one at a time."""
    routed: Series = field(default_factory=dict)
    """The share of those requests that an expert answers, by side."""
    fallbacks: dict[str, float] = field(default_factory=dict)
    """How many requests in all were answered by a policy's fallback, by side."""

    def add(self, key: str, cell: str, got: LoadFigures) -> None:
        """Keep what a run gave."""
        mine = self.values.setdefault(key, {}).setdefault(cell, {})
        for figure, value in asdict(got).items():
            mine.setdefault(figure, []).append(value)

    def add_way(self, key: str, cell: str, ms: float) -> None:
        """Keep how much later the client has first tokens than the engine, in the mean."""
        self.values[key][cell].setdefault("way_ms", []).append(ms)

    def add_memory(self, key: str, taken: int) -> None:
        """Keep how many bytes of memory a server took after a side's last request."""
        mine = self.values.setdefault(key, {}).setdefault(_MEMORY, {})
        mine.setdefault("gb", []).append(taken / 1e9)

    @property
    def capacity(self) -> float | None:
        """Requests a second that a answered in the first round with 16 at once, None before it."""
        rates = self.values.get("a", {}).get("many", {}).get("requests_s")
        return rates[0] if rates else None

    def add_decisions(
        self, key: str, merges: Sequence[Mapping[str, Any]], fallbacks: float
    ) -> None:
        """Keep what the server says of decisions, and how many of those before were late."""
        times = [merge["router_ms"] for merge in merges]
        share = sum(bool(merge["experts"]) for merge in merges) / len(merges)
        self.router_ms.setdefault(key, []).append(median(times))
        self.routed.setdefault(key, []).append(share)
        self.fallbacks[key] = self.fallbacks.get(key, 0.0) + fallbacks

    def summarise(self) -> Row:
        """Return all figures: those that are wanted first, of the sides that were asked."""
        compared = self.compare_sides()
        found: Row = {name: median(values) for name, values in compared.items()}
        if "e" in self.router_ms:
            found["policy_ms_p50"] = median(self.router_ms["e"])
        return {
            **found,
            "capacity_requests_s": self.capacity,
            "objectives_ms": OBJECTIVES_MS,
            "policy_ms_p50_by_side": {k: median(ms) for k, ms in self.router_ms.items()},
            "routed": {key: median(shares) for key, shares in self.routed.items()},
            "fallbacks": self.fallbacks,
            "spreads": {name: spread(values) for name, values in compared.items()},
            "sides": self.summarise_sides(),
        }

    def compare_sides(self) -> Series:
        """Return what is compared within a round, by name: a difference, and ratios.

        A side may sit out the later rounds.
        """
        found: Series = {}
        for name, figure in (("ttft_ms_c_minus_a", "ttft_ms"), ("way_ms_c_minus_a", "way_ms")):
            if pair := self._find(SideRatio(figure, "first", "c", "a")):
                found[name] = [c - a for c, a in zip(*pair, strict=False)]
        for name, ratio in RATIOS.items():
            if pair := self._find(ratio):
                found[name] = [above / below for above, below in zip(*pair, strict=False)]
        return found

    def summarise_sides(self) -> Row:
        """Return the medians and spreads of all figures, by side and cell."""
        return {
            key: {cell: _summarise_series(series) for cell, series in cells.items()}
            for key, cells in self.values.items()
        }

    def _find(self, ratio: SideRatio) -> tuple[list[float], list[float]] | None:
        """Return the values of both sides by round, None where one was not asked."""
        above, below = (
            self.values.get(key, {}).get(ratio.cell, {}).get(ratio.figure, [])
            for key in (ratio.above, ratio.below)
        )
        return (above, below) if above and below else None


def _summarise_series(series: Series) -> Row:
    spreads = {f"{figure}_spread": spread(values) for figure, values in series.items()}
    return {figure: median(values) for figure, values in series.items()} | spreads


def make_rows(sides: Mapping[str, Row]) -> list[list[str]]:
    """Return the table of the sides' medians, its head first.

    What a side was not asked is empty; what no side was asked has no column.
    """
    known = {cell for cells in sides.values() for cell in cells}
    columns = [column for column in _COLUMNS if column[1] in known]
    rows = [["", *(title for title, _, _ in columns)]]
    for key, side in SIDES.items():
        if cells := sides.get(key):
            values = [form.format(**cells[c]) if c in cells else "" for _, c, form in columns]
            rows.append([f"{key}: {side.title}", *values])
    return rows


def show_figures(result: Row, rows: Sequence[Sequence[str]]) -> None:
    """Print the table, a side a column as terminals are narrow, and what was wanted."""
    console = Console()
    head, *body = zip(*rows, strict=True)
    table = Table(*head)
    for line in body:
        table.add_row(*line)
    console.print(table)
    machine.show_wanted(console, result, WANTED)
