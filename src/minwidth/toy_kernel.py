"""The toy model's training loop, compiled (the model and what a sweep does with it: ``minwidth.toy``).

What makes a sweep of thousands of models a matter of a minute: rows are the lanes of the vector unit, a tile of 128
rows stays in the first-level cache for the whole step, and the gradient of the decoder is taken in the same pass as its
output. All sums are taken in the order written here and each a b + c is rounded once: processors agree to the last bit.
"""

from inspect import Parameter, Signature

import numpy as np
from jaxtyping import Float
from llvmlite import ir
from numba import njit
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model
from numpy.typing import NDArray

TILE = 128  # rows

# --- vectors for Numba ----------------------------------------------------------------------------------------------
# Numba leaves vectors to LLVM's guesses, which fail for loops like these; so here is a type of LANES float32 numbers.
# It lives in this file because Numba's cache notices a change of the file that holds the compiled function alone.

LANES = 16  # one register with AVX-512, two with AVX2
_INDEX, _VECTOR = ir.IntType(32), ir.VectorType(ir.FloatType(), LANES)


class _Lanes(types.Type):
    def __init__(self):
        super().__init__(name=f"Lanes({LANES})")


_lanes = _Lanes()


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, numba_type):
        super().__init__(manager, numba_type, _VECTOR)


def _instruction(result, *operands):
    """Make a function of Numba's from one that emits it: (builder, *operands) -> LLVM value.

    An operand "array" arrives as the pointer to its first element.
    """

    def wrap(emit):
        def emit_call(context, builder, signature, values):
            kinds = zip(operands, signature.args, values, strict=True)
            values = [
                cgutils.create_struct_proxy(numba_type)(context, builder, value).data if kind == "array" else value
                for kind, numba_type, value in kinds
            ]
            return emit(builder, *values) or context.get_dummy_value()

        def typed(typing_context, *arguments):
            known = [given if kind == "array" else kind for kind, given in zip(operands, arguments, strict=True)]
            return result(*known), emit_call

        names = ["typing_context", *(f"operand{i}" for i in range(len(operands)))]
        typed.__signature__ = Signature([Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names])
        typed.__name__ = emit.__name__
        return intrinsic(typed)

    return wrap


def _splat(builder, scalar):
    blank = ir.Constant(_VECTOR, ir.Undefined)
    first = builder.insert_element(blank, scalar, ir.Constant(_INDEX, 0))
    return builder.shuffle_vector(first, blank, ir.Constant(ir.VectorType(_INDEX, LANES), [0] * LANES))


@_instruction(_lanes)
def _zero(builder):
    return ir.Constant(_VECTOR, [0.0] * LANES)


@_instruction(_lanes, "array", types.int64)
def _load(builder, array, index):
    return builder.load(builder.bitcast(builder.gep(array, [index]), _VECTOR.as_pointer()), align=4)


@_instruction(types.void, "array", types.int64, _lanes)
def _store(builder, array, index, vector):
    builder.store(vector, builder.bitcast(builder.gep(array, [index]), _VECTOR.as_pointer()), align=4)


@_instruction(_lanes, "array", types.int64)
def _spread(builder, array, index):
    """One element in every lane."""
    return _splat(builder, builder.load(builder.gep(array, [index])))


@_instruction(_lanes, _lanes, _lanes, _lanes)
def _fma(builder, a, b, c):
    """a b + c, rounded once on every processor (slowly where it has no such instruction)."""
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32"), [a, b, c])


_lanewise = _instruction(_lanes, _lanes, _lanes)
_add, _sub, _mul = _lanewise(ir.IRBuilder.fadd), _lanewise(ir.IRBuilder.fsub), _lanewise(ir.IRBuilder.fmul)


@_instruction(_lanes, _lanes, _lanes)
def _where_positive(builder, a, b):
    """b where a > 0, else 0."""
    zero = ir.Constant(_VECTOR, [0.0] * LANES)
    return builder.select(builder.fcmp_ordered(">", a, zero), b, zero)


@_instruction(types.float32, _lanes)
def _total(builder, vector):
    """Sum over the lanes, the upper half added to the lower until one is left."""
    for half in (8, 4, 2, 1):
        lower, upper = (
            builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(_INDEX, half), list(range(at, at + half))))
            for at in (0, half)
        )
        vector = builder.fadd(lower, upper)
    return builder.extract_element(vector, ir.Constant(_INDEX, 0))


