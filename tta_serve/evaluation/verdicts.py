"""Which policies earn the time they take."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from tta_serve.evaluation import intervals
from tta_serve.evaluation.intervals import NONE, Estimate
from tta_serve.evaluation.questions import ADVERSARIAL, CORRUPTED, EVERYDAY, MIXED, PARAPHRASED, TWO_SKILLS
from tta_serve.evaluation.results import Record, Results

# The slices that quality is the mean of, each as much as any other.
SLICES = (MIXED, PARAPHRASED, f"{CORRUPTED}:medium", TWO_SKILLS, EVERYDAY, ADVERSARIAL)
_ALIKE = 1.1  # times whose ratio is below this are not told apart


def value(results: Results, record: Record, number: int) -> float:
    """What an arm's reply to one question is worth: whether it is right, or for two skills how far.

    Of a question whose answer is not judged, as no expert should answer it: whether the base was left to.
    """
    cell, question = record.cells[number], results.suite.questions[number]
    if cell.score is None:
        return float(not cell.experts)
    return cell.score.graded if question.slice == TWO_SKILLS else cell.score.exact


def quality(results: Results, record: Record) -> Estimate:
    """The mean over `SLICES` of the mean value of an arm's replies; none for an arm that was not asked one of them."""
    slices = _shared(results, [record])
    return intervals.difference([(own, [0.0] * len(own)) for (own,) in slices], results.seed) if slices else NONE


def verdicts(results: Results) -> dict[str, str]:
    """For every policy, whether it is worth it, and if not, which other is as good.

    Not worth it is one that is not better than a faster one, by an interval of the paired difference in quality that is above
    0; and of two as fast, the one of lower quality. The base takes no time, and stands for no policy at all.
    """
    ranked = [r for r in results.records.values() if r.arm.kind == "base" or r.arm.decides]
    ranked = [r for r in ranked if _shared(results, [r])]
    return {
        record.arm.name: _verdict(results, record, ranked) for record in ranked if record.arm.kind in ("policy", "learned")
    }


def _verdict(results: Results, record: Record, ranked: Sequence[Record]) -> str:
    beaten = [(rival, gap) for rival in ranked if rival is not record and (gap := _beaten(results, record, rival, ranked))]
    if not beaten:
        return "worth its time"
    rival, gap = max(beaten, key=lambda pair: quality(results, pair[0]).value)
    times = f"{_ms(rival):.1f} ms to its {_ms(record):.1f} ms"
    return f"not worth it: {gap.value:+.3f} ({gap.low:+.3f}..{gap.high:+.3f}) against {rival.arm.name}, {times}"


def _beaten(results: Results, record: Record, rival: Record, ranked: Sequence[Record]) -> Estimate | None:
    """The difference to a rival in quality, if it speaks against the record."""
    pairs = [(own, other) for own, other in _shared(results, [record, rival])]
    gap = intervals.difference(pairs, results.seed)
    slower = _ms(record) / max(_ms(rival), 1e-3)
    if slower > _ALIKE:
        return None if gap.low > 0 else gap
    if slower < 1 / _ALIKE:
        return None
    first = ranked.index(rival) < ranked.index(record)
    return gap if gap.value < 0 or (gap.value == 0 and first) else None


def _shared(results: Results, records: Sequence[Record]) -> list[list[list[float]]]:
    """Values by slice, by record, of the questions that all of them were asked; empty if one was asked none of a slice."""
    found = []
    for name in SLICES:
        asked = [n for n in results.suite.groups.get(name, ()) if all(n in r.cells for r in records)]
        if name in results.suite.groups and not asked:
            return []
        if asked:
            found.append([[value(results, record, n) for n in asked] for record in records])
    return found


def _ms(record: Record) -> float:
    return median(record.times) if record.times else 0.0
