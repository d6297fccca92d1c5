"""Small experiments behind 01_theory: shapes that share dimensions, and recovery of sparse vectors from few numbers."""

import math

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from tqdm.auto import tqdm

from minwidth.capacity import variance

Array = NDArray[np.float64]
SAMPLES = 8000  # of each number of active features


def polygon(sides: int) -> Float[Array, "2 sides"]:
    """The unit vectors of a regular polygon; two sides give the antipodal pair, one a single axis."""
    if sides < 1:
        raise ValueError(f"sides = {sides} is not a number of vectors: give 1 or more")
    angle = np.pi / 2 + 2 * np.pi * np.arange(sides) / sides
    return np.stack([np.cos(angle), np.sin(angle)])


def read_out(
    weights: Float[Array, "d features"], x: Float[Array, "features samples"], bias: ArrayLike = 0.0
) -> Float[Array, "features samples"]:
    """The toy model's reconstruction ReLU(W^T W x + b) (paper section 4; Elhage et al. 2022)."""
    return np.maximum(weights.T @ (weights @ x) + np.reshape(bias, (-1, 1)), 0)


def shape_loss(weights: Float[Array, "d features"], alpha: ArrayLike, seed: int = 0) -> Array:
    """Mean squared error of a feature in a symmetric arrangement, at its best common scale and bias, for each sparsity.

    Features are 0 with probability alpha, else uniform on [0, 1]. Samples are drawn for every number of active features
    and weighted by its probability, so one draw serves all sparsities. s ReLU(W^T W x + t) is linear in s, so the best
    scale is a projection; t is searched on a grid. For the pair it is capacity.pair_loss(alpha, refined=True).
    """
    features, rng = weights.shape[1], np.random.default_rng(seed)
    p = 1 - np.atleast_1d(np.asarray(alpha, dtype=float))
    shifts = np.linspace(-0.5, 1, 151)
    gram = weights.T @ weights
    cross, square = np.zeros((2, p.size, shifts.size))
    total = np.zeros((p.size, 1))
    for active in range(features + 1):
        chance = math.comb(features, active) * p**active * (1 - p) ** (features - active)
        order = rng.permuted(np.tile(np.arange(features), (SAMPLES, 1)), axis=1).T
        x = rng.random((features, SAMPLES)) * (order < active)
        total[:, 0] += chance * (x**2).mean()
        inside = gram @ x
        for i, shift in enumerate(shifts):
            found = np.maximum(inside + shift, 0)
            cross[:, i] += chance * (x * found).mean()
            square[:, i] += chance * (found**2).mean()
    left = total - np.divide(cross**2, square, out=np.zeros_like(cross), where=square > 0)
    return np.minimum(left.min(1), variance(1 - p))


def recovery_rates(features: int, active: int, widths: list[int], trials: int, seed: int) -> list[float]:
    """Share of random non-negative vectors that l1 minimisation recovers from ``width`` random projections, by width.

    Each trial draws Gaussian projections and a vector with ``active`` entries uniform on [0, 1], and solves
    min sum z subject to Az = Ax, z >= 0 as a linear programme.
    """
    from scipy.optimize import linprog

    if not 0 < active < features:
        raise ValueError(
            f"active = {active} is outside (0, features = {features}): give fewer active features than all"
        )
    rng = np.random.default_rng(seed)
    rates = []
    for width in tqdm(widths, desc="linear programmes", unit="width", leave=False):
        hits = 0
        for _ in range(trials):
            projection, x = rng.standard_normal((width, features)), np.zeros(features)
            x[rng.choice(features, active, replace=False)] = rng.random(active)
            solved = linprog(np.ones(features), A_eq=projection, b_eq=projection @ x)
            hits += solved.x is not None and np.abs(solved.x - x).max() < 1e-5
        rates.append(float(hits / trials))
    return rates
