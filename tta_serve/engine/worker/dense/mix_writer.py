"""W = W0 + sum_k c_k D_k, in float32, rounded once, in blocks that stay in cache."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tta_serve.engine.worker.dense.mix_loops import BFLOAT16, FLOAT32, write_share

_CHUNK = 1 << 18
_KINDS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16}


class MixedWeight(NamedTuple):
    """A weight to be written, flat."""

    values: Tensor
    """[n], what is written."""
    clean: Tensor
    """[n], what it is in the base."""
    parts: list[tuple[float, Tensor]]
    """A coefficient and a delta, [n], of each expert."""

    @property
    def by_loops(self) -> bool:
        """Whether the loops of a CPU write it; what is the base's is copied, bit for bit."""
        tensors = self.values, self.clean, *(delta for _, delta in self.parts)
        return bool(self.parts) and all(
            t.dtype in _KINDS and t.device.type == "cpu" and t.is_contiguous() for t in tensors
        )


class MixWriter:
    """Writes mixes over weights, from clean copies and deltas."""

    def __init__(self, device: torch.device) -> None:
        """Make room for a chunk.

        Args:
            device: Where the weights are; copies and deltas may be elsewhere.
        """
        self._device = device
        self._sum = torch.empty(_CHUNK, dtype=torch.float32, device=device)
        self._part = torch.empty(_CHUNK, dtype=torch.float32, device=device)
        self._threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self._threads, "tta-writer", initializer=_use_all_cores)

    def write(self, weights: Sequence[MixedWeight]) -> None:
        """Overwrite weights by those of a mix."""
        by_loops = [weight for weight in weights if weight.by_loops]
        if by_loops:
            self._run_loops(by_loops)
        for weight in weights:
            if not weight.parts:
                weight.values.copy_(weight.clean)
            elif not weight.by_loops:
                self._write_chunks(weight)

    def _run_loops(self, weights: Sequence[MixedWeight]) -> None:
        """Write weights on all threads, each of which takes its share of each."""
        rows: list[tuple[int, ...]] = []
        parts: list[tuple[int, int]] = []
        for values, clean, own in weights:
            assert values.dtype == clean.dtype
            extent = len(parts), len(parts) + len(own)
            rows.append(
                (values.data_ptr(), clean.data_ptr(), len(values), _KINDS[values.dtype], *extent)
            )
            parts += [(delta.data_ptr(), _KINDS[delta.dtype]) for _, delta in own]
        coefficients = np.array([c for weight in weights for c, _ in weight.parts], np.float32)
        words = np.array(rows, np.int64), np.array(parts, np.int64), coefficients

        def write_one(thread: int) -> None:
            write_share(*words, thread, self._threads)

        list(self._pool.map(write_one, range(self._threads)))  # raises what one of them does

    def _write_chunks(self, weight: MixedWeight) -> None:
        """Write a weight on any device."""
        values, clean, parts = weight
        whole = values.dtype == torch.float32
        for begin in range(0, len(values), _CHUNK):
            chunk = slice(begin, begin + _CHUNK)
            total = values[chunk] if whole else self._sum[: len(values[chunk])]
            first, *others = parts
            base = self._bring(clean[chunk], total)
            torch.add(base, self._bring(first[1][chunk], self._part), alpha=first[0], out=total)
            for coefficient, delta in others:
                total.add_(self._bring(delta[chunk], self._part), alpha=coefficient)
            if not whole:
                values[chunk].copy_(total)

    def _bring(self, chunk: Tensor, room: Tensor) -> Tensor:
        """Return a chunk in float32 where the weights are, in the room for it if it must move."""
        if chunk.dtype == torch.float32 and chunk.device == self._device:
            return chunk
        return room[: len(chunk)].copy_(chunk, non_blocking=True)


def _use_all_cores() -> None:
    """Let this thread run on every core that one of the process's threads may run on.

    vLLM binds each thread of torch to a core of its own, and the one that starts this to the first.
    """
    if hasattr(os, "sched_setaffinity"):
        cores: set[int] = set()
        for thread in Path("/proc/self/task").iterdir():
            with suppress(OSError):  # it has ended meanwhile
                cores |= os.sched_getaffinity(int(thread.name))
        os.sched_setaffinity(0, cores)
