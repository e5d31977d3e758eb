"""What `model` and `merge` mean together."""

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from adapters.coefficient import Coefficient, Pair
from adapters.library.twins import TwinTies
from adapters.mix import Mix
from tta_serve.config.sections import ServeConfig
from tta_serve.exceptions import ConfigError, RequestError
from tta_serve.serving.reading.catalog import Catalog

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
    assert CATALOG.read_wish(model, None).policy == "retrieval"


@pytest.mark.parametrize(
    ("model", "mix", "expert"),
    [
        ("demo:base", Mix(), None),
        ("demo:sql", Mix.of({"sql": 1}), "sql"),
        ("sql", Mix.of({"sql": 1}), "sql"),
        ("demo:half", Mix.of({"sql": 0.5, "math": 0.5}), None),
    ],
)
def test_a_pinned_name_is_its_mix(model: str, mix: Mix, expert: str | None) -> None:
    for merge in (None, {"acts_from": "start"}):
        asked = CATALOG.read_wish(model, merge)
        assert (asked.mix, asked.pinned) == (mix, expert)


def test_merge_chooses_coefficients_a_policy_an_entry_or_a_preference() -> None:
    asked = CATALOG.read_wish("demo", {"preference": {"sql": 2, "math": 0.5}})
    assert (asked.label, asked.policy, asked.preference) == (
        "front",
        "front",
        {"sql": 2, "math": 0.5},
    )
    assert (
        CATALOG.read_wish("demo", {"preference": {"sql": 1}, "policy": "other"}).policy == "other"
    )
    assert CATALOG.read_wish("demo", {"experts": {"sql": 0.7, "math": 0.3}}).mix == Mix.of(
        {"sql": 0.7, "math": 0.3}
    )
    assert CATALOG.read_wish("demo", {"policy": "base"}).policy == "base"
    assert CATALOG.read_wish("demo", {"entry": "half"}).mix == CATALOG.entries["half"]


def test_a_text_that_policies_are_to_read_goes_with_the_policy_that_reads_it() -> None:
    for merge, policy in (
        ({"read": "x"}, "retrieval"),
        ({"read": "x", "policy": "front"}, "front"),
        ({"read": "x", "preference": {"sql": 1}}, "front"),
        ({"read": "x", "preference": {"sql": 1}, "policy": "other"}, "other"),
    ):
        asked = CATALOG.read_wish("demo", merge)
        assert (asked.read, asked.policy, asked.mix) == ("x", policy, None)
    assert CATALOG.read_wish("demo", None).read is None


@pytest.mark.parametrize(
    ("experts", "mix", "warned"),
    [
        ({"sql": 0.5}, {"sql": 0.5}, []),
        ({"sql": 0.02, "math": 1}, {"math": 1}, ["sql"]),
        ({"sql": 0.02, "math": -0.01}, {}, ["sql", "math"]),
        ({"sql": 0, "math": 1}, {"math": 1}, []),
        ({"sql": [0.01, 1, 1]}, {"sql": (0.0, 1.0, 1.0)}, ["sql"]),
        ({"sql": [0, 1, 1]}, {"sql": (0.0, 1.0, 1.0)}, []),
        ({"sql": 0.04}, {"sql": 0.05}, []),
    ],
)
def test_a_coefficient_that_the_grid_makes_0_is_warned_of(
    experts: Any, mix: Any, warned: list[str]
) -> None:
    asked = CATALOG.read_wish("demo", {"experts": experts})
    assert asked.mix == Mix.of(mix)
    assert asked.warnings == tuple(
        f"merge.experts.{name}: a coefficient below half of the grid of 0.05 was taken as 0"
        for name in warned
    )


def test_warnings_add_up() -> None:
    asked = CATALOG.read_wish("demo", {"experts": {"sql": 0.01}})
    assert asked.with_warnings(iter(["a", "b"])).warnings == (*asked.warnings, "a", "b")
    assert asked.with_warnings([]) is asked


def test_nulls_in_merge_are_as_if_they_were_not_there() -> None:
    nothing = dict.fromkeys(["experts", "policy", "entry", "preference", "read"])
    assert CATALOG.read_wish("demo", nothing | {"policy": "base", "entry": None}).policy == "base"
    assert CATALOG.read_wish("demo", nothing | {"entry": "half"}).mix == CATALOG.entries["half"]
    assert CATALOG.read_wish("demo", nothing | {"read": "x"}).policy == "retrieval"
    for merge in ({"policy": None, "entry": None}, nothing):
        with pytest.raises(RequestError, match="exactly one of") as error:
            CATALOG.read_wish("demo", merge)
        assert error.value.param == "merge"


def test_all_names_are_listed_once_auto_and_bare_experts_too() -> None:
    names = ["demo", "auto", "demo:base", "demo:math", "demo:sql", "demo:half", "math", "sql"]
    assert CATALOG.models() == names
    for name in names:
        CATALOG.read_wish(name, None)


