"""The parts of the benchmark."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

from adapters.mix import Mix
from loadtest.copies import library_of, originals
from loadtest.measure import Repeats, Series, interleaved, ratio, spread
from loadtest.sides import SLOTS, InPlace, Mixture, Running, Side, Timed
from loadtest.stock import rank_of
from loadtest.workload import SHAPES, Shape, batch, covering_mixes, random_mixes

Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What to measure.

    cells: shape and requests at once   pairs: of first-token requests
    new_mixes: whether every repeat of a cell asks for mixes never seen before
    """

    sides: tuple[str, ...]
    shapes: tuple[Shape, ...]
    cells: tuple[tuple[Shape, int], ...]
    repeats: Repeats
    experts: tuple[int, ...]
    pairs: int
    new_mixes: bool
    seed: int


def cells(running: Running, plan: Plan) -> Iterator[Row]:
    """All sides, in each cell."""
    sides = [running.start(name) for name in plan.sides]
    for shape, n in plan.cells:
        yield _cell(sides, running.setup.library.names, plan, shape, n)


def _cell(sides: Sequence[Side], names: Sequence[str], plan: Plan, shape: Shape, n: int) -> Row:
    """Mixes are the same in all repeats, and so in the slots, unless the plan asks for new ones.

    `unmixed` is the mixture's engine asked for the base: two processes of one engine can differ by a quarter, one cannot.
    """

    def mixes(r: int) -> list[Mix]:
        if plan.new_mixes:
            return random_mixes(names, n, plan.seed, shape.name, n, r)
        return random_mixes(names, SLOTS, plan.seed)[:n]

    def run(side: Side, r: int) -> Timed:
        side.prepare(mixes(r))
        return side.run(batch(shape, mixes(r), plan.seed, n, r))

    def rate(side: Side, r: int) -> float:
        return run(side, r).tok_s

    warm = {side.name: run(side, -1).answers for side in sides}
    _reset_merges(sides)
    runs = {side.name: partial(rate, side) for side in sides}
    if "mixture" in runs:
        ours = next(side for side in sides if isinstance(side, Mixture))
        runs["unmixed"] = lambda r: ours.run(batch(shape, [Mix()] * n, plan.seed, n, r)).tok_s
        runs["unmixed"](-1)
    values = interleaved(runs, plan.repeats)
    row = {"shape": shape.name, "concurrency": n} | _rates(values) | _against_mixture(values)
    return row | {"answers_equal_mixture": _agreement(warm)} | _merge_ms(sides)


def _rates(values: Series) -> Row:
    row: Row = {}
    for name, rates in values.items():
        row |= {f"{name}_tok_s": median(rates), f"{name}_tok_s_spread": spread(rates), f"{name}_repeats": len(rates)}
    return row


def _against_mixture(values: Series) -> Row:
    if "mixture" not in values:
        return {}
    return {f"mixture_over_{name}": ratio(values["mixture"], v) for name, v in values.items() if name != "mixture"}


def _agreement(answers: dict[str, list[list[int]]]) -> dict[str, float]:
    """Share of the warm-up's answers that equal the mixture's, token by token, for each other side; the base's should not."""
    ours = answers.get("mixture", [])
    pairs = {name: list(zip(ours, theirs, strict=False)) for name, theirs in answers.items() if name != "mixture"}
    return {name: sum(a == b for a, b in both) / len(both) for name, both in pairs.items() if both}


def _reset_merges(sides: Sequence[Side]) -> None:
    for side in sides:
        if isinstance(side, InPlace):
            side.merges.clear()


def _merge_ms(sides: Sequence[Side]) -> Row:
    """Median time of a merge and its restoring."""
    merges = [ms for side in sides if isinstance(side, InPlace) for ms in side.merges]
    return {"inplace_merge_ms": 1e3 * median(merges)} if merges else {}


def distinct_scaling(running: Running, plan: Plan) -> Row:
    """Throughput of the mixture with 16 different mixes / with one mix for all, 16 requests at once, decode-heavy."""
    side, shape = running.start("mixture"), SHAPES["decode"]
    mixes = random_mixes(running.setup.library.names, SLOTS, plan.seed)
    many = _rate(side, shape, mixes, plan.seed)
    one = _rate(side, shape, mixes[:1] * SLOTS, plan.seed)
    values = _warm_and_interleave({"many": many, "one": one}, plan.repeats)
    return {"distinct_scaling": ratio(values["many"], values["one"])} | _rates(values)


def expert_scaling(running: Running, plan: Plan) -> Iterator[Row]:
    """Mixture engines of K experts against the base, 16 requests at once that together use as many experts as they can.

    The last row also has `resident_scaling`.
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


def _mixture_of(running: Running, k: int) -> Mixture:
    folder = running.setup.folder / f"experts-{k}"
    library = library_of(k, running.setup.library, folder) if not folder.exists() else type(running.setup.library).open(folder)
    return Mixture(replace(running.setup, library=library))


def _scaling_row(base: Side, side: Side, plan: Plan, shape: Shape) -> Row:
    library = side.setup.library
    runs = {
        "base": _rate(base, shape, [Mix()] * SLOTS, plan.seed),
        "mixture": _rate(side, shape, covering_mixes(library.names, SLOTS, plan.seed), plan.seed),
    }
    values = _warm_and_interleave(runs, plan.repeats)
    row: Row = {"experts": len(library.names), "total_rank": sum(rank_of(e) for e in library), "shape": shape.name}
    return row | {"mixture_over_base": ratio(values["mixture"], values["base"])} | _rates(values)


def _resident(six: Side, side: Side, plan: Plan, shape: Shape) -> Row:
    """Throughput with all experts resident of which the batches use six, over that of an engine with these six alone."""
    runs = {
        "few": _rate(side, shape, random_mixes(originals(side.setup.library), SLOTS, plan.seed), plan.seed),
        "six": _rate(six, shape, random_mixes(six.setup.library.names, SLOTS, plan.seed), plan.seed),
    }
    values = _warm_and_interleave(runs, plan.repeats)
    return {"resident_scaling": ratio(values["few"], values["six"]), "resident": _rates(values)}


def _rate(side: Side, shape: Shape, mixes: Sequence[Mix], seed: int) -> Callable[[int], float]:
    return lambda r: side.run(batch(shape, mixes, seed, r)).tok_s


def _warm_and_interleave(sides: dict[str, Callable[[int], float]], repeats: Repeats) -> Series:
    """After two runs of each side, so that an engine that adapts to what it is asked has done so."""
    for run in sides.values():
        run(-1)
        run(-2)
    return interleaved(sides, repeats)


def first_token(side: Side, pairs: int, seed: int) -> Row:
    """One-token requests, one at a time, in turn with a mix that sits in a slot and with one never seen. Medians, ms."""
    names = side.setup.library.names
    known, *fresh = random_mixes(names, pairs + 1, seed, "first token")
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


def _ms(side: Side, shape: Shape, mix: Mix, *seed: object) -> float:
    one = batch(shape, [mix], mix, *seed)
    requests = [side.adapter(mix)]
    began = time.perf_counter()
    side.generate(one.prompts, requests, shape.answer)
    return 1e3 * (time.perf_counter() - began)
