"""The same mix for everybody."""

import asyncio
from collections.abc import Mapping
from typing import Self

from pydantic import Field, model_validator

from adapters.entries import ENTRIES, read_entries
from adapters.mix import Mix, MixRules
from router.policy import CoefficientField, Context, Decision, Options, Policy, Probe, Prompt, RouterError


class StaticOptions(Options):
    """At most one of these; none is the base.

    experts: coefficients by expert   expert: one with coefficient 1   entry: a named mix
    uniform: all K experts, 1/K each   task_arithmetic: all experts, this coefficient each
    """

    experts: dict[str, CoefficientField] | None = None
    expert: str | None = None
    entry: str | None = None
    uniform: bool = False
    task_arithmetic: float | None = Field(None, allow_inf_nan=False)

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name, value in self if value is not None and value is not False]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} cannot both be the mix; give one")
        return self


class Fixed(Policy):
    """One decision for all prompts."""

    def __init__(self, mix: Mix) -> None:
        self._decision = Decision(mix, reason="fixed mix")

    async def route(self, prompt: Prompt, probe: Probe) -> Decision:
        return self._decision


class StaticPolicy(Fixed):
    """The base, one expert, a named mix, or all experts in equal parts; on the grid, of as many experts as it takes.

    All experts in equal parts are theta_0 + c sum_k Delta_k: c = 1/K averages the experts (model soups, Wortsman et al. 2022,
    arXiv 2203.05482), c = 0.3 or 0.4 is usual for task arithmetic (Ilharco et al. 2023, arXiv 2212.04089).
    """

    Options = StaticOptions

    @classmethod
    async def create(cls, options: StaticOptions, context: Context) -> Self:
        rules = context.rules
        if options.entry is not None:
            return cls(_entry(context.entries, options.entry))
        if options.uniform:
            return cls(_each(1 / max(len(rules.names), 1), rules))
        if options.task_arithmetic is not None:
            return cls(_each(options.task_arithmetic, rules))
        return cls(rules.entry(options.experts or ({options.expert: 1.0} if options.expert is not None else {})))


class LearnedStaticOptions(Options):
    """entry: what `tta router learn --name` made"""

    entry: str


class LearnedStaticPolicy(Fixed):
    """Coefficients that were learned once from unlabelled prompts, for each layer and expert: an entry like any other.

    Expert Merging (arXiv 2509.25712) or AdaMerging (Yang et al. 2024, arXiv 2310.02575).
    """

    Options = LearnedStaticOptions

    @classmethod
    async def create(cls, options: LearnedStaticOptions, context: Context) -> Self:
        folder = context.artifacts / ENTRIES.name if context.artifacts else None
        made = await asyncio.to_thread(read_entries, folder) if folder else {}
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


def _entry(entries: Mapping[str, Mix], name: str) -> Mix:
    if name not in entries:
        raise RouterError(f"there is no entry {name!r}; there are: {', '.join(sorted(entries)) or 'none'}")
    return entries[name]


def _each(coefficient: float, rules: MixRules) -> Mix:
    """Every expert with one coefficient. Raises RouterError if the grid makes nothing of it."""
    mix = rules.entry(dict.fromkeys(rules.names, coefficient))
    if mix.is_base and rules.names:
        raise RouterError(f"{coefficient:.4g} of each expert is nothing on a grid of {rules.grid}; set a finer mix.grid")
    return mix
