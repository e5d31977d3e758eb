"""The loops of `sparse_bank`, compiled by numba once a machine; `vector_code` has what they call.

For each token of a step, y += B (c * (A x)), in two phases:

    shrink   h = c * (A x)   for TILE rows of A, which are of one expert, and the tokens that use it
    expand   y += B h        for CHUNK outputs of a weight, and each token's own experts

Tokens are taken in windows of WINDOW, whose inputs and outputs stay in the cache meanwhile.

What a run gets is a record, see `records`, of the layer's SparseBank.

The factors that `BankWords` point to, w being the layer's weights (as q, k, v) and e experts:

    a   w 0  e 0   TILE rows, inputs filled up to LANES       b   w 0   outputs 0 .. CHUNK - 1
             e 0   TILE rows                                            all rows of w 0 x CHUNK
             e 3   TILE rows                                      w 0   outputs CHUNK .. 2 CHUNK - 1
        w 1  e 0   TILE rows                                            all rows of w 0 x CHUNK
             e 5   TILE rows                                      w 1   outputs 0 .. CHUNK - 1
        ...                                                       ...

So a shrink reads one run of `a`, an expand one of `b`, and h, [tokens, rows of a], lies between.

The loops run on the threads of torch's own OpenMP: numba would bring threads of its own, and each
would wait for the other's.
"""

from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import carray, cfunc, njit, types

from tta_serve.engine.worker.cpu.call_records import begin_call, make_record_type
from tta_serve.engine.worker.cpu.threads import (
    APART,
    ENOUGH,
    INLINED,
    OPTIONS,
    WINDOW,
    array_at,
    fetch_all,
    find_openmp,
    share_of,
    wait_for,
)
from tta_serve.engine.worker.cpu.vector_code import (
    CHUNK,
    LANES,
    PART,
    TILE,
    call_on_all,
    expand,
    fetch_add,
    shrink,
    thread_number,
)

AHEAD = 1024
"""How many bytes ahead outputs are fetched before they are added to."""


class BankWords(NamedTuple):
    """The factors of a layer, and how they are run: of `sparse_bank.SparseBank`."""

    rows: int
    """The rows of `a`."""
    inputs: int
    """The inputs of the layer."""
    outputs: int
    """The outputs of the layer."""
    known: int
    """The columns that `block_of` has."""
    a: int
    """Address of A."""
    b: int
    """Address of B."""
    blocks: int
    """Address of [n_blocks, 3]: a block's first row in a, its rows, the rows before it within the
    weight. A block is an expert's factors of a weight."""
    n_blocks: int
    """How many blocks there are."""
    block_of: int
    """Address of [n_weights, known], the block of each column, -1 where an expert has none."""
    n_weights: int
    """How many weights the layer has."""
    extents: int
    """Address of [n_weights, 4]: a weight's first output in the layer, its outputs, its first value
    in b, its values in b for CHUNK outputs."""
    n_extents: int
    """The same as n_weights."""
    shrinks: int
    """Address of [n_shrinks], the column of each TILE rows of a."""
    n_shrinks: int
    """How many TILE rows there are."""
    expands: int
    """Address of [n_expands, 4], of each CHUNK outputs: the weight, the first output in the weight,
    the first value in b, the values in b."""
    n_expands: int
    """How many CHUNK outputs there are."""
    thread_number: int
    """Address of OpenMP's function that says which thread it runs on."""
    run: int
    """Address of the compiled loops."""
    parallel: int
    """Address of OpenMP's function that runs another on all threads."""


RECORD = make_record_type(BankWords)
_NUMBA_RECORD = numba.from_dtype(RECORD)


