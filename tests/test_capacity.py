"""The formulas against hand-worked values, brute force, sampling and each other."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


def test_g_at_hand_worked_points():
    assert capacity.g(1 - 1 / math.e) == pytest.approx(math.e)  # p = 1/e: 1 / (p ln(1/p)) = e / 1
    assert capacity.g(0.5) == pytest.approx(2 / math.log(2))
    np.testing.assert_allclose(capacity.g([0.8, 0.9, 0.95, 0.99]), [3.1067, 4.3429, 6.6762, 21.7147], rtol=2e-5)
    assert capacity.g(1e-6) > 1e5 and capacity.g(1 - 1e-6) > 1e4  # a pole at both ends
    assert capacity.g(0.992) == pytest.approx(25.89, abs=0.005)  # the paper's Table 7 prints 27.0,
    assert capacity.g(0.9924) == pytest.approx(27.0, abs=0.05)  # which belongs to this sparsity


@searched
@given(st.floats(2, 1e6), sparsities)
def test_critical_width_is_l0_times_the_log_of_features_over_l0(features, alpha):
    l0 = features * (1 - alpha)
    assert capacity.critical_width(features, alpha) == pytest.approx(l0 * math.log(features / l0), rel=1e-9)
    assert capacity.critical_width_from_l0(features, l0) == pytest.approx(capacity.critical_width(features, alpha))


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
    }
    slack = 1e-12 * (1 + importance.sum())
    for name, values in floors.items():
        assert (values >= -slack).all(), name
        assert values[1] <= values[0] + slack, name
    for higher, lower in (("naive", "linear"), ("linear", "digon"), ("naive", "eq2")):
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


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 1.5, math.nan, [0.5, 1.0]])
def test_sparsity_outside_its_range_is_refused(alpha):
    for function in (capacity.g, capacity.variance, capacity.pair_loss):
        with pytest.raises(ValueError, match=r"alpha = .* outside \(0, 1\)"):
            function(alpha)


@pytest.mark.parametrize("function", [capacity.linear_floor, capacity.digon_floor, capacity.eq2_floor])
def test_bad_widths_and_importances_are_refused(function):
    for importance, width, message in (
        ([1.0], 0, "width = 0 is below 1"),
        ([1.0], [1, math.inf], "below 1 or not finite"),
        ([1.0, 2.0], 1, "not sorted"),
        ([1.0, -2.0], 1, "of -2 or one"),
        ([[1.0, 2.0]], 1, "shape"),
        ([], 1, "shape"),
    ):
        with pytest.raises(ValueError, match=message):
            function(importance, width, 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: capacity.digon_floor([1.0], 1.5, 0.5), "not a whole number"),
        (lambda: capacity.eq2_floor([1.0], 1, 0.5, second_moment=-1), "negative"),
        (lambda: capacity.eq2_floor([1.0], 1, 0.5, capacity=0), "not positive"),
        (lambda: capacity.critical_width(0, 0.5), "features = 0"),
        (lambda: capacity.critical_width_from_l0(100, 100), "l0 = 100"),
        (lambda: capacity.critical_width_from_l0(100, 0), "l0 = 0"),
        (lambda: capacity.zipf(3, -1), "exponent = -1"),
    ],
)
def test_impossible_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
