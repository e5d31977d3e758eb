"""A replica's part in experiments: who decides a request, and what becomes of it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial

from tta_serve.config.sections import ServeConfig
from tta_serve.experiments.control.snapshot import LiveExperiments
from tta_serve.experiments.design.assignment import Request
from tta_serve.serving.experts.view import View
from tta_serve.serving.reading.catalog import Catalog, Wish
from tta_serve.serving.reading.request import GenerateRequest
from tta_serve.serving.trials.journal import Journal, RequestRecord
from tta_serve.serving.trials.shadow import Hold, Shadow
from tta_serve.store.database import Database


class Trials:
    """The trials of a server without a store: there are no experiments."""

    @contextmanager
    def follow(self, view: View) -> Iterator[RequestRecord]:
        """Keep a record of a request for as long as the block lasts, and write it down then."""
        yield RequestRecord(view)

    def decide(self, wish: Wish, request: GenerateRequest, record: RequestRecord) -> Wish:
        """Return what decides a request: its own wish, the kill switch, or an experiment's arm."""
        return wish

    def close(self) -> None:
        """Write what waits."""


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
        shadow = config.experiments.shadow
        self._shadow = Shadow(shadow, hold) if shadow else None
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

    def close(self) -> None:
        with suppress(RuntimeError):  # the loop may be closed already
            self._following.cancel()
        self._journal.close()
        self._db.close()

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


def _kill(entry: str, catalog: Catalog, wish: Wish) -> Wish:
    """Return what the kill switch answers all requests with: its entry, or the base."""
    mix = catalog.pinned(entry if entry in catalog.entries else "base")
    return Wish("kill", mix=mix, warnings=wish.warnings)
