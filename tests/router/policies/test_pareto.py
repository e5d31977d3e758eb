"""The point of a front that a preference gets."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.library.entries import write_json
from adapters.mix import Mix, MixRules
from router.decision import Decision, Prompt
from router.errors import RouterError
from router.policies.pareto import FRONTS, Front, Point, scale_losses, tchebycheff
from router.policy import Context, Policy
from router.registry import create_policy

DIGESTS = {"math": "m", "sql": "s"}
MEASURED = {
    "demo-01": (0.0, -4.0),
    "demo-02": (-4.0, 0.0),
    "demo-03": (-1.5, -1.4),
    "demo-04": (-3.0, -0.8),
}  # math, sql
NOBODY: Any = None  # a front asks nothing of the engine


def make_front() -> Front:
    points = (
        Point(name, {}, {}, {}, dict(zip(DIGESTS, values, strict=True)))
        for name, values in MEASURED.items()
    )
    return Front(tuple(DIGESTS), tuple(points), DIGESTS, {})


def make_context(
    folder: Path, digests: dict[str, str] = DIGESTS, points: int = len(MEASURED)
) -> Context:
    entries = {
        name: Mix.of({"math": 0.1 * (i + 1)}) for i, name in enumerate(MEASURED) if i < points
    }
    return Context(MixRules(frozenset(DIGESTS), 2), {}, [], NOBODY, digests, entries, folder)


def make_policy(folder: Path, **preference: float) -> Policy:
    write_json(folder / FRONTS / "demo.json", make_front(), replace=True)
    return asyncio.run(
        create_policy("pareto", {"front": "demo", "preference": preference}, make_context(folder))
    )


def choose(asked: Policy, preference: dict[str, float] | None = None) -> str:
    decision = asyncio.run(asked.route(Prompt("", preference=preference), NOBODY))
    assert not decision.abstained
    names = {mix: name for name, mix in make_context(Path()).entries.items()}
    assert names[decision.mix] in decision.reason
    return names[decision.mix]


def test_a_front_is_read_as_it_was_written_and_one_sided_preferences_get_its_ends(
    tmp_path: Path,
) -> None:
    asked = make_policy(tmp_path)
    assert choose(asked, {"math": 1}) == "demo-01"
    assert choose(asked, {"sql": 0.2, "math": 0}) == "demo-02"


def test_only_proportions_count_and_none_given_is_the_options_preference(tmp_path: Path) -> None:
    assert (
        choose(make_policy(tmp_path))
        == choose(make_policy(tmp_path), {"math": 7, "sql": 7})
        == "demo-03"
    )
    asked = make_policy(tmp_path, sql=3.0, math=1.0)
    assert choose(asked) == choose(asked, {"sql": 0.75, "math": 0.25}) == "demo-04"


def test_a_hollow_point_is_reached_which_no_weighted_sum_would_choose() -> None:
    values = torch.tensor([[0.0, -1.0], [-1.0, 0.0], [-0.6, -0.6]])
    of_each = scale_losses(values, values.amax(0), values.amin(0))
    assert tchebycheff(of_each, torch.tensor([0.5, 0.5])).argmin() == 2
    assert (of_each @ torch.tensor([0.5, 0.5])).argmin() != 2


def test_what_a_task_finds_equal_is_decided_by_the_others() -> None:
    assert (
        tchebycheff(torch.tensor([[0.0, 0.9], [0.0, 0.4]]), torch.tensor([1.0, 0.0])).argmin() == 1
    )


@pytest.mark.parametrize(
    ("preference", "says"),
    [
        ({"maths": 1.0, "sql": 1.0}, "preference names maths; the front 'demo' knows math, sql"),
        ({"sql": -1.0, "math": 2.0}, "finite numbers >= 0"),
        ({"sql": float("nan")}, "finite numbers >= 0"),
        ({"sql": float("inf")}, "finite numbers >= 0"),
        ({"sql": 0.0}, "finite numbers >= 0"),
        ({}, "finite numbers >= 0"),
    ],
)
def test_a_preference_that_means_nothing_is_refused(
    tmp_path: Path, preference: dict[str, float], says: str
) -> None:
    with pytest.raises(RouterError, match=says):
        choose(make_policy(tmp_path), preference)
    if preference:
        with pytest.raises(RouterError, match=says):
            make_policy(tmp_path, **preference)


def test_a_conversation_follows_its_preference_at_once(tmp_path: Path) -> None:
    asked = make_policy(tmp_path)
    math, sql = (
        asyncio.run(asked.route(Prompt("", preference={name: 1.0}), NOBODY)) for name in DIGESTS
    )
    assert asked.should_move(math, sql)
    assert not asked.should_move(math, Decision(math.mix))


def test_a_front_of_other_experts_or_entries_is_refused(tmp_path: Path) -> None:
    make_policy(tmp_path)
    for wrong, says in (
        (make_context(tmp_path, {"math": "m", "sql": "new"}), "other weights of sql.*--replace"),
        (make_context(tmp_path, {"math": "m"}), "other weights of sql"),
        (make_context(tmp_path, points=2), "entries that are gone: demo-03, demo-04"),
    ):
        with pytest.raises(RouterError, match=says):
            asyncio.run(create_policy("pareto", {"front": "demo"}, wrong))


def test_a_front_that_is_not_there_or_damaged_is_named(tmp_path: Path) -> None:
    make_policy(tmp_path)
    for name, says in (
        ("other", "no front 'other', there are: demo"),
        ("../demo", "letters, digits"),
    ):
        with pytest.raises(RouterError, match=says):
            asyncio.run(create_policy("pareto", {"front": name}, make_context(tmp_path)))
    file = tmp_path / FRONTS / "demo.json"
    for text in ("{", '{"tasks": [], "points": [], "digests": {}, "r2": {}}'):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(RouterError, match=r"demo\.json cannot be used.*make the front again"):
            asyncio.run(create_policy("pareto", {"front": "demo"}, make_context(tmp_path)))
