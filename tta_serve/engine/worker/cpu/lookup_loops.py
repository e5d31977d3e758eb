"""The loops of `lookup_bank`, compiled by numba once a machine; `lookup_code` has what they call.

For each token of a step, y += sum_k c_k s_k (S_k x), in two phases:

    tables   the sums of each four inputs with all signs, of each token that uses an expert; they
             serve all outputs, weights and experts of the layer
    look-up  of BLOCK outputs of a weight, by the experts in turn: the tokens that use one share the
             reading of its bits, TILE at a time, whose outputs are in registers for all inputs

The signs of a weight, [out / BLOCK, in / GROUP, BLOCK] int32: of each block of outputs all inputs,
of GROUP inputs a word an output, of the first input the lowest bit. Work is shared among threads,
as in `loops`.
"""

from functools import cache
from typing import NamedTuple

import numba
import numpy as np
from numba import carray, cfunc, njit, types

from tta_serve.engine.worker.cpu.call_records import begin_call, make_record_type
from tta_serve.engine.worker.cpu.lookup_code import ENTRIES, GROUP, add_signed, make_tables
from tta_serve.engine.worker.cpu.threads import (
    APART,
    ENOUGH,
    INLINED,
    OPTIONS,
    WINDOW,
    array_at,
    find_openmp,
    share_of,
    wait_for,
)
from tta_serve.engine.worker.cpu.vector_code import TILE, call_on_all, fetch_add, thread_number


class LookupWords(NamedTuple):
    """The signs of a layer, and how they are run: of `lookup_bank.LookupBank`."""

    tables: int
    """Address of space for the tables of tokens; set for each call."""
    inputs: int
    """The inputs of the layer."""
    outputs: int
    """The outputs of the layer."""
    groups: int
    """The GROUPs that the inputs fill."""
    experts: int
    """How many experts there are."""
    expert_columns: int
    """Address of [experts], the column of each."""
    signs: int
    """Address of [n_weights, experts], the address of each expert's signs, 0 where it has none."""
    scales: int
    """Address of [n_weights, experts] float32."""
    blocks: int
    """Address of [n_blocks, 4]: the weight, the first output in the layer, the outputs from there
    to the weight's last, the bytes before the block in the weight's signs."""
    n_blocks: int
    """How many blocks there are."""
    n_weights: int
    """How many weights the layer has."""
    thread_number: int
    """Address of OpenMP's function that says which thread it runs on."""
    run: int
    """Address of the compiled loops."""
    parallel: int
    """Address of OpenMP's function that runs another on all threads."""


LOOKUP_RECORD = make_record_type(LookupWords)
_NUMBA_RECORD = numba.from_dtype(LOOKUP_RECORD)
_TABLES, _LOOKUPS, _DONE = 0, 1, 2


