"""Policies whose answer is the same mix for every prompt."""

import asyncio
from collections.abc import Mapping
from typing import Self

from pydantic import Field, model_validator

from adapters.library.entries import ENTRIES, scan_entries
from adapters.mix import Mix, MixRules
from router.decision import Decision, Prompt
from router.errors import RouterError
from router.policy import CoefficientField, Context, Options, Policy
from router.probing import Probe


class StaticOptions(Options):
    """Which mix; at most one of these is given, and none stands for the base."""

    experts: dict[str, CoefficientField] | None = None
    """Coefficients by expert."""
    expert: str | None = None
    """One expert, with coefficient 1."""
    entry: str | None = None
    """The name of a mix of the library."""
    uniform: bool = False
    """All K experts, 1/K each."""
    task_arithmetic: float | None = Field(None, allow_inf_nan=False)
    """All experts, with this coefficient each."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name, value in self if value is not None and value is not False]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} cannot both be the mix; give one")
        return self


class Fixed(Policy):
    """A policy with one decision for all prompts."""

    def __init__(self, mix: Mix) -> None:
        self._decision = Decision(mix, reason="fixed mix")

    async def route(self, prompt: Prompt, probe: Probe) -> Decision:
        return self._decision


class StaticPolicy(Fixed):
    """The base, one expert, a named mix, or all experts in equal parts.

    The mix is on the grid, of as many experts as it takes. All experts in equal parts are theta_0 +
    c sum_k Delta_k: c = 1/K averages the experts (model soups, Wortsman et al. 2022, arXiv
    2203.05482), c = 0.3 or 0.4 is usual for task arithmetic (Ilharco et al. 2023, arXiv
    2212.04089).
    """

    Options = StaticOptions

    @classmethod
    async def create(cls, options: StaticOptions, context: Context) -> Self:
        rules = context.rules
        if options.entry is not None:
            return cls(_find_entry(context.entries, options.entry))
        if options.uniform:
            return cls(_mix_all(1 / max(len(rules.classes), 1), rules))
        if options.task_arithmetic is not None:
            return cls(_mix_all(options.task_arithmetic, rules))
        if options.expert is not None:
            return cls(rules.entry({options.expert: 1.0}))
        return cls(rules.entry(options.experts or {}))


class LearnedStaticOptions(Options):
    """Which learned mix."""

    entry: str
    """The name that `tta router learn --name` gave it."""


class LearnedStaticPolicy(Fixed):
    """A mix that was learned once from unlabelled prompts, one coefficient a layer and expert.

    Expert Merging (arXiv 2509.25712) or AdaMerging (Yang et al. 2024, arXiv 2310.02575), by
    `tta_serve.offline.learn_entry`.
    """

    Options = LearnedStaticOptions

    @classmethod
    async def create(cls, options: LearnedStaticOptions, context: Context) -> Self:
        folder = context.artifacts / ENTRIES.name if context.artifacts else None
        made, damaged = (
            await asyncio.to_thread(scan_entries, folder) if folder else ({}, dict[str, str]())
        )
        if reason := damaged.get(f"{options.entry}.json"):
            raise RouterError(
                f"{reason}; make it again: tta router learn --name {options.entry} --replace"
            )
        learned = [name for name, entry in made.items() if entry.source.get("method") == "learned"]
        if options.entry not in learned:
            raise RouterError(
                f"no learned entry {options.entry!r}, there are: {', '.join(learned) or 'none'}; "
                f"make it: tta router learn --name {options.entry}"
            )
        if options.entry not in context.entries:
            raise RouterError(
                f"the entry {options.entry!r} is of experts that are gone or changed; "
                f"make it again: tta router learn --name {options.entry} --replace"
            )
        return cls(context.entries[options.entry])


def _find_entry(entries: Mapping[str, Mix], name: str) -> Mix:
    if name not in entries:
        raise RouterError(
            f"there is no entry {name!r}; there are: {', '.join(sorted(entries)) or 'none'}"
        )
    return entries[name]


def _mix_all(coefficient: float, rules: MixRules) -> Mix:
    """Return the mix of every expert with one coefficient.

    Raises:
        RouterError: The grid makes nothing of the coefficient.
    """
    mix = rules.entry(dict.fromkeys(rules.classes, coefficient))
    if mix.is_base and rules.classes:
        raise RouterError(
            f"{coefficient:.4g} of each expert is nothing on a grid of {rules.grid}; set a finer"
            " mix.grid"
        )
    return mix
