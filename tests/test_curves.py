"""Ends of loss curves: worked by hand, recovered from exact laws; 04's intervals cover as often as they say."""

from types import SimpleNamespace

import jupytext
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar, nnls

from minwidth import curves
from minwidth.store import DATA, ROOT

HAND = curves.Calibration(1.0, {2: 0.25, 4: 0.5})


def test_end_by_hand():
    # falls .4 and .2; b = 1 halves them: .1 more until 2 N, .15 until 4 N
    assert curves.end([1, 2, 4], [1.0, 0.6, 0.4], 2, HAND) == pytest.approx((0.3, 0.25, 0.35))
    assert curves.end([1, 2, 4], [1.0, 0.6, 0.4], 4, HAND) == pytest.approx((0.25, 0.15, 0.35))
    assert curves.end([2, 4], [0.6, 0.4], 4, HAND) == pytest.approx((0.25, 0.15, 0.35))
    assert curves.end([2, 4], [0.6, 0.4], 4, HAND, bound=0.2) == pytest.approx((0.25, 0.2, 0.35))
    # a rise by noise, or a stall, does not make the interval vanish: the unit stays a quarter of the fall before
    for last in (0.6, 0.61):
        found = curves.end([1, 2, 4], [1.0, 0.6, last], 2, HAND)
        assert found == pytest.approx((last - 0.05, last - 0.075, last - 0.025))
    # runs that differ by noise of .1: 1.645 x sqrt(2) x .1 = .2326, and sqrt(.05^2 + .2326^2) = .2379
    noisy = curves.end([1, 2, 4], [1.0, 0.6, 0.4], 2, HAND, noise=0.1)
    assert noisy == pytest.approx((0.3, 0.0621, 0.5379), abs=1e-4)


@given(st.floats(0.1, 10), st.floats(0, 5))
def test_end_follows_the_unit_of_the_loss_and_ignores_an_offset(scale, offset):
    losses = np.array([1.0, 0.7, 0.55])
    plain = curves.end([1, 2, 4], losses, 4, HAND, bound=-np.inf)
    moved = curves.end([3, 6, 12], scale * losses + offset, 4, HAND, bound=-np.inf)
    np.testing.assert_allclose(moved, scale * np.array(plain) + offset)


def test_verdict_by_hand():
    word, end, could_fall = curves.verdict([2, 4], [0.6, 0.4], start=1.4, share=0.3, calibration=HAND)
    assert (word, end.low) == ("floor", pytest.approx(0.15)) and could_fall == pytest.approx(0.25)
    assert curves.verdict([2, 4], [0.6, 0.4], start=1.4, share=0.2, calibration=HAND)[0] == "upper bound"
    # a provable floor right below the last loss makes any share small enough
    assert curves.verdict([2, 4], [0.6, 0.4], start=1.4, share=0.2, calibration=HAND, bound=0.3)[0] == "floor"
    # a student that has hardly begun to learn moves little, and is at no floor for that
    assert curves.verdict([2, 4], [1.39, 1.388], start=1.4, calibration=HAND)[0] == "upper bound"
    for best, said in ((0.35, "floor"), (0.2, "upper bound")):  # 1 nat was learnt, of 1.05 and of 1.2
        assert curves.verdict([2, 4], [0.6, 0.4], start=1.4, best=best, share=0.3, calibration=HAND)[0] == said


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: curves.end([1, 2, 3], [3, 2, 1], calibration=HAND), "do not double"),
        (lambda: curves.end([4, 2, 1], [3, 2, 1], calibration=HAND), "do not double"),
        (lambda: curves.end([1, 2], [3, 2, 1], calibration=HAND), "do not fit"),
        (lambda: curves.end([2], [1], calibration=HAND), "do not fit"),
        (lambda: curves.end([1, 2], [3, np.nan], calibration=HAND), "do not fit"),
        (lambda: curves.end([1, 2], [3, 2], 3, HAND), "not calibrated"),
        (lambda: curves.end([1, 2], [3, 2], 2, HAND, bound=2.5), "below the bound"),
        (lambda: curves.end([1, 2], [3, 2], 2, HAND, noise=np.nan), "no standard deviation"),
        (lambda: curves.verdict([1, 2], [3, 2], start=2, calibration=HAND), "nothing has been learnt"),
    ],
)
def test_bad_input_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


@pytest.fixture(scope="module")
def study() -> SimpleNamespace:
    """The cell of 04 that calibrates."""
    cells = jupytext.read(ROOT / "notebooks" / "04_distill.py").cells
    (source,) = (cell.source for cell in cells if "def calibrate(" in cell.source)
    names = {"np": np, "pd": pd, "nnls": nnls, "minimize_scalar": minimize_scalar, "curves": curves, "DATA": DATA}
    exec(source, names)
    return SimpleNamespace(**names)


def test_exact_power_laws_are_recovered_by_all_but_the_last_value(study):
    rng, tokens, exact = np.random.default_rng(0), 2.0 ** np.arange(6), []
    for model in range(12):  # one exponent, and each its own limit and scale
        losses = rng.uniform(1, 3) + rng.uniform(0.5, 2) * tokens**-0.5
        exact.append(pd.DataFrame({"model": f"m{model:02}", "tokens": tokens, "loss": losses}))
    frame = study.cases(pd.concat(exact, ignore_index=True))
    assert study.calibrate(frame).exponent == pytest.approx(0.5, abs=1e-4)
    np.testing.assert_allclose(frame["geometric"], frame.fall, rtol=1e-6)
    fitted = frame[frame.tokens >= 8]  # four points for three parameters, and a grid of exponents
    np.testing.assert_allclose(fitted["power law"], fitted.fall, rtol=0.05)
    # places with a quarter, a half and an end: tokens 4, 8, 16 with 2 x, 4 and 8 with 4 x, 4 with 8 x
    assert sorted(zip(*np.unique(frame.ahead, return_counts=True), strict=True)) == [(2, 36), (4, 24), (8, 12)]


def test_radius_is_the_conformal_quantile_with_equal_weight_for_each_model(study):
    frame = pd.DataFrame({"model": [f"m{i:02}" for i in range(19)], "ahead": 2, "unit": 2.0, "last value": 0.0})
    frame["fall"] = np.arange(1.0, 20)
    # of 19 errors in units, 1/2 ... 19/2, the 18th: (19 + 1) x .9
    assert study.calibrate(frame, "last value").radius == {2: 9.0}
    assert study.calibrate(frame, "last value", 0.5).radius == {2: 5.0}
    repeated = pd.concat([frame, *[frame[:1]] * 50])  # a model with many cases counts no more than another
    assert study.calibrate(repeated, "last value").radius == {2: 9.0}
    assert study.calibrate(frame[:5], "last value").radius == {2: 2.5}  # the largest: no quantile of 5 models is safe


def test_interval_covers_exchangeable_models_as_often_as_it_says(study):
    rng, hits = np.random.default_rng(0), []
    for _ in range(100):
        model, unit = np.repeat(np.arange(60), 3), rng.lognormal(size=180)
        shares = 0.7 + 0.1 * rng.standard_t(3, 60)[model] + 0.1 * rng.standard_normal(180)  # a model's cases are alike
        every = pd.DataFrame({"model": model.astype(str), "ahead": 2, "unit": unit, "fall": shares * unit})
        hits.append(study.judged(every[model % 2 == 1], study.calibrate(every[model % 2 == 0])).hit.mean())
    assert 0.89 < np.mean(hits) < 0.95
