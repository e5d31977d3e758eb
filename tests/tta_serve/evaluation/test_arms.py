"""`tta eval`: who is compared, on which questions; static merges as a library to serve."""

from pathlib import Path

import pytest
import torch

from adapters.coefficient import Pair, to_json
from adapters.files.checkpoint import Checkpoint
from adapters.library.library import Library
from adapters.merge.registry import METHODS
from tests.factories.experts import make_expert, make_plain_base
from tta_serve.config.sections import ServeConfig
from tta_serve.evaluation.arms import (
    EvaluatedArm,
    MixRequest,
    RequestFactory,
    add_controls,
    check_arms,
    choose_arms,
    list_arms,
    list_merge_arms,
    reduce_to_merges,
)
from tta_serve.evaluation.merges import QUICK_METHODS, build_merged_library, list_methods
from tta_serve.evaluation.plan import Plan, limit_tokens
from tta_serve.evaluation.questions import Question, Suite
from tta_serve.evaluation.results import ArmAnswer
from tta_serve.exceptions import ConfigError

NAMES = RequestFactory("m", 2)


def config(library: Path, policies: dict[str, object]) -> ServeConfig:
    return ServeConfig.model_validate(
        {
            "model": {"id": "m", "source": "somewhere"},
            "library": {
                "path": library,
                "entries": {"half": {"sql": 0.5}},
                "capacity": {"ranks": 4, "experts": 2},
            },
            "policies": policies,
            "default_policy": "base",
        }
    )


def test_all_that_is_compared_has_a_name_a_kind_and_a_way_to_be_asked(tmp_path: Path) -> None:
    given = add_controls(
        config(
            tmp_path,
            {
                "near": {"type": "retrieval"},
                "even": {"type": "static", "options": {"uniform": True}},
            },
        )
    )
    arms = list_arms(given, ["sql", "math"], ["half", "learnt"])
    assert {arm.name: arm.kind for arm in arms} == {
        "base": "base",
        "oracle": "oracle",
        "expert math": "expert",
        "expert sql": "expert",
        "entry half": "static",
        "entry learnt": "learned",
        "near": "policy",
        "even": "static",
        "random_control": "control",
    }
    assert [arm.name for arm in arms if arm.decides] == ["near", "even", "random_control"]
    assert [arm.name for arm in choose_arms(arms, ["near", "expert"])] == [
        "base",
        "oracle",
        "expert math",
        "expert sql",
        "near",
    ]
    with pytest.raises(ConfigError, match="no arm far; there are: base"):
        check_arms(arms, ["near", "far"])
    with pytest.raises(ConfigError, match="rename oracle"):
        check_arms([*arms, EvaluatedArm("oracle", "policy")], [])


def test_equal_mixes_are_asked_for_alike() -> None:
    assert NAMES.mix_oracle(()) == NAMES.base == NAMES.mix({}) == MixRequest("m:base")
    assert NAMES.mix_oracle(("sql",)) == NAMES.mix({"sql": 1.0}, "near")
    assert NAMES.mix_oracle(("sql", "math")) == NAMES.mix({"math": 0.5, "sql": 0.5})
    assert NAMES.mix({"sql": 1.0}).extra == {"merge": {"experts": {"sql": 1.0}}}
    assert NAMES.mix({"a": 1.0, "b": 1.0, "c": 1.0}, "even").extra == {"merge": {"policy": "even"}}
    assert NAMES.base.extra == {}
    assert [NAMES.base.experts, NAMES.pin("half").experts, NAMES.mix({"sql": 1.0}).experts] == [
        {},
        {"half": 1.0},
        {"sql": 1.0},
    ]


def test_the_choice_is_the_expert_with_the_most_weight() -> None:
    cell = ArmAnswer({"sql": 0.5, "math": to_json(Pair(0.2, 1.0)), "dates": [0.0, -1.0, 0.5]})
    assert cell.choice == "math"
    assert cell.right(Question("mixed", "p", "w", "math"))
    assert cell.right(Question("two_skills", "p", "w", "sql+dates"))
    assert not cell.right(Question("two_skills", "p", "w", "sql+orders"))
    assert ArmAnswer({}).choice is None
    assert ArmAnswer({}).right(Question("everyday", "p"))


