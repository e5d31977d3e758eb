"""Pictures of what the command line prints as tables."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from adapters.errors import ExpertError
from adapters.interference import Row

_PLACE = re.compile(r"\.layers\.(?P<layer>\d+)\.(?:.+\.)?(?P<module>[^.]+)\.weight")

_MAPS: tuple[tuple[str, str, float, float, Callable[[Row], float | None]], ...] = (
    ("cosine", "RdBu_r", -1, 1, lambda row: row.cosine),
    ("conflicting signs", "magma", 0, 1, lambda row: row.conflict),
    ("overlap of inputs", "magma", 0, 1, lambda row: row.overlap_in),
    ("overlap of outputs", "magma", 0, 1, lambda row: row.overlap_out),
)


def picture(rows: Sequence[Row], file: Path) -> None:
    """Write a PNG of heat maps, decoder layer by module type, of how two experts interfere (`adapters.interference.compare`).

    Weights outside of decoder layers have no place in it; where the experts do not meet it is blank.

    Raises ExpertError if they meet nowhere in a decoder layer.
    """
    from matplotlib.figure import Figure

    if not any(_PLACE.search(row.weight) for row in rows):
        raise ExpertError(
            "the experts touch no weight of a decoder layer in common, there is nothing to draw; leave out the picture"
        )

    figure = Figure(figsize=(14, 6), layout="constrained")
    for axes, (title, colours, low, high, value) in zip(figure.subplots(1, len(_MAPS), sharey=True), _MAPS, strict=True):
        modules, grid = table(rows, value)
        image = axes.imshow(grid, cmap=colours, vmin=low, vmax=high, aspect="auto", interpolation="nearest", origin="lower")
        axes.set_title(title)
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.set_xticks(range(len(modules)), modules, rotation=90)
        figure.colorbar(image, ax=axes)
    figure.supylabel("decoder layer")
    figure.savefig(file, format="png", dpi=120)


def table(rows: Sequence[Row], value: Callable[[Row], float | None]) -> tuple[list[str], np.ndarray]:
    """The module types in the order of the rows, and a value of every row at its place, NaN elsewhere: [layers, modules]."""
    places = {(int(found["layer"]), found["module"]): row for row in rows if (found := _PLACE.search(row.weight))}
    modules = list(dict.fromkeys(module for _, module in places))
    grid = np.full((1 + max((layer for layer, _ in places), default=0), len(modules)), np.nan)
    for (layer, module), row in places.items():
        known = value(row)
        grid[layer, modules.index(module)] = np.nan if known is None else known
    return modules, grid
