"""How many sparse features fit in a width, and which loss is left: the formulas of the study, arrays in and out.

Conventions, shared by all rooms. A feature is 0 with probability ``alpha`` (the sparsity, strictly between 0 and 1)
and otherwise uniform on [0, 1]; p = 1 - alpha. Then E[x^2] = p/3 and Var[x] = p/3 - p^2/4. ``importance`` is a
vector of non-negative weights in non-increasing order. A floor is importance-weighted squared error summed over
features, so it has the unit of ``importance`` times that of x^2. Widths and sparsities broadcast against each
other; scalars give scalars.

"Paper" is arXiv:2604.04037. Other sources are named where they are used.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special
from scipy.optimize import elementwise

Array = NDArray[np.float64]

# --- checks ---------------------------------------------------------------------------------------------------------


def _sparsity(alpha: ArrayLike) -> Array:
    values = np.asarray(alpha, dtype=float)
    if not ((values > 0) & (values < 1)).all():
        raise ValueError(f"alpha = {alpha} is outside (0, 1): give the share of zeros strictly between 0 and 1")
    return values


def _width(width: ArrayLike, whole: bool = True) -> Array:
    values = np.asarray(width, dtype=float)
    if not ((values >= 1) & np.isfinite(values)).all():
        raise ValueError(f"width = {width} is below 1 or not finite: give widths of at least 1")
    if whole and (values != np.floor(values)).any():
        raise ValueError(f"width = {width} is not a whole number: this floor needs widths 1, 2, 3, ...")
    return values


def _features(features: ArrayLike) -> Array:
    values = np.asarray(features, dtype=float)
    if not ((values >= 1) & np.isfinite(values)).all():
        raise ValueError(f"features = {features} is below 1 or not finite: give at least one feature")
    return values


def _importance(importance: ArrayLike) -> Array:
    values = np.asarray(importance, dtype=float)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"importance has shape {values.shape}: give a vector with one weight for each feature")
    if not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(
            f"importance has a weight of {values.min():g} or one that is not finite: give weights of 0 or more"
        )
    if (np.diff(values) > 0).any():
        raise ValueError(
            "importance is not sorted: give the weights in non-increasing order, np.sort(importance)[::-1]"
        )
    return values


# --- the feature distribution ---------------------------------------------------------------------------------------


def second_moment(alpha: ArrayLike) -> Array:
    """E[x^2] = p/3 of one feature: 0 with probability alpha, else uniform on [0, 1]; p = 1 - alpha."""
    return ((1 - _sparsity(alpha)) / 3)[()]


def variance(alpha: ArrayLike) -> Array:
    """Var[x] = p/3 - p^2/4 of one feature: what is lost if the best constant, its mean p/2, is put in its place."""
    p = 1 - _sparsity(alpha)
    return (p / 3 - p**2 / 4)[()]


def zipf(features: int, exponent: float = 1.0) -> Array:
    """Importances i^-exponent, i = 1 ... features, scaled to sum 1 (paper section 4 and Fig. 12: exponent 1)."""
    count = int(_features(features))
    if not (np.isfinite(exponent) and exponent >= 0):
        raise ValueError(f"exponent = {exponent} is not a finite number of 0 or more: 1 is the paper's choice")
    weights = np.arange(1, count + 1, dtype=float) ** -exponent
    return weights / weights.sum()


# --- capacities: features per dimension -----------------------------------------------------------------------------


def g(alpha: ArrayLike) -> Array:
    """The paper's features per dimension, 1 / (p ln(1/p)) with p = 1 - alpha (paper Eq. 1).

    Positive on (0, 1), with its minimum e at alpha = 1 - 1/e and a pole at *both* ends: it is no capacity for dense
    features. The "g(0) = 1" of the paper's Table 7 is a convention, not a limit, so alpha = 0 is refused.
    """
    p = 1 - _sparsity(alpha)
    return (-1 / (p * np.log(p)))[()]


def information_capacity(alpha: ArrayLike) -> Array:
    """Features per dimension that *some* decoder can recover without loss: 1/p (Wu & Verdu 2010).

    The Renyi information dimension of a feature that is continuous with probability p and else 0 is p. A linear map
    to any larger share of dimensions can be inverted with vanishing error as the number of features grows; to a share
    below p it can not, for then more features are active than there are equations. Noiseless and asymptotic.
    """
    return (1 / (1 - _sparsity(alpha)))[()]


def weak_threshold(alpha: ArrayLike, nonnegative: bool = True) -> Array:
    """Features per dimension that l1 minimisation recovers from random projections (Donoho & Tanner 2005, 2009).

    This is the exact phase transition ("weak threshold") that g stands in for. With c = 1 for non-negative features
    and c = 2 for signed ones, the dimensions needed per feature are the minimax risk of soft thresholding (Donoho,
    Maleki & Montanari 2009), M(p) = min_z p (1 + z^2) + (1 - p) c [(1 + z^2) Phi(-z) - z phi(z)]. The result is
    1 / M(p). It falls to 1 for dense features, where g has a pole, and approaches g/2, slowly, as p -> 0. Asymptotic
    in the number of features; other projections and decoders may do better or worse.
    """
    p = 1 - _sparsity(alpha)
    sides = 1 if nonnegative else 2

    def density(z: Array) -> Array:
        return np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)

    def slope(log_z: Array, p: Array) -> Array:  # of a function convex in z: it vanishes once
        z = np.exp(log_z)
        return p / (1 - p) - sides * (density(z) / z - special.ndtr(-z))

    z = np.exp(elementwise.find_root(slope, (np.log(1e-12), np.log(40)), args=(p,)).x)
    dimensions = p * (1 + z**2) + (1 - p) * sides * ((1 + z**2) * special.ndtr(-z) - z * density(z))
    return (1 / dimensions)[()]


def log_capacity(alpha: ArrayLike, kappa: float) -> Array:
    """Features per dimension 1 + kappa ln(1/p): one fitted number, and logarithmic in 1/p where g is nearly linear."""
    if not kappa >= 0:
        raise ValueError(f"kappa = {kappa} is negative: give 0 (one feature per dimension) or more")
    return (1 - kappa * np.log(1 - _sparsity(alpha)))[()]


def features_kept(width: ArrayLike, alpha: ArrayLike) -> NDArray[np.int64]:
    """F_S = floor(width g(alpha)), the number of features the paper lets a student of that width keep (Theorem 1)."""
    return np.floor(_width(width, whole=False) * g(alpha)).astype(np.int64)[()]


def critical_width(features: ArrayLike, alpha: ArrayLike) -> Array:
    """d* = F / g(alpha), in dimensions: the width from which the paper's budget holds every feature (section 3.3)."""
    return (_features(features) / g(alpha))[()]


