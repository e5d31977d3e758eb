"""`python -m loadtest inline`: what it costs that requests are routed inside their own pass, and whether rightly."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from loadtest import report
from loadtest.engine import progress, setup_in
from loadtest.measure import Repeats, interleaved, ratio
from loadtest.workload import SHAPES, Shape, batch

if TYPE_CHECKING:
    from adapters.mix import Mix
    from loadtest.routed import Inlined

PHRASINGS = Path(__file__).resolve().parent.parent / "deploy" / "demo" / "phrasings.jsonl"
TURN = Shape("turn", prompt=64, answer=1, counts_prompt=True)
SHARED = 512  # tokens of a system prompt that conversations have in common


def command(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repeats and prompts.")] = False,
    seed: Annotated[int, typer.Option(help="Of prompts.")] = 0,
) -> None:
    """Measure routing inside the pass: first token and decoding against pinned mixes, and decisions against transformers."""
    report.environment()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
        result = {**report.machine(), "quick": quick, "seed": seed, **measure(Path(folder), quick=quick, seed=seed)}
    report.show_values(Console(), {key: value for key, value in result.items() if key not in ("seed", "cores")})
    print(json.dumps(report.rounded(result)), flush=True)


def measure(folder: Path, *, quick: bool, seed: int) -> dict[str, Any]:
    """All of it, on one engine."""
    from loadtest.routed import Inlined, decisions

    side = Inlined(setup_in(folder))
    try:
        result = costs(side, quick=quick, seed=seed)
        result |= shared_prefix(side, 5 if quick else 20, seed)
        progress.log(report.rounded(result))
        return result | decisions(side, PHRASINGS, every=4 if quick else 1)
    finally:
        side.close()


def costs(side: Inlined, *, quick: bool, seed: int) -> dict[str, Any]:
    """Against known mixes."""
    result = first_token(side, 20 if quick else 100, seed)
    progress.log(report.rounded(result))
    result |= decode(side, Repeats(3 if quick else 7), seed)
    progress.log(report.rounded(result))
    return result


def first_token(side: Inlined, pairs: int, seed: int) -> dict[str, Any]:
    """One-token requests, one at a time: the mix is decided in the pass / the same mix was known before. Medians."""
    took: dict[str, list[float]] = {"inline": [], "pinned": []}
    for i in range(-4, pairs):
        prompts = batch(TURN, [_nothing()], seed, i).prompts
        mixes = side.decided(prompts)
        for name in ("inline", "pinned") if i % 2 else ("pinned", "inline"):
            ms = _ms(side, name, prompts, mixes)
            if i >= 0:
                took[name].append(ms)
    found = {f"ttft_{name}_ms": median(values) for name, values in took.items()}
    return {"ttft_over_pinned": found["ttft_inline_ms"] / found["ttft_pinned_ms"], **found, "pairs": pairs}


def decode(side: Inlined, repeats: Repeats, seed: int) -> dict[str, Any]:
    """Tokens/s of 16 requests at once: mixes decided in the pass, or two of six experts by token and layer / known ones."""
    shape = SHAPES["decode"]

    def prompts(r: int) -> Sequence[Sequence[int]]:
        return batch(shape, [_nothing()] * side.slots, seed, r).prompts

    mixes = {r: side.decided(prompts(r)) for r in range(-2, repeats.count)}

    def rate(name: str, r: int) -> float:
        return 1e3 * side.slots * shape.answer / _ms(side, name, prompts(r), mixes[r], shape.answer)

    kinds = ("inline", "pinned", "gated")
    for r in (-2, -1):
        for name in kinds:
            rate(name, r)
    values = interleaved({name: lambda r, name=name: rate(name, r) for name in kinds}, repeats)
    rates = {f"decode_{name}_tok_s": median(found) for name, found in values.items()}
    ratios = {f"decode_{name}_over_fixed": ratio(values[name], values["pinned"]) for name in ("inline", "gated")}
    return {"decode_over_fixed": ratios.pop("decode_inline_over_fixed"), **ratios, **rates}


def shared_prefix(side: Inlined, pairs: int, seed: int) -> dict[str, Any]:
    """First tokens of new conversations behind one long system prompt: each computes it anew / finds it in the cache."""
    system = batch(Shape("system", SHARED, 1, True), [_nothing()], seed).prompts[0]
    took: dict[str, list[float]] = {"inline": [], "pinned": []}
    mixes = side.decided([system])
    for i in range(-2, pairs):
        turn = batch(TURN, [_nothing()], seed, "shared", i).prompts[0]
        for name in ("inline", "pinned") if i % 2 else ("pinned", "inline"):
            ms = _ms(side, name, [[*system, *turn]], mixes)
            if i >= 0:
                took[name].append(ms)
    return {"shared_prefix_ttft_over_pinned": median(took["inline"]) / median(took["pinned"]), "shared_prefix": SHARED}


def _ms(side: Inlined, name: str, prompts: Sequence[Sequence[int]], mixes: Sequence[Mix], tokens: int = 1) -> float:
    if name == "inline":
        adapters: Sequence[Any] = side.undecided(len(prompts))
    else:
        adapters = [side.adapter(mix) if name == "pinned" else side.gated() for mix in mixes]
    began = time.perf_counter()
    side.routed(prompts, adapters, tokens)
    return 1e3 * (time.perf_counter() - began)


def _nothing() -> Mix:
    from adapters.mix import Mix

    return Mix()
