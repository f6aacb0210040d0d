"""Eight float32 side by side as one value of a kernel: a register of AVX2, two of SSE or NEON.

Left to the compiler, a loop over pixels keeps nothing in registers from one Gaussian to the next decision about it, and
cannot skip what a mask says. Here ``+ - * /``, comparisons and ``&`` work on :data:`floats` and :data:`mask`, a float32
beside a vector standing for eight of it; products and sums are fused where the processor can. None of it leaves a
kernel: arrays are what goes in and out.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

from psd_gs.kernels import part

LANES = 8
_FLAGS = ("contract", "nsz", "arcp")


class _Vector(types.Type):
    def __init__(self, name: str, element: ir.Type) -> None:
        super().__init__(name)
        self.ir = ir.VectorType(element, LANES)


floats, mask = _Vector("floats", ir.FloatType()), _Vector("mask", ir.IntType(1))


@register_model(_Vector)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: _Vector) -> None:
        super().__init__(manager, vector, vector.ir)


def _spread(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """A scalar in every lane; a vector as it is."""
    if isinstance(value.type, ir.VectorType):
        return value
    one = builder.insert_element(ir.Constant(floats.ir, ir.Undefined), value, ir.IntType(32)(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


def _operator(function: Any, operand: _Vector, result: _Vector, emit: Callable[..., ir.Value]) -> None:
    """Let ``function`` take vectors, of which a float32 may be one."""
    scalar = types.float32 if operand is floats else operand
    pairs = {(operand, operand), (operand, scalar), (scalar, operand)}

    @type_callable(function)
    def typed(context):
        return lambda a, b: result if (a, b) in pairs else None

    def lowered(context, builder, signature, arguments):
        return emit(builder, *(_spread(builder, argument) for argument in arguments))

    for pair in pairs:
        lower_builtin(function, *pair)(lowered)


for _function, _name in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _operator(_function, floats, floats, lambda b, x, y, name=_name: getattr(b, name)(x, y, flags=_FLAGS))
for _function, _name in ((operator.le, "<="), (operator.lt, "<"), (operator.gt, ">")):
    _operator(_function, floats, mask, lambda b, x, y, name=_name: b.fcmp_ordered(name, x, y))
_operator(operator.and_, mask, mask, lambda b, x, y: b.and_(x, y))


def _call(builder: ir.IRBuilder, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
    """One of LLVM's own functions."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, arguments)


def _address(context: Any, builder: ir.IRBuilder, array: types.Array, value: ir.Value, index: ir.Value) -> ir.Value:
    return builder.gep(context.make_array(array)(context, builder, value).data, [index])


@intrinsic
def spread(typing, value):
    """A float32 in every lane."""
    return floats(types.float32), lambda context, builder, signature, args: _spread(builder, args[0])


@intrinsic
def held(typing, value):
    """:func:`spread` of a constant that a loop shall find in a register or on the stack.

    A constant that the compiler knows is read anew each time, by numba's code model through an address of 64 bits.
    """

    def emit(context, builder, signature, args):
        i32 = ir.IntType(32)
        unknown = builder.asm(ir.FunctionType(i32, [i32]), "", "=r,0", [builder.bitcast(args[0], i32)], False)
        return _spread(builder, builder.bitcast(unknown, ir.FloatType()))

    return floats(types.float32), emit


@intrinsic
def load(typing, array, index):
    """Elements ``index`` to ``index + 7`` of a contiguous float32 array of one dimension."""

    def emit(context, builder, signature, args):
        address = _address(context, builder, signature.args[0], *args)
        return builder.load(builder.bitcast(address, floats.ir.as_pointer()), align=4)

    return floats(array, types.uint64), emit


@intrinsic
def store(typing, array, index, vector):
    """Overwrite what :func:`load` reads."""

    def emit(context, builder, signature, args):
        address = _address(context, builder, signature.args[0], *args[:2])
        builder.store(args[2], builder.bitcast(address, floats.ir.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.none(array, types.uint64, floats), emit


@intrinsic
def _fetch(typing, array, index):
    def emit(context, builder, signature, args):
        i32, anything = ir.IntType(32), ir.IntType(8).as_pointer()
        address = builder.bitcast(_address(context, builder, signature.args[0], *args), anything)
        _call(builder, "llvm.prefetch.p0", ir.VoidType(), address, i32(0), i32(3), i32(1))
        return context.get_dummy_value()

    return types.none(array, types.uint64), emit


@part(error_model="numpy", inline="always")
def fetch(row):
    """Let the processor bring a row of at most 16 floats near, for a use to come."""
    _fetch(row, 0)
    _fetch(row, len(row) - 1)


@intrinsic
def select(typing, where, then, otherwise):
    """Lanes of ``then`` where a mask holds, else of ``otherwise``; each a vector or a float32."""

    def emit(context, builder, signature, args):
        return builder.select(args[0], _spread(builder, args[1]), _spread(builder, args[2]))

    return floats(mask, then, otherwise), emit


@intrinsic
def smaller(typing, one, other):
    """The smaller of two vectors, lane by lane."""

    def emit(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered("<", *args), *args)

    return floats(floats, floats), emit


@intrinsic
def root(typing, vector):
    """Square roots."""
    return floats(floats), lambda context, builder, signature, args: _call(
        builder, "llvm.sqrt.v8f32", floats.ir, args[0]
    )


@intrinsic
def size(typing, vector):
    """Absolute values."""
    return floats(floats), lambda context, builder, signature, args: _call(
        builder, "llvm.fabs.v8f32", floats.ir, args[0]
    )


@intrinsic
def bits(typing, where):
    """A mask as a number: bit i is lane i."""

    def emit(context, builder, signature, args):
        return builder.zext(builder.bitcast(args[0], ir.IntType(LANES)), ir.IntType(64))

    return types.uint64(mask), emit


@intrinsic
def lowest(typing, number):
    """Place of the lowest bit of a number that is not zero."""

    def emit(context, builder, signature, args):
        return _call(builder, "llvm.cttz.i64", ir.IntType(64), args[0], ir.IntType(1)(1))

    return types.uint64(types.uint64), emit


@intrinsic
def sums(typing, a, b, c, d, e, f, g, h):
    """The sums over the lanes of eight vectors, as the lanes of one."""

    def emit(context, builder, signature, args):
        vectors, places = list(args), range(LANES)
        for step in (1, 2, 4):  # neighbours, pairs, halves; vectors 2 i and 2 i + 1 share the lanes of one
            one = [i if not i & step else i - step + LANES for i in places]
            orders = [ir.Constant(ir.VectorType(ir.IntType(32), LANES), [i + more for i in one]) for more in (0, step)]
            vectors = [
                builder.fadd(*(builder.shuffle_vector(x, y, order) for order in orders), flags=_FLAGS)
                for x, y in zip(vectors[::2], vectors[1::2], strict=True)
            ]
        return vectors[0]

    return floats(*[floats] * LANES), emit
