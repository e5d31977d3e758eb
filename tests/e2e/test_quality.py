"""Held-out phrasings, through HTTP.

The default policy is held against the right expert pinned, everyday prompts against the base.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from scipy.stats import binom

from deploy.demo.everyday import read_everyday
from deploy.demo.results import read_results
from deploy.demo.tasks import TASKS

MODEL = "smollm2"
AT_ONCE = 16


def ask_all(client: openai.OpenAI, asked: Sequence[tuple[str, str]], max_tokens: int) -> list[Any]:
    """Return greedy answers to (model, prompt) pairs, many at a time, in their order."""

    def one(pair: tuple[str, str]) -> Any:
        model, prompt = pair
        return client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": prompt}],
            max_tokens=max_tokens,
            temperature=0,
        )

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(one, asked))


@pytest.mark.parametrize("per_task", [8, pytest.param(20, marks=pytest.mark.long)])
def test_the_default_policy_keeps_the_score_of_the_right_expert(
    client: openai.OpenAI, per_task: int
) -> None:
    traffic = [
        (name, example)
        for name, task in TASKS.items()
        for example in task.examples("test", per_task, seed=1)
    ]
    random.Random(0).shuffle(traffic)
    pinned = ask_all(client, [(f"{MODEL}:{name}", e.prompt) for name, e in traffic], max_tokens=256)
    routed = ask_all(client, [(MODEL, e.prompt) for _, e in traffic], max_tokens=256)
    scores: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for (name, example), p, r in zip(traffic, pinned, routed, strict=True):
        was, now = (
            TASKS[name].is_right(a.choices[0].message.content, example.answer) for a in (p, r)
        )
        scores[name].append((was, now))
    right = sum(p for pairs in scores.values() for p, _ in pairs)
    kept = sum(r for pairs in scores.values() for _, r in pairs)
    table = {
        name: (sum(p for p, _ in pairs), sum(r for _, r in pairs))
        for name, pairs in sorted(scores.items())
    }
    print(
        f"\nexact match of {per_task} (right expert pinned, default policy): {table}; kept"
        f" {kept / right:.3f}"
    )
    trained = read_results()
    expected = sum(trained[name]["expert"] for name, _ in traffic)
    assert right >= 0.8 * expected, f"in training {expected:.0f} of as many were right"
    # 0.95 is wanted. Of so few prompts a policy that keeps that loses more than this once in twenty
    # draws; one that does not route loses nearly all.
    assert right - kept <= binom.ppf(0.95, right, 0.05), table


def test_everyday_prompts_are_answered_by_the_base_word_for_word(client: openai.OpenAI) -> None:
    prompts = read_everyday("test")
    base = ask_all(client, [(f"{MODEL}:base", p) for p in prompts], max_tokens=24)
    routed = ask_all(client, [(MODEL, p) for p in prompts], max_tokens=24)
    same = [
        b.choices[0].message.content == r.choices[0].message.content
        for b, r in zip(base, routed, strict=True)
    ]
    routed_away = [
        (p, r.merge["experts"]) for p, r in zip(prompts, routed, strict=True) if r.merge["experts"]
    ]
    print(
        f"\nanswered by the base word for word: {sum(same)} of {len(same)}; to experts:"
        f" {routed_away}"
    )
    assert sum(same) >= 0.9 * len(same), routed_away
