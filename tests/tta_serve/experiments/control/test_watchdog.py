"""What is said of running experiments while nobody looks: here, whether their split is sound."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from tests.factories.experiment_logs import definition
from tests.factories.exposures import exposure
from tta_serve.experiments.control.lifecycle import Lifecycle
from tta_serve.experiments.control.watchdog import Watchdog
from tta_serve.store import exposures
from tta_serve.store.database import Database
from tta_serve.store.options import StoreOptions


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    db = Database(f"sqlite:///{tmp_path}/tta.db")
    yield db
    db.close()


def read_p() -> float | None:
    return REGISTRY.get_sample_value("tta_sample_ratio_p", {"experiment": "routing"})


@pytest.mark.parametrize(("units", "sound"), [((300, 300), True), ((300, 200), False)])
def test_the_split_of_an_experiment_is_watched_until_it_ends(
    db: Database, tmp_path: Path, units: tuple[int, int], sound: bool
) -> None:
    lifecycle = Lifecycle(db, ["a-policy", "b-policy"])
    lifecycle.create(definition("a", "b"))
    started = lifecycle.start("routing", 1)
    seen = [
        exposure(request_id=f"{arm}-{i}", unit=f"{arm}-{i}", arm=arm, version=started["version"])
        for arm, count in zip("ab", units, strict=True)
        for i in range(count)
    ]
    exposures.write(db, seen)

    watchdog = Watchdog(db, lifecycle, StoreOptions(url=f"sqlite:///{tmp_path}/tta.db"), 3600)
    watchdog.look()
    p = read_p()
    assert p is not None
    assert (p >= 0.001) == sound
    lifecycle.stop("routing", started["version"])
    watchdog.look()
    assert read_p() is None
