"""When it pays to write a low-rank mix that all requests use into the weights."""

import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from adapters.mix import Mix
from deploy.demo.base import ensure_base
from loadtest.common.measure import Repeats, interleave, median_ratio
from loadtest.common.workload import Shape, draw_mixes, make_batch, numbers_of
from loadtest.sides.dense_engine import DenseEngine, write_library
from loadtest.sides.engines import SLOTS, Setup

LENGTHS = (32, 128, 512)


def measure_fold(quick: bool) -> dict[str, Any]:
    """Return after how many steps of 16 requests of one mix a fold has paid for itself.

    It has when slots have cost what it takes to write the mix and to take it out again; what they
    cost is the difference of a step to one of the base, in the same engine, of medians over
    repeats. Beside it: tokens/s of an engine that folds over those of one that does not, by the
    length of the answers.
    """
    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
        base = ensure_base()
        library = write_library(Path(folder) / "library", base, 0)
        setup = Setup(base, library, Path(folder))
        (mix,) = draw_mixes(library.low_rank_names, 1, "fold")
        slots = DenseEngine(setup)
        folds = DenseEngine(setup, fold=True)
        try:
            return _measure(slots, folds, mix, quick)
        finally:
            slots.close()
            folds.close()


def _measure(slots: DenseEngine, folds: DenseEngine, mix: Mix, quick: bool) -> dict[str, Any]:
    repeats = Repeats(3 if quick else 7)
    digests = slots.setup.library.digests
    key = {digests[name]: number for name, number in sorted(numbers_of(mix).items())}
    took = folds.call("bench_fold", key)

    # What slots cost in a step.
    series = interleave(
        {"mix": partial(_run, slots, mix, 64), "base": partial(_run, slots, Mix(), 64)}, repeats
    )
    mixed, plain = (SLOTS / median(series[name]) for name in ("mix", "base"))
    cost = took["fold_s"] + took["unfold_s"]

    # What folding makes of answers of some length.
    lengths = {}
    for answer in LENGTHS[:2] if quick else LENGTHS:
        both = interleave(
            {
                "folds": partial(_run, folds, mix, answer),
                "slots": partial(_run, slots, mix, answer),
            },
            Repeats(2 if quick else 3),
        )
        lengths[answer] = median_ratio(both["folds"], both["slots"])
    return {
        "fold_crossover": cost / (mixed - plain) if mixed > plain else None,
        "fold_s": took,
        "step_s": {"slots": mixed, "base": plain},
        "folding_over_slots_by_answer": lengths,
    }


def _run(side: DenseEngine, mix: Mix, answer: int, r: int) -> float:
    """Return tokens/s of as many requests of one mix as there are slots."""
    shape = Shape(f"answers of {answer}", prompt=16, answer=answer, counts_prompt=False)
    return side.run(make_batch(shape, [mix] * SLOTS, r)).tok_s
