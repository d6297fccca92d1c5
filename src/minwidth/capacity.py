"""How many sparse features fit in a width, and which loss is left: the formulas of the study, arrays in and out.

Conventions, shared by all rooms. A feature is 0 with probability ``alpha`` (the sparsity, strictly between 0 and 1)
and otherwise uniform on [0, 1]; p = 1 - alpha. Then E[x^2] = p/3 and Var[x] = p/3 - p^2/4. ``importance`` is a
vector of non-negative weights in non-increasing order. A floor is importance-weighted squared error summed over
features, so it has the unit of ``importance`` times that of x^2. Widths and sparsities broadcast against each
other; scalars give scalars. "Paper" is arXiv:2604.04037. 01 derives the formulas, and compares g with exact thresholds.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

# --- checks ---------------------------------------------------------------------------------------------------------


def _sparsity(alpha: ArrayLike) -> Array:
    values = np.asarray(alpha, dtype=float)
    if not ((values > 0) & (values < 1)).all():
        raise ValueError(f"alpha = {alpha} is outside (0, 1): give the share of zeros strictly between 0 and 1")
    return values


def _at_least_one(name: str, given: ArrayLike, whole: bool = False) -> Array:
    values = np.asarray(given, dtype=float)
    if not ((values >= 1) & np.isfinite(values)).all():
        raise ValueError(f"{name} = {given} is below 1 or not finite: give numbers of at least 1")
    if whole and (values != np.floor(values)).any():
        raise ValueError(f"{name} = {given} is not a whole number: this floor needs 1, 2, 3, ...")
    return values


def _importance(importance: ArrayLike) -> Array:
    values = np.asarray(importance, dtype=float)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"importance has shape {values.shape}: give a vector with one weight for each feature")
    if not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(f"importance has a weight of {values.min():g} or one that is not finite: give 0 or more")
    if (np.diff(values) > 0).any():
        raise ValueError("importance is not sorted: give non-increasing weights, np.sort(importance)[::-1]")
    return values


# --- the feature distribution ---------------------------------------------------------------------------------------


def second_moment(alpha: ArrayLike) -> Array:
    """E[x^2] = p/3 of one feature."""
    return ((1 - _sparsity(alpha)) / 3)[()]


def variance(alpha: ArrayLike) -> Array:
    """Var[x] = p/3 - p^2/4 of one feature: what is lost if the best constant, its mean p/2, is put in its place."""
    p = 1 - _sparsity(alpha)
    return (p / 3 - p**2 / 4)[()]


def zipf(features: int, exponent: float = 1.0) -> Array:
    """Importances i^-exponent, i = 1 ... features, scaled to sum 1 (paper section 4 and Fig. 12: exponent 1)."""
    if not (np.isfinite(exponent) and exponent >= 0):
        raise ValueError(f"exponent = {exponent} is not a finite number of 0 or more: 1 is the paper's choice")
    weights = np.arange(1, int(_at_least_one("features", features)) + 1, dtype=float) ** -exponent
    return weights / weights.sum()


# --- features per dimension -----------------------------------------------------------------------------------------


def g(alpha: ArrayLike) -> Array:
    """The paper's features per dimension, 1 / (p ln(1/p)) with p = 1 - alpha (paper Eq. 1).

    Positive on (0, 1), with its minimum e at alpha = 1 - 1/e and a pole at *both* ends: it is no capacity for dense
    features. The "g(0) = 1" of the paper's Table 7 is a convention, not a limit, so alpha = 0 is refused.
    """
    p = 1 - _sparsity(alpha)
    return (-1 / (p * np.log(p)))[()]


def features_kept(width: ArrayLike, alpha: ArrayLike) -> NDArray[np.int64]:
    """F_S = floor(width g(alpha)), the number of features the paper lets a student of that width keep (Theorem 1)."""
    return np.floor(_at_least_one("width", width) * g(alpha)).astype(np.int64)[()]


def critical_width(features: ArrayLike, alpha: ArrayLike) -> Array:
    """d* = F / g(alpha), in dimensions: the width from which the paper's budget holds every feature (section 3.3)."""
    return (_at_least_one("features", features) / g(alpha))[()]


def critical_width_from_l0(features: ArrayLike, l0: ArrayLike) -> Array:
    """The same d* from the mean number of active features L0 = F (1 - alpha): identically L0 ln(F / L0)."""
    count, active = _at_least_one("features", features), np.asarray(l0, dtype=float)
    if not ((active > 0) & (active < count)).all():
        raise ValueError(f"l0 = {l0} is outside (0, features = {features}): give the mean number of active features")
    return (active * np.log(count / active))[()]


