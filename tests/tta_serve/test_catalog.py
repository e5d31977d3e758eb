"""What `model` and `merge` mean together."""

from typing import Any

import pytest

from adapters.mix import Mix
from tta_serve.catalog import Catalog
from tta_serve.config import ConfigError, ServeConfig
from tta_serve.protocol import RequestError


def config(**library: Any) -> ServeConfig:
    return ServeConfig.model_validate(
        {
            "model": {"id": "demo", "source": "x"},
            "library": {"path": "x", "entries": {"half": {"sql": 0.5, "math": 0.5}}, **library},
            "policies": {"retrieval": {"type": "retrieval"}},
        }
    )


CATALOG = Catalog.of(config(), ("math", "sql"), layers=3)


@pytest.mark.parametrize("model", ["demo", "auto", None])
def test_the_served_name_is_left_to_the_default_policy(model: str | None) -> None:
    assert CATALOG.ask(model, None).policy == "retrieval"


@pytest.mark.parametrize(
    ("model", "mix"),
    [("demo:base", Mix()), ("demo:sql", Mix.of({"sql": 1})), ("demo:half", Mix.of({"sql": 0.5, "math": 0.5}))],
)
def test_a_pinned_name_is_its_mix(model: str, mix: Mix) -> None:
    assert CATALOG.ask(model, None).mix == mix


def test_merge_chooses_coefficients_a_policy_or_an_entry() -> None:
    assert CATALOG.ask("demo", {"experts": {"sql": 0.7, "math": 0.3}}).mix == Mix.of({"sql": 0.7, "math": 0.3})
    assert CATALOG.ask("demo", {"policy": "base"}).policy == "base"
    assert CATALOG.ask("demo", {"entry": "half"}).mix == CATALOG.entries["half"]


@pytest.mark.parametrize("model", ["gpt-4", "demo:", "demo:nope", "demo:sql:x", "", ":sql"])
def test_an_unknown_model_is_404_and_never_the_base(model: str) -> None:
    with pytest.raises(RequestError, match="demo:sql") as error:
        CATALOG.ask(model, None)
    assert error.value.status == 404


@pytest.mark.parametrize(
    ("merge", "says"),
    [
        ("sql", "valid dictionary"),
        ({}, "exactly one of: experts, policy, entry"),
        ({"policy": "base", "entry": "half"}, "exactly one"),
        ({"polcy": "base"}, "merge.polcy"),
        ({"policy": "nope"}, "there are: base, retrieval"),
        ({"entry": "nope"}, "there are: half"),
        ({"experts": {}}, "demo:base"),
        ({"experts": {"nope": 1}}, "the library holds: math, sql"),
        ({"experts": {"sql": float("nan")}}, "finite"),
        ({"experts": {"sql": 3}}, "[-2.0, 2.0]"),
        ({"experts": {"sql": "0.5"}}, "a coefficient is a number"),
        ({"experts": ["sql"]}, "valid dictionary"),
    ],
)
def test_an_unusable_merge_is_400_and_says_what_works(merge: Any, says: str) -> None:
    with pytest.raises(RequestError) as error:
        CATALOG.ask("demo", merge)
    assert error.value.status == 400
    assert says in str(error.value)


def test_a_pinned_model_with_merge_is_refused() -> None:
    with pytest.raises(RequestError, match="already fixes the mix"):
        CATALOG.ask("demo:sql", {"policy": "base"})


@pytest.mark.parametrize(
    ("entries", "says"),
    [({"sql": {"math": 1}}, "has that name"), ({"x": {"nope": 1}}, "unknown expert"), ({"x": {"sql": 9}}, "must lie in")],
)
def test_an_unusable_entry_stops_the_start(entries: dict[str, dict[str, float]], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        Catalog.of(config(entries=entries), ("math", "sql"), layers=3)
    assert says in str(error.value)
