"""Writing exposures."""

from collections.abc import Sequence

from tta_serve.store.database import Database
from tta_serve.store.records import Exposure
from tta_serve.store.tables import exposures


def write(db: Database, rows: Sequence[Exposure]) -> None:
    """All of them, or none if it raises. One that is there already stays as it is, so that a batch can be sent again."""
    with db.write() as connection:
        connection.execute(db.insert(exposures).on_conflict_do_nothing(), [vars(row) for row in rows])
