"""The loops of `sparse.py`, compiled by numba once a machine; what they compute is in `sparse_code.py`.

They run on the threads of torch's own OpenMP: numba would bring threads of its own, and each would wait for the other's.
"""

import ctypes
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from numba import carray, cfunc, njit, types

from tta_serve.engine.sparse_code import (
    CHUNK,
    LANES,
    PART,
    TILE,
    call_on_all,
    expand,
    fetch,
    fetch_add,
    pointer,
    shrink,
    thread_number,
    yield_core,
)

# ruff: noqa: PLR0913 - these functions are inlined, and what they would take as objects is not

WINDOW = 16  # tokens whose inputs and outputs stay in the cache while all experts add to them
ENOUGH = 4  # windows for each thread, and threads take whole ones
AHEAD = 1024  # bytes of outputs that are fetched before they are added to
SPINS = 1000  # looks at what the others have done before a waiting thread gives up its core

_options = {"error_model": "numpy"}
_inlined = {"inline": "always", **_options}


@njit(**_inlined)
def _at(address, shape, dtype):
    """The C-contiguous array at an address."""
    return carray(pointer(address), shape, dtype)


@njit(**_inlined)
def _fetch_all(address, size):
    for offset in range(0, size, 64):
        fetch(address + offset)


@njit(**_options)
def _shrink_tile(kind, h, h_size, x, x_size, a, inputs, tokens, coefficients):
    """h = c * (x A) for TILE rows of A, of these tokens. h_size, x_size: bytes from one token's to the next"""
    full = tokens.size - tokens.size % TILE
    for n in range(0, full, TILE):
        n0, n1, n2, n3 = tokens[n], tokens[n + 1], tokens[n + 2], tokens[n + 3]
        to = h + n0 * h_size, h + n1 * h_size, h + n2 * h_size, h + n3 * h_size
        of = x + n0 * x_size, x + n1 * x_size, x + n2 * x_size, x + n3 * x_size
        c = coefficients[n], coefficients[n + 1], coefficients[n + 2], coefficients[n + 3]
        shrink(kind, to, of, c, a, inputs)
    left = tokens.size - full
    if left >= 2:
        n0, n1, c2 = tokens[full], tokens[full + 1], (coefficients[full], coefficients[full + 1])
        shrink(kind, (h + n0 * h_size, h + n1 * h_size), (x + n0 * x_size, x + n1 * x_size), c2, a, inputs)
    if left % 2:
        n0 = tokens[tokens.size - 1]
        shrink(kind, (h + n0 * h_size,), (x + n0 * x_size,), (coefficients[tokens.size - 1],), a, inputs)


@njit(**_options)
def _expand_rows(kind, y, y_size, h, h_size, weight, first, last, uses, block_of, blocks, pieces):
    """y += h B for the outputs from `first` to `last` of a weight, for a window's tokens. weight: of `sparse.SparseBank`

    y, h: addresses of the window's   y_size, h_size: bytes from one token's to the next   pieces: space for `_expand`'s
    uses: firsts, used and alike of `sparse.Uses`, of the window's tokens
    """
    b, a_row, a_chunk = weight
    firsts, used, alike = uses
    n, n_pieces = 0, 0
    while n < alike.size:
        if n == 0 or not alike[n]:
            n_pieces = 0
            for i in range(firsts[n], firsts[n + 1]):
                block = block_of[used[i]] if used[i] < block_of.size else -1
                if block >= 0:
                    row, rows, before = blocks[block]
                    pieces[n_pieces, 0], pieces[n_pieces, 1], pieces[n_pieces, 2] = before * a_row, 4 * row, rows
                    n_pieces += 1
        of_y, of_h = y + n * y_size, h + n * h_size
        if not n_pieces:
            n += 1
        elif n + TILE <= alike.size and alike[n + 1] and alike[n + 2] and alike[n + 3]:
            h4 = of_h, of_h + h_size, of_h + 2 * h_size, of_h + 3 * h_size
            for begin in range(first, last, PART):
                y0 = of_y + 4 * begin
                y4 = y0, y0 + y_size, y0 + 2 * y_size, y0 + 3 * y_size
                for n_row in range(TILE):
                    _fetch_all(y0 + n_row * y_size + AHEAD, 4 * PART)
                at = b + begin // CHUNK * a_chunk + begin % CHUNK * a_row // CHUNK
                expand(kind, y4, h4, at, pieces.ctypes.data, n_pieces, last - begin)
            n += TILE
        else:
            for begin in range(first, last, CHUNK):
                at = b + begin // CHUNK * a_chunk
                expand(kind, (of_y + 4 * begin,), (of_h,), at, pieces.ctypes.data, n_pieces, last - begin)
            n += 1


