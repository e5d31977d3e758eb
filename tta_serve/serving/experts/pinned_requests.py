"""Requests that pin one expert, as examples of what it is for: read, kept, and put into force.

A request that was answered is offered. If it would be kept, what the base reads in it is read
after the answer, one request at a time, and its text is forgotten. Every few seconds it is looked
whether an expert has enough of them that policies are to be made anew, and about once a minute
whether the file is to be written.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from adapters.errors import LibraryError
from adapters.library.entries import ENTRIES
from router.decision import Prompt
from router.policies.retrieval import lacks_examples
from router.probing import Probe, read_features
from tta_serve import metrics
from tta_serve.config.sections import ServeConfig
from tta_serve.serving.experts.example_sources import find_step
from tta_serve.serving.experts.view import View
from tta_serve.serving.routing.pinned_file import PinnedContent, load_pinned, save_pinned
from tta_serve.serving.routing.pinned_sample import (
    SALT_BYTES,
    Bounds,
    PinnedRequest,
    PinnedSample,
)

logger = logging.getLogger(__name__)

PINNED_FILE = ENTRIES.parent / "pinned.safetensors"
CONTROLS = ("Hello", "Which of 21, 23 and 25 is a prime number?")
"""Texts that are read at every start: a file of a base that read them otherwise is not used."""
MOST_WAITING = 32
"""So many requests wait to be read; what comes then is not kept."""
MOST_CHARACTERS = 1 << 16
"""A longer turn is not kept."""
_LOOK_S = 5.0
_SYNC_LOOKS = 12


class Read(Protocol):
    """Reads a text's features, as `router.probing.Probe.features` does."""

    async def __call__(self, text: str, *, chat: bool = False) -> Tensor: ...


class Live(Protocol):
    """What is served, and how its policies are made anew."""

    @property
    def config(self) -> ServeConfig:
        """The config that is in force."""
        ...

    @property
    def current(self) -> View:
        """The view that new requests get."""
        ...

    async def refresh(self) -> bool:
        """Make the policies anew. Returns whether it could be done now."""
        ...


class _Offer(NamedTuple):
    """A request that waits to be read."""

    request: PinnedRequest
    text: str
    probe: Probe


@dataclass(frozen=True)
class PinnedOffer:
    """A request that was answered by one expert, since its model pins that."""

    expert: str
    view: View
    """What it saw of the library."""
    prompt: Prompt
    tenant: str | None
    """Whose key it carried, None without keys."""
    conversation: str
    """What tells its conversation from others."""


