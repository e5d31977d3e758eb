"""Experiments in all their versions, each changed by whoever has seen the newest one."""

import time
from dataclasses import asdict, replace

from sqlalchemy import Connection, Select, insert, select, update

from tta_serve.store.database import Database
from tta_serve.store.errors import ConflictError, StaleError, UnknownError
from tta_serve.store.records import Experiment, State
from tta_serve.store.schema import experiment_versions as versions
from tta_serve.store.schema import experiments


def create(db: Database, name: str, definition: str) -> Experiment:
    """Store a new experiment as a draft, version 1.

    Raises:
        ConflictError: The name is taken, if only by an experiment that was stopped.
    """
    now = time.time()
    made = Experiment(name, 1, "draft", definition, now, now)
    with db.write() as connection:
        row = (
            db.insert(experiments)
            .values(name=name, version=1, created=now)
            .on_conflict_do_nothing()
        )
        if connection.execute(row.returning(experiments.c.name)).first() is None:
            raise ConflictError(
                f"there is an experiment {name!r} already; names are used once, so that logs stay"
                " clear"
            )
        _add(connection, made)
    return made


def change(
    db: Database,
    name: str,
    expected: int,
    *,
    definition: str | None = None,
    state: State | None = None,
) -> Experiment:
    """Store the next version, with what is given and the rest as it was.

    Args:
        expected: The version that the caller has seen.

    Raises:
        StaleError: That is not the newest version.
        UnknownError: There is no such experiment.
    """
    step = update(experiments).where(experiments.c.name == name, experiments.c.version == expected)
    with db.write() as connection:
        if not connection.execute(step.values(version=expected + 1)).rowcount:
            current = _find(connection, name).version
            raise StaleError(
                f"the experiment {name!r} is at version {current}, not {expected}; look at it again"
            )
        before = _find(connection, name, expected)
        after = replace(
            before,
            version=expected + 1,
            changed=time.time(),
            definition=before.definition if definition is None else definition,
            state=state or before.state,
        )
        _add(connection, after)
    return after


def get(db: Database, name: str, version: int | None = None) -> Experiment:
    """Return an experiment's newest version, or an older one.

    Raises:
        UnknownError: There is none; the message names what there is.
    """
    with db.read() as connection:
        return _find(connection, name, version)


def list_newest(db: Database) -> list[Experiment]:
    """Return every experiment as it is now, ordered by name."""
    newest = (
        _select_versions()
        .where(versions.c.version == experiments.c.version)
        .order_by(experiments.c.name)
    )
    with db.read() as connection:
        return [Experiment(*row) for row in connection.execute(newest)]


def list_versions(db: Database, name: str) -> list[Experiment]:
    """Return all versions of an experiment, the first one first.

    Raises:
        UnknownError: There is no such experiment.
    """
    own = _select_versions().where(experiments.c.name == name).order_by(versions.c.version)
    with db.read() as connection:
        _find(connection, name)
        return [Experiment(*row) for row in connection.execute(own)]


def _select_versions() -> Select[str, int, State, str, float, float]:
    v = versions.c
    return select(
        v.name, v.version, v.state, v.definition, experiments.c.created, v.changed
    ).join_from(versions, experiments)


def _find(connection: Connection, name: str, version: int | None = None) -> Experiment:
    wanted = experiments.c.version if version is None else version
    query = _select_versions().where(versions.c.name == name, versions.c.version == wanted)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise UnknownError(_say_missing(connection, name, version))
    return Experiment(*row)


def _say_missing(connection: Connection, name: str, version: int | None) -> str:
    newest = select(experiments.c.name, experiments.c.version).order_by(experiments.c.name)
    there = dict(connection.execute(newest).all())
    if name in there:
        return (
            f"the experiment {name!r} has no version {version}; its versions are 1 to {there[name]}"
        )
    return f"there is no experiment {name!r}; there are: {', '.join(there) or 'none'}"


def _add(connection: Connection, version: Experiment) -> None:
    row = asdict(version)
    del row["created"]
    connection.execute(insert(versions).values(row))
