"""What `model` and `merge` mean together."""

from typing import Any

import pytest

from adapters.mix import Mix
from tta_serve.catalog import Catalog
from tta_serve.config import ConfigError, ServeConfig
from tta_serve.protocol import RequestError

FRONTS = {name: {"type": "pareto", "options": {"front": name}} for name in ("front", "other")}


def config(**library: Any) -> ServeConfig:
    return ServeConfig.model_validate(
        {
            "model": {"id": "demo", "source": "x"},
            "library": {"path": "x", "entries": {"half": {"sql": 0.5, "math": 0.5}}, **library},
            "policies": {"retrieval": {"type": "retrieval"}, **FRONTS},
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


def test_merge_chooses_coefficients_a_policy_an_entry_or_a_preference() -> None:
    asked = CATALOG.ask("demo", {"preference": {"sql": 2, "math": 0.5}})
    assert (asked.label, asked.policy, asked.preference) == ("front", "front", {"sql": 2, "math": 0.5})
    assert CATALOG.ask("demo", {"preference": {"sql": 1}, "policy": "other"}).policy == "other"
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
        ({"policy": "nope", "preference": {"sql": 1}}, "there are: base, retrieval"),
        ({"policy": "retrieval", "preference": {"sql": 1}}, "these do: front, other"),
        ({"entry": "half", "preference": {"sql": 1}}, "exactly one"),
        ({"policy": "front", "entry": "half", "preference": {"sql": 1}}, "exactly one"),
        ({"preference": {}}, "more than 0"),
        ({"preference": {"sql": 0, "math": 0}}, "more than 0"),
        ({"preference": {"sql": -1}}, "merge.preference.sql"),
        ({"preference": {"sql": float("nan")}}, "merge.preference.sql"),
        ({"preference": {"sql": float("inf")}}, "merge.preference.sql"),
        ({"preference": {"sql": True}}, "merge.preference.sql"),
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


def test_a_preference_goes_to_the_default_policy_if_that_heeds_one_and_nowhere_if_none_does() -> None:
    heeding = Catalog.of(config().model_copy(update={"default_policy": "other"}), ("math", "sql"), layers=3)
    assert heeding.ask("demo", {"preference": {"sql": 1}}).policy == "other"
    plain = config().model_copy(update={"policies": {}})
    with pytest.raises(RequestError, match="no policy of type pareto is configured"):
        Catalog.of(plain, ("math", "sql"), layers=3).ask("demo", {"preference": {"sql": 1}})


def test_the_librarys_entries_stand_beside_the_configs_of_any_number_of_experts() -> None:
    names = tuple("abcdef")
    saved = {"all": dict.fromkeys(names, 0.25), "deep": {"a": (0.5, 1.0, 0.0)}}
    catalog = Catalog.of(config(entries={"one": {"a": 1}}), names, 3, saved)
    assert catalog.ask("demo:all", None).mix == Mix.of(dict.fromkeys(names, 0.25))
    assert catalog.ask("demo", {"entry": "deep"}).mix == Mix.of({"a": (0.5, 1.0, 0.0)})
    assert catalog.models()[-3:] == ["demo:one", "demo:all", "demo:deep"]


@pytest.mark.parametrize(
    ("saved", "says"),
    [({"half": {"sql": 1.0}}, "another entry has that name"), ({"x": {"sql": (1.0, 2.0)}}, "library's entry 'x'")],
)
def test_an_unusable_entry_of_the_library_is_refused_by_name(saved: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Catalog.of(config(), ("math", "sql"), 3, saved)


def test_an_entry_of_the_config_goes_with_its_expert_unless_all_must_be_there() -> None:
    assert "half" not in Catalog.of(config(), ("sql",), 3, strict=False).entries
    assert "half" in Catalog.of(config(), ("math", "sql"), 3, strict=False).entries
    with pytest.raises(ConfigError, match=r"library\.entries\.half: unknown expert 'math'"):
        Catalog.of(config(), ("sql",), 3)
