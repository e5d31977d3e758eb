"""In the worker of the side `inplace`: merge a mix into the dense weights, and put them back.

Imported by vLLM's worker alone, as its extension and so before the model is loaded: vLLM's CPU
build packs the weight of every linear layer into oneDNN's own layout and drops it, which no merge
could write to. Here linear layers keep their weight and multiply by it with
`torch.nn.functional.linear`; the output embedding stays as vLLM has it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers import utils
from vllm.model_executor.layers.linear import LinearBase

from adapters.library.library import Library
from loadtest.sides.stock import merge_factors
from tta_serve.engine.worker.sites import find_sites

_packing = utils.dispatch_cpu_unquantized_gemm


def _keep_writable(layer: nn.Module, remove_weight: bool) -> None:
    if isinstance(layer, LinearBase):
        layer.cpu_linear = nn.functional.linear
    else:
        _packing(layer, remove_weight)


utils.dispatch_cpu_unquantized_gemm = _keep_writable


@dataclass(frozen=True)
class WritableRows:
    """The rows of a stacked weight that one of the base's modules owns."""

    rows: Tensor
    """A view of them."""
    saved: Tensor
    """A copy of them as they were loaded."""


class InPlaceExtension:
    """Mixed into vLLM's worker class by `worker_extension_cls`."""

    model_runner: Any
    bench_state: Any

    def bench_install(self, library: str) -> int:
        """Read the experts and keep a copy of what they touch.

        Returns:
            The bytes of the copies.
        """
        experts = Library.open(library).experts
        touched = {module for expert in experts.values() for module in expert.factors}
        self.bench_state = experts, _targets(self.model_runner, touched), []
        return sum(t.saved.numel() * t.saved.element_size() for t in self.bench_state[1].values())

    @torch.inference_mode()
    def bench_merge(self, coefficients: dict[str, float]) -> None:
        """Merge a mix: W += sum_k c_k b_k a_k, one product a module."""
        experts, targets, changed = self.bench_state
        for module, factor in merge_factors(coefficients, experts).items():
            targets[module].rows.addmm_(factor.b, factor.a)
            changed.append(module)

    @torch.inference_mode()
    def bench_restore(self) -> None:
        """Copy back what was there before, so that no rounding error stays."""
        _, targets, changed = self.bench_state
        for module in changed:
            targets[module].rows.copy_(targets[module].saved)
        changed.clear()


def _targets(runner: Any, touched: set[str]) -> dict[str, WritableRows]:
    """Return what the experts touch, by the name of the base's module.

    vLLM keeps the names of the demo's base, so experts need no renaming.
    """
    targets = {}
    for site in find_sites(runner.model, runner.model_config).values():
        row = 0
        for part, size in zip(site.weights, site.sizes, strict=True):
            if part in touched:
                rows = site.layer.weight.data[row : row + size]
                targets[part] = WritableRows(rows, rows.clone())
            row += size
    assert targets.keys() == touched, f"not found: {sorted(touched - targets.keys())}"
    return targets
