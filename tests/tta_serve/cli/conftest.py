"""What the tests of commands share."""

import logging
from collections.abc import Iterator

import pytest

from tests.tta_serve.experiments.conftest import db  # noqa: F401 - a fixture


@pytest.fixture(autouse=True)
def quiet_loggers() -> Iterator[None]:
    """Give loggers their levels back: a command that starts servers silences them."""
    loggers = [logging.getLogger(name) for name in ("tta_serve", "ray.serve", "httpx", "httpx2")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
