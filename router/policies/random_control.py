"""random_control: chance, the arm that every policy must beat."""

import hashlib
from random import Random
from typing import Self

from pydantic import Field, field_validator, model_validator

from adapters.mix import MixRules
from router.decision import Decision, Prompt
from router.errors import RouterError
from router.policies.selector import Selection, Selector
from router.policies.selectors import SELECTORS, create_selector, find_policy
from router.policy import Context, Options
from router.probing import Probe


class RandomOptions(Options):
    """Options of `random_control`."""

    seed: int = 0
    """Of all draws."""
    experts: int = Field(1, ge=1)
    """How many experts are drawn, in equal parts."""
    like: str | None = None
    """The name of a selector; its shares go to experts drawn instead."""

    @field_validator("like")
    @classmethod
    def _selects(cls, like: str | None) -> str | None:
        if like is not None:
            find_policy(SELECTORS, like, "selector")
        return like

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.like is not None and "experts" in self.model_fields_set:
            raise ValueError("'like' says how many experts there are; give it or 'experts'")
        return self


class RandomPolicy(Selector):
    """Experts drawn for each prompt by SHA-256(seed | prompt).

    The same prompt gets the same experts, another any others. It draws `experts` of them in equal
    parts; or with `like`, it gives that selector's own answer with the names of experts exchanged
    at random, which keeps how many experts it mixes, in which proportion, and how often it
    abstains. In Recycling LoRAs (arXiv 2602.12323) random adapters help as much as real ones: a
    policy that is no better than this one has not chosen.
    """

    Options = RandomOptions
    reads_features = True

    def __init__(self, options: RandomOptions, rules: MixRules, like: Selector | None) -> None:
        super().__init__(rules)
        self._options = options
        self._names = sorted(rules.classes)
        self._like = like

    @classmethod
    async def create(cls, options: RandomOptions, context: Context) -> Self:
        most = min(len(context.rules.classes), context.rules.max_experts)
        if options.like is None and options.experts > most:
            raise RouterError(
                f"{options.experts} experts cannot be drawn; a mix has at most {most} here"
            )
        like = await create_selector(options.like, {}, context) if options.like else None
        return cls(options, context.rules, like)

    async def select(self, prompt: Prompt, probe: Probe) -> Selection:
        text = f"{self._options.seed}|{prompt.user_turn}"
        drawn = Random(hashlib.sha256(text.encode()).digest()).sample(self._names, len(self._names))
        if self._like is None:
            count = self._options.experts
            weights = dict.fromkeys(drawn[:count], 1 / count)
            return Selection(weights, weights, float("-inf"), "drawn by chance")

        real = await self._like.select(prompt, probe)
        swap = dict(zip(self._names, drawn, strict=True))
        weights = {swap[name]: weight for name, weight in real.weights.items()}
        scores = {swap[name]: score for name, score in real.scores.items()}
        reason = f"drawn by chance in the place of: {real.reason}"
        return Selection(weights, scores, real.floor, reason)

    def should_move(self, before: Decision, now: Decision) -> bool:
        """Return False: chance knows no topics, and a conversation keeps what it drew."""
        return False
