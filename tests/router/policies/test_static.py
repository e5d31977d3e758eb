"""Mixes that are the same for everybody."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.coefficient import Pair
from adapters.errors import MixError
from adapters.library.entries import Entry, write_entry
from adapters.mix import Mix
from router.decision import Prompt
from router.errors import RouterError
from router.policy import Context
from router.registry import create_policy
from tests.factories.known_features import KnownFeatures

MANY = "abcdfg"  # more than a request may mix


def route(kind: str, options: Mapping[str, Any], context: Context | None = None) -> Mix:
    context = context or KnownFeatures(MANY).context
    policy = asyncio.run(create_policy(kind, options, context))
    return asyncio.run(policy.route(Prompt("anything"), context.probe)).mix


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, {}),
        ({"experts": {}}, {}),
        (
            {"experts": {"a": 0.51, "b": {"attention": 0.25, "mlp": 1}}},
            {"a": 0.5, "b": Pair(0.25, 1.0)},
        ),
        ({"experts": {"a": [0.5, 1]}}, {"a": (0.5, 1.0)}),
        ({"expert": "c"}, {"c": 1.0}),
        ({"entry": "half"}, {"a": 0.5}),
        ({"uniform": True}, dict.fromkeys(MANY, 0.15)),
        ({"task_arithmetic": 0.4}, dict.fromkeys(MANY, 0.4)),
    ],
)
def test_static_is_the_mix_it_is_told(options: dict[str, Any], wanted: dict[str, Any]) -> None:
    context = replace(KnownFeatures(MANY).context, entries={"half": Mix.of({"a": 0.5})})
    assert route("static", options, context) == Mix.of(wanted)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"expert": "a", "uniform": True}, "expert and uniform cannot both be the mix"),
        ({"entry": "none"}, "no entry 'none'; there are: half"),
        ({"task_arithmetic": 0.02}, "set a finer mix.grid"),
        ({"task_arithmetic": float("nan")}, "finite"),
        ({"experts": {"a": "much"}}, "a coefficient is a number"),
    ],
)
def test_static_says_what_is_wrong_with_its_options(options: dict[str, Any], says: str) -> None:
    context = replace(KnownFeatures(MANY).context, entries={"half": Mix.of({"a": 0.5})})
    with pytest.raises(RouterError, match=says):
        route("static", options, context)


def test_static_knows_no_other_experts_than_the_library() -> None:
    with pytest.raises(MixError, match="the library holds: a, b, c"):
        route("static", {"expert": "z"})


def test_learned_static_is_what_was_learned_and_nothing_else(tmp_path: Path) -> None:
    learned, other = Mix.of({"a": (0.5, 1.0)}), Mix.of({"a": 0.5})
    context = replace(
        KnownFeatures().context,
        entries={"learned": learned, "front-01": other, "half": other},
        artifacts=tmp_path,
    )
    for name, source in (
        ("learned", {"method": "learned"}),
        ("front-01", {"method": "pareto"}),
        ("old", {"method": "learned"}),
    ):
        write_entry(tmp_path / "entries", Entry(name, learned.as_dict(), {"a": "a" * 64}, source))
    assert route("learned_static", {"entry": "learned"}, context) == learned
    for name in ("half", "front-01", "none"):
        with pytest.raises(
            RouterError, match=f"there are: learned, old; make it: tta router learn --name {name}"
        ):
            route("learned_static", {"entry": name}, context)
    with pytest.raises(RouterError, match="experts that are gone or changed"):
        route("learned_static", {"entry": "old"}, context)
    with pytest.raises(RouterError, match="there are: none"):
        route("learned_static", {"entry": "learned"}, replace(context, artifacts=None))
