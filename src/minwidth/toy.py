"""The toy model of superposition (paper section 4; Elhage et al. 2022): drawn, trained by the thousand, measured.

x in R^n is sparse (each feature is 0 with probability alpha), h = W x in R^d, x_hat = ReLU(W^T h + b), and the loss is
sum_i I_i (x_i - x_hat_i)^2. 02 has it as a dozen lines; ``minwidth.toy_kernel`` is the compiled loop.

- **Only rows with an active feature are drawn**; the all-zero row is added in closed form,
  loss = alpha^n sum_i I_i (ReLU(b_i) - t_i)^2 + (1 - alpha^n) E[loss | x not 0], which is unbiased and has less noise.
- **A pool of rows is drawn once** and passed over in a fresh order each epoch: no random numbers in the loop.
- One model is one thread's work from start to end, and all sums have a fixed order: its numbers depend neither on how
  many threads there are nor on the processor.

Floors are measured on a fixed set of fresh rows that no model was trained on.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from numba import config
from numpy.typing import NDArray
from tqdm.auto import tqdm

from minwidth import toy_kernel as kernel
from minwidth.capacity import zipf
from minwidth.toy_kernel import TILE, aligned, by_feature, padded

POOL_ROWS = 65_536  # with an active feature, to train on; shared by all models of one (n, alpha)
EVALUATION_ROWS = 131_072  # with an active feature, to measure floors on
INITIAL_RATE, FINAL_RATE = 1e-2, 1e-5  # of Adam, half a cosine
CHECKPOINTS = 40  # of a training curve, evenly spaced in log steps
TRAINING, MEASURING, MODEL = range(3)  # streams of random numbers that never meet

Activation = Literal["uniform", "fixed"]
Importance = Sequence[float] | NDArray[np.float64] | Callable[[int], NDArray[np.float64]]

# --- data -----------------------------------------------------------------------------------------------------------


class Rows(NamedTuple):
    """Rows to train or measure on, in the compiled loop's layout."""

    inputs: Float[NDArray[np.float32], "values"]  # [tiles, n, TILE], each row with an active feature
    targets: Float[NDArray[np.float32], "values"]
    zero_target: Float[NDArray[np.float32], "n"]  # what the all-zero row should give
    zero_share: float  # its probability, alpha^n


def draw_rows(
    n: int, alpha: float, rows: int, rng: np.random.Generator, activation: Activation = "uniform"
) -> Float[NDArray[np.float32], "rows n"]:
    """Rows of the toy distribution given that at least one feature is active: uniform on [0, 1], or 1 (``fixed``).

    The first active feature has a truncated geometric distribution; those after it are active independently. It is
    drawn by strata, one row of each tile of 128 from each 1/128 of its distribution, so that every tile holds the right
    share of rows that begin with each feature: the mean over tiles is unbiased and less noisy.
    """
    within = (np.arange(rows) % TILE + rng.random(rows)) / TILE
    first = np.floor(np.log1p(-within * -np.expm1(n * np.log(alpha))) / np.log(alpha)).clip(0, n - 1).astype(int)
    feature = np.arange(n)
    active = rng.random((rows, n), dtype=np.float32) < 1 - alpha
    active = (active & (feature > first[:, None])) | (feature == first[:, None])
    return active * rng.random((rows, n), dtype=np.float32) if activation == "uniform" else active.astype(np.float32)


def pool(
    n: int, alpha: float, rows: int = POOL_ROWS, stream: int = TRAINING, activation: Activation = "uniform"
) -> Rows:
    """The rows that all models of one (n, alpha) share: to train on, or of the stream ``MEASURING``."""
    rng = np.random.default_rng([stream, n, round(alpha * 1e9)])
    inputs = kernel.pack(draw_rows(n, alpha, rows, rng, activation))
    return Rows(inputs, inputs, by_feature(np.zeros(n)), float(alpha) ** n)


# --- one model ------------------------------------------------------------------------------------------------------


class Model(NamedTuple):
    """W [width, n] and b [n] of x_hat = ReLU(W^T W x + b)."""

    weight: Float[NDArray[np.float32], "width n"]
    bias: Float[NDArray[np.float32], "n"]

    def flat(self) -> Float[NDArray[np.float32], "values"]:
        """In the compiled loop's layout."""
        width, n = self.weight.shape
        packed = aligned((padded(width, 2) + 1) * padded(n, 4))
        view = packed.reshape(-1, padded(n, 4))
        view[:width, :n], view[-1, :n] = self.weight, self.bias
        return packed


def unflat(parameters: NDArray[np.float32], n: int, width: int) -> Model:
    """The model of such an array."""
    view = parameters.reshape(-1, padded(n, 4))
    return Model(view[:width, :n].copy(), view[-1, :n].copy())


