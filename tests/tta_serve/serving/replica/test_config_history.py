"""The configs that a server has served by, kept for replicas that start."""

from datetime import UTC, datetime

from tests.factories.kept_text import MemoryText
from tta_serve.config.sections import ServeConfig
from tta_serve.serving.replica.config_history import (
    MOST_VERSIONS,
    ConfigHistory,
    ConfigVersion,
)


def test_the_latest_versions_are_kept_and_no_secret_of_the_store() -> None:
    config = ServeConfig.model_validate(
        {
            "model": {"id": "demo", "source": "x"},
            "library": {"path": "x"},
            "default_policy": "base",
            "store": {"url": "postgresql://tta:secret@db.example/tta"},
        }
    )
    text = MemoryText()
    history = ConfigHistory(text, config)
    [first] = history.read()
    assert (first.version, first.by, first.changed) == (1, "the start", [])

    for version in range(2, MOST_VERSIONS + 5):
        new = ConfigVersion(
            version=version, at=datetime.now(UTC), by="me", changed=["mix"], given=first.given
        )
        history.add(history.read(), new)
    again = ConfigHistory(text, config).read()
    assert [one.version for one in again] == list(range(5, MOST_VERSIONS + 5))
    assert again[-1] == new
    assert b"secret" not in (text.text or b"")
