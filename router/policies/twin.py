"""twin: what experts share is always on, and a selector says how much of which expert's own."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from adapters.library.names import name_shared
from adapters.mix import Mix
from router.decision import Decision, Prompt
from router.errors import RouterError
from router.policies.selector import Selector
from router.policies.selectors import check_selector, create_selector
from router.policy import Context, Options, Policy
from router.probing import Probe
from router.scoring.heads import Head


class TwinOptions(Options):
    """Options of `twin`."""

    prefix: str = Field(min_length=1)
    """Of the parts, as `tta experts twin --prefix` gave it."""
    selector: str = "retrieval"
    """Who scores the exclusive parts."""
    selector_options: dict[str, Any] = {}
    """The selector's own options; with `mode: sparse` of retrieval all shares count."""
    abstain: Literal["shared", "base"] = "shared"
    """Who answers a prompt that no expert fits: the shared part alone, or the base."""

    @model_validator(mode="after")
    def _selector_exists(self) -> Self:
        check_selector(self.selector, self.selector_options)
        return self


class TwinPolicy(Policy):
    """Twin-Merging (Lu et al. 2024, arXiv 2406.15479) over the parts of one prefix.

        W = W_0 + s + sum_k w_k v_k          s = lambda sum_k delta_k,  v_k = SVD_r(delta_k - s)

    w are the selector's shares, a softmax over its scores of the exclusive parts: with a `gate`,
    the paper's router. The paper has no class of none: there a prompt that nobody fits gets some
    w of sum 1. Here it gets w = 0, which is s, or the base if `abstain` says so. Of the shares
    those count that the selector lets count, at most `mix.max_experts`, which leaves s out.
    """

    Options = TwinOptions
    reads_features = True  # as selectors may

    def __init__(self, options: TwinOptions, shared: str, selector: Selector) -> None:
        self.selector = selector
        self._alone = options.abstain == "shared"
        self._shared = shared

    @classmethod
    async def create(cls, options: TwinOptions, context: Context) -> Self:
        rules = context.rules
        shared = name_shared(options.prefix)
        exclusive = [name for name, beside in rules.shared.items() if beside == shared]
        if not exclusive:
            known = sorted({name.removesuffix("-shared") for name in rules.shared.values()})
            raise RouterError(
                f"there are no parts with the prefix {options.prefix!r}, there are:"
                f" {', '.join(known) or 'none'}; make them: tta experts twin --prefix"
                f" {options.prefix}"
            )
        among = replace(context, rules=rules.narrow(exclusive))
        selector = await create_selector(options.selector, options.selector_options, among)
        return cls(options, shared, selector)

    async def route(self, prompt: Prompt, probe: Probe) -> Decision:
        return self.finish(await self.selector.route(prompt, probe))

    def finish(self, decision: Decision) -> Decision:
        """Return the selector's decision, with the shared part where it chose no exclusive one."""
        if not self._alone or not decision.mix.is_base:
            return decision
        reason = f"{decision.reason}; what the experts share answers"
        return replace(decision, mix=Mix.of({self._shared: 1.0}), reason=reason)

    def finish_heads(self, heads: Sequence[Head]) -> tuple[Head, ...]:
        """Return the selector's heads, beside whose choice the shared part is on."""
        return tuple(replace(head, beside=self._shared, alone=self._alone) for head in heads)

    def should_move(self, before: Decision, now: Decision) -> bool:
        return self.selector.should_move(before, now)
