"""What is written down of a request that an experiment acted on."""

import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from adapters.mix import Mix
from router.decision import Prompt
from tta_serve import metrics
from tta_serve.engine.client.usage import Usage
from tta_serve.experiments.design.assignment import Assignment
from tta_serve.protocol import MergeInfo
from tta_serve.serving.experts.view import View
from tta_serve.serving.routing.route import RequestRoute
from tta_serve.store import exposures, prompts, tickets
from tta_serve.store.database import Database
from tta_serve.store.options import StoreOptions
from tta_serve.store.records import Exposure, PromptText
from tta_serve.store.write_behind import Log

_CLOSE_S = 5.0

AnswerAgain = Callable[[Mix], Awaitable[dict[str, Any]]]


@dataclass
class RequestRecord:
    """What is known of a request on its way, filled as it goes on."""

    view: View
    """What it sees of the library."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Its own."""
    began: float = field(default_factory=time.perf_counter)
    """By the monotonic clock."""
    usage: Usage = field(default_factory=Usage)
    prompt: Prompt = field(default_factory=lambda: Prompt(""))
    assigned: Assignment | None = None
    route: RequestRoute | None = None
    """The route of the first of its prompts, which stands for all in the logs."""
    answer_again: AnswerAgain | None = None
    """Answers it with another mix, unseen; None if it never came to the engine."""
    outcome: str = "ok"
    """How it ended, as `metrics.requests` counts it."""

    @property
    def info(self) -> MergeInfo | None:
        """What was decided for it, None if nothing was."""
        return self.route.info if self.route else None


class Journal:
    """Never makes a request wait: rows go through bounded queues to the database."""

    def __init__(self, db: Database, options: StoreOptions) -> None:
        self._secret = tickets.secret_of(db)
        self._rows: Log[Exposure] = Log(lambda rows: exposures.write(db, rows))
        self._texts: Log[PromptText] | None = (
            Log(lambda rows: prompts.write(db, rows)) if options.prompts else None
        )
        metrics.exposures_dropped.set_function(lambda: self._rows.dropped)
        metrics.exposures_waiting.set_function(lambda: len(self._rows))

    def ticket(self, record: RequestRecord) -> str:
        """The id under which the request's outcomes are to be sent."""
        return tickets.issue(self._secret, record.id, time.time())

    def close(self) -> None:
        """Write what waits."""
        self._rows.close(_CLOSE_S)
        if self._texts is not None:
            self._texts.close(_CLOSE_S)

    def write(self, record: RequestRecord, shadow: dict[str, Any] | None) -> None:
        """A request has ended.

        Args:
            shadow: What another policy would have done.
        """
        assigned = record.assigned
        usage = record.usage
        info = record.info
        if assigned is None or info is None:  # no experiment, or no arm acted
            return
        row = Exposure(
            request_id=record.id,
            experiment=assigned.experiment,
            version=assigned.version,
            arm=assigned.arm,
            unit=assigned.unit,
            policy=assigned.policy,
            policy_version=record.view.versions[assigned.policy],
            mix=info.mix,
            propensity=assigned.propensity,
            abstained=info.abstained,
            fallback=info.fallback,
            router_ms=info.router_ms,
            ttft_ms=None if usage.first is None else 1e3 * (usage.first - record.began),
            total_ms=1e3 * (time.perf_counter() - record.began),
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            finish_reason=usage.finish_reason,
            outcome=record.outcome,
            shadow=shadow,
            time=time.time(),
        )
        self._rows.put(row)
        metrics.exposures.labels(assigned.experiment, assigned.arm).inc()
        if self._texts is not None:
            self._texts.put(PromptText(record.id, record.prompt.user_turn, time.time()))
