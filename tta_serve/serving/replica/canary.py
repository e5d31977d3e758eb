"""Whether the engine still answers, and still with the weights that it began with."""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from itertools import count
from typing import NamedTuple

from vllm import SamplingParams
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind

from adapters.mix import Mix
from tta_serve.engine.client.engine_client import EngineCall, EngineClient
from tta_serve.engine.wire import make_mix_request

FRESH_S = 5.0
"""How long an answer counts: whoever asks meanwhile costs the engine nothing."""
LATE_S = 30.0
"""How long the engine may take, busy with others."""
TOLERANCE = 0.25
"""How far a log-probability may move, in nats: with other batches 16-bit products move it a bit."""
_TOKENS = tuple(range(3, 11))  # fewer than fill a block of the prefix cache
_BASE = "base"
_SEEN = 5  # log-probabilities of an answer


class CanaryError(RuntimeError):
    """The engine did not answer, or not as it did before."""


class KnownAnswer(NamedTuple):
    """What an engine said at first."""

    token: int
    logprob: float


class Canary:
    """A question to the base and to a mix, whose answers are known from the first time.

    It is one token each. What would make it another, and so all answers: a bank or a weight that
    was overwritten, an expert in another's place, a switch of dense mixes that left something.

    Args:
        engine: The engine that is asked.
        clock: Seconds that only grow.
    """

    def __init__(self, engine: EngineClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._known: dict[str, KnownAnswer] = {}  # by the name of what was asked
        self._numbers = count()
        self._asking = asyncio.Lock()
        self._fresh_until = -1.0

    async def check(self, experts: Collection[str], digests: Mapping[str, str]) -> None:
        """Ask the base, and half of each of two experts.

        Args:
            experts: The experts that slots serve from the start of a prompt on.
            digests: The digest of each by its name.

        Raises CanaryError.
        """
        async with self._asking:
            if self._clock() < self._fresh_until:
                return
            halves = sorted(experts)[:2]
            mix = make_mix_request(Mix.of(dict.fromkeys(halves, 0.5)), digests)
            asked = {_BASE} if mix is None else {_BASE, mix.lora_name}
            self._known = {name: known for name, known in self._known.items() if name in asked}
            try:
                async with asyncio.timeout(LATE_S):
                    await self._ask("the base", None)
                    if mix is not None:
                        await self._ask(f"a mix of {' and '.join(halves)}", mix)
            except TimeoutError:
                raise CanaryError(f"the engine has not answered for {LATE_S:g} s") from None
            self._fresh_until = self._clock() + FRESH_S

    async def _ask(self, who: str, adapter: LoRARequest | None) -> None:
        params = SamplingParams(
            temperature=0,
            max_tokens=1,
            logprobs=_SEEN,
            output_kind=RequestOutputKind.FINAL_ONLY,
            detokenize=False,
        )
        call = EngineCall(
            {"prompt_token_ids": list(_TOKENS)}, params, f"tta-canary-{next(self._numbers)}"
        )
        *_, output = [output async for output in self._engine.run(call, adapter)]
        answer = output.outputs[0]
        seen = {token: value.logprob for token, value in answer.logprobs[0].items()}

        name = _BASE if adapter is None else adapter.lora_name
        first = KnownAnswer(answer.token_ids[0], seen[answer.token_ids[0]])
        known = self._known.setdefault(name, first)
        now = seen.get(known.token)
        if now is None or not abs(now - known.logprob) <= TOLERANCE:
            raise CanaryError(
                f"{who} answers with other weights than at first: token {known.token} had a"
                f" log-probability of {known.logprob:.3f}, and has {now}"
            )
