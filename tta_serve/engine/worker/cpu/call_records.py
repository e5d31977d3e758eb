"""The records of int64, numbers and addresses, that compiled loops are given for a layer.

+-----------+---------------------------+----------------------------------------+
| CallWords | UseWords                  | the words of a kind of bank            |
| y, x      | the step's ExpertUses     | the layer's bank                       |
+-----------+---------------------------+----------------------------------------+
  written     copied for each call,       written once, when the bank is built
  each call   the same for many layers
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from tta_serve.engine.worker.cpu.threads import INLINED, array_at


class CallWords(NamedTuple):
    """What is set for each call: the addresses of the layer's output and input, in float32."""

    y: int
    """[tokens, outputs]."""
    x: int
    """[tokens, inputs]."""


class UseWords(NamedTuple):
    """Which of a step's tokens use which expert: of `sparse_bank.ExpertUses`."""

    tokens: int
    """The tokens of the step."""
    columns: int
    """The columns of the coefficient table."""
    windows: int
    """The windows that the tokens fill."""
    uses: int
    """The coefficients that are not zero."""
    most: int
    """The most experts that a token uses."""
    starts: int
    """Address of [windows * columns + 1], where in `token` a column's uses in a window start."""
    token: int
    """Address of [uses], the token of each use, within its window."""
    coefficient: int
    """Address of [uses] float32, the coefficient of each use, in the order of `token`."""
    firsts: int
    """Address of [tokens + 1], where in `used` a token's columns start."""
    used: int
    """Address of [uses], the columns that tokens use."""
    alike: int
    """Address of [tokens] bool, whether a token uses the same columns as the one before."""
    h: int
    """Address of space for h, [windows * WINDOW, rows] float32."""
    pieces: int
    """Address of space for each thread's pieces, [threads, 3 * most + APART]."""
    counters: int
    """Address of the counters by which threads share work, see `loops.count_counters`."""
    threads: int
    """The threads that run."""


_USES_BEGIN = len(CallWords._fields)
_USES_END = _USES_BEGIN + len(UseWords._fields)


def make_record_type(bank: type[NamedTuple]) -> "np.dtype[Any]":
    """Return the type of the record of a kind of bank, whose words these are."""
    parts = CallWords, UseWords, bank
    return np.dtype([(name, np.int64) for part in parts for name in part._fields])


def make_record(kind: "np.dtype[Any]", bank: NamedTuple) -> np.ndarray[Any, Any]:
    """Return a record of one element with the words of a bank, whose address the loops take."""
    record = np.zeros(1, kind)
    for name, value in bank._asdict().items():
        record[name] = value
    return record


@njit(**INLINED)
def begin_call(record, uses, y, x):
    """Write what a call has of its own into the record at an address.

    Args:
        record: Address of the record.
        uses: Address of a step's `UseWords`.
        y: Address of the layer's output.
        x: Address of the layer's input.
    """
    words = array_at(record, _USES_END, np.int64)
    words[_USES_BEGIN:] = array_at(uses, _USES_END - _USES_BEGIN, np.int64)
    words[0] = y
    words[1] = x
