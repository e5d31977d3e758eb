"""The report's pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tta_serve.evaluation.figures import Row
from tta_serve.evaluation.intervals import NO_ESTIMATE, BootstrapEstimate
from tta_serve.evaluation.questions import EVERYDAY, TWO_SKILLS

_COLOURS = {
    "base": "tab:gray",
    "oracle": "black",
    "expert": "tab:brown",
    "static": "tab:orange",
    "merge": "tab:brown",
    "learned": "tab:purple",
    "control": "tab:pink",
    "policy": "tab:blue",
}
_FASTEST_MS = 0.01  # what takes less is drawn here


def draw_plots(figures: Row, folder: Path) -> None:
    """Write the files of `report.PICTURES` into a folder."""
    for file, figure in (
        ("scores.png", _draw_scores(figures["arms"])),
        ("quality.png", _draw_quality(figures["arms"])),
        ("confusion.png", _draw_confusion(figures["confusion"])),
    ):
        figure.savefig(folder / file, format="png", dpi=110)


def _draw_scores(arms: Mapping[str, Row]) -> Any:
    """Draw a panel for each slice, with a line for each arm and its interval on it."""
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys(group for arm in arms.values() for group in arm["groups"]))
    names = list(arms)[::-1]
    figure = Figure(
        figsize=(2.0 + 1.9 * len(groups), 1.4 + 0.24 * len(names)), layout="constrained"
    )
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axes, group in zip(panels, groups, strict=True):
        for place, name in enumerate(names):
            found = _find_score(arms[name], group)
            if not math.isnan(found.value):
                _mark(axes, found, place, _COLOURS[arms[name]["kind"]])
        axes.set_title(group.replace(":", "\n"), fontsize=9)
        axes.set_xlim(-0.03, 1.03)
        axes.grid(alpha=0.3)
    panels[0].set_yticks(range(len(names)), names, fontsize=8)
    panels[0].set_ylim(-0.6, len(names) - 0.4)
    return figure


def _find_score(arm: Row, group: str) -> BootstrapEstimate:
    if group == EVERYDAY:
        found: BootstrapEstimate = arm.get("everyday_abstained", NO_ESTIMATE)
    else:
        found = (
            arm["groups"]
            .get(group, {})
            .get("graded" if group == TWO_SKILLS else "exact", NO_ESTIMATE)
        )
    return found


def _mark(axes: Any, found: BootstrapEstimate, place: float, colour: str) -> None:
    if not math.isnan(found.low):
        axes.plot([found.low, found.high], [place, place], color=colour, linewidth=2, alpha=0.5)
    axes.plot([found.value], [place], "o", color=colour, markersize=4)


def _draw_quality(arms: Mapping[str, Row]) -> Any:
    """Draw the quality of arms against the time that their decisions take.

    Points have a number each, which the legend explains: their names would lie on each other.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots()
    drawn = [
        (name, arm)
        for name, arm in arms.items()
        if not math.isnan(arm.get("quality", NO_ESTIMATE).value) and arm["timed"]
    ]
    drawn.sort(key=lambda item: -item[1]["quality"].value)
    for number, (name, arm) in enumerate(drawn, 1):
        found = arm["quality"]
        ms = max(arm["router_ms_p50"], _FASTEST_MS)
        colour = _COLOURS[arm["kind"]]
        axes.plot([ms, ms], [found.low, found.high], color=colour, alpha=0.35)
        axes.plot([ms], [found.value], "o", color=colour, label=f"{number}  {name}")
        axes.annotate(
            str(number), (ms, found.value), textcoords="offset points", xytext=(5, 4), fontsize=9
        )
    axes.set_xscale("log")
    axes.set_xlabel("median time of a decision, ms")
    axes.set_ylabel("quality")
    axes.grid(alpha=0.3, which="both")
    if drawn:
        figure.legend(loc="outside right upper", fontsize=9)
    return figure


def _draw_confusion(found: Row) -> Any:
    """Draw what the default policy chose by what was wanted, as shares of each row."""
    from matplotlib.figure import Figure

    names, counts = found["names"], found["counts"]
    figure = Figure(figsize=(1.8 + 0.7 * len(names), 1.4 + 0.65 * len(names)), layout="constrained")
    axes = figure.subplots()
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for y, row in enumerate(counts):
        for x, count in enumerate(row):
            if count:
                colour = "white" if shares[y][x] > 0.5 else "black"
                axes.text(x, y, str(count), ha="center", va="center", color=colour)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("chosen")
    axes.set_ylabel("wanted")
    return figure
