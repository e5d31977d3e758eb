"""The experts of a replica, changed while requests run.

Each request keeps the view that it began with.
"""

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from adapters.errors import AdapterError, LibraryError
from adapters.library.library import Library
from router.errors import RouterError
from router.probing import feature_layer
from tta_serve import metrics
from tta_serve.config.sections import ServeConfig
from tta_serve.engine.client.engine_client import EngineClient, ProbeError
from tta_serve.exceptions import ConfigError, RequestError
from tta_serve.protocol import ExpertChange, ExpertExamples
from tta_serve.serving.experts.example_sources import describe_sources
from tta_serve.serving.experts.pinned_requests import PinnedOffer, PinnedRequests
from tta_serve.serving.experts.startup import check_base, explain_licence, source_of
from tta_serve.serving.experts.view import View, Views
from tta_serve.serving.routing.decision import Conversations
from tta_serve.serving.routing.example_readings import ExampleReadings, find_file
from tta_serve.serving.routing.probe_cache import ProbeCache

logger = logging.getLogger(__name__)

_UNLOAD_TRIES = 600
_UNLOAD_PAUSE_S = 0.1
_GIVEN_UP_S = 150.0


@dataclass(frozen=True)
class _Staged:
    """A view that is to be the next one."""

    change: str
    """The name of the change."""
    at: float
    """By the monotonic clock."""
    view: View | None = None
    views: Views | None = None
    """What makes views from then on."""


