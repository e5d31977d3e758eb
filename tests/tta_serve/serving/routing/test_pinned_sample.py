"""Which pinned requests are kept: an even sample, each conversation once, no tenant too many."""

from collections import Counter

import pytest
import torch

from tta_serve.serving.routing.pinned_sample import Bounds, PinnedRows, PinnedSample, choose_kept

SALT = b"0123456789abcdef"
BOUNDS = Bounds(16, 16)


def keep(
    sample: PinnedSample,
    conversation: str,
    tenant: str | None = None,
    *,
    value: float = 0.0,
    bounds: Bounds = BOUNDS,
) -> bool:
    request = sample.describe("digest", tenant, conversation)
    return sample.add(request, torch.full((2, 3), value), bounds)


def values(sample: PinnedSample) -> list[float]:
    features = sample.read("digest")
    return [] if features is None else features[:, 0, 0].tolist()


def test_what_is_kept_is_an_even_sample_of_all_that_came() -> None:
    """Of 64 conversations each is kept in 16 of 64 samples, whenever it came."""
    counts: Counter[float] = Counter()
    for trial in range(400):
        sample = PinnedSample(trial.to_bytes(16, "big"))
        for number in range(64):
            keep(sample, str(number), value=number)
        assert sample.count("digest") == 16
        counts.update(values(sample))
    assert len(counts) == 64
    eighths = [sum(counts[i] for i in range(first, first + 8)) for first in range(0, 64, 8)]
    assert all(700 < count < 900 for count in eighths), eighths


def test_a_conversation_counts_once_however_many_turns_it_has() -> None:
    sample = PinnedSample(SALT)
    assert keep(sample, "talk", value=1)
    assert not any(keep(sample, "talk", value=2) for _ in range(100))
    assert keep(sample, "talk", "a tenant", value=3), "of another tenant it is another one"
    for number in range(200):
        keep(sample, str(number))
    before = sample.rows()["digest"].keys
    for number in range(200):
        assert not keep(sample, str(number)), "neither one that is kept, nor one that was left out"
    assert torch.equal(sample.rows()["digest"].keys, before)


def test_experts_are_kept_apart_and_those_that_are_gone_are_forgotten() -> None:
    sample = PinnedSample(SALT)
    for digest in ("one", "two"):
        for number in range(20):
            request = sample.describe(digest, None, str(number))
            sample.add(request, torch.zeros(2, 3), BOUNDS)
    assert (sample.count("one"), sample.count("two"), sample.count("three")) == (16, 16, 0)
    assert sample.retain({"two"})
    assert not sample.retain({"two", "three"})
    assert (sample.count("one"), sample.count("two"), sample.read("one")) == (0, 16, None)


@pytest.mark.parametrize("flood_first", [True, False])
def test_a_tenant_that_floods_has_no_more_than_its_share(flood_first: bool) -> None:
    sample, bounds = PinnedSample(SALT), Bounds(16, 4)
    flood = [("flood", str(i), 9.0) for i in range(1000)]
    others = [(f"tenant {i % 4}", str(i), 1.0) for i in range(40)]
    for tenant, talk, value in flood + others if flood_first else others + flood:
        keep(sample, talk, tenant, value=value, bounds=bounds)
    counts = Counter(values(sample))
    assert counts.total() == 16
    assert counts[9.0] <= 4
    alone = PinnedSample(SALT)
    for tenant, talk, value in flood:
        keep(alone, talk, tenant, value=value, bounds=bounds)
    assert len(values(alone)) == 4, "also where nobody else pins the expert"


def test_where_all_are_too_many_those_with_the_most_give_some_up() -> None:
    tenants = {10 * tenant + number: tenant for tenant in range(3) for number in range(6)}
    kept = choose_kept(tenants, Bounds(9, 6))
    assert kept == {0, 1, 2, 10, 11, 12, 20, 21, 22}, "of each the least numbers"
    assert choose_kept({1: 0, 2: 0, 3: 1}, Bounds(2, 2)) == {1, 3}


def test_what_would_not_be_kept_need_not_be_read() -> None:
    sample = PinnedSample(SALT)
    for number in range(400):
        request = sample.describe("digest", None, str(number))
        wanted = sample.wants(request, BOUNDS)
        assert sample.add(request, torch.zeros(2, 3), BOUNDS) == wanted
    fresh = [sample.describe("digest", None, f"new {i}") for i in range(400)]
    assert sum(sample.wants(request, BOUNDS) for request in fresh) < 60


def test_two_samples_together_are_that_of_all_requests() -> None:
    one, other, both = (PinnedSample(SALT) for _ in range(3))
    for number in range(100):
        keep(one if number % 3 else other, str(number), value=number)
        keep(both, str(number), value=number)
    assert one.merge(other.rows(), BOUNDS), "it keeps what the other has not"
    assert values(one) == values(both)
    assert other.merge(one.rows(), BOUNDS) is False
    assert values(other) == values(both)


def test_rows_that_are_no_features_are_told() -> None:
    good = PinnedRows(torch.tensor([1]), torch.tensor([0]), torch.zeros(1, 2, 3))
    assert good.usable
    for features in (torch.zeros(1, 3), torch.zeros(2, 2, 3), torch.full((1, 2, 3), torch.nan)):
        assert not PinnedRows(good.keys, good.tenants, features).usable
    assert not PinnedRows(good.keys, torch.tensor([0, 1]), good.features).usable
