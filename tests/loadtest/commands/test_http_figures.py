"""The figures of `python -m loadtest http`, from measurements that are made up."""

from dataclasses import fields

import pytest

from loadtest.commands.http_figures import WANTED, HttpFindings, make_rows
from loadtest.common.load_figures import LoadFigures

CELLS = ("first", "alone", "many", "many_1_mixes", "many_4_mixes", "open_50")


def figures(tok_s: float, ttft_ms: float) -> LoadFigures:
    values = {one.name: 1.0 for one in fields(LoadFigures)}
    return LoadFigures(**values | {"tok_s": tok_s, "ttft_ms": ttft_ms})


def findings(**sides: list[tuple[float, float]]) -> HttpFindings:
    """Of each side a tuple of tokens/s and milliseconds for each round."""
    found = HttpFindings()
    for key, rounds in sides.items():
        for values in rounds:
            for cell in CELLS:
                found.add(key, cell, figures(*values))
    return found


ALL = findings(
    a=[(100, 50), (200, 40), (300, 10)],
    b=[(10, 50), (20, 50), (30, 50)],
    c=[(100, 60), (180, 49), (240, 31)],
    d=[(90, 60), (90, 60), (240, 60)],
    e=[(50, 120), (180, 49), (480, 31)],
    f=[(9, 500), (9, 500), (12, 500)],
)


def test_ratios_are_medians_over_rounds_of_the_ratio_within_a_round() -> None:
    ALL.add_decisions("e", [{"router_ms": 0.5, "experts": {}}], 0)
    found = ALL.summarise()
    assert found["throughput_c_over_a"] == pytest.approx(0.9)  # 1, 0.9, 0.8
    assert found["ttft_ms_c_minus_a"] == 10  # 10, 9, 21
    assert found["throughput_e_over_c"] == 1  # 0.5, 1, 2
    assert found["ttft_e_over_c"] == 1  # 2, 1, 1
    assert found["throughput_d_over_c"] == pytest.approx(0.9)  # 0.9, 0.5, 1
    assert found["throughput_d_over_b_16"] == 8  # 9, 4.5, 8
    assert found["throughput_d_over_f_16"] == 10  # 10, 10, 20
    assert {*WANTED, "policy_ms_p50"} <= found.keys()


def test_medians_and_spreads_stand_beside_each_other() -> None:
    side = ALL.summarise_sides()["c"]["many"]
    assert side["tok_s"] == 180
    assert side["tok_s_spread"] == [100, 240]


def test_what_the_way_adds_to_a_first_token_is_compared() -> None:
    found = findings(a=[(100, 50)], c=[(100, 60)])
    assert "way_ms_c_minus_a" not in found.summarise()
    for key, ms in (("a", 4), ("c", 11)):
        found.add_way(key, "first", ms)
    assert found.summarise()["way_ms_c_minus_a"] == 7


def test_what_is_compared_has_its_spread() -> None:
    spreads = ALL.summarise()["spreads"]
    assert spreads["ttft_ms_c_minus_a"] == [9, 21]
    assert spreads["throughput_e_over_c"] == [0.5, 2]


def test_ours_is_compared_with_rays_own_app() -> None:
    found = findings(c=[(90, 60)], g=[(60, 90)]).summarise()
    assert found["throughput_c_over_g"] == pytest.approx(1.5)
    assert found["ttft_c_over_g"] == pytest.approx(2 / 3)


def test_memory_is_the_median_over_rounds() -> None:
    found = findings(a=[(1, 1)])
    for gigabytes in (3, 1, 2):
        found.add_memory("a", gigabytes * 10**9)
    assert found.summarise_sides()["a"]["memory"] == {"gb": 2, "gb_spread": [1, 3]}
    head, row = make_rows(found.summarise_sides())
    assert dict(zip(head, row, strict=True))["memory, GB"] == "2.00"


def test_what_was_not_asked_is_left_out() -> None:
    found = findings(a=[(1, 1)], c=[(1, 1)]).summarise()
    assert "throughput_c_over_a" in found
    assert not found.keys() & {"throughput_d_over_c", "policy_ms_p50", "throughput_e_over_c"}


def test_decisions_are_medians_and_late_ones_are_counted() -> None:
    found = HttpFindings()
    for ms in (1.0, 3.0):
        merges = [{"router_ms": ms, "experts": {"sql": 1}}, {"router_ms": ms, "experts": {}}]
        found.add_decisions("e", merges, 2)
    summary = found.summarise()
    assert summary["policy_ms_p50"] == 2
    assert summary["routed"] == {"e": 0.5}
    assert summary["fallbacks"] == {"e": 4}


def test_the_table_has_a_row_for_each_side() -> None:
    found = findings(a=[(100, 50)], d=[(90, 60)])
    del found.values["a"]["many_4_mixes"]
    head, first, second = make_rows(found.summarise_sides())
    assert len(head) == len(first) == len(second)
    assert first[:6] == ["a: vLLM, the base", "50", "100", "100", "", "100"]
    assert second[:3] == ["d: ours, mixes in requests", "60", "90"]


def test_what_no_side_was_asked_has_no_column() -> None:
    found = findings(a=[(1, 1)])
    [few, _] = make_rows(found.summarise_sides())
    for cell in ("bursts_50", "trace"):
        found.add("a", cell, figures(1, 1))
    [more, _] = make_rows(found.summarise_sides())
    assert len(more) == len(few) + 2
