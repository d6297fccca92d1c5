"""Fits against hand-worked lines and plain references; 06 has the paper's own tables."""

import numpy as np
import pytest
from scipy import stats

from minwidth import regression


def test_lines_by_hand():
    x, y = [0, 1, 2], [1, 2, 5]
    fit = regression.affine(x, y)
    assert fit.parameters == pytest.approx({"slope": 2, "baseline": 2 / 3})
    assert fit.r_squared == pytest.approx(1 - (6 / 9) / (26 / 3))
    assert regression.through_zero(x, y).parameters == pytest.approx({"slope": 12 / 5})
    assert regression.fixed_baseline(x, y, 1.0).parameters == pytest.approx({"slope": 9 / 5, "baseline": 1})
    np.testing.assert_allclose(regression.fixed_baseline(x, y, 1.0).predict([0, 10]), [1, 19])


@pytest.mark.parametrize("fit", [regression.affine, regression.through_zero])
def test_points_left_out_are_predicted_by_a_fit_to_the_others(fit):
    rng = np.random.default_rng(0)
    x = rng.random(12)
    y = 3 * x + 1 + 0.1 * rng.standard_normal(12)
    if fit is regression.affine:
        reference = stats.linregress(x, y)
        assert fit(x, y).parameters == pytest.approx({"slope": reference.slope, "baseline": reference.intercept})
    left_out = [fit(np.delete(x, i), np.delete(y, i)).predict(x[i]) for i in range(12)]
    assert fit(x, y).leave_one_out == pytest.approx(regression.r_squared(y, left_out))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: regression.affine([1, 2], [1, 2]), "2 points are too few for this line: give at least 3"),
        (lambda: regression.affine([1, 2, 3], [1, 2]), "inconsistent numbers of samples"),
        (lambda: regression.affine([1, 1, 1], [1, 2, 3]), "x is 1 everywhere"),
        (lambda: regression.affine([1, 2, np.nan], [1, 2, 3]), "contains NaN"),
        (lambda: regression.through_zero([0, 0, 0], [1, 2, 3]), "x is 0 everywhere"),
        (lambda: regression.affine([1, 2, 3], [2, 2, 2]), "does not vary"),
    ],
)
def test_impossible_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
