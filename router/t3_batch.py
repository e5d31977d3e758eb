"""t3_batch: t3 with one set of coefficients for the requests of a tenant that come together."""

import asyncio
import math
from dataclasses import dataclass, field

from pydantic import Field

from adapters.mix import MixRules
from router.policy import Prompt, Selector
from router.t3 import T3Options, T3Policy

_Key = tuple[str, tuple[str, ...]]
_Agreed = tuple[dict[str, float], int]


class T3BatchOptions(T3Options):
    """window_ms: how long a request waits for others after its comparison   most: requests in one batch"""

    window_ms: float = Field(20.0, ge=0, le=10_000)
    most: int = Field(32, ge=1)


@dataclass
class Batch:
    """Requests that wait for one another, none of them in charge: each has its own future, and leaves if that is cancelled."""

    members: list[tuple[dict[str, float], asyncio.Future[_Agreed]]] = field(default_factory=list)

    def join(self, coefficients: dict[str, float]) -> asyncio.Future[_Agreed]:
        answer: asyncio.Future[_Agreed] = asyncio.get_running_loop().create_future()
        self.members = [*self._still_here(), (coefficients, answer)]
        return answer

    def _still_here(self) -> list[tuple[dict[str, float], asyncio.Future[_Agreed]]]:
        return [member for member in self.members if not member[1].done()]

    def close(self) -> None:
        """Give all the mean of their coefficients; summed exactly, so that the order in which they came does not matter."""
        members = self._still_here()
        for _, answer in members:
            answer.set_result(({n: math.fsum(c[n] for c, _ in members) / len(members) for n in members[0][0]}, len(members)))


class T3BatchPolicy(T3Policy):
    """T^3_B (arXiv 2510.27265): the mean of t3's coefficients (first the map, then the mean) over a batch of requests.

    A batch is what one tenant's requests with one shortlist make of `window_ms`, or `most` of them; a batch of one is t3. Each
    influences the others' weights, hence never across tenants, and a request whose tenant is not known is alone.
    """

    Options = T3BatchOptions

    def __init__(self, options: T3BatchOptions, rules: MixRules, selector: Selector) -> None:
        super().__init__(options, rules, selector)
        self.waiting: dict[_Key, Batch] = {}  # the open batch of each tenant and shortlist

    async def agreed(self, prompt: Prompt, coefficients: dict[str, float]) -> _Agreed:
        if prompt.tenant is None:
            return coefficients, 1
        key = (prompt.tenant, tuple(coefficients))
        batch = self.waiting.get(key)
        if batch is None:
            batch = self.waiting[key] = Batch()
            asyncio.get_running_loop().call_later(self.options.window_ms / 1000, self._close, key, batch)
        answer = batch.join(coefficients)
        if len(batch.members) == self.options.most:
            self._close(key, batch)
        return await answer

    def _close(self, key: _Key, batch: Batch) -> None:
        if self.waiting.get(key) is batch:
            del self.waiting[key]
            batch.close()
