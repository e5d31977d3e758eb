"""Experts on the output head and the token embedding, in real vLLM against plain transformers."""

import asyncio
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GraniteConfig, LlamaConfig, PretrainedConfig

from adapters.bank.token_gating import Gating
from adapters.coefficient import Pair
from adapters.errors import ExpertError
from adapters.library.library import Library
from adapters.mix import Mix
from router.decision import Prompt
from router.probing import Outputs, Window
from tests.factories.engines import TOLERANCE, Engine, assert_same, distance, workers_of
from tests.factories.experts import ENDS, make_end_expert, make_expert
from tests.factories.inline_world import Asked, World, ask
from tests.factories.offline_client import Front, Numbers, assert_compared
from tests.factories.tiny_engines import (
    BASES,
    SHAPE,
    compiling_with_lora,
    prompts,
    tiny_engine,
    write_base,
)
from tests.reference import Reference
from tta_serve.engine import wire
from tta_serve.engine.wire import make_mix_request

CHUNKED = {"max_num_batched_tokens": 32, "enable_chunked_prefill": True}
ODD: dict[str, Any] = SHAPE | {"vocab_size": 500}  # vLLM fills vocabularies up to multiples of 64
GRANITE = GraniteConfig(
    **ODD,
    embedding_multiplier=3.0,
    logits_scaling=0.7,
    residual_multiplier=0.8,
    attention_multiplier=0.1,
)
MIXES = [
    Mix.of({"both": 1.0}),
    Mix(),
    Mix.of({"head": 0.7, "words": -0.4, "layers": 0.5}),
    Mix.of({"both": Pair(0.25, 0.75), "head": 0.5}),
    Mix.of({"both": (0.5, -0.5), "words": (1.0, 0.0), "layers": 1.0}),
    Mix.of({"layers": 1.0}),
    Mix.of({"words": Pair(1.0, 0.0)}),
    Mix.of({"head": Pair(1.0, 0.0)}),  # which leaves the head as it is
]
LENGTHS = (3, 9, 24, 40, 17, 70, 28, 12)


def write_experts(root: Path, base: Path) -> Library:
    """Write experts of the layers, of either end, and of both ends and the layers."""
    make_end_expert(root / "head", base, seed=1, modules=["lm_head"], rank=4)
    make_end_expert(root / "words", base, seed=2, modules=["model.embed_tokens"], rank=12)
    wide = ["model.layers.0.mlp.up_proj", "model.layers.1.self_attn.v_proj"]
    make_end_expert(root / "both", base, seed=3, modules=[*ENDS, *wide])
    make_expert(root / "layers", base, seed=4, rank=4, layers=range(2), strength=5)
    return Library.open(root)


@dataclass
class Ends:
    """An engine, its library on disk, and the slow maths."""

    engine: Engine
    base: Path
    library: Library
    reference: Reference

    def assert_right(self, mixes: Sequence[Mix], lengths: Sequence[int] = LENGTHS) -> None:
        """Each answer is that of the dense merge, all asked for at once."""
        asked = prompts(lengths[: len(mixes)])
        assert_merged(self.engine, self.library, self.reference, mixes, asked)


def assert_merged(
    engine: Engine,
    library: Library,
    reference: Reference,
    mixes: Sequence[Mix],
    asked: Sequence[list[int]],
) -> None:
    asked = [[token % ODD["vocab_size"] for token in prompt] for prompt in asked]
    for answer, mix in zip(engine.go_on(asked, mixes, 8), mixes, strict=True):
        with reference.merged(library.experts, mix.as_dict()):
            assert_same(answer, reference.logprobs(answer.prompt, answer.tokens))


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ends]:
    root = tmp_path_factory.mktemp("ends")
    base = write_base(root / "base", LlamaConfig(**ODD))
    library = write_experts(root / "library", base)
    with tiny_engine(base, library, **CHUNKED) as engine:
        yield Ends(engine, base, library, Reference(base))


def test_mixes_of_one_batch_are_dense_merges(ends: Ends) -> None:
    ends.assert_right(MIXES)
    ends.assert_right(MIXES[::-1])
    for mix in MIXES[:4]:
        ends.assert_right([mix])


def test_each_end_is_seen_in_the_answers(ends: Ends) -> None:
    """Or the other tests would see nothing."""
    for name in ("head", "words"):
        [answer] = ends.engine.go_on(prompts((24,)), [Mix.of({name: 1.0})], 8)
        base = ends.reference.logprobs(answer.prompt, answer.tokens)
        assert distance(answer, base) > 50 * TOLERANCE


