"""Databases for the tests: an SQLite file for most, PostgreSQL too for what asks one directly."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tta_serve.store.database import Database


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    opened = Database(f"sqlite:///{tmp_path}/logs.db")
    yield opened
    opened.close()


@pytest.fixture
def either(url: str) -> Iterator[Database]:
    opened = Database(url)
    yield opened
    opened.close()


@pytest.fixture
def rng() -> np.random.Generator:
    """Fresh for each test, so that no test's draws depend on which others ran."""
    return np.random.default_rng(1)
