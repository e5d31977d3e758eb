"""One request that generates, from what it asks to what its answer says."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Any

from vllm.lora.request import LoRARequest

from adapters.mix import Mix
from router.decision import Prompt
from tta_serve import metrics
from tta_serve.engine.client.engine_client import EngineCall, EngineClient, UndecidedRequest
from tta_serve.engine.client.segments import run_segments
from tta_serve.engine.client.usage import Usage
from tta_serve.exceptions import RequestError
from tta_serve.protocol import MergeInfo, Segment
from tta_serve.serving.access.admission import Admitted
from tta_serve.serving.reading.catalog import Wish
from tta_serve.serving.reading.request import GenerateRequest, Turn
from tta_serve.serving.routing.inline_turn import InlineTurn
from tta_serve.serving.routing.route import DecidedTurn, RequestRoute
from tta_serve.serving.trials.trials import RequestRecord
from tta_serve.telemetry.traces import describe_merge, trace_engine, trace_step

_FORMATS = {
    "json": "response_format",
    "json_object": "response_format",
    "regex": "structured_outputs.regex",
    "choice": "structured_outputs.choice",
    "grammar": "structured_outputs.grammar",
    "structural_tag": "structured_outputs.structural_tag",
}
"""Of vLLM's structured outputs, and the field that asks for each."""


class Exchange:
    """The owner of a request's prompts.

    vLLM hands them over one by one, and each is routed when it comes.

    Attributes:
        error: What the engine or a policy raised.
        killed: Whether the engine died while it ran a prompt of it.
    """

    def __init__(
        self,
        request: GenerateRequest,
        wish: Wish,
        record: RequestRecord,
        engine: EngineClient,
        admitted: Admitted,
    ) -> None:
        """Begin with no prompt handed over.

        Args:
            record: What logs keep of the request.
        """
        self.request = request
        self.record = record
        self._wish = wish
        self._engine = engine
        self._admitted = admitted
        self._prompts: list[tuple[Prompt, Turn]] = []
        self._placed: dict[int, LoRARequest | UndecidedRequest | None] = {}
        self._routes: dict[int, asyncio.Task[RequestRoute]] = {}
        self._first: EngineCall | None = None
        self._handed = 0
        self._readers: set[asyncio.Task[Any]] = set()  # of the engine's outputs
        self._ended = False
        self.error: BaseException | None = None
        self.killed = False

    @property
    def model(self) -> str | None:
        """The model's name that it was asked under."""
        return self.request.model

    def answer(self, call: EngineCall) -> AsyncIterator[Any]:
        """The engine's outputs of the next prompt.

        Further steps of the last one, as beam search has them, are run like it.
        """
        if self._ended:
            raise asyncio.CancelledError
        self.request.limits.bound(call.tokens, call.params)
        call = _salt(call, self.request.caller.tenant)
        prompts = self._read()
        index = min(self._handed, len(prompts) - 1)
        self._handed += 1
        self._first = self._first or call
        self.record.answer_again = self.again
        return self._outputs(call, index)

    def end(self) -> None:
        """Let nothing of the request run on that is still in the engine, or waits for it.

        vLLM reads an answer that is no stream in a task of its own, which goes on when the request
        is cut off at its deadline.
        """
        self._ended = True
        for reader in self._readers - {asyncio.current_task()}:
            reader.cancel()

    async def _outputs(self, call: EngineCall, index: int) -> AsyncIterator[Any]:
        reader = asyncio.current_task()
        assert reader is not None
        self._readers.add(reader)
        lived = False
        try:
            async with self._admitted.room_for(call.params.n):
                route = await self._route(index)
                if index not in self._placed:
                    self._placed[index] = self._place(call, route, index)
                lived = not self._engine.dead
                with trace_engine() as headers:
                    run = self._run(call.traced_by(headers), route, index)
                    outputs: Any = self.record.usage.watch(run, call.params)
                    async with aclosing(outputs):
                        async for output in outputs:
                            _check_grammar(call, output)
                            yield output
        except Exception as error:
            self.error = error
            self.killed |= lived and self._engine.dead
            raise
        finally:
            self._readers.discard(reader)

    def _run(self, call: EngineCall, route: RequestRoute, index: int) -> AsyncIterator[Any]:
        """Return the outputs of a prompt, in segments if its route has several.

        Raises RequestError if the request wants segments, and something that has none.
        """
        outputs = self._engine.run(call, self._placed[index])
        turn = route.turn
        if not turn.may_go_on:
            return outputs
        begin_next = partial(self._begin_segment, turn, index)
        if (obstacle := self._find_obstacle(call)) is None:
            return run_segments(call, outputs, begin_next)
        if self._wish.then:
            raise RequestError(f"merge.segments: {obstacle}", param="merge.segments")
        return _warn_of(outputs, turn, obstacle)

    def _find_obstacle(self, call: EngineCall) -> str | None:
        """Return why an answer cannot be in segments, None if it can."""
        if self.request.searches or call.params.n > 1:
            return "an answer in segments is one sample: neither n nor use_beam_search goes with it"
        if call.params.structured_outputs is not None:
            return "each segment would keep to the format, and all together would not"
        if self.request.body.get("tools"):
            return "a call of a tool ends an answer, and segments would go on"
        return None

    def _begin_segment(
        self, turn: DecidedTurn | InlineTurn, index: int, call: EngineCall, since: int
    ) -> AsyncIterator[Any] | None:
        """Begin the next segment of an answer, if one is left and has room."""
        info = turn.info
        assert info is not None, "a turn is decided when its first segment has ended"
        segments = info.segments or [Segment(since=0, experts=info.experts)]
        left = turn.then[len(segments) - 1 :]
        if not left or call.params.max_tokens == 0:
            return None
        info.segments = [*segments, Segment(since=since, experts=left[0].as_json())]
        metrics.later_segments.labels(info.policy).inc()
        own = self.record.view.router.make_turn(left[0], self._wish.acts_from)
        turns = self.request.user_turns()[index]
        return self._engine.run(call, own.place(self._engine.placer, call.tokens, turns))

    def _place(
        self, call: EngineCall, route: RequestRoute, index: int
    ) -> LoRARequest | UndecidedRequest | None:
        """Return what the engine runs a prompt as; steps of a beam search run as their first."""
        turns = self.request.user_turns()[index]
        return route.turn.place(self._engine.placer, call.tokens, turns)

    def _read(self) -> list[tuple[Prompt, Turn]]:
        """What policies read of each prompt, once vLLM has found nothing wrong with the request."""
        if not self._prompts:
            prompts = self.request.prompts(
                self._wish.preference, self._wish.read, self._engine.text
            )
            self._prompts = list(zip(prompts, self.request.turns(), strict=False))
            self.record.prompt = prompts[0]
        return self._prompts

    async def _route(self, index: int) -> RequestRoute:
        """Decided once for a prompt, whoever asks first."""
        if index not in self._routes:
            self._routes[index] = asyncio.create_task(self._decide(index))
        try:
            route = await self._routes[index]
        except asyncio.CancelledError:
            self._routes[index].cancel()
            raise
        if index == 0:
            self.record.route = route
        return route

    async def _decide(self, index: int) -> RequestRoute:
        with trace_step("route") as span:
            route = await self.record.view.router.route(self._wish, *self._prompts[index])
            span.set_attributes(describe_merge(route.merge_info()))
            return route

    def merge(self) -> list[MergeInfo]:
        """What was done with each prompt that came to be routed."""
        routes = [self._routes[index] for index in sorted(self._routes)]
        return [
            route.result().merge_info() for route in routes if route.done() and not _failed(route)
        ]

    async def again(self, mix: Mix) -> dict[str, Any]:
        """Answer its first prompt once more, with another mix, for nobody: what it took."""
        assert self._first is not None
        usage = Usage()
        start = time.perf_counter()
        call = self._first._replace(
            name=f"{self._first.name}-shadow", params=self._first.params.clone()
        )
        turn = self.record.view.router.make_turn(mix, self._wish.acts_from)
        placed = turn.place(self._engine.placer, call.tokens, self.request.user_turns()[0])
        outputs = self._engine.run(call, placed)
        async for _ in usage.watch(outputs, call.params):
            pass
        took = 1e3 * (time.perf_counter() - start)
        return {
            "total_ms": took,
            "completion_tokens": usage.completion_tokens,
            "finish_reason": usage.finish_reason,
        }

    @property
    def asked(self) -> bool:
        """Whether vLLM has read the request, and handed a prompt over."""
        return self._first is not None