# What a run gets, all int64: what is set for each; `sparse.Uses`; `sparse.SparseBank`, with the addresses of its `run` and of
# OpenMP's functions.
CALL = ("y", "x")
USES = (
    *("tokens", "columns", "windows", "uses", "most"),
    *("starts", "token", "coefficient", "firsts", "used", "alike", "h", "pieces", "counters", "threads"),
)
BANK = (
    *("rows", "inputs", "outputs", "known", "a", "b", "blocks", "n_blocks", "block_of", "n_weights"),
    *("extents", "n_extents", "shrinks", "n_shrinks", "expands", "n_expands", "thread_number", "run", "parallel"),
)
_RECORD = numba.from_dtype(np.dtype([(name, np.int64) for name in CALL + USES + BANK]))
_USES_BEGIN, _BANK_BEGINS, RECORD_SIZE = len(CALL), len(CALL + USES), len(CALL + USES + BANK)
APART = 16  # int64 between what threads write: two lines of a cache, which often come in pairs


_WINDOWS, _SHRINKS, _EXPANDS, _DONE = -1, 0, 1, 2  # phases, by their counters


def counters(threads: int) -> int:
    """How many int64 the threads' counters take: of items begun of each share, in two phases, and of shrinks done."""
    return APART * (2 * threads + 2)


@njit(**_inlined)
def _counter(call, phase, share):
    """The address of a phase's counter of a share. Whole windows are counted as shrinks are: it is one or the other."""
    return call.counters + 8 * APART * (max(phase, 0) * call.threads + share)


@njit(**_inlined)
def _share(thread, threads, items):
    """The first and the last item of a thread's share."""
    return items * thread // threads, items * (thread + 1) // threads


@njit(**_options)
def _shrink_window(call, kind, width, window, first_tile, last_tile):
    """h of a window's tokens, for these tiles of A."""
    starts = _at(call.starts, call.windows * call.columns + 1, np.int64)
    token, coefficient = _at(call.token, call.uses, np.int64), _at(call.coefficient, call.uses, np.float32)
    shrinks = _at(call.shrinks, call.n_shrinks, np.int64)
    h_size, x_size = 4 * call.rows, 4 * call.inputs
    h, x = call.h + window * WINDOW * h_size, call.x + window * WINDOW * x_size
    for tile in range(first_tile, last_tile):
        use = window * call.columns + shrinks[tile]
        tokens, of_tokens = token[starts[use] : starts[use + 1]], coefficient[starts[use] : starts[use + 1]]
        a = call.a + tile * _tile_size(call, width)
        _shrink_tile(kind, h + 4 * TILE * tile, h_size, x, x_size, a, call.inputs, tokens, of_tokens)


@njit(**_options)
def _expand_window(call, kind, width, window, weight, first, last, pieces):
    """A window's outputs from `first` to `last` of a weight, those that it has."""
    begin, end = window * WINDOW, min(window * WINDOW + WINDOW, call.tokens)
    firsts, used = _at(call.firsts, call.tokens + 1, np.int64), _at(call.used, call.uses, np.int64)
    uses = firsts[begin:], used, _at(call.alike, call.tokens, np.bool_)[begin:end]
    first_out, outs, offset, size = _at(call.extents, (call.n_weights, 4), np.int64)[weight]
    of_weight = call.b + offset * width, CHUNK * width, size * width
    block_of = _at(call.block_of, (call.n_weights, call.known), np.int64)[weight]
    blocks = _at(call.blocks, (call.n_blocks, 3), np.int64)
    y, h = call.y + 4 * (begin * call.outputs + first_out), call.h + 4 * begin * call.rows
    _expand_rows(
        kind, y, 4 * call.outputs, h, 4 * call.rows, of_weight, first, min(last, outs), uses, block_of, blocks, pieces
    )


