"""The figures of a gate, worked out by hand."""

import pytest
import torch

from tta_serve.offline.gate_figures import measure_gate, measure_several


def test_figures_are_those_worked_out_by_hand() -> None:
    p = torch.tensor(
        [
            [0.95, 0.03, 0.02],  # right, sure
            [0.60, 0.30, 0.10],  # right
            [0.94, 0.03, 0.03],  # wrong, sure: it is the second's
            [0.20, 0.20, 0.60],  # left to the base, wrongly
            [0.02, 0.02, 0.96],  # left to the base
            [0.55, 0.25, 0.20],  # given to an expert, wrongly
        ]
    ).double()
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    figures = measure_gate(p.log(), labels, 0.5)
    assert figures == {
        "right": 0.5,
        "left_to_base": 0.5,
        "false_abstentions": 0.25,
        "sure_and_wrong": pytest.approx(1 / 6),
        "calibration_error": pytest.approx((abs(0.95 + 0.94 + 0.96 - 2) + 0.2 + 0.55) / 6),
        "selective_accuracy": pytest.approx(3 / 5),
        "prompts": 6,
    }


def test_the_threshold_moves_the_odds_of_none() -> None:
    even = torch.tensor([[0.45, 0.05, 0.5]]).double().log()
    asked = torch.tensor([0])
    assert measure_gate(even, asked, 0.4)["right"] == 1
    assert measure_gate(even, asked, 0.6)["right"] == 0


def test_what_is_told_of_requests_for_two_experts() -> None:
    found = measure_several(torch.tensor([-1.0, -2.0, 0.5, -1.0]), torch.tensor([3.0, -0.1]))
    assert found == {"two_found": 0.5, "two_false": 0.25}
    assert measure_several(torch.ones(3), torch.empty(0)) == {}
