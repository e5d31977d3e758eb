"""The loops of `mix_writer` on a CPU, one pass over memory; numba compiles them once a machine."""

import numpy as np
from numba import carray, njit, types

from tta_serve.engine.worker.cpu.vector_code import pointer

FLOAT32, BFLOAT16 = 0, 1
"""How values lie in memory."""
_BLOCK = 4096
_HALF = 16


@njit(inline="always")
def _load(address, kind, start, count, wide, room):  # noqa: PLR0913 - as the loop has them
    """Return `count` values from `start` on, as float32; in `room` if they must be widened."""
    if kind == FLOAT32:
        return carray(pointer(address + 4 * start), count, np.float32)
    narrow = carray(pointer(address + 2 * start), count, np.uint16)
    for i in range(count):
        wide[i] = np.uint32(narrow[i]) << np.uint32(_HALF)
    return room[:count]


@njit(
    types.void(
        types.int64[:, ::1], types.int64[:, ::1], types.float32[::1], types.int64, types.int64
    ),
    nogil=True,
    cache=True,
)
def write_share(weights, parts, coefficients, thread, threads):
    """Write a thread's share of each of some weights, block by block.

    Args:
        weights: [n, 6] int64, of each: the addresses of its values and of its clean copy, their
            number, how they lie, and which of the parts are its own, from and to.
        parts: [m, 2] int64, the address of each delta, and how its values lie.
        coefficients: [m] float32.
        thread: Which thread this is.
        threads: How many there are.
    """
    total = np.empty(_BLOCK, np.float32)
    bits = total.view(np.uint32)
    room = np.empty(_BLOCK, np.float32)
    wide = room.view(np.uint32)
    for w in range(len(weights)):
        values, clean, size, kind, first, last = weights[w]
        share = (size + threads - 1) // threads
        end = min(size, (thread + 1) * share)
        for start in range(thread * share, end, _BLOCK):
            count = min(_BLOCK, end - start)

            # The sum, in float32.
            base = _load(clean, kind, start, count, wide, room)
            for i in range(count):
                total[i] = base[i]
            for k in range(first, last):
                delta = _load(parts[k, 0], parts[k, 1], start, count, wide, room)
                c = coefficients[k]
                for i in range(count):
                    total[i] += c * delta[i]

            # Rounded once, to the nearest, or the even one of two that are.
            if kind == FLOAT32:
                out = carray(pointer(values + 4 * start), count, np.float32)
                for i in range(count):
                    out[i] = total[i]
            else:
                short = carray(pointer(values + 2 * start), count, np.uint16)
                for i in range(count):
                    odd = (bits[i] >> np.uint32(_HALF)) & np.uint32(1)
                    short[i] = (bits[i] + np.uint32(0x7FFF) + odd) >> np.uint32(_HALF)
