"""An experiment as text in the store, and the keys of what the store keeps beside it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from tta_serve.experiments.design.definition import Definition
from tta_serve.store.records import Span

KILL_KEY = "kill"
"""The key of the setting that holds what the kill switch is set to."""


def weights_key(name: str) -> str:
    """Return the key of the setting that holds the weights of a bandit."""
    return f"weights/{name}"


@dataclass(frozen=True)
class StoredExperiment:
    """What the store keeps of one version of an experiment."""

    definition: Definition
    stopped: Mapping[str, str] = field(default_factory=dict)
    """The arms without traffic, and why they have none."""
    since: int | None = None
    """The version with which it was started, None as long as it was not."""

    @property
    def span(self) -> Span:
        """The versions whose logs are of the experiment."""
        return Span(self.definition.name, self.since or 1)

    def to_text(self) -> str:
        """Return the experiment as JSON."""
        data = {
            "definition": self.definition.model_dump(mode="json"),
            "stopped": dict(self.stopped),
            "since": self.since,
        }
        return json.dumps(data, sort_keys=True)

    @classmethod
    def from_text(cls, text: str) -> "StoredExperiment":
        """Read what `to_text` wrote."""
        data = json.loads(text)
        return cls(Definition.parse(data["definition"]), data["stopped"], data["since"])
