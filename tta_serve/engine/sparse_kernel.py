"""The loops of `sparse.py`, compiled by numba once a machine: four rows by four tokens at a time, summed in float32.

They run on the threads of torch's own OpenMP: numba would bring threads of its own, and each would wait for the other's.
"""

import ctypes
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

# ruff: noqa: PLR0913 - these functions are inlined, and what they would take as objects is not

TILE = 4  # rows and tokens that share what they load
WINDOW = 16  # tokens whose outputs stay in the cache while all experts add to them
CHUNK = 256  # outputs that a thread adds to at a time
ENOUGH = 4  # windows for each thread, and threads take whole ones
SPINS = 1000  # looks at what the others have done before a waiting thread gives up its core

# What vectorised sums and fused multiply-adds need; NaN and infinity stay what they are.
_options = {"fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}
_inlined = {"inline": "always", **_options}


@intrinsic
def _float(typing_context, number):
    """A float32 as it is, or the bits of a float16 as a float32."""

    def widen(context, builder, _, args):
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    code = widen if number == types.uint16 else lambda context, builder, _, args: args[0]
    return types.float32(number), code


@njit(**_inlined)
def _dots_of_four(x0, x1, x2, x3, a0, a1, a2, a3):
    s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = np.float32(0)
    s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = np.float32(0)
    for i in range(x0.size):
        v0, v1, v2, v3 = _float(a0[i]), _float(a1[i]), _float(a2[i]), _float(a3[i])
        u0, u1, u2, u3 = x0[i], x1[i], x2[i], x3[i]
        s00, s01, s02, s03 = s00 + u0 * v0, s01 + u0 * v1, s02 + u0 * v2, s03 + u0 * v3
        s10, s11, s12, s13 = s10 + u1 * v0, s11 + u1 * v1, s12 + u1 * v2, s13 + u1 * v3
        s20, s21, s22, s23 = s20 + u2 * v0, s21 + u2 * v1, s22 + u2 * v2, s23 + u2 * v3
        s30, s31, s32, s33 = s30 + u3 * v0, s31 + u3 * v1, s32 + u3 * v2, s33 + u3 * v3
    return (s00, s01, s02, s03), (s10, s11, s12, s13), (s20, s21, s22, s23), (s30, s31, s32, s33)


@njit(**_inlined)
def _dots_of_one(x, a0, a1, a2, a3):
    s0 = s1 = s2 = s3 = np.float32(0)
    for i in range(x.size):
        s0, s1, s2, s3 = (
            s0 + x[i] * _float(a0[i]),
            s1 + x[i] * _float(a1[i]),
            s2 + x[i] * _float(a2[i]),
            s3 + x[i] * _float(a3[i]),
        )
    return s0, s1, s2, s3


@njit(**_inlined)
def _add_to_four(y0, y1, y2, y3, b0, b1, b2, b3, h0, h1, h2, h3):
    p0, p1, p2, p3 = h0[0], h0[1], h0[2], h0[3]
    q0, q1, q2, q3 = h1[0], h1[1], h1[2], h1[3]
    r0, r1, r2, r3 = h2[0], h2[1], h2[2], h2[3]
    s0, s1, s2, s3 = h3[0], h3[1], h3[2], h3[3]
    for i in range(y0.size):
        v0, v1, v2, v3 = _float(b0[i]), _float(b1[i]), _float(b2[i]), _float(b3[i])
        y0[i] += p0 * v0 + p1 * v1 + p2 * v2 + p3 * v3
        y1[i] += q0 * v0 + q1 * v1 + q2 * v2 + q3 * v3
        y2[i] += r0 * v0 + r1 * v1 + r2 * v2 + r3 * v3
        y3[i] += s0 * v0 + s1 * v1 + s2 * v2 + s3 * v3


@njit(**_inlined)
def _add_to_one(y, b0, b1, b2, b3, h):
    p0, p1, p2, p3 = h[0], h[1], h[2], h[3]
    for i in range(y.size):
        y[i] += p0 * _float(b0[i]) + p1 * _float(b1[i]) + p2 * _float(b2[i]) + p3 * _float(b3[i])


@njit(**_inlined)
def _shrink(h, x, a, row, tokens, coefficients):
    """h[n, row : row + 4] = coefficients[n] * (x[tokens[n]] . a[row : row + 4])"""
    a0, a1, a2, a3 = a[row], a[row + 1], a[row + 2], a[row + 3]
    full = tokens.size - tokens.size % TILE
    for n in range(0, full, TILE):
        dots = _dots_of_four(x[tokens[n]], x[tokens[n + 1]], x[tokens[n + 2]], x[tokens[n + 3]], a0, a1, a2, a3)
        for m in range(TILE):
            for r in range(TILE):
                h[n + m, row + r] = coefficients[n + m] * dots[m][r]
    for n in range(full, tokens.size):
        of_one = _dots_of_one(x[tokens[n]], a0, a1, a2, a3)
        for r in range(TILE):
            h[n, row + r] = coefficients[n] * of_one[r]


@njit(**_inlined)
def _expand(y, h, b0, b1, b2, b3, row, tokens):
    """y[tokens[n]] += h[n, row : row + 4] @ b"""
    full = tokens.size - tokens.size % TILE
    for n in range(0, full, TILE):
        y0, y1, y2, y3 = y[tokens[n]], y[tokens[n + 1]], y[tokens[n + 2]], y[tokens[n + 3]]
        h0, h1, h2, h3 = h[n, row : row + 4], h[n + 1, row : row + 4], h[n + 2, row : row + 4], h[n + 3, row : row + 4]
        _add_to_four(y0, y1, y2, y3, b0, b1, b2, b3, h0, h1, h2, h3)
    for n in range(full, tokens.size):
        _add_to_one(y[tokens[n]], b0, b1, b2, b3, h[n, row : row + 4])


@intrinsic
def _pointer(typing_context, address):
    """The address as a pointer."""

    def code(context, builder, _, args):
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), code


