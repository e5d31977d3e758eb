"""Settings survive restarts and count their changes."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tta_serve.store import settings
from tta_serve.store.database import Database
from tta_serve.store.records import Setting


@pytest.mark.parametrize("value", [{"entry": "balanced"}, ["é", 1.5, None], "base", 0, False, None])
def test_any_json_is_kept_over_a_restart(url: str, value: Any) -> None:
    db = Database(url)
    assert settings.get(db, "kill_switch") is None
    assert settings.put(db, "kill_switch", "something") == Setting("kill_switch", "something", 1)
    assert settings.put(db, "kill_switch", value) == Setting("kill_switch", value, 2)
    db.close()
    db = Database(url)
    assert settings.get(db, "kill_switch") == Setting("kill_switch", value, 2)
    db.close()


def test_no_change_is_lost_count_of(db: Database) -> None:
    with ThreadPoolExecutor(8) as pool:
        versions = [
            setting.version for setting in pool.map(lambda i: settings.put(db, "a", i), range(40))
        ]
    assert sorted(versions) == list(range(1, 41))


def test_the_first_value_stays(db: Database) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda i: settings.get_or_put(db, "secret", i).value, range(8)))
    assert len(found) == 1
    assert settings.get_or_put(db, "secret", "another") == Setting("secret", found.pop(), 1)
