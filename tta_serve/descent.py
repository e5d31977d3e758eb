"""How what mixes experts is trained on their answers: Adam, a sample of every expert a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tta_serve.mixed import Sample

Samples = Sequence[Sequence[Sample]]  # by expert, one or more each
Loss = Callable[[int, int], Tensor]  # of an expert's sample, by the numbers of both


def descend(  # noqa: PLR0913 - one part each
    parameters: Sequence[Tensor],
    loss: Loss,
    samples: Samples,
    steps: int,
    rate: float,
    tell: Callable[[float], None],
    beside: Callable[[], Tensor] | None = None,
    confine: Callable[[], object] = lambda: None,
) -> None:
    """Minimise the mean over experts of the loss on their samples, which take turns. rate: falls to 0

    beside: added to the loss, of the parameters alone   confine: called after each step, puts them back in their range
    tell: is called after each step with its loss
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
def mean_loss(loss: Loss, samples: Samples) -> float:
    """The mean over experts of the mean over their samples."""
    of_each = [torch.stack([loss(k, n) for n in range(len(own))]).mean() for k, own in enumerate(samples)]
    return float(torch.stack(of_each).mean())


def _pull(part: Tensor) -> float:
    part.backward()
    return float(part.detach())
