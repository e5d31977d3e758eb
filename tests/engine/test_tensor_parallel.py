"""Two tensor-parallel ranks on CPU: each holds its shard of the bank, and together they give the dense merge."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from adapters.library import Library
from adapters.mix import Mix
from tests.engine.conftest import SLOTS
from tests.made import make_expert
from tests.reference import Reference


@pytest.fixture(scope="module")
def tiny(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers with the demo's tokeniser."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=256,  # heads of 64: vLLM on CPU has no attention for small ones
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def test_a_mix_over_two_ranks_is_the_dense_merge(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    from vllm import LLM, SamplingParams

    from tta_serve.engine.options import BankOptions
    from tta_serve.engine.wire import mix_request

    make_expert(tmp_path / "one", tiny, seed=1, layers=range(2), strength=5)
    make_expert(tmp_path / "two", tiny, seed=2, layers=range(2), rank=3, alpha=3, strength=5)
    library = Library.open(tmp_path)
    mixes = [Mix.of({"one": 0.7, "two": -0.4}), Mix.of({"two": 1.0}), Mix()]
    llm = LLM(
        str(tiny),
        max_model_len=256,
        dtype="float32",
        enforce_eager=True,
        tensor_parallel_size=2,
        disable_log_stats=True,
        **BankOptions(str(library.root), tuple(library.digests.items())).engine_args(SLOTS),
    )
    try:
        outputs = llm.generate(
            [{"prompt_token_ids": [5, 9, 100 + i, 7]} for i in range(len(mixes))],
            SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=0),
            lora_request=[mix_request(m, library.digests) for m in mixes],
            use_tqdm=False,
        )
    finally:
        llm.llm_engine.engine_core.shutdown()
    reference = Reference(tiny)
    for mix, output in zip(mixes, outputs, strict=True):
        tokens = list(output.outputs[0].token_ids)
        with reference.merged(library.experts, mix.as_dict()):
            wanted = reference.logprobs(list(output.prompt_token_ids), tokens)
        assert wanted.argmax(-1).tolist() == tokens
        ours = torch.tensor([lp[t].logprob for lp, t in zip(output.outputs[0].logprobs, tokens, strict=True)])
        torch.testing.assert_close(ours, wanted.max(-1).values, rtol=0, atol=1e-3)