# --- floors ---------------------------------------------------------------------------------------------------------


def _after(weights: Array) -> Array:
    """Sums of the weights beyond the first 0, 1, ... all; from the small end, so that tails stay exact."""
    return np.append(weights[::-1].cumsum()[::-1], 0.0)


def eq2_floor(
    importance: ArrayLike, width: ArrayLike, alpha: ArrayLike, second_moment: ArrayLike = 1.0,
    capacity: ArrayLike | None = None,
) -> Array:  # fmt: skip
    """The paper's floor (Eq. 2): the sum of I_i E[x_i^2] over the features beyond the first floor(width * capacity).

    ``capacity`` is g(alpha) if left out; 1 gives the paper's "naive formula". ``second_moment`` is E[x_i^2], one
    number or one for each feature: ``capacity.second_moment(alpha)`` for the toy model; 1 where the importance is
    already E[z_i^2], as the paper measures it on a language model, since it would otherwise be counted twice.
    """
    weights = _importance(importance) * np.asarray(second_moment, dtype=float)
    if (weights < 0).any():
        raise ValueError(f"second_moment = {second_moment} is negative: E[x^2] is 0 or more")
    per_dimension = g(alpha) if capacity is None else np.asarray(capacity, dtype=float) + 0 * _sparsity(alpha)
    if not (per_dimension > 0).all():
        raise ValueError(f"capacity = {capacity} is not positive: give features per dimension, 1 for the naive floor")
    kept = np.floor(_at_least_one("width", width) * per_dimension)
    return _after(weights)[np.minimum(kept, weights.size).astype(int)][()]


def linear_floor(importance: ArrayLike, width: ArrayLike, alpha: ArrayLike) -> Array:
    """The least loss without superposition: the sum of I_i Var[x_i] over the features beyond the first ``width``.

    Exact optimum of a linear (affine) autoencoder by Eckart-Young, since the importance-weighted covariance is
    diagonal. It is below the naive floor at the same width because a bias fills a dropped feature's mean in.
    """
    return eq2_floor(importance, _at_least_one("width", width, whole=True), alpha, capacity=1) * variance(alpha)


def pair_loss(alpha: ArrayLike) -> Array:
    """Mean squared error of each of two equally sparse features that share one axis with opposite signs (a "digon").

    As read by x_hat = ReLU(W^T W x) with weights +1 and -1 each is off by min(x, x'), so the loss is exactly
    p^2 E[min(u, v)^2] = p^2/6, for every p: nothing is lost unless both are active.
    """
    return ((1 - _sparsity(alpha)) ** 2 / 6)[()]


def _pairings(importance: ArrayLike, width: ArrayLike, alpha: ArrayLike) -> Array:
    """Loss by the number of axes that carry a pair, the last dimension; infinite where there are not so many."""
    after = _after(_importance(importance))
    count = after.size - 1
    d = np.minimum(_at_least_one("width", width, whole=True), count).astype(int)
    d, shared, dropped = (x[..., None] for x in np.broadcast_arrays(d, pair_loss(alpha), variance(alpha)))
    most = np.minimum(d, count - d)
    pairs = np.arange(most.max() + 1)
    owned, carried = after[np.maximum(d - pairs, 0)], after[np.minimum(d + pairs, count)]
    return np.where(pairs <= most, shared * (owned - carried) + dropped * carried, np.inf)


def digon_allocation(importance: ArrayLike, width: ArrayLike, alpha: ArrayLike) -> NDArray[np.int64]:
    """The number k of axes that should carry a pair of features, 0 <= k <= min(width, features - width).

    The first width - k features then own an axis, the next 2k share k axes, the rest are dropped. The loss is convex in
    k. For equal importances all axes carry a pair if p < 4/7, and none else.
    """
    return _pairings(importance, width, alpha).argmin(-1)[()]


def digon_floor(importance: ArrayLike, width: ArrayLike, alpha: ArrayLike) -> Array:
    """The loss of the best mix of owned axes, antipodal pairs and dropped features, with no fitted number.

    min over k of e (I_{d-k+1} + ... + I_{d+k}) + V (I_{d+k+1} + ... + I_n), with e = pair_loss(alpha) =
    p^2/6 and V = variance(alpha). A set of weights attains it, so it is a proven *upper* bound on the toy
    model's optimum.
    """
    return _pairings(importance, width, alpha).min(-1)[()]
