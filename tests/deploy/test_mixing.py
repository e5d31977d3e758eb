"""What mixes are worth beside the better of their experts."""

import pytest

from deploy.demo.mixing import FIRST, SECOND, WayScores, compare_ways, count_answers


def test_ways_are_compared_with_the_better_expert_of_each_pair() -> None:
    scored = {
        FIRST: WayScores({"sql+dates": [1.0, 0.0], "math+orders": [0.5, 0.5]}, one_skill=0.8),
        SECOND: WayScores({"sql+dates": [0.0, 0.5], "math+orders": [1.0, 1.0]}),
        "mix": WayScores({"sql+dates": [1.0, 1.0], "math+orders": [1.0, 0.5]}),
    }
    better, mix = compare_ways(scored)
    assert (better.way, better.two_skills, better.one_skill) == ("the better expert", 0.75, 0.8)
    assert better.over_best.value == 0
    assert mix.two_skills == pytest.approx(0.875)
    assert mix.over_best.value == pytest.approx((0.5 - 0.25) / 2)
    assert mix.over_best.low < mix.over_best.value < mix.over_best.high
    assert mix.one_skill is None


def test_answers_are_counted_for_the_progress_bar() -> None:
    assert count_answers(2, 0) == 2 * count_answers(1, 0)
    assert count_answers(1, 2) > count_answers(1, 1)
