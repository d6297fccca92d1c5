"""The formulas against hand-worked values, brute force, sampling, linear programmes and each other."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from minwidth import capacity

sparsities = st.floats(0.02, 0.999)
importances = st.lists(st.floats(0, 10), min_size=1, max_size=30).map(lambda w: np.sort(w)[::-1])
searched = settings(max_examples=40, deadline=None)


def toy_loss(weights, bias, importance, x):
    """Importance-weighted squared error of x_hat = ReLU(W^T W x + b), features in rows, samples in columns."""
    return importance @ ((np.maximum(weights.T @ weights @ x + bias[:, None], 0) - x) ** 2).mean(1)


def sample(features, alpha, rows, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((features, rows)) * (rng.random((features, rows)) > alpha)


# --- g and the critical width


def test_g_at_hand_worked_points():
    assert capacity.g(1 - 1 / math.e) == pytest.approx(math.e)  # p = 1/e: 1 / (p ln(1/p)) = e / 1
    assert capacity.g(0.5) == pytest.approx(2 / math.log(2))
    np.testing.assert_allclose(capacity.g([0.8, 0.9, 0.95, 0.99]), [3.1067, 4.3429, 6.6762, 21.7147], rtol=2e-5)
    assert capacity.g(0.992) == pytest.approx(25.89, abs=0.005)  # the paper's Table 7 prints 27.0,
    assert capacity.g(0.9924) == pytest.approx(27.0, abs=0.05)  # which belongs to this sparsity


def test_g_has_a_pole_at_both_ends():
    assert capacity.g(1e-6) > 1e5 and capacity.g(1 - 1e-6) > 1e4


@searched
@given(st.floats(2, 1e6), sparsities)
def test_critical_width_is_l0_times_the_log_of_features_over_l0(features, alpha):
    l0 = features * (1 - alpha)
    assert capacity.critical_width(features, alpha) == pytest.approx(l0 * math.log(features / l0), rel=1e-9)
    assert capacity.critical_width_from_l0(features, l0) == pytest.approx(capacity.critical_width(features, alpha))


def test_critical_widths_of_the_papers_table_1_are_reproduced_to_the_digit():
    alive, l0 = np.array([31_006, 28_665, 29_169]), np.array([234.9, 218.3, 249.0])
    np.testing.assert_array_equal(np.round(capacity.critical_width_from_l0(alive, l0)), [1147, 1065, 1186])
    np.testing.assert_allclose(capacity.g(1 - l0 / alive), [27.04, 26.92, 24.60], atol=0.008)


def test_features_kept_reproduces_the_papers_table_2_from_an_l0_that_rounds_to_the_printed_one():
    l0 = 218.3 + np.linspace(-0.05, 0.05, 2001)
    kept = np.stack([capacity.features_kept(width, 1 - l0 / 28_665) for width in (128, 256, 512, 768, 1024)], axis=1)
    assert (kept == [3446, 6892, 13_784, 20_676, 27_568]).all(1).any()  # all five by floor, with one and the same L0
    assert capacity.features_kept(3, 1 - 1 / math.e) == 8  # floor(3 e), not round


# --- capacities that g is compared with


@pytest.mark.parametrize("nonnegative", [True, False])
def test_weak_threshold_is_where_linear_programmes_begin_to_recover(nonnegative):
    rng = np.random.default_rng(1)
    features, active, trials = 160, 16, 12
    threshold = features / capacity.weak_threshold(1 - active / features, nonnegative)

    def recovered(width):
        count = 0
        for _ in range(trials):
            a, x = rng.standard_normal((width, features)), np.zeros(features)
            x[:active] = rng.random(active) if nonnegative else rng.standard_normal(active)
            system = a if nonnegative else np.hstack([a, -a])
            solved = linprog(np.ones(system.shape[1]), A_eq=system, b_eq=a @ x, bounds=(0, None)).x
            found = solved if nonnegative else solved[:features] - solved[features:]
            count += np.abs(found - x).max() < 1e-6
        return count / trials

    assert recovered(round(1.3 * threshold)) > 0.8
    assert recovered(round(0.75 * threshold)) < 0.2


@searched
@given(sparsities, sparsities)
def test_capacities_are_ordered_and_monotone(first, second):
    low, high = sorted((first, second))
    alpha = np.array([low, high])
    for values in (
        capacity.weak_threshold(alpha),
        capacity.weak_threshold(alpha, nonnegative=False),
        capacity.information_capacity(alpha),
    ):
        assert values[0] <= values[1] * (1 + 1e-9)
    signed, nonnegative = capacity.weak_threshold(alpha, nonnegative=False), capacity.weak_threshold(alpha)
    assert (signed >= 1 - 1e-9).all() and (signed <= nonnegative + 1e-9).all()
    assert (nonnegative <= capacity.information_capacity(alpha)).all()


def test_limits_of_the_weak_threshold():
    assert capacity.weak_threshold(1e-5) == pytest.approx(1, abs=1e-3)  # dense: one feature a dimension, no pole
    ratio = capacity.weak_threshold(1 - 10.0 ** -np.array([2, 6, 10, 14])) / capacity.g(
        1 - 10.0 ** -np.array([2, 6, 10, 14])
    )
    assert (np.diff(ratio) < 0).all() and 0.5 < ratio[-1] < 0.65  # g/2 as p -> 0, slowly


# --- Eq. 2 and the linear optimum


def test_eq2_by_hand():
    importance = np.array([5.0, 3.0, 2.0, 1.0])
    assert capacity.eq2_floor(importance, 1, 1 - 1 / math.e) == pytest.approx(3)  # floor(e) = 2 kept
    assert capacity.eq2_floor(importance, 1, 0.5, capacity=1) == pytest.approx(6)
    np.testing.assert_allclose(
        capacity.eq2_floor(importance, [1, 2, 3, 4, 9], 0.5, 0.5, capacity=1), [3, 1.5, 0.5, 0, 0]
    )
    assert capacity.eq2_floor(importance, 1, 0.5, second_moment=[1, 1, 1, 2], capacity=2) == pytest.approx(4)
    assert isinstance(capacity.eq2_floor(importance, 1, 0.5), float)


@searched
@given(importances, sparsities, st.integers(1, 30))
def test_floors_keep_their_order_and_fall_with_width(importance, alpha, width):
    widths = np.array([width, width + 1])
    square = capacity.second_moment(alpha)
    floors = {
        "naive": capacity.eq2_floor(importance, widths, alpha, square, capacity=1),
        "linear": capacity.linear_floor(importance, widths, alpha),
        "digon": capacity.digon_floor(importance, widths, alpha),
        "eq2": capacity.eq2_floor(importance, widths, alpha, square),
        "ideal": capacity.ideal_decoder_floor(importance, widths, alpha),
    }
    slack = 1e-12 * (1 + importance.sum())
    for name, values in floors.items():
        assert (values >= -slack).all(), name
        assert values[1] <= values[0] + slack, name
    for higher, lower in (
        ("naive", "linear"),
        ("linear", "digon"),
        ("naive", "eq2"),
        ("linear", "ideal"),
    ):
        assert (floors[higher] >= floors[lower] - slack).all(), (higher, lower)


def test_linear_floor_is_the_least_of_trained_linear_autoencoders():
    alpha, importance = 0.7, np.array([4.0, 2.0, 1.0])
    covariance = np.diag(importance * capacity.variance(alpha))
    rng = np.random.default_rng(0)
    for _ in range(200):  # any rank-1 projection, near the optimum and far from it, loses at least the floor
        direction = np.array([1.0, 0, 0]) + rng.choice([0.01, 1.0]) * rng.standard_normal(3)
        direction /= np.linalg.norm(direction)
        left = np.trace(covariance) - direction @ covariance @ direction
        assert left >= capacity.linear_floor(importance, 1, alpha) - 1e-12
    assert capacity.linear_floor(importance, 1, alpha) == pytest.approx(3 * (0.3 / 3 - 0.09 / 4))


# --- pairs


@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.8, 0.95])
def test_pair_loss_is_exact_at_every_sparsity(alpha):
    """p^2/6 is no leading order: it is what unit antipodal weights without bias lose, dense or sparse."""
    x, p = sample(2, alpha, 2_000_000), 1 - alpha
    squares = (np.maximum(np.array([[1, -1], [-1, 1]]) @ x, 0) - x) ** 2
    error = squares.std() / math.sqrt(squares.size)
    assert squares.mean() == pytest.approx(capacity.pair_loss(alpha), abs=4 * error)
    assert capacity.pair_loss(alpha) == pytest.approx(p**2 / 6)


def best_pair_by_quadrature(alpha):
    """Least loss over a grid of scale and bias, by midpoint quadrature over the unit square: no formula shared."""
    u, p = (np.arange(60) + 0.5) / 60, 1 - alpha
    scales, biases = np.linspace(0.6, 1.1, 41), np.linspace(0, 0.4, 81)
    s, b = scales[:, None, None], biases[None, :, None]
    one = ((u - np.maximum(s * u + b, 0)) ** 2).mean(-1) + (np.maximum(b - s * u, 0) ** 2).mean(-1)
    both = np.zeros((41, 81))
    for v in u:
        both += ((u - np.maximum(s * (u - v) + b, 0)) ** 2).mean(-1) / u.size
    return (alpha**2 * biases**2 + p * alpha * one + p**2 * both).min()


@pytest.mark.parametrize("alpha", [0.5, 0.8, 0.9])
def test_refined_pair_is_the_best_symmetric_pair(alpha):
    refined = capacity.pair_loss(alpha, refined=True)
    grid = best_pair_by_quadrature(alpha)
    assert refined <= grid * (1 + 1e-3)  # of the quadrature
    assert refined == pytest.approx(grid, rel=4e-3)


def brute_force_digon(importance, width, alpha):
    p, n = 1 - alpha, len(importance)
    losses = []
    for k in range(min(width, n - width) + 1):
        shared, dropped = importance[width - k : width + k].sum(), importance[width + k :].sum()
        losses.append(p**2 / 6 * shared + (p / 3 - p**2 / 4) * dropped)
    return min(losses)


@searched
@given(importances, st.lists(sparsities, min_size=1, max_size=4))
def test_digon_floor_is_the_least_over_all_numbers_of_pairs(importance, alphas):
    widths = np.arange(1, importance.size + 1)
    floors = capacity.digon_floor(importance, widths[:, None], np.array(alphas))
    assert floors.shape == (importance.size, len(alphas))
    expected = [[brute_force_digon(importance, int(w), a) for a in alphas] for w in widths]
    np.testing.assert_allclose(floors, expected, rtol=1e-9, atol=1e-12)


@searched
@given(importances, sparsities)
def test_digon_floor_is_water_filling_with_three_points(importance, alpha):
    widths = np.arange(1, importance.size + 1)
    curve = [capacity.variance(alpha), capacity.pair_loss(alpha), 0]
    filled = capacity.water_filling_floor(importance, widths, [0, 0.5, 1], curve)
    np.testing.assert_allclose(capacity.digon_floor(importance, widths, alpha), filled, rtol=1e-9, atol=1e-12)


def test_equal_features_pair_up_exactly_below_four_sevenths():
    importance = np.ones(10)
    assert capacity.digon_allocation(importance, 5, 1 - 4 / 7 - 1e-6) == 0
    assert capacity.digon_allocation(importance, 5, 1 - 4 / 7 + 1e-6) == 5


@pytest.mark.parametrize("alpha", [0.8, 0.95])
def test_digon_floor_is_attained_by_weights(alpha):
    """Build the weights the allocation describes, run the toy model on samples: its loss is the floor."""
    n, d = 12, 4
    importance = capacity.zipf(n)
    k = int(capacity.digon_allocation(importance, d, alpha))
    assert k > 0
    weights, bias = np.zeros((d, n)), np.zeros(n)
    weights[range(d - k), range(d - k)] = 1
    for pair in range(k):
        first = d - k + 2 * pair
        weights[d - k + pair, first : first + 2] = 1, -1
    bias[d + k :] = (1 - alpha) / 2
    losses = [toy_loss(weights, bias, importance, sample(n, alpha, 200_000, seed)) for seed in range(8)]
    error = np.std(losses, ddof=1) / math.sqrt(len(losses))
    assert np.mean(losses) == pytest.approx(capacity.digon_floor(importance, d, alpha), abs=4 * error)


# --- water filling and the ideal decoder


def test_water_filling_by_hand():
    # hull of the curve: (0, 1), (0.5, 0.2), (1, 0); the point (0.25, 0.9) lies above it, the rise at 1.5 is not bought
    curve = [0, 0.25, 0.5, 1, 1.5], [1, 0.9, 0.2, 0, 0.3]
    floors = capacity.water_filling_floor([10, 1], [1, 1.5, 2, 7], *curve)
    # half a dimension each: slopes 1.6 and 0.4, times 10 and 1: order 16, 4, 1.6, 0.4
    np.testing.assert_allclose(floors, [11 - 8 - 2, 11 - 8 - 2 - 0.8, 0, 0], atol=1e-12)


@searched
@given(importances, st.lists(st.floats(0.01, 1), min_size=2, max_size=6), st.integers(1, 10))
def test_water_filling_is_below_every_split_of_the_width(importance, losses, width):
    share = np.arange(len(losses)) / (len(losses) - 1)
    floor = capacity.water_filling_floor(importance, width, share, losses)
    rng = np.random.default_rng(0)
    for _ in range(20):
        split = rng.dirichlet(np.ones(importance.size)) * width
        lost = importance @ np.interp(split, share, losses)
        assert floor <= lost + 1e-9 * (1 + importance.sum())


def test_ideal_decoder_floor_by_brute_force_over_binomials():
    importance, alpha, n = capacity.zipf(15), 0.9, 15
    p = 1 - alpha
    for d in (1, 2, 3, 6, 15):
        losses = []
        for m in range(n + 1):
            failure = sum(math.comb(m - 1, r) * p**r * alpha ** (m - 1 - r) for r in range(d - 1, m)) if m > d else 0.0
            losses.append(importance[:m].sum() * p / 3 * failure + capacity.variance(alpha) * importance[m:].sum())
        assert capacity.ideal_decoder_floor(importance, d, alpha) == pytest.approx(min(losses), abs=1e-14)


def test_ideal_decoder_beats_the_papers_lower_bound():
    """The counterexample: a width-d linear bottleneck that loses less than Theorem 1 says any student must."""
    importance = np.full(1000, 1e-3)
    attained = capacity.ideal_decoder_floor(importance, 5, 0.999)
    claimed = capacity.eq2_floor(importance, 5, 0.999, capacity.second_moment(0.999))
    assert attained < claimed / 10


# --- bad input


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 1.5, math.nan, [0.5, 1.0]])
def test_sparsity_outside_its_range_is_refused(alpha):
    for function in (capacity.g, capacity.weak_threshold, capacity.variance, capacity.pair_loss):
        with pytest.raises(ValueError, match=r"alpha = .* outside \(0, 1\)"):
            function(alpha)


@pytest.mark.parametrize("function", [capacity.linear_floor, capacity.digon_floor, capacity.eq2_floor])
def test_bad_widths_and_importances_are_refused(function):
    with pytest.raises(ValueError, match="width = 0 is below 1"):
        function([1.0], 0, 0.5)
    with pytest.raises(ValueError, match="below 1 or not finite"):
        function([1.0], [1, math.inf], 0.5)
    with pytest.raises(ValueError, match="not sorted"):
        function([1.0, 2.0], 1, 0.5)
    with pytest.raises(ValueError, match="of -2 or one"):
        function([1.0, -2.0], 1, 0.5)
    with pytest.raises(ValueError, match="shape"):
        function([[1.0, 2.0]], 1, 0.5)
    with pytest.raises(ValueError, match="shape"):
        function([], 1, 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: capacity.digon_floor([1.0], 1.5, 0.5), "not a whole number"),
        (lambda: capacity.eq2_floor([1.0], 1, 0.5, second_moment=-1), "negative"),
        (lambda: capacity.eq2_floor([1.0], 1, 0.5, capacity=0), "not positive"),
        (lambda: capacity.critical_width(0, 0.5), "features = 0"),
        (lambda: capacity.critical_width_from_l0(100, 100), "l0 = 100"),
        (lambda: capacity.critical_width_from_l0(100, 0), "l0 = 0"),
        (lambda: capacity.log_capacity(0.5, -1), "kappa = -1"),
        (lambda: capacity.zipf(3, -1), "exponent = -1"),
        (lambda: capacity.water_filling_floor([1.0], 1, [0, 1], [1]), "differ in shape"),
        (lambda: capacity.water_filling_floor([1.0], 1, [0.1, 1], [1, 0]), "strictly from 0"),
        (lambda: capacity.water_filling_floor([1.0], 1, [0, 0.5, 0.5], [1, 0.5, 0]), "strictly from 0"),
    ],
)
def test_impossible_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
