"""Gated: experts that share every token of a request in each layer anew, by what they read of it there."""

import asyncio
from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from adapters.errors import AdapterError
from adapters.gating import Gating, Score
from adapters.layer_gates import LAYER_GATES, read_gates
from adapters.mix import Mix
from router.policy import Context, Decision, Options, Policy, Probe, Prompt, RouterError, Selector
from router.selectors import SELECTORS, checked, create_selector, find

_PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "arrow": {"top": 3, "temperature": 1.0},  # as PEFT has it
    "spectr": {"top": 4, "temperature": None},
    "trained": {"top": 4, "temperature": 1.0},  # as they were in training, but for `top`
}


class GatedOptions(Options):
    """score, top, temperature: of `adapters.gating`; what is not given is as published for the score

    selector, selector_options: who says which experts are candidates, and when the base answers; none: all, and never
    """

    score: Score = "spectr"
    top: int = Field(ge=1)
    temperature: float | None = Field(gt=0, allow_inf_nan=False)
    selector: str | None = None
    selector_options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _as_published(cls, given: Any) -> Any:
        return {**_PUBLISHED.get(str(given.get("score", "spectr")), {}), **given} if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _selector_exists(self) -> Self:
        if self.selector is not None:
            checked(find(SELECTORS, self.selector, "selector"), self.selector, self.selector_options)
        elif self.selector_options:
            raise ValueError("selector_options are a selector's; name it")
        return self


class GatedPolicy(Policy):
    """The selector says which experts are candidates; the engine, which of them a token uses in a layer, and how much.

    Per token and weight as Arrow, SpectR and SMILE, or by trained gates (`adapters.gating`), after a choice for the request
    as a whole, which is what LAG (two stages) and every abstaining policy add to them: of a prompt that no expert fits the
    base answers. An expert that came after the gates were trained is scored as SpectR does.
    """

    Options = GatedOptions
    reads_features = True  # as selectors may

    def __init__(self, gating: Gating, everyone: Mix, selector: Selector | None) -> None:
        self.gating = gating
        self.selector = selector
        self._everyone = Decision(everyone, reason="every expert is a candidate")

    @classmethod
    async def create(cls, options: GatedOptions, context: Context) -> Self:
        names = context.rules.names
        if not names:
            raise RouterError("gating needs an expert to be a candidate; without any, choose the policy 'static'")
        if options.score == "trained":
            await asyncio.to_thread(_check, context)
        selector = await create_selector(options.selector, options.selector_options, context) if options.selector else None
        gating = Gating(options.score, options.top, options.temperature)
        return cls(gating, Mix.of(dict.fromkeys(names, 1.0)), selector)

    async def route(self, prompt: Prompt, probe: Probe) -> Decision:
        found = await self.selector.route(prompt, probe) if self.selector else self._everyone
        return found.gated(self.gating)

    def moved(self, before: Decision, now: Decision) -> bool:
        return self.selector is not None and self.selector.moved(before, now)


def _check(context: Context) -> None:
    """Raises RouterError if there are no trained gates of any expert."""
    if context.artifacts is None:
        raise RouterError("score 'trained' needs a library with gates: tta router gates --library DIR --base FOLDER")
    try:
        known = read_gates(context.artifacts / LAYER_GATES.name)
    except AdapterError as error:
        raise RouterError(str(error)) from None
    if known.keys().isdisjoint(context.digests.values()):
        raise RouterError("no expert here has trained gates; make them with: tta router gates --library DIR --base FOLDER")
