"""Answers in segments, of outputs as vLLM makes them: who reads them sees one answer."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind

from tta_serve.engine.client.engine_client import EngineCall
from tta_serve.engine.client.segments import run_segments

PARTS, WHOLE = RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY


def make_output(text: str, tokens: Sequence[int], reason: str | None, stop: Any) -> RequestOutput:
    sample = CompletionOutput(
        0, text, list(tokens), 0.0, None, finish_reason=reason, stop_reason=stop
    )
    return RequestOutput("a", "x", [1, 2], None, [sample], reason is not None)


class Engine:
    """Answers each segment with a word of letters, a token each, and the end of a turn."""

    def __init__(self, kind: RequestOutputKind, *words: str, **params: Any) -> None:
        self.words = list(words)
        self.ends: dict[str, tuple[str, Any]] = {}
        self.calls: list[EngineCall] = []
        self.since: list[int] = []
        params = {"max_tokens": 100, **params}
        self.call = EngineCall({}, SamplingParams(output_kind=kind, **params), "a")

    async def run(self, call: EngineCall, word: str) -> AsyncIterator[Any]:
        self.calls.append(call)
        reason, stop = self.ends.get(word, ("stop", None))
        tokens = [*map(ord, word), 0]
        if call.params.output_kind == PARTS:
            for letter in word:
                yield make_output(letter, [ord(letter)], None, None)
            yield make_output("", [0], reason, stop)
        else:
            yield make_output(word, tokens, reason, stop)

    def begin_next(self, call: EngineCall, since: int) -> AsyncIterator[Any] | None:
        if not self.words:
            return None
        self.since.append(since)
        return self.run(call, self.words.pop(0))

    def answer(self) -> tuple[str, list[int], list[tuple[str | None, Any, bool]]]:
        """Return text and tokens of the answer, and how each output says that it ends."""

        async def read() -> list[Any]:
            first = self.run(self.call, self.words.pop(0))
            return [output async for output in run_segments(self.call, first, self.begin_next)]

        outputs = asyncio.run(read())
        samples = [output.outputs[0] for output in outputs]
        text = "".join(sample.text for sample in samples)
        tokens = [token for sample in samples for token in sample.token_ids]
        ends = [
            (s.finish_reason, s.stop_reason, o.finished)
            for s, o in zip(samples, outputs, strict=True)
        ]
        return text, tokens, [end for end in ends if end != (None, None, False)]


@pytest.mark.parametrize("kind", [PARTS, WHOLE])
def test_segments_follow_one_another_on_lines_of_their_own(kind: RequestOutputKind) -> None:
    engine = Engine(kind, "ab", "c", "def", min_tokens=4, prompt_logprobs=1)
    text, tokens, ends = engine.answer()
    assert text == "ab\nc\ndef"
    assert tokens == [*b"ab", 0, *b"c", 0, *b"def", 0]
    assert ends == [("stop", None, True)], "once"
    assert engine.since == [3, 5]
    assert [call.name for call in engine.calls] == ["a", "a-1", "a-2"]
    assert [call.params.max_tokens for call in engine.calls] == [100, 97, 95]
    assert [call.params.min_tokens for call in engine.calls] == [4, 1, 0]
    assert [call.params.prompt_logprobs for call in engine.calls] == [1, None, None]


@pytest.mark.parametrize("kind", [PARTS, WHOLE])
@pytest.mark.parametrize("end", [("length", None), ("stop", "\n"), ("stop", 7), ("error", None)])
def test_what_ends_otherwise_ends_the_answer(kind: RequestOutputKind, end: Any) -> None:
    engine = Engine(kind, "ab", "c", "def", stop_token_ids=[7])
    engine.ends["c"] = end
    text, _, ends = engine.answer()
    assert text == "ab\nc"
    assert ends == [(*end, True)]
    assert engine.words == ["def"]


@pytest.mark.parametrize("kind", [PARTS, WHOLE])
def test_a_turn_may_end_with_a_token_of_the_models_own(kind: RequestOutputKind) -> None:
    engine = Engine(kind, "ab", "c")
    engine.ends["ab"] = ("stop", 128_009)
    assert engine.answer()[0] == "ab\nc"


def test_a_reader_who_leaves_closes_the_segment_that_runs() -> None:
    engine = Engine(PARTS, "ab", "cd")
    closed = []

    async def watch(outputs: AsyncIterator[Any]) -> AsyncIterator[Any]:
        try:
            async for output in outputs:
                yield output
        finally:
            closed.append(True)

    async def read() -> None:
        first = engine.run(engine.call, engine.words.pop(0))
        outputs: Any = run_segments(
            engine.call, first, lambda call, _: watch(engine.run(call, engine.words.pop(0)))
        )
        async for output in outputs:
            if output.outputs[0].text == "c":
                break
        await outputs.aclose()

    asyncio.run(read())
    assert closed == [True]
