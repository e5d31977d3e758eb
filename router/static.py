"""The same mix for everybody."""

from typing import Self

from adapters.mix import Mix
from router.policy import Context, Decision, Options, Policy, Probe, Prompt


class StaticOptions(Options):
    """experts: coefficients by expert; none is the base."""

    experts: dict[str, float] = {}


class StaticPolicy(Policy):
    """A fixed mix: the base, one expert, or any named combination."""

    Options = StaticOptions

    def __init__(self, mix: Mix) -> None:
        self._decision = Decision(mix, reason="fixed mix")

    @classmethod
    async def create(cls, options: StaticOptions, context: Context) -> Self:
        return cls(context.rules.mix(options.experts))

    async def route(self, prompt: Prompt, probe: Probe) -> Decision:
        return self._decision
