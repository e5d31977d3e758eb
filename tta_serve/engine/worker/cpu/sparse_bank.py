"""A bank for the CPU, which multiplies only by the experts that a token's mix names.

`adapters.bank.bank.Bank` gives every token to every expert and lets zero coefficients undo it, in
one product for each weight. A CPU gains by skipping: a request uses few experts of many, and a
layer takes one call in place of one for each of its weights. Where no value is lost by it, factors
are kept as float16, which halves what a step has to read.

What is computed, and how it lies in memory, is described in `loops`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapters.expert import LowRank
from tta_serve.engine.worker.cpu.call_records import UseWords, make_record
from tta_serve.engine.worker.cpu.loops import (
    RECORD,
    BankWords,
    add_delta,
    count_counters,
    find_functions,
)
from tta_serve.engine.worker.cpu.threads import APART, WINDOW
from tta_serve.engine.worker.cpu.vector_code import CHUNK, LANES, TILE

Numbers = np.ndarray[Any, np.dtype[np.int64]]


class ExpertUses:
    """Which tokens of a step use which expert, and how much of it, as the loops read it.

    Attributes:
        tokens: How many tokens the step has.
        address: Where its `UseWords` lie.
    """

    def __init__(self, table: Tensor, rows: int, threads: int) -> None:
        """List the coefficients that are not zero.

        Args:
            table: [tokens, columns], float32, the coefficients of each token.
            rows: The most rows that a bank has.
            threads: The threads that will run.
        """
        self.tokens, columns = table.shape
        coefficients = table.numpy()
        pattern = coefficients != 0
        windows = -(-self.tokens // WINDOW)

        # By token: the columns that it uses, and whether they are those of the token before.
        token, used = map(np.ascontiguousarray, np.nonzero(pattern))
        firsts = np.searchsorted(token, np.arange(self.tokens + 1))
        most = int(np.diff(firsts).max(initial=0))
        alike = np.concatenate([[False], (pattern[1:] == pattern[:-1]).all(1)])

        # By window and column: the tokens that use it.
        place = token // WINDOW * columns + used
        order = np.argsort(place, kind="stable")
        arrays = {
            "starts": np.searchsorted(place[order], np.arange(windows * columns + 1)),
            "token": token[order] % WINDOW,
            "coefficient": coefficients[token[order], used[order]],
            "firsts": firsts,
            "used": used,
            "alike": alike,
            # Space to work in.
            "h": np.empty(windows * WINDOW * rows, np.float32),
            "pieces": np.empty(threads * (3 * most + APART), np.int64),
            "counters": np.empty(count_counters(threads), np.int64),
        }
        words = UseWords(
            tokens=self.tokens,
            columns=columns,
            windows=windows,
            uses=len(token),
            most=most,
            threads=threads,
            **{name: array.ctypes.data for name, array in arrays.items()},
        )
        self._arrays = arrays  # an address keeps nothing alive
        self._words = np.array(words, np.int64)
        self.address = self._words.ctypes.data


@dataclass
class _Tables:
    """Where the factors of a layer lie in a bank, as `loops.BankWords` describes each table."""

    rows: int
    blocks: Numbers
    block_of: Numbers
    extents: Numbers
    shrinks: Numbers
    expands: Numbers

    @classmethod
    def of(
        cls,
        weights: Sequence[Sequence[LowRank | None]],
        outs: Sequence[int],
        columns: Sequence[int],
    ) -> "_Tables":
        """Lay out factors one after the other, weight by weight, and expert by expert within.

        Args:
            weights: For each of the layer's weights, each expert's factors.
            outs: The outputs of each weight.
            columns: The experts' columns.
        """
        block_of = np.full((len(outs), max(columns) + 1), -1, np.int64)
        blocks: list[tuple[int, ...]] = []
        shrinks: list[int] = []
        extents: list[tuple[int, ...]] = []
        expands: list[tuple[int, ...]] = []
        row = 0  # of a
        first_out = 0  # of the layer
        offset = 0  # in b
        for w, (part, out) in enumerate(zip(weights, outs, strict=True)):
            first_row = row
            for column, factor in zip(columns, part, strict=True):
                if factor is not None:
                    rows = _fill_up(factor.rank, TILE)
                    block_of[w, column] = len(blocks)
                    blocks.append((row, rows, row - first_row))
                    shrinks += [column] * (rows // TILE)
                    row += rows
            size = (row - first_row) * CHUNK
            extents.append((first_out, out, offset, size))
            if size:
                for o in range(0, out, CHUNK):
                    expands.append((w, o, offset, size))
                    offset += size
            first_out += out
        tables = (
            np.array(table, np.int64) for table in (blocks, block_of, extents, shrinks, expands)
        )
        return cls(row, *tables)


class SparseBank:
    """All factors of one layer in two arrays, in the order in which they are read.

    Attributes:
        rows: The rows of the first array: the experts' ranks, each filled up to a multiple of TILE.
    """

    def __init__(
        self,
        weights: Sequence[Sequence[LowRank | None]],
        outs: Sequence[int],
        columns: Sequence[int],
    ) -> None:
        """Copy the factors of a layer.

        Args:
            weights: For each of the layer's weights, each expert's factors.
            outs: The outputs of each weight.
            columns: The experts' columns.
        """
        factors = [f for part in weights for f in part if f is not None]
        dtypes = {tensor.dtype for f in factors for tensor in f}
        dtype = factors[0].a.dtype if len(dtypes) == 1 else torch.float32
        self._inputs = factors[0].a.shape[1]
        self._outputs = sum(outs)

        # The factors, with zeros where they are filled up.
        width = _fill_up(self._inputs, LANES)
        self._a = torch.cat([_pad(f.a.to(dtype), _fill_up(f.rank, TILE), width) for f in factors])
        self._b = torch.cat(
            [
                _by_chunk([f.b.t().to(dtype) for f in part if f is not None])
                for part in weights
                if any(part)
            ]
        )

        # The record that the loops read.
        self._tables = tables = _Tables.of(weights, outs, columns)
        self.rows = tables.rows
        thread_number, run, parallel = find_functions(self._a.numpy().dtype)
        words = BankWords(
            rows=self.rows,
            inputs=self._inputs,
            outputs=self._outputs,
            known=tables.block_of.shape[1],
            a=self._a.data_ptr(),
            b=self._b.data_ptr(),
            blocks=tables.blocks.ctypes.data,
            n_blocks=len(tables.blocks),
            block_of=tables.block_of.ctypes.data,
            n_weights=len(tables.block_of),
            extents=tables.extents.ctypes.data,
            n_extents=len(tables.extents),
            shrinks=tables.shrinks.ctypes.data,
            n_shrinks=len(tables.shrinks),
            expands=tables.expands.ctypes.data,
            n_expands=len(tables.expands),
            thread_number=thread_number,
            run=run,
            parallel=parallel,
        )
        self._record = make_record(RECORD, words)
        self._address = self._record.ctypes.data

    def add_(self, y: Tensor, x: Tensor, uses: ExpertUses) -> Tensor:
        """Add the delta of each token's mix to y, in place.

        Args:
            y: [tokens, outputs], float32.
            x: [tokens, inputs], float32.
            uses: What each token uses.
        """
        assert x.numel() == uses.tokens * self._inputs
        assert y.numel() == uses.tokens * self._outputs
        if y.is_contiguous() and x.is_contiguous():
            add_delta(self._address, uses.address, y.data_ptr(), x.data_ptr())
            return y
        return y.copy_(self.add_(y.contiguous(), x.contiguous(), uses))

    @property
    def nbytes(self) -> int:
        """The bytes of the factors."""
        return self._a.nbytes + self._b.nbytes


def narrow_factor(factor: Tensor) -> Tensor:
    """Return a factor as float16 if no value changes by it, else as float32."""
    half = factor.half()
    return half if torch.equal(half.float(), factor.float()) else factor.float()


def _fill_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _pad(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """Return a matrix with zeros at the end of both dimensions."""
    missing = 0, columns - matrix.shape[1], 0, rows - matrix.shape[0]
    return torch.nn.functional.pad(matrix, missing)


def _by_chunk(factors: Sequence[Tensor]) -> Tensor:
    """Return a weight's factors below each other, CHUNK outputs of all of them after the other.

    [out / CHUNK * rows * CHUNK], of factors of [rank, out].
    """
    out = _fill_up(factors[0].shape[1], CHUNK)
    stacked = torch.cat([_pad(factor, _fill_up(len(factor), TILE), out) for factor in factors])
    return stacked.view(-1, out // CHUNK, CHUNK).transpose(0, 1).flatten()
