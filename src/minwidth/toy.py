"""The toy model of superposition (paper section 4; Elhage et al. 2022), trained by the thousand in one compiled loop.

x in R^n is sparse (each feature is 0 with probability alpha), h = W x in R^d, x_hat = ReLU(W^T h + b), and the loss is
sum_i I_i (x_i - x_hat_i)^2. What makes a sweep of thousands of models a matter of a minute:

- **Only rows with an active feature are drawn**; the all-zero row is added in closed form,
  loss = alpha^n sum_i I_i (ReLU(b_i) - t_i)^2 + (1 - alpha^n) E[loss | x not 0], which is unbiased and has less noise.
- **A pool of rows is drawn once** and passed over in a fresh order each epoch: no random numbers in the loop.
- **Rows are the lanes** of the vector unit. A tile of 128 rows stays in the first-level cache for the whole step, and
  the gradient of the decoder is taken in the same pass as its output.
- One model is one thread's work from start to end, so its numbers do not depend on how many threads there are.

Floors are measured on a fixed set of fresh rows that no model was trained on.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from inspect import Parameter, Signature
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from llvmlite import ir
from numba import njit
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model
from numpy.typing import NDArray
from tqdm.auto import tqdm

from minwidth.capacity import zipf

TILE = 128  # rows
POOL_ROWS = 65_536  # with an active feature, to train on; shared by all models of one (n, alpha)
EVALUATION_ROWS = 131_072  # with an active feature, to measure floors on
INITIAL_RATE, FINAL_RATE = 1e-2, 1e-5  # of Adam, half a cosine
CHECKPOINTS = 40  # of a training curve, evenly spaced in log steps
TRAINING, MEASURING, MODEL = range(3)  # streams of random numbers that never meet

Activation = Literal["uniform", "fixed"]
Importance = Sequence[float] | NDArray[np.float64] | Callable[[int], NDArray[np.float64]]

# --- vectors for Numba ----------------------------------------------------------------------------------------------
# Numba leaves vectors to LLVM's guesses, which fail for loops like these; so here is a type of LANES float32 numbers.
# It lives in this file because Numba's cache notices a change of the file that holds the compiled function alone.

LANES = 16  # one register with AVX-512, two with AVX2: the same on all, so that sums are taken in the same order
_SCALAR, _INDEX, _VECTOR = ir.FloatType(), ir.IntType(32), ir.VectorType(ir.FloatType(), LANES)


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
    """a b + c."""
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{LANES}f32"), [a, b, c])


@_instruction(_lanes, _lanes, _lanes)
def _add(builder, a, b):
    return builder.fadd(a, b)


@_instruction(_lanes, _lanes, _lanes)
def _sub(builder, a, b):
    return builder.fsub(a, b)


@_instruction(_lanes, _lanes, _lanes)
def _mul(builder, a, b):
    return builder.fmul(a, b)


@_instruction(_lanes, _lanes, _lanes)
def _where_positive(builder, a, b):
    """b where a > 0, else 0."""
    zero = ir.Constant(_VECTOR, [0.0] * LANES)
    return builder.select(builder.fcmp_ordered(">", a, zero), b, zero)


@_instruction(types.float32, _lanes)
def _total(builder, vector):
    """Sum over the lanes."""
    kind = ir.FunctionType(_SCALAR, [_SCALAR, _VECTOR])
    reduce = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{LANES}f32")
    return builder.call(reduce, [ir.Constant(_SCALAR, 0.0), vector], fastmath=("reassoc",))


# --- the compiled loop ----------------------------------------------------------------------------------------------
# Arrays are flat float32. ``parameters`` and ``gradient`` are [width + 1, n], the bias last; rows of data are
# [tiles, n, TILE]. n is a multiple of 4 and width of 2: what is padded has zero weight, data and importance, so its
# gradients are exactly 0 and it stays 0. Products are taken for 2 hidden units x 4 features at a time, in registers.

_compiled = njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp"})


@_compiled
def _loss_and_gradient(
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
            gradient[bias + i] += _total(s0)
            gradient[bias + i + 1] += _total(s1)
            gradient[bias + i + 2] += _total(s2)
            gradient[bias + i + 3] += _total(s3)
            scratch[squares + i] += _total(q0)
            scratch[squares + i + 1] += _total(q1)
            scratch[squares + i + 2] += _total(q2)
            scratch[squares + i + 3] += _total(q3)

            # Into the decoder (g h^T) and down to the hidden units (W g).
            for k in range(0, width, 2):
                u, v = k * n + i, k * n + n + i
                w0, w1, w2, w3 = (
                    _spread(parameters, u), _spread(parameters, u + 1),
                    _spread(parameters, u + 2), _spread(parameters, u + 3),
                )  # fmt: skip
                z0, z1, z2, z3 = (
                    _spread(parameters, v), _spread(parameters, v + 1),
                    _spread(parameters, v + 2), _spread(parameters, v + 3),
                )  # fmt: skip
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
def _train(
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
        loss = _loss_and_gradient(
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
def _run(parameters, n, width, importance, inputs, targets, outputs, hidden):
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


# --- data -----------------------------------------------------------------------------------------------------------


class Rows(NamedTuple):
    """Rows to train or measure on, in the layout of the compiled loop."""

    inputs: Float[NDArray[np.float32], "values"]  # [tiles, n, TILE], each row with an active feature
    targets: Float[NDArray[np.float32], "values"]
    zero_target: Float[NDArray[np.float32], "n"]  # what the all-zero row should give
    zero_share: float  # its probability, alpha^n


def _aligned(size: int) -> NDArray[np.float32]:
    """Zeros that start on a cache line; a vector across two lines costs twice."""
    raw = np.zeros(size + 16, dtype=np.float32)
    start = -raw.ctypes.data // 4 % 16
    return raw[start : start + size]


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _pack(rows: Float[NDArray, "rows n"]) -> Float[NDArray[np.float32], "values"]:
    """Rows as tiles, feature-major, n padded."""
    count, n = rows.shape
    packed = _aligned(count * _padded(n, 4))
    packed.reshape(count // TILE, -1, TILE)[:, :n] = rows.reshape(-1, TILE, n).transpose(0, 2, 1)
    return packed


def draw_rows(
    n: int, alpha: float, rows: int, rng: np.random.Generator, activation: Activation = "uniform"
) -> Float[NDArray[np.float32], "rows n"]:
    """Rows of the toy distribution given that at least one feature is active.

    The first active feature has a truncated geometric distribution; those after it are active independently. It is
    drawn by strata, one row of each tile of 128 from each 1/128 of its distribution, so that every tile holds the right
    share of rows that begin with each feature: the mean over tiles is unbiased and less noisy.

    Args:
        activation: active features are uniform on [0, 1], or 1 (``fixed``).
    """
    within = (np.arange(rows) % TILE + rng.random(rows)) / TILE
    first = np.floor(np.log1p(-within * -np.expm1(n * np.log(alpha))) / np.log(alpha)).clip(0, n - 1).astype(int)
    feature = np.arange(n)
    active = rng.random((rows, n), dtype=np.float32) < 1 - alpha
    active = (active & (feature > first[:, None])) | (feature == first[:, None])
    return active * rng.random((rows, n), dtype=np.float32) if activation == "uniform" else active.astype(np.float32)


def _rows(n: int, alpha: float, rows: int, stream: int, activation: Activation) -> Rows:
    rng = np.random.default_rng([stream, n, round(alpha * 1e9)])
    inputs = _pack(draw_rows(n, alpha, rows, rng, activation))
    return Rows(inputs, inputs, _aligned(_padded(n, 4)), float(alpha) ** n)


# --- one model ------------------------------------------------------------------------------------------------------


class Model(NamedTuple):
    """W [width, n] and b [n] of x_hat = ReLU(W^T W x + b)."""

    weight: Float[NDArray[np.float32], "width n"]
    bias: Float[NDArray[np.float32], "n"]

    def flat(self) -> Float[NDArray[np.float32], "values"]:
        """In the compiled loop's layout."""
        width, n = self.weight.shape
        packed = _aligned((_padded(width, 2) + 1) * _padded(n, 4))
        view = packed.reshape(-1, _padded(n, 4))
        view[:width, :n], view[-1, :n] = self.weight, self.bias
        return packed


