"""How what mixes experts is trained on answers: Adam, a sample of every expert or group a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tta_serve.offline.mixed_model import Sample

Samples = Sequence[Sequence[Sample]]
"""By expert, one sample or more each."""
Groups = Sequence[Sequence[object]]
"""What takes turns: by expert, or by whatever else is to count alike, one sample or more each."""
Loss = Callable[[int, int], Tensor]
"""Of a sample of a group, by the numbers of group and sample."""


def descend(  # noqa: PLR0913 - one part each
    parameters: Sequence[Tensor],
    loss: Loss,
    samples: Groups,
    steps: int,
    rate: float,
    tell: Callable[[float], None],
    beside: Callable[[], Tensor] | None = None,
    confine: Callable[[], object] = lambda: None,
) -> None:
    """Minimise the mean over groups of the loss on their samples, which take turns.

    Args:
        parameters: What is learned.
        loss: What is minimised.
        samples: By group.
        steps: How many steps to take.
        rate: Of Adam at first; it falls to 0.
        tell: Is called after each step with its loss.
        beside: Added to the loss, of the parameters alone.
        confine: Called after each step, puts the parameters back in their range.
    """
    optimiser = torch.optim.Adam(parameters, rate)
    decay = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
    for step in range(steps):
        optimiser.zero_grad()
        total = _pull(beside()) if beside else 0.0
        for k, own in enumerate(samples):
            total += _pull(loss(k, step % len(own)) / len(samples))
        optimiser.step()
        decay.step()
        with torch.no_grad():
            confine()
        tell(total)


@torch.no_grad()
def compute_mean_loss(loss: Loss, samples: Groups) -> float:
    """Return the mean over groups of the mean over their samples."""
    of_each = [
        torch.stack([loss(k, n) for n in range(len(own))]).mean() for k, own in enumerate(samples)
    ]
    return float(torch.stack(of_each).mean())


def _pull(part: Tensor) -> float:
    """Add a part's gradients, and return its value."""
    part.backward()
    return float(part.detach())
