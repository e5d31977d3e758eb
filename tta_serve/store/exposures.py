"""Writing exposures, the rows of what an arm has acted on."""

from collections.abc import Sequence

from tta_serve.store.database import Database
from tta_serve.store.records import Exposure
from tta_serve.store.schema import exposures


def write(db: Database, rows: Sequence[Exposure]) -> None:
    """Write all of the rows, or none if it raises.

    One that is there already stays as it is, so that a batch can be sent again.
    """
    insert = db.insert(exposures).on_conflict_do_nothing()
    with db.write() as connection:
        connection.execute(insert, [vars(row) for row in rows])
