"""t3_batch: t3, with one set of coefficients for a tenant's requests that come together."""

import asyncio
import math
from dataclasses import dataclass, field

from pydantic import Field

from adapters.mix import MixRules
from router.decision import Prompt
from router.policies.selector import Selector
from router.policies.t3 import T3Options, T3Policy

_Key = tuple[str, tuple[str, ...]]
_Agreed = tuple[dict[str, float], int]


class T3BatchOptions(T3Options):
    """Options of `t3_batch`."""

    window_ms: float = Field(20.0, ge=0, le=10_000)
    """How long a request waits for others after its comparison."""
    most: int = Field(32, ge=1)
    """How many requests a batch has at most."""


@dataclass
class Batch:
    """Requests that wait for one another.

    None of them is in charge: each has its own future, and leaves if that is cancelled.
    """

    members: list[tuple[dict[str, float], asyncio.Future[_Agreed]]] = field(default_factory=list)
    """Each request's own coefficients, and the future that waits for the batch's."""

    def join(self, coefficients: dict[str, float]) -> asyncio.Future[_Agreed]:
        """Add a request; its future gets the mean coefficients and the number of requests."""
        answer: asyncio.Future[_Agreed] = asyncio.get_running_loop().create_future()
        self.members = [*self._still_here(), (coefficients, answer)]
        return answer

    def _still_here(self) -> list[tuple[dict[str, float], asyncio.Future[_Agreed]]]:
        return [member for member in self.members if not member[1].done()]

    def close(self) -> None:
        """Give all members the mean of their coefficients.

        It is summed exactly, so that the order in which they came does not matter.
        """
        members = self._still_here()
        if not members:
            return
        names = members[0][0]
        mean = {n: math.fsum(own[n] for own, _ in members) / len(members) for n in names}
        for _, answer in members:
            answer.set_result((dict(mean), len(members)))


class T3BatchPolicy(T3Policy):
    """T^3_B (arXiv 2510.27265): the mean of t3's coefficients over a batch of requests.

    First comes the map of t3, then the mean. A batch is what one tenant's requests with one
    shortlist make of `window_ms`, or `most` of them; a batch of one is t3. Each influences the
    others' weights, hence never across tenants, and a request whose tenant is not known is alone.
    """

    Options = T3BatchOptions

    def __init__(self, options: T3BatchOptions, rules: MixRules, selector: Selector) -> None:
        super().__init__(options, rules, selector)
        self.waiting: dict[_Key, Batch] = {}
        """The open batch of each tenant and shortlist."""

    async def agree(self, prompt: Prompt, coefficients: dict[str, float]) -> _Agreed:
        if prompt.tenant is None:
            return coefficients, 1
        key = (prompt.tenant, tuple(coefficients))
        batch = self.waiting.get(key)
        if batch is None:
            batch = self.waiting[key] = Batch()
            seconds = self.options.window_ms / 1000
            asyncio.get_running_loop().call_later(seconds, self._close, key, batch)
        answer = batch.join(coefficients)
        if len(batch.members) == self.options.most:
            self._close(key, batch)
        return await answer

    def _close(self, key: _Key, batch: Batch) -> None:
        """Close a batch, unless it was closed before."""
        if self.waiting.get(key) is batch:
            del self.waiting[key]
            batch.close()