def test_arms_are_asked_what_can_tell_them_apart() -> None:
    names = (
        "mixed",
        "paraphrased",
        "corrupted",
        "two_skills",
        "everyday",
        "removed",
        "adversarial",
    )
    strengths = {"corrupted": ("medium", "strong")}
    suite = Suite(
        tuple(
            Question(name, f"{name} {n}", "w", "sql", strength=strength)
            for name in names
            for strength in strengths.get(name, (None,))
            for n in range(10)
        )
    )
    quick = Plan(suite, "near", True, 0, 4, 3, ("near",))
    arms = {
        "base": (EvaluatedArm("base", "base", NAMES.base), 70),
        "oracle": (EvaluatedArm("oracle", "oracle"), 60),
        "the default": (EvaluatedArm("near", "policy"), 60),
        "a policy": (EvaluatedArm("other", "policy"), 5 * 4 + 10),
        "an expert": (EvaluatedArm("expert sql", "expert", NAMES.pin("sql")), 4 + 10),
        "a merge": (EvaluatedArm("merge ties", "static", NAMES.pin("merge-ties")), 4 + 10),
    }
    assert {name: len(quick.list_numbers(arm)) for name, (arm, _) in arms.items()} == {
        name: n for name, (_, n) in arms.items()
    }
    full = Plan(suite, "near", False, 0, None, 3, ("near",))
    assert [
        len(full.list_numbers(arms[name][0])) for name in ("a policy", "an expert", "a merge")
    ] == [
        70,
        70,
        40,
    ]
    assert quick.group_removed() == {"sql": suite.groups["removed"]}
    assert (
        sorted(quick.shuffle_traffic())
        == suite.groups["mixed"]
        != quick.shuffle_traffic()
        == full.shuffle_traffic()
    )


def test_answers_may_be_as_long_as_the_longest_that_is_wanted() -> None:
    rows = [("sql", "a b c"), ("sql", "a"), ("math", "a b"), (None, None)]
    found = [Question("mixed", "p", want, task) for task, want in rows]
    parts = Question("two_skills", "p", "a b c", "sql+math", ("a",), kind="parts")
    assert limit_tokens(Suite((*found, parts)), lambda text: len(text.split())) == [7, 7, 6, 4, 9]


def test_merges_become_experts_of_a_copy(tmp_path: Path) -> None:
    base = make_plain_base(tmp_path / "base", 0)
    for seed, name in enumerate(("math", "sql")):
        make_expert(tmp_path / "library" / name, base, seed=seed, layers=range(2), rank=2 + seed)
    source, done = Library.open(tmp_path / "library"), []
    methods = ["linear", "ties", "slerp", "iso_c"]
    built = build_merged_library(
        source, tmp_path / "merged", Checkpoint.open(base), methods, lambda: done.append(1)
    )
    library = Library.open(built.root)
    assert set(library.names) == {"math", "sql", *(f"merge-{method}" for method in built.kept)}
    assert len(done) == len(methods) == len(built.kept) + len(built.refused)
    assert (built.experts, built.ranks) == (
        len(library.names),
        sum(max(f.rank for f in e.factors.values()) for e in library),
    )
    mean = library.expert("merge-linear").factors["model.layers.0.mlp.up_proj"].dense()
    each = [
        source.expert(name).factors["model.layers.0.mlp.up_proj"].dense() for name in source.names
    ]
    torch.testing.assert_close(mean, sum(each) / 2)
    assert built.kept["linear"] == pytest.approx(1)
    assert built.kept["ties"] < 1
    assert [path.name for path in (tmp_path / "library").iterdir()] != [
        path.name for path in built.root.iterdir()
    ]
    served = reduce_to_merges(
        config(tmp_path, {"near": {"type": "retrieval"}}), built.root, built.experts, built.ranks
    )
    assert (served.library.capacity.experts, served.library.capacity.ranks) == (
        built.experts,
        built.ranks,
    )
    assert (set(served.policies), served.default_policy, served.library.entries) == (
        {"base"},
        "base",
        {},
    )
    plain, tuned = list_merge_arms(served, ["linear", "ties"], {"ties": 4.2})
    assert (plain.pinned, tuned.pinned) == (
        MixRequest.make("m", experts={"merge-linear": 1.0}),
        MixRequest.make("m", experts={"merge-ties": 4.2}),
    )
    assert served.mix.maximum >= 4.2


def test_methods_apply_by_the_number_of_experts_and_without_calibration() -> None:
    assert "slerp" in list_methods(2)
    assert "slerp" not in list_methods(6)
    assert not {"fisher", "regmean"} & set(list_methods(6))
    assert set(QUICK_METHODS) <= set(list_methods(6)) <= set(METHODS)
