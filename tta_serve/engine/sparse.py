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
from tta_serve.engine.sparse_code import CHUNK, LANES, TILE
from tta_serve.engine.sparse_kernel import APART, BANK, CALL, RECORD_SIZE, USES, WINDOW, add_delta, counters, functions


class Uses:
    """Which tokens use which expert, and how much of it.

    By window and column: starts, of the tokens (within their window) and their coefficients.
    By token: firsts, of the columns that it uses; alike, whether they are those of the token before.
    """

    def __init__(self, table: Tensor, rows: int, threads: int) -> None:
        """table: [tokens, columns], float32, the coefficients of each token   rows: most that a bank has"""
        self.tokens, columns = table.shape
        coefficients, pattern = table.numpy(), table.numpy() != 0
        windows = -(-self.tokens // WINDOW)
        token, used = map(np.ascontiguousarray, np.nonzero(pattern))
        firsts = np.searchsorted(token, np.arange(self.tokens + 1))
        most = int(np.diff(firsts).max(initial=0))
        alike = np.concatenate([[False], (pattern[1:] == pattern[:-1]).all(1)])
        place = token // WINDOW * columns + used
        order = np.argsort(place, kind="stable")
        starts = np.searchsorted(place[order], np.arange(windows * columns + 1))
        by_column = token[order] % WINDOW, coefficients[token[order], used[order]]
        h, pieces = np.empty(windows * WINDOW * rows, np.float32), np.empty(threads * (3 * most + APART), np.int64)
        begun = np.empty(counters(threads), np.int64)
        self._arrays = starts, *by_column, firsts, used, alike, h, pieces, begun
        addresses = (array.ctypes.data for array in self._arrays)
        self._record = np.array([self.tokens, columns, windows, len(token), most, *addresses, threads], np.int64)
        assert len(self._record) == len(USES)
        self.address = self._record.ctypes.data


class SparseBank:
    """All factors of one layer in two arrays, in the order in which they are read; ranks are filled up to multiples of TILE.

    a: [rows, inputs], inputs filled up to multiples of LANES
    b: for each CHUNK outputs of a weight, [rows of the weight, CHUNK]
    blocks: an expert's factors of a weight: the first row in a, rows, rows before it within the weight
    block_of: [weights, known columns], -1 where an expert leaves the weight alone
    shrinks: the column of each TILE rows of a
    extents: of each weight, its first output in the layer, outputs, the first value in b, values in b of CHUNK outputs
    expands: of each CHUNK outputs, the weight, the first output in the weight, the first value in b, values in b
    """

    def __init__(self, weights: Sequence[Sequence[LowRank | None]], outs: Sequence[int], columns: Sequence[int]) -> None:
        """weights: for each of the layer's weights, each expert's factors   columns: of the experts"""
        factors = [f for part in weights for f in part if f is not None]
        dtype = factors[0].a.dtype if len({t.dtype for f in factors for t in f}) == 1 else torch.float32
        block_of = np.full((len(outs), max(columns) + 1), -1, np.int64)
        blocks: list[tuple[int, ...]] = []
        extents, shrinks, expands, b = [], [], [], []
        row = first_out = offset = 0
        for w, (part, out) in enumerate(zip(weights, outs, strict=True)):
            present = [(k, f) for k, f in zip(columns, part, strict=True) if f is not None]
            first_row = row
            for k, factor in present:
                rows = _filled(factor.rank, TILE)
                block_of[w, k] = len(blocks)
                blocks.append((row, rows, row - first_row))
                shrinks += [k] * (rows // TILE)
                row += rows
            size = (row - first_row) * CHUNK
            extents.append((first_out, out, offset, size))
            if present:
                b.append(_by_chunk([f.b.t().to(dtype) for _, f in present]))
                expands += [(w, o, offset + o // CHUNK * size, size) for o in range(0, out, CHUNK)]
                offset += b[-1].numel()
            first_out += out
        self._inputs, self._outputs, self.rows = factors[0].a.shape[1], first_out, row
        self._a = torch.cat([_padded(f.a.to(dtype), _filled(f.rank, TILE), _filled(self._inputs, LANES)) for f in factors])
        self._b = torch.cat(b)
        self._tables = [np.array(table, np.int64) for table in (blocks, block_of, extents, shrinks, expands)]
        addresses = (value for table in self._tables for value in (table.ctypes.data, len(table)))
        sizes = self.rows, self._inputs, self._outputs, block_of.shape[1]
        bank = *sizes, self._a.data_ptr(), self._b.data_ptr(), *addresses, *functions(self._a.numpy().dtype)
        assert len(bank) == len(BANK)
        self._record = np.zeros(RECORD_SIZE, np.int64)
        self._record[len(CALL + USES) :][: len(BANK)] = bank
        self._address = self._record.ctypes.data

    def add_(self, y: Tensor, x: Tensor, uses: Uses) -> Tensor:
        """y += the delta of each token's mix, in place. y: [tokens, outputs]   x: [tokens, inputs], both float32"""
        assert x.numel() == uses.tokens * self._inputs and y.numel() == uses.tokens * self._outputs  # noqa: PT018 - once a layer
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


def _filled(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _padded(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """With zeros at the end of both."""
    return torch.nn.functional.pad(matrix, (0, columns - matrix.shape[1], 0, rows - matrix.shape[0]))


def _by_chunk(factors: Sequence[Tensor]) -> Tensor:
    """Factors of [rank, out] below each other, in order of the outputs' chunks. [out / CHUNK * rows * CHUNK]"""
    out = _filled(factors[0].shape[1], CHUNK)
    stacked = torch.cat([_padded(factor, _filled(len(factor), TILE), out) for factor in factors])
    return stacked.view(-1, out // CHUNK, CHUNK).transpose(0, 1).flatten()
