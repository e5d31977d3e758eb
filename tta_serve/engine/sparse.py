"""A bank for the CPU, which multiplies only by the experts that a token's mix names.

`adapters.bank.Bank` gives every token to every expert and lets zero coefficients undo it, in one product for each weight.
A CPU gains by skipping: a request uses few experts of many, and a layer takes one call in place of one for each of its
weights. Where no value is lost by it, factors are kept as float16, which halves what a step has to read.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from adapters.expert import LowRank
from tta_serve.engine.sparse_kernel import BANK, CALL, CHUNK, TILE, USES, WINDOW, add_delta, functions


class Uses:
    """Which tokens use which expert, and how much of it."""

    def __init__(self, table: Tensor, rows: int, threads: int) -> None:
        """table: [tokens, columns], float32, the coefficients of each token   rows: most that a bank has"""
        self.tokens, columns = table.shape
        windows = -(-self.tokens // WINDOW)
        column, token = np.nonzero(table.numpy().T)
        order = np.argsort(token // WINDOW, kind="stable")
        column, token = column[order], token[order]
        starts = np.searchsorted(token // WINDOW * columns + column, np.arange(windows * columns + 1))
        h, sums = np.empty(windows * WINDOW * rows, np.float32), np.empty(threads * WINDOW * CHUNK, np.float32)
        self._arrays = starts, token % WINDOW, table.numpy()[token, column], h, sums
        addresses = (array.ctypes.data for array in self._arrays)
        self._record = np.array([self.tokens, columns, windows, len(token), *addresses, threads], np.int64)
        assert len(self._record) == len(USES)
        self.address = self._record.ctypes.data


class SparseBank:
    """All factors of one layer in two arrays, ranks filled up with zeros to multiples of TILE.

    a: [rows, inputs]   b: each expert's B of each weight, transposed, one after the other
    blocks: of each of these, the first row in a, rows, the expert's column of the coefficient table, outputs, the place in b
    shrinks: of TILE rows of a, their column and the first
    expands: of CHUNK outputs of a weight, its first and last block, the first output in the weight and in the layer, outputs
    """

    def __init__(self, weights: Sequence[Sequence[LowRank | None]], outs: Sequence[int], columns: Sequence[int]) -> None:
        """weights: for each of the layer's weights, each expert's factors   columns: of the experts"""
        present = [[(k, f) for k, f in zip(columns, factors, strict=True) if f is not None] for factors in weights]
        blocks: list[tuple[int, ...]] = []
        shrinks, expands = [], []
        row = offset = first_out = 0
        for part, out in zip(present, outs, strict=True):
            first_block = len(blocks)
            for k, factor in part:
                rows = _tiled(factor.rank)
                blocks.append((row, rows, k, out, offset))
                shrinks += [(k, row + r) for r in range(0, rows, TILE)]
                row, offset = row + rows, offset + rows * out
            if part:
                expands += [(first_block, len(blocks), o, first_out + o, min(CHUNK, out - o)) for o in range(0, out, CHUNK)]
            first_out += out
        factors = [factor for part in present for _, factor in part]
        a = torch.cat([_padded(factor.a) for factor in factors]).numpy()
        b = torch.cat([_padded(factor.b.t()).flatten() for factor in factors]).numpy()
        if a.dtype != b.dtype:
            a, b = a.astype(np.float32), b.astype(np.float32)
        tables = [np.array(table, np.int64) for table in (blocks, shrinks, expands)]
        self._a, self._b, self._tables = a, b, tables  # what the addresses are of
        self.rows, self._inputs, self._outputs = row, a.shape[1], first_out
        addresses = (value for table in tables for value in (table.ctypes.data, len(table)))
        bank = row, a.shape[1], first_out, a.ctypes.data, b.ctypes.data, b.size, *addresses, *functions(a.dtype)
        assert len(bank) == len(BANK)
        self._record = np.array([0] * len(CALL + USES) + [*bank], np.int64)
        self._address = self._record.ctypes.data

    def add_(self, y: Tensor, x: Tensor, uses: Uses) -> Tensor:
        """y += the delta of each token's mix, in place. y: [tokens, outputs]   x: [tokens, inputs], both float32"""
        assert (x.numel(), y.numel()) == (uses.tokens * self._inputs, uses.tokens * self._outputs)
        if y.is_contiguous() and x.is_contiguous():
            add_delta(self._address, uses.address, y.data_ptr(), x.data_ptr())
            return y
        return y.copy_(self.add_(y.contiguous(), x.contiguous(), uses))

    @property
    def nbytes(self) -> int:
        return self._a.nbytes + self._b.nbytes


def narrowed(factor: Tensor) -> Tensor:
    """As float16 if no value changes by it, else as float32."""
    half = factor.half()
    return half if torch.equal(half.float(), factor.float()) else factor.float()


def _tiled(rank: int) -> int:
    return -(-rank // TILE) * TILE


def _padded(factor: Tensor) -> Tensor:
    """With rows of zeros at the end. factor: [rank, size]"""
    missing = _tiled(len(factor)) - len(factor)
    return torch.nn.functional.pad(factor, (0, 0, 0, missing)) if missing else factor
