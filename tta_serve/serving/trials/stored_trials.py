"""A replica's part in experiments: who decides a request, and what is written down of it."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

from tta_serve import metrics
from tta_serve.config.sections import ServeConfig
from tta_serve.exceptions import RequestError
from tta_serve.experiments.control.snapshot import LiveExperiments
from tta_serve.experiments.design.assignment import Request
from tta_serve.serving.experts.view import View
from tta_serve.serving.reading.catalog import Catalog, Wish
from tta_serve.serving.reading.request import GenerateRequest
from tta_serve.serving.trials.shadow import Hold, Shadow
from tta_serve.serving.trials.trials import RequestRecord, Trials
from tta_serve.store import exposures, prompts, tickets
from tta_serve.store.database import Database
from tta_serve.store.options import StoreOptions
from tta_serve.store.records import Exposure, PromptText
from tta_serve.store.write_behind import Log

_CLOSE_S = 5.0


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
        _count(row)
        if self._texts is not None:
            self._texts.put(PromptText(record.id, record.prompt.user_turn, time.time()))


class StoredTrials(Trials):
    """The trials of a server with a store."""

    def __init__(self, config: ServeConfig, db: Database, hold: Hold) -> None:
        """Begins to follow the experiments in the store.

        Args:
            hold: Keeps the experts of a view for as long as a shadow policy needs them.
        """
        assert config.store is not None
        self._db = db
        self._live = LiveExperiments(db, config.policies.keys(), config.experiments.refresh_s)
        self._journal = Journal(db, config.store)
        self._hold = hold
        self._shadow = self._make_shadow(config)
        self._following = asyncio.create_task(self._live.follow())

    @contextmanager
    def follow(self, view: View) -> Iterator[RequestRecord]:
        record = RequestRecord(view)
        try:
            yield record
        finally:
            self._end(record)

    def decide(self, wish: Wish, request: GenerateRequest, record: RequestRecord) -> Wish:
        catalog = record.view.catalog
        if self._live.snapshot.kill is not None:
            return _kill(self._live.snapshot.kill, catalog, wish)
        if not wish.free or record.view.tenant is not None:  # it has policies of its own
            return wish

        record.assigned = self._live.assign(self._unit(request, record))
        if record.assigned is None:
            return wish
        policy = record.assigned.policy
        arm = f"{record.assigned.experiment}/{record.assigned.arm}"
        ticket = self._journal.ticket(record)
        return replace(wish, label=policy, policy=policy, arm=arm, ticket=ticket)

    def check(self, config: ServeConfig) -> None:
        for experiment in self._live.snapshot.running:
            definition = experiment.definition
            if lost := {arm.policy for arm in definition.arms} - config.policies.keys():
                raise RequestError(
                    f"experiment {definition.name!r} runs with the policy"
                    f" {', '.join(sorted(lost))}; stop it before its policy goes",
                    status=409,
                    param="policies",
                )

    def follow_config(self, config: ServeConfig) -> None:
        self._live.policies = config.policies.keys()
        self._shadow = self._make_shadow(config)

    def close(self) -> None:
        with suppress(RuntimeError):  # the loop may be closed already
            self._following.cancel()
        self._journal.close()
        self._db.close()

    def _make_shadow(self, config: ServeConfig) -> Shadow | None:
        shadow = config.experiments.shadow
        return Shadow(shadow, self._hold) if shadow else None

    def _unit(self, request: GenerateRequest, record: RequestRecord) -> Request:
        label = request.caller.label
        model = request.model or "auto"
        return Request(record.id, request.user, request.session, model, request.headers, label)

    def _end(self, record: RequestRecord) -> None:
        write = partial(self._journal.write, record)
        if self._shadow is None or record.view.tenant is not None:
            write(None)
        else:
            again = record.answer_again if self._shadow.generates(record) else None
            self._shadow.begin(record, again, write)


def _count(row: Exposure) -> None:
    metrics.exposures.labels(row.experiment, row.arm, row.outcome).inc()
    if row.ttft_ms is not None:
        metrics.arm_first_token_seconds.labels(row.experiment, row.arm).observe(row.ttft_ms / 1e3)


def _kill(entry: str, catalog: Catalog, wish: Wish) -> Wish:
    """Return what the kill switch answers all requests with: its entry, or the base."""
    mix = catalog.pinned(entry if entry in catalog.entries else "base")
    return Wish("kill", mix=mix, warnings=wish.warnings)
