"""t3_batch: t3, with one comparison and one mix for a tenant's requests that come together."""

import asyncio
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from pydantic import Field

from adapters.mix import MixRules
from router.decision import Decision, Prompt
from router.policies.comparison import Asked, Unselected
from router.policies.selector import Selection, Selector
from router.policies.t3 import T3Options, T3Policy
from router.probing import Probe, gather_all


class T3BatchOptions(T3Options):
    """Options of `t3_batch`."""

    window_ms: float = Field(20.0, ge=0, le=10_000)
    """How long a batch waits for the next request; longer while the tenant's batch before is being
    decided."""
    most: int = Field(32, ge=1)
    """How many requests a batch has at most."""
    sample: int = Field(1, ge=1)
    """By how many of its prompts a batch is decided; 1 is one comparison, `most` is by all."""


@dataclass
class Batch:
    """Requests that wait for one another.

    None of them is in charge: each has its own future, and leaves if that is cancelled.
    """

    members: list[tuple[Prompt, asyncio.Future[Decision]]] = field(default_factory=list)
    """Each request's prompt, and the future that waits for the batch's decision."""
    timer: asyncio.TimerHandle | None = None
    """What ends the wait for the next request."""
    deciding: asyncio.Task[None] | None = None
    """What decides it, once nobody can join any more."""

    def join(self, prompt: Prompt) -> asyncio.Future[Decision]:
        """Add a request; its future gets the batch's decision."""
        answer: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        self.members = [*self.still_here(), (prompt, answer)]
        return answer

    def still_here(self) -> list[tuple[Prompt, asyncio.Future[Decision]]]:
        """Return the requests that still wait."""
        return [member for member in self.members if not member[1].done()]

    def leave(self) -> None:
        """Stop deciding if nobody waits any more."""
        if self.deciding is not None and not self.still_here():
            self.deciding.cancel()  # of no effect where it is done


class T3BatchPolicy(T3Policy):
    """T^3_B (arXiv 2510.27265): one coefficient for a batch, hence one mix, as t3 finds it.

        c_k = mean over prompts x of the sample of c_k(x), by t3

    A batch is what comes of one tenant's requests without a pause of `window_ms`, and while the
    batch before is being decided, or `most` of them; a batch of one is t3. All of them are answered
    by that one mix, dense or not: this is for tenants whose requests that come together are alike.
    Each influences the others' weights, hence never across tenants, and a request whose tenant is
    not known is alone.

    The published batch compares all its samples, which are images in one pass of two classifiers.
    Ours is decided by `sample` of its prompts, those with the least SHA-256, so that the order of
    arrival does not matter. The map comes first, then the mean, as a review of the paper says it.
    """

    Options = T3BatchOptions

    def __init__(self, options: T3BatchOptions, rules: MixRules, selector: Selector) -> None:
        super().__init__(options, rules, selector)
        self.waiting: dict[str, Batch] = {}
        """The open batch of each tenant."""
        self._deciding: dict[str, Batch] = {}
        """The last batch of each tenant that is being decided."""

    async def route(self, prompt: Prompt, probe: Probe) -> Decision:
        if prompt.tenant is None or not prompt.user_turn.strip():
            return await super().route(prompt, probe)
        batch = self.waiting.get(prompt.tenant)
        if batch is None:
            batch = self.waiting[prompt.tenant] = Batch()
        answer = batch.join(prompt)
        self._wait_for_more(prompt.tenant, batch, probe)
        if len(batch.members) == self.options.most:
            self._close(prompt.tenant, batch, probe)
        try:
            return await answer
        finally:
            batch.leave()

    def _wait_for_more(self, tenant: str, batch: Batch, probe: Probe) -> None:
        """Let a batch be decided if no other request comes for a while."""
        if batch.timer is not None:
            batch.timer.cancel()
        seconds = self.options.window_ms / 1000
        loop = asyncio.get_running_loop()
        batch.timer = loop.call_later(seconds, self._end_window, tenant, batch, probe)

    def _end_window(self, tenant: str, batch: Batch, probe: Probe) -> None:
        """Decide a batch, unless it may wait for more: one before it is not decided yet."""
        before = self._deciding.get(tenant)
        if before is not None and before.deciding is not None:
            before.deciding.add_done_callback(lambda _: self._close(tenant, batch, probe))
        else:
            self._close(tenant, batch, probe)

    def _close(self, tenant: str, batch: Batch, probe: Probe) -> None:
        """Decide a batch, unless it was closed before."""
        if self.waiting.get(tenant) is batch:
            del self.waiting[tenant]
            if batch.still_here():
                batch.deciding = asyncio.create_task(self._decide(batch, probe))
                self._deciding[tenant] = batch
                batch.deciding.add_done_callback(lambda _: self._forget(tenant, batch))

    def _forget(self, tenant: str, batch: Batch) -> None:
        if self._deciding.get(tenant) is batch:
            del self._deciding[tenant]

    async def _decide(self, batch: Batch, probe: Probe) -> None:
        """Give all members of a batch its decision, or the reason why there is none."""
        sample = _choose_prompts([prompt for prompt, _ in batch.still_here()], self.options.sample)
        try:
            asked = await gather_all(partial(self.ask, probe=probe), sample)
            decision = self.decide_together(asked)
        except Exception as error:  # each member is told of it
            for _, answer in batch.still_here():
                answer.set_exception(error)
            return
        waiting = batch.still_here()
        for _, answer in waiting:
            answer.set_result(replace(decision, batch=len(waiting)))

    def decide_together(self, asked: Sequence[Asked]) -> Decision:
        """Decide by what was asked of each prompt of a sample."""
        if len(asked) == 1:
            return self.decide_by(asked[0])
        own = [self.scale(one) for one in asked]
        names = sorted({name for weights in own for name in weights})
        # Summed exactly, so that the order of the prompts does not matter.
        weights = {n: math.fsum(w.get(n, 0.0) for w in own) / len(own) for n in names}
        selection = _average([one.selection for one in asked])
        reason = f"{selection.reason}; coefficients are means over {len(asked)} prompts"
        if not names:
            return Unselected(**vars(self.selector.decide(replace(selection, reason=reason))))
        return self.decide_weights(weights, selection, reason)


def _choose_prompts(prompts: Sequence[Prompt], most: int) -> list[Prompt]:
    """Return different prompts of a batch by which it is decided, whatever order they came in."""
    by_text = {(prompt.user_turn, prompt.chat): prompt for prompt in prompts}
    return sorted(by_text.values(), key=_hash)[:most]


def _hash(prompt: Prompt) -> str:
    return hashlib.sha256(f"{prompt.chat}|{prompt.user_turn}".encode()).hexdigest()


def _average(selections: Sequence[Selection]) -> Selection:
    """Return the mean scores and floor of selections, with the reason of the first."""

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)  # a floor may be infinite

    first = selections[0]
    scores = {name: mean([s.scores[name] for s in selections]) for name in first.scores}
    return Selection({}, scores, mean([s.floor for s in selections]), first.reason)
