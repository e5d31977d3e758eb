"""What is written down of a request that an experiment acted on."""

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from router.experiments.assignment import Assigned
from router.policy import Prompt
from tta_serve import metrics
from tta_serve.decided import Routed
from tta_serve.engine.usage import Usage
from tta_serve.store import exposures, prompts, tickets
from tta_serve.store.database import Database
from tta_serve.store.log import Log
from tta_serve.store.options import StoreOptions
from tta_serve.store.records import Exposure, PromptText
from tta_serve.views import View

_CLOSE_S = 5.0


@dataclass
class Entry:
    """A request on its way, filled as it goes on.

    id: its own   began: by the monotonic clock   outcome: as `metrics.requests` counts it
    prompt, routed: of the first of its prompts, which stands for all in the logs
    """

    view: View
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    began: float = field(default_factory=time.perf_counter)
    usage: Usage = field(default_factory=Usage)
    prompt: Prompt = field(default_factory=lambda: Prompt(""))
    assigned: Assigned | None = None
    routed: Routed | None = None
    outcome: str = "ok"


class Journal:
    """Never makes a request wait: rows go through bounded queues to the database."""

    def __init__(self, db: Database, options: StoreOptions) -> None:
        self._secret = tickets.secret_of(db)
        self._rows: Log[Exposure] = Log(lambda rows: exposures.write(db, rows))
        self._texts: Log[PromptText] | None = Log(lambda rows: prompts.write(db, rows)) if options.prompts else None
        metrics.exposures_dropped.set_function(lambda: self._rows.dropped)
        metrics.exposures_waiting.set_function(lambda: len(self._rows))

    def ticket(self, entry: Entry) -> str:
        """The id under which the request's outcomes are to be sent."""
        return tickets.issue(self._secret, entry.id, time.time())

    def close(self) -> None:
        """Write what waits."""
        self._rows.close(_CLOSE_S)
        if self._texts is not None:
            self._texts.close(_CLOSE_S)

    def write(self, entry: Entry, shadow: dict[str, Any] | None) -> None:
        """A request has ended. shadow: what another policy would have done"""
        assigned, usage, info = entry.assigned, entry.usage, entry.routed.info if entry.routed else None
        if assigned is None or info is None:  # no experiment, or no arm acted
            return
        row = Exposure(
            request_id=entry.id,
            experiment=assigned.experiment,
            version=assigned.version,
            arm=assigned.arm,
            unit=assigned.unit,
            policy=assigned.policy,
            policy_version=entry.view.versions[assigned.policy],
            mix=info.mix,
            propensity=assigned.propensity,
            abstained=info.abstained,
            fallback=info.fallback,
            router_ms=info.router_ms,
            ttft_ms=None if usage.first is None else 1e3 * (usage.first - entry.began),
            total_ms=1e3 * (time.perf_counter() - entry.began),
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            finish_reason=usage.finish_reason,
            outcome=entry.outcome,
            shadow=shadow,
            time=time.time(),
        )
        self._rows.put(row)
        metrics.exposures.labels(assigned.experiment, assigned.arm).inc()
        if self._texts is not None:
            self._texts.put(PromptText(entry.id, entry.prompt.user_turn, time.time()))