class PinnedRequests:
    """Keeps what the base reads in requests that pin an expert.

    Attributes:
        sample: What is kept.
    """

    def __init__(self, config: ServeConfig) -> None:
        self.sample = PinnedSample(secrets.token_bytes(SALT_BYTES))
        self._config: Callable[[], ServeConfig] = lambda: config
        self._file = config.library.path / PINNED_FILE
        self._controls = torch.zeros(0)
        self._waiting: asyncio.Queue[_Offer] = asyncio.Queue(MOST_WAITING)
        self._tasks: list[asyncio.Task[None]] = []
        self._has_news = False
        self._seen = 0.0
        """When the file was written that was read last."""

    @property
    def bounds(self) -> Bounds:
        """How many are kept of an expert, by the config that is in force."""
        config = self._config()
        options = config.library.pinned
        assert options is not None
        if len(config.access.find_tenants()) < 2:
            return Bounds(options.most, options.most)
        return Bounds(options.most, max(1, int(options.most * options.tenant_share)))

    async def open(self, read: Read) -> None:
        """Load what the file keeps, if the base reads as it did when that was written.

        Where there is none one is begun, so that replicas number conversations alike.

        Args:
            read: Reads a text's features.
        """
        self._controls = torch.stack(
            [
                torch.stack([await read(text, chat=form) for form in (False, True)])
                for text in CONTROLS
            ]
        )
        found = await asyncio.to_thread(self._begin_file)
        if found is not None:
            self.sample.salt = found.salt
            self.sample.merge(found.rows, self.bounds)

    def start(self, live: Live) -> None:
        """Begin to read what is offered, and to put it into force."""
        self._config = lambda: live.config
        if self.sample.retain(live.current.digests.values()):
            self._has_news = True
        self._tasks = [asyncio.create_task(part) for part in (self._read(), self._follow(live))]
        self._tell(live.current)

    async def close(self) -> None:
        """End, and write what is not in the file yet."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._sync()

    def offer(self, offer: PinnedOffer) -> None:
        """Take a request that was answered; it is read if it would be kept and there is room."""
        text = offer.prompt.user_turn
        if not (offer.prompt.in_prompt and text.strip() and len(text) <= MOST_CHARACTERS):
            return
        digest = offer.view.digests[offer.expert]
        request = self.sample.describe(digest, offer.tenant, offer.conversation)
        if self.sample.wants(request, self.bounds):
            with contextlib.suppress(asyncio.QueueFull):
                self._waiting.put_nowait(_Offer(request, text, offer.view.router.probe))

    async def _read(self) -> None:
        """Read what waits, one request after the other."""
        while True:
            await self._read_one(await self._waiting.get())

    async def _read_one(self, offer: _Offer) -> None:
        try:
            features = (await read_features([offer.text], offer.probe, chat=True))[0]
        except Exception as error:  # whatever the engine's reason is, it is one example less
            logger.warning("a pinned request is not kept: %s", error)
        else:
            self._has_news |= self.sample.add(offer.request, features, self.bounds)

    async def _follow(self, live: Live) -> None:
        """Look again and again whether something is to be done."""
        look = 0
        while True:
            await asyncio.sleep(_LOOK_S)
            look += 1
            try:
                await self.look(live, sync=look % _SYNC_LOOKS == 0)
            except Exception as error:
                logger.warning("pinned requests are not in force yet: %s", error)
                await asyncio.sleep(_LOOK_S * _SYNC_LOOKS)

    async def look(self, live: Live, *, sync: bool) -> None:
        """Forget experts that are gone, and put into force what there is enough of.

        Args:
            live: What is served.
            sync: Whether to write the file, and to read what other replicas wrote.
        """
        self._has_news |= self.sample.retain(live.current.digests.values())
        if self._is_due(live.current) and await live.refresh():
            logger.info("policies know more pinned requests", extra={"pinned": live.current.pinned})
        if sync:
            await self._sync()
            self.sample.retain(live.current.digests.values())
        self._tell(live.current)

    def _is_due(self, view: View) -> bool:
        """Return whether an expert that needs them has many more than its policies know."""
        return any(
            find_step(self.sample.count(digest)) > find_step(view.pinned.get(name, 0))
            for name, digest in view.digests.items()
            if lacks_examples(name, view.examples)
        )

    def _tell(self, view: View) -> None:
        metrics.pinned_requests.clear()
        for name, digest in view.digests.items():
            metrics.pinned_requests.labels(name).set(self.sample.count(digest))

    def _begin_file(self) -> PinnedContent | None:
        """Return what the file holds, None after beginning one anew."""
        found = load_pinned(self._file)
        if found is not None and found.is_of(self._controls):
            return found
        if found is not None:
            logger.warning("%s is of another base, and begins anew", self._file)
        self._write(PinnedContent(self.sample.salt, self._controls, {}))
        return None

    async def _sync(self) -> None:
        """Take over what other replicas wrote, and write what is new."""
        found = await asyncio.to_thread(self._read_news)
        if found is not None and found.is_of(self._controls):
            self.sample.salt = found.salt  # another, where two replicas began the file
            self._has_news |= self.sample.merge(found.rows, self.bounds)
        if not self._has_news:
            return
        self._has_news = False
        content = PinnedContent(self.sample.salt, self._controls, self.sample.rows())
        self._has_news |= not await asyncio.to_thread(self._write, content)

    def _read_news(self) -> PinnedContent | None:
        """Return what the file holds, None if nobody has written it since it was read."""
        try:
            changed = self._file.stat().st_mtime
        except OSError:
            return None
        if changed == self._seen:
            return None
        self._seen = changed
        return load_pinned(self._file)

    def _write(self, content: PinnedContent) -> bool:
        """Write the file. Returns whether the disk took it."""
        try:
            save_pinned(self._file, content)
            self._seen = self._file.stat().st_mtime
        except (LibraryError, OSError) as error:
            logger.warning("pinned requests are kept in memory alone: %s", error)
            return False
        return True
