"""The self time of every operator in a decoding step, of the base alone and with mixtures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch.profiler import ProfilerActivity, profile, record_function
from vllm import SamplingParams

from adapters.library.library import Library
from adapters.mix import Mix
from deploy.demo.base import ensure_base
from loadtest.common.workload import EXPERTS, SHAPES, draw_mixes, make_batch
from loadtest.sides.engines import SLOTS, EngineSide, Mixture, Setup

WARM = 8
STEPS = 32
LEAST_MS = 0.2


def measure(folder: Path) -> dict[str, dict[str, float]]:
    """Return milliseconds a step by operator, for each side.

    `all` is the whole step, with what belongs to no operator.
    """
    library = Library.open(EXPERTS)
    setup = Setup(ensure_base(), library, folder)
    mixes = {EngineSide: [Mix()] * SLOTS, Mixture: draw_mixes(library.names, SLOTS, 0)}
    found = {}
    for side_class, of_side in mixes.items():
        side = side_class(setup)
        found[side.name] = _profile(side, of_side)
        side.close()
    return found


def _profile(side: EngineSide, mixes: Sequence[Mix]) -> dict[str, float]:
    engine: Any = side.llm.llm_engine
    asked = make_batch(SHAPES["decode"], mixes, 0)
    params = SamplingParams(
        temperature=0, max_tokens=WARM + STEPS + 8, ignore_eos=True, detokenize=False
    )
    for i, (prompt, mix) in enumerate(zip(asked.prompts, asked.mixes, strict=True)):
        engine.add_request(
            str(i), {"prompt_token_ids": list(prompt)}, params, lora_request=side.adapter(mix)
        )
    for _ in range(WARM):
        engine.step()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(STEPS):
            with record_function("all"):
                engine.step()
    ms = 1e-3 / STEPS
    events = seen.key_averages()
    whole = next(event.cpu_time_total * ms for event in events if event.key == "all")
    named = {event.key: event.self_cpu_time_total * ms for event in events if event.key != "all"}
    return {
        "all": whole,
        "(Python, our kernel, and what else is no operator)": whole - sum(named.values()),
        **named,
    }


def make_table(found: dict[str, dict[str, float]]) -> Table:
    """Make a table of the operators that take long on one side, longest first."""
    base, mixture = found["base"], found["mixture"]
    shown = Table(
        "operator",
        "base, ms a step",
        "mixture",
        "more",
        title=f"A step of {SLOTS} requests, {torch.get_num_threads()} threads",
    )
    for name in sorted(base.keys() | mixture.keys(), key=lambda n: -mixture.get(n, 0.0)):
        before, after = base.get(name, 0.0), mixture.get(name, 0.0)
        if max(before, after) >= LEAST_MS:
            shown.add_row(name, f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}")
    return shown
