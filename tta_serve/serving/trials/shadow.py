"""A policy that decides beside the live one, after the answer, without being used."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from adapters.coefficient import from_json
from tta_serve import metrics
from tta_serve.config.sections import ShadowConfig
from tta_serve.experiments.design.assignment import uniform
from tta_serve.serving.experts.view import View
from tta_serve.serving.trials.trials import AnswerAgain, RequestRecord

Write = Callable[[dict[str, Any] | None], None]
Hold = Callable[[View], AbstractContextManager[View]]


class Shadow:
    """At most `at_once` at a time; a request that would wait is left out, and counted."""

    def __init__(self, config: ShadowConfig, hold: Hold) -> None:
        """Begin with no shadow running.

        Args:
            hold: Keeps the experts of a view.
        """
        self._config = config
        self._hold = hold
        self._tasks: set[asyncio.Task[None]] = set()

    def generates(self, record: RequestRecord) -> bool:
        """Whether the policy is to answer a request too, if it comes to that."""
        return uniform("shadow", record.id) < self._config.share * self._config.generate

    def begin(self, record: RequestRecord, again: AnswerAgain | None, write: Write) -> None:
        """Decide for a request, if it is one of the share.

        Args:
            write: Called once, with what was found or None.
        """
        config = self._config
        place = uniform("shadow", record.id)
        if record.info is None or record.outcome != "ok" or place >= config.share:
            write(None)
        elif len(self._tasks) >= config.at_once:
            metrics.shadows.labels(config.policy, "skipped").inc()
            write(None)
        else:
            task = asyncio.create_task(self._run(record, again, write))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, record: RequestRecord, again: AnswerAgain | None, write: Write) -> None:
        found: dict[str, Any] | None = None
        try:
            with self._hold(record.view):
                found = await self._found(record, again)
        except Exception:
            metrics.shadows.labels(self._config.policy, "failed").inc()
        finally:
            write(found)

    async def _found(self, record: RequestRecord, again: AnswerAgain | None) -> dict[str, Any]:
        assert record.info is not None
        policy = self._config.policy
        [would] = await record.view.router.explain(record.prompt, [policy])
        same = would.experts == record.info.experts
        metrics.shadows.labels(policy, "same" if same else "other").inc()
        metrics.shadow_passes.labels(policy).inc(would.passes)
        found = {
            "policy": policy,
            "experts": would.experts,
            "same": same,
            "ms": would.router_ms,
            "passes": would.passes,
        }
        if again is not None:
            coefficients = {name: from_json(value) for name, value in would.experts.items()}
            found |= await again(record.view.catalog.rules.entry(coefficients))
        return found
