"""What `python -m loadtest http` would ask."""

from dataclasses import replace

import pytest

from loadtest.commands.http_figures import RATIOS
from loadtest.commands.http_plan import (
    MANY,
    SIDES,
    Cell,
    HttpPlan,
    choose_sides,
    group_sides,
    make_bodies,
    make_cells,
    make_plan,
)
from loadtest.common.mix_supply import MixChoice, MixSupply
from loadtest.common.workload import numbers_of

NAMES = ["dates", "math", "orders", "sql"]
QUICK = make_plan([], quick=True)
FULL = make_plan(["gate", "t3-calibrated", "retrieval"], quick=False)
MIXES = MixSupply.of(MixChoice.UNIFORM, NAMES, MANY, 0)


def test_quick_has_the_six_sides_and_full_the_policies_that_are_configured() -> None:
    assert list(choose_sides(QUICK, "")) == list("abcdef")
    assert set(choose_sides(FULL, "")) == {*"abcdefg", "e_gate", "e_t3-calibrated"}


def test_slow_sides_are_alone_and_in_a_quick_run_once() -> None:
    sides = choose_sides(QUICK, "")
    first, later = ([list(group) for group in group_sides(QUICK, sides, r)] for r in (0, 1))
    assert first == [list("acde"), ["b"], ["f"]]
    assert later == [list("acde")]
    assert len(group_sides(FULL, choose_sides(FULL, ""), 1)) == 3
    assert group_sides(QUICK, choose_sides(QUICK, "f"), 1) == []


def test_some_sides_are_chosen_by_their_letters() -> None:
    assert list(choose_sides(QUICK, "c, a")) == ["a", "c"]
    assert list(choose_sides(QUICK, "a,g")) == ["a", "g"], "named, though quick runs leave it out"
    assert list(choose_sides(FULL, "e")) == ["e", "e_gate", "e_t3-calibrated"]
    with pytest.raises(ValueError, match="'x'; there are a, b, c, d, e, f, g"):
        choose_sides(QUICK, "a,x")


def test_mixes_go_by_adapters_or_by_experts_and_are_the_same() -> None:
    cell = Cell("some", 20, MANY)
    by_name = make_bodies(SIDES["b"], cell, MIXES)
    by_experts = make_bodies(SIDES["d"], cell, MIXES)
    assert by_experts == make_bodies(SIDES["f"], cell, MIXES)
    assert [body["model"] for body in by_name] == [f"mix-{i % MANY}" for i in range(20)]
    assert by_experts[17] == {"merge": {"experts": numbers_of(MIXES.mixes[1])}}


@pytest.mark.parametrize("choice", MixChoice)
def test_all_sides_name_the_same_mixes_whatever_they_are(choice: MixChoice) -> None:
    supply = MixSupply.of(choice, NAMES, MANY, 0)
    for cell in (Cell("some", 40, MANY), Cell("some", 40, MANY, 4)):
        by_name = [body["model"] for body in make_bodies(SIDES["b"], cell, supply)]
        by_experts = make_bodies(SIDES["d"], cell, supply)
        named = [supply.mixes[int(name.removeprefix("mix-"))] for name in by_name]
        assert by_experts == [{"merge": {"experts": numbers_of(mix)}} for mix in named]
        fewer = make_bodies(SIDES["f"], replace(cell, requests=16), supply)
        assert fewer == by_experts[:16]


@pytest.mark.parametrize("mixes", [1, 4, 16])
def test_a_cell_has_as_many_mixes_as_it_says(mixes: int) -> None:
    bodies = make_bodies(SIDES["d"], Cell("some", 32, MANY, mixes), MIXES)
    assert len(bodies) == 32
    assert len({str(body) for body in bodies}) == mixes


def test_who_names_no_mix_says_its_policy_or_nothing() -> None:
    cell = Cell("some", 3, MANY)
    for key in ("a", "c", "e"):
        assert make_bodies(SIDES[key], cell, MIXES) == [{}] * 3
    assert make_bodies(SIDES["e_gate"], cell, MIXES) == [{"merge": {"policy": "gate"}}] * 3


@pytest.mark.parametrize("plan", [QUICK, FULL])
def test_every_side_is_asked_what_ratios_need_and_requests_are_bounded(plan: HttpPlan) -> None:
    for side in SIDES.values():
        cells = {cell.name: cell for cell in make_cells(plan, side)}
        assert cells["many"].at_once == MANY
        assert all(cell.requests <= 64 for cell in cells.values())
        if side.slow and plan is QUICK:
            assert cells.keys() == {"many"}
            continue
        assert {"first", "alone", "many", "open_50"} <= cells.keys()
        assert cells["open_50"].at_once is None
        assert ("many_4_mixes" in cells) == (
            plan is FULL and side.server in ("merged", "ours") and side.mix_body is not None
        )


def test_ratios_are_of_cells_that_quick_runs_ask() -> None:
    for ratio in RATIOS.values():
        wanted = {ratio.above, ratio.below}
        if ratio.cell in ("many", "first") and wanted <= set("abcdef"):
            for key in wanted:
                assert ratio.cell in {cell.name for cell in make_cells(QUICK, SIDES[key])}


def test_who_takes_turns_is_asked_less() -> None:
    assert {cell.requests for cell in make_cells(FULL, SIDES["f"])} <= {4, 16}
    assert any(cell.requests == 64 for cell in make_cells(FULL, SIDES["d"]))


def test_the_full_run_opens_at_four_shares() -> None:
    cells = make_cells(FULL, SIDES["a"])
    by_chance = [cell for cell in cells if cell.share and cell.name != "bursts_50"]
    assert [cell.share for cell in by_chance] == [25, 50, 75, 100]
    assert all(cell.burstiness == 1 and not cell.times for cell in by_chance)


def test_the_full_run_has_bursts_at_half_of_the_capacity() -> None:
    [bursts] = [cell for cell in make_cells(FULL, SIDES["c"]) if cell.name == "bursts_50"]
    assert (bursts.share, bursts.burstiness, bursts.at_once) == (50, 0.25, None)
    assert bursts.requests == 64
    assert "bursts_50" not in {cell.name for cell in make_cells(QUICK, SIDES["c"])}


def test_a_trace_is_one_more_cell_and_who_takes_turns_gets_its_beginning() -> None:
    times = tuple(float(i) for i in range(64))
    plan = replace(FULL, trace=times)
    assert [cell.name for cell in make_cells(FULL, SIDES["a"]) if cell.name == "trace"] == []
    for key, requests in (("a", 64), ("f", 16)):
        [trace] = [cell for cell in make_cells(plan, SIDES[key]) if cell.name == "trace"]
        assert (trace.requests, trace.at_once, trace.share) == (requests, None, 50)
        assert trace.times == times[:requests]
