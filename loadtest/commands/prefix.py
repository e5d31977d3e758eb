"""`python -m loadtest prefix`: what a prefix cache that all mixes share is worth."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loadtest.commands.inline import measure_decoding
from loadtest.common import machine
from loadtest.common.console import progress
from loadtest.common.measure import Repeats
from loadtest.common.seeded_run import run_seeded
from loadtest.common.workload import Shape, make_batch
from loadtest.sides.session import setup_in

if TYPE_CHECKING:
    from loadtest.sides.conversations import Conversation, ConversingEngine

SHARED = (512, 1500)
"""Tokens of the system prompts that conversations have in common."""
QUESTION = Shape("question", prompt=64, answer=1, counts_prompt=True)
SYSTEM = (
    "You are the assistant of a small company. Be exact and brief, keep to the format that you are"
    " asked for, and say nothing else. Do not greet, do not explain, do not apologise. "
)


def command(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repeats and prompts.")] = False,
    seed: Annotated[int, typer.Option(help="Of prompts.")] = 0,
) -> None:
    """Measure first tokens behind shared prefixes, hits, and conversations that change topic."""
    run_seeded(measure, quick=quick, seed=seed)


def measure(folder: Path, *, quick: bool, seed: int) -> dict[str, Any]:
    """Measure all of it, on one engine."""
    from loadtest.sides.conversations import ConversingEngine

    side = ConversingEngine(setup_in(folder))
    result: dict[str, Any] = {}
    try:
        for shared in SHARED:
            result |= measure_new_conversations(side, shared, 5 if quick else 20, seed)
            progress.log(machine.round_floats(result))
        result |= measure_topic_changes(side, 6 if quick else 24, seed)
        progress.log(machine.round_floats(result))
        result |= measure_decoding(side, Repeats(3 if quick else 7), seed)
        progress.log(machine.round_floats(result))
        result |= count_hits(side, 20 if quick else 100, seed)
        progress.log(machine.round_floats(result))
        result |= follow_topics(side, 12 if quick else 60, seed)
        progress.log(machine.round_floats(result))
        return result | compare_answers(side, 8 if quick else 48, seed)
    finally:
        side.close()


def measure_new_conversations(
    side: ConversingEngine, shared: int, pairs: int, seed: int
) -> dict[str, Any]:
    """Measure first tokens behind a long prefix: new conversations / a pinned mix, cache warm.

    Every question is asked once.
    """
    from tta_serve.engine.wire import acting_from

    system = _draw("system", shared, seed)
    [mix] = side.decide([system[:64]])
    took: dict[str, list[float]] = {"new": [], "pinned": []}
    for i in range(-2, pairs):
        question = _draw("question", QUESTION.prompt, seed, shared, i)
        for name in ("new", "pinned") if i % 2 else ("pinned", "new"):
            adapter = side.new_turn() if name == "new" else side.adapter(mix)
            acting = adapter and acting_from(adapter, shared)
            ms = _time(side, [*system, *question], acting, (shared, shared + len(question)))
            if i >= 0:
                took[name].append(ms)
    found = {f"ttft_{name}_{shared}_ms": median(values) for name, values in took.items()}
    ratio = median(took["new"]) / median(took["pinned"])
    return {f"ttft_new_conversation_over_warm_pinned_{shared}": ratio, **found}


def measure_topic_changes(side: ConversingEngine, pairs: int, seed: int) -> dict[str, Any]:
    """Measure first tokens of second turns: the topic has changed / it is the same.

    Of each pair both have the same second turn, after first turns of two experts.
    """
    questions = _draw_questions(side, pairs + 2, seed)
    took: dict[str, list[float]] = {"changed": [], "kept": []}
    for i, (same, other) in enumerate(questions):
        (text, opening), (_, elsewhere) = (same[0], same[1]), (other[0], other[1])
        for name in ("changed", "kept") if i % 2 else ("kept", "changed"):
            conversation = _begin(side)
            side.say(conversation, elsewhere if name == "changed" else opening, 4)
            began = time.perf_counter()
            reply = side.say(conversation, text, 1)
            ms = 1e3 * (time.perf_counter() - began)
            if i >= 2 and reply.kept == (name == "kept"):
                took[name].append(ms)
    return {
        "ttft_topic_change_over_kept": median(took["changed"]) / median(took["kept"]),
        "ttft_topic_changed_ms": median(took["changed"]),
        "ttft_topic_kept_ms": median(took["kept"]),
        "topic_pairs": [len(values) for values in took.values()],
    }


def count_hits(side: ConversingEngine, conversations: int, seed: int) -> dict[str, Any]:
    """Count tokens found in the cache: by conversations of six experts / by as many of one mix."""
    from tta_serve.engine.wire import acting_from

    names = sorted(side.setup.library.names)
    rates = {}
    for name in ("routed", "one mix"):
        side.llm.reset_prefix_cache()
        system = _draw(name, SHARED[0], seed)
        [mix] = side.decide([system[:64]])
        found = asked = 0
        for i in range(conversations):
            question = _draw(names[i % len(names)], QUESTION.prompt, seed, name, i)
            adapter = side.new_turn() if name == "routed" else side.adapter(mix)
            acting = adapter and acting_from(adapter, len(system))
            prompt = [*system, *question]
            turn = len(system), len(prompt)
            [output] = side.generate_routed([prompt], [acting], 1, [turn])
            found += output.num_cached_tokens
            asked += len(prompt)
        rates[name] = found / asked
    return {
        "hit_rate_over_one_mix": rates["routed"] / rates["one mix"],
        "hit_rate": rates["routed"],
        "hit_conversations": conversations,
    }


def follow_topics(side: ConversingEngine, conversations: int, seed: int) -> dict[str, Any]:
    """Count second turns that get their own expert, after its question and after another's."""
    followed: list[bool] = []
    kept: list[bool] = []
    for same, other in _draw_questions(side, conversations, seed + 1):
        for opening, right in ((other[1], followed), (same[1], kept)):
            conversation = _begin(side)
            side.say(conversation, opening)
            reply = side.say(conversation, same[0], 1)
            share = reply.mix.as_dict().get(same[2], 0.0)
            assert isinstance(share, float)
            right.append(share >= 0.5)
    return {
        "topic_changes_followed": mean(followed),
        "kept_when_it_should": mean(kept),
        "topic_conversations": conversations,
    }


