"""What `python -m loadtest http` would ask."""

import pytest

from loadtest.commands.http_plan import (
    MANY,
    SIDES,
    Cell,
    HttpPlan,
    choose_sides,
    make_bodies,
    make_cells,
    make_plan,
)
from loadtest.common.workload import draw_mixes, numbers_of

NAMES = ["dates", "math", "orders", "sql"]
QUICK = make_plan([], quick=True)
FULL = make_plan(["gate", "t3-calibrated", "retrieval"], quick=False)
MIXES = draw_mixes(NAMES, MANY, 0)


def test_quick_has_the_six_sides_and_full_the_policies_that_are_configured() -> None:
    assert list(choose_sides(QUICK, "")) == list("abcdef")
    assert set(choose_sides(FULL, "")) == {*"abcdef", "e_gate", "e_t3-calibrated"}


def test_some_sides_are_chosen_by_their_letters() -> None:
    assert list(choose_sides(QUICK, "c, a")) == ["a", "c"]
    assert list(choose_sides(FULL, "e")) == ["e", "e_gate", "e_t3-calibrated"]
    with pytest.raises(ValueError, match="'x'; there are a, b, c, d, e, f"):
        choose_sides(QUICK, "a,x")


def test_mixes_go_by_adapters_or_by_experts_and_are_the_same() -> None:
    cell = Cell("some", 20, MANY)
    by_name = make_bodies(SIDES["b"], cell, MIXES)
    by_experts = make_bodies(SIDES["d"], cell, MIXES)
    assert by_experts == make_bodies(SIDES["f"], cell, MIXES)
    assert [body["model"] for body in by_name] == [f"mix-{i % MANY}" for i in range(20)]
    assert by_experts[17] == {"merge": {"experts": numbers_of(MIXES[1])}}


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
        assert {"first", "alone", "many", "open_50"} <= cells.keys()
        assert cells["many"].at_once == MANY
        assert cells["open_50"].at_once is None
        assert all(cell.requests <= 64 for cell in cells.values())
        assert ("many_4_mixes" in cells) == (
            side.server in ("merged", "ours") and side.mix_body is not None
        )


def test_who_takes_turns_is_asked_less() -> None:
    assert {cell.requests for cell in make_cells(FULL, SIDES["f"])} <= {4, 16}
    assert any(cell.requests == 64 for cell in make_cells(FULL, SIDES["d"]))


def test_the_full_run_opens_at_four_shares() -> None:
    cells = make_cells(FULL, SIDES["a"])
    assert [cell.share for cell in cells if cell.share] == [25, 50, 75, 100]