def count_tables(tokens: int, inputs: int, threads: int) -> int:
    """Return how many float32 the tables of a step take."""
    windows = -(-tokens // WINDOW)
    kept = threads if windows >= ENOUGH * threads else windows
    return kept * WINDOW * -(-inputs // GROUP) * (GROUP // 4) * ENTRIES


@njit(**INLINED)
def _table_size(call):
    """Return the bytes of a token's tables."""
    return call.groups * (GROUP // 4) * ENTRIES * 4


@njit(**OPTIONS)
def _make_tables(call, token, tables):
    firsts = array_at(call.firsts, call.tokens + 1, np.int64)
    if firsts[token + 1] > firsts[token]:
        x = call.x + 4 * token * call.inputs
        make_tables(tables, x, call.inputs, call.groups * (GROUP // 4))


@njit(**OPTIONS)
def _look_up(call, window, block, tables):
    """Add to a window's outputs of a block. `tables` are those of the window's first token."""
    weight, first, size, offset = array_at(call.blocks, (call.n_blocks, 4), np.int64)[block]
    columns = array_at(call.expert_columns, call.experts, np.int64)
    signs = array_at(call.signs, (call.n_weights, call.experts), np.int64)[weight]
    scales = array_at(call.scales, (call.n_weights, call.experts), np.float32)[weight]
    starts = array_at(call.starts, call.windows * call.columns + 1, np.int64)
    token = array_at(call.token, call.uses, np.int64)
    coefficient = array_at(call.coefficient, call.uses, np.float32)
    y, y_size = call.y + 4 * (window * WINDOW * call.outputs + first), 4 * call.outputs
    t_size, groups = _table_size(call), call.groups

    for expert in range(call.experts):
        if signs[expert] == 0:
            continue
        use = window * call.columns + columns[expert]
        words, scale = signs[expert] + offset, scales[expert]
        n, last = starts[use], starts[use + 1]
        while n + TILE <= last:
            a, b, c, d = token[n], token[n + 1], token[n + 2], token[n + 3]
            ys = y + a * y_size, y + b * y_size, y + c * y_size, y + d * y_size
            ts = (
                tables + a * t_size,
                tables + b * t_size,
                tables + c * t_size,
                tables + d * t_size,
            )
            factors = (
                scale * coefficient[n],
                scale * coefficient[n + 1],
                scale * coefficient[n + 2],
                scale * coefficient[n + 3],
            )
            add_signed(ys, ts, factors, words, groups, size)
            n += TILE
        if n + 2 <= last:
            a, b = token[n], token[n + 1]
            two = scale * coefficient[n], scale * coefficient[n + 1]
            ts2 = tables + a * t_size, tables + b * t_size
            add_signed((y + a * y_size, y + b * y_size), ts2, two, words, groups, size)
            n += 2
        if n < last:
            a = token[n]
            one = (scale * coefficient[n],)
            add_signed((y + a * y_size,), (tables + a * t_size,), one, words, groups, size)


@njit(**INLINED)
def _counter(call, phase, share):
    return call.counters + 8 * APART * (phase * call.threads + share)


@njit(**OPTIONS)
def _take(call, phase, thread, items, whole):
    """Take items of a phase until none is left, those of the thread's own share first.

    An item is a window if these are taken whole; else a token, or a block of a window. Returns how
    many items were taken.
    """
    done = 0
    size = _table_size(call)
    for k in range(call.threads):
        share = (thread + k) % call.threads
        first, last = share_of(share, call.threads, items)
        counter = _counter(call, phase, share)
        item = first + fetch_add(counter, 1)
        while item < last:
            if whole:
                mine = call.tables + thread * WINDOW * size
                for token in range(item * WINDOW, min(item * WINDOW + WINDOW, call.tokens)):
                    _make_tables(call, token, mine + (token - item * WINDOW) * size)
                for block in range(call.n_blocks):
                    _look_up(call, item, block, mine)
            elif phase == _TABLES:
                _make_tables(call, item, call.tables + item * size)
            else:
                window, block = item // call.n_blocks, item % call.n_blocks
                _look_up(call, window, block, call.tables + window * WINDOW * size)
            done += 1
            item = first + fetch_add(counter, 1)
    return done


@cache
def find_lookup_functions() -> tuple[int, int, int]:
    """Return the addresses of `thread_number`, `run` and `parallel`, as `LookupWords` has them."""

    @cfunc(types.void(types.CPointer(_NUMBA_RECORD)), cache=True, **OPTIONS)
    def run(arguments):
        call = carray(arguments, 1)[0]
        thread = thread_number(call.thread_number)
        if call.windows >= ENOUGH * call.threads:
            _take(call, _TABLES, thread, call.windows, True)
            return
        done = _counter(call, _DONE, 0)
        fetch_add(done, _take(call, _TABLES, thread, call.tokens, False))
        wait_for(done, call.tokens)
        _take(call, _LOOKUPS, thread, call.windows * call.n_blocks, False)

    _KEPT.append(run)
    number, parallel = find_openmp()
    return number, run.address, parallel


_KEPT: list[object] = []  # an address keeps nothing alive


@njit(types.void(*[types.int64] * 5), cache=True)
def add_signed_delta(bank, uses, y, x, tables):
    """Add sum_k c_k s_k (S_k x) to y, where c is not zero.

    Args:
        bank: Address of a bank's record.
        uses: Address of a step's `UseWords`.
        y: Address of the layer's output.
        x: Address of the layer's input.
        tables: Address of space for tables.
    """
    begin_call(bank, uses, y, x)
    call = array_at(bank, 1, LOOKUP_RECORD)[0]
    call.tables = tables
    begun = array_at(call.counters, (2 * call.threads + 1, APART), np.int64)
    begun[:, 0] = 0
    call_on_all(call.parallel, call.run, bank, call.threads)
