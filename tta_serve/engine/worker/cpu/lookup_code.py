"""The vector code of `lookup_loops`: sums of signed inputs, looked up four inputs at a time.

Of four inputs a token has 16 sums with signs, x_0 +- x_1 +- ..., which one or two registers hold.
Four bits of an output say which of them it takes, so that one instruction looks up four inputs of
LANES outputs, and bits become numbers nowhere. All sums are in float32.

Each function takes numba's types and returns its signature and a function that writes its code.
"""

from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tta_serve.engine.worker.cpu.vector_code import LANES, VectorCode

GROUP = 32
"""The inputs whose signs are one int32 of an output."""
ENTRIES = 16
"""The sums of four inputs."""
VECTORS = 4 if LANES == 16 else 2
"""How many vectors of outputs a block has."""
BLOCK = VECTORS * LANES
"""The outputs of a block."""

_FEATURES = llvmlite.binding.get_host_cpu_features()
_STEPS = GROUP // 4
_TABLE_BYTES = 4 * ENTRIES
_FLOAT = ir.FloatType()
_INT = ir.IntType(64)
_INT32 = ir.IntType(32)
_FLOATS = ir.VectorType(_FLOAT, LANES)
_INTS = ir.VectorType(_INT32, LANES)


@intrinsic
def make_tables(typing_context, tables, x, inputs, quads):
    """Write the 16 sums of each four inputs of a token.

    Sum number i has input j with a plus where bit j of i is 1, and with a minus where it is 0.

    Args:
        typing_context: numba's.
        tables: Address of [quads, ENTRIES] float32.
        x: Address of the token's input.
        inputs: How many inputs there are.
        quads: How many fours of inputs there are; inputs that are missing are 0.
    """

    def code(context, builder, _, args):
        emit = VectorCode(builder)
        tables_at, x_at, count, total = args
        full = builder.sdiv(count, _INT(4))

        def write(quad, load):
            values = [load(builder.add(emit.times(quad, 4), _INT(j))) for j in range(4)]
            for v in range(ENTRIES // LANES):
                place = emit.sum()
                for j, value in enumerate(values):
                    lanes = range(v * LANES, (v + 1) * LANES)
                    signs = [1.0 if lane >> j & 1 else -1.0 for lane in lanes]
                    emit.add_product(place, value, ir.Constant(_FLOATS, signs))
                where = emit.at(emit.at(tables_at, emit.times(quad, _TABLE_BYTES)), 4 * v * LANES)
                emit.store_all(builder.load(place), where)

        def inside(index):
            return emit.one(emit.at(x_at, emit.times(index, 4)), _FLOAT)

        def at_end(index):
            there = builder.icmp_signed("<", index, count)
            value = inside(builder.select(there, index, _INT(0)))
            return builder.select(there, value, _FLOAT(0.0))

        with cgutils.for_range(builder, full, intp=_INT) as loop:
            write(loop.index, inside)
        with cgutils.for_range_slice(builder, full, total, _INT(1), intp=_INT) as (quad, _):
            write(quad, at_end)
        return context.get_dummy_value()

    return types.void(tables, x, inputs, quads), code


@intrinsic
def add_signed(  # noqa: PLR0913 - numba passes no objects
    typing_context, y, tables, scale, words, groups, size
):
    """Add scale[t] * (S x[t]) to the outputs of a block, for each token t of y.

    Args:
        typing_context: numba's.
        y: The address of each token's first output of the block.
        tables: The address of each token's tables.
        scale: What each token's sum is multiplied by.
        words: Address of the block's signs, [groups, BLOCK] int32.
        groups: How many GROUPs of inputs there are.
        size: How many outputs there are, from the first one on.
    """

    def code(context, builder, _, args):
        emit = VectorCode(builder)
        tokens, vectors = range(y.count), range(VECTORS)
        y_of, tables_of, scale_of, words_at, n, outs = args
        sums = [[emit.sum() for _ in vectors] for _ in tokens]

        # Into registers, all inputs.
        with cgutils.for_range(builder, n, intp=_INT) as group:
            first = emit.at(words_at, emit.times(group.index, 4 * BLOCK))
            bits = [_load_bits(builder, emit.at(first, 4 * v * LANES)) for v in vectors]
            offset = emit.times(group.index, _STEPS * _TABLE_BYTES)
            for step in range(_STEPS):
                shift = ir.Constant(_INTS, [4 * step] * LANES)
                which = [builder.lshr(word, shift) if step else word for word in bits]
                for t in tokens:
                    table = emit.at(builder.extract_value(tables_of, t), offset)
                    look_up = _load_table(emit, emit.at(table, step * _TABLE_BYTES))
                    for v in vectors:
                        place = sums[t][v]
                        builder.store(builder.fadd(builder.load(place), look_up(which[v])), place)

        # Out of them.
        for t in tokens:
            for v in vectors:
                where = emit.at(builder.extract_value(y_of, t), 4 * v * LANES)
                mask = emit.first(builder.sub(outs, _INT(v * LANES)))
                total = emit.sum(emit.load(where, mask))
                emit.add_product(
                    total, builder.extract_value(scale_of, t), builder.load(sums[t][v])
                )
                emit.store(builder.load(total), where, mask)
        return context.get_dummy_value()

    return types.void(y, tables, scale, words, groups, size), code


def _load_bits(builder: Any, address: Any) -> Any:
    return builder.load(builder.inttoptr(address, _INTS.as_pointer()), align=4)


def _load_table(emit: VectorCode, address: Any) -> Any:
    """Load a table; returns what writes the code of a look-up by the low four bits of lanes."""
    builder = emit.builder
    parts = [emit.load_all(emit.at(address, 4 * v * LANES)) for v in range(ENTRIES // LANES)]
    if LANES == ENTRIES:
        return lambda which: emit.llvm("x86.avx512.permvar.sf.512", _FLOATS, parts[0], which)
    if _FEATURES.get("avx2", False):

        def look_up_halves(which: Any) -> Any:
            low, high = (emit.llvm("x86.avx2.permps", _FLOATS, part, which) for part in parts)
            upper = builder.and_(which, ir.Constant(_INTS, [8] * LANES))
            in_high = builder.icmp_unsigned("!=", upper, ir.Constant(_INTS, None))
            return builder.select(in_high, high, low)

        return look_up_halves

    def look_up_each(which: Any) -> Any:
        found: Any = ir.Constant(_FLOATS, None)
        for lane in range(LANES):
            index = builder.and_(builder.extract_element(which, _INT32(lane)), _INT32(15))
            where = emit.at(address, emit.times(builder.zext(index, _INT), 4))
            found = builder.insert_element(found, emit.one(where, _FLOAT), _INT32(lane))
        return found

    return look_up_each
