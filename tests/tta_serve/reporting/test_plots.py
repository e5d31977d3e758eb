"""Plots of how two experts interfere, and of a front."""

from pathlib import Path

import numpy as np
import pytest

from adapters.errors import ExpertError
from adapters.merge.interference import Interference
from router.policies.pareto import Front, Point
from tta_serve.reporting.plots import arrange_grid, draw_front, draw_interference


def make_row(weight: str, cosine: float, overlap: float | None = 0.5) -> Interference:
    return Interference(weight, cosine, 0.4, 0.3, overlap, overlap, 1.0, 2.0)


ROWS = [
    make_row("model.layers.0.self_attn.q_proj.weight", 0.1),
    make_row("model.layers.2.self_attn.q_proj.weight", 0.2),
    make_row("model.layers.2.mlp.up_proj.weight", 0.3),
    make_row("model.layers.1.input_layernorm.weight", -0.4, None),
    make_row("model.embed_tokens.weight", 0.9),
]


def test_each_value_stands_at_its_layer_and_module() -> None:
    modules, grid = arrange_grid(ROWS, lambda row: row.cosine)
    assert modules == ["q_proj", "up_proj", "input_layernorm"]
    blank = np.nan
    np.testing.assert_array_equal(
        grid, [[0.1, blank, blank], [blank, blank, -0.4], [0.2, 0.3, blank]]
    )


def test_a_vector_has_no_overlap_to_show() -> None:
    _, grid = arrange_grid(ROWS, lambda row: row.overlap_in)
    assert np.isnan(grid[1]).all()
    assert grid[2, 1] == 0.5


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "diff.png"
    draw_interference(ROWS, file)
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("rows", [ROWS[4:], []])
def test_nothing_to_draw_is_an_error(tmp_path: Path, rows: list[Interference]) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ExpertError, match="nothing to draw"):
        draw_interference(rows, tmp_path / "diff.png")


@pytest.mark.parametrize("tasks", [("a", "b"), ("a", "b", "c"), ("a", "b", "c", "d", "e")])
def test_a_front_of_any_number_of_tasks_is_a_png(tmp_path: Path, tasks: tuple[str, ...]) -> None:
    def point(n: int, *values: float) -> Point:
        by_task = dict(zip(tasks, values, strict=True))
        return Point(
            f"demo-{n:02}",
            by_task,
            by_task,
            by_task,
            {task: -1.0 - value for task, value in by_task.items()},
        )

    rows = np.vstack([np.eye(len(tasks)), np.full(len(tasks), 1 / len(tasks))])
    front = Front(
        tasks, tuple(point(n, *row) for n, row in enumerate(rows, 1)), dict.fromkeys(tasks, "x"), {}
    )
    draw_front(front, tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
