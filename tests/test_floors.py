"""Toy floors beside their predictors, on tables small enough to work out by hand."""

import numpy as np
import pandas as pd
import pytest

from minwidth import capacity, floors, toy

GRID = pd.DataFrame([(n, a, d) for n in (10, 20, 40) for a in (0.8, 0.9, 0.95, 0.99) for d in range(1, 11)])
GRID.columns = floors.CELL


def equal_toys():
    """What equally important toys would lose if features came in axes, pairs or not at all."""
    rows = [(20, a, 10, 20 * (1 - a) ** 2 / 6) for a in GRID.alpha.unique()]
    return pd.DataFrame(rows, columns=["n", "alpha", "width", "floor"])


def swept(kappa=0.3, seeds=3, noise=0.0):
    """A sweep whose floors are those of the log capacity with this kappa, times 1 + noise x a normal number."""
    cells = GRID.loc[GRID.index.repeat(seeds)].reset_index(drop=True)
    factor = 1 + noise * np.random.default_rng(0).standard_normal(len(cells))
    return cells.assign(
        seed=np.tile(np.arange(seeds), len(GRID)), floor=floors.log_capacity(cells, kappa) * factor + 1e-9,
        standard_error=1e-6, represented=2,
    )  # fmt: skip


def test_the_grid_of_the_paper_has_312_points_140_of_them_above_zero():
    points = floors.points_of(floors.predictions(GRID), [3, 5, 8, 10])
    assert len(points) == 312
    assert len(floors.subset(points, "above zero")) == 140
    assert len(floors.subset(points, "above zero").drop_duplicates(floors.CELL)) == 43
    assert (points.width <= points.teacher_width).all()
    assert points.groupby(["n", "alpha", "teacher_width"]).size().groupby("teacher_width").unique().to_dict() == {
        3: [3], 5: [5], 8: [8], 10: [10]
    }  # fmt: skip


def test_predictions_stand_beside_the_right_cell():
    cells = floors.predictions(GRID.sample(frac=1, random_state=0))
    row = cells.query("n == 20 and alpha == 0.9 and width == 3").iloc[0]
    importance = capacity.zipf(20)
    assert row.digon == capacity.digon_floor(importance, 3, 0.9)
    assert row.eq2 == pytest.approx(importance[int(3 * capacity.g(0.9)) :].sum() * 0.1 / 3)
    assert row.naive == pytest.approx(importance[3:].sum() * 0.1 / 3)
    assert row.total == pytest.approx(0.1 / 3)


def test_kappa_is_found_and_each_n_is_predicted_from_the_others():
    cells = floors.cells_of(swept(0.3), equal_toys())
    assert floors.fit_kappa(cells) == pytest.approx(0.3, abs=1e-3)
    np.testing.assert_allclose(cells.log_capacity, cells.floor_mean, atol=1e-5)
    wrong = cells.assign(floor_mean=np.where(cells.n == 40, 2, 1) * cells.floor_mean)
    assert floors.fit_kappa(wrong[wrong.n != 40]) == pytest.approx(0.3, abs=1e-3)
    assert floors.fit_kappa(wrong) < 0.25


def test_water_filling_with_pairs_alone_is_the_pair_bound():
    cells = floors.predictions(GRID)
    np.testing.assert_allclose(floors.water_filling(cells, equal_toys()), cells.digon, rtol=1e-9)


def test_scores_are_those_of_a_hand_made_table():
    measured = swept(0.3)
    cells = floors.cells_of(measured, equal_toys())
    points = floors.points_of(cells, [10])
    points["eq2"], points["naive"] = points.floor_mean / 2, points.floor_mean * 3
    scores = floors.score(points, measured, draws=20).query("target == 'mean'").groupby("predictor").first()
    half, triple = scores.loc["eq2"], scores.loc["naive"]
    assert (half.mape, half.median_error, half.below) == pytest.approx((50, 50, 1))
    assert (triple.mape, triple.below) == pytest.approx((200, 0))
    assert (half.pearson, triple.pearson) == pytest.approx((1, 1))
    squared = (points.floor_mean**2).sum() / ((points.floor_mean - points.floor_mean.mean()) ** 2).sum()
    assert half.r2 == pytest.approx(1 - squared / 4)


def test_intervals_shrink_with_the_number_of_seeds():
    reach = []
    for seeds, noise in ((8, 0.0), (8, 0.1), (72, 0.1)):
        found = swept(0.3, seeds, noise)
        points = floors.points_of(floors.cells_of(found, equal_toys()), [3, 10])
        scores = floors.score(points, found, draws=100).query("target == 'mean' and predictor == 'eq2'")
        reach.append((scores.r2_high - scores.r2_low).iloc[0])
    assert reach[0] == pytest.approx(0, abs=1e-9)
    assert reach[1] / reach[2] == pytest.approx(3, rel=0.4)