def critical_width_from_l0(features: ArrayLike, l0: ArrayLike) -> Array:
    """The same d* from the mean number of active features L0 = F (1 - alpha): identically L0 ln(F / L0)."""
    count, active = _features(features), np.asarray(l0, dtype=float)
    if not ((active > 0) & (active < count)).all():
        raise ValueError(f"l0 = {l0} is outside (0, features = {features}): give the mean number of active features")
    return (active * np.log(count / active))[()]


# --- floors ---------------------------------------------------------------------------------------------------------


def _tail(weights: Array, kept: Array) -> Array:
    """Sum of the weights beyond the first ``kept``; a fractional ``kept`` takes that share of the next weight."""
    after = np.append(weights[::-1].cumsum()[::-1], 0.0)  # summed from the small end, so that tails stay exact
    return np.interp(kept, np.arange(after.size), after)[()]


def eq2_floor(
    importance: ArrayLike,
    width: ArrayLike,
    alpha: ArrayLike,
    second_moment: ArrayLike = 1.0,
    capacity: ArrayLike | None = None,
) -> Array:
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
    return _tail(weights, np.floor(_width(width, whole=False) * per_dimension))


def linear_floor(importance: ArrayLike, width: ArrayLike, alpha: ArrayLike) -> Array:
    """The least loss without superposition: the sum of I_i Var[x_i] over the features beyond the first ``width``.

    Exact optimum of a linear (affine) autoencoder by Eckart-Young, since the importance-weighted covariance is
    diagonal. It is below the naive floor at the same width because a bias fills a dropped feature's mean in.
    """
    return (_tail(_importance(importance), _width(width)) * variance(alpha))[()]


