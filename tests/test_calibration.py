"""Fits against plain references, and the paper's own calibration recomputed from its printed tables."""

import functools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from minwidth import calibration, capacity
from minwidth.store import DATA


def table(name):
    return pd.read_csv(DATA / "paper" / f"{name}.csv")


@pytest.fixture(scope="module")
def paper():
    """Widths, Eq. 2 as printed (Table 2) and observed floors (Table 3) of the paper's five students."""
    predicted, observed = table("table2_predicted_floors"), table("table3_distillation_floors")
    assert (predicted["width"] == observed["width"]).all()
    return predicted["width"].to_numpy(), predicted["predicted_floor"].to_numpy(), observed["kl_per_token"].to_numpy()


# --- the forms


def test_lines_by_hand():
    x, y = [0, 1, 2], [1, 2, 5]
    fit = calibration.affine(x, y)
    assert fit.parameters == pytest.approx({"slope": 2, "baseline": 2 / 3})
    np.testing.assert_allclose(fit.residuals, [1 / 3, -2 / 3, 1 / 3])
    assert fit.r_squared == pytest.approx(1 - (6 / 9) / (26 / 3))
    assert calibration.through_zero(x, y).parameters == pytest.approx({"slope": 12 / 5})
    assert calibration.fixed_baseline(x, y, 1.0).parameters == pytest.approx({"slope": 9 / 5, "baseline": 1})
    np.testing.assert_allclose(calibration.fixed_baseline(x, y, 1.0).predict([0, 10]), [1, 19])


def test_intervals_and_left_out_points_agree_with_references():
    rng = np.random.default_rng(0)
    x = rng.random(12)
    y = 3 * x + 1 + 0.1 * rng.standard_normal(12)
    fit, reference = calibration.affine(x, y, confidence=0.9), stats.linregress(x, y)
    half = stats.t.ppf(0.95, 10) * np.array([reference.stderr, reference.intercept_stderr])
    np.testing.assert_allclose(fit.intervals["slope"], reference.slope + half[0] * np.array([-1, 1]))
    np.testing.assert_allclose(fit.intervals["baseline"], reference.intercept + half[1] * np.array([-1, 1]))
    design = np.stack([x, np.ones(12)], 1)  # PRESS in closed form, by the leverages
    leverage = (design @ np.linalg.inv(design.T @ design) * design).sum(1)
    press = ((fit.residuals / (1 - leverage)) ** 2).sum()
    assert fit.leave_one_out == pytest.approx(1 - press / ((y - y.mean()) ** 2).sum())
    squares = (fit.residuals**2).sum()
    assert fit.aicc == pytest.approx(12 * np.log(squares / 12) + 2 * 3 + 2 * 3 * 4 / (12 - 3 - 1))


def test_interval_covers_the_true_slope_as_often_as_it_says():
    rng, x = np.random.default_rng(1), np.array([0.0, 0.1, 0.3, 0.6, 1.0])
    hits = 0
    for _ in range(400):
        low, high = calibration.affine(x, 2 * x + rng.standard_normal(5), confidence=0.8).intervals["slope"]
        hits += low <= 2 <= high
    assert 0.74 < hits / 400 < 0.86  # three standard errors


@settings(max_examples=30, deadline=None)
@given(st.floats(0.5, 20), st.floats(0.1, 3), st.floats(-1, 1))
def test_power_law_finds_what_made_the_points(scale, exponent, asymptote):
    width = np.array([1.0, 2, 4, 8, 16, 32])
    fit = calibration.power_law(width, scale * width**-exponent + asymptote)
    assert fit.parameters == pytest.approx(
        {"scale": scale, "exponent": exponent, "asymptote": asymptote}, rel=1e-3, abs=1e-3
    )
    assert fit.r_squared == pytest.approx(1, abs=1e-9) and fit.leave_one_out == pytest.approx(1, abs=1e-6)


def test_power_law_agrees_with_a_general_optimiser_and_its_interval_with_a_likelihood_scan():
    rng, width = np.random.default_rng(0), np.array([8.0, 16, 24, 32, 48, 64, 96, 128])
    y = 5 * width**-0.8 + 0.1 + 0.005 * rng.standard_normal(8)
    fit = calibration.power_law(width, y)
    (scale, exponent, asymptote), _ = optimize.curve_fit(lambda d, a, g, b: a * d**-g + b, width, y, p0=(5, 1, 0))
    assert fit.parameters == pytest.approx({"scale": scale, "exponent": exponent, "asymptote": asymptote}, rel=1e-3)
    limit = (fit.residuals**2).sum() * (1 + stats.f.ppf(0.95, 1, 5) / 5)

    def squares_at(asymptote):  # least over scale and exponent
        def squares(g):
            basis = width**-g
            return ((y - asymptote - basis * (basis @ (y - asymptote)) / (basis @ basis)) ** 2).sum()

        return optimize.minimize_scalar(squares, bounds=(0.01, 5), method="bounded").fun

    for end in fit.intervals["asymptote"]:
        assert squares_at(end) == pytest.approx(limit, rel=0.02)


