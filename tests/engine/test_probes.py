"""Comparisons and activations in real vLLM, against plain transformers.

Beside other requests, in chunks, and compiled.
"""

import asyncio
import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.coefficient import Pair
from adapters.library.library import Library
from adapters.mix import Mix
from router.decision import Prompt
from router.probing import Window
from tests.factories.engines import Engine, workers_of
from tests.factories.offline_client import Front, Numbers, assert_compared, assert_watched
from tests.factories.tiny_engines import (
    BASES,
    compiling_with_lora,
    prompts,
    tiny_engine,
    write_base,
    write_library,
)
from tests.reference import Reference
from tta_serve.engine.client.engine_client import EngineClient, ProbeError
from tta_serve.engine.wire import ProbeComparison
from tta_serve.engine.worker.probes.comparison import ComparisonObserver
from tta_serve.engine.worker.probes.observer import RunningProbe

TURNS = {
    "Table staff(name, salary, dept). Which name in staff have salary above 70?": [
        Mix.of({"sql": 1.0}),
        Mix.of({"math": 1.0}),
        Mix.of({"sql": 0.5, "small": -0.3}),
    ],
    "Ana has 12 lamps and buys 30 more. How many lamps now?": [Mix.of({"math": Pair(1.0, 0.25)})],
    "Tell me a story about a lighthouse.": [Mix.of({"rslora": 1.0}), Mix.of({"pattern": 1.0})],
}
ORDINARY = [Mix.of({"sql": 1.0}), Mix(), Mix.of({"small": 0.5, "dates": 0.5})]
CHUNKED = {"max_num_batched_tokens": 32, "enable_chunked_prefill": True}
UNEVEN = [
    Mix.of({"small": (1.0, -0.5), "few": 0.5}),
    Mix.of({"rslora": Pair(0.0, 1.0)}),
    Mix.of({"few": 1.0}),
]
SCALE = -2.5


def test_comparisons_and_requests_at_once_change_nothing_of_each_other(
    engine: Engine, library: Library, reference: Reference
) -> None:
    front, window = Front(engine.llm), Window(last=16)
    client = front.client()
    tokens = {turn: client.prompt_tokens(Prompt(turn)) for turn in TURNS}

    async def answers() -> list[tuple[list[int], float]]:
        asked = zip(tokens.values(), ORDINARY, strict=True)
        return list(
            await asyncio.gather(*(front.ask(prompt, mix, engine.digests) for prompt, mix in asked))
        )

    async def everything() -> Any:
        compared = [
            client.compare(Prompt(turn), mixes, window, engine.digests)
            for turn, mixes in TURNS.items()
        ]
        return await asyncio.gather(
            answers(), client.features("a"), client.activations("b c"), *compared
        )

    alone = asyncio.run(answers())
    engine.llm.reset_prefix_cache()
    beside, _, _, *compared = asyncio.run(everything())
    for (turn, mixes), got in zip(TURNS.items(), compared, strict=True):
        assert_compared(
            got, reference, library.experts, tokens[turn], mixes, len(tokens[turn]) - window.last
        )
    assert [answer for answer, _ in beside] == [answer for answer, _ in alone]
    assert [sure for _, sure in beside] == pytest.approx([sure for _, sure in alone], abs=1e-3)


def test_a_draft_is_what_the_base_would_say(
    engine: Engine, library: Library, reference: Reference
) -> None:
    front = Front(engine.llm)
    client, prompt, mix = (
        front.client(),
        Prompt("What is the capital of France?"),
        Mix.of({"sql": 1.0}),
    )
    tokens = client.prompt_tokens(prompt)
    got = asyncio.run(client.compare(prompt, [mix], Window(last=2, draft=5), engine.digests))
    for _ in range(5):
        tokens.append(int(reference.logprobs(tokens, [0]).argmax()))
    assert_compared(got, reference, library.experts, tokens, [mix], len(tokens) - 7)


def test_activations_are_the_projections_on_each_experts_own_directions(
    engine: Engine, library: Library, reference: Reference
) -> None:
    client, texts = Front(engine.llm).client(), list(TURNS)[:2]
    experts = {library.digests[name]: expert for name, expert in library.experts.items()}

    async def both() -> Any:
        return await asyncio.gather(*map(client.activations, texts))

    for text, got in zip(texts, asyncio.run(both()), strict=True):
        assert_watched(
            got, reference, experts, client.prompt_tokens(Prompt(text, chat=False)), step=7
        )


def test_a_prompt_is_a_chat_if_it_was_and_not_longer_than_a_probe_may_be(engine: Engine) -> None:
    tokenizer, text = engine.llm.get_tokenizer(), "How old is the moon?"
    raw = tokenizer.encode(text, add_special_tokens=False)
    chat = engine.ask([text])[0].prompt
    client = Front(engine.llm).client()
    assert client.prompt_tokens(Prompt(text)) == chat
    assert client.prompt_tokens(Prompt(text, chat=False)) == raw
    assert Front(engine.llm).client(most=4).prompt_tokens(Prompt(text)) == chat[-4:]
    with pytest.raises(ProbeError, match="max_probe_tokens must be higher"):
        asyncio.run(
            Front(engine.llm).client(most=4).compare(Prompt(text), [Mix()], Window(draft=4), {})
        )