def test_the_bare_name_of_an_expert_pins_it_and_nothing_else_has_a_bare_name() -> None:
    asked = CATALOG.read_wish("sql", None)
    assert (asked.label, asked.mix, asked.free) == ("pinned", Mix.of({"sql": 1}), False)
    for name in ("half", "base"):
        with pytest.raises(RequestError, match="does not exist"):
            CATALOG.read_wish(name, None)


def test_an_expert_that_is_called_as_the_server_is_or_auto_does_not_take_the_name() -> None:
    catalog = Catalog.of(config(entries={}), ("auto", "demo", "sql"), layers=3)
    assert catalog.models() == [
        "demo",
        "auto",
        "demo:base",
        "demo:auto",
        "demo:demo",
        "demo:sql",
        "sql",
    ]
    for name in ("auto", "demo"):
        assert catalog.read_wish(name, None).policy == "retrieval"
        assert catalog.read_wish(f"demo:{name}", None).mix == Mix.of({name: 1})


@pytest.mark.parametrize(
    "merge",
    [
        {},
        {"policy": "base"},
        {"entry": "half"},
        {"experts": {"sql": 1}},
        {"read": "x"},
        {"entry": None},
    ],
)
def test_where_a_mix_acts_is_said_beside_anything(merge: dict[str, Any]) -> None:
    alone = None if not any(merge.values()) else merge
    asked = CATALOG.read_wish("demo", {**merge, "acts_from": "answer"})
    assert asked.acts_from == "answer"
    assert replace(asked, acts_from=None) == CATALOG.read_wish("demo", alone)


def test_where_a_pinned_mix_acts_may_be_said() -> None:
    asked = CATALOG.read_wish("demo:sql", {"acts_from": "last_user_turn"})
    assert (asked.mix, asked.acts_from) == (Mix.of({"sql": 1}), "last_user_turn")


def test_only_a_request_that_asks_for_nothing_is_free_for_an_experiment() -> None:
    free: list[Any] = [None, {"read": "x"}]
    for merge in free:
        assert CATALOG.read_wish("demo", merge).free
    for merge in (
        {"policy": "retrieval"},
        {"entry": "half"},
        {"experts": {"sql": 1}},
        {"preference": {"sql": 1}},
    ):
        assert not CATALOG.read_wish("demo", merge).free


@pytest.mark.parametrize(
    "model", ["gpt-4", "demo:", "demo:nope", "demo:sql:x", "", ":sql", "SQL", "sql ", "demo:sql\n"]
)
def test_an_unknown_model_is_404_and_never_the_base(model: str) -> None:
    with pytest.raises(RequestError, match="demo:sql") as error:
        CATALOG.read_wish(model, None)
    assert error.value.status == 404


def test_segments_are_mixes_of_which_the_first_one_counts() -> None:
    wish = CATALOG.read_wish("demo", {"segments": [{"sql": 1}, {}, {"math": 0.001, "sql": 0.5}]})
    assert (wish.label, wish.mix) == ("explicit", Mix.of({"sql": 1.0}))
    assert wish.then == (Mix(), Mix.of({"sql": 0.5}))
    assert [text[:23] for text in wish.warnings] == ["merge.segments[2].math:"]


@pytest.mark.parametrize(
    ("merge", "says"),
    [
        ("sql", "valid dictionary"),
        ({}, "exactly one of: experts, segments, policy, entry"),
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
        ({"segments": [{"sql": 1}]}, "merge.segments: List should have at least 2 items"),
        ({"segments": [{"sql": 1}] * 9}, "merge.segments: List should have at most 8 items"),
        ({"segments": [{"sql": 1}, {"nope": 1}]}, "merge.segments[1]: unknown expert 'nope'"),
        ({"segments": [{"sql": 1}, {"sql": True}]}, "merge.segments.1.sql"),
        ({"segments": [{"sql": 1}, "math"]}, "merge.segments.1: Input should be a valid dict"),
        ({"segments": [{"sql": 1}, {}], "experts": {"sql": 1}}, "exactly one"),
        ({"segments": [{"sql": 1}, {}], "read": "x"}, "leave nothing to a policy"),
        ({"read": ""}, "merge.read: String should have at least 1 character"),
        ({"read": 5}, "merge.read: Input should be a valid string"),
        ({"read": "x", "entry": "half"}, "leave nothing to a policy"),
        ({"read": "x", "experts": {"sql": 1}}, "leave nothing to a policy"),
        ({"acts_from": "middle"}, "merge.acts_from: Input should be 'start', 'user_turn'"),
        ({"acts_from": 5, "policy": "base"}, "merge.acts_from"),
        ({"acts_from": None}, "exactly one"),
        ({"acts_from": "answer", "policy": "base", "entry": "half"}, "exactly one"),
        ({"policy": 5}, "merge.policy: Input should be a valid string"),
        ([], "merge: Input should be a valid dictionary"),
        (False, "merge: Input should be a valid dictionary"),
    ],
)
def test_an_unusable_merge_is_400_and_says_what_works(merge: Any, says: str) -> None:
    with pytest.raises(RequestError) as error:
        CATALOG.read_wish("demo", merge)
    assert error.value.status == 400
    assert says in str(error.value)


