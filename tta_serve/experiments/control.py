"""Experiments as an operator changes them: every change names the version it was made for, and makes the next one."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from router.experiments.definition import Definition, check_layers
from router.policy import RouterError
from tta_serve.protocol import RequestError
from tta_serve.store import experiments, settings
from tta_serve.store.database import Database
from tta_serve.store.measures import Span
from tta_serve.store.records import Experiment, State

KILL = "kill"


@dataclass(frozen=True)
class Stored:
    """What the store keeps of a version. stopped: arms without traffic, and why   since: the version that was started first"""

    definition: Definition
    stopped: Mapping[str, str] = field(default_factory=dict)
    since: int | None = None

    @property
    def span(self) -> Span:
        """The versions whose logs are of it."""
        return Span(self.definition.name, self.since or 1)

    def text(self) -> str:
        said = {"definition": self.definition.model_dump(mode="json"), "stopped": dict(self.stopped), "since": self.since}
        return json.dumps(said, sort_keys=True)

    @classmethod
    def read(cls, text: str) -> "Stored":
        said = json.loads(text)
        return cls(Definition.parse(said["definition"]), said["stopped"], said["since"])


def weights_key(name: str) -> str:
    """Of the setting that holds a bandit's weights."""
    return f"weights/{name}"


class Control:
    """Its calls block. policies: that the server has"""

    def __init__(self, db: Database, policies: Collection[str]) -> None:
        self._db = db
        self._policies = policies

    def listed(self) -> dict[str, Any]:
        """All experiments as they are now, and what the kill switch is set to."""
        return {"experiments": [self._shown(e) for e in experiments.newest(self._db)], "kill": self.killed()}

    def shown(self, name: str) -> dict[str, Any]:
        """One experiment with its history. Raises UnknownError."""
        past = [{"version": e.version, "state": e.state, "changed": e.changed} for e in experiments.history(self._db, name)]
        return {**self._shown(experiments.get(self._db, name)), "history": past}

    def create(self, definition: Definition, *, dry_run: bool = False) -> dict[str, Any]:
        """A draft. Raises RequestError if it cannot be, ConflictError if there is one of that name."""
        self._check(definition)
        text = Stored(definition).text()
        if dry_run:
            return self._shown(Experiment(definition.name, 0, "draft", text, 0.0, 0.0))
        return self._shown(experiments.create(self._db, definition.name, text))

    def change(self, definition: Definition, expected: int, *, dry_run: bool = False) -> dict[str, Any]:
        """A draft may become anything; a running experiment may grow and get an end. Raises RequestError, StaleError."""
        now, stored = self._at(definition.name)
        self._check(definition)
        if now.state == "stopped":
            raise RequestError("the experiment was stopped; define another", status=409)
        if now.state == "running":
            _refused(lambda: stored.definition.may_become(definition))
            self._check_layers(definition)
        after = replace(stored, definition=definition).text()
        if dry_run:
            return self._shown(replace(now, definition=after))
        return self._shown(experiments.change(self._db, definition.name, expected, definition=after))

    def start(self, name: str, expected: int) -> dict[str, Any]:
        """From the next version on, units are assigned. Raises RequestError, StaleError."""
        now, stored = self._at(name)
        if now.state != "draft":
            raise RequestError(f"the experiment is {now.state}; only a draft is started", status=409)
        self._check(stored.definition)
        self._check_layers(stored.definition)
        text = replace(stored, since=expected + 1).text()
        return self._shown(experiments.change(self._db, name, expected, definition=text, state="running"))

    def stop(self, name: str, expected: int, arm: str | None = None, reason: str = "by hand") -> dict[str, Any]:
        """End an experiment, or one arm, whose units get the control from then on. Raises RequestError, StaleError."""
        now, stored = self._at(name)
        if now.state != "running":
            raise RequestError(f"the experiment is {now.state}; there is nothing to stop", status=409)
        state: State | None = "stopped"
        if arm is not None:
            names = [one.name for one in stored.definition.arms]
            if arm not in names:
                raise RequestError(f"there is no arm {arm!r}; there are: {', '.join(names)}", param="arm")
            if arm == stored.definition.control:
                raise RequestError(
                    "the control takes the units of arms that are stopped; stop the experiment instead", param="arm"
                )
            stored, state = replace(stored, stopped={**stored.stopped, arm: reason}), None
        return self._shown(experiments.change(self._db, name, expected, definition=stored.text(), state=state))

    def killed(self) -> dict[str, Any] | None:
        """What the kill switch is set to, None if it is off."""
        found = settings.get(self._db, KILL)
        return {"to": found.value, "version": found.version} if found and found.value else None

    def kill(self, to: str | None, entries: Collection[str] = ()) -> dict[str, Any] | None:
        """Answer every request with the base or with an entry; None: as usual. Raises RequestError for an unknown entry."""
        if to is not None and to != "base" and to not in entries:
            raise RequestError(f"there is no entry {to!r}; there are: {', '.join(['base', *sorted(entries)])}", param="to")
        settings.put(self._db, KILL, to)
        return self.killed()

    def _at(self, name: str) -> tuple[Experiment, Stored]:
        now = experiments.get(self._db, name)
        return now, Stored.read(now.definition)

    def _check(self, definition: Definition) -> None:
        for arm in definition.arms:
            if arm.policy not in self._policies:
                known = ", ".join(self._policies)
                raise RequestError(f"arm {arm.name!r}: there is no policy {arm.policy!r}; there are: {known}", param="arms")

    def _check_layers(self, definition: Definition) -> None:
        running = [Stored.read(e.definition).definition for e in experiments.newest(self._db) if e.state == "running"]
        _refused(lambda: check_layers({d.name: d for d in running}, definition))

    def _shown(self, experiment: Experiment) -> dict[str, Any]:
        stored = Stored.read(experiment.definition)
        weights = settings.get(self._db, weights_key(experiment.name)) if stored.definition.bandit else None
        return {
            "name": experiment.name,
            "version": experiment.version,
            "state": experiment.state,
            "stopped_arms": dict(stored.stopped),
            "weights": weights.value if weights else stored.definition.weights,
            "definition": stored.definition.model_dump(mode="json"),
        }


def _refused(check: Callable[[], None]) -> None:
    try:
        check()
    except RouterError as error:
        raise RequestError(str(error)) from None
