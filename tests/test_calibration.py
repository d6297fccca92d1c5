"""Fits against hand-worked lines and plain references; the paper's own calibration from its printed tables."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from minwidth import calibration
from minwidth.ledger import PAPER


def test_lines_by_hand():
    x, y = [0, 1, 2], [1, 2, 5]
    fit = calibration.affine(x, y)
    assert fit.parameters == pytest.approx({"slope": 2, "baseline": 2 / 3})
    assert fit.r_squared == pytest.approx(1 - (6 / 9) / (26 / 3))
    assert calibration.through_zero(x, y).parameters == pytest.approx({"slope": 12 / 5})
    assert calibration.fixed_baseline(x, y, 1.0).parameters == pytest.approx({"slope": 9 / 5, "baseline": 1})
    np.testing.assert_allclose(calibration.fixed_baseline(x, y, 1.0).predict([0, 10]), [1, 19])


@pytest.mark.parametrize("fit", [calibration.affine, calibration.through_zero])
def test_points_left_out_are_predicted_by_a_fit_to_the_others(fit):
    rng = np.random.default_rng(0)
    x = rng.random(12)
    y = 3 * x + 1 + 0.1 * rng.standard_normal(12)
    if fit is calibration.affine:
        reference = stats.linregress(x, y)
        assert fit(x, y).parameters == pytest.approx({"slope": reference.slope, "baseline": reference.intercept})
    left_out = [fit(np.delete(x, i), np.delete(y, i)).predict(x[i]) for i in range(12)]
    assert fit(x, y).leave_one_out == pytest.approx(calibration.r_squared(y, left_out))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: calibration.affine([1, 2], [1, 2]), "2 points are too few for this line: give at least 3"),
        (lambda: calibration.affine([1, 2, 3], [1, 2]), "inconsistent numbers of samples"),
        (lambda: calibration.affine([1, 1, 1], [1, 2, 3]), "x is 1 everywhere"),
        (lambda: calibration.affine([1, 2, np.nan], [1, 2, 3]), "contains NaN"),
        (lambda: calibration.through_zero([0, 0, 0], [1, 2, 3]), "x is 0 everywhere"),
        (lambda: calibration.affine([1, 2, 3], [2, 2, 2]), "does not vary"),
    ],
)
def test_impossible_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_papers_table_4_is_its_affine_fit_and_its_other_slopes_belong_to_no_fit_of_its_kind():
    predicted = pd.read_csv(PAPER / "table2_predicted_floors.csv").predicted_floor.to_numpy()
    observed = pd.read_csv(PAPER / "table3_distillation_floors.csv").kl_per_token.to_numpy()
    affine, zero = calibration.affine(predicted, observed), calibration.through_zero(predicted, observed)
    assert affine.parameters == pytest.approx({"slope": 8.97, "baseline": 0.623}, abs=0.01)
    assert affine.r_squared == pytest.approx(0.993, abs=5e-4)
    assert zero.r_squared == pytest.approx(-1.982, abs=1e-3)  # the printed R^2, but with
    assert zero.parameters["slope"] == pytest.approx(19.20, abs=0.005)  # not the printed 8.97:
    assert calibration.r_squared(observed, 8.97 * predicted) == pytest.approx(-4.27, abs=0.005)
    fixed = calibration.fixed_baseline(predicted[:4], observed[:4], baseline=0.586)
    assert fixed.parameters["slope"] == pytest.approx(9.57, abs=0.005)
    assert fixed.r_squared == pytest.approx(0.976, abs=5e-4)
    assert calibration.r_squared(observed, fixed.predict(predicted)) == pytest.approx(0.982, abs=5e-4)
