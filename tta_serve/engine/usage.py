"""What a request takes of the engine, seen where its outputs pass by."""

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind


@dataclass
class Usage:
    """first: when the first token came, by the monotonic clock, None before   finish_reason: of the last sample that ended"""

    first: float | None = None
    prompt_tokens: int = 0
    finish_reason: str | None = None
    _tokens: dict[Any, int] = field(default_factory=dict)

    @property
    def completion_tokens(self) -> int:
        """Of all samples."""
        return sum(self._tokens.values())

    async def watch(self, outputs: Any, params: SamplingParams) -> AsyncIterator[Any]:
        """The outputs of one prompt, as they are."""
        delta, this, asked = params.output_kind == RequestOutputKind.DELTA, object(), False
        async with aclosing(outputs):
            async for output in outputs:
                if self.first is None:
                    self.first = time.perf_counter()
                if not asked:
                    self.prompt_tokens += len(output.prompt_token_ids or ())
                    asked = True
                for sample in output.outputs:
                    key = this, sample.index
                    self._tokens[key] = len(sample.token_ids) + (self._tokens.get(key, 0) if delta else 0)
                    self.finish_reason = sample.finish_reason or self.finish_reason
                yield output