@intrinsic
def _fetch_add(typing_context, address, value):
    """Add to the int64 at an address, atomically. Returns what it was before."""

    def code(context, builder, _, args):
        return builder.atomic_rmw("add", builder.inttoptr(args[0], ir.IntType(64).as_pointer()), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), code


@intrinsic
def _yield(typing_context):
    """Let other threads run on this core: one of them may be ours."""

    def code(context, builder, *_):
        function = ir.FunctionType(ir.IntType(32), [])
        builder.call(cgutils.get_or_insert_function(builder.module, function, "sched_yield"), [])

    return types.void(), code


@njit(**_inlined)
def _at(address, shape, dtype):
    """The C-contiguous array at an address."""
    return carray(_pointer(address), shape, dtype)


@njit(**_options)
def _shrink_items(h, x, a, shrinks, starts, token, coefficient):
    """h = c * (x A) of one window of tokens, for these rows of A. starts: of the window's uses of each column"""
    for column, row in shrinks:
        first, last = starts[column], starts[column + 1]
        _shrink(h, x, a, row, token[first:last], coefficient[first:last])


@njit(**_options)
def _expand_items(y, h, b, sums, blocks, expands, starts, token):
    """y += h B of one window of tokens, for these outputs, gathered in `sums` first: there they lie close together."""
    for first_block, last_block, begin, first_out, size in expands:
        gathered = _at(sums, (len(y), size), np.float32)
        gathered[:] = 0
        for first_row, rows, column, outs, offset in blocks[first_block:last_block]:
            tokens = token[starts[column] : starts[column + 1]]
            for row in range(0, rows, TILE):
                at = offset + row * outs + begin
                b0, b1 = b[at : at + size], b[at + outs : at + outs + size]
                b2, b3 = b[at + 2 * outs : at + 2 * outs + size], b[at + 3 * outs : at + 3 * outs + size]
                _expand(gathered, h, b0, b1, b2, b3, first_row + row, tokens)
        for n in range(len(y)):
            y[n, first_out : first_out + size] += gathered[n]


# What a run gets, all int64: what is set for each, with counters that its threads share; `sparse.Uses`; `sparse.SparseBank`,
# with the addresses of its `run` and of OpenMP's function.
CALL = ("y", "x", "shrinks_begun", "shrinks_done", "expands_begun", "threads_begun")
USES = ("tokens", "columns", "windows", "uses", "starts", "token", "coefficient", "h", "sums", "threads")
BANK = (
    *("rows", "inputs", "outputs", "a", "b", "b_size", "blocks", "n_blocks", "shrinks", "n_shrinks", "expands", "n_expands"),
    *("run", "parallel"),
)
_RECORD = numba.from_dtype(np.dtype([(name, np.int64) for name in CALL + USES + BANK]))
_USES_BEGIN, _BANK_BEGINS = len(CALL), len(CALL + USES)


