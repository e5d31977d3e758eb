"""The report's pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tta_serve.experiments.results import Report

_COLOURS = "tab10"


def draw(report: Report, folder: Path) -> Mapping[str, str]:
    """Write PNGs. Returns their titles by file name."""
    drawn = {"means.png": ("Every metric: the arms' means with their confidence sequences", _means(report))}
    if report.looks:
        title = (
            f"{report.metrics[0].name} less {report.control}'s, as one could know it at each time, with confidence sequences"
        )
        drawn["difference.png"] = (title, _difference(report))
    for file, (_, figure) in drawn.items():
        figure.savefig(folder / file, format="png", dpi=110)
    return {file: title for file, (title, _) in drawn.items()}


def _means(report: Report) -> Any:
    """A panel for each metric, a line for each arm."""
    from matplotlib.figure import Figure

    names = [arm.arm for arm in report.arms][::-1]
    figure = Figure(figsize=(1.5 + 2.6 * len(report.metrics), 1.3 + 0.4 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(report.metrics), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, report.metrics, strict=True):
        for arm in metric.arms:
            if arm.mean is not None:
                place, colour = names.index(arm.arm), "black" if arm.arm == report.control else "tab:blue"
                if arm.mean.low is not None:
                    axes.plot([arm.mean.low, arm.mean.high], [place, place], color=colour, linewidth=2, alpha=0.5)
                axes.plot([arm.mean.value], [place], "o", color=colour, markersize=4)
        axes.set_title(f"{metric.name}\n{metric.role}, {metric.better} is better", fontsize=9)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(alpha=0.3)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(-0.6, len(names) - 0.4)
    return figure


def _difference(report: Report) -> Any:
    """A band for each treatment over the hours since the first exposure."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    assert report.first is not None
    for k, arm in enumerate(dict.fromkeys(look.arm for look in report.looks)):
        known = [look for look in report.looks if look.arm == arm and look.difference.low is not None]
        hours, colour = [(look.time - report.first) / 3600 for look in known], colormaps[_COLOURS](k % 10)
        lows, highs = ([getattr(look.difference, side) for look in known] for side in ("low", "high"))
        axes.fill_between(hours, lows, highs, color=colour, alpha=0.2, linewidth=0)
        axes.plot(hours, [look.difference.value for look in known], ".-", color=colour, label=arm)
    axes.axhline(0, color="black", linewidth=1)
    axes.set_xlabel("hours since the first exposure")
    axes.set_ylabel(f"{report.metrics[0].name} less {report.control}'s")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    return figure
