"""Settings that survive restarts, such as the kill switch."""

from typing import Any

from sqlalchemy import select

from tta_serve.store.database import Database
from tta_serve.store.records import Setting
from tta_serve.store.schema import settings


def get(db: Database, key: str) -> Setting | None:
    """Return a setting, None if nobody has set it yet."""
    with db.read() as connection:
        row = connection.execute(select(settings).where(settings.c.key == key)).one_or_none()
    return None if row is None else Setting(*row)


def put(db: Database, key: str, value: Any) -> Setting:
    """Set a key to any JSON, whoever has changed it since, and return it with its new version."""
    row = db.insert(settings).values(key=key, value=value, version=1)
    changed = row.on_conflict_do_update(
        index_elements=["key"],
        set_={"value": row.excluded.value, "version": settings.c.version + 1},
    ).returning(settings)
    with db.write() as connection:
        return Setting(*connection.execute(changed).one())


def get_or_put(db: Database, key: str, value: Any) -> Setting:
    """Return the setting as it is, set to `value` now if nobody has set it yet."""
    row = db.insert(settings).values(key=key, value=value, version=1).on_conflict_do_nothing()
    with db.write() as connection:
        connection.execute(row)
    found = get(db, key)
    assert found is not None, "settings are never deleted"
    return found
