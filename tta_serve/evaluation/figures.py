"""The figures of every arm and slice."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tta_serve.evaluation import intervals
from tta_serve.evaluation.intervals import NO_ESTIMATE, BootstrapEstimate
from tta_serve.evaluation.plan import MEDIUM
from tta_serve.evaluation.questions import (
    ADVERSARIAL,
    BENCHMARKS,
    EVERYDAY,
    MIXED,
    PARAPHRASED,
    TWO_SKILLS,
    VOICES,
)
from tta_serve.evaluation.results import ArmAnswer, ArmRecord, Results
from tta_serve.evaluation.scoring import Score
from tta_serve.evaluation.verdicts import measure_quality, reach_verdicts

BETTER = "better of the two experts"
"""The name of the arm that always takes the better expert alone."""
# Slices in which one expert is right, or none.
_ROUTED = (MIXED, PARAPHRASED, ADVERSARIAL, EVERYDAY)
# Arms of these kinds take one expert or none, or most of one.
_SURE = 0.9
"""An expert with more of the mix than this was surely chosen."""
_CHOOSES = frozenset({"base", "oracle", "expert", "control", "policy"})

Row = dict[str, Any]
"""Figures by their names: numbers, estimates, texts, or more rows."""


def compute_figures(results: Results) -> Row:
    """Compute everything that the report says, the fields of the last line first.

    Numbers without value are NaN.
    """
    said = reach_verdicts(results)
    arms = {
        name: _describe_arm(results, record, said.get(name, ""))
        for name, record in results.records.items()
    }
    arms[BETTER] = {"kind": "expert", "groups": _describe_better(results), "verdict": ""}
    default = arms[results.default_policy]
    gain = compute_two_skill_gain(results)
    return {
        "default_policy": results.default_policy,
        "mixed_over_oracle": _find(default, MIXED, "over_oracle"),
        "everyday_abstained": default["everyday_abstained"],
        "false_abstentions": default["false_abstentions"],
        "corrupted_over_oracle": _find(default, MEDIUM, "over_oracle"),
        "two_skill_gain": gain["graded"],
        "mix_over_best_single": gain["over_better"],
        "best_tuned_static": name_best_tuned(results, arms),
        "voices_right": default["voices_right"],
        "sure_and_wrong": default["sure_and_wrong"],
        "router_ms_p50": default["router_ms_p50"],
        "two_skills": gain,
        "confusion": count_confusions(results),
        "about": results.about,
        "merges_kept": results.kept,
        "merge_scales": results.scales,
        "merge_densities": results.densities,
        "skipped": results.skipped,
        "arms": arms,
    }


def _find(arm: Row, group: str, key: str) -> BootstrapEstimate:
    found: BootstrapEstimate = arm["groups"].get(group, {}).get(key, NO_ESTIMATE)
    return found


def _describe_arm(results: Results, record: ArmRecord, verdict: str) -> Row:
    groups = {
        group: _describe_group(results, record, numbers)
        for group, numbers in results.suite.groups.items()
    }
    times = record.times
    return {
        "kind": record.arm.kind,
        "groups": {group: row for group, row in groups.items() if row},
        "tasks": _score_tasks(results, record),
        **_judge_decisions(results, record),
        "kl_everyday": intervals.estimate_mean(list(record.kl.values()), results.seed),
        "router_ms_p50": _find_percentile(times, 50),
        "router_ms_p99": _find_percentile(times, 99),
        "timed": len(times),
        "passes": sum(record.passes) / len(times) if times else math.nan,
        "traffic": _describe_traffic(record),
        "fallbacks": record.fallbacks,
        "quality": measure_quality(results, record),
        "verdict": verdict,
    }


def _describe_group(results: Results, record: ArmRecord, numbers: Sequence[int]) -> Row:
    """Return an arm's figures on one slice; nothing if it was asked none of it."""
    answers = {n: record.answers[n] for n in numbers if n in record.answers}
    if not answers:
        return {}
    row = _average_scores(results, record.scores(numbers), numbers)
    if record.arm.kind in _CHOOSES:
        row["abstained"] = sum(not c.experts for c in answers.values()) / len(answers)
        asked = [(answer, results.suite.questions[n]) for n, answer in answers.items()]
        # Of a benchmark nobody knows which expert is right.
        right = [answer.right(q) for answer, q in asked if q.slice != BENCHMARKS]
        if right:
            row["right"] = sum(right) / len(right)
    return {"asked": len(answers), **row}


