"""Deleting what is older than an operator wants to keep."""

from collections.abc import Mapping

from sqlalchemy import Table, delete, select, tuple_

from tta_serve.store.database import Database
from tta_serve.store.options import DAY_S, StoreOptions
from tta_serve.store.schema import exposures, outcomes, prompts

_AT_ONCE = 1000  # rows in one transaction, so that others can write in between


def prune(db: Database, options: StoreOptions, now: float) -> Mapping[str, int]:
    """Delete every row that is older than its table's age.

    Args:
        now: UTC seconds since 1970.

    Returns:
        How many rows were deleted, by the table's name.
    """
    days = {
        exposures: options.exposures_days,
        outcomes: options.outcomes_days,
        prompts: options.prompts_days,
    }
    return {table.name: _delete(db, table, now - age * DAY_S) for table, age in days.items()}


def _delete(db: Database, table: Table, before: float) -> int:
    key = tuple(table.primary_key.columns)
    batch = select(*key).where(table.c.time < before).limit(_AT_ONCE)
    deleted = 0
    while True:
        with db.write() as connection:
            gone = connection.execute(delete(table).where(tuple_(*key).in_(batch))).rowcount
        deleted += gone
        if gone < _AT_ONCE:
            return deleted
