"""Experiments: every version is kept, and nobody overwrites what they have not seen."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tta_serve.store import experiments
from tta_serve.store.database import Database
from tta_serve.store.errors import ConflictError, StaleError, UnknownError


def test_a_change_makes_a_version_and_keeps_the_rest(db: Database) -> None:
    before = time.time()
    first = experiments.create(db, "routing", '{"arms": []}')
    assert (first.version, first.state, first.created == first.changed) == (1, "draft", True)
    second = experiments.change(db, "routing", 1, state="running")
    third = experiments.change(db, "routing", 2, definition='{"arms": [1]}')
    assert before <= first.created < second.changed < third.changed <= time.time()
    assert second == replace(first, version=2, state="running", changed=second.changed)
    assert third == replace(second, version=3, definition='{"arms": [1]}', changed=third.changed)
    assert experiments.list_versions(db, "routing") == [first, second, third]
    assert experiments.get(db, "routing") == third
    assert experiments.get(db, "routing", 2) == second


def test_the_newest_version_of_each_is_listed_by_name(db: Database) -> None:
    assert experiments.list_newest(db) == []
    for name in ("b", "a"):
        experiments.create(db, name, "{}")
    changed = experiments.change(db, "b", 1, state="stopped")
    assert experiments.list_newest(db) == [experiments.get(db, "a"), changed]


def test_one_of_many_changes_of_the_same_version_is_made(db: Database) -> None:
    experiments.create(db, "routing", "{}")

    def attempt(i: int) -> str:
        try:
            return experiments.change(db, "routing", 1, definition=str(i)).definition
        except StaleError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        found = sorted(pool.map(attempt, range(8)))
    assert [version.definition for version in experiments.list_versions(db, "routing")] == [
        "{}",
        found[0],
    ]
    assert found[1:] == ["the experiment 'routing' is at version 2, not 1; look at it again"] * 7
    with pytest.raises(StaleError):
        experiments.change(db, "routing", 3)


def test_one_of_many_creations_of_the_same_name_is_made(db: Database) -> None:
    def attempt(i: int) -> bool:
        try:
            experiments.create(db, "routing", str(i))
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 1


def test_a_name_is_used_once(db: Database) -> None:
    experiments.create(db, "routing", "{}")
    experiments.change(db, "routing", 1, state="stopped")
    with pytest.raises(ConflictError, match="there is an experiment 'routing' already"):
        experiments.create(db, "routing", "[]")
    assert [version.state for version in experiments.list_versions(db, "routing")] == [
        "draft",
        "stopped",
    ]


def test_what_is_not_there_is_named_with_what_is(db: Database) -> None:
    with pytest.raises(UnknownError, match="there is no experiment 'a'; there are: none"):
        experiments.get(db, "a")
    for name in ("c", "b"):
        experiments.create(db, name, "{}")
    with pytest.raises(UnknownError, match="there is no experiment 'a'; there are: b, c"):
        experiments.change(db, "a", 1, state="running")
    with pytest.raises(UnknownError, match="there is no experiment 'a'"):
        experiments.list_versions(db, "a")
    with pytest.raises(UnknownError, match="'b' has no version 2; its versions are 1 to 1"):
        experiments.get(db, "b", 2)