@njit(**_inlined)
def _tile_size(call, width):
    """Bytes of TILE rows of A."""
    return TILE * (-(-call.inputs // LANES) * LANES) * width


@njit(**_inlined)
def _fetch_tile(call, width, tile):
    if tile < call.n_shrinks:
        _fetch_all(call.a + tile * _tile_size(call, width), _tile_size(call, width))


@njit(**_inlined)
def _fetch_chunk(call, width, chunk):
    if chunk < call.n_expands:
        _, _, begin, size = _at(call.expands, (call.n_expands, 4), np.int64)[chunk]
        _fetch_all(call.b + begin * width, size * width)


@njit(**_options)
def _take(call, kind, width, phase, thread, per_window):
    """Take items of a phase until none is left, those of the thread's own share first. Returns how many.

    What the next item reads is fetched while one is computed: between two steps a bank falls out of the caches.
    """
    pieces = _at(call.pieces + 8 * (3 * call.most + APART) * thread, (call.most, 3), np.int64)
    done = 0
    for k in range(call.threads):
        share = (thread + k) % call.threads
        first, last = _share(share, call.threads, call.windows * per_window)
        counter = _counter(call, phase, share)
        item = first + fetch_add(counter, 1)
        while item < last:
            window, i = item // per_window, item % per_window
            item = first + fetch_add(counter, 1)
            if phase == _WINDOWS:
                window = first + last - 1 - window  # the layer's product wrote the last ones last
                _shrink_window(call, kind, width, window, 0, call.n_shrinks)
                for weight in range(call.n_weights):
                    _expand_window(call, kind, width, window, weight, 0, call.outputs, pieces)
            elif phase == _SHRINKS:
                _fetch_tile(call, width, item)
                _shrink_window(call, kind, width, window, i, i + 1)
            else:
                _fetch_chunk(call, width, item)
                weight, out, _, _ = _at(call.expands, (call.n_expands, 4), np.int64)[i]
                _expand_window(call, kind, width, window, weight, out, out + CHUNK, pieces)
            done += 1
    return done


def _compiled(dtype):
    """The delta of one layer, its factors being of this dtype.

    All threads run this at once. Where there are windows for all of them, an item is a window; else it is TILE rows of A, and,
    when all these are done, CHUNK outputs.
    """
    width = np.dtype(dtype).itemsize

    @cfunc(types.void(types.CPointer(_RECORD)), cache=True, **_options)
    def run(arguments):
        call, kind = carray(arguments, 1)[0], dtype(0)
        thread = thread_number(call.thread_number)
        if call.windows >= ENOUGH * call.threads:
            _take(call, kind, width, _WINDOWS, thread, 1)
            return
        done = _counter(call, _DONE, 0)
        fetch_add(done, _take(call, kind, width, _SHRINKS, thread, call.n_shrinks))
        _fetch_chunk(call, width, _share(thread, call.threads, call.windows * call.n_expands)[0])
        turns = 0
        while fetch_add(done, 0) < call.windows * call.n_shrinks:
            turns += 1
            if turns > SPINS:
                yield_core()
        _take(call, kind, width, _EXPANDS, thread, call.n_expands)

    return run


@cache
def functions(dtype: np.dtype[Any]) -> tuple[int, int, int]:
    """Addresses of OpenMP's number of a thread, of `run` for factors of this dtype, and of what runs it on all threads."""
    run = _compiled(np.uint16 if dtype == np.float16 else np.float32)
    _compiled_ones.append(run)  # an address keeps nothing alive
    # What every OpenMP offers to programs that GCC compiled, of which torch is one; found as torch finds it, once it is there.
    assert torch.get_num_threads()
    openmp = ctypes.CDLL(None)
    thread_number, parallel = (
        ctypes.cast(function, ctypes.c_void_p).value or 0 for function in (openmp.omp_get_thread_num, openmp.GOMP_parallel)
    )
    return thread_number, run.address, parallel


_compiled_ones: list[Any] = []


@njit(types.void(types.int64, types.int64, types.int64, types.int64), cache=True)
def add_delta(bank, uses, y, x):
    """y += B (c * (A x)), where c is not zero. Addresses: of a bank's record, of what `USES` names, and of y and x"""
    record = _at(bank, RECORD_SIZE, np.int64)
    of_uses = _at(uses, len(USES), np.int64)
    record[0], record[1] = y, x
    record[_USES_BEGIN:_BANK_BEGINS] = of_uses
    threads = of_uses[-1]
    begun = _at(of_uses[-2], (2 * threads + 1, APART), np.int64)
    begun[:, 0] = 0
    call_on_all(record[-1], record[-2], bank, threads)
