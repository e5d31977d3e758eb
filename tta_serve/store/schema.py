"""The tables, as SQLAlchemy knows them.

All times are UTC, in seconds since 1970. A change here needs a migration.
"""

from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.types import TypeEngine

# Ordered by code point in both databases, so that streams ordered by unit can be joined in Python.
ORDERED_TEXT = Text().with_variant(Text(collation="C"), "postgresql")

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)


def _required(name: str, kind: type[TypeEngine[Any]]) -> Column[Any]:
    return Column(name, kind, nullable=False)


experiments = Table(
    "experiments",
    metadata,
    Column("name", Text, primary_key=True),
    _required("version", Integer),
    _required("created", Double),
)

experiment_versions = Table(
    "experiment_versions",
    metadata,
    Column("name", Text, ForeignKey(experiments.c.name), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    _required("state", Text),
    _required("definition", Text),
    _required("changed", Double),
    CheckConstraint("state IN ('draft', 'running', 'stopped')", name="state"),
)

exposures = Table(
    "exposures",
    metadata,
    Column("request_id", Text, primary_key=True),
    _required("experiment", Text),
    _required("version", Integer),
    _required("arm", Text),
    Column("unit", ORDERED_TEXT, nullable=False),
    _required("policy", Text),
    _required("policy_version", Text),
    _required("mix", Text),
    _required("propensity", Double),
    _required("abstained", Boolean),
    Column("fallback", Text),
    _required("router_ms", Double),
    Column("ttft_ms", Double),
    _required("total_ms", Double),
    _required("prompt_tokens", Integer),
    _required("completion_tokens", Integer),
    Column("finish_reason", Text),
    _required("outcome", Text),
    Column("shadow", JSON(none_as_null=True)),
    _required("time", Double),
    Index(None, "experiment", "unit", "arm"),
    Index(None, "time"),
)

outcomes = Table(
    "outcomes",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("metric", Text, primary_key=True),
    _required("value", Double),
    _required("time", Double),
    Column("idempotency_key", Text),
    UniqueConstraint("idempotency_key"),
    Index(None, "time"),
)

settings = Table(
    "settings",
    metadata,
    Column("key", Text, primary_key=True),
    _required("value", JSON),
    _required("version", Integer),
)

prompts = Table(
    "prompts",
    metadata,
    Column("request_id", Text, primary_key=True),
    _required("text", Text),
    _required("time", Double),
    Index(None, "time"),
)
