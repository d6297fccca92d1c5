"""Every choice is varied alone, for every lambda; crossings and verdicts by hand; the command writes its tables."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest

from minwidth import figures, scales, sensitivity, store
from tests import small_world

world = small_world.world  # a fixture


def made_up(power: float = 1.0, levels: tuple[float, float] = (100.0, 110.0)):
    """d* = level / lam^power at two layers and two seeds, d_T = 50; left at half the width is 1 / (1 + lam)."""
    rows, floors = [], []
    for (layer, level), seed, lam in itertools.product(enumerate(levels, 1), (0, 1), (0.1, 1.0, 10.0)):
        if layer == 2 and seed == 1:
            continue  # one choice at a time
        names = {"lam": lam, "layer": layer, "expansion": 8, "tokens": 1000, "steps": 10, "seed": seed}
        d_star = level / lam**power
        row = {"d_star": d_star, "d_star_low": d_star * 0.9, "d_star_high": d_star * 1.1, "d_teacher": 50}
        rows.append(names | row | {"default": (layer, seed, lam) == (1, 0, 1.0)})
        floors += [names | {"width": width, "eq2": eq2} for width, eq2 in ((10, 2.0), (25, 2 / (1 + lam)), (50, 0.0))]
    return pd.DataFrame(rows), pd.DataFrame(floors)


@pytest.mark.parametrize("scale", list(scales.SENSITIVITY))
def test_one_choice_is_changed_at_a_time(scale):
    base, *others = sensitivity.variations(scale)
    for p in others:
        changed = [choice for choice in sensitivity.CHOICES if getattr(p, choice) != getattr(base, choice)]
        assert len(changed) == 1
        assert p.layers == [p.layer] and p.lam in p.lams and base.lam == p.lam
    assert len(base.lams) >= 4 and max(base.lams) / min(base.lams) >= 100


def test_at_tiny_the_first_measurement_is_the_notebooks():
    assert sensitivity.variations("tiny")[0] == scales.parameters("03_sae", "tiny")


def test_a_scale_without_a_grid_is_named():
    with pytest.raises(scales.ParameterError, match="pythia-410m"):
        sensitivity.variations("pythia-410m")


def test_crossings_by_hand():
    table, _ = made_up()
    default = sensitivity.along(table, "seed").query("seed == 0")
    assert list(default.d_star) == [1000.0, 100.0, 10.0]
    assert sensitivity.crossing(default) == pytest.approx(2.0)  # 100 / 2 = 50
    assert sensitivity.crossing(default.assign(d_teacher=5)) == np.inf
    assert sensitivity.crossing(default.assign(d_teacher=5000)) == 0


def test_the_spread_by_hand():
    found = sensitivity.spread(*made_up()).set_index("choice")
    assert list(found.index) == ["lam", "layer", "seed"]  # what was not varied has no row
    assert found.loc["lam"].factor == pytest.approx(100) and found.loc["layer"].factor == pytest.approx(1.1)
    assert found.loc["seed"].factor == found.loc["seed"].worst == 1
    assert found.loc["lam", ["left_low", "left_high"]].tolist() == pytest.approx([1 / 11, 1 / 1.1])
    assert found.loc["layer", ["crossing_low", "crossing_high"]].tolist() == pytest.approx([2.0, 2.2])


def test_the_verdict_follows_from_the_table():
    assert "a property of λ, not of the model" in sensitivity.about(*made_up())
    assert "λ does not decide" in sensitivity.about(*made_up(power=0.0))
    text = sensitivity.about(*made_up(power=1.0, levels=(100.0, 9000.0)))
    assert "In 2 of 3 settings" in text and "λ decides in 67% of the settings" in text
    assert "the seed hardly matters;" in text and "keep their order" in text
    table, floors = made_up()
    table.loc[(table.seed == 1) & (table.lam == 10), "d_star"] *= 2
    assert sensitivity.spread(table, floors).set_index("choice").loc["seed"].worst == pytest.approx(2)
    assert "the seed hardly matters at the default λ" in sensitivity.about(table, floors)


def test_the_figure_has_a_panel_a_choice():
    table, floors = made_up()
    table = sensitivity.with_floors(table, floors)
    sweeps = {c: (name, sensitivity.along(table, c)) for c, name in sensitivity.CHOICES.items()}
    figure = figures.sae_choices(table, sweeps)
    pd.testing.assert_frame_equal(sensitivity.spread(table, floors), sensitivity.spread(*made_up()))
    assert [len(axis.containers) for axis in figure.axes] == [2, 1, 1, 1, 2, 0]
    assert len(figure.axes[-1].lines) == 3
    few = figures.sae_choices(table, {name: sweeps[name] for name in ("layer", "seed", "steps")})
    assert [len(axis.containers) for axis in few.axes] == [2, 2, 1, 0, 0, 0]
    assert [axis.get_visible() for axis in few.axes] == [True] * 4 + [False] * 2


def test_the_command_measures_what_is_asked_and_writes_it(world, tmp_path, monkeypatch):
    grid = dict(layer=[2], expansion=[4], tokens=[10_000], steps=[60, 30], seed=[0, 1])
    base = small_world.SMALL | dict(teacher=world.teacher, layer=2, layers=[1, 2], lams=[0.3, 3.0])
    monkeypatch.setitem(scales.SENSITIVITY, "tiny", dict(base=base, lams=[3.0]) | grid)
    monkeypatch.setattr(store, "RESULTS", tmp_path / "results")
    sensitivity.main(["--scale", "tiny"])
    table = store.load_results("tiny", "sae_sensitivity")
    found = set(zip(table.layer, table.lam, table.steps, table.seed, strict=True))
    assert found == {(2, 0.3, 60, 0), (2, 1.0, 60, 0), (2, 3.0, 60, 0)} | {
        (2, lam, steps, seed) for lam in (1.0, 3.0) for steps, seed in ((30, 0), (60, 1))
    }
    assert table["default"].sum() == 1
    floors = store.load_results("tiny", "sae_sensitivity_floors")
    assert len(sensitivity.with_floors(table, floors)) == len(table)
    origin = json.loads((tmp_path / "results/tiny/sae_sensitivity.json").read_text())
    assert len(origin["parameters"]["records"]) == 3 and origin["provenance"]["seconds"] > 0
    monkeypatch.setattr(sensitivity.sae, "_measure", lambda *_: pytest.fail("computed again"))
    sensitivity.main(["--scale", "tiny"])
