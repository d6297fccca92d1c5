"""Controls of the ladders: more budgets, other objectives, references that train no student, students' own features."""

import numpy as np
import pandas as pd
import pytest
import torch

from minwidth import controls, distill, figures, scales, store
from minwidth.training import Schedule
from tests.test_distill import LENGTH, WIDTH, make_teacher, settings, small_world  # noqa: F401

SMALL = dict(
    teacher="tiny", layer=1, layers=[1], tokens=10_000, held_out_tokens=1000, expansion=4, steps=60, batch=128,
    length=LENGTH, lam=0.3, widths=[16, 32],
)  # fmt: skip


def autoencoders() -> scales.Sae:
    return scales.parameters("03_sae", "tiny", **SMALL)


@pytest.fixture(autouse=True)
def few_seeds_and_steps(monkeypatch):
    monkeypatch.setattr(controls, "SEEDS", [0, 1])
    monkeypatch.setitem(scales.LONGER, "tiny", dict(times=2, seeds=[0, 1]))
    monkeypatch.setattr(controls, "DECODER", Schedule(steps=80, batch=128, learning_rate=5e-3, evaluations=2))


@pytest.fixture
def computed_once(monkeypatch):
    """After it is called, nothing may be trained any more."""
    return lambda: monkeypatch.setattr(controls.training, "train", lambda *_, **__: pytest.fail("trained again"))


def test_long_ladders_have_seeds_budgets_and_verdicts(computed_once):
    p = settings(ladders=["random", "width_alone"], steps=10, warmup=2, evaluations=2)
    controls.long(p)
    table = store.load_results("tiny", "distill_long")
    longest = table[table.steps == 40].set_index(["ladder", "width", "seed"]).sort_index()
    assert set(longest.index) == {(n, w, s) for n in ("random", "width_alone") for w in (16, 32) for s in (0, 1)}
    assert set(longest.verdict) <= {"floor", "upper bound"} and longest.fall_per_doubling.notna().all()
    assert set(table[(table.ladder == "random") & (table.width == 32)].steps) == {5, 10, 20, 40}
    assert store.load_results("tiny", "distill_long_curves").step.max() == 40
    computed_once()
    assert controls.long(p).key == store.origin("tiny", "distill_long").key

    summary = distill.over_seeds(table, 0.03).set_index(["ladder", "width"])
    row, seeds = summary.loc["random", 16], longest.loc["random", 16].floor
    assert row.floor == pytest.approx(seeds.mean()) and row.seeds == 2
    assert row.high - row.floor == pytest.approx(12.7062 * seeds.std() / 2**0.5, rel=1e-4)  # Student's t, one degree
    assert (row.least, row.most) == (seeds.min(), seeds.max())
    assert summary.verdict["width_alone", 32] == "floor"  # it is the teacher

    found = controls.budgets(table).set_index("steps")
    ends = table[(table.ladder == "random") & (table.steps == 10)].groupby("width").floor.mean()
    assert found.share[10] == pytest.approx(ends[32] / ends[16])
    assert found.fall_widest[40] == pytest.approx(1 - found.widest[40] / found.widest[20])
    assert np.isnan(found.fall_widest[5])


def test_students_of_the_papers_kind_stand_at_some_widths_of_a_ladder(monkeypatch):
    monkeypatch.setitem(scales.LONGER, "tiny", dict(times=2, random_widths=[16]))
    p = settings(ladders=["random", "width_alone"], steps=10, warmup=2, evaluations=2)
    table = controls.long(p)["ladder"]
    found = table.groupby("ladder").width.unique().map(set).to_dict()
    assert found == {"random": {16}, "width_alone": {16, 32}} and set(table.steps) == {20, 40}
    assert table[(table.ladder == "random") & (table.steps == 40)].fall_per_doubling.notna().all()


def test_every_objective_is_judged_by_the_ladder_s_own_loss(computed_once):
    p = settings(ladders=["random", "width_alone"], steps=10, evaluations=2)
    table = controls.objectives(p)["controls"]
    random = table[table.ladder == "random"]
    assert set(random.objective) == set(controls.OBJECTIVES) and set(random.width) == {16, 32}
    assert (random.groupby(["objective", "width"]).size() == 2).all()
    cut = table[table.ladder == "width_alone"]
    assert set(cut.width) == {16} and "cross_entropy" not in set(cut.objective)
    own = table[table.objective == "forward"]
    np.testing.assert_allclose(own.kl, own.own, rtol=1e-5)
    teacher = make_teacher()
    other = p.model_copy(update={"temperature": 4.0})
    job = distill.Job("random", 16, 1, 10)
    student, text = distill.trained(other, job, teacher), distill.read(teacher, p, "held_out")
    row = table[
        (table.objective == "forward_t4") & (table.ladder == "random") & (table.width == 16) & (table.seed == 1)
    ]
    assert row.kl.iloc[0] == pytest.approx(distill.losses(p, teacher, student, text).mean())
    assert row.own.iloc[0] == pytest.approx(distill.losses(other, teacher, student, text).mean())
    assert ((table.low < table.kl) & (table.kl < table.high)).all()
    computed_once()
    controls.objectives(p)


def test_references_cost_nothing_at_full_width_and_relus_less_than_pca():
    controls.references(settings(widths=[4, 16, 32], ladders=["width_alone"]), autoencoders())
    table = store.load_results("tiny", "distill_references").set_index(["reference", "width"])
    assert table.kl["pca", 32] == pytest.approx(0, abs=1e-6) and table.fvu["pca", 32] == pytest.approx(0, abs=1e-6)
    assert table.kl["pca", 4] > table.kl["pca", 16] > 1e-3
    assert table.fvu["relu", 4] < table.fvu["pca", 4]


