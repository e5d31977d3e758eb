"""recombined: the entry of a small set whose recombined components suit a prompt's tasks best."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from adapters.mix import Mix
from router.decision import Decision, Prompt
from router.policies.made_entries import MadeKind
from router.policies.selector import Selector
from router.policies.selectors import check_selector, create_selector
from router.policy import Context, Options, Policy
from router.probing import Probe

ENTRY_SETS = "recombined"
"""The folder of sets of entries among a library's artifacts."""
_KIND = MadeKind(
    "recombined",
    ENTRY_SETS,
    "tta router recombine",
    "set of entries",
    "sets of entries",
    "set",
    "the set",
)


@dataclass(frozen=True)
class RecombinedEntry:
    """One merge of a set."""

    entry: str
    """The merge's name among the library's entries."""
    experts: int
    """How many experts it has components of."""
    measured: Mapping[str, float]
    """By task, minus the mean KL(p_expert || p_merge) over the expert's own prompts, nats; 0 is the
    best."""


@dataclass(frozen=True)
class EntrySet:
    """A few merges that serve all tasks and their combinations."""

    tasks: tuple[str, ...]
    """The names of experts, each of which stands for its own task."""
    entries: tuple[RecombinedEntry, ...]
    digests: Mapping[str, str]
    """The digests of those experts' weights when the set was made."""
    price: float
    """Nats that each expert of an entry must bring."""

    def __post_init__(self) -> None:
        by_task = [self.digests, *(entry.measured for entry in self.entries)]
        if not self.entries or any(set(values) != set(self.tasks) for values in by_task):
            raise ValueError("a set must have an entry or more, and a value of each for every task")


def rate_entry(entry: RecombinedEntry, shares: Mapping[str, float], price: float) -> float:
    """Return what an entry is worth for a prompt: sum_t w_t m_t - price experts, nats.

    Args:
        entry: Has m, by task.
        shares: w, by task, of sum 1.
        price: Nats for each expert.
    """
    return sum(w * entry.measured[task] for task, w in shares.items()) - price * entry.experts


def read_entry_set(artifacts: Path | None, name: str) -> EntrySet:
    """Read the set that `tta router recombine --name NAME` made.

    Raises:
        RouterError: There is none, or a damaged one.
    """
    return _KIND.read(EntrySet, artifacts, name)


class RecombinedOptions(Options):
    """Options of `recombined`."""

    entries: str
    """The name of the set."""
    selector: str = "retrieval"
    """Who says which tasks a prompt is of."""
    selector_options: dict[str, Any] = {}
    """The selector's own options."""
    price: float | None = Field(None, ge=0)
    """Nats that each expert of an entry must bring, instead of the set's."""

    @model_validator(mode="after")
    def _selector_exists(self) -> Self:
        check_selector(self.selector, self.selector_options)
        return self


class RecombinedPolicy(Policy):
    """The entry with the most sum_t w_t m_t - price experts, w the selector's shares of tasks.

    MERGE (Qiu et al. 2026, arXiv 2602.06552) searches a library of recombined components offline,
    and has a small network recombine them for an input. Ours has whole entries made offline
    (`tta_serve.offline.recombine`), and the selector as the network: equal decisions are equal
    mixes, which share cached keys and values. What the entries are worth was measured; no new merge
    is made for a prompt. A prompt that no expert fits is left to the base.
    """

    Options = RecombinedOptions
    reads_features = True  # as selectors may

    def __init__(
        self, entries: EntrySet, mixes: Mapping[str, Mix], selector: Selector, price: float
    ) -> None:
        self.selector = selector
        self._set = entries
        self._mixes = mixes
        self._price = price

    @classmethod
    async def create(cls, options: RecombinedOptions, context: Context) -> Self:
        found = await asyncio.to_thread(read_entry_set, context.artifacts, options.entries)
        names = (one.entry for one in found.entries)
        mixes = _KIND.find_mixes(context, options.entries, found, names)
        among = replace(context, rules=context.rules.narrow(found.tasks))
        selector = await create_selector(options.selector, options.selector_options, among)
        price = found.price if options.price is None else options.price
        return cls(found, mixes, selector, price)

    async def route(self, prompt: Prompt, probe: Probe) -> Decision:
        if not prompt.user_turn.strip():
            return await self.selector.route(prompt, probe)
        selection = await self.selector.select(prompt, probe)
        if not selection.weights:
            return self.selector.decide(selection)
        best = max(
            self._set.entries,
            key=lambda entry: rate_entry(entry, selection.weights, self._price),
        )
        tasks = ", ".join(f"{task} {share:.2f}" for task, share in selection.weights.items())
        reason = f"{selection.reason}; entry {best.entry} for {tasks}"
        mix = self._mixes[best.entry]
        return Decision(mix, selection.scores, mix.is_base, reason, selection.floor)

    def should_move(self, before: Decision, now: Decision) -> bool:
        return now.mix != before.mix and self.selector.should_move(before, now)
