"""Passes of the engine for policies, each made once, and its result kept for a while."""

import asyncio
import hashlib
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from torch import Tensor

from adapters.mix import Mix, MixRules
from router.decision import Prompt
from router.probing import Activations, Outputs, Window
from router.scoring.heads import Head
from tta_serve import metrics
from tta_serve.telemetry.traces import trace_step

_T = TypeVar("_T")

MOST_RESULTS = 4096


class Engine(Protocol):
    """What policies need of `tta_serve.engine.client.engine_client.EngineClient`."""

    async def features(self, text: str, *, chat: bool = False) -> Tensor: ...

    async def compare(
        self,
        prompt: Prompt,
        candidates: Sequence[Mix],
        window: Window,
        digests: Mapping[str, str],
        dense: Collection[str] = (),
    ) -> Outputs: ...

    async def activations(self, text: str) -> Activations: ...

    async def install(
        self, heads: Sequence[Head], digests: Mapping[str, str], rules: MixRules
    ) -> str: ...


async def _measured(kind: str, make: Callable[[], Awaitable[_T]]) -> _T:
    with trace_step("probe", probe=kind), metrics.probe_seconds.labels(kind).time():
        return await make()


@dataclass
class _Pass:
    task: "asyncio.Task[Any]"
    waiting: int = 0


class ProbeCache:
    """The `most` latest results, least recently used out first.

    Equal probes at the same time wait for one pass.

    A failed pass fails for all that wait for it and is not kept. A pass that nobody waits for any
    more is cancelled.
    """

    def __init__(self, most: int = MOST_RESULTS) -> None:
        self._most = most
        self._results: OrderedDict[str, Any] = OrderedDict()
        self._running: dict[str, _Pass] = {}

    async def get(self, kind: str, key: Sequence[Any], make: Callable[[], Awaitable[_T]]) -> _T:
        """Return the result of a probe, making the pass if nobody has.

        Args:
            kind: What is probed.
            key: What describes the probe completely, as JSON.
            make: Makes the pass.
        """
        make = partial(_measured, kind, make)
        digest = hashlib.sha256(json.dumps([kind, *key]).encode()).hexdigest()
        if digest in self._results:
            metrics.probe_cache.labels(kind, "hit").inc()
            self._results.move_to_end(digest)
            found: _T = self._results[digest]
            return found
        metrics.probe_cache.labels(kind, "shared" if digest in self._running else "miss").inc()
        return await self._shared(digest, make)

    async def _shared(self, digest: str, make: Callable[[], Awaitable[_T]]) -> _T:
        if digest not in self._running:
            self._running[digest] = _Pass(asyncio.create_task(self._made(digest, make)))
        running = self._running[digest]
        running.waiting += 1
        try:
            found: _T = await asyncio.shield(running.task)
            return found
        finally:
            running.waiting -= 1
            if not running.waiting:
                running.task.cancel()  # of no effect where it is done
                del self._running[digest]

    async def _made(self, digest: str, make: Callable[[], Awaitable[_T]]) -> _T:
        result = await make()
        self._results[digest] = result
        if len(self._results) > self._most:
            self._results.popitem(last=False)
        return result


class ViewProbe:
    """The engine as the policies of one view ask it: by the names that experts have there.

    A `router.probing.Probe`.

    Attributes:
        forms: The form of each expert that is no low-rank one, by name.
        passes: Rows that the engine was asked to run for this probe; what another one asked for
            costs none.
    """

    def __init__(
        self,
        engine: Engine,
        digests: Mapping[str, str],
        cache: ProbeCache,
        forms: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._engine = engine
        self.digests = digests
        self.forms = forms
        self._cache = cache
        self.passes = 0

    @property
    def dense(self) -> frozenset[str]:
        """The digests of the experts that are merged into the weights, for one mix at a time."""
        return frozenset(self.digests[name] for name, f in self.forms.items() if f == "dense")

    def counting(self) -> "ViewProbe":
        """The same probe with a count of its own."""
        return ViewProbe(self._engine, self.digests, self._cache, self.forms)

    async def features(self, text: str, *, chat: bool = False) -> Tensor:
        ask = self._pass(1, lambda: self._engine.features(text, chat=chat))
        return await self._cache.get("features", [text, chat], ask)

    async def compare(self, prompt: Prompt, candidates: Sequence[Mix], window: Window) -> Outputs:
        key = self.describe_comparison(prompt, candidates, window)
        rows = 1 + len(candidates) + (window.draft > 0)
        ask = self._pass(
            rows,
            lambda: self._engine.compare(prompt, candidates, window, self.digests, self.dense),
        )
        return await self._cache.get("compare", key, ask)

    def describe_comparison(
        self, prompt: Prompt, candidates: Sequence[Mix], window: Window
    ) -> list[Any]:
        """Return what a comparison depends on, for JSON."""
        return [
            prompt.user_turn,
            prompt.chat,
            [mix.key(self.digests) for mix in candidates],
            window.last,
            window.draft,
        ]

    async def activations(self, text: str) -> Activations:
        key = [text, sorted(set(self.digests.values()))]
        found = await self._cache.get(
            "activations", key, self._pass(1, lambda: self._engine.activations(text))
        )
        return named(found, self.digests)

    async def install(self, heads: Sequence[Head], rules: MixRules) -> str:
        """Let the engine decide by these heads inside the pass. Returns its name for them."""
        return await self._engine.install(heads, self.digests, rules)

    def _pass(self, rows: int, ask: Callable[[], Awaitable[_T]]) -> Callable[[], Awaitable[_T]]:
        def counted() -> Awaitable[_T]:
            self.passes += rows
            return ask()

        return counted


def named(found: Activations, digests: Mapping[str, str]) -> Activations:
    """Activations by digest as those of the experts of a view, at the sites that any of them has.

    Of experts that are no low-rank ones nobody knows what they read: they are not among them.
    The engine may hold more experts than a view names; what a policy sees depends on the view
    alone.
    """
    names = sorted(name for name in digests if digests[name] in found.experts)
    rows = [found.experts.index(digests[name]) for name in names]
    columns = [i for i in range(len(found.sites)) if not bool(found.norm[rows, i].isnan().all())]

    def cut(values: Tensor) -> Tensor:
        return values[rows][:, columns]

    return replace(
        found,
        experts=tuple(names),
        sites=tuple(found.sites[i] for i in columns),
        arrow=cut(found.arrow),
        spectr=cut(found.spectr),
        norm=cut(found.norm),
        residual=cut(found.residual),
        inputs=found.inputs[columns],
    )
