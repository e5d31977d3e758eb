"""Requests that the engine died of: tried alone after the first time, then refused."""

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

from pydantic import BaseModel, TypeAdapter

from tta_serve import metrics
from tta_serve.exceptions import RequestError

logger = logging.getLogger(__name__)

DEATHS = 3
"""Of how many of its engine's deaths a request must have been a part, to be refused."""
SUSPECT_S = 3600.0
"""How long a request is suspected after the last of them."""
MOST_SUSPECTS = 256
"""How many are remembered, the latest ones."""
_NOT_ITS_OWN = frozenset({"stream", "stream_options", "user", "metadata", "store", "request_id"})
"""Fields of a body that make no difference to the engine."""


class KeptText(Protocol):
    """A text that outlives a replica, and that all replicas of a server share."""

    def read(self) -> bytes | None: ...

    def write(self, text: bytes) -> None: ...


class Suspect(BaseModel):
    """A request that was in the engine when it died."""

    deaths: int
    until: float
    """When it is suspected no more, in seconds since 1970."""


_SUSPECTS = TypeAdapter(dict[str, Suspect])


class Quarantine:
    """Keeps a request that ends the engine from ending it for ever.

    Whatever was in the engine when it died is suspect. Suspects run one at a time, so that of all
    that were there the next death is the fault of one, or of a newcomer; one that gets its answer
    is suspect no more. Who was there `DEATHS` times is refused.

    Args:
        text: Where suspects are kept, as the replica ends with its engine.
        clock: Seconds since 1970.
    """

    def __init__(self, text: KeptText, clock: Callable[[], float] = time.time) -> None:
        self._text = text
        self._clock = clock
        self._suspects: dict[str, Suspect] = {}
        self._alone = asyncio.Lock()
        self._writing = asyncio.Lock()

    async def refresh(self) -> None:
        """Learn of the suspects that other replicas, or this one before, have found."""
        text = await asyncio.to_thread(self._text.read)
        self._keep({} if text is None else _SUSPECTS.validate_json(text))

    @asynccontextmanager
    async def watch(self, identify: Callable[[], str]) -> AsyncIterator[None]:
        """Let the block have a request answered: a suspect once no other suspect runs.

        Args:
            identify: Returns what `identify_request` says of it. Not called while there is no
                suspect, as it reads the whole request.

        Raises RequestError, 422, for a request that is refused.
        """
        key = self._find(identify)
        if key is None:
            yield
            return
        async with self._alone:
            suspect = self._suspects.get(key)
            if suspect is not None and suspect.deaths >= DEATHS:
                metrics.quarantined.inc()
                wait_s = max(1, round(suspect.until - self._clock()))
                raise RequestError(
                    f"the engine died {suspect.deaths} times while it ran this request, which is"
                    f" refused for {wait_s} s; send it in another form",
                    status=422,
                )
            yield

    async def blame(self, key: str) -> None:
        """Suspect a request, once more, that was in the engine when it died."""

        def add(suspects: dict[str, Suspect]) -> None:
            deaths = suspects[key].deaths + 1 if key in suspects else 1
            suspects.pop(key, None)
            suspects[key] = Suspect(deaths=deaths, until=self._clock() + SUSPECT_S)

        logger.error("the engine died while it ran request %s", key)
        await self._change(add)

    async def clear(self, identify: Callable[[], str]) -> None:
        """Suspect a request no more, if it was, since it got its answer."""
        key = self._find(identify)
        if key is not None:
            await self._change(lambda suspects: suspects.pop(key, None))

    def _find(self, identify: Callable[[], str]) -> str | None:
        """Return a request's key if it is suspect."""
        if self._suspects and (key := identify()) in self._suspects:
            return key
        return None

    async def _change(self, change: Callable[[dict[str, Suspect]], object]) -> None:
        async with self._writing:
            await self.refresh()
            change(self._suspects)
            self._keep(self._suspects)
            await asyncio.to_thread(self._text.write, _SUSPECTS.dump_json(self._suspects))

    def _keep(self, found: Mapping[str, Suspect]) -> None:
        """Remember those that are suspect still, the latest ones."""
        now = self._clock()
        fresh = [(key, suspect) for key, suspect in found.items() if suspect.until > now]
        self._suspects = dict(fresh[-MOST_SUSPECTS:])
        metrics.suspects.set(len(self._suspects))


def identify_request(path: str, body: Mapping[str, Any]) -> str:
    """Return a hash that two requests share if they ask the same of the engine."""
    own = {name: value for name, value in body.items() if name not in _NOT_ITS_OWN}
    text = json.dumps([path, own], sort_keys=True)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]