def _average_scores(results: Results, scores: Mapping[int, Score], numbers: Sequence[int]) -> Row:
    """Return mean scores, and their ratio to the oracle's on the same questions.

    `n` is how many of the questions are judged.
    """
    if not scores:
        return {"n": 0}
    oracle = results.records["oracle"].scores(numbers)
    shared = scores.keys() & oracle.keys()
    row: Row = {"n": len(scores)}
    for kind, over in (("exact", "over_oracle"), ("graded", "graded_over_oracle")):
        row[kind] = intervals.estimate_mean(
            [getattr(score, kind) for score in scores.values()], results.seed
        )
        own, best = ([getattr(of[n], kind) for n in shared] for of in (scores, oracle))
        row[over] = intervals.estimate_ratio(own, best, results.seed)
    return row


def _describe_better(results: Results) -> dict[str, Row]:
    numbers = results.suite.groups.get(TWO_SKILLS, [])
    scores = results.score_better_of_two()
    return (
        {TWO_SKILLS: {"asked": len(scores), **_average_scores(results, scores, numbers)}}
        if scores
        else {}
    )


def _score_tasks(results: Results, record: ArmRecord) -> dict[str, float]:
    """Return the share of exact matches on each task of mixed traffic."""
    found: dict[str, list[float]] = {}
    for number, score in record.scores(results.suite.groups.get(MIXED, ())).items():
        found.setdefault(str(results.suite.questions[number].task), []).append(score.exact)
    return {task: sum(own) / len(own) for task, own in sorted(found.items())}


def _judge_decisions(results: Results, record: ArmRecord) -> Row:
    """Judge decisions on prompts for one expert or none: mixed, paraphrased, adversarial, everyday.

    routing_accuracy       of prompts for an expert, the share that got it
    abstention_precision   of prompts left to the base, the share for which no expert is wanted
    abstention_recall      of prompts for which no expert is wanted, the share left to the base
    everyday_abstained     of everyday prompts, the share left to the base
    false_abstentions      of mixed traffic, the share left to the base
    voices_right           of strangers' prompts for an expert, the share that got it
    voices_left_to_base    of strangers' other prompts, the share left to the base
    sure_and_wrong         of strangers' prompts, the share of whose mix a wrong expert has over 0.9

    Abstentions are of all these prompts together, so that precision hangs on how many there are of
    each kind.
    """
    if record.arm.kind not in _CHOOSES:
        names = (
            "routing_accuracy",
            "abstention_precision",
            "abstention_recall",
            "everyday_abstained",
            "false_abstentions",
            "voices_right",
            "voices_left_to_base",
            "sure_and_wrong",
        )
        return dict.fromkeys(names, NO_ESTIMATE)
    seed = results.seed
    answers = {group: _list_answers(results, record, group) for group in _ROUTED}
    pairs = [(question, answer) for own in answers.values() for question, answer in own]
    spoken = _list_answers(results, record, VOICES)
    return {
        "routing_accuracy": intervals.estimate_mean(
            [answer.right(q) for q, answer in pairs if q.task], seed
        ),
        "abstention_precision": intervals.estimate_mean(
            [not q.task for q, answer in pairs if not answer.experts], seed
        ),
        "abstention_recall": intervals.estimate_mean(
            [not answer.experts for q, answer in pairs if not q.task], seed
        ),
        "everyday_abstained": intervals.estimate_mean(
            [not answer.experts for _, answer in answers[EVERYDAY]], seed
        ),
        "false_abstentions": intervals.estimate_mean(
            [not answer.experts for q, answer in answers[MIXED] if q.task], seed
        ),
        "voices_right": intervals.estimate_mean([a.right(q) for q, a in spoken if q.task], seed),
        "voices_left_to_base": intervals.estimate_mean(
            [not a.experts for q, a in spoken if not q.task], seed
        ),
        "sure_and_wrong": intervals.estimate_mean(
            [a.share > _SURE and not a.right(q) for q, a in spoken], seed
        ),
    }


