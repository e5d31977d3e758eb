"""The parts of `python -m loadtest engine`: cells, scaling, first token."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

from adapters.mix import Mix
from loadtest.common.copies import make_library, original_names
from loadtest.common.measure import Repeats, Series, interleave, median_ratio, spread
from loadtest.common.workload import SHAPES, Shape, draw_covering_mixes, draw_mixes, make_batch
from loadtest.sides.engines import SLOTS, EngineSide, InPlace, Mixture, RunningSides, Timed
from loadtest.sides.stock import rank_of

Row = dict[str, Any]


@dataclass(frozen=True)
class EnginePlan:
    """What to measure."""

    sides: tuple[str, ...]
    """Names of those that are compared."""
    shapes: tuple[Shape, ...]
    cells: tuple[tuple[Shape, int], ...]
    """Shape and requests at once."""
    repeats: Repeats
    experts: tuple[int, ...]
    """How many of them the scaling part has in use, in turn."""
    pairs: int
    """First-token requests, each with a known mix and with a new one."""
    new_mixes: bool
    """Whether every repeat of a cell asks for mixes never seen before."""
    seed: int


def measure_cells(running: RunningSides, plan: EnginePlan) -> Iterator[Row]:
    """Measure all sides in each cell, a shape and so many requests at once."""
    sides = [running.start(name) for name in plan.sides]
    for shape, n in plan.cells:
        yield _cell(sides, running.setup.library.names, plan, shape, n)


def _cell(
    sides: Sequence[EngineSide], names: Sequence[str], plan: EnginePlan, shape: Shape, n: int
) -> Row:
    """Measure one cell.

    Mixes are the same in all repeats, and so in the slots, unless the plan asks for new ones.
    `unmixed` is the mixture's engine asked for the base: two processes of one engine can differ by
    a quarter, one cannot.
    """

    def mixes(r: int) -> list[Mix]:
        if plan.new_mixes:
            return draw_mixes(names, n, plan.seed, shape.name, n, r)
        return draw_mixes(names, SLOTS, plan.seed)[:n]

    def run(side: EngineSide, r: int) -> Timed:
        side.prepare(mixes(r))
        return side.run(make_batch(shape, mixes(r), plan.seed, n, r))

    def rate(side: EngineSide, r: int) -> float:
        return run(side, r).tok_s

    warm = {side.name: run(side, -1).answers for side in sides}
    _reset_merges(sides)
    runs: dict[str, Callable[[int], float]] = {side.name: partial(rate, side) for side in sides}
    if "mixture" in runs:
        ours = next(side for side in sides if isinstance(side, Mixture))
        runs["unmixed"] = lambda r: ours.run(make_batch(shape, [Mix()] * n, plan.seed, n, r)).tok_s
        runs["unmixed"](-1)
    values = interleave(runs, plan.repeats)
    row = {"shape": shape.name, "concurrency": n} | _rates(values) | _against_mixture(values)
    return row | {"answers_equal_mixture": _agreement(warm)} | _merge_ms(sides)


def _rates(values: Series) -> Row:
    row: Row = {}
    for name, rates in values.items():
        row |= {
            f"{name}_tok_s": median(rates),
            f"{name}_tok_s_spread": spread(rates),
            f"{name}_repeats": len(rates),
        }
    return row


def _against_mixture(values: Series) -> Row:
    if "mixture" not in values:
        return {}
    return {
        f"mixture_over_{name}": median_ratio(values["mixture"], v)
        for name, v in values.items()
        if name != "mixture"
    }


def _agreement(answers: dict[str, list[list[int]]]) -> dict[str, float]:
    """Return for each side the share of answers that equal the mixture's, token by token.

    The answers are the warm-up's; the base's should not be equal.
    """
    ours = answers.get("mixture", [])
    pairs = {
        name: list(zip(ours, theirs, strict=False))
        for name, theirs in answers.items()
        if name != "mixture"
    }
    return {name: sum(a == b for a, b in both) / len(both) for name, both in pairs.items() if both}


def _reset_merges(sides: Sequence[EngineSide]) -> None:
    for side in sides:
        if isinstance(side, InPlace):
            side.merges.clear()


def _merge_ms(sides: Sequence[EngineSide]) -> Row:
    """Return the median milliseconds of a merge and its restoring."""
    merges = [ms for side in sides if isinstance(side, InPlace) for ms in side.merges]
    return {"inplace_merge_ms": 1e3 * median(merges)} if merges else {}


def measure_distinct_scaling(running: RunningSides, plan: EnginePlan) -> Row:
    """Measure the mixture with 16 different mixes against itself with one mix for all.

    16 requests at once, which mostly decode.
    """
    side, shape = running.start("mixture"), SHAPES["decode"]
    mixes = draw_mixes(running.setup.library.names, SLOTS, plan.seed)
    many = _rate(side, shape, mixes, plan.seed)
    one = _rate(side, shape, mixes[:1] * SLOTS, plan.seed)
    values = _warm_and_interleave({"many": many, "one": one}, plan.repeats)
    return {"distinct_scaling": median_ratio(values["many"], values["one"])} | _rates(values)


def measure_expert_scaling(running: RunningSides, plan: EnginePlan) -> Iterator[Row]:
    """Measure mixture engines of K experts against the base.

    16 requests at once use together as many experts as they can. The last row also has
    `resident_scaling`.
    """
    six = running.start("mixture")
    for shape in [s for s in plan.shapes if s.name == "decode"] or plan.shapes:
        for k in plan.experts:
            side = six if k == len(running.setup.library.names) else _mixture_of(running, k)
            try:
                row = _scaling_row(running.start("base"), side, plan, shape)
                last = k == max(plan.experts) and side is not six
                yield row | (_resident(six, side, plan, shape) if last else {})
            finally:
                if side is not six:
                    side.close()


def _mixture_of(running: RunningSides, k: int) -> Mixture:
    folder = running.setup.folder / f"experts-{k}"
    library = (
        make_library(k, running.setup.library, folder)
        if not folder.exists()
        else type(running.setup.library).open(folder)
    )
    return Mixture(replace(running.setup, library=library))


def _scaling_row(base: EngineSide, side: EngineSide, plan: EnginePlan, shape: Shape) -> Row:
    library = side.setup.library
    mixes = draw_covering_mixes(library.names, SLOTS, plan.seed)
    runs = {
        "base": _rate(base, shape, [Mix()] * SLOTS, plan.seed),
        "mixture": _rate(side, shape, mixes, plan.seed),
    }
    values = _warm_and_interleave(runs, plan.repeats)
    row: Row = {
        "experts": len(library.names),
        "total_rank": sum(rank_of(e) for e in library),
        "shape": shape.name,
    }
    return (
        row
        | {"mixture_over_base": median_ratio(values["mixture"], values["base"])}
        | _rates(values)
    )


def _resident(six: EngineSide, side: EngineSide, plan: EnginePlan, shape: Shape) -> Row:
    """Measure an engine of many experts, of which the batches use six, against one of these six."""
    few = draw_mixes(original_names(side.setup.library), SLOTS, plan.seed)
    all_six = draw_mixes(six.setup.library.names, SLOTS, plan.seed)
    runs = {
        "few": _rate(side, shape, few, plan.seed),
        "six": _rate(six, shape, all_six, plan.seed),
    }
    values = _warm_and_interleave(runs, plan.repeats)
    return {
        "resident_scaling": median_ratio(values["few"], values["six"]),
        "resident": _rates(values),
    }


def _rate(
    side: EngineSide, shape: Shape, mixes: Sequence[Mix], seed: int
) -> Callable[[int], float]:
    return lambda r: side.run(make_batch(shape, mixes, seed, r)).tok_s


def _warm_and_interleave(sides: dict[str, Callable[[int], float]], repeats: Repeats) -> Series:
    """Interleave the sides after two runs of each, as engines adapt to what they are asked."""
    for run in sides.values():
        run(-1)
        run(-2)
    return interleave(sides, repeats)


def measure_first_token(side: EngineSide, pairs: int, seed: int) -> Row:
    """Measure one-token requests, one at a time: a mix that sits in a slot, and one never seen.

    Medians, in milliseconds.
    """
    names = side.setup.library.names
    known, *fresh = draw_mixes(names, pairs + 1, seed, "first token")
    side.prepare([known, *fresh])
    shape = replace(SHAPES["decode"], answer=1)
    for r in range(8):
        _ms(side, shape, known, -1 - r)
    took: Series = {"known": [], "new": []}
    for i, new in enumerate(fresh):
        for name in ("known", "new") if i % 2 else ("new", "known"):
            took[name].append(_ms(side, shape, known if name == "known" else new, i))
    row: Row = {f"{name}_ms": median(values) for name, values in took.items()}
    return row | {"new_over_known": row["new_ms"] / row["known_ms"], "pairs": pairs}


def _ms(side: EngineSide, shape: Shape, mix: Mix, *seed: object) -> float:
    one = make_batch(shape, [mix], mix, *seed)
    requests = [side.adapter(mix)]
    began = time.perf_counter()
    side.generate(one.prompts, requests, shape.answer)
    return 1e3 * (time.perf_counter() - began)
