"""What is looked at every few seconds while experiments run.

That is guardrails, the weights of bandits, ends that have come, and the age of the logs.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress

from tta_serve import metrics
from tta_serve.experiments.analysis.comparisons import adjusted_moments
from tta_serve.experiments.analysis.guardrails import check_guardrail
from tta_serve.experiments.analysis.sample_ratio import check_split
from tta_serve.experiments.analysis.tallies import read_traffic, tally_metric
from tta_serve.experiments.control.lifecycle import Lifecycle
from tta_serve.experiments.design.bandit import thompson
from tta_serve.experiments.design.definition import Bandit
from tta_serve.experiments.design.stored import StoredExperiment, weights_key
from tta_serve.store import experiments, retention, settings
from tta_serve.store.database import Database
from tta_serve.store.errors import StaleError
from tta_serve.store.options import StoreOptions
from tta_serve.store.records import Experiment

logger = logging.getLogger(__name__)

_PRUNE_S = 3600.0
_SPLIT_S = 60.0


class Watchdog(threading.Thread):
    """A thread in each replica, of which the one that leads looks after experiments.

    A look that fails is tried again at the next one.
    """

    def __init__(
        self,
        db: Database,
        lifecycle: Lifecycle,
        options: StoreOptions,
        every_s: float,
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        """Make the thread; it looks once it is started.

        Args:
            every_s: The pause between two looks.
            leads: Whether this replica is the one that looks.
        """
        super().__init__(name="tta-watchdog", daemon=True)
        self._db = db
        self._lifecycle = lifecycle
        self._options = options
        self._every_s = every_s
        self._leads = leads
        self._weighed: dict[str, float] = {}  # when each bandit got its weights
        self._split_at: dict[str, float] = {}  # when each experiment's split was tested
        self._pruned = 0.0

    def run(self) -> None:
        """Look for ever."""
        while True:
            time.sleep(self._every_s)
            try:
                if self._leads():
                    self.look()
            except Exception:
                logger.exception("experiments could not be looked after")

    def look(self) -> None:
        """Look at every running experiment, once."""
        now = time.time()
        newest = experiments.list_newest(self._db)
        self._forget({one.name for one in newest if one.state == "running"})
        for experiment in newest:
            if experiment.state == "running":
                try:
                    self._look_at(experiment, now)
                except StaleError:  # changed by hand meanwhile: the next look sees that
                    continue
        if now - self._pruned > _PRUNE_S:
            self._pruned = now
            retention.prune(self._db, self._options, now)

    def _look_at(self, experiment: Experiment, now: float) -> None:
        name = experiment.name
        version = experiment.version
        stored = StoredExperiment.from_text(experiment.definition)

        # Its end.
        stop = stored.definition.stop
        if stop is not None and now >= stop:
            self._lifecycle.stop(name, version, reason="its time is over")
            return

        # Its guardrails: every arm that is stopped makes the next version.
        for arm, why in self._find_breaches(stored).items():
            version = self._lifecycle.stop(name, version, arm, why)["version"]
            metrics.arms_stopped.labels(name, arm).inc()
            logger.error(
                "experiment %s: arm %s was stopped, its units get the control: %s", name, arm, why
            )

        # Its split.
        if now - self._split_at.get(name, 0.0) >= _SPLIT_S:
            self._split_at[name] = now
            self._check_split(stored)

        # Its weights.
        bandit = stored.definition.bandit
        if bandit is not None and now - self._weighed.get(name, 0.0) >= bandit.every_s:
            self._weighed[name] = now
            self._weigh(stored, bandit)

    def _find_breaches(self, stored: StoredExperiment) -> dict[str, str]:
        """Return the arms that are to be stopped, and why."""
        definition = stored.definition
        moving = definition.bandit is not None
        breaches = {}
        for guardrail in definition.metrics.guardrails:
            tally = tally_metric(self._db, stored.span, guardrail, moving=moving)
            for result in check_guardrail(tally, guardrail, definition):
                if result.breached and result.arm not in stored.stopped:
                    breaches[result.arm] = result.why
        return breaches

    def _check_split(self, stored: StoredExperiment) -> None:
        """Say whether the arms have the units that their weights say."""
        traffic = read_traffic(self._db, stored.span)
        units = {name: arm.units for name, arm in traffic.items()}
        p = check_split(stored.definition, units, stored.stopped).p
        if p is not None:
            metrics.sample_ratio.labels(stored.definition.name).set(p)

    def _forget(self, running: Collection[str]) -> None:
        """Say nothing more of the split of experiments that have ended."""
        for name in self._split_at.keys() - running:
            del self._split_at[name]
            with suppress(KeyError):
                metrics.sample_ratio.remove(name)

    def _weigh(self, stored: StoredExperiment, bandit: Bandit) -> None:
        """Give each arm of a bandit the share that it deserves by now; a stopped one none."""
        definition = stored.definition
        primary = definition.metrics.primary
        tally = tally_metric(self._db, stored.span, primary, moving=True)
        arms = adjusted_moments(tally, primary, definition).arms

        weights = thompson(
            {name: arm for name, arm in arms.items() if name not in stored.stopped},
            share=primary.kind == "share",
            explore=bandit.explore,
            lower_is_better=primary.better == "lower",
        )
        whole = {arm.name: weights.get(arm.name, 0.0) for arm in definition.arms}
        settings.put(self._db, weights_key(definition.name), whole)
