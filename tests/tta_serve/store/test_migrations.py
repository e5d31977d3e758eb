"""Databases of every version there was become those of today, with what is in them."""

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from tests.factories.exposures import SOME, read_exposures
from tta_serve.exceptions import ConfigError
from tta_serve.store import experiments, settings
from tta_serve.store.database import Database
from tta_serve.store.records import Experiment, Setting, Span
from tta_serve.store.schema import metadata

VERSION_1 = """
CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL,
    CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num));
INSERT INTO alembic_version VALUES ('1');
CREATE TABLE experiments (
    name TEXT NOT NULL, version INTEGER NOT NULL, created {double} NOT NULL,
    CONSTRAINT pk_experiments PRIMARY KEY (name));
CREATE TABLE experiment_versions (
    name TEXT NOT NULL, version INTEGER NOT NULL, state TEXT NOT NULL, definition TEXT NOT NULL,
    changed {double} NOT NULL,
    CONSTRAINT pk_experiment_versions PRIMARY KEY (name, version),
    CONSTRAINT fk_experiment_versions_name FOREIGN KEY (name) REFERENCES experiments (name),
    CONSTRAINT ck_experiment_versions_state CHECK (state IN ('draft', 'running', 'stopped')));
CREATE TABLE exposures (
    request_id TEXT NOT NULL, experiment TEXT NOT NULL, version INTEGER NOT NULL, arm TEXT NOT NULL,
    unit TEXT {collate} NOT NULL, policy TEXT NOT NULL, policy_version TEXT NOT NULL,
    mix TEXT NOT NULL, propensity {double} NOT NULL, abstained BOOLEAN NOT NULL, fallback TEXT,
    router_ms {double} NOT NULL, ttft_ms {double}, total_ms {double} NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL, finish_reason TEXT, outcome TEXT NOT NULL, shadow JSON,
    time {double} NOT NULL,
    CONSTRAINT pk_exposures PRIMARY KEY (request_id));
CREATE INDEX ix_exposures_experiment_unit_arm ON exposures (experiment, unit, arm);
CREATE INDEX ix_exposures_time ON exposures (time);
CREATE TABLE outcomes (
    request_id TEXT NOT NULL, metric TEXT NOT NULL, value {double} NOT NULL, time {double} NOT NULL,
    idempotency_key TEXT,
    CONSTRAINT pk_outcomes PRIMARY KEY (request_id, metric),
    CONSTRAINT uq_outcomes_idempotency_key UNIQUE (idempotency_key));
CREATE INDEX ix_outcomes_time ON outcomes (time);
CREATE TABLE settings (
    key TEXT NOT NULL, value JSON NOT NULL, version INTEGER NOT NULL,
    CONSTRAINT pk_settings PRIMARY KEY (key));
CREATE TABLE prompts (
    request_id TEXT NOT NULL, text TEXT NOT NULL, time {double} NOT NULL,
    CONSTRAINT pk_prompts PRIMARY KEY (request_id));
CREATE INDEX ix_prompts_time ON prompts (time);
INSERT INTO experiments VALUES ('routing', 2, 10.5);
INSERT INTO experiment_versions VALUES ('routing', 1, 'draft', '{{}}', 10.5),
    ('routing', 2, 'running', '[1]', 20.25);
INSERT INTO exposures VALUES ('chatcmpl-1', 'routing', 1, 'gate', '5f2d', 'gate', '3',
    '598c2545a1589462', 0.5, false, NULL, 0.6, NULL, 120.0, 51, 12, NULL, 'ok', NULL, 1000.0);
INSERT INTO outcomes VALUES ('chatcmpl-1', 'score', 0.75, 1001.0, NULL);
INSERT INTO settings VALUES ('kill_switch', '{{"entry": "base"}}', 4)
"""


def _run(url: str, script: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in script.split(";\n"):
            connection.exec_driver_sql(statement)
    engine.dispose()


def _differences(db: Database) -> list[object]:
    """What a migration still had to do to make the database that the tables describe."""
    with db.read() as connection:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))


def test_the_migrations_make_the_tables(db: Database) -> None:
    assert _differences(db) == []


def test_a_database_of_version_1_is_taken_over(url: str) -> None:
    words = ("", "DOUBLE") if url.startswith("sqlite") else ('COLLATE "C"', "DOUBLE PRECISION")
    _run(url, VERSION_1.format(collate=words[0], double=words[1]))
    db = Database(url)
    assert _differences(db) == []
    assert experiments.list_versions(db, "routing") == [
        Experiment("routing", 1, "draft", "{}", 10.5, 10.5),
        Experiment("routing", 2, "running", "[1]", 10.5, 20.25),
    ]
    assert list(read_exposures(db, Span("routing"), "score")) == [(SOME, 0.75)]
    assert settings.get(db, "kill_switch") == Setting("kill_switch", {"entry": "base"}, 4)
    db.close()


def test_a_database_of_a_newer_version_is_refused(url: str) -> None:
    Database(url).close()
    _run(url, "UPDATE alembic_version SET version_num = 'of tomorrow'")
    with pytest.raises(ConfigError, match="a newer version of this program made it"):
        Database(url)


def test_half_a_migration_leaves_nothing(url: str) -> None:
    _run(url, "CREATE TABLE prompts (number INTEGER)")  # in the way of the last table
    with pytest.raises(ConfigError, match="prompts"):
        Database(url)
    _run(url, "DROP TABLE prompts")
    db = Database(url)
    assert _differences(db) == []
    db.close()