def test_log_probabilities_of_prompts_are_those_of_each_requests_mix(ends: Ends) -> None:
    """In chunks, several requests at once; also where a prompt is as long as the batch is wide."""
    from vllm import SamplingParams

    for lengths in (LENGTHS, (9,) * len(MIXES)):
        asked = prompts(lengths)
        params = SamplingParams(
            temperature=0, max_tokens=1, prompt_logprobs=0, logprobs=0, detokenize=False
        )
        outputs = ends.engine.llm.generate(
            [{"prompt_token_ids": [t % ODD["vocab_size"] for t in prompt]} for prompt in asked],
            params,
            lora_request=[make_mix_request(mix, ends.library.digests) for mix in MIXES],
            use_tqdm=False,
        )
        for output, mix in zip(outputs, MIXES, strict=True):
            tokens = list(output.prompt_token_ids)
            rows = zip(output.prompt_logprobs[1:], tokens[1:], strict=True)
            found = [row[token].logprob for row, token in rows]
            with ends.reference.merged(ends.library.experts, mix.as_dict()):
                wanted = ends.reference.logprobs(tokens[:1], tokens[1:])
            chosen = wanted.gather(1, torch.tensor(tokens[1:]).unsqueeze(1))[:, 0]
            assert (torch.tensor(found) - chosen).abs().max() < TOLERANCE


def test_the_prefix_cache_never_crosses_mixes(ends: Ends) -> None:
    """A token embedding changes all keys and values."""
    mixes = [Mix.of({"words": 1.0}), Mix(), Mix.of({"words": -1.0}), Mix.of({"head": 1.0})]
    for _ in range(2):
        for mix in mixes:
            ends.assert_right([mix], (150,))


def test_experts_come_and_go(ends: Ends, tmp_path: Path) -> None:
    workers, root = workers_of(ends.engine.llm), ends.library.root
    before = asyncio.run(workers.count_used())
    make_end_expert(root / "late", ends.base, seed=9, rank=3)
    late = Library.open(root)
    digest = late.expert("late").digest
    asyncio.run(workers.load("late", digest))
    ends.engine.digests = late.digests
    try:
        mixes = [Mix.of({"late": 1.0, "both": 0.5}), Mix.of({"late": -0.5}), Mix()]
        assert_merged(ends.engine, late, ends.reference, mixes, prompts((9, 24, 17)))
        ends.assert_right([Mix()])  # workers hear of a request's end with the next step
        assert asyncio.run(workers.unload(digest))
    finally:
        shutil.rmtree(root / "late")
        ends.engine.digests = ends.library.digests
    assert asyncio.run(workers.count_used()) == before
    ends.assert_right(MIXES)


def test_experts_that_do_not_fit_are_refused(ends: Ends) -> None:
    workers, root = workers_of(ends.engine.llm), ends.library.root
    wide = write_base(root.parent / "wide", LlamaConfig(**SHAPE))
    for module in ENDS:
        make_end_expert(root / "wide", wide, seed=9, modules=[module])
        digest = Library.open(root).expert("wide").digest
        try:
            says = rf"'wide': {module} is for a weight of \(512, 128\), this base has \(500, 128\)"
            with pytest.raises(ExpertError, match=says):
                asyncio.run(workers.load("wide", digest))
        finally:
            shutil.rmtree(root / "wide")


def test_comparisons_are_of_each_candidates_own_head(ends: Ends) -> None:
    """Of more candidates at once than there are slots, so that many lose theirs."""
    client, window = Front(ends.engine.llm, Numbers()).client(), Window(last=20)
    texts = [[t % ODD["vocab_size"] for t in prompt] for prompt in prompts((40, 30, 24, 35, 28))]
    mixes = [*MIXES[:1], *MIXES[2:6]]

    async def compare() -> list[Outputs]:
        asked = [
            client.compare(
                Prompt(" ".join(map(str, text)), chat=False), mixes, window, ends.library.digests
            )
            for text in texts
        ]
        return list(await asyncio.gather(*asked))

    for compared, text in zip(asyncio.run(compare()), texts, strict=True):
        skip = len(text) - 20
        assert_compared(compared, ends.reference, ends.library.experts, text, mixes, skip)
    ends.assert_right(MIXES)


