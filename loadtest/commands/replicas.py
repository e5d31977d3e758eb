"""`python -m loadtest replicas`: by what several replicas should share conversations.

Two replicas are started with each `server.affinity`, and asked the same conversations turn by turn:
all first turns, all second turns, and so on, one request at a time.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import httpx
import typer
import yaml
from prometheus_client.parser import text_string_to_metric_families

from loadtest.common.console import progress
from loadtest.common.seeded_run import run_seeded
from loadtest.common.workload import ROOT
from loadtest.sides.servers import ServerProcess, ours
from tta_serve.evaluation.local_server import find_free_port

AFFINITIES = ("conversation", "prefix")
TURNS = 3
SYSTEMS = 4
"""System prompts that conversations share."""
_SYSTEM_WORDS = 150
_LOOKS = 100
_LOOK_S = 0.02


def command(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer conversations.")] = False,
    seed: Annotated[int, typer.Option(help="Of prompts.")] = 0,
) -> None:
    """Measure two replicas that share conversations by session, and by prefix."""
    run_seeded(measure, quick=quick, seed=seed)


def measure(folder: Path, *, quick: bool, seed: int) -> dict[str, Any]:
    """Measure both, one after the other."""
    from deploy.demo.base import ensure_base

    base = ensure_base()
    talks = draw_conversations(12 if quick else 48, seed)
    result: dict[str, Any] = {"conversations": len(talks), "turns": TURNS}
    for affinity in AFFINITIES:
        port = find_free_port()
        side = ours(base, port, write_config(folder, affinity))
        server = ServerProcess(side, port, folder / f"{affinity}.log", dict(os.environ))
        try:
            found = hold(server.url, talks)
        finally:
            server.close()
        progress.log(affinity, found)
        result |= {f"{affinity}_{name}": value for name, value in found.items()}
    return result


def write_config(folder: Path, affinity: str) -> Path:
    """Write the config of a server of two replicas, with the demo's experts."""
    experts = ROOT / "deploy" / "demo" / "experts"
    said = {
        "model": {"id": "smollm2", "source": "given by --model", "max_model_len": 2048},
        "library": {"path": str(experts)},
        "policies": {"inline": {"type": "gate", "inline": True}},
        "default_policy": "inline",
        "server": {"replicas": 2, "affinity": affinity},
    }
    path = folder / f"{affinity}.yaml"
    path.write_text(yaml.safe_dump(said), encoding="utf-8")
    return path


def draw_conversations(count: int, seed: int) -> list[list[dict[str, str]]]:
    """Draw conversations: a system prompt that others have too, and the questions of one expert."""
    from deploy.demo.tasks import TASKS

    rng = random.Random(f"replicas/{seed}")
    words = ("keep", "answers", "short", "exact", "plain", "and", "free", "of", "greetings")
    systems = [" ".join(rng.choices(words, k=_SYSTEM_WORDS)) for _ in range(SYSTEMS)]
    found = []
    for i in range(count):
        task = TASKS[rng.choice(sorted(TASKS))]
        asked = task.examples("test", TURNS, seed + 500 + i)
        system = {"role": "system", "content": systems[i % SYSTEMS]}
        found.append([system, *({"role": "user", "content": one.prompt} for one in asked)])
    return found


def hold(url: str, talks: list[list[dict[str, str]]]) -> dict[str, float]:
    """Hold all conversations, and return what became of their turns.

    Returns: `moved`, the share of later turns that another replica answered than the first one;
    `hit_rate`, the share of prompt tokens that were in the answering replica's prefix cache;
    `busier`, the share of requests that the busier replica had; `later_ms`, the median time of
    a later turn's answer of 8 tokens.
    """
    with httpx.Client(base_url=url, timeout=120) as client:
        _wake(client)
        before = read_counters(client)
        histories = [talk[:1] for talk in talks]
        homes: dict[int, str] = {}
        moved, later = [], []
        answered: Counter[str] = Counter()
        for turn in range(1, TURNS + 1):
            for i, talk in enumerate(talks):
                histories[i].append(talk[turn])
                replica, text, ms = _say(client, histories[i])
                histories[i].append({"role": "assistant", "content": text})
                answered[replica] += 1
                if turn == 1:
                    homes[i] = replica
                else:
                    moved.append(replica != homes[i])
                    later.append(ms)
        after = read_counters(client)
    hits, queries = (
        sum(after[name].values()) - sum(before[name].values()) for name in ("hits", "queries")
    )
    return {
        "moved": sum(moved) / len(moved),
        "hit_rate": hits / queries,
        "busier": max(answered.values()) / answered.total(),
        "later_ms": median(later),
    }


def _wake(client: httpx.Client) -> None:
    """Let both replicas answer something, and wait until both are counted."""
    for i in range(16):
        _say(client, [{"role": "user", "content": f"Hello number {i}"}])


def _say(client: httpx.Client, messages: list[dict[str, str]]) -> tuple[str, str, float]:
    """Ask for the next turn. Returns the replica that answered, its text, and milliseconds."""
    before = read_counters(client)["requests"]
    body = {"model": "auto", "messages": messages, "max_tokens": 8, "temperature": 0}
    began = time.perf_counter()
    answer = client.post("/v1/chat/completions", json=body).raise_for_status().json()
    ms = 1e3 * (time.perf_counter() - began)
    return _find_counted(client, before), answer["choices"][0]["message"]["content"], ms


def _find_counted(client: httpx.Client, before: dict[str, float]) -> str:
    """Return the replica that has counted one more request, which it does after its answer."""
    for _ in range(_LOOKS):
        for name, count in read_counters(client)["requests"].items():
            if count > before.get(name, 0):
                return name
        time.sleep(_LOOK_S)
    raise AssertionError("no replica counts an answered request")


def read_counters(client: httpx.Client) -> dict[str, dict[str, float]]:
    """Return counters of vLLM's by replica: hits and queries of its prefix cache, and requests."""
    names = {
        "vllm:prefix_cache_hits_total": "hits",
        "vllm:prefix_cache_queries_total": "queries",
        "vllm:request_success_total": "requests",
    }
    found: dict[str, dict[str, float]] = {short: {} for short in names.values()}
    for name, replica, value in _read_samples(client):
        if short := names.get(name):
            found[short][replica] = found[short].get(replica, 0) + value
    return found


def _read_samples(client: httpx.Client) -> Iterator[tuple[str, str, float]]:
    text = client.get("/metrics").raise_for_status().text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, sample.labels["replica"], sample.value