def pair_loss(alpha: ArrayLike, refined: bool = False) -> Array:
    """Mean squared error of each of two equally sparse features that share one axis with opposite signs (a "digon").

    As read by x_hat = ReLU(W^T W x + b) with unit weights +1, -1 and no bias the two outputs are ReLU(x - x') and
    ReLU(x' - x), so each is off by min(x, x') and the loss is exactly p^2 E[min(u, v)^2] = p^2/6, for every p:
    nothing is lost unless both are active, and no factor (1 - p)^2 is missing.

    ``refined`` gives the best common scale s (weights +sqrt(s), -sqrt(s)) and bias b = s t, 0 <= t <= 1, in closed
    form up to a search over t. The loss is P(t) s^2 - Q(t) s + p/3, least at s = Q / 2P. It is lower by the share p
    / (8 (4 - 3p)) from the scale alone (0.7 % at p = 0.2) and a share p^2/6, to leading order, from the bias
    (together 1.1 % at p = 0.2): p^2/6 is the leading order of the best pair as p -> 0.
    """
    p = 1 - _sparsity(alpha)
    if not refined:
        return (p**2 / 6)[()]

    def loss(t: Array) -> Array:
        both_cross = 1 / 8 + t / 3 + t**2 / 4 - t**3 / 6 + t**4 / 24  # E[u ReLU(u - v + t)]
        both_square = 1 / 12 + t / 3 + t**2 / 2 + t**3 / 3 - t**4 / 12  # E[ReLU(u - v + t)^2]
        one_square = 1 / 3 + t + t**2 + t**3 / 3  # E[(u + t)^2] + E[ReLU(t - v)^2]
        square = (1 - p) ** 2 * t**2 + p * (1 - p) * one_square + p**2 * both_square
        cross = p * (1 - p) * (2 / 3 + t) + 2 * p**2 * both_cross
        return p / 3 - cross**2 / (4 * square)

    low, high = np.zeros(p.shape), np.ones(p.shape)
    for _ in range(80):  # golden-section search: unimodal in t on [0, 1] (tested against a fine grid)
        left, right = high - (high - low) * 0.6180339887498949, low + (high - low) * 0.6180339887498949
        keep_left = loss(left) <= loss(right)
        low, high = np.where(keep_left, low, left), np.where(keep_left, right, high)
    return np.minimum(loss(np.zeros(p.shape)), loss((low + high) / 2))[()]


def digon_allocation(importance: ArrayLike, width: ArrayLike, alpha: ArrayLike) -> NDArray[np.int64]:
    """The number k of axes that should carry a pair of features, 0 <= k <= min(width, features - width).

    The first width - k features then own an axis, the next 2k share k axes, the rest are dropped. Turning one more
    owned axis into a shared one costs I_{d-k} e and gains I_{d+k+1} (V - e), with e = pair_loss and V = variance:
    the cost grows and the gain shrinks with k, so the loss is convex in k and the best k is the last step that
    pays. With e = p^2/6 that is as long as I_{d-k} / I_{d+k+1} < 2/p - 5/2; for equal importances: exactly if p <
    4/7.
    """
    weights, d = _importance(importance), _width(width)
    d, shared, dropped = np.broadcast_arrays(d, pair_loss(alpha), variance(alpha))
    d = np.minimum(d, weights.size).astype(np.int64)
    low, high = np.zeros(d.shape, dtype=np.int64), np.minimum(d, weights.size - d)
    while (low < high).any():  # bisection for the number of steps that pay
        middle = (low + high + 1) // 2
        step = np.maximum(middle, 1)
        pays = weights[d - step] * shared < weights[np.minimum(d + step, weights.size) - 1] * (dropped - shared)
        low, high = np.where(pays & (low < high), middle, low), np.where(pays | (low >= high), high, middle - 1)
    return low[()]


def digon_floor(importance: ArrayLike, width: ArrayLike, alpha: ArrayLike) -> Array:
    """The loss of the best mix of owned axes, antipodal pairs and dropped features, with no fitted number.

    min over k of e (I_{d-k+1} + ... + I_{d+k}) + V (I_{d+k+1} + ... + I_n), with e = pair_loss(alpha) =
    p^2/6 and V = variance(alpha). A set of weights attains it, so it is a proven *upper* bound on the toy
    model's optimum. Two features a dimension is also the most that costs nothing while features fire one at a time:
    that needs b = 0, unit vectors and no positive inner product, and at most 2d vectors in d dimensions are so.
    """
    weights, d = _importance(importance), np.minimum(_width(width), np.size(importance))
    pairs = digon_allocation(weights, d, alpha)
    owned, carried = _tail(weights, d - pairs), _tail(weights, d + pairs)
    return (pair_loss(alpha) * (owned - carried) + variance(alpha) * carried)[()]