def test_an_error_read_as_an_accuracy_is_told_apart():
    points = floors.points_of(floors.cells_of(swept(0.3), equal_toys()), [3, 5, 8, 10])
    points["eq2"] = np.where(points.alpha == 0.99, 0, 0.9 * points.floor_mean)
    read = floors.readings(points).query("which == 'all'").set_index(["reading", "alpha", "target"]).value
    assert read["100 - mean error", "0.8", "mean seed"] == pytest.approx(90)
    assert read["mean error itself", "0.8", "mean seed"] == pytest.approx(10)
    assert read["mean error itself", "0.99", "mean seed"] == 100
    few = points[(points.n == 10) & (points.alpha == 0.8)]
    harmonic = sum(1 / i for i in range(1, 11))
    read = floors.readings(few).query("which == 'all'").set_index(["reading", "alpha", "target"]).value
    assert read["mean error itself", "0.8", "unnormalised students"] == pytest.approx(100 * (1 - 0.9 / harmonic))


def test_a_convention_is_matched_by_all_its_numbers():
    points = floors.points_of(floors.cells_of(swept(0.3), equal_toys()), [10])
    tried = floors.conventions(points).set_index(["students' importances", "points"])
    same = tried.loc[("sum 1", 120)]
    assert same["r"] == pytest.approx(np.corrcoef(points.eq2, points.floor_mean)[0, 1])
    error = 1 - (points.eq2 / points.floor_mean)
    assert same["mean error (%)"] == pytest.approx(100 * error.abs().mean())
    assert tried.loc[("1/i", 120), "mean error (%)"] > same["mean error (%)"]


def test_floors_scale_with_unnormalised_importances_as_the_readings_suppose():
    harmonic = sum(1 / i for i in range(1, 7))
    plain, scaled = (
        toy.sweep(6, 0.9, 2, 3, 400, importance=importance).floor
        for importance in (capacity.zipf(6), harmonic * capacity.zipf(6))
    )
    np.testing.assert_allclose(scaled / plain, harmonic, rtol=0.02)


def test_students_of_teachers_are_averaged_over_seeds():
    cells = floors.cells_of(swept(0.3), equal_toys())
    taught = pd.DataFrame(
        {"n": 10, "alpha": 0.9, "teacher_width": [3, 3, 5], "width": 2, "seed": [0, 1, 0],
         "loss_against_teacher": [1.0, 3.0, 5.0], "loss_against_x": [2.0, 4.0, 6.0]}
    )  # fmt: skip
    first, second = floors.teacher_points(taught, cells).itertuples()
    assert (first.loss_against_teacher, first.loss_against_teacher_min, first.loss_against_x, first.seeds) == (
        2,
        1,
        3,
        2,
    )
    assert (second.teacher_width, second.loss_against_teacher, second.seeds) == (5, 5, 1)
    assert first.eq2 == cells.query("n == 10 and alpha == 0.9 and width == 2").eq2.item()


def test_the_floor_is_reached_where_the_curve_stays_near_its_end():
    steps = np.array([1, 10, 100, 1000])
    curves = np.array([[5, 1.05, 1.2, 1], [1.05, 1, 1, 1], [9, 9, 9, 1]], dtype=np.float32)
    rows = pd.DataFrame({"n": [1, 1, 1]}, index=[4, 5, 6])
    assert floors.steps_to_floor(rows, curves, steps).to_dict() == {4: 1000, 5: 1, 6: 1000}


def test_convergence_compares_the_same_seeds_and_leaves_out_what_need_not_be_lost():
    rows = pd.DataFrame(
        {"n": 3, "alpha": 0.9, "width": [1, 1, 2, 3], "seed": [0, 1, 0, 0], "floor": [4.0, 2.0, 1.0, 0.0]}
    )
    curves = np.array([[9, 1, 1], [9, 9, 1], [1, 1, 1], [9, 9, 0]], dtype=np.float32)
    longer = pd.DataFrame({"n": 3, "alpha": 0.9, "width": [1, 1], "seed": [0, 7], "floor": [3.0, 100.0]})
    table = floors.convergence(rows, curves, np.array([1, 150, 300]), longer).set_index("width")
    assert list(table.index) == [1, 2]
    assert (table.median_step[1], table.by_200[1], table.floor[1], table.floor_longer[1]) == (225, 0.5, 4, 3)
    assert (table.median_step[2], table.by_200[2]) == (1, 1)
    assert np.isnan(table.floor_longer[2])


def test_models_of_a_sweep_are_found_again():
    found = toy.train_all([4, 5], 0.9, [1, 2], 2, 60)
    table = floors.dimensionalities(found.floors, found.parameters, 5, 2)
    assert len(table) == 2 * 5 and table.dimensionality.between(0, 1.0001).all()
    mine = found.floors.query("n == 5 and width == 2")
    best = floors.best_weights(found.floors, found.parameters, 5, 0.9, 2)
    np.testing.assert_array_equal(best, toy.model_of(found.floors, found.parameters, mine.floor.idxmin()).weight)
    curves = floors.mean_curves(found.floors, found.curves, toy.checkpoints(60), mine.assign(eq2=0.0).iloc[:1])
    np.testing.assert_allclose(curves.loss, found.curves[mine.index].mean(0), rtol=1e-6)


def test_a_falling_curve_explains_what_falls():
    x = pd.Series(np.arange(50.0))
    assert floors.falling_share(x, -(x**3)) == pytest.approx(1)
    assert floors.falling_share(x, x) == pytest.approx(0)
    assert np.isnan(floors.falling_share(x, 0 * x))
