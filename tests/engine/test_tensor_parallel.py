"""Two tensor-parallel ranks on CPU give the dense merge, each with its shard of the bank."""

import asyncio
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from adapters.bank.layer_gates import LAYER_GATES, read_gates, write_gates
from adapters.bank.token_gating import Gating
from adapters.errors import ExpertError
from adapters.library.library import Library
from adapters.mix import Mix
from router.decision import Prompt
from router.probing import Window
from tests.factories import inline_world
from tests.factories.engines import assert_same, read_answer, two_ranks, workers_of
from tests.factories.experts import make_end_expert, make_expert, make_gates, make_narrow_expert
from tests.factories.offline_client import Front, assert_compared, assert_watched
from tests.reference import Reference
from tta_serve.engine.client.worker_rpc import Workers
from tta_serve.engine.wire import (
    EarlierMix,
    acting_from,
    make_mix_request,
    make_undecided_request,
)


@pytest.fixture(scope="module")
def tiny(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers with the demo's tokeniser, and a few words more.

    The words of the second rank are fewer, and filled up.
    """
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49155,
        hidden_size=256,  # heads of 64: vLLM on CPU has no attention for small ones
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@dataclass
class World:
    """Two ranks, their library on disk, and the slow maths."""

    llm: Any
    root: Path
    reference: Reference

    def assert_right(self, mixes: Sequence[Mix]) -> None:
        """Each answer is the one of the dense merge, all asked for at once."""
        from vllm import SamplingParams

        library = Library.open(self.root)
        outputs = self.llm.generate(
            [{"prompt_token_ids": [5, 9, 100 + i, 7]} for i in range(len(mixes))],
            SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=0),
            lora_request=[make_mix_request(m, library.digests) for m in mixes],
            use_tqdm=False,
        )
        for mix, output in zip(mixes, outputs, strict=True):
            answer = read_answer(output)
            with self.reference.merged(library.experts, mix.as_dict()):
                wanted = self.reference.logprobs(answer.prompt, answer.tokens)
            assert_same(answer, wanted)

    @property
    def workers(self) -> Workers:
        return workers_of(self.llm)


@pytest.fixture(scope="module")
def world(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("library")
    make_expert(root / "one", tiny, seed=1, layers=range(2), strength=5)
    make_expert(root / "two", tiny, seed=2, layers=range(2), rank=3, alpha=3, strength=5)
    make_end_expert(root / "ends", tiny, seed=4, rank=6, strength=2)
    library = Library.open(root)
    write_gates(root / LAYER_GATES, make_gates(library.experts), replace=False)
    with two_ranks(tiny, library, tap_layer=1, gated=True, trained=True) as engine:
        yield World(engine.llm, root, Reference(tiny))


def test_a_mix_over_two_ranks_is_the_dense_merge(world: World) -> None:
    world.assert_right([Mix.of({"one": 0.7, "two": -0.4}), Mix.of({"two": 1.0}), Mix()])
    world.assert_right([Mix.of({"ends": 1.0}), Mix(), Mix.of({"ends": -0.5, "one": 0.5})])


def test_mixes_act_from_a_token_on_on_both_ranks(world: World) -> None:
    from vllm import SamplingParams

    library = Library.open(world.root)
    prompt = torch.randint(3, 40_000, (70,), generator=torch.Generator().manual_seed(3)).tolist()
    parts = [(20, Mix.of({"one": 0.7, "two": -0.4})), (45, Mix.of({"two": 1.0}))]
    first, second = (make_mix_request(mix, library.digests) for _, mix in parts)
    assert first is not None
    assert second is not None
    [(begins, earlier), (turn, _)] = parts
    by_digest = {library.digests[name]: c for name, c in earlier.coefficients}
    before = EarlierMix(begins, first.lora_name, by_digest)
    for _ in range(2):  # the second round is answered from the cache
        [output] = world.llm.generate(
            [{"prompt_token_ids": prompt}],
            SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=0),
            lora_request=[acting_from(second, turn, [before])],
            use_tqdm=False,
        )
        answer = read_answer(output)
        with world.reference.in_parts(library.experts, parts):
            wanted = world.reference.logprobs(prompt, answer.tokens)
        assert_same(answer, wanted)


def test_probes_over_two_ranks_see_the_whole_model(world: World) -> None:
    library, text, mixes = (
        Library.open(world.root),
        "How old is the moon?",
        [Mix.of({"one": 1.0}), Mix.of({"two": -0.5}), Mix.of({"ends": 1.0})],
    )
    client = Front(world.llm).client()
    compared = asyncio.run(client.compare(Prompt(text), mixes, Window(last=9), library.digests))
    tokens = client.prompt_tokens(Prompt(text))
    assert_compared(compared, world.reference, library.experts, tokens, mixes, len(tokens) - 9)
    experts = {library.digests[name]: expert for name, expert in library.experts.items()}
    raw = client.prompt_tokens(Prompt(text, chat=False))
    assert_watched(asyncio.run(client.activations(text)), world.reference, experts, raw)


def test_both_ranks_use_what_the_pass_decides(world: World, tiny: Path) -> None:
    inlined = inline_world.World.of(tiny, Library.open(world.root))
    policy = asyncio.run(
        world.workers.install([inlined.head], inlined.library.digests, inlined.rules)
    )
    rng = random.Random(0)
    prompts = [rng.sample(range(40_000), 3) for _ in range(8)]
    asked = [
        inline_world.Asked(prompt, make_undecided_request(policy), (1, 3)) for prompt in prompts
    ]
    found = inline_world.ask(world, asked)
    for one, got in zip(asked, found, strict=True):
        inlined.assert_decided(one, got)
    assert len({inlined.mix(got.decided) for got in found if got.report}) > 1


def test_both_ranks_share_by_the_whole_of_what_each_has_a_part_of(world: World) -> None:
    library, mix = Library.open(world.root), Mix.of({"one": 1.0, "two": 1.0, "ends": 1.0})
    gatings = [
        Gating("arrow", 1),
        Gating("spectr", 2, 1.0),
        Gating("arrow", 2, 0.5),
        Gating("trained", 2, 1.0),
        None,
    ]
    prompts = [[5, 9, 100 + i, 7, 300 * i, 8] for i in range(len(gatings))]
    asked = [
        inline_world.Asked(p, make_mix_request(mix, library.digests, g))
        for p, g in zip(prompts, gatings, strict=True)
    ]
    for got, gating in zip(inline_world.ask(world, asked), gatings, strict=True):
        with world.reference.used(
            library.experts, mix.as_dict(), gating, gates=read_gates(world.root / LAYER_GATES)
        ):
            assert_same(got.answer, world.reference.logprobs(got.answer.prompt, got.answer.tokens))


def test_an_expert_comes_and_goes_in_all_ranks_or_in_none(world: World, tiny: Path) -> None:
    before = asyncio.run(world.workers.count_used())
    make_narrow_expert(world.root / "narrow", "model.layers.0.mlp.up_proj", (384, 255))
    with pytest.raises(ExpertError, match="narrow"):
        asyncio.run(world.workers.load("narrow", Library.open(world.root).expert("narrow").digest))
    shutil.rmtree(world.root / "narrow")
    assert asyncio.run(world.workers.count_used()) == before
    make_expert(world.root / "late", tiny, seed=3, layers=range(2), strength=5)
    digest = Library.open(world.root).expert("late").digest
    asyncio.run(world.workers.load("late", digest))
    world.assert_right([Mix.of({"late": 1.0}), Mix.of({"late": 0.5, "one": 0.5})])
    world.assert_right([Mix()])  # workers hear of a request's end with the next step
    assert asyncio.run(world.workers.unload(digest))
    assert asyncio.run(world.workers.count_used()) == before
