"""The vector code that `loops` calls, as functions that numba can compile.

Two products are written in LLVM's own terms, since what they keep in registers decides their speed:
`shrink`, TILE rows of A by some tokens, and `expand`, some tokens' outputs over all the experts
that they use. All sums are in float32.

Each function takes numba's types and returns its signature and a function that writes its code.
"""

from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_wide = llvmlite.binding.get_host_cpu_features().get("avx512f", False)
LANES = 16 if _wide else 8
"""The float32 in a register."""
TILE = 4
"""The rows of A, and the tokens, that share what they load."""
CHUNK = 8 * LANES
"""The outputs that one token gathers in registers."""
PART = CHUNK // (2 if _wide else 4)
"""The outputs that TILE tokens gather in registers."""

_FLOAT = ir.FloatType()
_INT = ir.IntType(64)
_INT32 = ir.IntType(32)
_POINTER = ir.IntType(8).as_pointer()
_FLOATS = ir.VectorType(_FLOAT, LANES)
_FULL = ir.Constant(ir.VectorType(ir.IntType(1), LANES), [1] * LANES)
_ALIGN = ir.Constant(_INT32, 4)
_ZEROS = ir.Constant(_FLOATS, None)
_SUFFIX = f"v{LANES}f32"


class VectorCode:
    """Writes vector code. Addresses are int64."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def llvm(self, name: str, result: Any, *args: Any, **flags: Any) -> Any:
        """Call an intrinsic of LLVM."""
        function = ir.FunctionType(result, [arg.type for arg in args])
        return self.builder.call(
            cgutils.get_or_insert_function(self.builder.module, function, f"llvm.{name}"),
            args,
            **flags,
        )

    def at(self, address: Any, offset: Any) -> Any:
        """Return the address so many bytes on."""
        return self.builder.add(address, _INT(offset) if isinstance(offset, int) else offset)

    def times(self, value: Any, factor: int) -> Any:
        """Return a multiple of an int64."""
        return self.builder.mul(value, _INT(factor))

    def one(self, address: Any, kind: Any) -> Any:
        """Load one value of a kind."""
        return self.builder.load(self.builder.inttoptr(address, kind.as_pointer()), align=4)

    def factors(self, address: Any, kind: Any) -> Any:
        """Load LANES factors kept as `kind`, as float32."""
        stored = ir.VectorType(ir.HalfType() if kind == types.uint16 else _FLOAT, LANES)
        loaded = self.builder.load(self.builder.inttoptr(address, stored.as_pointer()), align=2)
        return self.builder.fpext(loaded, _FLOATS) if kind == types.uint16 else loaded

    def first(self, count: Any) -> Any:
        """Return a mask of the first `count` lanes."""
        lanes = ir.Constant(ir.VectorType(_INT32, LANES), list(range(LANES)))
        return self.builder.icmp_signed("<", lanes, self.spread(self.builder.trunc(count, _INT32)))

    def load(self, address: Any, mask: Any = _FULL) -> Any:
        """Load those of LANES float32 that a mask names, and zeros for the others."""
        pointer = self.builder.inttoptr(address, _POINTER)
        return self.llvm(f"masked.load.{_SUFFIX}.p0", _FLOATS, pointer, _ALIGN, mask, _ZEROS)

    def store(self, value: Any, address: Any, mask: Any) -> None:
        """Store those of LANES float32 that a mask names."""
        pointer = self.builder.inttoptr(address, _POINTER)
        self.llvm(f"masked.store.{_SUFFIX}.p0", ir.VoidType(), value, pointer, _ALIGN, mask)

    def load_all(self, address: Any) -> Any:
        """Load LANES float32."""
        return self.builder.load(self.builder.inttoptr(address, _FLOATS.as_pointer()), align=4)

    def store_all(self, value: Any, address: Any) -> None:
        """Store LANES float32."""
        where = self.builder.inttoptr(address, _FLOATS.as_pointer())
        self.builder.store(value, where, align=4)

    def sum(self, start: Any = _ZEROS) -> Any:
        """Return the place of a vector that stays in registers."""
        place = cgutils.alloca_once(self.builder, _FLOATS)
        self.builder.store(start, place)
        return place

    def add_product(self, place: Any, left: Any, right: Any) -> None:
        """Add left * right to what is at a place; one of them can be a number."""
        left = self.spread(left) if left.type == _FLOAT else left
        self.builder.store(
            self.llvm(f"fma.{_SUFFIX}", _FLOATS, left, right, self.builder.load(place)), place
        )

    def totals(self, vectors: list[Any]) -> list[Any]:
        """Return the total of each vector, LANES totals to a vector.

        In each round two vectors become one, of groups of lanes that are half as long.
        """
        group = LANES
        while group > 1:
            pairs = (
                zip(vectors[::2], vectors[1::2], strict=True)
                if len(vectors) > 1
                else [(vectors[0], vectors[0])]
            )
            lower = [begin + i for begin in range(0, 2 * LANES, group) for i in range(group // 2)]
            upper = [lane + group // 2 for lane in lower]
            vectors = [
                self.builder.fadd(self.lanes(u, v, lower), self.lanes(u, v, upper))
                for u, v in pairs
            ]
            group //= 2
        return vectors

    def lanes(self, u: Any, v: Any, which: list[int]) -> Any:
        """Return these lanes of two vectors, as if one came after the other."""
        return self.builder.shuffle_vector(
            u, v, ir.Constant(ir.VectorType(_INT32, len(which)), which)
        )

    def spread(self, value: Any, lanes: int = LANES) -> Any:
        """Return a vector of one value."""
        nothing = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
        return self.lanes(
            self.builder.insert_element(nothing, value, _INT32(0)), nothing, [0] * lanes
        )


@intrinsic
def shrink(  # noqa: PLR0913 - numba passes no objects
    typing_context, kind, h, x, coefficient, a, inputs
):
    """Set h[t][r] = coefficient[t] * (x[t] . a[r]) for TILE rows r, and each token t of h.

    Args:
        typing_context: numba's.
        kind: A number of the dtype of a.
        h: The address of each token's h for these rows.
        x: The address of each token's input.
        coefficient: The coefficient of each token.
        a: Address of the rows, each filled up to LANES.
        inputs: How many inputs there are.
    """

    def code(context, builder, _, args):
        emit = VectorCode(builder)
        tokens = range(h.count)
        _, h_of, x_of, c_of, a_at, count = args
        size = (kind.bitwidth // 8) * LANES
        blocks = builder.sdiv(builder.add(count, _INT(LANES - 1)), _INT(LANES))
        sums = [[emit.sum() for _ in range(TILE)] for _ in tokens]

        def add(block, mask):
            rows = [
                emit.factors(
                    emit.at(a_at, emit.times(builder.add(emit.times(blocks, r), block), size)), kind
                )
                for r in range(TILE)
            ]
            for t in tokens:
                of_token = emit.load(
                    emit.at(builder.extract_value(x_of, t), emit.times(block, 4 * LANES)), mask
                )
                for r in range(TILE):
                    emit.add_product(sums[t][r], of_token, rows[r])

        # All inputs, LANES at a time; what the last of them lack is masked.
        last = builder.sub(blocks, _INT(1))
        with cgutils.for_range(builder, last, intp=_INT) as loop:
            add(loop.index, _FULL)
        add(last, emit.first(builder.sub(count, emit.times(last, LANES))))

        # Each sum's lanes become one number.
        totals = emit.totals([builder.load(place) for of_token in sums for place in of_token])
        for t in tokens:
            vector, lane = divmod(t * TILE, LANES)
            mine = emit.lanes(totals[vector], totals[vector], list(range(lane, lane + TILE)))
            where = builder.inttoptr(builder.extract_value(h_of, t), mine.type.as_pointer())
            builder.store(
                builder.fmul(mine, emit.spread(builder.extract_value(c_of, t), TILE)),
                where,
                align=4,
            )
        return context.get_dummy_value()

    return types.void(kind, h, x, coefficient, a, inputs), code


@intrinsic
def expand(  # noqa: PLR0913 - numba passes no objects
    typing_context, kind, y, h, b, pieces, n_pieces, size
):
    """Add to y[t] the sum of h[t][r] * b[r] over the rows r of all pieces, for each token t of y.

    It does so for the outputs that fit into registers: CHUNK for one token, else PART.

    Args:
        typing_context: numba's.
        kind: A number of the dtype of b.
        y: The address of each token's first output.
        h: The address of each token's h.
        b: Address of the chunk, whose rows have CHUNK outputs.
        pieces: Address of n_pieces times the first row, in bytes of b and in bytes of h, and how
            many rows.
        n_pieces: How many pieces there are.
        size: How many outputs there are, from the first one on.
    """

    def code(context, builder, _, args):
        emit = VectorCode(builder)
        tokens = range(y.count)
        _, y_of, h_of, chunk, pieces_at, n, outs = args
        vectors = range((CHUNK if y.count == 1 else PART) // LANES)
        width = kind.bitwidth // 8
        places = [
            [emit.at(builder.extract_value(y_of, t), 4 * v * LANES) for v in vectors]
            for t in tokens
        ]
        masks = [emit.first(builder.sub(outs, _INT(v * LANES))) for v in vectors]

        # Into registers, all pieces' rows, and back.
        sums = [[emit.sum(emit.load(places[t][v], masks[v])) for v in vectors] for t in tokens]
        with cgutils.for_range(builder, n, intp=_INT) as piece:
            at = emit.at(pieces_at, emit.times(piece.index, 3 * 8))
            b_at, h_at, rows = (emit.one(emit.at(at, 8 * i), _INT) for i in range(3))
            with cgutils.for_range(builder, rows, intp=_INT) as row:
                first = emit.at(emit.at(chunk, b_at), emit.times(row.index, CHUNK * width))
                b = [emit.factors(emit.at(first, v * LANES * width), kind) for v in vectors]
                offset = emit.at(h_at, emit.times(row.index, 4))
                for t in tokens:
                    state = emit.one(emit.at(builder.extract_value(h_of, t), offset), _FLOAT)
                    for v in vectors:
                        emit.add_product(sums[t][v], state, b[v])
        for t in tokens:
            for v in vectors:
                emit.store(builder.load(sums[t][v]), places[t][v], masks[v])
        return context.get_dummy_value()

    return types.void(kind, y, h, b, pieces, n_pieces, size), code


@intrinsic
def pointer(typing_context, address):
    """Return an address as a pointer."""

    def code(context, builder, _, args):
        return builder.inttoptr(args[0], _POINTER)

    return types.voidptr(types.int64), code


@intrinsic
def fetch_add(typing_context, address, value):
    """Add to the int64 at an address, atomically. Returns what it was before."""

    def code(context, builder, _, args):
        return builder.atomic_rmw(
            "add", builder.inttoptr(args[0], _INT.as_pointer()), args[1], "seq_cst"
        )

    return types.int64(types.int64, types.int64), code


@intrinsic
def fetch(typing_context, address):
    """Bring the line at an address into the cache, without waiting for it."""

    def code(context, builder, _, args):
        to_read, keep, data = (_INT32(value) for value in (0, 3, 1))
        VectorCode(builder).llvm(
            "prefetch.p0", ir.VoidType(), builder.inttoptr(args[0], _POINTER), to_read, keep, data
        )
        return context.get_dummy_value()

    return types.void(types.int64), code


@intrinsic
def thread_number(typing_context, address):
    """Return the number of the thread, by the function of OpenMP at an address."""

    def code(context, builder, _, args):
        function = ir.FunctionType(_INT32, []).as_pointer()
        return builder.sext(builder.call(builder.inttoptr(args[0], function), []), _INT)

    return types.int64(types.int64), code


@intrinsic
def yield_core(typing_context):
    """Let other threads run on this core: one of them may be ours."""

    def code(context, builder, *_):
        function = ir.FunctionType(_INT32, [])
        builder.call(cgutils.get_or_insert_function(builder.module, function, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), code


@intrinsic
def call_on_all(typing_context, parallel, run, data, threads):
    """Call parallel(run, data, threads, 0), which runs `run(data)` on so many threads."""

    def code(context, builder, _, args):
        function = ir.FunctionType(ir.VoidType(), [_POINTER, _POINTER, _INT32, _INT32]).as_pointer()
        run, data = (builder.inttoptr(arg, _POINTER) for arg in args[1:3])
        builder.call(
            builder.inttoptr(args[0], function),
            [run, data, builder.trunc(args[3], _INT32), _INT32(0)],
        )
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), code
