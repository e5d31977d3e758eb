"""Fronts of a tiny library: values as a slow loop has them, experts at the ends, whole files."""

from pathlib import Path

import pytest
import torch

from adapters.errors import LibraryError
from adapters.library.entries import ENTRIES, read_entries
from adapters.library.library import Library
from adapters.mix import MixRules
from router.errors import RouterError
from router.policies.pareto import Front, read_front
from tests.factories.tiny_library import NAMES, sample_answers
from tests.reference import Reference
from tta_serve.offline.mixed_model import MixedModel, Sample
from tta_serve.offline.pareto_front import (
    FrontSize,
    check_front,
    make_front,
    measure_values,
    store_front,
)


@pytest.fixture(scope="module")
def samples(both: MixedModel) -> list[list[Sample]]:
    return sample_answers(both)


def make_demo_front(both: MixedModel, samples: list[list[Sample]], points: int = 6) -> Front:
    rules = MixRules(frozenset(NAMES), both.layers)
    return make_front("demo", both, samples, rules, FrontSize(12, points), seed=0)


def test_a_merge_is_worth_how_near_it_is_to_each_expert(
    library: Path, both: MixedModel, samples: list[list[Sample]]
) -> None:
    c = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.25]])
    found = measure_values(both, samples, c)
    assert found[0, 0] == found[1, 1] == pytest.approx(0, abs=1e-6)
    reference, experts = Reference(library.parent / "base"), Library.open(library).experts
    for k, own in enumerate(samples):
        kl = []
        for sample in own:
            logs = []
            for mix in ({NAMES[k]: 1.0}, {"math": 0.5, "sql": 0.25}):
                with reference.merged(experts, mix), torch.no_grad():
                    logs.append(
                        reference.model(sample.ids).logits[0, -sample.answer :].log_softmax(-1)
                    )
            kl += [float((p.exp() * (p - q)).sum(-1).mean()) for p, q in (logs,)]
        assert float(found[2, k]) == pytest.approx(-sum(kl) / len(kl), rel=1e-3)


def test_a_front_has_the_experts_at_its_ends_and_no_point_that_another_dominates(
    both: MixedModel, samples: list[list[Sample]]
) -> None:
    told: list[int] = []
    found = make_demo_front(both, samples)
    make_front(
        "demo",
        both,
        samples,
        MixRules(frozenset(NAMES), 2),
        FrontSize(12, 6),
        0,
        lambda: told.append(1),
    )
    assert len(told) == FrontSize(12, 6).count_measurements(2)
    assert [p.coefficients for p in found.points[:2]] == [
        {"math": 1.0, "sql": 0.0},
        {"math": 0.0, "sql": 1.0},
    ]
    measured = found.measured
    for i, row in enumerate(measured):
        assert not any(bool((other >= row).all()) for j, other in enumerate(measured) if i != j)
    assert found.points[0].entry == "demo-01"
    assert len(found.points) <= 6
    assert found == make_demo_front(both, samples)
    on_grid = [c for p in found.points for c in p.coefficients.values()]
    assert on_grid == [MixRules(frozenset(), 2).snap(c) for c in on_grid]


def test_a_stored_front_is_read_back_and_replaced_with_its_entries(
    both: MixedModel, samples: list[list[Sample]], tmp_path: Path
) -> None:
    large = make_demo_front(both, samples)
    small = Front(large.tasks, large.points[:2], large.digests, large.r2)
    check_front(tmp_path, "demo", FrontSize(12, 6), replace=False)
    store_front(tmp_path, "demo", large, replace=False)
    assert read_front(tmp_path / "router", "demo") == large
    entries = read_entries(tmp_path / ENTRIES)
    assert entries.keys() == {point.entry for point in large.points}
    assert entries["demo-01"].coefficients == {"math": 1.0}
    assert entries["demo-01"].digests == {"math": large.digests["math"]}
    with pytest.raises(LibraryError, match="is there already"):
        check_front(tmp_path, "demo", FrontSize(12, 6), replace=False)
    store_front(tmp_path, "demo", small, replace=True)
    assert read_front(tmp_path / "router", "demo") == small
    assert read_entries(tmp_path / ENTRIES).keys() == {"demo-01", "demo-02"}


def test_too_little_for_a_front_is_refused() -> None:
    for experts, size in ((1, FrontSize()), (2, FrontSize(samples=5)), (6, FrontSize(points=6))):
        with pytest.raises(RouterError, match="wanted are 2 experts"):
            size.fit_to(experts)
    assert FrontSize().fit_to(6) == (84, 12)
