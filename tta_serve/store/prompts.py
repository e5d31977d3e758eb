"""Texts of requests, for operators who switched it on: redacted before they are written."""

from collections.abc import Sequence

from tta_serve.store.database import Database
from tta_serve.store.records import PromptText
from tta_serve.store.redact import redact
from tta_serve.store.schema import prompts


def write(db: Database, rows: Sequence[PromptText]) -> None:
    """Write all of the rows, redacted, or none if it raises.

    One that is there already stays as it is.
    """
    clean = [{**vars(row), "text": redact(_make_storable(row.text))} for row in rows]
    with db.write() as connection:
        connection.execute(db.insert(prompts).on_conflict_do_nothing(), clean)


def _make_storable(text: str) -> str:
    """Replace what JSON can carry and a database cannot.

    That is half surrogates, and for PostgreSQL the character 0.
    """
    return text.encode(errors="replace").decode().replace("\0", "\ufffd")
