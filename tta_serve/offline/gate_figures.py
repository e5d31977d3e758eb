"""How well a gate does on prompts that it was not trained on.

All figures are of p as the policy `gate` reports it: with the odds of "none of them" moved so that
the threshold is at 1/2, see `router.policies.gate`.
"""

import math

import torch
from torch import Tensor

SURE = 0.9
"""A choice whose p is above it is called sure."""
COVERAGE = 0.9
"""The share of the prompts, the surest, whose choices are judged for `selective_accuracy`."""
_BINS = 10


def measure_gate(logits: Tensor, labels: Tensor, threshold: float) -> dict[str, float]:
    """Return the figures of a gate.

    right                 prompts of experts that are given to their expert
    left_to_base          everyday prompts that are left to the base
    false_abstentions     prompts of experts that are left to the base
    sure_and_wrong        prompts whose choice has p > 0.9, and is wrong
    calibration_error     the mean over prompts of |p of the choice - share of right choices with
                          about that p|, in ten bins (Guo et al. 2017, arXiv 1706.04599)
    selective_accuracy    right choices among the surest 0.9 of the prompts
    prompts               how many rows there were

    Args:
        logits: [rows, K + 1], divided by the temperature; the last is "none of them".
        labels: [rows], the right class of each.
        threshold: Of 1 - p(none), before its odds are moved.
    """
    none = logits.shape[1] - 1
    choice, sure = choose(logits, threshold)
    good = choice == labels
    task = labels < none
    surest = sure.argsort(descending=True)[: round(COVERAGE * len(labels))]
    return {
        "right": _share(good[task]),
        "left_to_base": _share(good[~task]),
        "false_abstentions": _share(choice[task] == none),
        "sure_and_wrong": _share((sure > SURE) & ~good),
        "calibration_error": _calibration_error(sure, good),
        "selective_accuracy": _share(good[surest]),
        "prompts": len(labels),
    }


def measure_several(of_one: Tensor, of_both: Tensor) -> dict[str, float]:
    """Return how well a gate tells requests for several experts, at p = 1/2.

    two_found             prompts for two experts that are found
    two_false             prompts for one that are taken for such

    Args:
        of_one: [rows], logits of prompts for one expert.
        of_both: [rows], those of prompts for two; without any, there is nothing to say.
    """
    if not len(of_both):
        return {}
    return {"two_found": _share(of_both > 0), "two_false": _share(of_one > 0)}


def choose(logits: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Return what the policy `gate` chooses, [rows] classes, and the p of each choice, [rows].

    Args:
        logits: As in `measure_gate`.
        threshold: Likewise.
    """
    none = logits.shape[1] - 1
    moved = logits.clone()
    moved[:, none] += math.log(threshold / (1 - threshold))
    p = moved.softmax(1)
    choice = p[:, :none].argmax(1).where(p[:, none] <= 0.5, none)
    return choice, p.gather(1, choice[:, None])[:, 0]


def _calibration_error(sure: Tensor, good: Tensor) -> float:
    bins = (sure * _BINS).long().clamp_max(_BINS - 1)
    gaps = torch.zeros(_BINS).double().index_add_(0, bins, sure.double() - good.double())
    return float(gaps.abs().sum() / len(sure))


def _share(which: Tensor) -> float:
    return float(which.double().mean())
