"""How compiled loops share their work among the threads of torch's own OpenMP."""

import ctypes
from typing import Any

import torch
from numba import carray, njit

from tta_serve.engine.worker.cpu.vector_code import fetch, fetch_add, pointer, yield_core

WINDOW = 16
"""The tokens whose inputs and outputs stay in the cache while all experts add to them."""
ENOUGH = 4
"""With so many windows for each thread, threads take whole ones."""
SPINS = 1000
"""How often a waiting thread looks at what the others have done before it gives up its core."""
APART = 16
"""The int64 between what threads write: two lines of a cache, which often come in pairs."""

OPTIONS: dict[str, Any] = {"error_model": "numpy"}
"""How numba compiles the loops."""
INLINED: dict[str, Any] = {"inline": "always", **OPTIONS}
"""How it compiles what they call for a few instructions."""


@njit(**INLINED)
def array_at(address, shape, dtype):
    """Return the C-contiguous array at an address."""
    return carray(pointer(address), shape, dtype)


@njit(**INLINED)
def fetch_all(address, size):
    """Bring so many bytes into the cache, without waiting for them."""
    for offset in range(0, size, 64):
        fetch(address + offset)


@njit(**INLINED)
def share_of(thread, threads, items):
    """Return the first item of a thread's share, and the one after the last."""
    return items * thread // threads, items * (thread + 1) // threads


@njit(**OPTIONS)
def wait_for(counter, total):
    """Wait until the counter at an address has come so far."""
    turns = 0
    while fetch_add(counter, 0) < total:
        turns += 1
        if turns > SPINS:
            yield_core()


def find_openmp() -> tuple[int, int]:
    """Return the addresses of `omp_get_thread_num` and of `GOMP_parallel`.

    The latter every OpenMP offers to programs that GCC compiled, of which torch is one. They are
    found as torch finds them, once they are there.
    """
    assert torch.get_num_threads()
    openmp = ctypes.CDLL(None)
    functions = openmp.omp_get_thread_num, openmp.GOMP_parallel
    number, parallel = (ctypes.cast(f, ctypes.c_void_p).value or 0 for f in functions)
    return number, parallel
