"""Which mixes requests name, and how often each."""

from collections import Counter

import pytest

from loadtest.common.mix_supply import MixChoice, MixSupply
from loadtest.common.workload import draw_mixes

NAMES = ["dates", "math", "orders", "redact", "sql", "triage"]


def test_random_mixes_are_named_in_turn() -> None:
    supply = MixSupply.of(MixChoice.UNIFORM, NAMES, 16, 3)
    assert supply.mixes == draw_mixes(NAMES, 16, 3)
    assert supply.width == 3
    assert supply.number_requests(5, 4) == [0, 1, 2, 3, 0]


def test_zipf_has_the_same_mixes_and_the_first_of_them_most_often() -> None:
    supply = MixSupply.of(MixChoice.ZIPF, NAMES, 16, 3)
    assert supply.mixes == draw_mixes(NAMES, 16, 3)
    numbers = supply.number_requests(20_000, 16)
    counts = Counter(numbers)
    harmonic = sum(1 / k for k in range(1, 17))
    for k in (1, 2, 16):
        assert counts[k - 1] / len(numbers) == pytest.approx(1 / k / harmonic, abs=0.01)
    assert set(supply.number_requests(100, 4)) <= set(range(4))
    assert supply.number_requests(16, 16) == numbers[:16], "fewer requests are the first ones"


def test_one_hot_has_each_expert_alone_and_no_more_mixes_than_experts() -> None:
    supply = MixSupply.of(MixChoice.ONE_HOT, NAMES, 16, 3)
    assert [mix.as_dict() for mix in supply.mixes] == [{name: 1.0} for name in NAMES]
    assert supply.width == 1
    assert supply.number_requests(8, 16) == [0, 1, 2, 3, 4, 5, 0, 1]
    assert supply.number_requests(4, 4) == [0, 1, 2, 3]