def initial_model(n: int, width: int, rng: np.random.Generator) -> Model:
    """Normal weights of standard deviation sqrt(2 / (n + width)), zero biases."""
    scale = np.sqrt(2 / (n + width))
    return Model((scale * rng.standard_normal((width, n))).astype(np.float32), np.zeros(n, dtype=np.float32))


def checkpoints(steps: int) -> Int[NDArray[np.int64], "checkpoints"]:
    """Steps at which a training curve has a point: at most 40, evenly spaced in log steps, with the last one."""
    return np.unique(np.geomspace(1, steps, min(CHECKPOINTS, steps)).round().astype(np.int64))


def train(
    model: Model,
    rows: Rows,
    importance: Float[NDArray, "n"],
    steps: int,
    rng: np.random.Generator,
    batch: int = 128,
    rate: float = INITIAL_RATE,
    snapshots: bool = False,
) -> tuple[Model, Float[NDArray[np.float64], "checkpoints"], list[Model]]:
    """Train by Adam (betas .9, .999), its rate falling from ``rate`` to 1e-5 by half a cosine.

    Args:
        rows: passed over in batches of ``batch`` (a multiple of 128), in an order drawn anew for each epoch.
        snapshots: also return the model at every checkpoint.

    Returns:
        The trained model; the mean training loss of the steps up to each checkpoint since the one before; snapshots.
    """
    width, n = model.weight.shape
    parameters, tiles = model.flat(), batch // TILE
    batches = rows.inputs.size // (padded(n, 4) * batch)
    order = np.concatenate([rng.permutation(batches) for _ in range(-(-steps // batches))])[:steps] * tiles
    falling = 0.5 * (1 + np.cos(np.pi * np.arange(steps) / steps))
    until = checkpoints(steps)
    curve, taken = np.zeros(until.size), aligned(until.size * parameters.size if snapshots else 0)
    kernel.train(
        parameters, padded(n, 4), padded(width, 2), by_feature(importance), rows.zero_target, rows.zero_share,
        rows.inputs, rows.targets, order, tiles, FINAL_RATE + (rate - FINAL_RATE) * falling,
        kernel.workspace(n, width), aligned(3 * parameters.size), until, curve, taken,
    )  # fmt: skip
    history = [unflat(part, n, width) for part in taken.reshape(until.size, -1)] if snapshots else []
    return unflat(parameters, n, width), curve, history


def measure(model: Model, rows: Rows, importance: Float[NDArray, "n"]) -> tuple[float, float]:
    """Loss over ``rows`` and over the all-zero row, and its standard error (that of independent rows: no less)."""
    mean, variance = _run(model, rows, by_feature(importance), aligned(0))
    n = model.bias.size
    at_zero = float(importance @ (np.maximum(model.bias, 0) - rows.zero_target[:n]) ** 2)
    share, count = 1 - rows.zero_share, rows.inputs.size // padded(n, 4)
    return rows.zero_share * at_zero + share * mean, share * float(np.sqrt(max(variance, 0) / count))


def outputs(model: Model, rows: Rows) -> Rows:
    """The same inputs with the outputs of ``model`` as targets: what a student learns from that teacher."""
    targets = aligned(rows.inputs.size)
    _run(model, rows, by_feature(0 * model.bias), targets)
    return rows._replace(targets=targets, zero_target=by_feature(np.maximum(model.bias, 0)))


def _run(model, rows, importance, reconstructions) -> tuple[float, float]:
    width, n = model.weight.shape
    return kernel.run(
        model.flat(), padded(n, 4), padded(width, 2), importance, rows.inputs, rows.targets, reconstructions,
        aligned(padded(width, 2) * kernel.LANES),
    )  # fmt: skip


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


def sweep(features, sparsities, widths, seeds=20, steps=6000, **options) -> pd.DataFrame:
    """The floors of every (n, alpha, width, seed), a row a model; arguments are those of ``train_all``."""
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
    rate: float = INITIAL_RATE,
    threads: int | None = None,
) -> Sweep:
    """Train every (n, alpha, width, seed) to its floor; paper section 4 with the defaults.

    Args:
        features: numbers of features n.
        sparsities: alpha, the probability that a feature is 0.
        widths: d_S, at most n; with ``target="teacher"`` those up to each teacher's width are trained.
        seeds: how many, or which; a model's first weights and order of batches depend on its own cell and seed alone.
        target: ``features``: students reconstruct x. ``teacher``: they reproduce a teacher's outputs, and the teacher
            of seed s is the model of width d_T and seed s that was trained on x.
        importance: a vector for one n, or a function n -> vector; Zipf's 1/i scaled to sum 1 if left out.
        activation: active features are uniform on [0, 1], or 1 (``fixed``).
        rate: Adam's first learning rate.
        threads: one for each processor if left out; the results do not depend on it.

    Returns:
        ``floors`` with columns n, alpha, teacher_width (0 without a teacher), width, target, seed, floor (the loss that
        was trained, on 131,072 fresh rows with an active feature and the all-zero row; importance-weighted squared
        error summed over features), standard_error (of that evaluation), loss_against_x, loss_against_teacher (NaN
        without a teacher), represented (features with ``|W_i| > 1/2``); curves at ``checkpoints(steps)``; parameters.
    """
    counts, alphas, students = _list(features), _list(sparsities), _list(widths)
    teachers = _list(teacher_widths) if target == "teacher" else [0]
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    _check(counts, alphas, students, teachers, seeds, steps, target, activation, rate)
    importances = {n: _weights(importance, n) for n in counts}
    trained = sum(teacher == 0 or width <= teacher for teacher in teachers for width in students)
    total = len(counts) * len(alphas) * len(seeds) * trained
    bar, found = tqdm(total=total, desc="toy models", unit="model", leave=False, delay=3), {}

    def learn(n, alpha, training, measuring, teacher, seed):
        rows, fresh, weights = training, measuring, importances[n]
        if teacher:
            taught = _fit(n, alpha, 0, teacher, seed, training, weights, steps, rate)[0]
            rows, fresh = outputs(taught, training), outputs(taught, measuring)
        for width in students:
            if teacher and width > teacher:
                continue
            model, curve = _fit(n, alpha, teacher, width, seed, rows, weights, steps, rate)
            floor, error = measure(model, fresh, weights)
            against_x = measure(model, measuring, weights)[0] if teacher else floor
            row = (n, alpha, teacher, width, target, seed, floor, error, against_x)
            row += (floor if teacher else np.nan, int((np.linalg.norm(model.weight, axis=0) > 0.5).sum()))
            found[n, alpha, teacher, width, seed] = row, curve, np.vstack([*model.weight, model.bias])
            bar.update()

    with bar, ThreadPoolExecutor(threads or config.NUMBA_DEFAULT_NUM_THREADS) as workers:
        for n, alpha in itertools.product(counts, alphas):
            training = pool(n, alpha, POOL_ROWS, TRAINING, activation)
            measuring = pool(n, alpha, EVALUATION_ROWS, MEASURING, activation)
            cell = functools.partial(learn, n, alpha, training, measuring)
            list(workers.map(cell, *zip(*itertools.product(teachers, seeds), strict=True)))  # raises what they raise
    rows, curves, parameters = zip(*(found[key] for key in sorted(found)), strict=True)
    columns = ["n", "alpha", "teacher_width", "width", "target", "seed", "floor", "standard_error", "loss_against_x"]
    floors = pd.DataFrame(rows, columns=[*columns, "loss_against_teacher", "represented"])
    return Sweep(floors, np.array(curves, dtype=np.float32), np.concatenate([each.ravel() for each in parameters]))


def _fit(n, alpha, teacher, width, seed, rows, importance, steps, rate):
    """The model of one cell and seed, and its curve. A student never starts where its teacher did."""
    rng = np.random.default_rng([MODEL, seed, n, round(alpha * 1e9), teacher, width])
    model, curve, _ = train(initial_model(n, width, rng), rows, importance, steps, rng, rate=rate)
    return model, curve


def _list(values) -> list:
    return list(values) if isinstance(values, Iterable) else [values]


def _weights(importance: Importance, n: int) -> Float[NDArray[np.float64], "n"]:
    vector = np.asarray(importance(n) if callable(importance) else importance, dtype=float)
    if vector.shape != (n,) or not np.isfinite(vector).all() or (vector < 0).any() or not vector.any():
        raise ValueError(f"importance has shape {vector.shape} or a bad value: give n = {n} weights of 0 or more")
    return vector


def _check(counts, alphas, widths, teachers, seeds, steps, target, activation, rate) -> None:
    """ValueError for an argument no sweep can take."""
    for name, value, known in (
        ("target", target, ("features", "teacher")), ("activation", activation, ("uniform", "fixed")),
    ):  # fmt: skip
        if value not in known:
            raise ValueError(f"{name} = {value!r} is not known: give {known[0]!r} or {known[1]!r}")
    for name, values, least in (
        ("features", counts, 1), ("widths", widths, 1), ("teacher_widths", teachers, target == "teacher"),
        ("seeds", seeds, 0), ("steps", [steps], 1),
    ):  # fmt: skip
        if not values or not all(isinstance(value, int | np.integer) and value >= least for value in values):
            raise ValueError(f"{name} = {values} is not a list of whole numbers of at least {int(least)}")
    if not all(0 < alpha < 1 for alpha in alphas) or not alphas:
        raise ValueError(f"sparsities = {alphas} leave (0, 1): give shares of zeros strictly between 0 and 1")
    if (widest := max([*widths, *teachers])) > min(counts):
        raise ValueError(f"width = {widest} is wider than features = {min(counts)}: give widths of at most n")
    if not 0 < rate < 1:
        raise ValueError(f"rate = {rate} is outside (0, 1): {INITIAL_RATE} is the default")
