"""A policy that decides beside the live one, after the answer, without being used."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any

from adapters.coefficient import from_json
from adapters.mix import Mix
from router.experiments.assignment import uniform
from tta_serve import metrics
from tta_serve.config import ShadowConfig
from tta_serve.experiments.journal import Entry
from tta_serve.views import View

Again = Callable[[Mix], Awaitable[dict[str, Any]]]
Write = Callable[[dict[str, Any] | None], None]
Hold = Callable[[View], AbstractContextManager[View]]


class Shadow:
    """At most `at_once` at a time; a request that would wait is left out, and counted."""

    def __init__(self, config: ShadowConfig, hold: Hold) -> None:
        """hold: keeps the experts of a view"""
        self._config, self._hold = config, hold
        self._tasks: set[asyncio.Task[None]] = set()

    def generates(self, entry: Entry) -> bool:
        """Whether the policy is to answer a request too, if it comes to that."""
        return uniform("shadow", entry.id) < self._config.share * self._config.generate

    def begin(self, entry: Entry, again: Again | None, write: Write) -> None:
        """Decide for a request, if it is one of the share. write: called once, with what was found or None"""
        config, place = self._config, uniform("shadow", entry.id)
        if entry.routed is None or entry.routed.info is None or entry.outcome != "ok" or place >= config.share:
            write(None)
        elif len(self._tasks) >= config.at_once:
            metrics.shadows.labels(config.policy, "skipped").inc()
            write(None)
        else:
            task = asyncio.create_task(self._run(entry, again, write))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, entry: Entry, again: Again | None, write: Write) -> None:
        found: dict[str, Any] | None = None
        try:
            with self._hold(entry.view):
                found = await self._found(entry, again)
        except Exception:
            metrics.shadows.labels(self._config.policy, "failed").inc()
        finally:
            write(found)

    async def _found(self, entry: Entry, again: Again | None) -> dict[str, Any]:
        assert entry.routed is not None
        assert entry.routed.info is not None
        policy = self._config.policy
        [would] = await entry.view.router.explain(entry.prompt, [policy])
        same = would.experts == entry.routed.info.experts
        metrics.shadows.labels(policy, "same" if same else "other").inc()
        metrics.shadow_passes.labels(policy).inc(would.passes)
        found = {"policy": policy, "experts": would.experts, "same": same, "ms": would.router_ms, "passes": would.passes}
        if again is not None:
            coefficients = {name: from_json(value) for name, value in would.experts.items()}
            found |= await again(entry.view.catalog.rules.entry(coefficients))
        return found
