"""Shapes and sparse recovery against formulas and hand-worked cases."""

import numpy as np
import pytest

from minwidth import capacity, packing


@pytest.mark.parametrize("sides", [2, 3, 5, 6])
def test_polygon_is_regular_and_centred(sides):
    directions = packing.polygon(sides)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=0), 1)
    np.testing.assert_allclose(directions.sum(1), 0, atol=1e-12)
    np.testing.assert_allclose((directions.T @ directions)[0, 1], np.cos(2 * np.pi / sides), atol=1e-12)


def test_read_out_by_hand():
    x = np.array([[0.5, 0.5, 0.0], [0.0, 0.2, 0.3]])
    np.testing.assert_allclose(packing.read_out(np.array([[1.0, -1.0]]), x), [[0.5, 0.3, 0], [0, 0, 0.3]])
    shifted = packing.read_out(np.array([[1.0, -1.0]]), x, [0.1, -0.1])
    np.testing.assert_allclose(shifted, [[0.6, 0.4, 0], [0, 0, 0.2]])


def test_shape_loss_of_a_pair_and_of_an_own_axis_are_the_formulas():
    alpha = np.array([0.2, 0.5, 0.8, 0.95])
    pair = packing.shape_loss(np.array([[1.0, -1.0]]), alpha)
    np.testing.assert_allclose(pair, capacity.pair_loss(alpha, refined=True), rtol=0.03)
    np.testing.assert_allclose(packing.shape_loss(np.eye(2), alpha), 0, atol=1e-12)


def test_shape_loss_of_a_triangle_is_an_eighth_of_p_squared_when_sparse():
    """Two neighbours at 120 degrees: each costs p^2 E[min(u, v/2)^2] = p^2/16."""
    alpha = np.array([0.99, 0.999])
    np.testing.assert_allclose(packing.shape_loss(packing.polygon(3), alpha) / (1 - alpha) ** 2, 1 / 8, rtol=0.04)


def test_shape_loss_repeats_by_seed_and_never_exceeds_dropping():
    alpha = np.linspace(0.05, 0.99, 9)
    first, again = (packing.shape_loss(packing.polygon(7), alpha, seed=1) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (first <= capacity.variance(alpha)).all()


def test_recovery_rates_rise_from_never_to_always_and_repeat_by_seed():
    rates = packing.recovery_rates(40, 3, [4, 12, 30], trials=6, seed=0)
    assert rates[0] < 0.4 and rates[2] == 1
    assert rates == packing.recovery_rates(40, 3, [4, 12, 30], trials=6, seed=0)


def test_impossible_input_is_named():
    with pytest.raises(ValueError, match="sides = 0"):
        packing.polygon(0)
    with pytest.raises(ValueError, match="active = 9"):
        packing.recovery_rates(9, 9, [3], trials=1, seed=0)