def water_filling_floor(importance: ArrayLike, width: ArrayLike, capacity: ArrayLike, loss: ArrayLike) -> Array:
    """Spend ``width`` dimensions where they help most, given what a feature loses at each share of a dimension.

    ``capacity`` (dimensions per feature, rising from 0) and ``loss`` (mean squared error of one feature there) are
    points of a curve, measured on equal importances, say. Their lower convex hull is what mixtures attain; the best
    split of the width takes the hull's segments in the order of importance times slope (Scherlis et al. 2022). With
    measured curves it is an approximate lower envelope: it supposes that a feature's loss depends on its own share
    alone. With the three points (0, V), (1/2, p^2/6), (1, 0) it is digon_floor.
    """
    weights, d = _importance(importance), _width(width, whole=False)
    share, error = np.asarray(capacity, dtype=float), np.asarray(loss, dtype=float)
    if share.ndim != 1 or share.shape != error.shape or share.size < 2:
        raise ValueError(
            f"capacity {share.shape} and loss {error.shape} differ in shape: give two equally long vectors"
        )
    if share[0] != 0 or not (np.diff(share) > 0).all() or not np.isfinite(error).all():
        raise ValueError("capacity does not rise strictly from 0 or loss is not finite: sort the curve, begin it at 0")
    hull = [0]
    for point in range(1, share.size):
        while len(hull) > 1 and (error[hull[-1]] - error[hull[-2]]) * (share[point] - share[hull[-2]]) >= (
            error[point] - error[hull[-2]]
        ) * (share[hull[-1]] - share[hull[-2]]):
            hull.pop()
        hull.append(point)
    lengths = np.diff(share[hull])
    slopes = np.maximum(-np.diff(error[hull]) / lengths, 0)  # a rising end of the curve is never bought
    rates = np.outer(weights, slopes).ravel()
    order = np.argsort(-rates, kind="stable")
    spent = np.append(0.0, np.tile(lengths, weights.size)[order].cumsum())
    left = np.append(np.cumsum((rates * np.tile(lengths, weights.size))[order][::-1])[::-1], 0.0)
    bottom = weights.sum() * error[hull].min()
    return (np.interp(d, spent, left) + bottom)[()]


def ideal_decoder_floor(importance: ArrayLike, width: ArrayLike, alpha: float) -> Array:
    """A loss that a linear bottleneck attains if any decoder may follow it: a proven counterexample to Theorem 1.

    For almost every W a vector with at most d - 1 non-zero entries is, almost surely, the only such vector that Wx
    could have come from: two supports S, S' of that size agree on Wx only if x_S lies in a proper subspace. So
    encode the first m features and search the supports; fail, and answer 0, when d or more of them are active. The
    loss is at most sum_{i<=m} I_i (p/3) P(Binomial(m-1, p) >= d-1) + V sum_{i>m} I_i, and the result is its minimum
    over m. Up to m = d features own an axis and lose nothing. The search is exponential and needs noiseless
    numbers: it shows what the data processing inequality permits, not what a student can learn.
    """
    weights, d = _importance(importance), _width(width)
    p, kept = 1 - float(_sparsity(alpha)), np.append(0.0, weights.cumsum())
    dropped = np.append(weights[::-1].cumsum()[::-1], 0.0) * variance(alpha)

    def floor(dimensions: int) -> float:
        needed, failure = dimensions - 1, np.zeros(weights.size + 1)  # others that must be active; its chance, by m
        if needed == 0:
            failure[2:] = 1
        elif needed < weights.size:
            # P(Bin(m, p) >= r) grows by p P(Bin(m - 1, p) = r - 1): the r-th success comes at trial m.
            m = np.arange(needed, weights.size)
            ways = special.gammaln(m) - special.gammaln(needed) - special.gammaln(m - needed + 1)
            chances = np.exp(ways + needed * np.log(p) + (m - needed) * np.log1p(-p))
            failure[needed + 1 :] = np.minimum(chances.cumsum(), 1)
            failure[: dimensions + 1] = 0
        return float((kept * failure * p / 3 + dropped).min())

    return np.vectorize(floor, otypes=[float])(d.astype(int))[()]
