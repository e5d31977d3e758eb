"""One-bit experts in slots are their own dense form, with batch-mates of every other kind."""

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from adapters.coefficient import Pair
from adapters.errors import ExpertError
from adapters.files.delta_forms import OneBitForm
from adapters.library.library import Library
from adapters.mix import Mix
from tests.factories.engines import Answer, assert_same, distance, two_ranks, workers_of
from tests.factories.inline_world import Asked, World, ask
from tests.factories.one_bit import DenseReference, add_one_bit, served_changes
from tests.factories.tiny_engines import (
    BASES,
    SHAPE,
    prompts,
    tiny_engine,
    write_base,
    write_library,
)
from tests.reference import Reference
from tta_serve.engine.options import Capacity
from tta_serve.engine.wire import make_undecided_request

MIXES = [
    Mix.of({"full": 0.5}),
    Mix.of({"full": 0.3, "mlps": -0.4, "small": 0.5}),
    Mix.of({"rslora": 1.0, "few": -0.5}),
    Mix(),
    Mix.of({"attends": Pair(0.5, 0.25), "full": (0.2, -0.3)}),
]
ARCHITECTURES = (
    "llama",
    "llama, tied embeddings",
    "qwen2, biases",
    "qwen3, query and key norms",
    "gemma3, one layer of two sliding",
    "phi3, fused in the checkpoint",
)


def write_one_bit_library(root: Path, base: Path) -> Library:
    """Three low-rank experts, and three of one bit: of all parts, of MLPs and of attentions."""
    write_library(root, base)
    add_one_bit(root, base, "full", 11)
    add_one_bit(root, base, "mlps", 12, OneBitForm("mlp"))
    add_one_bit(root, base, "attends", 13, OneBitForm("attention"))
    return Library.open(root)


def check(answers: Sequence[Answer], mixes: Sequence[Mix], reference: DenseReference) -> None:
    for answer, mix in zip(answers, mixes, strict=True):
        with reference.merged(mix.as_dict()):
            logprobs = reference.reference.logprobs(answer.prompt, answer.tokens)
        assert_same(answer, logprobs)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_one_bit_expert_is_its_own_dense_form(name: str, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", BASES[name])
    library = write_one_bit_library(tmp_path / "library", base)
    reference = DenseReference(Reference(base), library)
    with tiny_engine(base, library) as engine:
        check(engine.go_on(prompts(), MIXES, 8), MIXES, reference)
        alone = [Mix.of({"mlps": 1.0}), Mix.of({"attends": 1.0}), *MIXES[2::-1]]
        check(engine.go_on(prompts(), alone, 8), alone, reference)


MILD = LlamaConfig(**SHAPE | {"initializer_range": 0.05})


def test_in_bfloat16_a_one_bit_expert_is_its_dense_form_but_for_rounding(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", MILD, torch.bfloat16)
    add_one_bit(tmp_path / "library", base, "full", 11, strength=0.05)
    library = Library.open(tmp_path / "library")
    reference = DenseReference(Reference(base), library)
    mixes = [Mix.of({"full": 0.5}), Mix(), Mix.of({"full": -0.4})]
    with tiny_engine(base, library, dtype="bfloat16") as engine:
        answers = engine.go_on(prompts()[:3], mixes, 8)
    for answer, mix in zip(answers, mixes, strict=True):
        plain = reference.reference.logprobs(answer.prompt, answer.tokens)
        with reference.merged(mix.as_dict()):
            merged = reference.reference.logprobs(answer.prompt, answer.tokens)
        assert distance(answer, merged) < 0.04
        assert mix.is_base or distance(answer, plain) > 0.4


def test_one_bit_experts_come_and_go_and_count_in_bytes(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", BASES["llama"])
    library = write_one_bit_library(tmp_path / "library", base)
    reference = DenseReference(Reference(base), library)
    with tiny_engine(base, library) as engine:
        workers, digest = workers_of(engine.llm), library.digests["full"]
        before = engine.llm.collective_rpc("tta_used")[0]
        assert asyncio.run(workers.unload(digest))
        after = engine.llm.collective_rpc("tta_used")[0]
        dense = sum(2 * math.prod(d.shape) for d in served_changes(library, "full").values())
        assert 0 < 14 * (before[2] - after[2]) <= dense
        assert before[1] == after[1], "it has no ranks"
        check(engine.go_on(prompts()[2:4], MIXES[2:4], 8), MIXES[2:4], reference)
        asyncio.run(workers.load("full", digest))
        check(engine.go_on(prompts(), MIXES, 8), MIXES, reference)
    small = Capacity(bytes=after[2] + 1000)
    with pytest.raises(ExpertError, match="no room"), tiny_engine(base, library, capacity=small):
        pass


def test_a_pass_can_decide_for_one_bit_experts(tmp_path: Path) -> None:
    """The norm before the layer that decides is the base's."""
    base = write_base(tmp_path / "base", BASES["llama"])
    library = write_one_bit_library(tmp_path / "library", base)
    world = World.of(base, library)
    reference = DenseReference(world.reference, library)
    entry = "model.layers.1.input_layernorm.weight"
    with world.engine() as ours:
        policy = world.install(ours)
        asked = [
            Asked(prompt, make_undecided_request(policy), (len(prompt) // 3, len(prompt) - 1))
            for prompt in prompts()
        ]
        answers = ask(ours, asked)
    one_bit = {"full", "mlps", "attends"}
    chosen = [world.mix(got.decided) for got in answers]
    assert any(one_bit & mix.as_dict().keys() for mix in chosen)
    for got, mix in zip(answers, chosen, strict=True):
        with reference.merged(world.upper(mix).as_dict(), without=entry):
            logprobs = world.reference.logprobs(got.answer.prompt, got.answer.tokens)
        assert_same(got.answer, logprobs)


def test_two_tensor_parallel_ranks_have_their_share_of_signs(tmp_path: Path) -> None:
    config = LlamaConfig(**SHAPE | {"hidden_size": 256, "num_attention_heads": 4})
    config.num_key_value_heads = 2
    base = write_base(tmp_path / "base", config)
    add_one_bit(tmp_path / "library", base, "full", 11, strength=0.05)
    add_one_bit(tmp_path / "library", base, "mlps", 12, OneBitForm("mlp"), strength=0.05)
    library = Library.open(tmp_path / "library")
    mixes = [Mix.of({"full": 0.5}), Mix.of({"full": 0.3, "mlps": Pair(-0.4, 0.2)}), Mix()]
    with two_ranks(base, library, tap_layer=1, skip_tokenizer_init=True) as engine:
        answers = engine.go_on(prompts()[:3], mixes, 8)
    check(answers, mixes, DenseReference(Reference(base), library))
