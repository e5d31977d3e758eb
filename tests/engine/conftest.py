"""One engine for all engine tests: the demo's base, its six experts, and three made ones of other ranks and scales."""

import gc
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.library import Library
from adapters.mix import Mix
from tests.made import make_expert
from tests.reference import Reference
from tta_serve.engine.workers import Workers

SLOTS = 16
TAP_LAYER = 6
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Answer:
    """prompt, tokens: ids   logprobs: of each chosen token"""

    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]


class Engine:
    """vLLM's offline engine with mixture slots; without a library, vLLM as it comes. settings: vLLM's own, over ours."""

    def __init__(self, base: Path, library: Library | None, *, tap_layer: int = TAP_LAYER, **settings: Any) -> None:
        from vllm import LLM

        from tta_serve.engine.options import BankOptions

        self.digests = library.digests if library else {}
        options: dict[str, Any] = {
            "max_model_len": 1024,
            "max_num_seqs": SLOTS,
            "dtype": "float32",
            "enforce_eager": True,
            "gpu_memory_utilization": 0.5,  # of the memory, on a CPU: what must be free at the start
            "disable_log_stats": True,
        }
        if library:
            ours = {key: settings.pop(key) for key in ("capacity", "gated", "trained") if key in settings}
            bank = BankOptions(str(library.root), tuple(self.digests.items()), tap_layer, **ours)
            options |= bank.engine_args(SLOTS)
        self.llm = LLM(str(base), **options | settings)

    def ask(self, prompts: Sequence[str], mixes: Sequence[Mix] | None = None) -> list[Answer]:
        """Greedy answers to chat prompts, all at once, each with its own mix."""
        tokenizer = self.llm.get_tokenizer()
        chats = [[{"role": "user", "content": p}] for p in prompts]
        texts = [tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in chats]
        return self.go_on([tokenizer.encode(t, add_special_tokens=False) for t in texts], mixes, 12)

    def go_on(self, prompts: Sequence[list[int]], mixes: Sequence[Mix] | None, tokens: int) -> list[Answer]:
        """The same for prompts given as token ids."""
        from vllm import SamplingParams

        from tta_serve.engine.wire import mix_request

        outputs = self.llm.generate(
            [{"prompt_token_ids": p} for p in prompts],
            SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, logprobs=0, detokenize=False),
            lora_request=[mix_request(m, self.digests) for m in mixes] if mixes else None,
            use_tqdm=False,
        )
        return [_answer(o) for o in outputs]

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        gc.collect()


def _answer(output: Any) -> Answer:
    chosen = output.outputs[0]
    tokens = list(chosen.token_ids)
    return Answer(
        list(output.prompt_token_ids), tokens, [lp[t].logprob for lp, t in zip(chosen.logprobs, tokens, strict=True)]
    )


def random_mix(rng: random.Random, names: Sequence[str], most: int) -> Mix:
    chosen = rng.sample(names, rng.randint(1, most))
    return Mix.of({n: round(rng.randint(-6, 20) * 0.05, 2) or 0.5 for n in chosen})


def workers_of(llm: Any) -> Workers:
    """What the server has over its asynchronous engine, over an offline one."""

    async def rpc(method: str, timeout: float, args: Sequence[Any]) -> list[Any]:
        found: list[Any] = llm.collective_rpc(method, timeout, tuple(args))
        return found

    return Workers(rpc)


def assert_same(answer: Answer, logprobs: torch.Tensor) -> None:
    """The reference would have chosen the same tokens, and gives them the same log-probabilities."""
    assert logprobs.argmax(-1).tolist() == answer.tokens
    assert distance(answer, logprobs) < TOLERANCE


def distance(answer: Answer, logprobs: torch.Tensor) -> float:
    """The furthest that the reference's log-probability of one of the answer's tokens is from the answer's."""
    theirs = logprobs.gather(1, torch.tensor(answer.tokens).unsqueeze(1)).squeeze(1)
    return float((torch.tensor(answer.logprobs) - theirs).abs().max())


@pytest.fixture(scope="session")
def library(base: Path, demo_experts: Path, tmp_path_factory: pytest.TempPathFactory) -> Library:
    root = tmp_path_factory.mktemp("library")
    shutil.copytree(demo_experts, root, dirs_exist_ok=True)
    make_expert(root / "small", base, seed=1, rank=4, alpha=4)
    make_expert(root / "rslora", base, seed=2, rank=16, alpha=8, use_rslora=True, layers=range(0, 30, 3))
    make_expert(root / "pattern", base, seed=3, rank=8, modules=("self_attn.q_proj", "self_attn.v_proj"), ranks={"v_proj": 2})
    return Library.open(root)


@pytest.fixture(scope="session")
def reference(base: Path) -> Reference:
    return Reference(base)


@pytest.fixture(scope="session")
def engine(base: Path, library: Library) -> Iterator[Engine]:
    engine = Engine(base, library)
    yield engine
    engine.close()