def _compiled(dtype):
    """The delta of one layer, its factors being of this dtype.

    All threads run this at once, and each takes the next item that none has taken. Where there are windows for all of them, an
    item is a window; else it is TILE rows of A, and, when all these are done, CHUNK outputs.
    """

    @cfunc(types.void(types.CPointer(_RECORD)), cache=True, **_options)
    def run(arguments):
        calls = carray(arguments, 1)
        call, counters = calls[0], calls.ctypes.data + 16
        windows, columns, rows = call.windows, call.columns, call.rows
        y, x = _at(call.y, (call.tokens, call.outputs), np.float32), _at(call.x, (call.tokens, call.inputs), np.float32)
        h = _at(call.h, (windows, WINDOW, rows), np.float32)
        starts = _at(call.starts, windows * columns + 1, np.int64)
        token, coefficient = _at(call.token, call.uses, np.int64), _at(call.coefficient, call.uses, np.float32)
        a, b = _at(call.a, (rows, call.inputs), dtype), _at(call.b, call.b_size, dtype)
        shrinks, expands = _at(call.shrinks, (call.n_shrinks, 2), np.int64), _at(call.expands, (call.n_expands, 5), np.int64)
        blocks = _at(call.blocks, (call.n_blocks, 5), np.int64)
        sums = call.sums + 4 * WINDOW * CHUNK * _fetch_add(counters + 24, 1)
        whole = windows >= ENOUGH * call.threads

        shrink_items = 1 if whole else len(shrinks)
        item = _fetch_add(counters, 1)
        while item < windows * shrink_items:
            window, i = item // shrink_items, item % shrink_items
            first, begins = window * WINDOW, starts[window * columns :]
            mine = shrinks if whole else shrinks[i : i + 1]
            _shrink_items(h[window], x[first:], a, mine, begins, token, coefficient)
            if whole:
                _expand_items(y[first : first + WINDOW], h[window], b, sums, blocks, expands, begins, token)
            _fetch_add(counters + 8, 1)
            item = _fetch_add(counters, 1)
        if whole:
            return
        turns = 0
        while _fetch_add(counters + 8, 0) < windows * shrink_items:
            turns += 1
            if turns > SPINS:
                _yield()
        item = _fetch_add(counters + 16, 1)
        while item < windows * len(expands):
            window, i = item // len(expands), item % len(expands)
            first, begins = window * WINDOW, starts[window * columns :]
            _expand_items(y[first : first + WINDOW], h[window], b, sums, blocks, expands[i : i + 1], begins, token)
            item = _fetch_add(counters + 16, 1)

    return run


@cache
def functions(dtype: np.dtype[Any]) -> tuple[int, int]:
    """Addresses of `run` for factors of this dtype, float16 or float32, and of what runs it on all threads."""
    run = _compiled(np.uint16 if dtype == np.float16 else np.float32)
    _compiled_ones.append(run)  # an address keeps nothing alive
    # What every OpenMP offers to programs that GCC compiled, of which torch is one; found as torch finds it, once it is there.
    assert torch.get_num_threads()
    parallel = ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    return run.address, int(parallel or 0)


_compiled_ones: list[Any] = []


@intrinsic
def _call(typing_context, parallel, run, data, threads):
    """parallel(run, data, threads, 0)"""

    def code(context, builder, _, args):
        pointer, unsigned = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = ir.FunctionType(ir.VoidType(), [pointer, pointer, unsigned, unsigned]).as_pointer()
        run, data = (builder.inttoptr(arg, pointer) for arg in args[1:3])
        builder.call(builder.inttoptr(args[0], function), [run, data, builder.trunc(args[3], unsigned), unsigned(0)])

    return types.void(types.int64, types.int64, types.int64, types.int64), code


@njit(types.void(types.int64, types.int64, types.int64, types.int64), cache=True)
def add_delta(bank, uses, y, x):
    """y += B (c * (A x)), where c is not zero. Addresses: of a bank's record, of what `USES` names, and of y and x"""
    record = _at(bank, len(CALL) + len(USES) + len(BANK), np.int64)
    record[0], record[1] = y, x
    record[2:_USES_BEGIN] = 0
    record[_USES_BEGIN:_BANK_BEGINS] = _at(uses, len(USES), np.int64)
    _call(record[-1], record[-2], bank, record[_BANK_BEGINS - 1])
