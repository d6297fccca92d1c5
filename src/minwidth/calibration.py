"""Least-squares lines for a handful of points, with the R^2 of points left out, which tells a good fit from luck.

The paper maps predicted floors (importance units) to observed ones (nats) by observed = C predicted + B on five points.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class Fit(NamedTuple):
    """observed = slope x + baseline, and how far to trust it."""

    parameters: dict[str, float]  # slope and, unless it is 0 by the form, baseline
    r_squared: float  # on the fitted points, about their mean, so that a line through zero can be below 0
    leave_one_out: float  # the same with each point predicted by a fit to the others

    def predict(self, x: ArrayLike) -> Array:
        """The fitted line at ``x``, in the unit of what was observed."""
        return self.parameters["slope"] * np.asarray(x, dtype=float) + self.parameters.get("baseline", 0.0)


def r_squared(observed: ArrayLike, predicted: ArrayLike) -> float:
    """1 - sum (observed - predicted)^2 / sum (observed - mean)^2, on whichever points are given.

    Raises:
        ValueError: the observed values do not vary.
    """
    observed = np.asarray(observed, dtype=float)
    spread = ((observed - observed.mean()) ** 2).sum()
    if not spread > 0:
        raise ValueError(f"observed = {observed} does not vary: R^2 needs at least two different values")
    return float(1 - ((observed - predicted) ** 2).sum() / spread)


def affine(x: ArrayLike, y: ArrayLike) -> Fit:
    """y = slope x + baseline, both free (paper Eq. 3 and Table 4, where x is Eq. 2, slope is C and baseline is B)."""
    return _fit(x, y, free=True)


def through_zero(x: ArrayLike, y: ArrayLike) -> Fit:
    """y = slope x: the least-squares line through the origin (paper Table 4, "linear")."""
    return _fit(x, y)


def fixed_baseline(x: ArrayLike, y: ArrayLike, baseline: float) -> Fit:
    """y = slope x + baseline with the baseline given (paper section 6.3: B measured on the student of full width).

    The points should not hold the one the baseline was read from; score on all points with ``r_squared``.
    """
    fit = _fit(x, np.asarray(y, dtype=float) - baseline)
    return fit._replace(parameters=fit.parameters | {"baseline": float(baseline)})


def _fit(x: ArrayLike, y: ArrayLike, free: bool = False) -> Fit:
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"x has shape {x.shape} and y {y.shape}: give two vectors of equal length")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("x or y holds a value that is not finite: leave such points out")
    if x.size < 2 + free:
        raise ValueError(f"{x.size} points are too few for this line: give at least {2 + free}")
    if np.ptp(x) == 0 if free else not x.any():
        raise ValueError(f"x is {x[0]:g} everywhere: the slope is undetermined")
    design = np.stack([x, np.ones_like(x)], 1) if free else x[:, None]
    orthogonal, triangle = np.linalg.qr(design)
    coefficients = np.linalg.solve(triangle, orthogonal.T @ y)
    left = y - design @ coefficients
    away = 1 - (orthogonal**2).sum(1)  # 1 - leverage; 0 where the others do not determine the line
    left_out = np.where(away > 1e-9, left / np.maximum(away, 1e-9), np.inf)
    parameters = dict(zip(("slope", "baseline"), map(float, coefficients), strict=False))
    return Fit(parameters, r_squared(y, y - left), r_squared(y, y - left_out))