@njit(**OPTIONS)
def _shrink_tile(  # noqa: PLR0913 - numba passes no objects
    kind, h, h_size, x, x_size, a, inputs, tokens, coefficients
):
    """Compute h = c * (A x) for TILE rows of A and some tokens of a window.

    Args:
        kind: A number of the dtype of A.
        h: Address of what the window's first token has of h for these rows.
        h_size: Bytes from one token's h to the next.
        x: Address of the input of the window's first token.
        x_size: Bytes from one token's input to the next.
        a: Address of the rows.
        inputs: The inputs of the layer.
        tokens: The tokens that use the rows' expert, within the window.
        coefficients: c, of each of those tokens.
    """
    # TILE tokens at once, then two, then one.
    full = tokens.size - tokens.size % TILE
    for n in range(0, full, TILE):
        n0, n1, n2, n3 = tokens[n], tokens[n + 1], tokens[n + 2], tokens[n + 3]
        to = h + n0 * h_size, h + n1 * h_size, h + n2 * h_size, h + n3 * h_size
        of = x + n0 * x_size, x + n1 * x_size, x + n2 * x_size, x + n3 * x_size
        c = coefficients[n], coefficients[n + 1], coefficients[n + 2], coefficients[n + 3]
        shrink(kind, to, of, c, a, inputs)
    left = tokens.size - full
    if left >= 2:
        n0, n1 = tokens[full], tokens[full + 1]
        to2 = h + n0 * h_size, h + n1 * h_size
        of2 = x + n0 * x_size, x + n1 * x_size
        shrink(kind, to2, of2, (coefficients[full], coefficients[full + 1]), a, inputs)
    if left % 2:
        n0 = tokens[tokens.size - 1]
        c1 = coefficients[tokens.size - 1]
        shrink(kind, (h + n0 * h_size,), (x + n0 * x_size,), (c1,), a, inputs)


@njit(**OPTIONS)
def _expand_rows(  # noqa: PLR0913 - numba passes no objects
    kind, y, y_size, h, h_size, weight, first, last, uses, block_of, blocks, pieces
):
    """Add B h to y, for the outputs from `first` to `last` of a weight and a window's tokens.

    Args:
        kind: A number of the dtype of B.
        y: Address of the weight's first output of the window's first token.
        y_size: Bytes from one token's outputs to the next.
        h: Address of the h of the window's first token.
        h_size: Bytes from one token's h to the next.
        weight: Address of the weight's factors in b, bytes of a row of CHUNK outputs there, and
            bytes of all such rows.
        first: The first output, a multiple of CHUNK.
        last: The output after the last.
        uses: `firsts`, `used` and `alike` of the window's tokens.
        block_of: The block of each column in this weight.
        blocks: All blocks.
        pieces: Space for what `expand` is to read of one token's experts.
    """
    b, b_row, b_chunk = weight
    firsts, used, alike = uses
    n, n_pieces = 0, 0
    while n < alike.size:
        # Where the token's experts have rows of this weight; alike tokens have the same.
        if n == 0 or not alike[n]:
            n_pieces = 0
            for i in range(firsts[n], firsts[n + 1]):
                block = block_of[used[i]] if used[i] < block_of.size else -1
                if block >= 0:
                    row, rows, before = blocks[block]
                    pieces[n_pieces, 0] = before * b_row
                    pieces[n_pieces, 1] = 4 * row
                    pieces[n_pieces, 2] = rows
                    n_pieces += 1

        # Nothing, TILE alike tokens at once, or one token.
        of_y, of_h = y + n * y_size, h + n * h_size
        if not n_pieces:
            n += 1
        elif n + TILE <= alike.size and alike[n + 1] and alike[n + 2] and alike[n + 3]:
            h4 = of_h, of_h + h_size, of_h + 2 * h_size, of_h + 3 * h_size
            for begin in range(first, last, PART):
                y0 = of_y + 4 * begin
                y4 = y0, y0 + y_size, y0 + 2 * y_size, y0 + 3 * y_size
                for n_row in range(TILE):
                    fetch_all(y0 + n_row * y_size + AHEAD, 4 * PART)
                at = b + begin // CHUNK * b_chunk + begin % CHUNK * b_row // CHUNK
                expand(kind, y4, h4, at, pieces.ctypes.data, n_pieces, last - begin)
            n += TILE
        else:
            for begin in range(first, last, CHUNK):
                at = b + begin // CHUNK * b_chunk
                y1 = (of_y + 4 * begin,)
                expand(kind, y1, (of_h,), at, pieces.ctypes.data, n_pieces, last - begin)
            n += 1


