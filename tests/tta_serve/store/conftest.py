"""Databases for the tests of the store, each of which runs on SQLite and on PostgreSQL."""

from collections.abc import Iterator

import pytest

from tta_serve.store.database import Database


@pytest.fixture
def db(url: str) -> Iterator[Database]:
    opened = Database(url)
    yield opened
    opened.close()