def _list_answers(results: Results, record: ArmRecord, group: str) -> list[tuple[Any, ArmAnswer]]:
    numbers = results.suite.groups.get(group, ())
    return [(results.suite.questions[n], record.answers[n]) for n in numbers if n in record.answers]


def _describe_traffic(record: ArmRecord) -> Row | None:
    live = record.live
    if live is None:
        return None
    return {
        "asked": live.asked,
        "differ": live.differ,
        "prefix_cache_hit_rate": live.hits / live.queries if live.queries else math.nan,
        "router_ms_p50": _find_percentile(live.router_ms, 50),
        "router_ms_p99": _find_percentile(live.router_ms, 99),
    }


def compute_two_skill_gain(results: Results) -> Row:
    """Compare the best policy on two skills with the best expert or fixed mix or merge.

    Both are named, and best by their graded mean; the best of several is a little better than it
    is on other questions, on either side.

    graded        the policy's graded score less the rival's
    exact         the same of exact scores
    over_better   the policy's graded score less that of the better expert of each question's two
    """
    numbers = results.suite.groups.get(TWO_SKILLS, [])
    scored = {name: record.scores(numbers) for name, record in results.records.items()}
    means = {
        name: sum(s.graded for s in own.values()) / len(own) for name, own in scored.items() if own
    }
    policies = [name for name in means if results.records[name].arm.kind in ("policy", "learned")]
    policy = max(
        (n for n in policies if results.records[n].arm.decides),
        key=lambda n: means[n],
        default=None,
    )
    fixed = [
        name for name in means if results.records[name].arm.kind in ("expert", "static", "merge")
    ]
    rival = max(fixed, key=lambda name: means[name], default=None)
    row: Row = {
        "policy": policy,
        "rival": rival,
        "graded": NO_ESTIMATE,
        "exact": NO_ESTIMATE,
        "over_better": NO_ESTIMATE,
    }
    if policy and rival:
        row |= {
            kind: _estimate_gap(scored[policy], scored[rival], kind, results.seed)
            for kind in ("graded", "exact")
        }
    if policy:
        row["over_better"] = _estimate_gap(
            scored[policy], results.score_better_of_two(), "graded", results.seed
        )
    return row


def name_best_tuned(results: Results, arms: Mapping[str, Row]) -> Row | None:
    """Return the static merge with a tuned scale that does best on mixed and two-skill questions.

    It is the one with the highest sum of both mean graded scores; None without any, or without
    such questions. Its density is there where that was tuned too.

    Args:
        results: With tuned scales and densities, by arm.
        arms: The figures of all arms.
    """
    means = {
        name: {group: _find(arms[name], group, "graded").value for group in (MIXED, TWO_SKILLS)}
        for name in sorted(results.scales)
    }
    if np.isnan([value for own in means.values() for value in own.values()]).all():
        return None
    best = max(means, key=lambda name: np.nansum(list(means[name].values())))
    density = {"density": results.densities[best]} if best in results.densities else {}
    return {"name": best, "scale": results.scales[best], **density, **means[best]}


def _estimate_gap(
    own: Mapping[int, Score], other: Mapping[int, Score], kind: str, seed: int
) -> BootstrapEstimate:
    shared = sorted(own.keys() & other.keys())
    mine, theirs = ([getattr(of[n], kind) for n in shared] for of in (own, other))
    return intervals.estimate_difference([(mine, theirs)], seed)


def count_confusions(results: Results) -> Row:
    """Count what the default policy chose for prompts that one expert or none is right for.

    `counts` is [wanted, chosen], in the order of `names`.
    """
    record = results.records[results.default_policy]
    pairs = [pair for group in _ROUTED for pair in _list_answers(results, record, group)]
    counts = Counter((q.task or "base", answer.choice or "base") for q, answer in pairs)
    names = [*sorted({name for pair in counts for name in pair} - {"base"}), "base"]
    return {
        "names": names,
        "counts": [[counts[wanted, chosen] for chosen in names] for wanted in names],
    }


def _find_percentile(values: Sequence[float], share: float) -> float:
    return float(np.percentile(values, share)) if values else math.nan
