"""vLLM's offline engine with mixture slots, and what it answered."""

import gc
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from adapters.library.library import Library
from adapters.mix import Mix
from tta_serve.engine.client.worker_rpc import Workers

SLOTS = 16
TAP_LAYER = 6
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Answer:
    """What the engine answered to a prompt."""

    prompt: list[int]
    """The ids of the prompt's tokens."""
    tokens: list[int]
    """The ids of the answer's tokens."""
    logprobs: list[float]
    """The log-probability of each of the answer's tokens."""


@contextmanager
def two_ranks(base: Path, library: Library, **settings: Any) -> Iterator["Engine"]:
    """Start an engine on two tensor-parallel ranks, and end it; the arguments are the engine's."""
    with patch.dict(os.environ, {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}):
        engine = Engine(base, library, max_model_len=256, tensor_parallel_size=2, **settings)
        try:
            yield engine
        finally:
            engine.close()


class Engine:
    """vLLM's offline engine with mixture slots; without a library, vLLM as it comes."""

    def __init__(
        self,
        base: Path,
        library: Library | None,
        *,
        tap_layer: int | None = TAP_LAYER,
        **settings: Any,
    ) -> None:
        """Start an engine.

        Args:
            base: The checkpoint of the base.
            library: The experts.
            tap_layer: The layer whose input routing reads.
            settings: vLLM's own, over ours; and ours, by the names of `BankOptions`.
        """
        from vllm import LLM

        from tta_serve.engine.options import BankOptions

        self.digests = library.digests if library else {}
        self.dense = {
            digest
            for name, digest in self.digests.items()
            if library and library.form(name) == "dense"
        }
        options: dict[str, Any] = {
            "max_model_len": 1024,
            "max_num_seqs": SLOTS,
            "dtype": "float32",
            "enforce_eager": True,
            # The share of the memory that must be free at the start, on a CPU.
            "gpu_memory_utilization": 0.5,
            "disable_log_stats": True,
        }
        if library:
            ours = {
                key: settings.pop(key)
                for key in ("capacity", "gated", "trained", "dense")
                if key in settings
            }
            bank = BankOptions(str(library.root), tuple(self.digests.items()), tap_layer, **ours)
            options |= bank.engine_args(SLOTS)
        self.llm = LLM(str(base), **options | settings)

    def ask(self, prompts: Sequence[str], mixes: Sequence[Mix] | None = None) -> list[Answer]:
        """Return greedy answers to chat prompts, all at once, each with its own mix."""
        tokenizer = self.llm.get_tokenizer()
        chats = [[{"role": "user", "content": p}] for p in prompts]
        texts = [
            tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True)
            for c in chats
        ]
        return self.go_on([tokenizer.encode(t, add_special_tokens=False) for t in texts], mixes, 12)

    def go_on(
        self, prompts: Sequence[list[int]], mixes: Sequence[Mix] | None, tokens: int
    ) -> list[Answer]:
        """Return greedy answers of so many tokens to prompts that are given as token ids."""
        from vllm import SamplingParams

        outputs = self.llm.generate(
            [{"prompt_token_ids": p} for p in prompts],
            SamplingParams(
                temperature=0, max_tokens=tokens, ignore_eos=True, logprobs=0, detokenize=False
            ),
            lora_request=[self.request(m) for m in mixes] if mixes else None,
            use_tqdm=False,
        )
        return [read_answer(o) for o in outputs]

    def request(self, mix: Mix) -> Any:
        """Return a mix as it travels through vLLM."""
        from tta_serve.engine.wire import make_mix_request

        return make_mix_request(mix, self.digests, dense=self.dense)

    def close(self) -> None:
        """End the engine."""
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        gc.collect()


def read_answer(output: Any) -> Answer:
    chosen = output.outputs[0]
    tokens = list(chosen.token_ids)
    return Answer(
        list(output.prompt_token_ids),
        tokens,
        [lp[t].logprob for lp, t in zip(chosen.logprobs, tokens, strict=True)],
    )


def random_mix(rng: random.Random, names: Sequence[str], most: int) -> Mix:
    chosen = rng.sample(names, rng.randint(1, most))
    return Mix.of({n: round(rng.randint(-6, 20) * 0.05, 2) or 0.5 for n in chosen})


def workers_of(llm: Any) -> Workers:
    """Return what the server has over its asynchronous engine, over an offline one."""

    async def rpc(method: str, timeout: float, args: Sequence[Any]) -> list[Any]:
        found: list[Any] = llm.collective_rpc(method, timeout, tuple(args))
        return found

    return Workers(rpc)


def assert_same(answer: Answer, logprobs: torch.Tensor) -> None:
    """The reference would have chosen the same tokens, with the same log-probabilities."""
    assert logprobs.argmax(-1).tolist() == answer.tokens
    assert distance(answer, logprobs) < TOLERANCE


def distance(answer: Answer, logprobs: torch.Tensor) -> float:
    """Return how far the log-probability of one of the answer's tokens is from the reference's.

    Args:
        answer: The engine's.
        logprobs: [tokens, vocabulary], the reference's.
    """
    theirs = logprobs.gather(1, torch.tensor(answer.tokens).unsqueeze(1)).squeeze(1)
    return float((torch.tensor(answer.logprobs) - theirs).abs().max())
