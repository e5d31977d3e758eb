"""The configs that a server has served by since it started."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, TypeAdapter

from tta_serve.config.reload import select_reloadable
from tta_serve.config.sections import ServeConfig
from tta_serve.serving.access.quarantine import KeptText

MOST_VERSIONS = 20
"""How many are kept, the latest ones."""


class ConfigVersion(BaseModel):
    """One of them."""

    version: int
    at: datetime
    by: str
    """The label of the key that it was sent with."""
    changed: list[str]
    """The dotted places in which it differs from the one before."""
    given: dict[str, Any]
    """All that may change of it, in the form of its YAML."""


_VERSIONS = TypeAdapter(list[ConfigVersion])


class ConfigHistory:
    """What replicas that start anew serve by, and what can be gone back to.

    Args:
        text: Where it is kept.
        config: The config that the server was started with, which is version 1.
    """

    def __init__(self, text: KeptText, config: ServeConfig) -> None:
        self._text = text
        self._first = ConfigVersion(
            version=1,
            at=datetime.now(UTC),
            by="the start",
            changed=[],
            given=select_reloadable(config),
        )

    def read(self) -> list[ConfigVersion]:
        """Return the versions, the present one last."""
        text = self._text.read()
        return [self._first] if text is None else _VERSIONS.validate_json(text)

    def add(self, before: Sequence[ConfigVersion], version: ConfigVersion) -> None:
        """Keep a version after those before it."""
        self._text.write(_VERSIONS.dump_json([*before, version][-MOST_VERSIONS:]))
