"""pareto: a request says how much each task matters, and gets the merge that suits it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from adapters.mix import Mix
from router.decision import Decision, Prompt
from router.errors import RouterError
from router.policies.made_entries import MadeKind
from router.policy import Context, Options, Policy
from router.probing import Probe

FRONTS = "fronts"
"""The folder of fronts among a library's artifacts."""
_KIND = MadeKind("pareto", FRONTS, "tta router pareto", "front", "fronts", "front", "front")
RHO = 1e-3
"""The weight of the sum in the Tchebycheff loss."""


@dataclass(frozen=True)
class Point:
    """One merge of a front."""

    entry: str
    """The merge's name among the library's entries."""
    preference: Mapping[str, float]
    """The preference that it was made for, by task."""
    coefficients: Mapping[str, float]
    """By expert."""
    predicted: Mapping[str, float]
    """What the surrogate that found it expects, in units of `measured`."""
    measured: Mapping[str, float]
    """By task, minus the mean KL(p_expert || p_merge) over the expert's own prompts, nats; 0 is the
    best."""


@dataclass(frozen=True)
class Front:
    """Merges, none of which is at least as good as another for every task."""

    tasks: tuple[str, ...]
    """The names of experts, each of which stands for its own task."""
    points: tuple[Point, ...]
    """The merges."""
    digests: Mapping[str, str]
    """The digests of those experts' weights when the front was made."""
    r2: Mapping[str, float]
    """By task, R2 of the surrogate that the front was searched with, on samples that it was not
    fitted to."""

    def __post_init__(self) -> None:
        by_task = [self.digests, *(point.measured for point in self.points)]
        if not self.points or any(set(values) != set(self.tasks) for values in by_task):
            wanted = "a front must have a point or more, and a value of each for every task"
            raise ValueError(wanted)

    @property
    def measured(self) -> Tensor:
        """What was measured of all points, [points, tasks], float64."""
        rows = [[point.measured[task] for task in self.tasks] for point in self.points]
        return torch.tensor(rows, dtype=torch.float64)


def scale_losses(values: Tensor, best: Tensor, worst: Tensor) -> Tensor:
    """Return how far values are from the best, 0 to 1 in units of the way to the worst.

    Args:
        values: [..., tasks].
        best: [tasks].
        worst: [tasks].
    """
    return (best - values) / (best - worst).clamp_min(1e-12)


def tchebycheff(loss: Tensor, preference: Tensor) -> Tensor:
    """Return the augmented weighted Tchebycheff loss (Steuer & Choo 1983), [...].

    It is max_k w_k f_k + rho sum_k f_k with rho = 0.001. Unlike a weighted sum it reaches every
    point of a front, hollow ones too; the sum decides between points that the most wanted task
    finds equal.

    Args:
        loss: f, [..., tasks].
        preference: w, [..., tasks], of sum 1.
    """
    return (preference * loss).amax(-1) + RHO * loss.sum(-1)


def read_front(artifacts: Path | None, name: str) -> Front:
    """Read the front that `tta router pareto --name NAME` made.

    Raises:
        RouterError: There is none, or a damaged one.
    """
    return _KIND.read(Front, artifacts, name)


class ParetoOptions(Options):
    """Options of `pareto`."""

    front: str
    """The name of the front."""
    preference: dict[str, float] = {}
    """By task, for requests that bring none; empty is the same for every task."""


class ParetoPolicy(Policy):
    """The point of a front that suits the request's preference best; the prompt plays no part.

    It is the one with the least Tchebycheff loss of its measured values. MAP (Li et al. 2024, arXiv
    2406.07529) makes the front.
    """

    Options = ParetoOptions

    def __init__(self, options: ParetoOptions, front: Front, mixes: Mapping[str, Mix]) -> None:
        self._name = options.front
        self._front = front
        self._mixes = mixes
        values = front.measured
        self._losses = scale_losses(values, values.amax(0), values.amin(0))
        self._default = self._find_point(options.preference or dict.fromkeys(front.tasks, 1.0))

    @classmethod
    async def create(cls, options: ParetoOptions, context: Context) -> Self:
        front = read_front(context.artifacts, options.front)
        names = (point.entry for point in front.points)
        mixes = _KIND.find_mixes(context, options.front, front, names)
        return cls(options, front, mixes)

    async def route(self, prompt: Prompt, probe: Probe) -> Decision:
        """Return the merge for the prompt's preference.

        Raises:
            RouterError: The preference names another task, or is not made of numbers >= 0, one of
                them above 0.
        """
        point = self._default if prompt.preference is None else self._find_point(prompt.preference)
        return Decision(
            self._mixes[point.entry],
            point.measured,
            reason=f"point {point.entry} of front {self._name}",
        )

    def should_move(self, before: Decision, now: Decision) -> bool:
        """Move at once: what a request prefers counts for itself."""
        return now.mix != before.mix

    def _find_point(self, preference: Mapping[str, float]) -> Point:
        if unknown := sorted(preference.keys() - set(self._front.tasks)):
            raise RouterError(
                f"preference names {', '.join(unknown)}; the front {self._name!r} knows"
                f" {', '.join(self._front.tasks)}"
            )
        values = [preference.get(task, 0.0) for task in self._front.tasks]
        wanted = torch.tensor(values, dtype=torch.float64)
        total = float(wanted.sum())
        if not math.isfinite(total) or total <= 0 or bool((wanted < 0).any()):
            raise RouterError(
                "a preference is made of finite numbers >= 0, one of them above 0, got"
                f" {dict(preference)}"
            )
        return self._front.points[int(tchebycheff(self._losses, wanted / total).argmin())]
