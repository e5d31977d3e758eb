"""`python -m loadtest inline`: what routing inside the pass costs, and whether it is right."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loadtest.common import machine
from loadtest.common.console import progress
from loadtest.common.measure import Repeats, interleave, median_ratio
from loadtest.common.seeded_run import run_seeded
from loadtest.common.workload import ROOT, SHAPES, Shape, make_batch
from loadtest.sides.session import setup_in

if TYPE_CHECKING:
    from adapters.mix import Mix
    from loadtest.sides.routed import Inlined

PHRASINGS = ROOT / "deploy" / "demo" / "phrasings.jsonl"
TURN = Shape("turn", prompt=64, answer=1, counts_prompt=True)


def command(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repeats and prompts.")] = False,
    seed: Annotated[int, typer.Option(help="Of prompts.")] = 0,
) -> None:
    """Measure routing inside the pass.

    First token and decoding against pinned mixes, and decisions against transformers.
    """
    run_seeded(measure, quick=quick, seed=seed)


def measure(folder: Path, *, quick: bool, seed: int) -> dict[str, Any]:
    """Measure all of it, on one engine."""
    from loadtest.sides.routed import Inlined, compare_decisions

    side = Inlined(setup_in(folder))
    try:
        result = measure_costs(side, quick=quick, seed=seed)
        progress.log(machine.round_floats(result))
        return result | compare_decisions(side, PHRASINGS, every=4 if quick else 1)
    finally:
        side.close()


def measure_costs(side: Inlined, *, quick: bool, seed: int) -> dict[str, Any]:
    """Measure first token and decoding against those of known mixes."""
    result = measure_first_token(side, 20 if quick else 100, seed)
    progress.log(machine.round_floats(result))
    result |= measure_decoding(side, Repeats(3 if quick else 7), seed)
    progress.log(machine.round_floats(result))
    return result


def measure_first_token(side: Inlined, pairs: int, seed: int) -> dict[str, Any]:
    """Measure one-token requests, one at a time, whose mix is decided in the pass or was known.

    Medians, and their ratio: decided in the pass / known before.
    """
    took: dict[str, list[float]] = {"inline": [], "pinned": []}
    for i in range(-4, pairs):
        prompts = make_batch(TURN, [_nothing()], seed, i).prompts
        mixes = side.decide(prompts)
        for name in ("inline", "pinned") if i % 2 else ("pinned", "inline"):
            ms = _ms(side, name, prompts, mixes)
            if i >= 0:
                took[name].append(ms)
    found = {f"ttft_{name}_ms": median(values) for name, values in took.items()}
    return {
        "ttft_over_pinned": found["ttft_inline_ms"] / found["ttft_pinned_ms"],
        **found,
        "pairs": pairs,
    }


def measure_decoding(side: Inlined, repeats: Repeats, seed: int) -> dict[str, Any]:
    """Measure tokens/s of 16 requests at once against known mixes.

    The mixes are decided in the pass, or are two of six experts by token and layer.
    """
    shape = SHAPES["decode"]

    def prompts(r: int) -> Sequence[Sequence[int]]:
        return make_batch(shape, [_nothing()] * side.slots, seed, r).prompts

    mixes = {r: side.decide(prompts(r)) for r in range(-2, repeats.count)}

    def rate(name: str, r: int) -> float:
        return 1e3 * side.slots * shape.answer / _ms(side, name, prompts(r), mixes[r], shape.answer)

    kinds = ("inline", "pinned", "gated")
    for r in (-2, -1):
        for name in kinds:
            rate(name, r)
    values = interleave({name: partial(rate, name) for name in kinds}, repeats)
    rates = {f"decode_{name}_tok_s": median(found) for name, found in values.items()}
    ratios = {
        f"decode_{name}_over_fixed": median_ratio(values[name], values["pinned"])
        for name in ("inline", "gated")
    }
    return {"decode_over_fixed": ratios.pop("decode_inline_over_fixed"), **ratios, **rates}


def _ms(
    side: Inlined,
    name: str,
    prompts: Sequence[Sequence[int]],
    mixes: Sequence[Mix],
    tokens: int = 1,
) -> float:
    if name == "inline":
        adapters: Sequence[Any] = side.new_conversations(len(prompts))
    else:
        adapters = [side.gated_request() if name == "gated" else side.adapter(mix) for mix in mixes]
    began = time.perf_counter()
    side.generate_routed(prompts, adapters, tokens)
    return 1e3 * (time.perf_counter() - began)


def _nothing() -> Mix:
    from adapters.mix import Mix

    return Mix()
