"""What the database says of experiments and of the kill switch, as requests read it.

A request waits for nothing: it reads the last snapshot.
"""

import asyncio
import logging
import time
from collections.abc import Collection
from dataclasses import dataclass

from tta_serve import metrics
from tta_serve.experiments.design.assignment import (
    Assignment,
    Request,
    RunningExperiment,
    assign,
)
from tta_serve.experiments.design.stored import KILL_KEY, StoredExperiment, weights_key
from tta_serve.store import experiments, settings
from tta_serve.store.database import Database
from tta_serve.store.records import Experiment

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """What decides about requests until the next snapshot."""

    running: tuple[RunningExperiment, ...] = ()
    """The experiments that run, in the order of their names."""
    kill: str | None = None
    """What answers everybody, None for as usual."""

    @property
    def versions(self) -> dict[str, int]:
        """The version of each experiment that runs."""
        return {one.definition.name: one.version for one in self.running}


class LiveExperiments:
    """A snapshot that is made anew every `refresh_s` seconds.

    If the database does not answer, the last one holds.
    """

    def __init__(self, db: Database, policies: Collection[str], refresh_s: float) -> None:
        """Make the first snapshot.

        Args:
            policies: The names of the policies that the server has; an experiment with any other
                is not run here. They may be replaced at any time.
        """
        self._db = db
        self.policies = policies
        self._refresh_s = refresh_s
        self._refused: dict[str, int] = {}  # versions that were complained of, by name
        self.snapshot = self._load()

    def assign(self, request: Request) -> Assignment | None:
        """Return the experiment and arm that a request belongs to, None if it takes no part."""
        return assign(self.snapshot.running, request, time.time())

    async def follow(self) -> None:
        """Make snapshots for ever."""
        while True:
            await asyncio.sleep(self._refresh_s)
            try:
                before = self.snapshot
                self.snapshot = await asyncio.to_thread(self._load)
                _log_change(before, self.snapshot)
            except Exception as error:
                metrics.stale_snapshots.inc()
                logger.warning(
                    "experiments stay as they were, the store does not answer: %s", error
                )

    def _load(self) -> Snapshot:
        newest = experiments.list_newest(self._db)
        switch = settings.get(self._db, KILL_KEY)

        kill = switch.value if switch else None
        metrics.killed.set(bool(kill))
        running = [self._prepare(one) for one in newest if one.state == "running"]
        return Snapshot(tuple(one for one in running if one is not None), kill)

    def _prepare(self, experiment: Experiment) -> RunningExperiment | None:
        """Return an experiment to assign by, None if the server lacks one of its policies."""
        stored = StoredExperiment.from_text(experiment.definition)
        definition = stored.definition
        if unknown := {arm.policy for arm in definition.arms} - set(self.policies):
            self._complain(experiment, unknown)
            return None
        weights = None
        if definition.bandit:
            weights = settings.get(self._db, weights_key(definition.name))
        return RunningExperiment(
            definition, experiment.version, stored.stopped, weights.value if weights else None
        )

    def _complain(self, experiment: Experiment, unknown: Collection[str]) -> None:
        """Log once for each version that an experiment does not run."""
        if self._refused.get(experiment.name) != experiment.version:
            self._refused[experiment.name] = experiment.version
            policies = ", ".join(sorted(unknown))
            logger.error("experiment %s does not run: no policy %s", experiment.name, policies)


def _log_change(before: Snapshot, now: Snapshot) -> None:
    """Log which experiments run now, and what answers everybody, if that is news."""
    if before.kill == now.kill and before.versions == now.versions:
        return
    logger.info("experiments changed", extra={"running": now.versions, "kill": now.kill})
