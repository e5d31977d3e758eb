"""A replica's part in experiments: who decides a request, and what becomes of it."""

import asyncio
from contextlib import suppress
from dataclasses import replace
from functools import partial

from router.experiments.assignment import Request
from tta_serve.catalog import Ask
from tta_serve.config import ServeConfig
from tta_serve.experiments.journal import Entry, Journal
from tta_serve.experiments.live import Live
from tta_serve.experiments.shadow import Again, Hold, Shadow
from tta_serve.serving.request import GenerateRequest
from tta_serve.store.database import Database


class Trials:
    """Of a server with a store."""

    def __init__(self, config: ServeConfig, db: Database, hold: Hold) -> None:
        assert config.store is not None
        self._db = db
        self._labels = {digest: label for label, digest in config.experiments.api_keys.items()}
        self._live = Live(db, config.policies.keys(), config.experiments.refresh_s)
        self._journal = Journal(db, config.store)
        self._shadow = Shadow(config.experiments.shadow, hold) if config.experiments.shadow else None
        self._following = asyncio.create_task(self._live.follow())

    def ask(self, ask: Ask, request: GenerateRequest, entry: Entry) -> Ask:
        """What decides the request instead of what it asks for: the kill switch, or the arm of an experiment."""
        kill, catalog = self._live.snapshot.kill, entry.view.catalog
        if kill is not None:
            return Ask("kill", mix=catalog.pinned(kill if kill in catalog.entries else "base"), warnings=ask.warnings)
        if not ask.free:
            return ask
        label = self._labels.get(request.tenant or "")
        model = request.model or "auto"
        entry.assigned = self._live.assign(Request(entry.id, request.user, request.session, model, request.headers, label))
        if entry.assigned is None:
            return ask
        name, arm = entry.assigned.policy, f"{entry.assigned.experiment}/{entry.assigned.arm}"
        return replace(ask, label=name, policy=name, arm=arm, ticket=self._journal.ticket(entry))

    def ended(self, entry: Entry, again: Again | None) -> None:
        """A request is over. again: answers it with another mix, unseen; None if it never came to the engine"""
        write = partial(self._journal.write, entry)
        if self._shadow is None:
            write(None)
        else:
            self._shadow.begin(entry, again if self._shadow.generates(entry) else None, write)

    def close(self) -> None:
        """Write what waits."""
        with suppress(RuntimeError):  # the loop may be closed already
            self._following.cancel()
        self._journal.close()
        self._db.close()
