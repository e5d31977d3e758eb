"""The picture of `python -m loadtest http`: how much each side answers, and how soon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from loadtest.commands.http_plan import SIDES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OURS = "tab:blue"
_OTHERS = "tab:gray"


def draw_sides(sides: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw a line for each side in two panels: what it answers at once, and first tokens.

    Args:
        sides: Figures by side and cell, as `HttpFindings.summarise_sides` returns them.
    """
    from matplotlib.figure import Figure

    keys = [key for key in SIDES if key in sides][::-1]
    figure = Figure(figsize=(10, 1.6 + 0.35 * len(keys)), layout="constrained")
    rates, firsts = figure.subplots(1, 2, sharey=True)
    for place, key in enumerate(keys):
        colour = _OURS if SIDES[key].server == "ours" else _OTHERS
        _draw_rate(rates, sides[key], place, colour)
        _draw_first(firsts, sides[key], place, colour)
    rates.set_yticks(range(len(keys)), [f"{key}: {SIDES[key].title}" for key in keys])
    rates.set_ylim(-0.6, len(keys) - 0.4)
    rates.set_xlim(left=0)
    rates.set_title("tokens/s, 16 at once: median, and all rounds", fontsize=9)
    firsts.set_xscale("log")
    firsts.set_title("first token at half of a's load, ms: p50 to p99", fontsize=9)
    for axes in (rates, firsts):
        axes.grid(alpha=0.3, which="both")
    return figure


def _draw_rate(axes: Axes, cells: Mapping[str, Any], place: int, colour: str) -> None:
    if many := cells.get("many"):
        _draw_span(axes, many["tok_s_spread"], place, colour)
        axes.plot([many["tok_s"]], [place], "o", color=colour, markersize=4)


def _draw_first(axes: Axes, cells: Mapping[str, Any], place: int, colour: str) -> None:
    # Without a there is no load to take half of.
    if half := cells.get("open_50"):
        ends = [half["ttft_ms"], half["ttft_p99_ms"]]
        _draw_span(axes, ends, place, colour)
        axes.plot(ends[:1], [place], "o", color=colour, markersize=4)
        axes.plot(ends[1:], [place], "|", color=colour, markersize=8)


def _draw_span(axes: Axes, ends: list[float], place: int, colour: str) -> None:
    axes.plot(ends, [place, place], color=colour, linewidth=2, alpha=0.5)