def test_a_pinned_model_with_merge_is_refused() -> None:
    with pytest.raises(RequestError, match="already fixes the mix"):
        CATALOG.read_wish("demo:sql", {"policy": "base"})


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"sql": {"math": 1}}, "has that name"),
        ({"x": {"nope": 1}}, "unknown expert"),
        ({"x": {"sql": 9}}, "must lie in"),
    ],
)
def test_an_unusable_entry_stops_the_start(entries: dict[str, dict[str, float]], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        Catalog.of(config(entries=entries), ("math", "sql"), layers=3)
    assert says in str(error.value)


def test_a_preference_goes_to_the_default_policy_if_that_heeds_one_and_nowhere_if_none_does() -> (
    None
):
    heeding = Catalog.of(
        config().model_copy(update={"default_policy": "other"}), ("math", "sql"), layers=3
    )
    assert heeding.read_wish("demo", {"preference": {"sql": 1}}).policy == "other"
    plain = config().model_copy(update={"policies": {}})
    with pytest.raises(RequestError, match="no policy of type pareto is configured"):
        Catalog.of(plain, ("math", "sql"), layers=3).read_wish("demo", {"preference": {"sql": 1}})


def test_the_librarys_entries_stand_beside_the_configs_of_any_number_of_experts() -> None:
    names = tuple("abcdef")
    saved: dict[str, dict[str, Coefficient]] = {
        "all": dict.fromkeys(names, 0.25),
        "deep": {"a": (0.5, 1.0, 0.0)},
    }
    catalog = Catalog.of(config(entries={"one": {"a": 1}}), names, 3, saved)
    assert catalog.read_wish("demo:all", None).mix == Mix.of(dict.fromkeys(names, 0.25))
    assert catalog.read_wish("demo", {"entry": "deep"}).mix == Mix.of({"a": (0.5, 1.0, 0.0)})
    assert catalog.models()[-9:-6] == ["demo:one", "demo:all", "demo:deep"]
    assert catalog.models()[-6:] == [*names]


@pytest.mark.parametrize(
    ("saved", "says"),
    [
        ({"half": {"sql": 1.0}}, "another entry has that name"),
        ({"x": {"sql": (1.0, 2.0)}}, "library's entry 'x'"),
    ],
)
def test_an_unusable_entry_of_the_library_is_refused_by_name(
    saved: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        Catalog.of(config(), ("math", "sql"), 3, saved)


def test_an_entry_of_the_config_goes_with_its_expert_unless_all_must_be_there() -> None:
    assert "half" not in Catalog.of(config(), ("sql",), 3, strict=False).entries
    assert "half" in Catalog.of(config(), ("math", "sql"), 3, strict=False).entries
    with pytest.raises(ConfigError, match=r"library\.entries\.half: unknown expert 'math'"):
        Catalog.of(config(), ("sql",), 3)


TIES = TwinTies({"t-sql": "t-shared", "t-math": "t-shared"}, frozenset({"t-shared"}))
PARTS = ("sql", "t-math", "t-shared", "t-sql")


def test_parts_of_twin_merging_are_named_with_the_shared_one_always_on() -> None:
    entries = {
        "all": {"twin": "t"},
        "some": {"twin": "t", "weights": {"sql": 0.5, "math": {"attention": 1, "mlp": 0}}},
    }
    catalog = Catalog.of(config(entries=entries), PARTS, layers=3, ties=TIES)
    shared = {"t-shared": 1.0}
    assert catalog.read_wish("t-sql", None).mix == Mix.of({**shared, "t-sql": 1})
    assert catalog.read_wish("demo:t-shared", None).mix == Mix.of(shared)
    assert catalog.read_wish("sql", None).mix == Mix.of({"sql": 1})
    asked = catalog.read_wish("demo", {"experts": {"t-sql": 0.5, "sql": 0.25}})
    assert asked.mix == Mix.of({**shared, "t-sql": 0.5, "sql": 0.25})
    assert catalog.read_wish("demo", {"entry": "all"}).mix == Mix.of(shared)
    assert catalog.read_wish("demo:some", None).mix == Mix.of(
        {**shared, "t-sql": 0.5, "t-math": Pair(1.0, 0.0)}
    )


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"twin": "u"}, "unknown expert 'u-shared'"),
        ({"twin": "t", "weights": {"dates": 1}}, "unknown expert 't-dates'"),
        ({"twin": "t", "weight": {}}, "weight"),
        ({"twin": "t", "weights": {"sql": "much"}}, "a coefficient is a number"),
    ],
)
def test_an_entry_of_parts_that_are_not_there_is_refused(entry: Any, says: str) -> None:
    with pytest.raises((ConfigError, ValidationError), match=says):
        Catalog.of(config(entries={"x": entry}), PARTS, layers=3, ties=TIES)


def test_an_expert_called_twin_is_no_prefix() -> None:
    catalog = Catalog.of(config(entries={"x": {"twin": 0.5}}), ("twin",), layers=3)
    assert catalog.entries["x"] == Mix.of({"twin": 0.5})
