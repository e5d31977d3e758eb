"""What routing adds to requests that come together: t3_batch over t3, on a server of the demo."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import httpx
import yaml

from loadtest.common.measure import Repeats, interleave
from loadtest.common.workload import ROOT
from loadtest.sides.servers import ServerProcess, ServerSide, ours

AT_ONCE = 32
CONFIG = ROOT / "deploy" / "demo" / "serve.yaml"
POLICY = {"deadline_s": 300, "options": {"preset": "t3-own-bounds"}}
"""What both policies are told: late decisions would be replaced by the base."""
SIDES: dict[str, dict[str, Any]] = {
    "base": {"model": "smollm2:base"},
    "t3": {"model": "smollm2", "merge": {"policy": "t3"}},
    "t3_batch": {"model": "smollm2", "merge": {"policy": "t3_batch"}},
}
"""What each side's requests ask for."""
_TENANT = {"authorization": "Bearer one-tenant"}
_TIMEOUT_S = 300.0


def measure_t3_batch(base: Path, folder: Path, *, quick: bool, seed: int) -> dict[str, Any]:
    """Measure how much longer requests of one tenant take than on the base, if policies decide.

        added = T(all answered, one token each, by the policy) - T(the same number on the base)

    Every prompt is asked for once, so that no probe is found in a cache.

    Args:
        base: The demo's base.
        folder: Where the server's log goes.
        quick: Whether to ask one round instead of three.
        seed: Of the prompts.

    Returns:
        `t3_batch_over_t3_added_time`, the medians of all three in milliseconds, and
        `t3_batch_batches`, into how many batches the requests of a round came, the mean.
    """
    from loadtest.common.http_client import PromptSupply
    from tta_serve.evaluation.local_server import find_free_port

    supply = PromptSupply(base, seed)
    port = find_free_port()
    batches: list[float] = []

    def time_side(name: str, url: str, _: int) -> float:
        began = time.perf_counter()
        answers = asyncio.run(_ask_all(url, SIDES[name], supply.draw_tasks(AT_ONCE)))
        took = time.perf_counter() - began
        if name == "t3_batch":
            batches.append(sum(1 / answer["merge"]["batch"] for answer in answers))
        return took

    side = serve_t3(base, port, folder)
    server = ServerProcess(side, port, folder / "batch.log", os.environ)
    try:
        asyncio.run(_ask_all(server.url, SIDES["t3"], supply.draw_tasks(2)))
        sides = {name: partial(time_side, name, server.url) for name in SIDES}
        found = interleave(sides, Repeats(1 if quick else 3))
    finally:
        server.close()
    added = {
        name: median(a - b for a, b in zip(found[name], found["base"], strict=True))
        for name in ("t3", "t3_batch")
    }
    return {
        "base_ms": 1000 * median(found["base"]),
        "t3_batch_over_t3_added_time": added["t3_batch"] / added["t3"],
        "t3_added_ms": 1000 * added["t3"],
        "t3_batch_added_ms": 1000 * added["t3_batch"],
        "t3_batch_batches": mean(batches),
    }


def serve_t3(base: Path, port: int, folder: Path) -> ServerSide:
    """Return how to start and ask a server of the demo's experts with both policies."""
    config = folder / "t3.yaml"
    demo = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    demo["model"]["chat_template"] = str(CONFIG.parent / demo["model"]["chat_template"])
    demo["library"]["path"] = str(CONFIG.parent / demo["library"]["path"])
    kinds = [name for name in SIDES if name != "base"]
    demo |= {"policies": {kind: {"type": kind, **POLICY} for kind in kinds}}
    demo |= {"default_policy": "base"}
    config.write_text(yaml.safe_dump(demo), encoding="utf-8")
    side = ours(base, port)
    command = (str(config) if word == str(CONFIG) else word for word in side.command)
    return replace(side, command=tuple(command))


async def _ask_all(url: str, side: dict[str, Any], prompts: Sequence[str]) -> list[Any]:
    """Return the answers to prompts that are asked at once, of one token each."""
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S, headers=_TENANT) as client:

        async def ask(prompt: str) -> Any:
            body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 1}
            answer = await client.post("/v1/chat/completions", json={**side, **body})
            return answer.raise_for_status().json()

        return await asyncio.gather(*(ask(prompt) for prompt in prompts))
