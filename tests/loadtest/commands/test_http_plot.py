"""The picture of `python -m loadtest http`, from figures that are made up."""

import numpy as np
from matplotlib.axes import Axes

from loadtest.commands.http_plot import draw_sides

CELLS = {
    "many": {"tok_s": 120.0, "tok_s_spread": [100.0, 140.0]},
    "open_50": {"ttft_ms": 80.0, "ttft_p99_ms": 300.0},
}


def read_spans(axes: Axes) -> list[list[float]]:
    return [np.asarray(line.get_xdata()).tolist() for line in axes.get_lines()]


def test_each_side_has_its_rounds_and_its_first_tokens() -> None:
    rates, firsts = draw_sides({"a": CELLS, "d": CELLS}).axes
    titles = [label.get_text() for label in rates.get_yticklabels()]
    assert titles == ["d: ours, mixes in requests", "a: vLLM, the base"], "from below"
    assert read_spans(rates) == [[100, 140], [120]] * 2
    assert read_spans(firsts) == [[80, 300], [80], [300]] * 2


def test_what_was_not_asked_is_not_drawn() -> None:
    rates, firsts = draw_sides({"c": {"many": CELLS["many"]}}).axes
    assert rates.get_lines()
    assert not firsts.get_lines()
