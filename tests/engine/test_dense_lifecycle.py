"""Dense experts come and go while requests run, and are refused whole and by name."""

import asyncio
import random
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from adapters.errors import ExpertError
from adapters.library.library import Library
from adapters.mix import Mix
from tests.engine.test_dense import MIXES, Stream, World, assert_exact, dense_of, write_dense
from tests.factories.dense import add_dense
from tests.factories.engines import distance, workers_of
from tests.factories.tiny_engines import (
    BASES,
    SHAPE,
    prompts,
    tiny_engine,
    write_awq,
    write_base,
    write_library,
)
from tests.reference import Reference
from tta_serve.engine.options import DenseOptions

MILD = LlamaConfig(**SHAPE | {"initializer_range": 0.05})


def test_one_is_loaded_used_beside_others_and_unloaded(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", BASES["llama"])
    library = write_dense(tmp_path / "library", base)
    with tiny_engine(base, library, dense=DenseOptions()) as engine:
        stream, workers, dense = Stream(engine), workers_of(engine.llm), dense_of(engine)
        before = dense.nbytes, {name: v.clone() for name, v in dense.values().items()}
        running = stream.start(prompts()[0], MIXES[0], 20)
        stream.step(4)

        # It comes while another is in the weights.
        late = add_dense(library.root, base, "late", seed=9)
        asyncio.run(workers.load("late", late.digest("late")))
        engine.digests, engine.dense = late.digests, {*engine.dense, late.digest("late")}
        used = stream.start(prompts()[1], Mix.of({"late": 0.6, "norms": 1.0, "few": 0.5}), 10)
        stream.step(3)
        assert not asyncio.run(workers.unload(late.digest("late"))), "a running request uses it"
        stream.step()
        assert {running, used} <= stream.answers.keys()

        # It goes, and leaves nothing.
        stream.ask(prompts()[2], Mix())
        assert asyncio.run(workers.unload(late.digest("late")))
        assert dense.nbytes == before[0]
        assert all(torch.equal(v, before[1][name]) for name, v in dense.values().items())
        stream.ask(prompts()[3], MIXES[2])
    stream.assert_exact(World(base, late, Reference(base)))


def refused(base: Path, library: Library, why: str, **settings: object) -> None:
    """The engine does not start with the library."""
    with pytest.raises(ExpertError, match=why), tiny_engine(base, library, **settings):
        pass


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", BASES["llama"])
    library = add_dense(tmp_path / "library", base, "whole", seed=1)
    refused(base, library, "'whole' is dense, and this engine serves none")
    refused(
        base,
        library,
        r"'whole': no room: 0 bytes .* more, the budget is 1000; .*dense\.bytes",
        dense=DenseOptions(bytes=1000),
    )
    other = LlamaConfig(**SHAPE | {"intermediate_size": 128})
    smaller = write_base(tmp_path / "smaller", other)
    refused(smaller, library, r"'whole': .*down_proj.*\(128, 256\)", dense=DenseOptions())


def test_experts_that_are_routed_to_are_refused_by_name(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", BASES["mixtral"])
    library = add_dense(tmp_path / "library", base, "attention", seed=1, only=("self_attn", "norm"))
    with tiny_engine(base, library, dense=DenseOptions()) as engine:
        mixes = [Mix.of({"attention": 1.0}), Mix()]
        answers = engine.go_on(prompts((9, 12)), mixes, 8)
    assert_exact(Reference(base), library, answers, mixes)
    library = add_dense(tmp_path / "library", base, "routed", seed=1, only=("experts",))
    refused(base, library, "'routed': model.layers.0.* routed to", dense=DenseOptions())


def test_a_tied_head_has_the_name_of_the_embedding(tmp_path: Path) -> None:
    untied = write_base(tmp_path / "untied", BASES["llama"])
    base = write_base(tmp_path / "base", BASES["llama, tied embeddings"])
    library = add_dense(tmp_path / "library", untied, "head", seed=1, only=("lm_head",))
    refused(base, library, "'head': .*lm_head.weight.*tied", dense=DenseOptions())


@pytest.mark.skipif(
    "avx512f" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"),
    reason="vLLM multiplies four bits with AVX-512 only",
)
def test_quantised_weights_are_refused_and_others_of_the_base_change(tmp_path: Path) -> None:
    dense = write_base(tmp_path / "dense", MILD, torch.float16)
    base = write_awq(tmp_path / "base", dense)
    library = add_dense(tmp_path / "library", dense, "norms", seed=1, only=("norm",), strength=1.0)
    with tiny_engine(base, library, dense=DenseOptions(), dtype="float16") as engine:
        (answer,) = engine.go_on(prompts((9,)), [Mix.of({"norms": 1.0})], 8)
    reference = Reference(dense)
    with reference.changed({"norms": library.deltas("norms")}, {"norms": 1.0}):
        assert distance(answer, reference.logprobs(answer.prompt, answer.tokens)) < 0.01
    library = add_dense(tmp_path / "library", dense, "whole", seed=1)
    refused(base, library, "'whole': .*quantised", dense=DenseOptions(), dtype="float16")


@pytest.mark.parametrize("dtype", ["stored", "bfloat16"])
def test_in_bfloat16_a_dense_mix_is_the_merge_but_for_rounding(dtype: str, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", MILD, torch.bfloat16)
    root = tmp_path / "library"
    write_library(root, base)
    library = add_dense(root, base, "whole", seed=1, strength=0.5)
    mixes = [Mix.of({"whole": 1.0}), Mix(), Mix.of({"whole": 0.5, "small": 0.8})]
    options = DenseOptions(dtype=dtype)  # type: ignore[arg-type]
    with tiny_engine(base, library, dense=options, dtype="bfloat16") as engine:
        answers = engine.go_on(prompts((9, 20, 14)), mixes, 8)
        weights = dense_of(engine)
        weights.use(())
        before = {name: values.clone() for name, values in weights.values().items()}
        rng = random.Random(0)
        for _ in range(100):
            number = rng.choice([0.5, 1.0, -0.3])
            weights.use(((library.digest("whole"), number),) if rng.random() < 0.9 else ())
        weights.use(())
        assert all(torch.equal(v, before[name]) for name, v in weights.values().items())
    reference, low = Reference(base), {"small": library.expert("small")}
    for answer, mix in zip(answers, mixes, strict=True):
        part = mix.as_dict()
        slots = {name: part.pop(name) for name in [*part] if name in low}
        with reference.changed({"whole": library.deltas("whole")}, part):
            for parameter in reference.model.parameters():
                parameter.data = parameter.data.bfloat16().float()
            with reference.merged(low, slots):
                merged = reference.logprobs(answer.prompt, answer.tokens)
        assert distance(answer, merged) < 0.06