# --- the layout -----------------------------------------------------------------------------------------------------


def aligned(size: int) -> NDArray[np.float32]:
    """Zeros that start on a cache line; a vector across two lines costs twice."""
    raw = np.zeros(size + 16, dtype=np.float32)
    start = -raw.ctypes.data // 4 % 16
    return raw[start : start + size]


def padded(size: int, multiple: int) -> int:
    """The next multiple."""
    return -(-size // multiple) * multiple


def by_feature(values: NDArray) -> NDArray[np.float32]:
    """A number for each feature, aligned and padded with zeros."""
    packed = aligned(padded(values.size, 4))
    packed[: values.size] = values
    return packed


def pack(rows: Float[NDArray, "rows n"]) -> Float[NDArray[np.float32], "values"]:
    """Rows as tiles [tiles, n, TILE], n padded."""
    count, n = rows.shape
    packed = aligned(count * padded(n, 4))
    packed.reshape(count // TILE, -1, TILE)[:, :n] = rows.reshape(-1, TILE, n).transpose(0, 2, 1)
    return packed


def workspace(n: int, width: int) -> NDArray[np.float32]:
    """Room for what one step computes on the way."""
    return aligned((2 * padded(width, 2) + 4) * TILE + 2 * padded(n, 4))


# --- the compiled loop ----------------------------------------------------------------------------------------------
# Arrays are flat float32. ``parameters`` and ``gradient`` are [width + 1, n], the bias last; rows of data are
# [tiles, n, TILE]. n is a multiple of 4 and width of 2: what is padded has zero weight, data and importance, so its
# gradients are exactly 0 and it stays 0. Products are taken for 2 hidden units x 4 features at a time, in registers.

# Without Numba's fastmath, which would let each processor sum in an order of its own.

_compiled = njit(cache=True, nogil=True, error_model="numpy")


@_compiled
def loss_and_gradient(
    parameters, n, width, importance, zero_target, zero_share, inputs, targets, start, tiles, scratch, gradient
):
    """The loss over ``tiles`` tiles from number ``start`` on and over the all-zero row; fills ``gradient``."""
    bias = width * n
    hidden, hidden_gradient, output_gradient = 0, width * TILE, 2 * width * TILE
    squares = output_gradient + 4 * TILE  # by feature; then the weight of a row's error
    slope = squares + n
    share = (1 - zero_share) / (tiles * TILE)
    for i in range(n):
        scratch[squares + i] = 0
        scratch[slope + i] = 2 * importance[i] * share
    for i in range((width + 1) * n):
        gradient[i] = 0
    for tile in range(start, start + tiles):
        x = tile * n * TILE

        for k in range(0, width, 2):  # hidden = W x
            u, v = k * n, k * n + n
            for r in range(0, TILE, 2 * LANES):
                a = b = c = d = _zero()
                for i in range(n):
                    left, right = _load(inputs, x + i * TILE + r), _load(inputs, x + i * TILE + r + LANES)
                    wu, wv = _spread(parameters, u + i), _spread(parameters, v + i)
                    a, b, c, d = _fma(wu, left, a), _fma(wu, right, b), _fma(wv, left, c), _fma(wv, right, d)
                at = hidden + k * TILE + r
                _store(scratch, at, a)
                _store(scratch, at + LANES, b)
                _store(scratch, at + TILE, c)
                _store(scratch, at + TILE + LANES, d)
        for r in range(hidden_gradient, output_gradient, LANES):
            _store(scratch, r, _zero())

        for i in range(0, n, 4):
            # The output of four features, its error e and the gradient where the ReLU is open.
            b0, b1 = _spread(parameters, bias + i), _spread(parameters, bias + i + 1)
            b2, b3 = _spread(parameters, bias + i + 2), _spread(parameters, bias + i + 3)
            c0, c1 = _spread(scratch, slope + i), _spread(scratch, slope + i + 1)
            c2, c3 = _spread(scratch, slope + i + 2), _spread(scratch, slope + i + 3)
            s0 = s1 = s2 = s3 = q0 = q1 = q2 = q3 = _zero()
            for r in range(0, TILE, LANES):
                y0, y1, y2, y3 = b0, b1, b2, b3
                for k in range(width):
                    h, w = _load(scratch, hidden + k * TILE + r), k * n + i
                    y0, y1 = _fma(_spread(parameters, w), h, y0), _fma(_spread(parameters, w + 1), h, y1)
                    y2, y3 = _fma(_spread(parameters, w + 2), h, y2), _fma(_spread(parameters, w + 3), h, y3)
                t = x + i * TILE + r
                e0, e1 = _where_positive(y0, y0), _where_positive(y1, y1)
                e2, e3 = _where_positive(y2, y2), _where_positive(y3, y3)
                e0, e1 = _sub(e0, _load(targets, t)), _sub(e1, _load(targets, t + TILE))
                e2, e3 = _sub(e2, _load(targets, t + 2 * TILE)), _sub(e3, _load(targets, t + 3 * TILE))
                q0, q1, q2, q3 = _fma(e0, e0, q0), _fma(e1, e1, q1), _fma(e2, e2, q2), _fma(e3, e3, q3)
                g0, g1 = _where_positive(y0, _mul(c0, e0)), _where_positive(y1, _mul(c1, e1))
                g2, g3 = _where_positive(y2, _mul(c2, e2)), _where_positive(y3, _mul(c3, e3))
                s0, s1, s2, s3 = _add(s0, g0), _add(s1, g1), _add(s2, g2), _add(s3, g3)
                _store(scratch, output_gradient + r, g0)
                _store(scratch, output_gradient + TILE + r, g1)
                _store(scratch, output_gradient + 2 * TILE + r, g2)
                _store(scratch, output_gradient + 3 * TILE + r, g3)
            _add_totals(gradient, bias + i, s0, s1, s2, s3)
            _add_totals(scratch, squares + i, q0, q1, q2, q3)

            # Into the decoder (g h^T) and down to the hidden units (W g).
            for k in range(0, width, 2):
                u, v = k * n + i, k * n + n + i
                w0, w1 = _spread(parameters, u), _spread(parameters, u + 1)
                w2, w3 = _spread(parameters, u + 2), _spread(parameters, u + 3)
                z0, z1 = _spread(parameters, v), _spread(parameters, v + 1)
                z2, z3 = _spread(parameters, v + 2), _spread(parameters, v + 3)
                a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = _zero()
                for r in range(0, TILE, LANES):
                    h, j = hidden + k * TILE + r, hidden_gradient + k * TILE + r
                    hu, hv = _load(scratch, h), _load(scratch, h + TILE)
                    g0, g1 = _load(scratch, output_gradient + r), _load(scratch, output_gradient + TILE + r)
                    g2 = _load(scratch, output_gradient + 2 * TILE + r)
                    g3 = _load(scratch, output_gradient + 3 * TILE + r)
                    a0, a1, a2, a3 = _fma(hu, g0, a0), _fma(hu, g1, a1), _fma(hu, g2, a2), _fma(hu, g3, a3)
                    b0, b1, b2, b3 = _fma(hv, g0, b0), _fma(hv, g1, b1), _fma(hv, g2, b2), _fma(hv, g3, b3)
                    ju, jv = _load(scratch, j), _load(scratch, j + TILE)
                    _store(scratch, j, _fma(w0, g0, _fma(w1, g1, _fma(w2, g2, _fma(w3, g3, ju)))))
                    _store(scratch, j + TILE, _fma(z0, g0, _fma(z1, g1, _fma(z2, g2, _fma(z3, g3, jv)))))
                _add_totals(gradient, u, a0, a1, a2, a3)
                _add_totals(gradient, v, b0, b1, b2, b3)

        for k in range(0, width, 2):  # into the encoder: (W g) x^T
            for i in range(0, n, 4):
                a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = _zero()
                for r in range(0, TILE, LANES):
                    j, t = hidden_gradient + k * TILE + r, x + i * TILE + r
                    hu, hv = _load(scratch, j), _load(scratch, j + TILE)
                    g0, g1 = _load(inputs, t), _load(inputs, t + TILE)
                    g2, g3 = _load(inputs, t + 2 * TILE), _load(inputs, t + 3 * TILE)
                    a0, a1, a2, a3 = _fma(hu, g0, a0), _fma(hu, g1, a1), _fma(hu, g2, a2), _fma(hu, g3, a3)
                    b0, b1, b2, b3 = _fma(hv, g0, b0), _fma(hv, g1, b1), _fma(hv, g2, b2), _fma(hv, g3, b3)
                _add_totals(gradient, k * n + i, a0, a1, a2, a3)
                _add_totals(gradient, k * n + n + i, b0, b1, b2, b3)

    loss = 0.0
    for i in range(n):  # the row where nothing is active: h = 0 and x_hat = ReLU(b)
        error = max(parameters[bias + i], np.float32(0)) - zero_target[i]
        if parameters[bias + i] > 0:
            gradient[bias + i] += 2 * importance[i] * zero_share * error
        loss += importance[i] * (zero_share * error * error + share * scratch[squares + i])
    return loss


@_compiled
def _add_totals(gradient, at, a, b, c, d):
    gradient[at] += _total(a)
    gradient[at + 1] += _total(b)
    gradient[at + 2] += _total(c)
    gradient[at + 3] += _total(d)


@_compiled
def train(
    parameters, n, width, importance, zero_target, zero_share, inputs, targets, order, tiles, rates, scratch,
    adam, until, curve, snapshots,
):  # fmt: skip
    """Adam over the batches of ``order``; ``curve`` gets the mean loss of each window of steps that ends at ``until``.

    ``adam`` holds gradient, first and second moment. ``snapshots`` gets the parameters at each window's end if it has
    room for them.
    """
    size = (width + 1) * n
    gradient, first, second = adam[:size], adam[size : 2 * size], adam[2 * size :]
    window, started = 0, 0
    slow, fast = 1.0, 1.0
    for step in range(order.size):
        loss = loss_and_gradient(
            parameters, n, width, importance, zero_target, zero_share, inputs, targets, order[step], tiles, scratch,
            gradient,
        )  # fmt: skip
        slow, fast = slow * 0.999, fast * 0.9
        rate, scale = np.float32(rates[step] / (1 - fast)), np.float32(1 / (1 - slow))
        for i in range(size):
            slope = gradient[i]
            first[i] = np.float32(0.9) * first[i] + np.float32(0.1) * slope
            second[i] = np.float32(0.999) * second[i] + np.float32(0.001) * slope * slope
            parameters[i] -= rate * first[i] / (np.sqrt(second[i] * scale) + np.float32(1e-8))
        curve[window] += loss
        if step + 1 == until[window]:
            curve[window] /= step + 1 - started
            if snapshots.size:
                for i in range(size):
                    snapshots[window * size + i] = parameters[i]
            started, window = step + 1, window + 1


@_compiled
def run(parameters, n, width, importance, inputs, targets, outputs, hidden):
    """Mean loss over all rows and its variance over rows; ``outputs`` gets the reconstructions if it has room."""
    bias, total, squared = width * n, 0.0, 0.0
    tiles = inputs.size // (n * TILE)
    for tile in range(tiles):
        sums, squares = _zero(), _zero()
        for r in range(0, TILE, LANES):
            x = tile * n * TILE + r
            for k in range(0, width, 2):
                a = b = _zero()
                for i in range(n):
                    value = _load(inputs, x + i * TILE)
                    a = _fma(_spread(parameters, k * n + i), value, a)
                    b = _fma(_spread(parameters, k * n + n + i), value, b)
                _store(hidden, k * LANES, a)
                _store(hidden, k * LANES + LANES, b)
            row = _zero()
            for i in range(0, n, 2):
                y, z = _spread(parameters, bias + i), _spread(parameters, bias + i + 1)
                for k in range(width):
                    h = _load(hidden, k * LANES)
                    y, z = _fma(_spread(parameters, k * n + i), h, y), _fma(_spread(parameters, k * n + i + 1), h, z)
                y, z, t = _where_positive(y, y), _where_positive(z, z), x + i * TILE
                if outputs.size:
                    _store(outputs, t, y)
                    _store(outputs, t + TILE, z)
                y, z = _sub(y, _load(targets, t)), _sub(z, _load(targets, t + TILE))
                row = _fma(_mul(_spread(importance, i), y), y, row)
                row = _fma(_mul(_spread(importance, i + 1), z), z, row)
            sums, squares = _add(sums, row), _fma(row, row, squares)
        total += _total(sums)
        squared += _total(squares)
    rows = tiles * TILE
    mean = total / rows
    return mean, squared / rows - mean * mean
