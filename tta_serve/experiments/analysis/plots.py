"""The pictures of a report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tta_serve.experiments.analysis.results import Estimate, Report

_COLOURS = "tab10"


def draw_plots(report: Report, folder: Path) -> Mapping[str, str]:
    """Write PNGs, and return their titles by file name."""
    titles = {"means.png": "Every metric: the arms' means with their confidence sequences"}
    figures = {"means.png": _draw_means(report)}
    if report.looks:
        titles["difference.png"] = (
            f"{report.metrics[0].name} less {report.control}'s, as one could know it at each time,"
            " with confidence sequences"
        )
        figures["difference.png"] = _draw_difference(report)
    for file, figure in figures.items():
        figure.savefig(folder / file, format="png", dpi=110)
    return titles


def _draw_means(report: Report) -> Any:
    """Return a figure with a panel for each metric and a line for each arm."""
    from matplotlib.figure import Figure

    names = [arm.arm for arm in report.arms][::-1]
    size = 1.5 + 2.6 * len(report.metrics), 1.3 + 0.4 * len(names)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(report.metrics), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, report.metrics, strict=True):
        for arm in metric.arms:
            if arm.mean is not None:
                colour = "black" if arm.arm == report.control else "tab:blue"
                _draw_mean(axes, arm.mean, names.index(arm.arm), colour)
        axes.set_title(f"{metric.name}\n{metric.role}, {metric.better} is better", fontsize=9)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(alpha=0.3)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(-0.6, len(names) - 0.4)
    return figure


def _draw_mean(axes: Any, mean: Estimate, place: int, colour: str) -> None:
    if mean.low is not None:
        ends = [mean.low, mean.high]
        axes.plot(ends, [place, place], color=colour, linewidth=2, alpha=0.5)
    axes.plot([mean.value], [place], "o", color=colour, markersize=4)


def _draw_difference(report: Report) -> Any:
    """Return a figure with a band for each treatment over the hours since the first exposure."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    assert report.first is not None
    for k, arm in enumerate(dict.fromkeys(look.arm for look in report.looks)):
        own = [(look.time, look.difference) for look in report.looks if look.arm == arm]
        known = [
            (time, found.value, found.low, found.high)
            for time, found in own
            if found.low is not None and found.high is not None
        ]
        hours = [(time - report.first) / 3600 for time, *_ in known]
        lows = [low for _, _, low, _ in known]
        highs = [high for *_, high in known]
        colour = colormaps[_COLOURS](k % 10)
        axes.fill_between(hours, lows, highs, color=colour, alpha=0.2, linewidth=0)
        axes.plot(hours, [value for _, value, *_ in known], ".-", color=colour, label=arm)
    axes.axhline(0, color="black", linewidth=1)
    axes.set_xlabel("hours since the first exposure")
    axes.set_ylabel(f"{report.metrics[0].name} less {report.control}'s")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    return figure
