"""Pareto: a request says how much each task matters, and gets the merge of a front that suits it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from adapters.errors import LibraryError
from adapters.files import confined
from adapters.manifest import read_json
from adapters.mix import Mix
from router.policy import Context, Decision, Options, Policy, Probe, Prompt, RouterError

FRONTS = "fronts"
RHO = 1e-3


@dataclass(frozen=True)
class Point:
    """One merge of a front.

    entry: its name among the library's entries   preference: what it was made for, by task   coefficients: by expert
    predicted, measured: by task, minus the mean KL(p_expert || p_merge) over the expert's own prompts, nats; 0 is the best
    """

    entry: str
    preference: Mapping[str, float]
    coefficients: Mapping[str, float]
    predicted: Mapping[str, float]
    measured: Mapping[str, float]


@dataclass(frozen=True)
class Front:
    """Merges, none of which is at least as good as another for every task.

    tasks: names of experts, each stands for its own task   digests: of those experts' weights when the front was made
    r2: by task, of the surrogate that the front was searched with, on samples that it was not fitted to
    """

    tasks: tuple[str, ...]
    points: tuple[Point, ...]
    digests: Mapping[str, str]
    r2: Mapping[str, float]

    def __post_init__(self) -> None:
        by_task = [self.digests, *(point.measured for point in self.points)]
        if not self.points or any(set(values) != set(self.tasks) for values in by_task):
            raise ValueError("a front must have a point or more, and a value of each for every task")

    @property
    def measured(self) -> Tensor:
        """[points, tasks], float64"""
        return torch.tensor([[point.measured[task] for task in self.tasks] for point in self.points], dtype=torch.float64)


def losses(values: Tensor, best: Tensor, worst: Tensor) -> Tensor:
    """How far values are from the best, in units of the way to the worst: 0 to 1. [..., tasks]; best, worst: [tasks]"""
    return (best - values) / (best - worst).clamp_min(1e-12)


def tchebycheff(loss: Tensor, preference: Tensor) -> Tensor:
    """max_k w_k f_k + rho sum_k f_k, rho = 0.001: the augmented weighted Tchebycheff loss (Steuer & Choo 1983).

    Unlike a weighted sum it reaches every point of a front, hollow ones too; the sum decides between points that the most
    wanted task finds equal. loss: [..., tasks]   preference: [..., tasks], of sum 1. Returns [...]
    """
    return (preference * loss).amax(-1) + RHO * loss.sum(-1)


def read_front(artifacts: Path | None, name: str) -> Front:
    """The front that `tta router pareto --name NAME` made. Raises RouterError if there is none, or a damaged one."""
    if artifacts is None:
        raise RouterError("pareto needs a library that keeps fronts; make one: tta router pareto --name NAME")
    folder = artifacts / FRONTS
    try:
        file = confined(folder, f"{name}.json")
        if not file.exists():
            there = ", ".join(sorted(f.stem for f in folder.glob("*.json"))) or "none"
            raise RouterError(f"there is no front {name!r}, there are: {there}; make it: tta router pareto --name {name}")
        return read_json(Front, file)
    except LibraryError as error:
        raise RouterError(f"{error}; make the front again: tta router pareto --name {name} --replace") from None


class ParetoOptions(Options):
    """front: its name   preference: by task, for requests that bring none; empty is the same for every task"""

    front: str
    preference: dict[str, float] = {}


class ParetoPolicy(Policy):
    """The point of a front with the least Tchebycheff loss, of its measured values, for the request's preference.

    MAP (Li et al. 2024, arXiv 2406.07529) makes the front; the prompt itself plays no part.
    """

    Options = ParetoOptions

    def __init__(self, options: ParetoOptions, front: Front, mixes: Mapping[str, Mix]) -> None:
        self._name = options.front
        self._front = front
        self._mixes = mixes
        values = front.measured
        self._losses = losses(values, values.amax(0), values.amin(0))
        self._default = self._point(options.preference or dict.fromkeys(front.tasks, 1.0))

    @classmethod
    async def create(cls, options: ParetoOptions, context: Context) -> Self:
        front = read_front(context.artifacts, options.front)
        stale = [task for task in front.tasks if context.digests.get(task) != front.digests[task]]
        missing = [point.entry for point in front.points if point.entry not in context.entries]
        if stale or missing:
            wrong = f"other weights of {', '.join(stale)}" if stale else f"entries that are gone: {', '.join(missing)}"
            raise RouterError(
                f"front {options.front!r} is of {wrong}; make it again: tta router pareto --name {options.front} --replace"
            )
        return cls(options, front, {point.entry: context.entries[point.entry] for point in front.points})

    async def route(self, prompt: Prompt, probe: Probe) -> Decision:
        """Raises RouterError for a preference that names another task, or is not made of numbers >= 0, one of them more."""
        point = self._default if prompt.preference is None else self._point(prompt.preference)
        return Decision(self._mixes[point.entry], point.measured, reason=f"point {point.entry} of front {self._name}")

    def moved(self, before: Decision, now: Decision) -> bool:
        """What a request prefers counts at once."""
        return now.mix != before.mix

    def _point(self, preference: Mapping[str, float]) -> Point:
        if unknown := sorted(preference.keys() - set(self._front.tasks)):
            raise RouterError(
                f"preference names {', '.join(unknown)}; the front {self._name!r} knows {', '.join(self._front.tasks)}"
            )
        wanted = torch.tensor([preference.get(task, 0.0) for task in self._front.tasks], dtype=torch.float64)
        total = float(wanted.sum())
        if not math.isfinite(total) or total <= 0 or bool((wanted < 0).any()):
            raise RouterError(f"a preference is made of finite numbers >= 0, one of them above 0, got {dict(preference)}")
        return self._front.points[int(tchebycheff(self._losses, wanted / total).argmin())]
