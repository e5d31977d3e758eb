"""The figures of every arm and slice."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tta_serve.evaluation import intervals
from tta_serve.evaluation.intervals import NONE, Estimate
from tta_serve.evaluation.questions import ADVERSARIAL, CORRUPTED, EVERYDAY, MIXED, PARAPHRASED, TWO_SKILLS
from tta_serve.evaluation.results import Cell, Record, Results
from tta_serve.evaluation.scoring import Score
from tta_serve.evaluation.verdicts import quality, verdicts

BETTER = "better of the two experts"
MEDIUM = f"{CORRUPTED}:medium"
_ROUTED = (MIXED, PARAPHRASED, ADVERSARIAL, EVERYDAY)  # where one expert is right, or none
_CHOOSES = frozenset({"base", "oracle", "expert", "control", "policy"})  # one expert or none, or most of one

Row = dict[str, Any]


def figures(results: Results) -> Row:
    """Everything that the report says, the fields of the last line first. Numbers without value are NaN."""
    said = verdicts(results)
    arms = {name: _arm(results, record, said.get(name, "")) for name, record in results.records.items()}
    arms[BETTER] = {"kind": "expert", "groups": _better(results), "verdict": ""}
    default, gain = arms[results.default_policy], two_skill_gain(results)
    return {
        "default_policy": results.default_policy,
        "mixed_over_oracle": _at(default, MIXED, "over_oracle"),
        "everyday_abstained": default["everyday_abstained"],
        "false_abstentions": default["false_abstentions"],
        "corrupted_over_oracle": _at(default, MEDIUM, "over_oracle"),
        "two_skill_gain": gain["graded"],
        "router_ms_p50": default["router_ms_p50"],
        "two_skills": gain,
        "confusion": confusion(results),
        "about": results.about,
        "merges_kept": results.kept,
        "skipped": results.skipped,
        "arms": arms,
    }


def _at(arm: Row, group: str, key: str) -> Estimate:
    found: Estimate = arm["groups"].get(group, {}).get(key, NONE)
    return found


def _arm(results: Results, record: Record, verdict: str) -> Row:
    groups = {group: _group(results, record, numbers) for group, numbers in results.suite.groups.items()}
    times = record.times
    return {
        "kind": record.arm.kind,
        "groups": {group: row for group, row in groups.items() if row},
        "tasks": _tasks(results, record),
        **_routing(results, record),
        "kl_everyday": intervals.mean(list(record.kl.values()), results.seed),
        "router_ms_p50": _percentile(times, 50),
        "router_ms_p99": _percentile(times, 99),
        "timed": len(times),
        "passes": sum(record.passes) / len(times) if times else math.nan,
        "traffic": _traffic(record),
        "fallbacks": record.fallbacks,
        "quality": quality(results, record),
        "verdict": verdict,
    }


def _group(results: Results, record: Record, numbers: Sequence[int]) -> Row:
    """An arm's figures on one slice; nothing if it was asked none of it."""
    cells = {n: record.cells[n] for n in numbers if n in record.cells}
    if not cells:
        return {}
    row = _scores(results, record.scores(numbers), numbers)
    if record.arm.kind in _CHOOSES:
        right = [cell.right(results.suite.questions[n]) for n, cell in cells.items()]
        row |= {"right": sum(right) / len(right), "abstained": sum(not c.experts for c in cells.values()) / len(cells)}
    return {"asked": len(cells), **row}


def _scores(results: Results, scores: Mapping[int, Score], numbers: Sequence[int]) -> Row:
    """Means, and how much of the oracle's score on the same questions. n: how many are judged"""
    if not scores:
        return {"n": 0}
    oracle = results.records["oracle"].scores(numbers)
    shared = scores.keys() & oracle.keys()
    row: Row = {"n": len(scores)}
    for kind, over in (("exact", "over_oracle"), ("graded", "graded_over_oracle")):
        row[kind] = intervals.mean([getattr(score, kind) for score in scores.values()], results.seed)
        own, best = ([getattr(of[n], kind) for n in shared] for of in (scores, oracle))
        row[over] = intervals.ratio(own, best, results.seed)
    return row


def _better(results: Results) -> dict[str, Row]:
    numbers = results.suite.groups.get(TWO_SKILLS, [])
    scores = results.better_of_two()
    return {TWO_SKILLS: {"asked": len(scores), **_scores(results, scores, numbers)}} if scores else {}