def _unflat(parameters: NDArray[np.float32], n: int, width: int) -> Model:
    view = parameters.reshape(-1, _padded(n, 4))
    return Model(view[:width, :n].copy(), view[-1, :n].copy())


def _scratch(n: int, width: int) -> NDArray[np.float32]:
    return _aligned((2 * _padded(width, 2) + 4) * TILE + 2 * _padded(n, 4))


def _padded_importance(importance: NDArray) -> NDArray[np.float32]:
    padded = _aligned(_padded(importance.size, 4))
    padded[: importance.size] = importance
    return padded


def loss_and_gradients(
    model: Model,
    importance: Float[NDArray, "n"],
    alpha: float,
    inputs: Float[NDArray, "rows n"],
    targets: Float[NDArray, "rows n"] | None = None,
    zero_target: Float[NDArray, "n"] | None = None,
) -> tuple[float, Model]:
    """Loss and gradients of one step of the compiled loop: alpha^n x the all-zero row + (1 - alpha^n) x mean over rows.

    Args:
        inputs: rows with an active feature, a multiple of 128 of them.
        targets: what they should give; the inputs if left out.
        zero_target: what the all-zero row should give; zeros if left out.
    """
    width, n = model.weight.shape
    gradient, scratch = _aligned((_padded(width, 2) + 1) * _padded(n, 4)), _scratch(n, width)
    packed = _pack(inputs)
    loss = _loss_and_gradient(
        model.flat(), _padded(n, 4), _padded(width, 2), _padded_importance(importance),
        _padded_importance(np.zeros(n) if zero_target is None else zero_target), float(alpha) ** n,
        packed, packed if targets is None else _pack(targets), 0, len(inputs) // TILE, scratch, gradient,
    )  # fmt: skip
    return loss, _unflat(gradient, n, width)


