"""In the worker of `dense_engine`: timed switches of the weights, and what memory allows."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tta_serve.engine.wire import DenseKey
from tta_serve.engine.worker.dense.dense_weights import DenseWeights
from tta_serve.engine.worker.extension import WorkerExtension

_SIZE = 1 << 26


class DenseExtension(WorkerExtension):
    """Mixed into vLLM's worker class by `worker_extension_cls`."""

    @property
    def _bench_dense(self) -> DenseWeights:
        dense = self._tta_manager.model.dense
        assert dense is not None
        return dense

    def bench_switches(
        self, mixes: Sequence[Sequence[tuple[str, float]]], count: int
    ) -> dict[str, Any]:
        """Switch from mix to mix, and at last to the base.

        Args:
            mixes: The digests of each mix and their coefficients, in the order of the digests.
            count: How many switches.

        Returns:
            The seconds of each switch; for each what copying as many bytes takes, measured beside
            it; the bytes that a switch moves; and whether the base came back bit for bit.
        """
        dense = self._bench_dense
        keys: list[DenseKey] = [tuple((digest, c) for digest, c in mix) for mix in mixes]
        before = {name: values.clone() for name, values in dense.values().items()}
        source, target = (torch.ones(_SIZE, dtype=torch.float32) for _ in range(2))
        seconds, floors = [], []
        moved = 0
        for i in range(count):
            key = keys[i % len(keys)]
            began = time.perf_counter()
            target.copy_(source)
            copy_s = time.perf_counter() - began
            began = time.perf_counter()
            dense.use(key)
            seconds.append(time.perf_counter() - began)
            moved = dense.count_moved(key)
            floors.append(copy_s * moved / (source.nbytes + target.nbytes))
        dense.use(())
        same = all(_are_same(v, before[name]) for name, v in dense.values().items())
        return {"seconds": seconds, "floors": floors, "bytes": moved, "base_bit_identical": same}

    def bench_fold(self, mix: dict[str, float]) -> dict[str, Any]:
        """Return the seconds that folding a mix takes, and taking it out again."""
        folding = self._tta_manager.model._folding
        assert folding is not None
        found = folding._prepare(mix, tuple(mix.items()))
        assert found is not None
        times = []
        for folded in (found, None, found, None):
            began = time.perf_counter()
            self._bench_dense.use((), folded)
            times.append(time.perf_counter() - began)
        return {"fold_s": times[2], "unfold_s": times[3]}

    def bench_count(self) -> int:
        """Return how many switches there have been."""
        return self._bench_dense.switches


def _are_same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))
