"""An answer in segments: several mixes answer a prompt, one after the other, as one answer.

Each mix answers the prompt as if it were alone. Where one has said all that it has to say, and ends
its turn, the next one begins on a line of its own. Whoever reads the outputs sees one request.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from tta_serve.engine.client.engine_client import EngineCall

BETWEEN = "\n"
"""What stands between two segments."""

NextSegment = Callable[[EngineCall, int], AsyncIterator[Any] | None]
"""Begins the next segment, by the call that it is to run as and the number of the answer's token
that it begins with; None after the last one."""


async def run_segments(
    call: EngineCall, first: AsyncIterator[Any], begin_next: NextSegment
) -> AsyncIterator[Any]:
    """Yield the outputs of an answer in segments.

    A segment that ends otherwise than by ending its turn, at the client's `stop` or at the bound on
    tokens, which is of all segments together, ends the answer.

    Args:
        call: The prompt, whose answer is one sample.
        first: The outputs of its first segment.
        begin_next: Begins another one.
    """
    in_parts = call.params.output_kind == RequestOutputKind.DELTA
    outputs: AsyncIterator[Any] | None = first
    whole: Any = None
    number = tokens = 0
    while outputs is not None:
        following = None
        async with aclosing(outputs):  # type: ignore[type-var]
            async for output in outputs:
                if not (in_parts or output.finished):
                    continue
                [sample] = output.outputs
                tokens += len(sample.token_ids)
                if _has_ended_turn(sample, call.params):
                    number += 1
                    following = begin_next(_continue_call(call, number, tokens), tokens)
                    if following is not None:
                        _open(output)
                if in_parts:
                    yield output
                elif whole is None:
                    whole = output
                else:
                    whole.add(output, aggregate=True)
        outputs = following
    if whole is not None:
        yield whole


def _has_ended_turn(sample: Any, params: SamplingParams) -> bool:
    """Return whether a sample ended as the model ends turns, and not by what the client asked."""
    asked = isinstance(sample.stop_reason, str) or sample.stop_reason in (
        params.stop_token_ids or ()
    )
    return sample.finish_reason == "stop" and not asked


def _continue_call(call: EngineCall, number: int, tokens: int) -> EngineCall:
    """Return the call of a later segment, which has the tokens that are left."""
    params = call.params.clone()
    if params.max_tokens is not None:
        params.max_tokens -= tokens
    params.min_tokens = max(0, params.min_tokens - tokens)
    params.prompt_logprobs = None  # they came with the first one
    return call._replace(name=f"{call.name}-{number}", params=params)


def _open(output: Any) -> None:
    """Let an answer go on after an output that was its last one."""
    [sample] = output.outputs
    sample.text += BETWEEN
    sample.finish_reason = sample.stop_reason = None
    output.finished = False