@pytest.mark.parametrize("config", [GRANITE], ids=["granite, scaled at both ends"])
def test_what_models_scale_is_scaled(config: PretrainedConfig, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", config)
    library = write_experts(tmp_path / "library", base)
    with tiny_engine(base, library) as engine:
        assert_merged(engine, library, Reference(base), MIXES, prompts(LENGTHS))


@pytest.mark.skipif(shutil.which("g++") is None, reason="vLLM compiles to C++ on CPU")
def test_a_compiled_model_adds_at_both_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_DISABLE_COMPILE_CACHE", "1")
    base = write_base(tmp_path / "base", LlamaConfig(**ODD))
    library = write_experts(tmp_path / "library", base)
    with compiling_with_lora(), tiny_engine(base, library, enforce_eager=False) as engine:
        assert_merged(engine, library, Reference(base), MIXES, prompts(LENGTHS))


@pytest.mark.parametrize("head", ["float32", "model"])
def test_in_bfloat16_it_is_the_dense_merge_but_for_rounding(head: str, tmp_path: Path) -> None:
    config = LlamaConfig(**ODD | {"initializer_range": 0.05})
    base = write_base(tmp_path / "base", config, torch.bfloat16)
    library, reference = write_experts(tmp_path / "library", base), Reference(base)
    settings: dict[str, Any] = {"dtype": "bfloat16", "hf_overrides": {"head_dtype": head}}
    with tiny_engine(base, library, **settings) as engine:
        asked = [[token % ODD["vocab_size"] for token in prompt] for prompt in prompts(LENGTHS)]
        for answer, mix in zip(engine.go_on(asked, MIXES, 8), MIXES, strict=True):
            with reference.merged(library.experts, mix.as_dict()):
                assert distance(answer, reference.logprobs(answer.prompt, answer.tokens)) < 0.06


def test_a_pass_decides_for_the_head_and_leaves_the_embedding_alone(tmp_path: Path) -> None:
    """The embedding is below every layer that decides, and the head above."""
    base = write_base(tmp_path / "base", LlamaConfig(**SHAPE))
    world = World.of(base, write_experts(tmp_path / "library", base), top=3)
    with world.engine(**CHUNKED) as engine:
        policy = world.install(engine)
        asked = [
            Asked(prompt, wire.make_undecided_request(policy), (1, len(prompt) - 1))
            for prompt in prompts((9, 24, 40, 17, 31, 12, 70, 28))
        ]
        decided = set()
        for one, got in zip(asked, ask(engine, asked), strict=True):
            world.assert_decided(one, got)
            decided |= {name for name, _ in world.mix(got.decided).coefficients}
        assert {"both", "head", "words"} <= decided


def test_gated_tokens_share_at_both_ends(tmp_path: Path) -> None:
    """As in any layer: by what experts read of the state, or of the token itself."""
    base = write_base(tmp_path / "base", LlamaConfig(**SHAPE))
    world = World.of(base, write_experts(tmp_path / "library", base))
    everything = Mix.of(dict.fromkeys(world.library.names, 1.0))
    wishes: list[tuple[Mix, Gating | None]] = [
        (everything, Gating("arrow", 1)),
        (everything, Gating("spectr", 2, 1.0)),
        (Mix.of({"both": 0.5, "words": 1.0}), None),
        (everything, Gating("arrow", 2, 0.5)),
        (Mix(), None),
    ]
    asked = [
        Asked(prompt, wire.make_mix_request(mix, world.library.digests, gating))
        for prompt, (mix, gating) in zip(prompts((9, 24, 40, 17, 31)), wishes, strict=True)
    ]
    with world.engine(gated=True) as engine:
        for got, (mix, gating) in zip(ask(engine, asked), wishes, strict=True):
            with world.reference.used(world.library.experts, mix.as_dict(), gating):
                assert_same(
                    got.answer, world.reference.logprobs(got.answer.prompt, got.answer.tokens)
                )


@pytest.mark.parametrize("base", ["llama, tied embeddings", "gemma3, one layer of two sliding"])
@pytest.mark.parametrize("module", ENDS)
def test_ends_that_are_one_weight_are_refused(base: str, module: str, tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base", BASES[base])
    make_end_expert(tmp_path / "library" / "end", folder, seed=1, modules=[module])
    other = "token embeddings" if module == "lm_head" else "output head"
    with (
        pytest.raises(ExpertError, match=f"'end': {module} is one weight with the base's {other}"),
        tiny_engine(folder, Library.open(tmp_path / "library")),
    ):
        pass


def test_where_embeddings_come_as_prompts_an_expert_on_them_is_refused(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base", LlamaConfig(**ODD))
    make_end_expert(tmp_path / "library" / "end", folder, seed=1)
    with (
        pytest.raises(ExpertError, match=r"'end' changes the token embedding, .*enable_prompt_em"),
        tiny_engine(folder, Library.open(tmp_path / "library"), enable_prompt_embeds=True),
    ):
        pass