def test_power_law_says_when_a_logarithm_is_not_excluded():
    width = np.array([8.0, 16, 32, 64, 128])
    fit = calibration.power_law(width, 3 - 0.4 * np.log(width) + np.array([0.02, -0.02, 0.01, -0.02, 0.02]))
    assert fit.intervals["exponent"][0] == 0
    assert fit.intervals["asymptote"][0] == -np.inf and fit.intervals["scale"][1] == np.inf


def test_five_points_are_too_few_for_aicc_with_three_parameters():
    width = np.array([8.0, 16, 32, 64, 128, 256])
    y = 1 / width + np.array([0.01, -0.01, 0.01, 0.0, 0.01, -0.01])
    assert calibration.power_law(width[:5], y[:5]).aicc == np.inf
    assert np.isfinite(calibration.power_law(width, y).aicc)


def test_bootstrap_repeats_by_seed_and_is_near_the_exact_interval():
    rng = np.random.default_rng(0)
    x = rng.random(40)
    y = 2 * x + 1 + 0.2 * rng.standard_normal(40)
    first, again = (calibration.bootstrap(calibration.affine, x, y, 300, seed=7) for _ in range(2))
    assert first == again != calibration.bootstrap(calibration.affine, x, y, 300, seed=8)
    exact = calibration.affine(x, y).intervals
    for name in ("slope", "baseline"):
        np.testing.assert_allclose(first[name], exact[name], atol=0.2 * np.diff(exact[name])[0])
    held = calibration.bootstrap(functools.partial(calibration.fixed_baseline, baseline=1.0), x, y, 50, seed=0)
    assert held["baseline"] == (1.0, 1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: calibration.affine([1, 2], [1, 2]), "2 points are too few for affine: give at least 3"),
        (lambda: calibration.power_law([1, 2, 3], [1, 2, 3]), "give at least 4"),
        (lambda: calibration.affine([1, 2, 3], [1, 2]), "equal length"),
        (lambda: calibration.affine([1, 1, 1], [1, 2, 3]), "1 different values"),
        (lambda: calibration.affine([1, 2, np.nan], [1, 2, 3]), "not finite"),
        (lambda: calibration.through_zero([0, 0, 0], [1, 2, 3]), "0 everywhere"),
        (lambda: calibration.power_law([0, 1, 2, 3], [1, 2, 3, 4]), "not positive"),
        (lambda: calibration.affine([1, 2, 3], [2, 2, 2]), "does not vary"),
    ],
)
def test_impossible_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- the paper against its own numbers


def test_table_4_the_affine_fit_holds_and_the_line_through_zero_has_another_slope(paper):
    _, predicted, observed = paper
    affine, zero = calibration.affine(predicted, observed), calibration.through_zero(predicted, observed)
    assert affine.parameters["slope"] == pytest.approx(8.97, abs=0.01)
    assert affine.parameters["baseline"] == pytest.approx(0.623, abs=5e-4)
    assert affine.r_squared == pytest.approx(0.993, abs=5e-4)
    assert zero.r_squared == pytest.approx(-1.982, abs=1e-3)  # the printed R^2, but with
    assert zero.parameters["slope"] == pytest.approx(19.20, abs=0.005)  # not the printed 8.97:
    assert calibration.r_squared(observed, 8.97 * predicted) == pytest.approx(-4.27, abs=0.005)


def test_fixed_baseline_is_not_the_fit_whose_r_squared_is_printed(paper):
    _, predicted, observed = paper
    fit = calibration.fixed_baseline(predicted[:4], observed[:4], baseline=0.586)
    assert fit.parameters["slope"] == pytest.approx(9.57, abs=0.005)
    assert fit.r_squared == pytest.approx(0.976, abs=5e-4)
    assert calibration.r_squared(observed, fit.predict(predicted)) == pytest.approx(0.982, abs=5e-4)
    assert fit.r_squared < calibration.affine(predicted, observed).r_squared


def test_eq_4_fits_closer_and_predicts_worse_than_the_decomposition_and_excludes_its_baseline(paper):
    width, predicted, observed = paper
    power, affine = calibration.power_law(width, observed), calibration.affine(predicted, observed)
    assert power.parameters == pytest.approx({"scale": 11.6, "exponent": 0.47, "asymptote": 0.13}, abs=0.01)
    assert calibration.r_squared(observed, 11.6 * width**-0.47 + 0.13) == pytest.approx(0.997, abs=5e-4)
    assert power.r_squared == pytest.approx(0.998, abs=5e-4)
    assert power.r_squared > affine.r_squared and power.leave_one_out < affine.leave_one_out
    assert power.aicc == np.inf
    assert power.intervals["asymptote"][1] < 0.586  # even at 95 % the asymptote is below the baseline of Eq. 3