# Phases, by their counters.
_WINDOWS = -1
_SHRINKS = 0
_EXPANDS = 1
_DONE = 2


def count_counters(threads: int) -> int:
    """Return how many int64 the threads' counters take.

    There is one for the items begun of each thread's share, in two phases, and one for the shrinks
    done.
    """
    return APART * (2 * threads + 2)


@njit(**INLINED)
def _counter(call, phase, share):
    """Return the address of a phase's counter of a share.

    Whole windows are counted as shrinks are: it is one or the other.
    """
    return call.counters + 8 * APART * (max(phase, 0) * call.threads + share)


@njit(**OPTIONS)
def _shrink_window(  # noqa: PLR0913 - numba passes no objects
    call, kind, width, window, first_tile, last_tile
):
    """Compute h of a window's tokens, for these tiles of A."""
    starts = array_at(call.starts, call.windows * call.columns + 1, np.int64)
    token = array_at(call.token, call.uses, np.int64)
    coefficient = array_at(call.coefficient, call.uses, np.float32)
    shrinks = array_at(call.shrinks, call.n_shrinks, np.int64)
    h_size, x_size = 4 * call.rows, 4 * call.inputs
    h, x = call.h + window * WINDOW * h_size, call.x + window * WINDOW * x_size
    for tile in range(first_tile, last_tile):
        use = window * call.columns + shrinks[tile]
        tokens = token[starts[use] : starts[use + 1]]
        c = coefficient[starts[use] : starts[use + 1]]
        a = call.a + tile * _tile_size(call, width)
        h_tile = h + 4 * TILE * tile
        _shrink_tile(kind, h_tile, h_size, x, x_size, a, call.inputs, tokens, c)


@njit(**OPTIONS)
def _expand_window(  # noqa: PLR0913 - numba passes no objects
    call, kind, width, window, weight, first, last, pieces
):
    """Add to a window's outputs from `first` to `last` of a weight, to those that it has."""
    # The window's tokens, and what they use.
    begin, end = window * WINDOW, min(window * WINDOW + WINDOW, call.tokens)
    firsts = array_at(call.firsts, call.tokens + 1, np.int64)
    used = array_at(call.used, call.uses, np.int64)
    uses = firsts[begin:], used, array_at(call.alike, call.tokens, np.bool_)[begin:end]

    # The weight's factors, and which experts have some.
    first_out, outs, offset, size = array_at(call.extents, (call.n_weights, 4), np.int64)[weight]
    of_weight = call.b + offset * width, CHUNK * width, size * width
    block_of = array_at(call.block_of, (call.n_weights, call.known), np.int64)[weight]
    blocks = array_at(call.blocks, (call.n_blocks, 3), np.int64)

    y, y_size = call.y + 4 * (begin * call.outputs + first_out), 4 * call.outputs
    h, h_size = call.h + 4 * begin * call.rows, 4 * call.rows
    last = min(last, outs)
    _expand_rows(kind, y, y_size, h, h_size, of_weight, first, last, uses, block_of, blocks, pieces)


