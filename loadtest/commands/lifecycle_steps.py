"""Steps of an engine in this process while an expert is loaded, first used, and unloaded."""

import time
from pathlib import Path
from statistics import median
from typing import Any

from vllm import SamplingParams

from adapters.expert import Expert
from adapters.library.library import Library
from adapters.mix import Mix
from deploy.demo.base import ensure_base
from loadtest.common.copies import make_library
from loadtest.common.workload import EXPERTS, SHAPES, draw_covering_mixes, make_batch
from loadtest.sides.engines import SLOTS, Mixture, Setup
from tta_serve.engine.wire import make_mix_request

WARM = 4
STEPS = 24


def measure(folder: Path, experts: int, rounds: int) -> dict[str, Any]:
    """Return medians over the rounds, of which the first is left out.

    Args:
        folder: A temporary one.
        experts: How many are in use before.
        rounds: How often an expert is loaded and unloaded.
    """
    everything = make_library(experts + 1, Library.open(EXPERTS), folder)
    *first, late = everything.names
    side = Mixture(Setup(ensure_base(), Library(everything.root, tuple(first)), folder))
    try:
        desk = _Desk(side, everything.expert(late))
        _, *seen = [desk.round(r) for r in range(rounds + 1)]
    finally:
        side.close()
    row = {name: median(r[name] for r in seen) for name in seen[0]}
    return {"experts": experts, **row, "first_use_over_step": row["first_use_ms"] / row["step_ms"]}


class _Desk:
    """Steps the engine by hand, and times every step."""

    def __init__(self, side: Mixture, late: Expert) -> None:
        self._side = side
        self._late = late
        self._engine = side.llm.llm_engine
        self._asked = 0

    def round(self, r: int) -> dict[str, float]:
        """Return milliseconds of steps in which 15 requests decode.

        They do so alone, with a prompt that joins, and around a new expert.
        """
        names = self._side.setup.library.names
        digest = self._late.digest

        # 15 requests decode alone; then one with a known mix joins.
        running = [self._ask(mix, 512) for mix in draw_covering_mixes(names, SLOTS - 1, r)]
        self._steps(WARM)
        plain = self._steps(STEPS)
        self._ask(Mix.of({names[0]: 1.0}), 2)
        (join_known,) = self._steps(1)
        self._steps(WARM)

        # An expert is loaded meanwhile, and then used for the first time.
        reading, took = self._load(digest)
        self._ask(Mix.of({self._late.name: 1.0}), 2)
        (join_new,) = self._steps(1)
        self._steps(WARM)

        # It is unloaded.
        began = time.perf_counter()
        assert self._call("tta_unload", digest), "a request that has ended still holds the expert"
        unload = 1e3 * (time.perf_counter() - began) + self._steps(1)[0]
        self._engine.abort_request(running)
        self._steps(1)
        step = median(plain)
        return {
            "step_ms": step,
            "loading_ms": took,
            "loading_longest_step_ms": max(reading),
            "first_use_ms": join_new - join_known,
            "unload_ms": unload - step,
        }

    def _load(self, digest: str) -> tuple[list[float], float]:
        """Return the steps made while the expert is read, and how long that was."""
        began = time.perf_counter()
        self._call("tta_prepare", self._late.name, digest)
        steps = self._steps(1)
        while not self._call("tta_prepared", digest):
            steps += self._steps(1)
        refusal = self._call("tta_commit", digest)
        assert refusal is None, refusal
        return steps, 1e3 * (time.perf_counter() - began)

    def _ask(self, mix: Mix, tokens: int) -> str:
        self._asked += 1
        known = {**self._side.setup.library.digests, self._late.name: self._late.digest}
        (prompt,) = make_batch(SHAPES["decode"], [mix], self._asked).prompts
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        request = {"prompt_token_ids": list(prompt)}
        name: str = self._engine.add_request(
            str(self._asked), request, params, lora_request=make_mix_request(mix, known)
        )
        return name

    def _steps(self, count: int) -> list[float]:
        took = []
        for _ in range(count):
            began = time.perf_counter()
            self._engine.step()
            took.append(1e3 * (time.perf_counter() - began))
        return took

    def _call(self, method: str, *args: Any) -> Any:
        return self._side.llm.collective_rpc(method, args=args)[0]
