"""Two tensor-parallel ranks write the same dense mix, each its share."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from adapters.library.library import Library
from adapters.mix import Mix
from tests.engine.test_dense import MIXES, assert_exact, write_dense
from tests.factories.dense import add_dense
from tests.factories.engines import Answer, read_answer, two_ranks, workers_of
from tests.factories.tiny_engines import SHAPE, prompts, write_base
from tests.reference import Reference
from tta_serve.engine.options import DenseOptions
from tta_serve.engine.wire import make_mix_request

# The words of the second rank are fewer, and filled up; one head has keys and values for both.
CONFIG = LlamaConfig(**SHAPE | {"vocab_size": 515})


def ask(llm: Any, library: Library, mixes: Sequence[Mix]) -> list[Answer]:
    from vllm import SamplingParams

    params = SamplingParams(
        max_tokens=6, temperature=0.0, ignore_eos=True, logprobs=0, detokenize=False
    )
    dense = {library.digest(name) for name in library.names if library.form(name) == "dense"}
    outputs = llm.generate(
        [{"prompt_token_ids": prompts((9 + i,))[0]} for i in range(len(mixes))],
        params,
        lora_request=[make_mix_request(mix, library.digests, dense=dense) for mix in mixes],
        use_tqdm=False,
    )
    return [read_answer(output) for output in outputs]


def test_answers_are_those_of_one_rank_and_experts_come_and_go(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", CONFIG)
    library = write_dense(tmp_path / "library", base)
    reference = Reference(base)
    options = DenseOptions(max_wait_s=1.0)
    with two_ranks(
        base, library, tap_layer=None, dense=options, skip_tokenizer_init=True
    ) as engine:
        llm = engine.llm
        mixes = [*MIXES, *MIXES]
        assert_exact(reference, library, ask(llm, library, mixes), mixes)
        nbytes, switches = asyncio.run(workers_of(llm).dense())
        assert switches >= 6

        late = add_dense(library.root, base, "late", seed=9)
        asyncio.run(workers_of(llm).load("late", late.digest("late")))
        mixes = [Mix.of({"late": 0.6, "whole": 0.3}), Mix.of({"late": 1.0, "small": 0.5}), Mix()]
        assert_exact(reference, late, ask(llm, late, mixes), mixes)
        ask(llm, late, [Mix()])
        assert asyncio.run(workers_of(llm).unload(late.digest("late")))
        assert asyncio.run(workers_of(llm).dense())[0] == nbytes
        assert_exact(reference, late, ask(llm, late, MIXES), MIXES)
