"""Opening databases, and what is refused."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import insert, text
from sqlalchemy.exc import IntegrityError, StatementError

from tests.factories.exposures import SOME, exposure, read_exposures
from tta_serve.exceptions import ConfigError
from tta_serve.store import experiments, exposures
from tta_serve.store.database import Database
from tta_serve.store.records import Span
from tta_serve.store.schema import experiment_versions


def test_what_is_written_is_there_when_it_is_opened_again(url: str) -> None:
    full = exposure(
        fallback="base",
        ttft_ms=40.5,
        finish_reason="stop",
        abstained=True,
        shadow={"gate": {"sql": 0.7}, "é": None},
    )
    for rows in (
        [full, exposure(request_id="2", time=2000.0)],
        [exposure(arm="another"), exposure(request_id="3", time=3000.0)],
    ):
        db = Database(url)
        exposures.write(db, rows)
        db.close()
    db = Database(url)
    found = [row for row, _ in read_exposures(db, Span("routing"), "total_ms")]
    db.close()
    assert found == [
        full,
        exposure(request_id="2", time=2000.0),
        exposure(request_id="3", time=3000.0),
    ]


def test_a_batch_is_written_whole_or_not_at_all(db: Database) -> None:
    exposures.write(db, [SOME])
    for bad in ({"shadow": {"a": float("nan")}}, {"arm": None}):
        with pytest.raises((StatementError, ValueError)):
            exposures.write(db, [exposure(request_id="2"), exposure(request_id="3", **bad)])
    assert [row for row, _ in read_exposures(db, Span("routing"), "total_ms")] == [SOME]


def test_foreign_keys_hold(db: Database) -> None:
    row = {"name": "nobody's", "version": 1, "state": "draft", "definition": "{}", "changed": 0.0}
    with pytest.raises(IntegrityError), db.write() as connection:
        connection.execute(insert(experiment_versions).values(row))


def test_no_other_state_is_stored(db: Database) -> None:
    experiments.create(db, "a", "{}")
    with pytest.raises(IntegrityError):
        experiments.change(db, "a", 1, state="paused")  # type: ignore[arg-type]
    assert experiments.get(db, "a").version == 1


def test_sqlite_is_in_wal_mode(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path}/a.db")
    with db.read() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 2
    db.close()


def test_a_reader_does_not_hold_a_writer_up_and_the_other_way_round(db: Database) -> None:
    exposures.write(db, [SOME])
    reading = read_exposures(db, Span("routing"), "total_ms")
    assert next(reading)[0] == SOME
    exposures.write(db, [exposure(request_id="2")])
    with db.write() as connection:
        connection.execute(text("DELETE FROM exposures"))
        assert len(list(read_exposures(db, Span("routing"), "total_ms"))) == 2
    assert list(read_exposures(db, Span("routing"), "total_ms")) == []


def test_replicas_may_open_a_new_database_at_once(url: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        opened = list(pool.map(Database, [url] * 6))
    assert len([experiments.create(db, f"of {i}", "{}") for i, db in enumerate(opened)]) == 6
    assert len(experiments.list_newest(opened[0])) == 6
    for db in opened:
        db.close()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("tta.db", "sqlite:///PATH or postgresql://"),
        ("mysql://localhost/tta", "there is no store on mysql"),
        ("postgresql+psycopg2://localhost/tta", "there is no store on postgresql\\+psycopg2"),
        ("sqlite://", "in memory would be lost"),
        ("sqlite:///:memory:", "in memory would be lost"),
        ("sqlite:////nowhere/at/all/tta.db", "unable to open"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused(url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Database(url)


def test_a_server_that_is_not_there_is_refused_without_showing_the_password() -> None:
    with pytest.raises(
        ConfigError, match=r"postgresql://me:\*\*\*@127.0.0.1:1/tta cannot be used: .*refused"
    ) as error:
        Database("postgresql://me:sesame@127.0.0.1:1/tta")
    assert "sesame" not in str(error.value)