def test_a_wide_decoder_starts_as_pca():
    x = torch.randn(500, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9) + 3
    decoder = controls.WideDecoder(x, 3, 20, seed=0)
    mean, directions, variances = controls.principal(x, 3)
    torch.testing.assert_close(decoder(x).detach(), mean + (x - mean) @ directions @ directions.T)
    code = (x - mean) @ decoder.encoder.detach()
    torch.testing.assert_close(torch.cov(code.T), torch.eye(3), atol=1e-4, rtol=0)
    assert (variances.diff() < 0).all()


def test_features_of_students_and_of_the_teacher():
    p = settings(ladders=["random", "width_alone"], steps=10, warmup=2, evaluations=2)
    controls.features(p, autoencoders())
    table = store.load_results("tiny", "distill_features").set_index(["ladder", "width", "rule"])
    assert set(table.index) == {
        ("teacher", 32, "same"), ("random", 32, "same"),
        *((ladder, 16, rule) for ladder in ("random", "width_alone") for rule in ("same", "relative")),
    }  # fmt: skip
    assert (table.latents == 4 * WIDTH).all()
    assert table.lam["random", 16, "relative"] == pytest.approx(0.3 / 2**0.5, rel=1e-5)
    np.testing.assert_allclose(table.d_star, table.l0 * np.log(table.alive / table.l0), rtol=1e-4)


def test_an_unknown_part_is_named(capsys):
    with pytest.raises(SystemExit) as error:
        controls.main(["longest"])
    assert error.value.code == 2
    assert "no part 'longest'; it can be long, objectives, features, references" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- what is said of it


def long_table(widest=(0.6, 0.5, 0.4), narrowest=(0.8, 0.75, 0.74)) -> pd.DataFrame:
    rows = []
    for width, losses in ((16, narrowest), (128, widest)):
        for n, (steps, loss) in enumerate(zip((100, 200, 400), losses, strict=True)):
            for seed in (0, 1):
                fall = np.nan if n == 0 else 1 - loss / losses[n - 1]
                rows.append(
                    dict(ladder="random", width=width, seed=seed, steps=steps, floor=loss * (1 + 0.01 * seed),
                         fall_per_doubling=fall, untrained=1.0, d_teacher=128, verdict="")
                )  # fmt: skip
    cut = [dict(ladder="width_alone", width=w, seed=0, steps=400, floor=x, fall_per_doubling=0.05, untrained=0.9,
                d_teacher=128, verdict="upper bound") for w, x in ((16, 0.3), (128, 0.0))]  # fmt: skip
    return pd.DataFrame(rows + cut)


def references_table() -> pd.DataFrame:
    rows = [("pca", 16, 0.5), ("pca", 128, 0.0), ("relu", 16, 0.2), ("relu", 128, 0.0)]
    return pd.DataFrame(rows, columns=["reference", "width", "kl"]).assign(d_teacher=128, layer=2, fvu=0.1)


def controls_table() -> pd.DataFrame:
    factors = dict(forward=1.0, reverse=1.3, hidden=0.95, forward_t1=1.1, forward_t4=1.05, cross_entropy=2.0)
    rows = [
        dict(objective=name, ladder=ladder, width=width, seed=seed, kl=factor * (1 + 0.02 * seed) / width, own=factor)
        for name, factor in factors.items()
        for ladder in ("random", "width_alone")
        for width in (16, 64)
        for seed in (0, 1)
    ]
    return pd.DataFrame(rows)


def test_what_is_said_of_budgets_follows_from_the_numbers():
    said = controls.about_budget(long_table(), 0.02)
    assert "From 100 to 400 steps the loss at full width falls from 0.60 to 0.40 nats, by 17% to 20% a doubling" in said
    assert "from 75% to 54% of the narrowest" in said and said.endswith("is a statement about its budget.")
    assert controls.about_budget(long_table(widest=(0.6, 0.5, 0.499)), 0.02).endswith(
        "The last doubling hardly moved it."
    )


def test_what_is_said_of_long_ladders_follows_from_the_numbers():
    said = controls.about_long(distill.over_seeds(long_table(), 0.03))
    assert said.startswith("**1 of 3** widths that had something to learn stand at a floor.")
    assert "took 5% to 20% off" in said and "at most 0.7% of the loss" in said


def test_what_is_said_of_objectives_references_and_features():
    said = controls.about_objectives(controls_table())
    assert "at width 16 between forward KL + states (0.95 times) and reverse KL, T = 2 (1.30 times)" in said
    assert "at 2.00 to 2.00 times its loss" in said
    said = controls.about_references(references_table(), distill.over_seeds(long_table(), 0.03))
    assert "loses 40% to 40% of what PCA loses" in said
    assert "**Width alone**: below the ReLU reference at 0 of 1 widths, below PCA at 1." in said
    features = pd.DataFrame({"ladder": ["teacher", "random"], "width": [128, 16], "rule": "same"})
    said = controls.about_features(features.assign(alpha=[0.99, 0.9], d_star=[64.0, 32.0]))
    assert "α = 0.990 and d*/d = 0.50" in said and "d*/d from 2.0 to 2.0" in said


def test_figures_take_what_the_controls_give(tmp_path):
    table = long_table()
    drawn = [
        figures.distill_long(distill.over_seeds(table, 0.03), controls.with_cut(references_table(), table)),
        figures.distill_long(distill.over_seeds(table, 0.03), controls.with_cut(None, table)),
        figures.distill_budget(table),
        figures.distill_objectives(controls_table(), controls.OBJECTIVE_NAMES),
    ]
    for figure in drawn:
        figure.savefig(tmp_path / "figure.png", dpi=30)
        assert all(axis.get_xlabel() for axis in figure.axes)
