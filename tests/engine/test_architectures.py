"""Random mixes equal the dense merge on tiny random bases.

Of many architectures and precisions, compiled, and quantised.
"""

import random
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from adapters.errors import ExpertError
from adapters.library.library import Library
from adapters.mix import Mix
from tests.factories.engines import Answer, assert_same, distance, random_mix
from tests.factories.experts import make_narrow_expert
from tests.factories.tiny_engines import (
    BASES,
    SHAPE,
    compiling_with_lora,
    prompts,
    tiny_engine,
    write_awq,
    write_base,
    write_library,
)
from tests.reference import Reference

MILD = LlamaConfig(
    **SHAPE | {"initializer_range": 0.05}
)  # small logits, so that rounding to 16 bits moves them little


def answers(base: Path, library: Library, **settings: object) -> list[tuple[Answer, Mix]]:
    """Four random mixes and the base, all in one batch."""
    rng = random.Random(3)
    mixes = [*(random_mix(rng, library.names, 3) for _ in range(4)), Mix()]
    with tiny_engine(base, library, **settings) as engine:
        return list(zip(engine.go_on(prompts(), mixes, 8), mixes, strict=True))


@pytest.mark.parametrize("name", BASES)
def test_a_mix_is_the_dense_merge(name: str, tmp_path: Path) -> None:
    assert_exact(write_base(tmp_path / "base", BASES[name]), tmp_path / "library")


@pytest.mark.skipif(shutil.which("g++") is None, reason="vLLM compiles to C++ on CPU")
def test_a_mix_is_the_dense_merge_in_a_compiled_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.config import CompilationMode

    monkeypatch.setenv("VLLM_DISABLE_COMPILE_CACHE", "1")
    base = write_base(tmp_path / "base", BASES["llama"])
    with compiling_with_lora() as configs:
        assert_exact(base, tmp_path / "library", enforce_eager=False)
    assert {c.compilation_config.mode for c in configs} == {CompilationMode.DYNAMO_TRACE_ONCE}


def assert_exact(base: Path, root: Path, **settings: object) -> None:
    library, reference = write_library(root, base), Reference(base)
    for answer, mix in answers(base, library, **settings):
        with reference.merged(library.experts, mix.as_dict()):
            assert_same(answer, reference.logprobs(answer.prompt, answer.tokens))


def test_in_bfloat16_a_mix_is_the_dense_merge_but_for_rounding(tmp_path: Path) -> None:
    """The reference has the same rounded weights, and computes in float32.

    So it need not choose the same tokens.
    """
    base = write_base(tmp_path / "base", MILD, torch.bfloat16)
    assert_near(base, base, tmp_path / "library", 0.04, dtype="bfloat16")


@pytest.mark.skipif(
    "avx512f" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"),
    reason="vLLM multiplies four bits with AVX-512 only",
)
def test_on_a_base_of_four_bits_a_mix_is_added_to_the_values_they_stand_for(tmp_path: Path) -> None:
    dense = write_base(tmp_path / "dense", MILD, torch.float16)
    assert_near(
        write_awq(tmp_path / "base", dense), dense, tmp_path / "library", 0.01, dtype="float16"
    )


def assert_near(base: Path, dense: Path, root: Path, tolerance: float, **settings: object) -> None:
    """Near the merge, at a tolerance at which the base alone is far from it."""
    library, reference = write_library(root, dense), Reference(dense)
    for answer, mix in answers(base, library, **settings):
        with reference.merged(library.experts, mix.as_dict()):
            merged = reference.logprobs(answer.prompt, answer.tokens)
        assert distance(answer, merged) < tolerance
        if not mix.is_base:
            assert (
                distance(answer, reference.logprobs(answer.prompt, answer.tokens)) > 20 * tolerance
            )


@pytest.mark.parametrize(
    "module", ["model.layers.1.mlp.gate", "model.layers.1.mlp.experts.0.gate_proj"]
)
def test_an_expert_on_what_routes_or_is_routed_to_is_refused_by_name(
    module: str, tmp_path: Path
) -> None:
    base = write_base(tmp_path / "base", BASES["qwen3-moe, first layer dense"])
    shape = (4 if module.endswith("gate") else 128, SHAPE["hidden_size"])
    make_narrow_expert(tmp_path / "library" / "routing", module, shape)
    library = Library.open(tmp_path / "library")
    with pytest.raises(ExpertError, match=f"'routing': {module} "), tiny_engine(base, library):
        pass
