"""gated: experts that share every token of a request in each layer anew."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from pydantic import Field, model_validator

from adapters.bank.layer_gates import LAYER_GATES, read_gates
from adapters.bank.token_gating import Gating, Score
from adapters.errors import AdapterError
from adapters.mix import Mix
from router.decision import Decision, Prompt
from router.errors import RouterError
from router.policies.selector import Selector
from router.policies.selectors import check_selector, create_selector
from router.policy import Context, Options, Policy
from router.probing import Probe
from router.scoring.heads import Head

_PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "arrow": {"top": 3, "temperature": 1.0},  # as PEFT has it
    "spectr": {"top": 4, "temperature": None},
    "trained": {"top": 4, "temperature": 1.0},  # as they were in training, but for `top`
}


class GatedOptions(Options):
    """Options of `gated`; what is not given of `score`, `top`, `temperature` is as published."""

    score: Score = "spectr"
    """How experts score a token, see `adapters.bank.token_gating`."""
    top: int = Field(ge=1)
    """How many experts share a token at most."""
    temperature: float | None = Field(gt=0, allow_inf_nan=False)
    """T of the softmax over scores; None is infinite, which makes equal shares."""
    selector: str | None = None
    """Who says which experts are candidates, and when the base answers; None: all are, and it never
    does."""
    selector_options: dict[str, Any] = {}
    """The selector's own options."""

    @model_validator(mode="before")
    @classmethod
    def _as_published(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {**_PUBLISHED.get(str(given.get("score", "spectr")), {}), **given}

    @model_validator(mode="after")
    def _selector_exists(self) -> Self:
        if self.selector is not None:
            check_selector(self.selector, self.selector_options)
        elif self.selector_options:
            raise ValueError("selector_options are a selector's; name it")
        return self


class GatedPolicy(Policy):
    """In-layer gating: the engine decides for every token, among candidates of the request.

    The selector says which experts are candidates; the engine, which of them a token uses in a
    layer, and how much. Per token and weight as Arrow, SpectR and SMILE, or by trained gates
    (`adapters.bank.token_gating`), after a choice for the request as a whole, which is what LAG
    (two stages) and every abstaining policy add to them: of a prompt that no expert fits the base
    answers. An expert that came after the gates were trained is scored as SpectR does.
    """

    Options = GatedOptions
    reads_features = True  # as selectors may
    forms = frozenset({"low_rank"})  # whose factors say what an expert reads of a token

    def __init__(self, gating: Gating, everyone: Mix, selector: Selector | None) -> None:
        self.gating = gating
        self.selector = selector
        self._everyone = Decision(everyone, reason="every expert is a candidate")

    @classmethod
    async def create(cls, options: GatedOptions, context: Context) -> Self:
        rules = context.rules
        names = rules.classes - rules.shared.keys()
        if rules.shared and not names:
            raise RouterError(
                f"gating shares out tokens among whole experts: {', '.join(sorted(rules.shared))}"
                " are parts of Twin-Merging, which need their shared one beside; choose 'twin'"
            )
        if not names:
            raise RouterError(
                "gating needs an expert to be a candidate; without any, choose the policy 'static'"
            )
        context = replace(context, rules=rules.narrow(names))
        if options.score == "trained":
            await asyncio.to_thread(_check_gates, context)
        selector = None
        if options.selector:
            selector = await create_selector(options.selector, options.selector_options, context)
        gating = Gating(options.score, options.top, options.temperature)
        return cls(gating, Mix.of(dict.fromkeys(names, 1.0)), selector)

    async def route(self, prompt: Prompt, probe: Probe) -> Decision:
        found = await self.selector.route(prompt, probe) if self.selector else self._everyone
        return self.finish(found)

    def finish(self, decision: Decision) -> Decision:
        """Return the selector's decision, whose experts become candidates."""
        return decision.with_gating(self.gating)

    def finish_heads(self, heads: Sequence[Head]) -> tuple[Head, ...]:
        """Return the selector's heads, which choose the candidates."""
        return tuple(heads)

    def should_move(self, before: Decision, now: Decision) -> bool:
        return self.selector is not None and self.selector.should_move(before, now)


def _check_gates(context: Context) -> None:
    """Check that there are trained gates of some expert.

    Raises:
        RouterError: There are none.
    """
    if context.artifacts is None:
        raise RouterError(
            "score 'trained' needs a library with gates: tta router gates --library DIR --base"
            " FOLDER"
        )
    try:
        known = read_gates(context.artifacts / LAYER_GATES.name)
    except AdapterError as error:
        raise RouterError(str(error)) from None
    if known.keys().isdisjoint(context.digests.values()):
        raise RouterError(
            "no expert here has trained gates; make them with: tta router gates --library DIR"
            " --base FOLDER"
        )
