"""How far an arm moves the base on everyday prompts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from tta_serve.evaluation.arms import MixRequest
from tta_serve.evaluation.plan import Plan
from tta_serve.evaluation.server_client import AnswerMemo, ServerClient, Step, run_all

SAMPLED_TOKENS = 24
"""The most tokens of an answer that the base gives."""


async def measure_divergences(
    server: ServerClient,
    plan: Plan,
    asked: Mapping[str, Mapping[int, MixRequest]],
    memo: AnswerMemo,
    step: Step,
) -> dict[str, dict[int, float]]:
    """Estimate KL(p_base || p_arm) of the next token, in nats, on answers that the base gives.

    For each prompt the base gives one answer at temperature 1, of at most 24 tokens, the same for
    all arms. The estimate is the mean over the answer's tokens of log p_base - log p_arm, both
    models reading the same tokens. As the answer is drawn from the base, its expectation is the
    divergence at each place that the base comes to, with nothing cut off. An arm that leaves a
    prompt to the base has exactly 0.

    Args:
        server: The server that has all arms.
        plan: The questions, and the seed of the answers.
        asked: By arm, by the question's number, the request for its mix.
        memo: What was asked before, which is added to.
        step: Begins a step of the progress.

    Returns:
        By arm, by the question's number, the estimate.
    """
    base = server.requests.base
    pairs = {
        (number, mix) for mixes in asked.values() for number, mix in mixes.items() if mix != base
    }
    numbers = sorted({number for number, _ in pairs})

    # The base's answers, one for each prompt.
    fresh = [number for number in numbers if number not in memo.samples]
    draws = [
        partial(
            server.sample,
            plan.suite.questions[number].prompt,
            base,
            SAMPLED_TOKENS,
            plan.seed + number,
        )
        for number in fresh
    ]
    samples = await run_all(draws, step("answers of the base at temperature 1", len(draws)))
    memo.samples |= dict(zip(fresh, samples, strict=True))

    # What the base and the arms make of each.
    wanted = sorted(pairs | {(number, base) for number in numbers}, key=repr)
    keys = [key for key in wanted if key not in memo.logprobs]
    reads = [partial(server.read_logprobs, memo.samples[number][0], mix) for number, mix in keys]
    found = await run_all(reads, step("their log-probabilities", len(reads)))
    memo.logprobs |= dict(zip(keys, found, strict=True))

    return {
        arm: {number: average_log_ratio(memo, number, base, mix) for number, mix in mixes.items()}
        for arm, mixes in asked.items()
    }


def average_log_ratio(memo: AnswerMemo, number: int, base: MixRequest, mix: MixRequest) -> float:
    """Return the mean over a sample's answer of log p_base - log p_mix."""
    if mix == base:
        return 0.0
    begin = memo.samples[number][1] - 1  # the first token of a text has no log-probability
    own, other = memo.logprobs[number, base][begin:], memo.logprobs[number, mix][begin:]
    return sum(a - b for a, b in zip(own, other, strict=True)) / max(1, len(own))
