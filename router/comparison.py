"""What the policies share that run a prompt through the base and the experts, and compare what they predict."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from adapters.mix import MixRules
from router.policy import Context, Decision, Options, Outputs, Policy, Probe, Prompt, RouterError, Selection, Selector, Window
from router.probing import gathered
from router.selectors import SELECTORS, checked, create_selector, find
from router.shares import best

BASE = "base"  # no expert may have this name


class WindowOptions(Options):
    """`router.policy.Window`."""

    last: int = Field(64, ge=1)
    draft: int = Field(0, ge=0, le=64)

    def of_tokens(self) -> Window:
        return Window(self.last, self.draft)


def _with_known_token(window: WindowOptions) -> WindowOptions:
    if window.last + window.draft < 2:
        raise ValueError("of one position the next token is not known; look at 2 or more")
    return window


# A window of which some next tokens are known, as the likelihood needs them.
ScoredWindow = Annotated[WindowOptions, AfterValidator(_with_known_token)]


class ComparedOptions(Options):
    """selector, selector_options: who says which experts are compared   shortlist: how many   window: over which tokens"""

    selector: str = "retrieval"
    selector_options: dict[str, Any] = {}
    shortlist: int = Field(3, ge=1, le=16)
    window: WindowOptions = WindowOptions()

    @model_validator(mode="after")
    def _selector_exists(self) -> Self:
        checked(find(SELECTORS, self.selector, "selector"), self.selector, self.selector_options)
        return self


@dataclass(frozen=True)
class Unselected(Decision):
    """The base, because the selector found no expert to compare. The scores and the floor are the selector's."""


class ComparedPolicy(Policy):
    """A policy over a selector's shortlist: one pass of the prompt through the base and each of the experts, as one batch."""

    reads_features = True  # as selectors may

    def __init__(self, options: Any, rules: MixRules, selector: Selector) -> None:
        self.options = options
        self.rules = rules
        self.selector = selector

    @classmethod
    async def create(cls, options: Any, context: Context) -> Self:
        policy = cls(options, context.rules, await create_selector(options.selector, options.selector_options, context))
        await policy.calibrate(context)
        return policy

    async def calibrate(self, context: Context) -> None:
        """Measure what the policy must know of each expert beforehand. Raises RouterError if it cannot be measured."""

    @abstractmethod
    async def weigh(self, prompt: Prompt, shares: Mapping[str, float], selection: Selection, outputs: Outputs) -> Decision:
        """The decision. shares: the selector's, of the experts compared, of sum 1   outputs: rows in the order of `shares`"""

    async def route(self, prompt: Prompt, probe: Probe) -> Decision:
        if not prompt.user_turn.strip():
            return await self.selector.route(prompt, probe)
        selection = await self.selector.select(prompt, probe)
        if not selection.weights:
            return Unselected(**vars(self.selector.decided(selection)))
        shares = self.shortlist(selection.weights)
        candidates = [self.rules.mix({name: 1.0}) for name in shares]
        outputs = await probe.compare(prompt, candidates, self.options.window.of_tokens())
        return await self.weigh(prompt, shares, selection, outputs)

    def shortlist(self, weights: Mapping[str, float]) -> dict[str, float]:
        """The experts to compare and their shares, of sum 1, by name, so that equal shortlists are equal questions."""
        return dict(sorted(best(weights, self.options.shortlist).items()))

    def moved(self, before: Decision, now: Decision) -> bool:
        """By the policy's own scores, or by the selector's where there are no others."""
        return self.selector.moved(before, now) if isinstance(now, Unselected) else super().moved(before, now)


async def at_home(context: Context, window: Window, prompts: int) -> dict[str, list[Outputs]]:
    """The base and each expert over so many of the expert's own example prompts. Raises RouterError if there are too few."""
    names = sorted(context.rules.names)
    if few := [name for name in names if len(context.examples.get(name, ())) < prompts]:
        raise RouterError(
            f"calibrate_on: {prompts} example prompts an expert are needed, one a line in its examples.txt; "
            f"too few for: {', '.join(few)}. Add them, or ask for fewer"
        )

    async def one(place: tuple[str, str]) -> Outputs:
        name, text = place
        return await context.probe.compare(Prompt(text), [context.rules.mix({name: 1.0})], window)

    found = await gathered(one, [(name, text) for name in names for text in context.examples[name][:prompts]])
    return {name: found[i * prompts : (i + 1) * prompts] for i, name in enumerate(names)}


def told(what: str, names: Sequence[str], values: Sequence[float]) -> str:
    """For a decision's reason."""
    return f"{what}: " + ", ".join(f"{name} {value:.3f}" for name, value in zip(names, values, strict=True))
