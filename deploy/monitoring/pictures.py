"""The command `python -m deploy.monitoring.pictures`: each dashboard as a picture, without Grafana.

Every panel's queries are asked of a Prometheus, which has scraped a server for a while.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    EngFormatter,
    Formatter,
    MaxNLocator,
    PercentFormatter,
    StrMethodFormatter,
)

from deploy.monitoring.panels import DASHBOARDS, WINDOW, Curve, Dashboard, Panel

_COLUMNS = 3
_POINTS = 120
_MOST_IN_LEGEND = 16
_LABEL = re.compile(r"\{\{(\w+)\}\}")
_SOURCE = "http://127.0.0.1:9090"


@dataclass(frozen=True)
class TimeSpan:
    """The time that pictures show."""

    end: float
    """UTC seconds since 1970."""
    minutes: float

    @property
    def start(self) -> float:
        return self.end - 60 * self.minutes


@dataclass(frozen=True)
class Line:
    """What one query found under one set of labels."""

    name: str
    times: Sequence[float]
    """Minutes before the end."""
    values: Sequence[float]


def draw_dashboard(dashboard: Dashboard, source: str, span: TimeSpan, file: Path) -> None:
    """Write a PNG of a dashboard.

    Args:
        dashboard: What is drawn.
        source: The address of a Prometheus.
        span: The time that is shown.
        file: Where to.
    """
    rows = -(-len(dashboard.panels) // _COLUMNS)
    figure = Figure(figsize=(15, 2.9 * rows + 0.5), layout="constrained")
    figure.suptitle(dashboard.title, fontweight="bold")
    places = figure.subplots(rows, _COLUMNS, squeeze=False).flatten()
    for panel, axes in zip(dashboard.panels, places, strict=False):
        lines = [line for curve in panel.curves for line in ask(source, curve, span)]
        _draw_panel(axes, panel, lines, span)
    for axes in places[len(dashboard.panels) :]:
        axes.set_axis_off()
    figure.savefig(file, format="png", dpi=64, pil_kwargs={"optimize": True})


def ask(source: str, curve: Curve, span: TimeSpan) -> list[Line]:
    """Return what a curve's query finds over a span, in the order of the names."""
    asked: dict[str, str | float] = {
        "query": curve.expression.replace(WINDOW, "1m"),
        "start": span.start,
        "end": span.end,
        "step": 60 * span.minutes / _POINTS,
    }
    answer = httpx.get(f"{source}/api/v1/query_range", params=asked, timeout=30).raise_for_status()
    found: list[Any] = answer.json()["data"]["result"]
    return sorted((_read(curve, one, span) for one in found), key=lambda line: line.name)


def _read(curve: Curve, found: Any, span: TimeSpan) -> Line:
    name = _LABEL.sub(lambda label: found["metric"].get(label[1], ""), curve.legend)
    times, values = zip(*found["values"], strict=True)
    return Line(name, [(t - span.end) / 60 for t in times], [float(value) for value in values])


def _draw_panel(axes: Axes, panel: Panel, lines: Sequence[Line], span: TimeSpan) -> None:
    axes.set_title(panel.title, fontsize=9, loc="left", wrap=True)
    for line in lines:
        axes.plot(line.times, line.values, label=line.name, linewidth=1.2)
    axes.set_xlim(-span.minutes, 0)
    top = max((value for line in lines for value in line.values if isfinite(value)), default=0)
    axes.set_ylim(-0.03 * (top or 1), 1.1 * (top or 1))  # a line of zeros is to be seen
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter("{x:g} min")
    axes.yaxis.set_major_formatter(_find_formatter(panel.unit))
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)
    if not lines:
        words = f"nothing without {panel.needs}" if panel.needs else "nothing"
        axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", color="gray")
    elif len(lines) <= _MOST_IN_LEGEND and any(line.name for line in lines):
        axes.legend(fontsize=6, loc="upper left", framealpha=0.6, ncols=1 + len(lines) // 6)


def _find_formatter(unit: str) -> Formatter:
    if unit == "percentunit":
        return PercentFormatter(1, decimals=0)
    if unit == "s":
        return EngFormatter("s")
    return StrMethodFormatter("{x:g}/s" if unit == "reqps" else "{x:g}")


def main(
    source: Annotated[str, typer.Option(help="The address of a Prometheus.")] = _SOURCE,
    minutes: Annotated[float, typer.Option(help="How many are shown, until now.")] = 15,
    out: Annotated[Path, typer.Option(help="The folder.")] = Path(__file__).parent / "dashboards",
) -> None:
    """Draw each dashboard into a folder."""
    span = TimeSpan(time.time(), minutes)
    for dashboard in DASHBOARDS:
        file = out / f"{dashboard.name}.png"
        draw_dashboard(dashboard, source, span, file)
        typer.echo(file)


if __name__ == "__main__":
    typer.run(main)
