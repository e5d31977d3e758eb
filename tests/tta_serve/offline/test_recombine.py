"""Recombined components of a tiny library: what is measured, what is kept, and whole files."""

from pathlib import Path

import numpy as np
import pytest
import torch

from adapters.coefficient import Pair
from adapters.errors import LibraryError
from adapters.library.entries import ENTRIES, read_entries
from adapters.library.library import Library
from adapters.mix import MixRules
from router.errors import RouterError
from router.policies.recombined import read_entry_set
from tests.factories.tiny_library import NAMES, sample_answers
from tests.reference import Reference
from tta_serve.offline.mixed_model import MixedModel, Sample
from tta_serve.offline.recombine import (
    Design,
    Recombination,
    RecombineSettings,
    check_entries,
    count_measurements,
    recombine,
    store_entries,
)

QUICK = RecombineSettings(samples=8, rounds=1, entries=4, most=2)


@pytest.fixture(scope="module")
def samples(both: MixedModel) -> list[list[Sample]]:
    return sample_answers(both)


@pytest.fixture(scope="module")
def found(both: MixedModel, samples: list[list[Sample]]) -> Recombination:
    return search(both, samples)


def rules_of(both: MixedModel) -> MixRules:
    return MixRules(frozenset(NAMES), both.layers)


def search(both: MixedModel, samples: list[list[Sample]]) -> Recombination:
    return recombine("parts", both, samples, rules_of(both), QUICK, seed=0)


def test_a_merge_of_components_is_that_of_the_dense_weights(
    library: Path, both: MixedModel, samples: list[list[Sample]]
) -> None:
    design = Design(2, 2, both.layers, 2, rules_of(both))
    numbers = np.array([0.5, 1.0, 0.25, 0.0, 0.0, 0.75, 1.5, 0.05])
    mix = design.name_coefficients(numbers, NAMES)
    assert mix == {
        NAMES[0]: Pair((0.5, 0.25), (1.0, 0.0)),
        NAMES[1]: Pair((0.0, 1.5), (0.75, 0.05)),
    }
    reference, experts = Reference(library.parent / "base"), Library.open(library).experts
    sample = samples[0][0]
    ours = both.predict(sample, design.spread(numbers[None])[0].float()).logits
    with reference.merged(experts, mix), torch.no_grad():
        theirs = reference.model(sample.ids).logits[0, -sample.answer :]
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_what_is_searched_is_on_the_grid_and_of_few_experts(both: MixedModel) -> None:
    design = Design(3, 1, 4, 2, rules_of(both))
    numbers = np.array([[0.52, 0.1, 0.9, 0.0, 0.2, 0.11], [9.0, -1.0, 0.0, 0.0, 0.0, 0.01]])
    assert design.repair(numbers).tolist() == [[0.5, 0.1, 0.9, 0, 0, 0], [1.5, 0, 0, 0, 0, 0]]
    assert design.repair(numbers, 1)[0].tolist() == [0, 0, 0.9, 0, 0, 0]
    assert design.count_experts(design.repair(numbers)).tolist() == [2, 1]
    drawn = design.draw(50, np.random.default_rng(0))
    assert np.array_equal(design.repair(drawn), drawn)
    assert set(design.count_experts(drawn)) <= {0, 1, 2}
    assert design.list_corners().tolist()[2] == [0, 0, 1, 1, 0, 0]


def test_entries_serve_each_task_and_none_of_them_is_idle(
    both: MixedModel, samples: list[list[Sample]], found: Recombination
) -> None:
    made = found.entries
    assert made.tasks == NAMES
    assert 2 <= len(made.entries) <= QUICK.entries
    for task in NAMES:
        best = max(entry.measured[task] for entry in made.entries)
        assert best >= -1e-6, "at least as good as the expert itself"
    for one in made.entries:
        assert one.experts == len(found.coefficients[one.entry]) > 0
        others = [other for other in made.entries if other is not one]
        assert not any(
            other.experts <= one.experts
            and all(other.measured[t] >= one.measured[t] for t in NAMES)
            for other in others
        )
    assert search(both, samples) == found, "by the seed alone"


def test_an_expert_more_must_be_worth_its_price(
    both: MixedModel, samples: list[list[Sample]]
) -> None:
    dear = RecombineSettings(samples=8, rounds=1, entries=2, most=2, price=100.0)
    found = recombine("dear", both, samples, rules_of(both), dear, seed=0)
    assert [one.experts for one in found.entries.entries] == [1]


def test_a_set_is_stored_whole_and_what_it_replaces_goes(
    tmp_path: Path, found: Recombination
) -> None:
    check_entries(tmp_path, "parts", QUICK, replace=False)
    store_entries(tmp_path, "parts", found, replace=False)
    assert read_entry_set(tmp_path / "router", "parts") == found.entries
    stored = read_entries(tmp_path / ENTRIES)
    assert {n: dict(e.coefficients) for n, e in stored.items()} == found.coefficients
    with pytest.raises(LibraryError, match="is there already"):
        check_entries(tmp_path, "parts", QUICK, replace=False)
    first = found.entries.entries[0]
    fewer = Recombination(
        type(found.entries)(NAMES, (first,), found.entries.digests, 0.0),
        {first.entry: found.coefficients[first.entry]},
        found.errors,
        1,
    )
    store_entries(tmp_path, "parts", fewer, replace=True)
    assert read_entries(tmp_path / ENTRIES).keys() == {first.entry}


@pytest.mark.parametrize("settings", [RecombineSettings(samples=3), RecombineSettings(entries=1)])
def test_too_little_is_refused_with_what_is_wanted(settings: RecombineSettings) -> None:
    with pytest.raises(RouterError, match="wanted are 2 experts, 4 samples and 2 entries"):
        count_measurements(settings, 2)
