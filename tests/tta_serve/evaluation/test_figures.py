"""`tta eval`: the figures of a hand-made result, and the report of them."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.coefficient import Json
from tta_serve.evaluation import plots, report
from tta_serve.evaluation.arms import EvaluatedArm, Kind, MixRequest
from tta_serve.evaluation.figures import BETTER, compute_figures
from tta_serve.evaluation.match_rules import MatchRule
from tta_serve.evaluation.merge_variants import MergeVariant, TunedMerge
from tta_serve.evaluation.questions import Question, Suite
from tta_serve.evaluation.results import ArmAnswer, ArmRecord, LiveTraffic, Results
from tta_serve.evaluation.scoring import Score, score

PINNED = MixRequest("m:pinned")
Rule = Callable[[Question], dict[str, Json]]


def questions() -> list[Question]:
    found = []
    for task in ("sql", "math"):
        found += [Question("mixed", f"{task} {n}", f"answer {n}", task) for n in range(10)]
        found += [
            Question("paraphrased", f"please {task} {n}", f"answer {n}", task) for n in range(4)
        ]
        for strength in ("light", "medium", "strong"):
            found += [
                Question("corrupted", f"{task} {strength} {n}", "answer", task, strength=strength)
                for n in range(4)
            ]
        found += [Question("adversarial", f"not {task} {n}", "answer", task) for n in range(2)]
        found += [Question("removed", f"without {task} {n}", "answer", task) for n in range(2)]
    found += [
        Question("two_skills", f"both {n}", "p q", "sql+math", ("p", "q"), kind="parts")
        for n in range(8)
    ]
    found += [
        Question("voices", f"a stranger's {task} {n}", task=task)
        for task in ("sql", "math", None)
        for n in range(5)
    ]
    return [*found, *(Question("everyday", f"hello {n}") for n in range(20))]


def record(name: str, kind: Kind, mix: Rule, *, ms: float = 0.0, decides: bool = True) -> ArmRecord:
    """An arm that answers rightly with the right expert, gets one part with either of two and both
    with both.
    """
    arm = EvaluatedArm(name, kind, None if decides else PINNED)
    made = ArmRecord(arm, times=[ms] * 5 if decides and kind != "oracle" else [], passes=[1] * 5)
    for number, question in enumerate(questions()):
        experts = mix(question)
        if question.want is None:
            made.answers[number] = ArmAnswer(experts)
            if question.slice == "everyday":
                made.kl[number] = 0.3 * len(experts)
            continue
        had = [
            part
            for part, task in zip(question.parts, question.tasks, strict=False)
            if task in experts
        ]
        right = question.kind == "parts" or question.task in experts
        text = " ".join(had) if question.kind == "parts" else question.want if right else "wrong"
        made.answers[number] = ArmAnswer(
            experts, text, score(question.kind, question.want, question.parts, text)
        )
    return made


def fooled(question: Question) -> dict[str, Json]:
    """Right, but for one in ten of mixed traffic left to the base, and one in ten everyday prompts
    not.
    """
    if question.slice == "mixed" and question.prompt.endswith("3"):
        return {}
    if question.slice == "everyday" and question.prompt.endswith("3"):
        return {"sql": 1.0}
    return {task: 1.0 / len(question.tasks) for task in question.tasks}


def best_one(question: Question) -> dict[str, Json]:
    return {question.tasks[0]: 1.0} if question.tasks else {}


@pytest.fixture(scope="module")
def results() -> Results:
    made = Results(
        Suite(tuple(questions())),
        "fooled",
        0,
        about={"seed": 0},
        kept={"merge ties": 0.9},
        skipped={"x": "why"},
    )
    made.note_tuned([TunedMerge(MergeVariant("ties", 0.5), 2.8)])
    records = [
        record("base", "base", lambda q: {}, decides=False),
        record("oracle", "oracle", lambda q: {task: 1.0 / len(q.tasks) for task in q.tasks}),
        record("expert sql", "expert", lambda q: {"sql": 1.0}, decides=False),
        record("expert math", "expert", lambda q: {"math": 1.0}, decides=False),
        record("fooled", "policy", fooled, ms=2.0),
        record("slow", "policy", fooled, ms=40.0),
        record("single", "policy", best_one, ms=30.0),
        record("worse", "policy", lambda q: {"sql": 0.6, "math": 0.4}, ms=2.0),
        record(
            "random",
            "control",
            lambda q: {"sql": 1.0} if len(q.prompt) % 2 else {"math": 1.0},
            ms=0.1,
        ),
        record("merge ties", "merge", lambda q: {"merge-ties": 1.0}, decides=False),
    ]
    made.records = {r.arm.name: r for r in records}
    few = {n for n, q in enumerate(questions()) if q.slice in ("mixed", "two_skills")}
    made.records["merge ties"].answers = {
        n: c for n, c in made.records["merge ties"].answers.items() if n in few
    }
    made.records["fooled"].live = LiveTraffic(20, 1, 30.0, 120.0, (1.0, 2.0, 3.0))
    return made


def test_the_fields_of_the_last_line(results: Results) -> None:
    line = json.loads(json.dumps(report.make_last_line(compute_figures(results)), allow_nan=False))
    wanted = {
        "default_policy": "fooled",
        "mixed_over_oracle": 0.9,
        "everyday_abstained": 0.9,
        "false_abstentions": 0.1,
        "corrupted_over_oracle": 1.0,
        "two_skill_gain": 0.5,
        "mix_over_best_single": 0.5,
        "best_tuned_static": {
            "name": "merge ties",
            "scale": 2.8,
            "density": 0.5,
            "mixed": 0.0,
            "two_skills": 0.0,
        },
        "voices_right": 1.0,
        "sure_and_wrong": 0.0,
        "router_ms_p50": 2.0,
    }
    assert {key: line[key] for key in wanted} == wanted
    value, low, high = line["intervals"]["mixed_over_oracle"]
    assert low < value < high
    assert set(line["arms"]) == {*results.records, BETTER}


def test_figures_of_an_arm(results: Results) -> None:
    arms = compute_figures(results)["arms"]
    fooled = arms["fooled"]
    routed = 20 + 8 + 4
    assert fooled["routing_accuracy"].value == pytest.approx((routed - 2) / routed)
    assert fooled["abstention_precision"].value == pytest.approx(18 / 20)
    assert fooled["abstention_recall"].value == pytest.approx(18 / 20)
    assert fooled["kl_everyday"].value == pytest.approx(0.03)
    assert fooled["passes"] == 1
    assert fooled["traffic"] == {
        "asked": 20,
        "differ": 1,
        "prefix_cache_hit_rate": 0.25,
        "router_ms_p50": 2.0,
        "router_ms_p99": pytest.approx(2.98),
    }
    assert fooled["tasks"] == {"math": 0.9, "sql": 0.9}
    assert fooled["groups"]["removed"]["abstained"] == 0
    assert fooled["quality"].value == pytest.approx((0.9 + 1 + 1 + 1 + 0.9 + 1) / 6)
    strangers = ("voices_right", "voices_left_to_base", "sure_and_wrong")
    found = {name: [arms[name][key].value for key in strangers] for name in ("expert sql", "worse")}
    assert found["expert sql"] == pytest.approx([0.5, 0, 10 / 15])
    assert found["worse"] == pytest.approx([0.5, 0, 0]), "it is never sure"
    assert arms["base"]["groups"]["mixed"]["over_oracle"].value == 0
    assert arms["base"]["kl_everyday"].value == 0
    assert arms["expert sql"]["groups"]["mixed"]["right"] == 0.5
    assert arms["expert sql"]["groups"]["two_skills"]["graded_over_oracle"].value == 0.5
    assert math.isnan(arms["merge ties"]["quality"].value)
    assert set(arms["merge ties"]["groups"]) == {"mixed", "two_skills"}
    assert arms[BETTER]["groups"]["two_skills"]["graded"].value == 0.5


def test_the_gain_on_two_skills_is_over_the_best_that_does_not_choose(results: Results) -> None:
    gain = compute_figures(results)["two_skills"]
    assert (gain["policy"], gain["rival"]) == ("fooled", "expert sql")
    assert (gain["graded"].value, gain["exact"].value, gain["over_better"].value) == (0.5, 1.0, 0.5)


def test_a_policy_is_worth_it_if_it_beats_every_faster_one(results: Results) -> None:
    said = {name: arm["verdict"] for name, arm in compute_figures(results)["arms"].items()}
    assert said["fooled"] == "worth its time"
    assert said["slow"].startswith(
        "not worth it: +0.000 (+0.000..+0.000) against fooled, 2.0 ms to its 40.0 ms"
    )
    assert said["single"].startswith("not worth it: ")
    assert "against fooled" in said["worse"]
    assert said["random"] == said["base"] == ""


def test_confusions_are_counted(results: Results) -> None:
    found = compute_figures(results)["confusion"]
    assert found["names"] == ["math", "sql", "base"]
    assert found["counts"] == [[15, 0, 1], [0, 15, 1], [0, 2, 18]]


def test_the_better_of_two_experts_is_chosen_for_each_pair_of_skills() -> None:
    pairs = [
        Question("two_skills", str(n), "w", task, ("p",), kind="parts")
        for n, task in enumerate(["a+b", "a+c"])
    ]
    made = Results(Suite(tuple(pairs)), "p", 0)
    for name, values in {"a": (0.5, 0.5), "b": (1.0, 0.0), "c": (0.9, 0.2)}.items():
        cells = {n: ArmAnswer({name: 1.0}, "", Score(0, value)) for n, value in enumerate(values)}
        made.records[f"expert {name}"] = ArmRecord(
            EvaluatedArm(f"expert {name}", "expert", PINNED), cells
        )
    assert made.score_better_of_two() == {0: Score(0, 1.0), 1: Score(0, 0.5)}


def test_the_report_has_every_slice_arm_and_picture(results: Results, tmp_path: Path) -> None:
    found = compute_figures(results)
    text = report.to_markdown(found)
    slices = dict.fromkeys(question.group for question in results.suite.questions)
    for group in slices:
        rows = text.split(f"## Slice {group}\n")[1].split("\n## ")[0].strip().splitlines()
        assert {line.count("|") for line in rows if line.startswith("|")} == {9}
    assert all(f"| {name} |" in text for name in results.records)
    assert "| x | why |" in text
    assert "| merge ties | 0.900 | 2.800 | 0.500 |" in text
    plots.draw_plots(found, tmp_path)
    for file in report.PICTURES:
        assert f"]({file})" in text
        assert (tmp_path / file).read_bytes().startswith(b"\x89PNG")
    headlines, summary = report.make_main_sheets(found)
    assert (headlines.title, summary.title) == ("Headlines", "Arms")
    assert "fooled" in {row[0] for row in summary.rows}


def test_every_answer_is_kept(results: Results) -> None:
    rows: list[dict[str, Any]] = list(report.list_answers(results))
    assert len(rows) == sum(len(record.answers) for record in results.records.values())
    first = next(row for row in rows if row["arm"] == "oracle")
    assert first == {
        "arm": "oracle",
        "slice": "mixed",
        "prompt": "sql 0",
        "task": "sql",
        "want": "answer 0",
        "experts": {"sql": 1.0},
        "answer": "answer 0",
        "score": {"exact": 1.0, "graded": 1.0},
    }


def judge_benchmarks() -> Results:
    """Return results of two benchmarks alone, on which `sql` is right by half and `able` always."""
    asked = tuple(
        Question(
            "benchmarks", f"{name} {n}", str(n), kind="match", benchmark=name, rule=MatchRule()
        )
        for name in ("sums", "names:strict")
        for n in range(6)
    )
    made = Results(Suite(asked), "able", 0, scales={"merge ties": 2.0})
    arms: dict[str, tuple[Kind, dict[str, Json], Callable[[int], bool]]] = {
        "base": ("base", {}, lambda n: False),
        "oracle": ("oracle", {}, lambda n: False),
        "expert sql": ("expert", {"sql": 1.0}, lambda n: n % 2 == 0),
        "merge ties": ("merge", {"merge-ties": 1.0}, lambda n: False),
        "able": ("policy", {"sql": 0.5, "math": 0.5}, lambda n: True),
        "slow": ("policy", {"sql": 1.0}, lambda n: True),
    }
    for name, (kind, mix, is_right) in arms.items():
        pinned = None if kind in ("policy", "oracle") else PINNED
        times = {"able": [2.0], "slow": [9.0]}.get(name, [])
        made.records[name] = ArmRecord(EvaluatedArm(name, kind, pinned), times=times, passes=[1])
        for number in range(len(asked) if kind != "oracle" else 0):
            right = float(is_right(number))
            made.records[name].answers[number] = ArmAnswer(mix, "", Score(right, right))
    return made


def test_benchmarks_alone_have_rows_of_their_own_a_quality_and_verdicts(tmp_path: Path) -> None:
    found = compute_figures(judge_benchmarks())
    arms = found["arms"]
    assert arms["oracle"]["groups"] == {}
    assert set(arms["able"]["groups"]) == {"benchmarks:sums", "benchmarks:names:strict"}
    expert = arms["expert sql"]["groups"]["benchmarks:sums"]
    assert (expert["asked"], expert["exact"].value, expert["abstained"]) == (6, 0.5, 0)
    assert "right" not in expert, "nobody knows which expert a benchmark is for"
    assert math.isnan(expert["over_oracle"].value)
    assert {name: arms[name]["quality"].value for name in ("base", "expert sql", "able")} == {
        "base": 0.0,
        "expert sql": 0.5,
        "able": 1.0,
    }
    assert arms["able"]["verdict"] == "worth its time"
    assert arms["slow"]["verdict"].startswith("not worth it: +0.000")
    assert found["best_tuned_static"] is None, "there is nothing to choose it by"

    text = report.to_markdown(found)
    assert "## Slice benchmarks:names:strict" in text
    assert json.dumps(report.make_last_line(found), allow_nan=False)
    plots.draw_plots(found, tmp_path)
    assert (tmp_path / "scores.png").exists()


def test_benchmarks_beside_slices_of_ours_do_not_change_their_quality(results: Results) -> None:
    before = compute_figures(results)["arms"]["fooled"]
    more = Question("benchmarks", "x", "y", kind="match", benchmark="sums", rule=MatchRule())
    both = replace(results, suite=Suite((*results.suite.questions, more)))
    number = len(results.suite.questions)
    cell = ArmAnswer({}, "", Score(0, 0))
    both.records = {
        name: replace(one, answers={**one.answers, number: cell})
        for name, one in results.records.items()
    }
    after = compute_figures(both)["arms"]["fooled"]
    assert after["quality"] == before["quality"]
    assert after["verdict"] == before["verdict"]
    assert after["groups"]["benchmarks:sums"]["exact"].value == 0
