"""The plot of a search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tta_serve.search.search_loop import HistoryRow


def draw_history(rows: Sequence[HistoryRow], file: Path) -> None:
    """Write a PNG of the best score so far, and of each batch's mean, by requests."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    asked = [row.requests for row in rows]
    axes.step(asked, [row.best for row in rows], where="post", label="best so far")
    axes.plot(asked, [row.batch for row in rows], ".", label="mean of the batch")
    axes.set_xlabel("requests")
    axes.set_ylabel("mean score")
    axes.legend()
    figure.savefig(file, format="png", dpi=120)
