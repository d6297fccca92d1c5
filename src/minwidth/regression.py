"""Least-squares lines for a handful of points, with the R^2 of points left out, which tells a good fit from luck.

The paper maps predicted floors (importance units) to observed ones (nats) by observed = C predicted + B on five points.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from sklearn.model_selection import LeaveOneOut, cross_val_predict


class Fit(NamedTuple):
    """observed = slope x + baseline, and how far to trust it."""

    parameters: dict[str, float]  # slope and, unless it is 0 by the form, baseline
    r_squared: float  # on the fitted points, about their mean, so that a line through zero can be below 0
    leave_one_out: float  # the same with each point predicted by a fit to the others

    def predict(self, x: ArrayLike) -> NDArray[np.float64]:
        """The fitted line at ``x``, in the unit of what was observed."""
        return self.parameters["slope"] * np.asarray(x, dtype=float) + self.parameters.get("baseline", 0.0)


def r_squared(observed: ArrayLike, predicted: ArrayLike) -> float:
    """1 - sum (observed - predicted)^2 / sum (observed - mean)^2, on whichever points are given.

    Raises:
        ValueError: the observed values do not vary.
    """
    if np.ptp(observed) == 0:
        raise ValueError(f"observed = {observed} does not vary: R^2 needs at least two different values")
    return float(r2_score(observed, predicted))


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
    if x.size < 2 + free:
        raise ValueError(f"{x.size} points are too few for this line: give at least {2 + free}")
    if np.ptp(x) == 0 if free else not x.any():
        raise ValueError(f"x is {x[0]:g} everywhere: the slope is undetermined")
    points, line = x[:, None], LinearRegression(fit_intercept=free)
    left_out = cross_val_predict(line, points, y, cv=LeaveOneOut())
    line.fit(points, y)
    parameters = {"slope": float(line.coef_[0])} | ({"baseline": float(line.intercept_)} if free else {})
    return Fit(parameters, r_squared(y, line.predict(points)), r_squared(y, left_out))