def compare_answers(side: ConversingEngine, questions: int, seed: int) -> dict[str, Any]:
    """Count exact answers of experts behind a system prompt: acting from the turn / the start."""
    from deploy.demo.tasks import TASKS

    ratios = {}
    for name in sorted(side.setup.library.names):
        asked = TASKS[name].examples("test", questions, seed + 2)
        right = {
            start: sum(
                side.ask(SYSTEM, one.prompt, name, 64, from_start=start) == one.answer.strip()
                for one in asked
            )
            for start in (True, False)
        }
        ratios[name] = {"turn": right[False] / questions, "start": right[True] / questions}
    whole = {where: mean(one[where] for one in ratios.values()) for where in ("turn", "start")}
    return {
        "exact_match_activated_over_start": whole["turn"] / max(whole["start"], 1e-9),
        "exact_match": ratios,
        "exact_match_questions": questions,
    }


def _draw_questions(
    side: ConversingEngine, count: int, seed: int
) -> list[tuple[tuple[str, str, str], tuple[str, str, str]]]:
    """Draw pairs of experts, and of each two of its questions and its name."""
    from deploy.demo.tasks import TASKS

    names = sorted(side.setup.library.names)
    rng = random.Random(f"topics/{seed}")
    found = []
    for i in range(count):
        pair = rng.sample(names, 2)
        asked = [TASKS[name].examples("test", 2, seed + 1000 + i) for name in pair]
        one, two = ((q[0].prompt, q[1].prompt, n) for q, n in zip(asked, pair, strict=True))
        found.append((one, two))
    return found


def _begin(side: ConversingEngine) -> Conversation:
    from loadtest.sides.conversations import Conversation

    return Conversation([{"role": "system", "content": SYSTEM}])


def _draw(kind: str, tokens: int, *seed: object) -> tuple[int, ...]:
    from adapters.mix import Mix

    return make_batch(Shape(kind, tokens, 1, counts_prompt=True), [Mix()], *seed).prompts[0]


def _time(
    side: ConversingEngine, prompt: Sequence[int], adapter: Any, turn: tuple[int, int]
) -> float:
    began = time.perf_counter()
    side.generate_routed([prompt], [adapter], 1, [turn])
    return 1e3 * (time.perf_counter() - began)
