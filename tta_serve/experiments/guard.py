"""What is looked at every few seconds while experiments run: guardrails, bandits, ends, and the age of the logs."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from router.experiments.bandit import thompson
from tta_serve import metrics
from tta_serve.experiments.comparing import moments
from tta_serve.experiments.control import Control, Stored, weights_key
from tta_serve.experiments.guardrails import guarded
from tta_serve.experiments.logs import tally
from tta_serve.store import experiments, retention, settings
from tta_serve.store.database import Database
from tta_serve.store.errors import StaleError
from tta_serve.store.options import StoreOptions

logger = logging.getLogger("ray.serve")

_PRUNE_S = 3600.0


class Guard(threading.Thread):
    """One in each replica, of which the one that leads looks. A look that fails is tried again at the next one."""

    def __init__(
        self, db: Database, control: Control, options: StoreOptions, every_s: float, leads: Callable[[], bool] = lambda: True
    ) -> None:
        super().__init__(name="tta-guard", daemon=True)
        self._leads = leads
        self._db, self._control, self._options, self._every_s = db, control, options, every_s
        self._weighed: dict[str, float] = {}
        self._pruned = 0.0

    def run(self) -> None:
        """Never ends."""
        while True:
            time.sleep(self._every_s)
            try:
                if self._leads():
                    self.look()
            except Exception:
                logger.exception("experiments could not be looked after")

    def look(self) -> None:
        """At every running experiment, once."""
        now = time.time()
        for experiment in experiments.newest(self._db):
            if experiment.state == "running":
                try:
                    self._look(experiment, Stored.read(experiment.definition), now)
                except StaleError:  # changed by hand meanwhile: the next look sees that
                    continue
        if now - self._pruned > _PRUNE_S:
            self._pruned = now
            retention.prune(self._db, self._options, now)

    def _look(self, experiment: Any, stored: Stored, now: float) -> None:
        name, version, definition = experiment.name, experiment.version, stored.definition
        if definition.stop is not None and now >= definition.stop:
            self._control.stop(name, version, reason="its time is over")
            return
        for arm, why in self._breaches(stored).items():
            version = self._control.stop(name, version, arm, why)["version"]
            metrics.arms_stopped.labels(name, arm).inc()
            logger.error("experiment %s: arm %s was stopped, its units get the control: %s", name, arm, why)
        bandit = definition.bandit
        if bandit is not None and now - self._weighed.get(name, 0.0) >= bandit.every_s:
            self._weighed[name] = now
            self._weigh(stored)

    def _breaches(self, stored: Stored) -> dict[str, str]:
        """Arms that are to be stopped, and why."""
        definition, span = stored.definition, stored.span
        moving, rails = definition.bandit is not None, definition.metrics.guardrails
        found = (g for rail in rails for g in guarded(tally(self._db, span, rail, moving=moving), rail, definition))
        return {g.arm: g.why for g in found if g.breached and g.arm not in stored.stopped}

    def _weigh(self, stored: Stored) -> None:
        """Give each arm of a bandit the share that it deserves by now; a stopped one none."""
        definition, primary = stored.definition, stored.definition.metrics.primary
        found = moments(tally(self._db, stored.span, primary, moving=True), primary, definition).arms
        going = {name: arm for name, arm in found.items() if name not in stored.stopped}
        assert definition.bandit is not None
        lower = primary.better == "lower"
        share = primary.kind == "share"
        weights = thompson(going, share=share, explore=definition.bandit.explore, lower_is_better=lower)
        settings.put(self._db, weights_key(definition.name), {arm.name: weights.get(arm.name, 0.0) for arm in definition.arms})
