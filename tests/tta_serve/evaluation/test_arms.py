"""`tta eval`: who is compared, on which questions; static merges as a library to serve."""

from pathlib import Path

import pytest
import torch

from adapters.coefficient import Pair, to_json
from adapters.files.checkpoint import Checkpoint
from adapters.library.library import Library
from adapters.merge.registry import METHODS
from tests.factories.experts import make_expert, make_plain_base
from tests.factories.tiny_library import make_library
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
    reduce_to_asked,
    reduce_to_merges,
)
from tta_serve.evaluation.match_rules import MatchRule
from tta_serve.evaluation.merge_variants import MergeVariant, TunedMerge, list_variants
from tta_serve.evaluation.merges import (
    QUICK_METHODS,
    MergedLibrary,
    build_merged_library,
    list_methods,
)
from tta_serve.evaluation.plan import Plan, limit_tokens
from tta_serve.evaluation.questions import Question, Suite
from tta_serve.evaluation.results import ArmAnswer
from tta_serve.exceptions import ConfigError
from tta_serve.offline.calibration import MEASURED

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


def test_a_server_has_the_policies_that_are_asked_and_who_stands_in_for_them(
    tmp_path: Path,
) -> None:
    policies = {
        "near": {"type": "retrieval", "fallback": "even"},
        "even": {"type": "static", "options": {"uniform": True}, "fallback": "far"},
        "far": {"type": "retrieval"},
        "slow": {"type": "prompt_nll"},
        "chance": {"type": "random_control"},
    }
    given = config(tmp_path, policies)
    assert reduce_to_asked(given, []) == given
    for wanted, left in ((["near"], {"near", "even", "far"}), (["control", "merge"], {"chance"})):
        assert reduce_to_asked(given, wanted).policies.keys() == {"base", *left}
    assert reduce_to_asked(given, ["near"]).policies["near"] == given.policies["near"]


def test_equal_mixes_are_asked_for_alike() -> None:
    assert NAMES.ask_oracle(()) == NAMES.base == NAMES.mix({}) == MixRequest("m:base")
    assert NAMES.ask_oracle(("sql",)) == NAMES.mix({"sql": 1.0}, "near")
    both = NAMES.ask_oracle(("sql", "math"))
    assert both == NAMES.answer_in_segments([{"sql": 1.0}, {"math": 1.0}])
    assert both.extra == {"merge": {"segments": [{"sql": 1.0}, {"math": 1.0}]}}
    assert both.list_segments() == [{"sql": 1.0}, {"math": 1.0}]
    assert NAMES.mix({"sql": 1.0}).extra == {"merge": {"experts": {"sql": 1.0}}}
    assert NAMES.mix({"a": 1.0, "b": 1.0, "c": 1.0}, "even").extra == {"merge": {"policy": "even"}}
    assert NAMES.base.extra == {}
    asked = [NAMES.base, NAMES.pin("half"), NAMES.mix({"sql": 1.0})]
    assert [one.list_segments() for one in asked] == [[{}], [{"half": 1.0}], [{"sql": 1.0}]]


def test_the_choice_is_the_expert_with_the_most_weight() -> None:
    cell = ArmAnswer({"sql": 0.5, "math": to_json(Pair(0.2, 1.0)), "dates": [0.0, -1.0, 0.5]})
    assert cell.choice == "math"
    assert cell.right(Question("mixed", "p", "w", "math"))
    assert cell.right(Question("two_skills", "p", "w", "sql+dates"))
    assert not cell.right(Question("two_skills", "p", "w", "sql+orders"))
    cell = ArmAnswer({"sql": 1.0}, then=[{"dates": 1.0}])
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
        "base": (EvaluatedArm("base", "base", NAMES.base), 5 * 2 + 4),
        "oracle": (EvaluatedArm("oracle", "oracle"), 60),
        "the default": (EvaluatedArm("near", "policy"), 60),
        "a policy": (EvaluatedArm("other", "policy"), 5 * 4 + 10),
        "an expert": (EvaluatedArm("expert sql", "expert", NAMES.pin("sql")), 2 + 10),
        "a merge": (EvaluatedArm("merge ties", "merge", NAMES.pin("merge-ties")), 2 + 4),
        "a mix": (EvaluatedArm("uniform", "static"), 2 + 4),
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
    assert full.group_removed() == {"sql": suite.groups["removed"]}
    assert quick.group_removed() == {}
    assert (
        sorted(quick.shuffle_traffic())
        == suite.groups["mixed"]
        != quick.shuffle_traffic()
        == full.shuffle_traffic()
    )


@pytest.mark.parametrize("quick", [True, False])
def test_benchmarks_are_asked_of_all_who_are_judged_but_the_oracle(quick: bool) -> None:
    suite = Suite(
        tuple(
            Question("benchmarks", str(n), "w", kind="match", benchmark=name, rule=MatchRule())
            for name in ("one", "two")
            for n in range(10)
        )
    )
    plan = Plan(suite, "near", quick, 0, 4 if quick else None, 3, ("near",))
    few = 2 * 4 if quick else 20
    arms = {
        EvaluatedArm("base", "base", NAMES.base): 20,
        EvaluatedArm("oracle", "oracle"): 0,
        EvaluatedArm("near", "policy"): 20,
        EvaluatedArm("other", "policy"): few,
        EvaluatedArm("expert sql", "expert", NAMES.pin("sql")): few,
        EvaluatedArm("merge ties", "merge", NAMES.pin("merge-ties")): few,
        EvaluatedArm("random_control", "control"): few,
    }
    assert {arm.name: len(plan.list_numbers(arm)) for arm in arms} == {
        arm.name: n for arm, n in arms.items()
    }
    assert plan.shuffle_traffic() == []
    assert len(plan.list_timed()) == 3


