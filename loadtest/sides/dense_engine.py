"""An engine with dense experts, and the library that it serves: random fine-tunes of the demo's."""

import shutil
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vllm.lora.request import LoRARequest

from adapters.files.checkpoint import Checkpoint
from adapters.files.delta_forms import DenseForm
from adapters.library.library import Library
from adapters.library.manifest import About, Source
from adapters.library.versions import VersionStore
from adapters.mix import Mix
from loadtest.common.workload import EXPERTS
from loadtest.sides.engines import SLOTS, EngineSide, Setup
from tta_serve.engine.options import BankOptions, DenseOptions
from tta_serve.engine.wire import make_mix_request

_MAX_WAIT_S = 10.0


@dataclass(frozen=True)
class RandomDeltas:
    """Small changes of every weight of a base, drawn when they are read."""

    base: Checkpoint
    seed: int

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each weight."""
        return dict(self.base.shapes)

    def delta(self, weight: str) -> Tensor:
        """Return the change of one weight."""
        g = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}{weight}".encode()))
        return torch.randn(self.shapes[weight], generator=g).mul_(0.001)

    def factors(self, weight: str) -> None:
        """Return None: they are not low-rank."""


def write_library(folder: Path, base: Path, dense: int) -> Library:
    """Write the demo's six experts, and dense ones in bfloat16.

    Args:
        folder: Where to.
        base: The demo's base.
        dense: How many dense experts.
    """
    shutil.copytree(EXPERTS, folder)
    about = About(source=Source("finetune", "drawn"))
    checkpoint = Checkpoint.open(base)
    for seed in range(dense):
        deltas = RandomDeltas(checkpoint, seed)
        VersionStore(folder).add(
            f"dense-{seed}", deltas, DenseForm(torch.bfloat16), about, checkpoint
        )
    return Library.open(folder)


class DenseEngine(EngineSide):
    """Ours with dense experts; low-rank ones in slots beside them. The routing tap is off."""

    name = "dense"

    def __init__(self, setup: Setup, *, fold: bool = False) -> None:
        """Start it.

        Args:
            setup: What it starts from.
            fold: Whether it folds low-rank mixes.
        """
        self._digests = setup.library.digests
        self._fold = fold
        super().__init__(setup)

    def _options(self) -> dict[str, Any]:
        options = BankOptions(
            str(self.setup.library.root),
            tuple(self._digests.items()),
            dense=DenseOptions(fold=self._fold, max_wait_s=_MAX_WAIT_S),
        )
        extension = "loadtest.sides.dense_extension.DenseExtension"
        return options.engine_args(SLOTS) | {"worker_extension_cls": extension}

    def adapter(self, mix: Mix) -> LoRARequest | None:
        """Return the mix as it travels through vLLM."""
        library = self.setup.library
        dense = {d for name, d in self._digests.items() if library.form(name) == "dense"}
        return make_mix_request(mix, self._digests, dense=dense)

    def call(self, method: str, *args: Any) -> Any:
        """Return what a method of `DenseExtension` returns."""
        return self.llm.collective_rpc(method, args=args)[0]
