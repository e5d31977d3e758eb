"""The engines that are compared. All run the same base in float32, with the same limits and no prefix cache."""

import gc
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

from adapters.library import Library
from adapters.mix import Mix
from loadtest.stock import max_lora_rank, rank_of, write_merged
from loadtest.workload import EXPERTS_PER_MIX, Batch, numbers_of
from tta_serve.engine.options import BankOptions
from tta_serve.engine.wire import mix_request

SLOTS = 16
_MAX_MODEL_LEN = 1024
_MAX_BATCHED_TOKENS = 2048  # what vLLM's server takes on a CPU; the offline class would take twice as many


@dataclass(frozen=True)
class Setup:
    """What all sides start from. folder: a temporary one   inplace_requests: most requests of a batch that `inplace` serves"""

    base: Path
    library: Library
    folder: Path
    eager: bool = True
    inplace_requests: int = 4


@dataclass(frozen=True)
class Timed:
    """What a batch took. tok_s: counted tokens per second of wall time   answers: token ids"""

    tok_s: float
    answers: list[list[int]]


class Side:
    """Side `base`: vLLM without adapters. The other sides are this one with other options and adapters."""

    name = "base"

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.llm = LLM(
            str(setup.base),
            max_model_len=_MAX_MODEL_LEN,
            max_num_batched_tokens=_MAX_BATCHED_TOKENS,
            dtype="float32",
            enforce_eager=setup.eager,
            gpu_memory_utilization=0.5,  # of the memory, on a CPU: what must be free at the start
            disable_log_stats=True,
            **{"enable_prefix_caching": False} | self._options(),
        )

    def _options(self) -> dict[str, Any]:
        return {"max_num_seqs": SLOTS}

    def prepare(self, mixes: Sequence[Mix]) -> None:
        """What has to be there before these mixes can be asked for; never timed."""

    def adapter(self, mix: Mix) -> LoRARequest | None:
        return None

    def run(self, batch: Batch) -> Timed:
        """Send all requests of the batch at once and wait for the last."""
        requests = [self.adapter(mix) for mix in batch.mixes]
        began = time.perf_counter()
        answers = self.generate(batch.prompts, requests, batch.shape.answer)
        return _timed(batch, time.perf_counter() - began, answers)

    def generate(
        self, prompts: Sequence[Sequence[int]], requests: Sequence[LoRARequest | None], tokens: int
    ) -> list[list[int]]:
        """Greedy answers of exactly `tokens` tokens."""
        outputs = self.llm.generate(
            [{"prompt_token_ids": list(p)} for p in prompts],
            SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False),
            lora_request=list(requests) if any(requests) else None,
            use_tqdm=False,
        )
        return [list(o.outputs[0].token_ids) for o in outputs]

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        gc.collect()


class Stock(Side):
    """vLLM's own multi-LoRA, each mix merged into an adapter beforehand; every request of a batch can have its own."""

    name = "stock"

    def __init__(self, setup: Setup) -> None:
        self._known: dict[Mix, LoRARequest] = {}
        self._written = 0
        super().__init__(setup)

    def _options(self) -> dict[str, Any]:
        ranks = sorted((rank_of(e) for e in self.setup.library), reverse=True)
        return super()._options() | {
            "enable_lora": True,
            "max_loras": SLOTS,
            "max_cpu_loras": SLOTS,
            "max_lora_rank": max_lora_rank(sum(ranks[:EXPERTS_PER_MIX])),
            "worker_extension_cls": "loadtest.probes.StockExtension",
        }

    def prepare(self, mixes: Sequence[Mix]) -> None:
        """Write the adapters that are not there yet, and delete those that these mixes do not use."""
        for mix in self._known.keys() - set(mixes):
            shutil.rmtree(self._known.pop(mix).lora_path)
        for mix in set(mixes) - self._known.keys():
            self._written += 1
            folder = self.setup.folder / f"stock-{self._written}"
            write_merged(folder, numbers_of(mix), self.setup.library.experts)
            self._known[mix] = LoRARequest(folder.name, self._written, str(folder))

    def adapter(self, mix: Mix) -> LoRARequest | None:
        return self._known[mix]

    def bytes_per_slot(self) -> int:
        return int(self.llm.collective_rpc("bench_bytes")[0]) // SLOTS


class InPlace(Side):
    """Merged into the dense weights for one request at a time and restored after it, as research code serves such merges.

    Its rate does not depend on how many wait, so of a large batch it serves the first few requests only.
    """

    name = "inplace"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.llm.collective_rpc("bench_install", args=(str(setup.library.root),))
        self.merges: list[float] = []

    def _options(self) -> dict[str, Any]:
        return super()._options() | {"worker_extension_cls": "loadtest.inplace.InPlaceExtension"}

    def run(self, batch: Batch) -> Timed:
        served = batch.first(self.setup.inplace_requests)
        answers = []
        began = time.perf_counter()
        for prompt, mix in zip(served.prompts, served.mixes, strict=True):
            answers += self._one(prompt, mix, batch.shape.answer)
        return _timed(served, time.perf_counter() - began, answers)

    def _one(self, prompt: Sequence[int], mix: Mix, tokens: int) -> list[list[int]]:
        began = time.perf_counter()
        self.llm.collective_rpc("bench_merge", args=(numbers_of(mix),))
        merged = time.perf_counter()
        answers = self.generate([prompt], [None], tokens)
        answered = time.perf_counter()
        self.llm.collective_rpc("bench_restore")
        self.merges.append(merged - began + time.perf_counter() - answered)
        return answers


class Mixture(Side):
    """Ours: one bank of all experts, a slot per mix. The routing tap is off."""

    name = "mixture"

    def __init__(self, setup: Setup) -> None:
        self._digests = setup.library.digests
        super().__init__(setup)

    def _options(self) -> dict[str, Any]:
        return BankOptions(str(self.setup.library.root), tuple(self._digests.items())).engine_args(SLOTS)

    def adapter(self, mix: Mix) -> LoRARequest | None:
        return mix_request(mix, self._digests)

    def bytes(self) -> tuple[int, int]:
        """Of the bank, and of one slot."""
        bank, slot = self.llm.collective_rpc("tta_bytes")[0]
        return bank, slot


SIDES: dict[str, type[Side]] = {side.name: side for side in (Side, Stock, InPlace, Mixture)}


@dataclass
class Running:
    """The sides that are up, by name."""

    setup: Setup
    sides: dict[str, Side] = field(default_factory=dict)

    def start(self, name: str) -> Side:
        if name not in self.sides:
            self.sides[name] = SIDES[name](self.setup)
        return self.sides[name]

    def close(self, *names: str) -> None:
        for name in names or tuple(self.sides):
            if name in self.sides:
                self.sides.pop(name).close()


def _timed(batch: Batch, seconds: float, answers: list[list[int]]) -> Timed:
    lengths = [len(answer) for answer in answers]
    assert lengths == [batch.shape.answer] * len(batch.prompts), f"answers of {lengths} tokens"
    return Timed(batch.shape.counted * len(batch.prompts) / seconds, answers)
