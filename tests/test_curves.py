"""Ends of loss curves: worked by hand, recovered from exact laws, and intervals that cover on public runs."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minwidth import curves

HAND = curves.Calibration("shared exponent", 1.0, {2: 0.25, 4: 0.5}, 20, 0.9)


def exact(models=12, exponent=0.5):
    """Power laws of one exponent, doubling five times, each with its own limit and scale."""
    rng, tokens = np.random.default_rng(0), 2.0 ** np.arange(6)
    rows = []
    for model in range(models):
        losses = rng.uniform(1, 3) + rng.uniform(0.5, 2) * tokens**-exponent
        rows.append(pd.DataFrame({"model": f"m{model:02}", "params": model, "tokens": tokens, "loss": losses}))
    return pd.concat(rows, ignore_index=True)


# --- the end of a ladder


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
        (lambda: curves.verdict([1, 2], [3, 2], start=2, calibration=HAND), "nothing has been learnt"),
        (lambda: curves.public("gemstones"), "no kind"),
        (lambda: curves.calibrate(curves.cases(exact()), "exponential"), "unknown"),
    ],
)
def test_bad_input_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


# --- calibration


def test_exact_power_laws_are_recovered_by_all_but_the_last_value():
    frame = curves.cases(exact(exponent=0.5))
    assert curves.calibrate(frame).exponent == pytest.approx(0.5, abs=1e-4)
    np.testing.assert_allclose(frame["geometric"], frame.fall, rtol=1e-6)
    fitted = frame[frame.tokens >= 8]  # four points for three parameters, and a grid of exponents
    np.testing.assert_allclose(fitted["power law"], fitted.fall, rtol=0.05)
    # places with a quarter, a half and an end: tokens 4, 8, 16 with 2 x, 4 and 8 with 4 x, 4 with 8 x
    assert sorted(zip(*np.unique(frame.ahead, return_counts=True), strict=True)) == [(2, 36), (4, 24), (8, 12)]


def test_radius_is_the_conformal_quantile_with_equal_weight_for_each_model():
    frame = pd.DataFrame({"model": [f"m{i:02}" for i in range(19)], "ahead": 2, "unit": 2.0, "last value": 0.0})
    frame["fall"] = np.arange(1.0, 20)
    # of 19 errors in units, 1/2 ... 19/2, the 18th: (19 + 1) x .9
    assert curves.calibrate(frame, "last value").radius == {2: 9.0}
    assert curves.calibrate(frame, "last value", 0.5).radius == {2: 5.0}
    crowd = frame[frame.model == "m00"]
    repeated = pd.concat([frame, *[crowd] * 50])  # a model with many cases counts no more than another
    assert curves.calibrate(repeated, "last value").radius == {2: 9.0}
    few = curves.calibrate(frame.head(5), "last value")
    assert few.radius == {2: 2.5} and few.models == 5  # the largest error: no quantile of 5 models is safe


def test_interval_covers_exchangeable_models_as_often_as_it_says():
    rng, hits = np.random.default_rng(0), []
    for _ in range(100):
        model, unit = np.repeat(np.arange(60), 3), rng.lognormal(size=180)
        shares = 0.7 + 0.1 * rng.standard_t(3, 60)[model] + 0.1 * rng.standard_normal(180)  # a model's cases are alike
        every = pd.DataFrame({"model": model.astype(str), "ahead": 2, "unit": unit, "fall": shares * unit})
        calibration = curves.calibrate(every[model % 2 == 0])
        hits.append(curves.judged(every[model % 2 == 1], calibration).hit.mean())
    assert 0.89 < np.mean(hits) < 0.95


def test_public_models_left_out_of_calibration_are_covered():
    found = []
    for kind, models in (("finished", 12), ("path", 22)):
        table = curves.public(kind)
        half, every = curves.alternate(table), curves.cases(table)
        assert table.model.nunique() == models and len(half) == models // 2
        found.append(curves.judged(every[~every.model.isin(half)], curves.calibrate(every[every.model.isin(half)])))
    for _, group in pd.concat(found).query("ahead <= 4").groupby("ahead"):
        assert 0.80 <= group.hit.mean() <= 0.97
        assert group.error.abs().mean() < group.fall.abs().mean() / 4


# --- laws


@given(st.floats(0, 3), st.floats(0.1, 3), st.floats(0.1, 2))
def test_power_law_finds_its_own_curve(limit, scale, exponent):
    steps = 2.0 ** np.arange(8)
    found = curves.power_law(steps, limit + scale * steps**-exponent)
    assert found[2] == pytest.approx(exponent, rel=0.06)
    assert found[0] + found[1] * 256.0 ** -found[2] == pytest.approx(limit + scale * 256.0**-exponent, abs=0.01 * scale)