@dataclass(frozen=True)
class World:
    """A tiny base without a tokenizer, four experts, and what plain transformers makes of them."""

    base: Path
    library: Library
    reference: Reference

    def engine(self, **settings: Any) -> AbstractContextManager[Engine]:
        return tiny_engine(self.base, self.library, **settings)

    def assert_right(self, client: EngineClient, lengths: tuple[int, ...]) -> None:
        """Comparisons and activations of prompts of these lengths, all at once."""
        texts, window = prompts(lengths), Window(last=70)
        written = [" ".join(map(str, tokens)) for tokens in texts]
        experts = {
            self.library.digests[name]: expert for name, expert in self.library.experts.items()
        }

        async def everything() -> Any:
            compared = (
                client.compare(Prompt(text), UNEVEN, window, self.library.digests)
                for text in written
            )
            return await asyncio.gather(*compared, *map(client.activations, written))

        found = asyncio.run(everything())
        for tokens, outputs, activations in zip(
            texts, found[: len(texts)], found[len(texts) :], strict=True
        ):
            skip = max(0, len(tokens) - window.last)
            assert_compared(outputs, self.reference, self.library.experts, tokens, UNEVEN, skip)
            assert_watched(activations, self.reference, experts, tokens)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """With a twin of the expert `small`, whose delta is `small`'s times SCALE."""
    root = tmp_path_factory.mktemp("probes")
    base = write_base(root / "base", BASES["llama"])
    write_library(root / "library", base)
    twin = root / "library" / "twin"
    shutil.copytree(root / "library" / "small", twin)
    weights = load_file(twin / "adapter_model.safetensors")
    scaled = {
        name: weight * SCALE if "lora_B" in name else weight for name, weight in weights.items()
    }
    save_file(scaled, twin / "adapter_model.safetensors")
    return World(base, Library.open(root / "library"), Reference(base))


def test_long_probes_in_chunks(world: World) -> None:
    with world.engine(**CHUNKED) as engine:
        world.assert_right(Front(engine.llm, Numbers()).client(), (150, 70, 33, 2))


@pytest.mark.skipif(shutil.which("g++") is None, reason="vLLM compiles to C++ on CPU")
def test_probes_of_a_compiled_model(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_DISABLE_COMPILE_CACHE", "1")
    with compiling_with_lora(), world.engine(enforce_eager=False) as engine:
        world.assert_right(Front(engine.llm, Numbers()).client(), (40, 9))


def test_directions_are_those_of_the_experts_that_are_resident_whatever_their_scale(
    world: World,
) -> None:
    with world.engine() as engine:
        client, workers = Front(engine.llm, Numbers()).client(), workers_of(engine.llm)
        before = asyncio.run(client.activations("5 6 7"))
        small, twin = (
            before.experts.index(world.library.digests[name]) for name in ("small", "twin")
        )
        for table in (before.arrow, before.spectr, before.residual):
            torch.testing.assert_close(table[small], table[twin])
        torch.testing.assert_close(before.norm[twin], -SCALE * before.norm[small])
        gone = world.library.digests["small"]
        assert asyncio.run(workers.unload(gone))
        after = asyncio.run(client.activations("5 6 7"))
        left = [before.experts.index(digest) for digest in after.experts]
        assert set(after.experts) == set(before.experts) - {gone}
        torch.testing.assert_close(after.arrow, before.arrow[left], equal_nan=True)
        asyncio.run(workers.load("small", gone))
        again = asyncio.run(client.activations("5 6 7"))
        at = [again.experts.index(digest) for digest in before.experts]
        torch.testing.assert_close(again.norm[at], before.norm, equal_nan=True)


def test_one_that_was_preempted_is_no_answer(world: World) -> None:
    """The request and the probe fit until the request's answer needs one more block.

    There are eight blocks of 32 tokens.
    """
    blocks = {"num_gpu_blocks_override": 9, "block_size": 32, "enable_prefix_caching": False}
    [prompt, text] = prompts((94, 160))
    with world.engine(**CHUNKED, **blocks) as engine:
        front = Front(engine.llm, Numbers())
        client, written = front.client(), " ".join(map(str, text))

        async def both() -> Any:
            asked = front.ask(prompt, Mix(), {}, 30)
            return await asyncio.gather(asked, client.activations(written), return_exceptions=True)

        _, error = asyncio.run(both())
        assert isinstance(error, ProbeError)
        asyncio.run(client.activations(written))


def test_a_text_of_one_token_cannot_be_compared(world: World) -> None:
    with world.engine() as engine:
        client = Front(engine.llm, Numbers()).client()
        with pytest.raises(ProbeError, match="two tokens"):
            asyncio.run(client.compare(Prompt("5"), UNEVEN, Window(), world.library.digests))
        assert (
            asyncio.run(
                client.compare(Prompt("5"), UNEVEN, Window(draft=1), world.library.digests)
            ).positions
            == 2
        )


def test_kept_states_are_counted_one_by_one() -> None:
    readout, slots, tokens = (
        ComparisonObserver(lambda states, _: states, 4),
        torch.tensor([1] * 5 + [2] * 5),
        [0, 1, 2, 3, 0],
    )
    readout.capacity = 6
    for probe, skip in ((1, 0), (2, 3), (3, 0)):
        readout.begin({probe: RunningProbe(1, skip)})
        readout.observe(torch.randn(10, 4), slots, None)
    readout.begin({4: RunningProbe(1), 5: RunningProbe(2)})
    readout.observe(torch.randn(5, 4).repeat(2, 1), slots, None)
    assert readout.take([1], tokens) is None, "its five and two more are above six"
    assert readout.take([2], tokens) is None, "its two and five more are above six"
    assert readout.take([3], tokens[:4]) is None, "it saw one more"
    compared = readout.take([4, 5], tokens)
    assert isinstance(compared, ProbeComparison)
    assert compared.js == [0.0]
