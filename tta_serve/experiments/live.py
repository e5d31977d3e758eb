"""What the database says of experiments and of the kill switch, as requests read it: without waiting for anything."""

import asyncio
import logging
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from router.experiments.assignment import Assigned, Request, Running, assign
from tta_serve import metrics
from tta_serve.experiments.control import KILL, Stored, weights_key
from tta_serve.store import experiments, settings
from tta_serve.store.database import Database

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Snapshot:
    """running: in the order of their names   kill: what answers everybody, None as usual"""

    running: tuple[Running, ...] = ()
    kill: str | None = None


class Live:
    """A snapshot, made anew every `refresh_s` seconds. If the database does not answer, the last one holds.

    policies: that the server has; an experiment with any other is not run here
    """

    def __init__(self, db: Database, policies: Collection[str], refresh_s: float) -> None:
        self._db, self._policies, self._refresh_s = db, policies, refresh_s
        self._refused: dict[str, int] = {}  # versions that were complained of
        self.snapshot = self._load()

    def assign(self, request: Request) -> Assigned | None:
        """The experiment and arm that a request belongs to."""
        return assign(self.snapshot.running, request, time.time())

    async def follow(self) -> None:
        """Never ends."""
        while True:
            await asyncio.sleep(self._refresh_s)
            try:
                self.snapshot = await asyncio.to_thread(self._load)
            except Exception as error:
                metrics.stale_snapshots.inc()
                logger.warning("experiments stay as they were, the store does not answer: %s", error)

    def _load(self) -> Snapshot:
        now, killed = experiments.newest(self._db), settings.get(self._db, KILL)
        metrics.killed.set(bool(killed and killed.value))
        running = [self._running(e) for e in now if e.state == "running"]
        return Snapshot(tuple(r for r in running if r is not None), killed.value if killed else None)

    def _running(self, experiment: Any) -> Running | None:
        stored = Stored.read(experiment.definition)
        definition = stored.definition
        if unknown := {arm.policy for arm in definition.arms} - set(self._policies):
            if self._refused.get(experiment.name) != experiment.version:
                self._refused[experiment.name] = experiment.version
                logger.error("experiment %s does not run: no policy %s", experiment.name, ", ".join(sorted(unknown)))
            return None
        weights = settings.get(self._db, weights_key(definition.name)) if definition.bandit else None
        return Running(definition, experiment.version, stored.stopped, weights.value if weights else None)
