"""How far an arm moves the base on everyday prompts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from tta_serve.evaluation.arms import Asked
from tta_serve.evaluation.ask import Memo, Server, Step, each
from tta_serve.evaluation.plan import Plan

SAMPLED_TOKENS = 24


async def divergences(
    server: Server, plan: Plan, asked: Mapping[str, Mapping[int, Asked]], memo: Memo, step: Step
) -> dict[str, dict[int, float]]:
    """KL(p_base || p_arm) of the next token, in nats, by prompt, estimated on an answer that the base gives at temperature 1.

    The mean over the answer's tokens of log p_base - log p_arm, both models reading the same tokens. As the answer is drawn
    from the base, its expectation is the divergence at each place that the base comes to, with nothing cut off. One answer a
    prompt, of at most 24 tokens, the same for all arms. An arm that leaves a prompt to the base has exactly 0.

    asked: by arm, by question, the mix   Returns the estimate, by arm, by question.
    """
    base = server.names.base
    pairs = {(number, mix) for mixes in asked.values() for number, mix in mixes.items() if mix != base}
    numbers = sorted({number for number, _ in pairs})
    fresh = [number for number in numbers if number not in memo.samples]
    draws = [
        partial(server.sampled, plan.suite.questions[number].prompt, base, SAMPLED_TOKENS, plan.seed + number)
        for number in fresh
    ]
    samples = await each(draws, step("answers of the base at temperature 1", len(draws)))
    memo.samples |= dict(zip(fresh, samples, strict=True))
    wanted = sorted(pairs | {(number, base) for number in numbers}, key=repr)
    keys = [key for key in wanted if key not in memo.logprobs]
    reads = [partial(server.logprobs, memo.samples[number][0], mix) for number, mix in keys]
    found = await each(reads, step("their log-probabilities", len(reads)))
    memo.logprobs |= dict(zip(keys, found, strict=True))
    return {arm: {number: log_ratio(memo, number, base, mix) for number, mix in mixes.items()} for arm, mixes in asked.items()}


def log_ratio(memo: Memo, number: int, base: Asked, mix: Asked) -> float:
    """The mean over the sample's answer of log p_base - log p_mix."""
    if mix == base:
        return 0.0
    begin = memo.samples[number][1] - 1  # the first token of a text has no log-probability
    own, other = memo.logprobs[number, base][begin:], memo.logprobs[number, mix][begin:]
    return sum(a - b for a, b in zip(own, other, strict=True)) / max(1, len(own))