def test_naive_slope_of_section_8_is_outside_the_interval(paper):
    _, predicted, observed = paper
    naive = np.sqrt(12) * np.log(50_304 / 1024)
    assert naive == pytest.approx(13.49, abs=0.005)
    assert naive > calibration.affine(predicted, observed).intervals["slope"][1]
    assert naive / 8.97 == pytest.approx(1.50, abs=0.005)


def test_table_5_mixes_two_fits(paper):
    _, predicted, observed = paper
    printed = table("table5_decomposition")
    np.testing.assert_allclose(printed["geometric"], 8.97 * predicted, atol=1e-3)  # C of the two-parameter fit
    assert (printed["baseline"] == 0.586).all()  # B of the other
    np.testing.assert_allclose(
        printed["geometric"] + printed["baseline"], [1.299, 0.945, 0.686, 0.600, 0.587], atol=5e-4
    )
    np.testing.assert_allclose(printed["geometric_percent"][:4], 100 * (observed - 0.586)[:4] / observed[:4], atol=0.06)
    share = 100 * 8.97 * predicted / observed
    np.testing.assert_allclose(share, [54.0, 35.6, 13.6, 2.2, 0.15], atol=0.05)


def test_each_doubling_cuts_the_printed_geometric_part_by_far_more_than_28_per_cent(paper):
    width, predicted, _ = paper
    at = dict(zip(width.tolist(), predicted.tolist(), strict=True))
    drops = [1 - at[2 * d] / at[d] for d in (128, 256, 512)]
    np.testing.assert_allclose(drops, [0.50, 0.72, 0.99], atol=0.005)
    assert pytest.approx(0.28, abs=0.005) == 1 - 2**-0.47  # the 28 % is the fall of Eq. 4's power term


def test_full_width_floor_is_not_what_eq_2_gives_there(paper):
    width, predicted, observed = paper
    assert width[4] == 1024
    assert 8.97 * predicted[4] / observed[4] == pytest.approx(0.0015, abs=5e-5)


def test_tables_2_and_3_agree_with_themselves(paper):
    _, predicted, observed = paper
    two, three = table("table2_predicted_floors"), table("table3_distillation_floors")
    np.testing.assert_array_equal(two["kept_features"] + two["dropped_features"], 28_665)
    np.testing.assert_allclose(two["normalized"], predicted / predicted[0], atol=6e-4)
    np.testing.assert_allclose(three["raw_kl"] / 2048, observed, atol=6e-4)
    np.testing.assert_allclose(three["normalized"], three["raw_kl"] / three["raw_kl"][0], atol=6e-4)
    assert two["dropped_features"][0] / 28_665 == pytest.approx(0.88, abs=5e-3)
    assert 100 * 6.4 / three["raw_kl"][0] == pytest.approx(0.24, abs=5e-3)


def test_feature_death_l0_and_the_choice_of_f_against_table_1():
    one = table("table1_sae")
    death = 1 - one["alive_features"] / 32_768
    np.testing.assert_allclose(100 * death, [5.4, 12.5, 11.0], atol=0.05)  # section 5.1 says 15 to 40 %
    assert capacity.critical_width_from_l0(31_006, 7_400) == pytest.approx(10_600, abs=5)  # Fig. 4's L0 at layer 8
    alpha_over_all = 1 - 218.3 / 32_768
    assert capacity.critical_width(28_665, alpha_over_all) == pytest.approx(
        957, abs=0.5
    )  # below 1024: no superposition
    assert capacity.critical_width(32_768, alpha_over_all) == pytest.approx(1094, abs=0.5)  # above it again


def test_table_6_mean_change():
    six = table("table6_probes").pivot_table(index="concept", columns=["model", "width"], values="accuracy_percent")
    change = six["student"].sub(six["teacher"][1024], axis=0).abs()
    assert change[128].mean() == pytest.approx(1.28, abs=5e-3)  # printed 1.27
    assert change.max().idxmax() == 1024 and change.max().max() == pytest.approx(3.1)


def test_table_7_one_row_belongs_to_another_sparsity():
    seven = table("table7_capacity")
    seven = seven[seven["alpha"] > 0]  # "g(0) = 1" is a convention: g has a pole there
    wrong = ~np.isclose(capacity.g(seven["alpha"]), seven["g"], atol=0.5 * np.where(seven["g"] > 100, 1, 0.1))
    assert seven["alpha"][wrong].tolist() == [0.992]