class LiveExperts:
    """One view is current; a change makes the next beside it, and replaces it in one step.

    A change is of an expert or of the config.

    An expert that the current view has no more stays in the engine until the last request that may
    use it has ended.
    """

    def __init__(
        self, config: ServeConfig, layers: int, engine: EngineClient, config_version: int = 1
    ) -> None:
        self._engine = engine
        self._readings = ExampleReadings(_find_readings(config, layers))
        self._pinned = PinnedRequests(config) if config.library.pinned else None
        self._views = Views(
            config,
            layers,
            engine,
            ProbeCache(),
            _make_conversations(config),
            self._readings,
            self._pinned.sample if self._pinned else None,
            config_version,
        )
        self._changing = asyncio.Lock()
        self._loaded: set[str] = set()
        self._retired: list[View] = []
        self._staged: _Staged | None = None
        self._sweeper: asyncio.Task[None] | None = None

    @property
    def config(self) -> ServeConfig:
        """The config that is in force."""
        return self._views.config

    @property
    def config_version(self) -> int:
        """Which one of those since the start it is."""
        return self._views.config_version

    async def open(self, digests: Mapping[str, str]) -> None:
        """Begin with the experts that the engine was started with.

        Raises ConfigError or RouterError.
        """
        self._loaded = set(digests.values())
        if self._pinned is not None:
            await self._pinned.open(self._engine.features)
        self.current = await self._views.make(1, dict(digests), self.config.policies.keys())
        metrics.experts_loaded.set(len(digests))
        metrics.config_version.set(self.config_version)
        if self._pinned is not None:
            self._pinned.start(self)

    async def close(self) -> None:
        """Write what is not on the disk yet."""
        if self._pinned is not None:
            await self._pinned.close()

    @property
    def keeps_pinned(self) -> bool:
        """Whether requests that pin an expert are kept as examples of it."""
        return self._pinned is not None

    def keep_pinned(self, offer: PinnedOffer) -> None:
        """Keep a request as an example of the expert that it pinned."""
        assert self._pinned is not None
        self._pinned.offer(offer)

    def describe_examples(self) -> list[ExpertExamples]:
        """Return what policies know of each expert, and what would make it better."""
        kept = None if self._pinned is None else self._pinned.sample.count
        return describe_sources(self.current, kept)

    @contextmanager
    def hold(self, view: View | None = None) -> Iterator[View]:
        """Keep a view and its experts: the current one, or one that is held already."""
        view = view or self.current
        whole = view.whole or view
        whole.holders += 1
        try:
            yield view
        finally:
            whole.holders -= 1
            if whole is not self.current and not whole.holders:
                self._sweep()

    def find(self, tenant: str | None) -> View:
        """Return the current view as a tenant has it."""
        return self.current.tenants.get(tenant or "", self.current)

    async def stage(self, name: str, change: ExpertChange) -> None:
        """Do all of a change that can fail: read, check and load the expert, build the policies.

        A new expert must suit all policies that work now. To change or remove one may cost those
        policies and entries that were made for it; not the default policy, and no fallback.

        Args:
            name: Of the change.

        Raises RequestError: 404 or 409 if the name is not what the change expects, 409 while
        another change is staged, 400 if the expert or a policy refuses, 503 if the engine did not
        find room for a policy's probes.
        """
        self._begin(name)
        async with self._changing:
            digests = self._expected(change)
            new = change.name not in self.current.digests
            must = self.current.router.policies.keys() if new else self.config.needed
            with self._refusing("name"):
                if not change.remove:
                    digests[change.name] = await self._load(change.name)
                view = await self._views.make(
                    self.current.generation + 1, digests, must, self.current
                )
            self._staged = _Staged(name, time.monotonic(), view, self._views)

    async def stage_config(self, name: str, version: int, config: ServeConfig) -> None:
        """Do all that can fail of serving by another config: build its policies.

        Those that change have to work, and so have those that work now. Conversations begin anew if
        a policy that there was, or what mixes may be, is another.

        Args:
            name: Of the change.
            version: Of the config.
            config: The new one, which the engine can serve.

        Raises RequestError: 409 while another change is staged, 400 if a policy refuses, 503 if the
        engine did not find room for a policy's probes.
        """
        self._begin(name)
        async with self._changing:
            old = self.config
            unusable = self.current.router.unusable
            must = {n for n, p in config.policies.items() if p != old.policies.get(n)}
            must |= {*config.policies} - {*unusable} | {*config.needed}
            same = [
                config.policies[n] == p for n, p in old.policies.items() if n in config.policies
            ]
            kept = config.mix == old.mix and all(same)
            conversations = self._views.conversations if kept else _make_conversations(config)
            views = replace(
                self._views, config=config, config_version=version, conversations=conversations
            )
            with self._refusing(None):
                view = await views.make(
                    self.current.generation + 1,
                    dict(self.current.digests),
                    must,
                    self.current,
                    strict=config.library.entries != old.library.entries,
                )
            self._staged = _Staged(name, time.monotonic(), view, views)

    async def refresh(self) -> bool:
        """Make the policies anew, on what is known of the same experts by now.

        Not while a change is under way, nor while requests still see the view before this one: an
        engine keeps the heads of two views.

        Returns whether it was done. Raises AdapterError, ConfigError, RouterError or ProbeError.
        """
        async with self._changing:
            self._retired = [view for view in self._retired if view.holders]
            if self._retired or self._is_changing():
                return False
            before = self.current
            must = before.router.policies.keys()
            view = await self._views.make(before.generation, dict(before.digests), must, before)
            self._retired.append(before)
            self.current = view
            return True

    @contextmanager
    def _refusing(self, param: str | None) -> Iterator[None]:
        """Refuse the change if it cannot be made. Raises RequestError."""
        try:
            yield
        except (AdapterError, ConfigError, RouterError) as error:
            self._sweep()
            raise RequestError(str(error), param=param) from None
        except ProbeError as error:
            self._sweep()
            raise RequestError(
                f"{error}; try again when the engine has less to do", status=503
            ) from None

    def _begin(self, name: str) -> None:
        """Let a change begin.

        Raises RequestError while another change is under way; one that nobody has ended for long
        was given up.
        """
        if self._is_changing(name):
            raise RequestError("another change is under way; try again when it is done", status=409)
        self._staged = _Staged(name, time.monotonic())

    def _is_changing(self, name: str = "") -> bool:
        """Return whether another change than this is under way."""
        other = self._staged
        if other is None or other.change == name:
            return False
        return time.monotonic() - other.at < _GIVEN_UP_S

    async def commit(self, name: str) -> None:
        """Make the view that was staged under this name the current one."""
        assert self._staged is not None
        assert self._staged.change == name
        assert self._staged.view is not None
        assert self._staged.views is not None
        before = self.current
        self._retired.append(before)
        self.current, self._views = self._staged.view, self._staged.views
        self._staged = None
        _log_change(before.digests, self.current.digests)
        metrics.experts_loaded.set(len(self.current.digests))
        metrics.config_version.set(self.config_version)
        self._sweep()

    async def discard(self, name: str) -> None:
        """Undo `stage`."""
        if self._staged is not None and self._staged.change == name:
            self._staged = None
            self._sweep()

    async def report(self) -> dict[str, Any]:
        """Return what is served, what cannot be any more, and how much room is taken."""
        used = await self._engine.workers.count_used()
        capacity = self.config.library.capacity
        view = self.current
        return {
            "generation": view.generation,
            "experts": dict(sorted(view.digests.items())),
            "entries": sorted(view.catalog.entries),
            "stale": list(view.stale),
            "unusable": dict(view.router.unusable),
            "used": asdict(used),
            "capacity": asdict(capacity),
        }

    def _expected(self, change: ExpertChange) -> dict[str, str]:
        """The digests that stay as they are.

        Raises RequestError if the change was meant for another state.
        """
        now = self.current.digests.get(change.name)
        if now is None and (change.remove or change.replaces is not None):
            names = ", ".join(sorted(self.current.digests))
            raise RequestError(
                f"there is no expert {change.name!r}; there are: {names}", status=404, param="name"
            )
        if now is not None and now != change.replaces:
            raise RequestError(
                f"expert {change.name!r} has the digest {now}; name it to change it",
                status=409,
                param="replaces",
            )
        return {
            name: digest for name, digest in self.current.digests.items() if name != change.name
        }

    async def _load(self, name: str) -> str:
        digest = await asyncio.to_thread(self._read, name)
        self._loaded.add(digest)
        await self._engine.workers.load(name, digest)
        return digest

    def _read(self, name: str) -> str:
        """The digest of an expert on disk. Raises AdapterError."""
        library = Library.open(self.config.library.path)
        check_base(library, self.config.model.source)
        if reason := explain_licence(library, name, self.config.library.licences):
            raise LibraryError(f"expert {name!r} is not served: {reason}")
        return library.deltas(name).digest

    def _sweep(self) -> None:
        if self._sweeper is None or self._sweeper.done():
            self._sweeper = asyncio.create_task(self._unload_unused())

    async def _unload_unused(self) -> None:
        for _ in range(_UNLOAD_TRIES):
            async with self._changing:
                unused = self._unused()
                if not unused:
                    return
                for digest in unused:
                    if await self._engine.workers.unload(digest):
                        self._loaded.discard(digest)
            await self._engine.step()
            await asyncio.sleep(_UNLOAD_PAUSE_S)
        logger.error(
            "experts without a name are still in use; they go with the next change: %s", unused
        )

    def _unused(self) -> set[str]:
        self._retired = [view for view in self._retired if view.holders]
        views = [self.current, *self._retired]
        if self._staged is not None and self._staged.view is not None:
            views.append(self._staged.view)
        return self._loaded - {digest for view in views for digest in view.digests.values()}


def _make_conversations(config: ServeConfig) -> Conversations:
    return Conversations(config.server.sessions, config.server.session_idle_s)


def _log_change(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Log which experts came and went, if any did."""
    if before == now:
        return
    both = before.keys() & now.keys()
    said = {
        "added": sorted(now.keys() - both),
        "removed": sorted(before.keys() - both),
        "replaced": sorted(name for name in both if before[name] != now[name]),
    }
    logger.info("experts changed", extra=said)


def _find_readings(config: ServeConfig, layers: int) -> Path | None:
    """Return the file of what the base reads in examples, None if it is not to be kept."""
    if config.library.readings is None:
        return None
    settings = (config.model.dtype, feature_layer(layers), config.server.max_probe_tokens)
    return find_file(config.library.readings.expanduser(), source_of(config.model.source), settings)