def test_a_rule_says_how_long_an_answer_may_be() -> None:
    rule = MatchRule(most_tokens=50)
    long = "a b c d e f g h i j k l"
    ruled = Question("benchmarks", "p", long, kind="match", benchmark="one", rule=rule)
    plain = Question("everyday", "p")
    assert limit_tokens(Suite((ruled, plain)), lambda text: len(text.split())) == [50, 4]


def test_answers_may_be_little_longer_than_what_is_wanted() -> None:
    rows = [("sql", "a b c"), ("sql", "a"), ("math", "a b"), (None, None)]
    found = [Question("mixed", "p", want, task) for task, want in rows]
    parts = Question("two_skills", "p", "a b c", "sql+math", ("a",), kind="parts")
    assert limit_tokens(Suite((*found, parts)), lambda text: len(text.split())) == [7, 5, 6, 4, 30]


def test_merges_become_experts_of_a_copy(tmp_path: Path) -> None:
    base = make_plain_base(tmp_path / "base", 0)
    for seed, name in enumerate(("math", "sql")):
        make_expert(tmp_path / "library" / name, base, seed=seed, layers=range(2), rank=2 + seed)
    source, done = Library.open(tmp_path / "library"), []
    plain = list_variants(["linear", "slerp", "iso_c"], tuned=False)
    variants = [*plain, *list_variants(["ties"], tuned=True)]
    built = build_merged_library(
        source, tmp_path / "merged", Checkpoint.open(base), variants, lambda: done.append(1)
    )
    library = Library.open(built.root)
    assert set(library.names) == {"math", "sql", *(variant.expert for variant in built.kept)}
    assert len(done) == len(variants) == len(built.kept) + len(built.refused)
    assert (built.experts, built.ranks) == (
        len(library.names),
        sum(max(f.rank for f in e.factors.values()) for e in library),
    )
    mean = library.expert("merge-linear").factors["model.layers.0.mlp.up_proj"].dense()
    each = [
        source.expert(name).factors["model.layers.0.mlp.up_proj"].dense() for name in source.names
    ]
    torch.testing.assert_close(mean, sum(each) / 2)
    assert built.kept[MergeVariant("linear")] == pytest.approx(1)
    assert built.kept[MergeVariant("ties", 0.2)] < 1
    few, many = (
        library.expert(f"merge-ties-density-{density}").factors["model.layers.0.mlp.up_proj"]
        for density in ("0.1", "0.9")
    )
    assert few.dense().norm() < many.dense().norm(), "the more entries are left, the more there is"
    assert [path.name for path in (tmp_path / "library").iterdir()] != [
        path.name for path in built.root.iterdir()
    ]


def test_a_server_of_merges_has_room_for_them_and_answers_by_the_best(tmp_path: Path) -> None:
    served = reduce_to_merges(config(tmp_path, {"near": {"type": "retrieval"}}), tmp_path, 9, 99)
    assert (served.library.capacity.experts, served.library.capacity.ranks) == (9, 99)
    assert (set(served.policies), served.default_policy, served.library.entries) == (
        {"base"},
        "base",
        {},
    )
    plain_arm, tuned_arm = list_merge_arms(
        served, [TunedMerge(MergeVariant("linear")), TunedMerge(MergeVariant("ties", 0.5), 4.2)]
    )
    assert (plain_arm.pinned, tuned_arm.pinned) == (
        MixRequest.make("m", experts={"merge-linear": 1.0}),
        MixRequest.make("m", experts={"merge-ties-density-0.5": 4.2}),
    )
    assert (plain_arm.name, tuned_arm.name) == ("merge linear", "merge ties")
    assert served.mix.maximum >= 4.2


def test_merges_are_calibrated_by_the_examples_of_experts(tmp_path: Path) -> None:
    library = make_library(tmp_path)
    variants = list_variants(["fisher", "regmean", "lot", "linear"], tuned=True)

    def build(name: str) -> MergedLibrary:
        return build_merged_library(
            Library.open(library).usable(),
            tmp_path / name,
            Checkpoint.open(library.parent / "base"),
            variants,
            lambda: None,
        )

    merged = Library.open(build("whole").root)
    up = "model.layers.0.mlp.up_proj"
    found = {variant.method: merged.expert(variant.expert).factors[up] for variant in variants}
    mean = found.pop("linear").dense()
    assert all((factor.dense() - mean).norm() > 0.01 * mean.norm() for factor in found.values())

    # Without examples the others are made nevertheless.
    (library / "sql" / "examples.txt").unlink()
    silent = build("silent")
    assert silent.kept.keys() == {MergeVariant("linear")}
    assert all("'sql' has no example prompts" in reason for reason in silent.refused.values())


def test_methods_apply_by_the_number_of_experts() -> None:
    assert "slerp" in list_methods(2)
    assert "slerp" not in list_methods(6)
    assert {"fisher", "regmean", "lot"} <= set(list_methods(6)) <= set(METHODS)
    assert set(QUICK_METHODS) <= set(list_methods(6))
    assert not any(METHODS[method].needs & MEASURED for method in QUICK_METHODS)
