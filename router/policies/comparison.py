"""The base of the policies that run a prompt through the base and the experts, and compare both."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from adapters.mix import MixRules
from router.decision import Decision, Prompt
from router.errors import RouterError
from router.policies.selector import Selection, Selector
from router.policies.selectors import check_selector, create_selector
from router.policy import Context, Options, Policy
from router.probing import Outputs, Probe, Window, gather_all
from router.scoring.shares import keep_best

BASE = "base"
"""The base's name beside the experts'; no expert may have it."""


class WindowOptions(Options):
    """Which tokens are compared, see `router.probing.Window`."""

    last: int = Field(64, ge=1)
    """So many of the prompt, the last ones."""
    draft: int = Field(0, ge=0, le=64)
    """So many after them, which the base adds greedily."""

    def to_window(self) -> Window:
        """Return what the probe is asked with."""
        return Window(self.last, self.draft)


def _with_known_token(window: WindowOptions) -> WindowOptions:
    if window.last + window.draft < 2:
        raise ValueError("of one position the next token is not known; look at 2 or more")
    return window


# A window of which some next tokens are known, as the likelihood needs them.
ScoredWindow = Annotated[WindowOptions, AfterValidator(_with_known_token)]


class ComparedOptions(Options):
    """What all these policies may be told."""

    selector: str = "retrieval"
    """Who says which experts are compared."""
    selector_options: dict[str, Any] = {}
    """The selector's own options."""
    shortlist: int = Field(3, ge=1, le=16)
    """How many experts are compared at most."""
    window: WindowOptions = WindowOptions()
    """Over which tokens."""

    @model_validator(mode="after")
    def _selector_exists(self) -> Self:
        check_selector(self.selector, self.selector_options)
        return self


@dataclass(frozen=True)
class Unselected(Decision):
    """The base, because the selector found no expert to compare.

    The scores and the floor are the selector's.
    """


@dataclass(frozen=True)
class Asked:
    """What a selector and, if it found experts, a comparison say of a prompt."""

    selection: Selection
    """The selector's whole answer."""
    shares: Mapping[str, float]
    """The selector's shares of the experts compared, of sum 1; none if it abstains."""
    outputs: Outputs | None
    """The base's row, then one for each of `shares` in their order; None without any."""


class ComparedPolicy(Policy):
    """A policy that compares the experts of a selector's shortlist on the prompt itself.

    One pass runs the prompt through the base and each of the experts, as one batch.
    """

    reads_features = True  # as selectors may

    def __init__(self, options: Any, rules: MixRules, selector: Selector) -> None:
        self.options = options
        self.rules = rules
        self.selector = selector

    @classmethod
    async def create(cls, options: Any, context: Context) -> Self:
        selector = await create_selector(options.selector, options.selector_options, context)
        policy = cls(options, context.rules, selector)
        await policy.calibrate(context)
        return policy

    async def calibrate(self, context: Context) -> None:
        """Measure what the policy must know of each expert beforehand.

        Raises:
            RouterError: It cannot be measured.
        """

    @abstractmethod
    def weigh(
        self, shares: Mapping[str, float], selection: Selection, outputs: Outputs
    ) -> Decision:
        """Decide by what the base and the experts predict; the arguments are those of `Asked`."""

    async def route(self, prompt: Prompt, probe: Probe) -> Decision:
        if not prompt.user_turn.strip():
            return await self.selector.route(prompt, probe)
        return self.decide_by(await self.ask(prompt, probe))

    async def ask(self, prompt: Prompt, probe: Probe) -> Asked:
        """Ask the selector for experts, and compare those."""
        selection = await self.selector.select(prompt, probe)
        if not selection.weights:
            return Asked(selection, {}, None)
        shares = self.shortlist(selection.weights)
        candidates = [self.rules.mix({name: 1.0}) for name in shares]
        window = self.options.window.to_window()
        return Asked(selection, shares, await probe.compare(prompt, candidates, window))

    def decide_by(self, asked: Asked) -> Decision:
        """Decide by what was asked of one prompt."""
        if asked.outputs is None:
            return Unselected(**vars(self.selector.decide(asked.selection)))
        return self.weigh(asked.shares, asked.selection, asked.outputs)

    def shortlist(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Return the experts to compare and their shares, of sum 1.

        They come in the order of their names, so that equal shortlists are equal questions.
        """
        return dict(sorted(keep_best(weights, self.options.shortlist).items()))

    def should_move(self, before: Decision, now: Decision) -> bool:
        """Judge by the policy's own scores, or by the selector's where there are no others."""
        if isinstance(now, Unselected):
            return self.selector.should_move(before, now)
        return super().should_move(before, now)


async def compare_at_home(
    context: Context, window: Window, prompts: int
) -> dict[str, list[Outputs]]:
    """Compare the base and each expert on the first of the expert's own example prompts.

    Args:
        context: The library and the probe.
        window: Which tokens to compare.
        prompts: How many of each expert's.

    Returns:
        By expert, the outputs for each prompt.

    Raises:
        RouterError: An expert has too few example prompts.
    """
    names = sorted(context.rules.classes)
    if few := [name for name in names if len(context.examples.get(name, ())) < prompts]:
        raise RouterError(
            f"calibrate_on: {prompts} example prompts an expert are needed, one a line in its"
            f" examples.txt; too few for: {', '.join(few)}. Add them, or ask for fewer"
        )

    async def one(place: tuple[str, str]) -> Outputs:
        name, text = place
        return await context.probe.compare(Prompt(text), [context.rules.mix({name: 1.0})], window)

    places = [(name, text) for name in names for text in context.examples[name][:prompts]]
    found = await gather_all(one, places)
    return {name: found[i * prompts : (i + 1) * prompts] for i, name in enumerate(names)}


def describe(what: str, names: Sequence[str], values: Sequence[float]) -> str:
    """Say some named values in words, for a decision's reason."""
    pairs = zip(names, values, strict=True)
    return f"{what}: " + ", ".join(f"{name} {value:.3f}" for name, value in pairs)
