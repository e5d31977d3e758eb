"""Experiments as an operator changes them.

Every change names the version that it was made for, and makes the next one.
"""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from tta_serve.exceptions import RequestError
from tta_serve.experiments.design.definition import Definition, check_layers
from tta_serve.experiments.design.stored import KILL_KEY, StoredExperiment, weights_key
from tta_serve.experiments.errors import ExperimentError
from tta_serve.store import experiments, settings
from tta_serve.store.database import Database
from tta_serve.store.records import Experiment, State


class Lifecycle:
    """What an operator may do to experiments and to the kill switch. Its calls block."""

    def __init__(self, db: Database, policies: Collection[str]) -> None:
        """Work on a store.

        Args:
            policies: The names of the policies that the server has. They may be replaced at any
                time.
        """
        self._db = db
        self.policies = policies

    def list_all(self) -> dict[str, Any]:
        """Return all experiments as they are now, and what the kill switch is set to."""
        return {
            "experiments": [self._describe(one) for one in experiments.list_newest(self._db)],
            "kill": self.read_kill_switch(),
        }

    def show(self, name: str) -> dict[str, Any]:
        """Return one experiment with its history.

        Raises:
            UnknownError: There is no such experiment.
        """
        history = [
            {"version": past.version, "state": past.state, "changed": past.changed}
            for past in experiments.list_versions(self._db, name)
        ]
        return {**self._describe(experiments.get(self._db, name)), "history": history}

    def create(self, definition: Definition, *, dry_run: bool = False) -> dict[str, Any]:
        """Make a draft.

        Raises:
            RequestError: It cannot be.
            ConflictError: There is an experiment of that name.
        """
        self._check_policies(definition)
        text = StoredExperiment(definition).to_text()
        if dry_run:
            return self._describe(Experiment(definition.name, 0, "draft", text, 0.0, 0.0))
        return self._describe(experiments.create(self._db, definition.name, text))

    def change(
        self, definition: Definition, expected: int, *, dry_run: bool = False
    ) -> dict[str, Any]:
        """Change a draft into anything, or let a running experiment grow or get an end.

        Raises:
            RequestError: The change cannot be made.
            StaleError: `expected` is not the newest version.
        """
        now, stored = self._read(definition.name)
        self._check_policies(definition)
        if now.state == "stopped":
            raise RequestError("the experiment was stopped; define another", status=409)
        if now.state == "running":
            _refuse_if_wrong(lambda: stored.definition.check_change(definition))
            self._check_layers(definition)

        text = replace(stored, definition=definition).to_text()
        if dry_run:
            return self._describe(replace(now, definition=text))
        return self._describe(
            experiments.change(self._db, definition.name, expected, definition=text)
        )

    def start(self, name: str, expected: int) -> dict[str, Any]:
        """Assign units from the next version on.

        Raises:
            RequestError: It cannot be started.
            StaleError: `expected` is not the newest version.
        """
        now, stored = self._read(name)
        if now.state != "draft":
            raise RequestError(
                f"the experiment is {now.state}; only a draft is started", status=409
            )
        self._check_policies(stored.definition)
        self._check_layers(stored.definition)

        text = replace(stored, since=expected + 1).to_text()
        return self._describe(
            experiments.change(self._db, name, expected, definition=text, state="running")
        )

    def stop(
        self, name: str, expected: int, arm: str | None = None, reason: str = "by hand"
    ) -> dict[str, Any]:
        """End an experiment, or one arm, whose units get the control from then on.

        Raises:
            RequestError: There is nothing to stop.
            StaleError: `expected` is not the newest version.
        """
        now, stored = self._read(name)
        if now.state != "running":
            raise RequestError(
                f"the experiment is {now.state}; there is nothing to stop", status=409
            )

        state: State | None = "stopped"
        if arm is not None:
            _check_stoppable(stored.definition, arm)
            stored = replace(stored, stopped={**stored.stopped, arm: reason})
            state = None
        return self._describe(
            experiments.change(self._db, name, expected, definition=stored.to_text(), state=state)
        )

    def read_kill_switch(self) -> dict[str, Any] | None:
        """Return what the kill switch is set to, None if it is off."""
        found = settings.get(self._db, KILL_KEY)
        return {"to": found.value, "version": found.version} if found and found.value else None

    def set_kill_switch(
        self, to: str | None, entries: Collection[str] = ()
    ) -> dict[str, Any] | None:
        """Let every request be answered by the base or by an entry, or as usual again.

        Args:
            to: `base`, the name of an entry, or None for as usual.
            entries: The names of all entries.

        Raises:
            RequestError: There is no such entry.
        """
        if to is not None and to != "base" and to not in entries:
            raise RequestError(
                f"there is no entry {to!r}; there are: {', '.join(['base', *sorted(entries)])}",
                param="to",
            )
        settings.put(self._db, KILL_KEY, to)
        return self.read_kill_switch()

    def _read(self, name: str) -> tuple[Experiment, StoredExperiment]:
        now = experiments.get(self._db, name)
        return now, StoredExperiment.from_text(now.definition)

    def _check_policies(self, definition: Definition) -> None:
        for arm in definition.arms:
            if arm.policy not in self.policies:
                known = ", ".join(self.policies)
                raise RequestError(
                    f"arm {arm.name!r}: there is no policy {arm.policy!r}; there are: {known}",
                    param="arms",
                )

    def _check_layers(self, definition: Definition) -> None:
        running = [
            StoredExperiment.from_text(one.definition).definition
            for one in experiments.list_newest(self._db)
            if one.state == "running"
        ]
        _refuse_if_wrong(lambda: check_layers({one.name: one for one in running}, definition))

    def _describe(self, experiment: Experiment) -> dict[str, Any]:
        stored = StoredExperiment.from_text(experiment.definition)
        of_bandit = None
        if stored.definition.bandit:
            of_bandit = settings.get(self._db, weights_key(experiment.name))
        return {
            "name": experiment.name,
            "version": experiment.version,
            "state": experiment.state,
            "stopped_arms": dict(stored.stopped),
            "weights": of_bandit.value if of_bandit else stored.definition.weights,
            "definition": stored.definition.model_dump(mode="json"),
        }


def _check_stoppable(definition: Definition, arm: str) -> None:
    names = [one.name for one in definition.arms]
    if arm not in names:
        raise RequestError(f"there is no arm {arm!r}; there are: {', '.join(names)}", param="arm")
    if arm == definition.control:
        raise RequestError(
            "the control takes the units of arms that are stopped; stop the experiment instead",
            param="arm",
        )


def _refuse_if_wrong(check: Callable[[], None]) -> None:
    """Turn what a check of the design raises into the refusal of a request."""
    try:
        check()
    except ExperimentError as error:
        raise RequestError(str(error)) from None