def _tasks(results: Results, record: Record) -> dict[str, float]:
    """Exact match on each task of mixed traffic."""
    found: dict[str, list[float]] = {}
    for number, score in record.scores(results.suite.groups.get(MIXED, ())).items():
        found.setdefault(str(results.suite.questions[number].task), []).append(score.exact)
    return {task: sum(own) / len(own) for task, own in sorted(found.items())}


def _routing(results: Results, record: Record) -> Row:
    """Decisions on mixed, paraphrased, adversarial and everyday prompts.

    routing_accuracy: of prompts for an expert, the share that got it   abstention precision, recall: to abstain is right where
    no expert is wanted; of all these prompts together, so that precision hangs on how many of each there are
    everyday_abstained, false_abstentions: the share that was left to the base of everyday prompts, and of mixed traffic
    """
    if record.arm.kind not in _CHOOSES:
        names = ("routing_accuracy", "abstention_precision", "abstention_recall", "everyday_abstained", "false_abstentions")
        return dict.fromkeys(names, NONE)
    cells, seed = {group: _cells(results, record, group) for group in _ROUTED}, results.seed
    pairs = [(question, cell) for own in cells.values() for question, cell in own]
    return {
        "routing_accuracy": intervals.mean([cell.right(q) for q, cell in pairs if q.task], seed),
        "abstention_precision": intervals.mean([not q.task for q, cell in pairs if not cell.experts], seed),
        "abstention_recall": intervals.mean([not cell.experts for q, cell in pairs if not q.task], seed),
        "everyday_abstained": intervals.mean([not cell.experts for _, cell in cells[EVERYDAY]], seed),
        "false_abstentions": intervals.mean([not cell.experts for q, cell in cells[MIXED] if q.task], seed),
    }


def _cells(results: Results, record: Record, group: str) -> list[tuple[Any, Cell]]:
    numbers = results.suite.groups.get(group, ())
    return [(results.suite.questions[n], record.cells[n]) for n in numbers if n in record.cells]


def _traffic(record: Record) -> Row | None:
    live = record.live
    if live is None:
        return None
    return {
        "asked": live.asked,
        "differ": live.differ,
        "prefix_cache_hit_rate": live.hits / live.queries if live.queries else math.nan,
        "router_ms_p50": _percentile(live.router_ms, 50),
        "router_ms_p99": _percentile(live.router_ms, 99),
    }


def two_skill_gain(results: Results) -> Row:
    """The policy with the best graded mean on two skills, less the best expert or fixed mix or merge; both named.

    The best of several is a little better than it is on other questions, on either side.

    over_better: less the better expert of each question's two   exact: the gain of exact scores
    """
    numbers = results.suite.groups.get(TWO_SKILLS, [])
    scored = {name: record.scores(numbers) for name, record in results.records.items()}
    means = {name: sum(s.graded for s in own.values()) / len(own) for name, own in scored.items() if own}
    policies = [name for name in means if results.records[name].arm.kind in ("policy", "learned")]
    policy = max((n for n in policies if results.records[n].arm.decides), key=lambda n: means[n], default=None)
    fixed = [name for name in means if results.records[name].arm.kind in ("expert", "static")]
    rival = max(fixed, key=lambda name: means[name], default=None)
    row: Row = {"policy": policy, "rival": rival, "graded": NONE, "exact": NONE, "over_better": NONE}
    if policy and rival:
        row |= {kind: _gap(scored[policy], scored[rival], kind, results.seed) for kind in ("graded", "exact")}
    if policy:
        row["over_better"] = _gap(scored[policy], results.better_of_two(), "graded", results.seed)
    return row


def _gap(own: Mapping[int, Score], other: Mapping[int, Score], kind: str, seed: int) -> Estimate:
    shared = sorted(own.keys() & other.keys())
    mine, theirs = ([getattr(of[n], kind) for n in shared] for of in (own, other))
    return intervals.difference([(mine, theirs)], seed)


def confusion(results: Results) -> Row:
    """What the default policy chose for prompts that one expert or none is right for. counts: [wanted, chosen]"""
    record = results.records[results.default_policy]
    pairs = [pair for group in _ROUTED for pair in _cells(results, record, group)]
    counts = Counter((q.task or "base", cell.choice or "base") for q, cell in pairs)
    names = [*sorted({name for pair in counts for name in pair} - {"base"}), "base"]
    return {"names": names, "counts": [[counts[wanted, chosen] for chosen in names] for wanted in names]}


def _percentile(values: Sequence[float], share: float) -> float:
    return float(np.percentile(values, share)) if values else math.nan
