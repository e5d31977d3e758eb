"""Plots of what the command line prints as tables."""

import re
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from adapters.errors import ExpertError
from adapters.merge.interference import Interference
from router.policies.pareto import Front, Point

_PLACE = re.compile(r"\.layers\.(?P<layer>\d+)\.(?:.+\.)?(?P<module>[^.]+)\.weight")

_LOST = "KL to its expert, nats"
_MAPS: tuple[tuple[str, str, float, float, Callable[[Interference], float | None]], ...] = (
    ("cosine", "RdBu_r", -1, 1, lambda row: row.cosine),
    ("conflicting signs", "magma", 0, 1, lambda row: row.conflict),
    ("overlap of inputs", "magma", 0, 1, lambda row: row.overlap_in),
    ("overlap of outputs", "magma", 0, 1, lambda row: row.overlap_out),
)


def draw_interference(rows: Sequence[Interference], file: Path) -> None:
    """Write a PNG of heat maps, decoder layer by module type, of how two experts interfere.

    Weights outside of decoder layers have no place in it; where the experts do not meet it is
    blank.

    Args:
        rows: What `adapters.merge.interference.compare` found.
        file: Where to.

    Raises:
        ExpertError: The experts meet nowhere in a decoder layer.
    """
    from matplotlib.figure import Figure

    if not any(_PLACE.search(row.weight) for row in rows):
        raise ExpertError(
            "the experts touch no weight of a decoder layer in common, there is nothing to draw;"
            " leave out the picture"
        )

    figure = Figure(figsize=(14, 6), layout="constrained")
    for axes, (title, colours, low, high, value) in zip(
        figure.subplots(1, len(_MAPS), sharey=True), _MAPS, strict=True
    ):
        modules, grid = arrange_grid(rows, value)
        image = axes.imshow(
            grid,
            cmap=colours,
            vmin=low,
            vmax=high,
            aspect="auto",
            interpolation="nearest",
            origin="lower",
        )
        axes.set_title(title)
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.set_xticks(range(len(modules)), modules, rotation=90)
        figure.colorbar(image, ax=axes)
    figure.supylabel("decoder layer")
    figure.savefig(file, format="png", dpi=120)


def arrange_grid(
    rows: Sequence[Interference], value: Callable[[Interference], float | None]
) -> tuple[list[str], np.ndarray]:
    """Return the module types, and a value of every row at its place, [layers, modules].

    Module types are in the order of the rows; places without a value are NaN.
    """
    places = {
        (int(found["layer"]), found["module"]): row
        for row in rows
        if (found := _PLACE.search(row.weight))
    }
    modules = list(dict.fromkeys(module for _, module in places))
    grid = np.full((1 + max((layer for layer, _ in places), default=0), len(modules)), np.nan)
    for (layer, module), row in places.items():
        known = value(row)
        grid[layer, modules.index(module)] = np.nan if known is None else known
    return modules, grid


def draw_front(front: Front, file: Path) -> None:
    """Write a PNG of a front: what each of its merges loses for each task, measured.

    Two or three tasks: every pair of them as a plane. More: a line for each merge over all tasks,
    coloured by the task that it was made for most.
    """
    from matplotlib.figure import Figure

    lost = -front.measured.numpy()
    tasks = front.tasks
    if len(tasks) > 3:
        figure = Figure(figsize=(1.6 * len(tasks) + 2, 5), layout="constrained")
        _draw_lines(figure.subplots(), front, lost)
    else:
        pairs = list(combinations(range(len(tasks)), 2))
        figure = Figure(figsize=(5 * len(pairs), 4.5), layout="constrained")
        planes = figure.subplots(1, len(pairs), squeeze=False)[0]
        for axes, (i, j) in zip(planes, pairs, strict=True):
            _draw_plane(axes, front, lost[:, i], lost[:, j])
            axes.set_xlabel(f"{tasks[i]}: {_LOST}")
            axes.set_ylabel(f"{tasks[j]}: {_LOST}")
    figure.savefig(file, format="png", dpi=120)


def _draw_plane(axes: Any, front: Front, x: np.ndarray, y: np.ndarray) -> None:
    """Draw each merge as a numbered dot, by what it loses for two tasks."""
    axes.scatter(x, y)
    for point, place in zip(front.points, zip(x, y, strict=True), strict=True):
        axes.annotate(
            _number_of(point), place, xytext=(4, 4), textcoords="offset points", fontsize=8
        )


def _draw_lines(axes: Any, front: Front, lost: np.ndarray) -> None:
    """Draw a line for each merge over all tasks."""
    from matplotlib import colormaps

    for point, line in zip(front.points, lost, strict=True):
        most = max(point.preference, key=lambda task: point.preference[task])
        mixed = sum(share > 0 for share in point.preference.values()) > 1
        equal = len(set(point.preference.values())) == 1
        colour = "black" if equal else colormaps["tab10"](front.tasks.index(most) % 10)
        axes.plot(range(len(line)), line, color=colour, linestyle="-" if mixed else ":", marker=".")
        end = (len(line) - 1, line[-1])
        axes.annotate(_number_of(point), end, xytext=(5, -3), textcoords="offset points")
    axes.set_xticks(range(len(front.tasks)), front.tasks)
    axes.set_yscale("symlog", linthresh=0.1)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(_LOST)


def _number_of(point: Point) -> str:
    """Return the number of a merge in its front, as its entry's name ends."""
    return point.entry.rpartition("-")[2]