def initial_model(n: int, width: int, rng: np.random.Generator) -> Model:
    """Normal weights of standard deviation sqrt(2 / (n + width)), zero biases."""
    scale = np.sqrt(2 / (n + width))
    return Model((scale * rng.standard_normal((width, n))).astype(np.float32), np.zeros(n, dtype=np.float32))


def checkpoints(steps: int) -> Int[NDArray[np.int64], "checkpoints"]:
    """Steps at which a training curve has a point: at most 40, evenly spaced in log steps, the last one included."""
    return np.unique(np.geomspace(1, steps, min(CHECKPOINTS, steps)).round().astype(np.int64))


def train(
    model: Model,
    rows: Rows,
    importance: Float[NDArray, "n"],
    steps: int,
    rng: np.random.Generator,
    batch: int = 128,
    snapshots: bool = False,
) -> tuple[Model, Float[NDArray[np.float64], "checkpoints"], list[Model]]:
    """Train by Adam (betas .9, .999), its rate falling from 1e-2 to 1e-5 by half a cosine.

    Args:
        rows: passed over in batches of ``batch`` (a multiple of 128), in an order drawn anew for each epoch.
        snapshots: also return the model at every checkpoint.

    Returns:
        The trained model; the mean training loss of the steps up to each checkpoint since the one before; snapshots.
    """
    width, n = model.weight.shape
    parameters, tiles = model.flat(), batch // TILE
    batches = rows.inputs.size // (_padded(n, 4) * batch)
    order = np.concatenate([rng.permutation(batches) for _ in range(-(-steps // batches))])[:steps] * tiles
    falling = 0.5 * (1 + np.cos(np.pi * np.arange(steps) / steps))
    until = checkpoints(steps)
    curve, taken = np.zeros(until.size), _aligned(until.size * parameters.size if snapshots else 0)
    _train(
        parameters, _padded(n, 4), _padded(width, 2), _padded_importance(importance), rows.zero_target,
        rows.zero_share, rows.inputs, rows.targets, order, tiles, FINAL_RATE + (INITIAL_RATE - FINAL_RATE) * falling,
        _scratch(n, width), _aligned(3 * parameters.size), until, curve, taken,
    )  # fmt: skip
    history = [_unflat(part, n, width) for part in taken.reshape(until.size, -1)] if snapshots else []
    return _unflat(parameters, n, width), curve, history


def measure(model: Model, rows: Rows, importance: Float[NDArray, "n"]) -> tuple[float, float]:
    """Loss over ``rows`` and over the all-zero row, and its standard error (that of independent rows: no less)."""
    width, n = model.weight.shape
    mean, variance = _run(
        model.flat(), _padded(n, 4), _padded(width, 2), _padded_importance(importance), rows.inputs, rows.targets,
        _aligned(0), _aligned(_padded(width, 2) * LANES),
    )  # fmt: skip
    at_zero = float(importance @ (np.maximum(model.bias, 0) - rows.zero_target[:n]) ** 2)
    count = rows.inputs.size // _padded(n, 4)
    share = 1 - rows.zero_share
    return rows.zero_share * at_zero + share * mean, share * float(np.sqrt(max(variance, 0) / count))


def outputs(model: Model, rows: Rows) -> Rows:
    """The same inputs with the outputs of ``model`` as targets: what a student learns from that teacher."""
    width, n = model.weight.shape
    targets = _aligned(rows.inputs.size)
    _run(
        model.flat(), _padded(n, 4), _padded(width, 2), _aligned(_padded(n, 4)), rows.inputs, rows.inputs, targets,
        _aligned(_padded(width, 2) * LANES),
    )  # fmt: skip
    return rows._replace(targets=targets, zero_target=_padded_importance(np.maximum(model.bias, 0)))


# --- the sweep ------------------------------------------------------------------------------------------------------


class Sweep(NamedTuple):
    """``floors`` has a row a model; ``curves`` and ``parameters`` go with its rows."""

    floors: pd.DataFrame
    curves: Float[NDArray[np.float32], "models checkpoints"]  # mean training loss since the checkpoint before
    parameters: Float[NDArray[np.float32], "values"]  # all models' [width + 1, n], the bias last, one after the other


def model_of(floors: pd.DataFrame, parameters: NDArray[np.float32], row: int) -> Model:
    """The model of one row of ``Sweep.floors``."""
    sizes = (floors.width.to_numpy() + 1) * floors.n.to_numpy()
    start, (n, width) = int(sizes[:row].sum()), floors[["n", "width"]].iloc[row]
    packed = parameters[start : start + int(sizes[row])].reshape(int(width) + 1, int(n))
    return Model(packed[:-1], packed[-1])


def sweep(
    features: int | Iterable[int],
    sparsities: float | Iterable[float],
    widths: int | Iterable[int],
    seeds: int | Iterable[int] = 20,
    steps: int = 6000,
    **options,
) -> pd.DataFrame:
    """Train every (n, alpha, width, seed) and return the floors, a row a model; see ``train_all`` for all arguments."""
    return train_all(features, sparsities, widths, seeds, steps, **options).floors


def train_all(
    features: int | Iterable[int],
    sparsities: float | Iterable[float],
    widths: int | Iterable[int],
    seeds: int | Iterable[int] = 20,
    steps: int = 6000,
    *,
    target: Literal["features", "teacher"] = "features",
    teacher_widths: int | Iterable[int] = (3, 5, 8, 10),
    importance: Importance = zipf,
    activation: Activation = "uniform",
    batch: int = 128,
    threads: int | None = None,
) -> Sweep:
    """Train every (n, alpha, width, seed) to its floor; paper section 4 with the defaults.

    Args:
        features: numbers of features n.
        sparsities: alpha, the probability that a feature is 0.
        widths: d_S, at most n; with ``target="teacher"`` those up to each teacher's width are trained.
        seeds: how many, or which. A seed sets a model's first weights and the order of its batches; a model's numbers
            depend on nothing else in the sweep.
        target: ``features``: students reconstruct x. ``teacher``: they reproduce a teacher's outputs, and the teacher
            of seed s is the model of width d_T and seed s that was trained on x.
        importance: a vector for one n, or a function n -> vector; Zipf's 1/i scaled to sum 1 if left out.
        activation: active features are uniform on [0, 1], or 1 (``fixed``).
        batch: rows a step, a multiple of 128, drawn from 65,536 rows that have an active feature. More give the same
            floors at a higher cost.
        threads: one for each processor if left out; the results do not depend on it.

    Returns:
        ``floors`` with columns n, alpha, teacher_width (0 without a teacher), width, target, seed, floor (the loss that
        was trained, on 131,072 fresh rows with an active feature and the all-zero row; importance-weighted squared
        error summed over features), standard_error (of that evaluation), loss_against_x, loss_against_teacher (NaN
        without a teacher), represented (features with ``|W_i| > 1/2``); curves at ``checkpoints(steps)``; all
        parameters.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """
    counts, alphas, students = _list(features), _list(sparsities), _list(widths)
    teachers = _list(teacher_widths) if target == "teacher" else [0]
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    importances = _checked(counts, alphas, students, teachers, seeds, steps, target, importance, activation, batch)

    found: dict[tuple, tuple] = {}
    trained = sum(teacher == 0 or width <= teacher for teacher in teachers for width in students)
    total = len(counts) * len(alphas) * len(seeds) * trained
    bar = tqdm(total=total, desc="toy models", unit="model", leave=False, delay=3)
    with bar, ThreadPoolExecutor(threads or _processors()) as pool:
        for n in counts:
            for alpha in alphas:
                weights = importances[n]
                training = _rows(n, alpha, POOL_ROWS, TRAINING, activation)
                measuring = _rows(n, alpha, EVALUATION_ROWS, MEASURING, activation)

                def learn(teacher, seed, n=n, alpha=alpha, weights=weights, training=training, measuring=measuring):
                    rows, fresh = training, measuring
                    if teacher:
                        taught = _fit(n, alpha, 0, teacher, seed, training, weights, steps, batch)[0]
                        rows, fresh = outputs(taught, training), outputs(taught, measuring)
                    for width in students:
                        if teacher and width > teacher:
                            continue
                        model, curve = _fit(n, alpha, teacher, width, seed, rows, weights, steps, batch)
                        floor, error = measure(model, fresh, weights)
                        against_x = measure(model, measuring, weights)[0] if teacher else floor
                        row = (n, alpha, teacher, width, target, seed, floor, error, against_x)
                        row += (floor if teacher else np.nan, int((norms(model) > 0.5).sum()))
                        found[n, alpha, teacher, width, seed] = row, curve, np.vstack([*model.weight, model.bias])
                        bar.update()

                jobs = [pool.submit(learn, teacher, seed) for teacher in teachers for seed in seeds]
                try:
                    for job in jobs:
                        job.result()
                finally:  # an interrupt need not wait for those that have not begun
                    for job in jobs:
                        job.cancel()
    order = sorted(found)
    columns = ["n", "alpha", "teacher_width", "width", "target", "seed", "floor", "standard_error", "loss_against_x"]
    floors = pd.DataFrame([found[k][0] for k in order], columns=[*columns, "loss_against_teacher", "represented"])
    curves = np.array([found[k][1] for k in order], dtype=np.float32)
    return Sweep(floors, curves, np.concatenate([found[k][2].ravel() for k in order]))


def _fit(n, alpha, teacher, width, seed, rows, importance, steps, batch):
    """The model of one cell and seed, and its curve. A student never starts where its teacher did."""
    rng = np.random.default_rng([MODEL, seed, n, round(alpha * 1e9), teacher, width])
    model, curve, _ = train(initial_model(n, width, rng), rows, importance, steps, rng, batch)
    return model, curve


def watch(n: int, alpha: float, width: int, seed: int = 0, steps: int = 6000) -> tuple[pd.DataFrame, list[Model]]:
    """One cell of the sweep (target x, Zipf importance) with the model at every checkpoint: steps, losses; models."""
    importance = _checked([n], [alpha], [width], [0], [seed], steps, "features", zipf, "uniform", TILE)[n]
    rng = np.random.default_rng([MODEL, seed, n, round(alpha * 1e9), 0, width])
    first = initial_model(n, width, rng)
    _, curve, history = train(
        first, _rows(n, alpha, POOL_ROWS, TRAINING, "uniform"), importance, steps, rng, snapshots=True
    )
    return pd.DataFrame({"step": checkpoints(steps), "loss": curve}), history


def _processors() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _list(values) -> list:
    return list(values) if isinstance(values, Iterable) else [values]


def _checked(counts, alphas, widths, teachers, seeds, steps, target, importance, activation, batch) -> dict:
    """Importances by n; ValueError for an argument no sweep can take."""
    if target not in ("features", "teacher"):
        raise ValueError(f"target = {target!r} is not known: give 'features' or 'teacher'")
    if activation not in ("uniform", "fixed"):
        raise ValueError(f"activation = {activation!r} is not known: give 'uniform' or 'fixed'")
    for name, values, least in (
        ("features", counts, 1), ("widths", widths, 1), ("teacher_widths", teachers, target == "teacher"),
        ("seeds", seeds, 0), ("steps", [steps], 1),
    ):  # fmt: skip
        if not values or not all(isinstance(value, int | np.integer) and value >= least for value in values):
            raise ValueError(f"{name} = {values} is not a list of whole numbers of at least {int(least)}")
    if not all(0 < alpha < 1 for alpha in alphas) or not alphas:
        raise ValueError(f"sparsities = {alphas} leave (0, 1): give shares of zeros strictly between 0 and 1")
    widest = max([*widths, *teachers])
    if widest > min(counts):
        raise ValueError(f"width = {widest} is wider than features = {min(counts)}: give widths of at most n")
    if not (isinstance(batch, int) and batch % TILE == 0 and 0 < batch <= POOL_ROWS):
        raise ValueError(f"batch = {batch} is not a multiple of {TILE} up to {POOL_ROWS}: {TILE} is the default")
    importances = {n: np.asarray(importance(n) if callable(importance) else importance, dtype=float) for n in counts}
    for n, vector in importances.items():
        if vector.shape != (n,) or not np.isfinite(vector).all() or (vector < 0).any() or not vector.any():
            raise ValueError(f"importance has shape {vector.shape} or a bad value: give n = {n} weights of 0 or more")
    return importances


# --- what a trained model represents --------------------------------------------------------------------------------


def norms(model: Model) -> Float[NDArray, "n"]:
    """``|W_i|``, near 1 for a represented feature and near 0 for a dropped one (Elhage et al. 2022)."""
    return np.linalg.norm(model.weight, axis=0)


def dimensionality(model: Model) -> Float[NDArray, "n"]:
    """The share of a dimension each feature has, ``|W_i|^2 / sum_j (W_i.W_j / |W_i|)^2``, or 0 (Elhage et al. 2022).

    1 on an axis of its own, 1/2 in an antipodal pair, 2/5 in a pentagon.
    """
    gram = model.weight.T @ model.weight
    squared = np.diag(gram)
    shared = (gram**2).sum(1)
    return np.divide(squared**2, shared, out=np.zeros_like(squared), where=squared > 1e-6)
