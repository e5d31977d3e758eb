"""What is too old is deleted, all of it and nothing else."""

import random

from sqlalchemy import Table, insert, select

from tests.factories.exposures import exposure
from tta_serve.store import experiments, exposures, prompts
from tta_serve.store.database import Database
from tta_serve.store.options import DAY_S, StoreOptions
from tta_serve.store.records import PromptText
from tta_serve.store.retention import prune
from tta_serve.store.schema import exposures as exposures_table
from tta_serve.store.schema import outcomes as outcomes_table
from tta_serve.store.schema import prompts as prompts_table

NOW = 1e9
OPTIONS = StoreOptions(exposures_days=30, outcomes_days=20, prompts_days=2)
DAYS = {exposures_table: 30, outcomes_table: 20, prompts_table: 2}


def _times(db: Database, table: Table) -> list[float]:
    with db.read() as connection:
        return sorted(connection.execute(select(table.c.time)).scalars())


def test_rows_older_than_their_tables_age_go(db: Database) -> None:
    rng = random.Random(0)
    times = [NOW - rng.random() * 40 * DAY_S for _ in range(2500)]  # several batches
    times += [NOW - days * DAY_S for days in DAYS.values()]  # just old enough to stay
    exposures.write(db, [exposure(request_id=str(i), time=time) for i, time in enumerate(times)])
    prompts.write(db, [PromptText(str(i), "hello", time) for i, time in enumerate(times)])
    with db.write() as connection:
        rows = [
            {"request_id": str(i % 1000), "metric": str(i), "value": 0.0, "time": time}
            for i, time in enumerate(times)
        ]
        connection.execute(insert(outcomes_table), rows)
    kept = experiments.create(db, "routing", "{}")
    gone = prune(db, OPTIONS, NOW)
    for table, days in DAYS.items():
        stay = sorted(time for time in times if time >= NOW - days * DAY_S)
        assert _times(db, table) == stay
        assert gone[table.name] == len(times) - len(stay)
    assert prune(db, OPTIONS, NOW) == dict.fromkeys(gone, 0)
    assert experiments.list_newest(db) == [kept]
