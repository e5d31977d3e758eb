"""Slots beside dense mixes, one at a time, by the order in which mixes arrive."""

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vllm import SamplingParams

from adapters.mix import Mix
from deploy.demo.base import ensure_base
from loadtest.common.measure import Repeats, interleave, median_ratio
from loadtest.common.workload import SHAPES, RequestBatch, draw_mixes, draw_zipf, make_batch
from loadtest.sides.dense_engine import DenseEngine, write_library
from loadtest.sides.engines import SLOTS, Setup

MIXES = 5
ANSWER = 16


def sort_arrivals(mixes: Sequence[Mix], count: int, _: random.Random) -> list[Mix]:
    """Return all requests of one mix after all of another."""
    return [mixes[i * len(mixes) // count] for i in range(count)]


def draw_evenly(mixes: Sequence[Mix], count: int, rng: random.Random) -> list[Mix]:
    """Return requests of any mix."""
    return rng.choices(mixes, k=count)


ARRIVALS: dict[str, Callable[[Sequence[Mix], int, random.Random], list[Mix]]] = {
    "sorted": sort_arrivals,
    "zipf": draw_zipf,
    "random": draw_evenly,
}


def measure_arrivals(quick: bool) -> dict[str, Any]:
    """Return tokens/s of slots over those of dense mixes, 16 requests always being under way.

    Both have five mixes: of three of the demo's experts in slots, of two dense ones in the weights.
    """
    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
        base = ensure_base()
        library = write_library(Path(folder) / "library", base, 2 if quick else 4)
        dense = [name for name in library.names if library.form(name) == "dense"]
        side = DenseEngine(Setup(base, library, Path(folder)))
        try:
            kinds = {
                "slots": draw_mixes(library.low_rank_names, MIXES, "slots"),
                "dense": draw_mixes(dense, MIXES, "dense"),
            }
            rows = {name: _compare(side, kinds, name, quick) for name in ARRIVALS}
        finally:
            side.close()
    return {
        "slots_over_dense": {name: row.pop("slots_over_dense") for name, row in rows.items()},
        "arrivals": rows,
    }


def _compare(
    side: DenseEngine, kinds: dict[str, list[Mix]], arrival: str, quick: bool
) -> dict[str, Any]:
    count = 32 if quick else 128
    switches: list[int] = []

    def run(kind: str, r: int) -> float:
        rng = random.Random(f"{arrival}/{r}")
        mixes = ARRIVALS[arrival](kinds[kind], count, rng)
        before = side.call("bench_count")
        speed = _stream(side, make_batch(SHAPES["decode"], mixes, arrival, r))
        if kind == "dense":
            switches.append(side.call("bench_count") - before)
        return speed

    series = interleave(
        {kind: lambda r, kind=kind: run(kind, r) for kind in kinds},  # type: ignore[misc]
        Repeats(1 if quick else 5),
    )
    return {
        "slots_over_dense": median_ratio(series["slots"], series["dense"]),
        "slots_tok_s": series["slots"],
        "dense_tok_s": series["dense"],
        "switches": switches,
    }


def _stream(side: DenseEngine, batch: RequestBatch) -> float:
    """Return tokens/s while so many requests are always under way as there are slots."""
    engine = side.llm.llm_engine
    left = list(zip(batch.prompts, batch.mixes, strict=True))[::-1]
    params = SamplingParams(temperature=0, max_tokens=ANSWER, ignore_eos=True, detokenize=False)
    began = time.perf_counter()
    running = 0
    while left or running:
        while left and running < SLOTS:
            prompt, mix = left.pop()
            request = {"prompt_token_ids": list(prompt)}
            engine.add_request(
                f"{began}-{len(left)}", request, params, lora_request=side.adapter(mix)
            )
            running += 1
        running -= sum(output.finished for output in engine.step())
    return ANSWER * len(batch.prompts) / (time.perf_counter() - began)
