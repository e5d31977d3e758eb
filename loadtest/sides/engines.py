"""The four engines that are compared offline.

All run the same base in float32, with the same limits and no prefix cache.
"""

import gc
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

from adapters.library.library import Library
from adapters.mix import Mix
from loadtest.common.workload import RequestBatch, numbers_of
from loadtest.sides.stock import find_max_lora_rank, write_merged
from tta_serve.engine.options import BankOptions
from tta_serve.engine.wire import make_mix_request

SLOTS = 16
# What vLLM's server takes on a CPU; the offline class would take twice as many.
_MAX_BATCHED_TOKENS = 2048


@dataclass(frozen=True)
class Setup:
    """What all sides start from."""

    base: Path
    library: Library
    folder: Path
    """A temporary one."""
    eager: bool = True
    """Whether the model is left uncompiled."""
    inplace_requests: int = 4
    """Most requests of a batch that `inplace` serves."""


@dataclass(frozen=True)
class Timed:
    """What a batch took."""

    tok_s: float
    """Counted tokens per second of wall time."""
    answers: list[list[int]]
    """Token ids."""


class EngineSide:
    """The side `base`: vLLM without adapters.

    The other sides are this one with other options and adapters.
    """

    name = "base"
    max_model_len = 1024

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.llm = LLM(
            str(setup.base),
            max_model_len=self.max_model_len,
            max_num_batched_tokens=_MAX_BATCHED_TOKENS,
            dtype="float32",
            enforce_eager=setup.eager,
            # On a CPU: the share of all memory that must be free at the start.
            gpu_memory_utilization=0.5,
            disable_log_stats=True,
            **{"enable_prefix_caching": False} | self._options(),
        )

    def _options(self) -> dict[str, Any]:
        return {"max_num_seqs": SLOTS}

    def prepare(self, mixes: Sequence[Mix]) -> None:
        """Make what has to be there before these mixes can be asked for; never timed."""

    def adapter(self, mix: Mix) -> LoRARequest | None:
        """Return the adapter by which a request asks for the mix, None for none."""
        return None

    def run(self, batch: RequestBatch) -> Timed:
        """Send all requests of the batch at once, and wait for the last."""
        requests = [self.adapter(mix) for mix in batch.mixes]
        began = time.perf_counter()
        answers = self.generate(batch.prompts, requests, batch.shape.answer)
        return _timed(batch, time.perf_counter() - began, answers)

    def generate(
        self, prompts: Sequence[Sequence[int]], requests: Sequence[LoRARequest | None], tokens: int
    ) -> list[list[int]]:
        """Return greedy answers of exactly `tokens` tokens."""
        outputs = self.llm.generate(
            [{"prompt_token_ids": list(p)} for p in prompts],
            SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False),
            lora_request=list(requests) if any(requests) else None,
            use_tqdm=False,
        )
        return [list(o.outputs[0].token_ids) for o in outputs]

    def close(self) -> None:
        """End the engine and let go of its memory."""
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        gc.collect()


class Stock(EngineSide):
    """vLLM's own multi-LoRA, each mix merged into an adapter beforehand.

    Every request of a batch can have its own.
    """

    name = "stock"

    def __init__(self, setup: Setup) -> None:
        self._known: dict[Mix, LoRARequest] = {}
        self._written = 0
        super().__init__(setup)

    def _options(self) -> dict[str, Any]:
        return super()._options() | {
            "enable_lora": True,
            "max_loras": SLOTS,
            "max_cpu_loras": SLOTS,
            "max_lora_rank": find_max_lora_rank(self.setup.library),
            "worker_extension_cls": "loadtest.sides.stock_extension.StockExtension",
        }

    def prepare(self, mixes: Sequence[Mix]) -> None:
        """Write the adapters that are not there yet, and delete those that no mix uses."""
        for mix in self._known.keys() - set(mixes):
            shutil.rmtree(self._known.pop(mix).lora_path)
        for mix in set(mixes) - self._known.keys():
            self._written += 1
            folder = self.setup.folder / f"stock-{self._written}"
            write_merged(folder, numbers_of(mix), self.setup.library.experts)
            self._known[mix] = LoRARequest(folder.name, self._written, str(folder))

    def adapter(self, mix: Mix) -> LoRARequest | None:
        """Return the adapter that the mix was merged into."""
        return self._known[mix]

    def bytes_per_slot(self) -> int:
        """Return what a slot of vLLM's own adapters takes."""
        return int(self.llm.collective_rpc("bench_bytes")[0]) // SLOTS


class InPlace(EngineSide):
    """Merges into the dense weights for one request at a time, and restores them after it.

    Research code serves such merges so. Its rate does not depend on how many wait, so of a large
    batch it serves the first few requests only.
    """

    name = "inplace"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.llm.collective_rpc("bench_install", args=(str(setup.library.root),))
        self.merges: list[float] = []

    def _options(self) -> dict[str, Any]:
        return super()._options() | {
            "worker_extension_cls": "loadtest.sides.inplace.InPlaceExtension"
        }

    def run(self, batch: RequestBatch) -> Timed:
        """Serve the first requests of the batch, one after the other."""
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


class Mixture(EngineSide):
    """Ours: one bank of all experts, a slot per mix. The routing tap is off."""

    name = "mixture"

    def __init__(self, setup: Setup) -> None:
        self._digests = setup.library.digests
        super().__init__(setup)

    def _options(self) -> dict[str, Any]:
        options = BankOptions(str(self.setup.library.root), tuple(self._digests.items()))
        return options.engine_args(SLOTS)

    def adapter(self, mix: Mix) -> LoRARequest | None:
        """Return the mix as it travels through vLLM."""
        return make_mix_request(mix, self._digests)

    def bytes(self) -> tuple[int, int]:
        """Return the bytes of the bank, and of one slot."""
        bank, slot = self.llm.collective_rpc("tta_bytes")[0]
        return bank, slot


SIDES: dict[str, type[EngineSide]] = {
    side.name: side for side in (EngineSide, Stock, InPlace, Mixture)
}


@dataclass
class RunningSides:
    """The sides that are up, by name."""

    setup: Setup
    sides: dict[str, EngineSide] = field(default_factory=dict)

    def start(self, name: str) -> EngineSide:
        """Return the side, started if it is not up yet."""
        if name not in self.sides:
            self.sides[name] = SIDES[name](self.setup)
        return self.sides[name]

    def close(self, *names: str) -> None:
        """Close these sides, or all."""
        for name in names or tuple(self.sides):
            if name in self.sides:
                self.sides.pop(name).close()


def _timed(batch: RequestBatch, seconds: float, answers: list[list[int]]) -> Timed:
    lengths = [len(answer) for answer in answers]
    assert lengths == [batch.shape.answer] * len(batch.prompts), f"answers of {lengths} tokens"
    return Timed(batch.shape.counted * len(batch.prompts) / seconds, answers)
