"""Which policies earn the time they take."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from tta_serve.evaluation import intervals
from tta_serve.evaluation.intervals import NO_ESTIMATE, BootstrapEstimate
from tta_serve.evaluation.questions import (
    ADVERSARIAL,
    BENCHMARKS,
    CORRUPTED,
    EVERYDAY,
    MIXED,
    PARAPHRASED,
    TWO_SKILLS,
)
from tta_serve.evaluation.results import ArmRecord, Results

QUALITY_SLICES = (MIXED, PARAPHRASED, f"{CORRUPTED}:medium", TWO_SKILLS, EVERYDAY, ADVERSARIAL)
"""The slices that quality is the mean of, each as much as any other; benchmarks have their own
figures, and stand for these where there are none of them."""
_ALIKE = 1.1  # times whose ratio is below this are not told apart


def value_answer(results: Results, record: ArmRecord, number: int) -> float:
    """Return what an arm's answer to one question is worth, from 0 to 1.

    That is whether it is right, or for two skills how far. No expert should answer a question that
    is not judged: there it is whether it was left to the base.
    """
    answer, question = record.answers[number], results.suite.questions[number]
    if answer.score is None:
        return float(not answer.experts)
    return answer.score.graded if question.slice == TWO_SKILLS else answer.score.exact


def measure_quality(results: Results, record: ArmRecord) -> BootstrapEstimate:
    """Estimate the mean over the slices of quality of the mean value of an arm's answers.

    There is none for an arm that was not asked one of the slices.
    """
    slices = _list_shared(results, [record])
    if not slices:
        return NO_ESTIMATE
    pairs = [(own, [0.0] * len(own)) for (own,) in slices]
    return intervals.estimate_difference(pairs, results.seed)


def reach_verdicts(results: Results) -> dict[str, str]:
    """Say of every policy whether it is worth its time, and if not, which other is as good.

    Not worth it is one that is not better than a faster one, by an interval of the paired
    difference in quality that is above 0; and of two as fast, the one of lower quality. The base
    takes no time, and stands for no policy at all.
    """
    ranked = [r for r in results.records.values() if r.arm.kind == "base" or r.arm.decides]
    ranked = [r for r in ranked if _list_shared(results, [r])]
    return {
        record.arm.name: _reach_verdict(results, record, ranked)
        for record in ranked
        if record.arm.kind in ("policy", "learned")
    }


def _reach_verdict(results: Results, record: ArmRecord, ranked: Sequence[ArmRecord]) -> str:
    beaten = [
        (rival, gap)
        for rival in ranked
        if rival is not record and (gap := _compare(results, record, rival, ranked))
    ]
    if not beaten:
        return "worth its time"
    rival, gap = max(beaten, key=lambda pair: measure_quality(results, pair[0]).value)
    times = f"{_median_ms(rival):.1f} ms to its {_median_ms(record):.1f} ms"
    return (
        f"not worth it: {gap.value:+.3f} ({gap.low:+.3f}..{gap.high:+.3f}) against"
        f" {rival.arm.name}, {times}"
    )


def _compare(
    results: Results, record: ArmRecord, rival: ArmRecord, ranked: Sequence[ArmRecord]
) -> BootstrapEstimate | None:
    """Return the difference to a rival in quality, if it speaks against the record."""
    pairs = [(own, other) for own, other in _list_shared(results, [record, rival])]
    gap = intervals.estimate_difference(pairs, results.seed)
    slower = _median_ms(record) / max(_median_ms(rival), 1e-3)
    if slower > _ALIKE:
        return None if gap.low > 0 else gap
    if slower < 1 / _ALIKE:
        return None
    first = ranked.index(rival) < ranked.index(record)
    return gap if gap.value < 0 or (gap.value == 0 and first) else None


def _list_shared(results: Results, records: Sequence[ArmRecord]) -> list[list[list[float]]]:
    """List the values of the questions that all records were asked, by slice, by record.

    Empty if one of them was asked none of a slice.
    """
    found = []
    for numbers in _list_quality_groups(results):
        asked = [n for n in numbers if all(n in r.answers for r in records)]
        if not asked:
            return []
        found.append([[value_answer(results, record, n) for n in asked] for record in records])
    return found


def _list_quality_groups(results: Results) -> list[list[int]]:
    """List the questions that quality is of, by slice; by benchmark if they are all that is."""
    groups = results.suite.groups
    own = [groups[name] for name in QUALITY_SLICES if name in groups]
    return own or [
        numbers
        for numbers in groups.values()
        if results.suite.questions[numbers[0]].slice == BENCHMARKS
    ]


def _median_ms(record: ArmRecord) -> float:
    return median(record.times) if record.times else 0.0
