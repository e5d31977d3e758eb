"""A bank of one-bit experts for the CPU, which looks sums of inputs up by their signs.

What is computed, and how signs lie in memory, is described in `lookup_loops`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapters.bank.sign_bank import Signs
from tta_serve.engine.worker.cpu.call_records import make_record
from tta_serve.engine.worker.cpu.lookup_code import BLOCK, GROUP
from tta_serve.engine.worker.cpu.lookup_loops import (
    LOOKUP_RECORD,
    LookupWords,
    add_signed_delta,
    count_tables,
    find_lookup_functions,
)
from tta_serve.engine.worker.cpu.sparse_bank import ExpertUses

_LINE = 64


class LookupBank:
    """All one-bit experts of one layer, whose signs it does not copy.

    Attributes:
        nbytes: The bytes of the signs.
    """

    def __init__(
        self,
        weights: Sequence[Sequence[Signs | None]],
        outs: Sequence[int],
        inputs: int,
        columns: Sequence[int],
    ) -> None:
        """Point at the signs of a layer.

        Args:
            weights: For each of the layer's weights, what each expert changes, packed by
                `pack_for_lookup`.
            outs: The outputs of each weight.
            inputs: The inputs of the layer.
            columns: The experts' columns.
        """
        self._signs = [s for part in weights for s in part if s is not None]
        self.nbytes = sum(s.nbytes for s in self._signs)
        self._inputs, self._outputs = inputs, sum(outs)
        groups = -(-inputs // GROUP)

        # Where everything lies.
        blocks: list[tuple[int, int, int, int]] = []
        first = 0
        for weight, out in enumerate(outs):
            for n, begin in enumerate(range(0, out, BLOCK)):
                blocks.append((weight, first + begin, out - begin, n * groups * BLOCK * 4))
            first += out
        self._arrays: dict[str, np.ndarray[Any, Any]] = {
            "expert_columns": np.array(columns, np.int64),
            "signs": np.array(
                [[0 if s is None else s.bits.data_ptr() for s in part] for part in weights],
                np.int64,
            ),
            "scales": np.array(
                [[0.0 if s is None else s.scale for s in part] for part in weights], np.float32
            ),
            "blocks": np.array(blocks, np.int64),
        }

        # The record that the loops read.
        number, run, parallel = find_lookup_functions()
        words = LookupWords(
            tables=0,
            inputs=inputs,
            outputs=self._outputs,
            groups=groups,
            experts=len(columns),
            n_blocks=len(blocks),
            n_weights=len(outs),
            thread_number=number,
            run=run,
            parallel=parallel,
            **{name: array.ctypes.data for name, array in self._arrays.items()},
        )
        self._record = make_record(LOOKUP_RECORD, words)
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
        if not (y.is_contiguous() and x.is_contiguous()):
            return y.copy_(self.add_(y.contiguous(), x.contiguous(), uses))
        tables = _SPACE.reserve(count_tables(uses.tokens, self._inputs, torch.get_num_threads()))
        add_signed_delta(self._address, uses.address, y.data_ptr(), x.data_ptr(), tables)
        return y


def pack_for_lookup(plus: Tensor) -> Tensor:
    """Return signs in the order in which `lookup_loops` reads them, int32.

    Args:
        plus: [out, in], which of them are +.
    """
    out, inputs = plus.shape
    blocks, groups = -(-out // BLOCK), -(-inputs // GROUP)
    padded = torch.nn.functional.pad(
        plus.byte(), (0, groups * GROUP - inputs, 0, blocks * BLOCK - out)
    )
    packed = np.packbits(padded.numpy(), axis=-1, bitorder="little").view("<i4")
    by_block = packed.reshape(blocks, BLOCK, groups).transpose(0, 2, 1)
    return torch.from_numpy(np.ascontiguousarray(by_block))


class _TableSpace:
    """Space for tables, which grows: layers run one after the other, so one is enough."""

    def __init__(self) -> None:
        self._array = np.empty(0, np.float32)

    def reserve(self, size: int) -> int:
        """Return the address of so many float32, at the start of a line of the cache."""
        if self._array.size < size + _LINE:
            self._array = np.empty(size + _LINE, np.float32)
        return -(-self._array.ctypes.data // _LINE) * _LINE


_SPACE = _TableSpace()
