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
    """The tokens that a request took, counted while its outputs are watched."""

    first: float | None = None
    """When the first token came, by the monotonic clock; None before."""
    prompt_tokens: int = 0
    """The tokens of all prompts of the request."""
    cached_tokens: int = 0
    """Those of them whose keys and values were in the prefix cache."""
    finish_reason: str | None = None
    """Why the last sample to end has ended."""
    _tokens: dict[Any, int] = field(default_factory=dict)
    """The tokens of each sample of each prompt."""

    @property
    def completion_tokens(self) -> int:
        """The tokens of all samples."""
        return sum(self._tokens.values())

    async def watch(self, outputs: Any, params: SamplingParams) -> AsyncIterator[Any]:
        """Pass on the outputs of one prompt as they are, and count what is in them."""
        in_parts = params.output_kind == RequestOutputKind.DELTA
        prompt = object()
        prompt_counted = False
        async with aclosing(outputs):
            async for output in outputs:
                if self.first is None:
                    self.first = time.perf_counter()
                if not prompt_counted:
                    self.prompt_tokens += len(output.prompt_token_ids or ())
                    self.cached_tokens += getattr(output, "num_cached_tokens", None) or 0
                    prompt_counted = True
                for sample in output.outputs:
                    key = prompt, sample.index
                    before = self._tokens.get(key, 0) if in_parts else 0
                    self._tokens[key] = before + len(sample.token_ids)
                    self.finish_reason = sample.finish_reason or self.finish_reason
                yield output