def _salt(call: EngineCall, tenant: str | None) -> EngineCall:
    """Return a call whose prefix cache no other tenant shares, nor sees by the time it takes."""
    if tenant is None:
        return call
    own = call.prompt.get("cache_salt") or ""
    return call._replace(prompt={**call.prompt, "cache_salt": json.dumps([tenant, own])})


def _check_grammar(call: EngineCall, output: Any) -> None:
    """Raise RequestError for a format that the engine could not keep to.

    The engine says no more of it than that it failed.
    """
    wanted = call.params.structured_outputs
    if wanted is None or all(sample.finish_reason != "error" for sample in output.outputs):
        return
    kind = next((name for name in _FORMATS if getattr(wanted, name, None)), "format")
    raise RequestError(
        f"the {kind} that the answer is to keep to cannot be compiled, or it leaves no token that"
        " may come next",
        param=_FORMATS.get(kind, "structured_outputs"),
    )


async def _warn_of(
    outputs: Any, turn: DecidedTurn | InlineTurn, obstacle: str
) -> AsyncIterator[Any]:
    """Pass outputs on, and say of what is decided by then that it has one segment alone."""
    async with aclosing(outputs):
        async for output in outputs:
            yield output
    if turn.then and turn.info is not None:
        turn.info.warnings.append(f"only the first segment was answered: {obstacle}")


def _failed(route: asyncio.Task[Any]) -> bool:
    return route.cancelled() or route.exception() is not None