@njit(**INLINED)
def _tile_size(call, width):
    """Return the bytes of TILE rows of A."""
    return TILE * (-(-call.inputs // LANES) * LANES) * width


@njit(**INLINED)
def _fetch_tile(call, width, tile):
    if tile < call.n_shrinks:
        fetch_all(call.a + tile * _tile_size(call, width), _tile_size(call, width))


@njit(**INLINED)
def _fetch_chunk(call, width, chunk):
    if chunk < call.n_expands:
        _, _, begin, size = array_at(call.expands, (call.n_expands, 4), np.int64)[chunk]
        fetch_all(call.b + begin * width, size * width)


@njit(**OPTIONS)
def _take(call, kind, width, phase, thread, per_window):  # noqa: PLR0913 - numba passes no objects
    """Take items of a phase until none is left, those of the thread's own share first.

    What the next item reads is fetched while one is computed: between two steps a bank falls out of
    the caches. Returns how many items were taken.
    """
    pieces = array_at(call.pieces + 8 * (3 * call.most + APART) * thread, (call.most, 3), np.int64)
    done = 0
    for k in range(call.threads):
        share = (thread + k) % call.threads
        first, last = share_of(share, call.threads, call.windows * per_window)
        counter = _counter(call, phase, share)
        item = first + fetch_add(counter, 1)
        while item < last:
            window, i = item // per_window, item % per_window
            item = first + fetch_add(counter, 1)
            if phase == _WINDOWS:
                # The last ones first: the layer's own product has just written them.
                window = first + last - 1 - window
                _shrink_window(call, kind, width, window, 0, call.n_shrinks)
                for weight in range(call.n_weights):
                    _expand_window(call, kind, width, window, weight, 0, call.outputs, pieces)
            elif phase == _SHRINKS:
                _fetch_tile(call, width, item)
                _shrink_window(call, kind, width, window, i, i + 1)
            else:
                _fetch_chunk(call, width, item)
                weight, out, _, _ = array_at(call.expands, (call.n_expands, 4), np.int64)[i]
                _expand_window(call, kind, width, window, weight, out, out + CHUNK, pieces)
            done += 1
    return done


@cache  # which keeps what it returns alive: an address does not
def _compile_loops(dtype):
    """Return the compiled delta of one layer, for factors of this dtype.

    All threads run this at once. Where there are windows for all of them, an item is a window; else
    it is TILE rows of A, and, when all these are done, CHUNK outputs.
    """
    width = np.dtype(dtype).itemsize

    @cfunc(types.void(types.CPointer(_NUMBA_RECORD)), cache=True, **OPTIONS)
    def run(arguments):
        call, kind = carray(arguments, 1)[0], dtype(0)
        thread = thread_number(call.thread_number)

        # Many windows: each is computed as a whole.
        if call.windows >= ENOUGH * call.threads:
            _take(call, kind, width, _WINDOWS, thread, 1)
            return

        # Few: first all shrinks, each thread's own and then others'.
        done = _counter(call, _DONE, 0)
        fetch_add(done, _take(call, kind, width, _SHRINKS, thread, call.n_shrinks))
        _fetch_chunk(call, width, share_of(thread, call.threads, call.windows * call.n_expands)[0])

        # When the other threads are done with theirs too, all expands.
        wait_for(done, call.windows * call.n_shrinks)
        _take(call, kind, width, _EXPANDS, thread, call.n_expands)

    return run


@cache
def find_functions(dtype: np.dtype[Any]) -> tuple[int, int, int]:
    """Return the addresses of the functions that `BankWords` names.

    Args:
        dtype: That of the factors.

    Returns:
        `thread_number`, `run` and `parallel`.
    """
    run = _compile_loops(np.uint16 if dtype == np.float16 else np.float32)
    thread_number, parallel = find_openmp()
    return thread_number, run.address, parallel


@njit(types.void(types.int64, types.int64, types.int64, types.int64), cache=True)
def add_delta(bank, uses, y, x):
    """Add B (c * (A x)) to y, where c is not zero.

    Args:
        bank: Address of a bank's record.
        uses: Address of a step's `UseWords`.
        y: Address of the layer's output.
        x: Address of the layer's input.
    """
    # Complete the record.
    begin_call(bank, uses, y, x)
    call = array_at(bank, 1, RECORD)[0]

    # Let the threads count from zero, and run.
    begun = array_at(call.counters, (2 * call.threads + 1, APART), np.int64)
    begun[:, 0] = 0
    call_on_all(call.parallel, call.run, bank, call.threads)
