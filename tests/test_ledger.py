"""The ledger: verdicts follow from records and tolerances, and change with them."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minwidth import capacity, ledger
from minwidth.ledger import VERDICTS, grade, judge
from minwidth.store import ROOT

MEASURED = ("toy", "sae", "distill", "probe")


@pytest.fixture(scope="module")
def paper() -> ledger.Paper:
    return ledger.load_paper()


@pytest.fixture(scope="module")
def empty(paper) -> pd.DataFrame:
    return ledger.ledger(paper, results=lambda scale, name: None).set_index("id")


def toy_frame(floor) -> pd.DataFrame:
    """A toy sweep whose floors are ``floor(importance, width, alpha)``."""
    grid = ledger.toy_grid()
    cells = list(zip(grid.n, grid.width, grid.alpha, strict=True))
    values = np.array([floor(capacity.zipf(n), d, a) for n, d, a in cells])
    return grid.assign(
        floor_mean=values, floor_min=values, seeds=20, total=[float(capacity.second_moment(a)) for _, _, a in cells]
    )


def eq2(importance, width, alpha):
    return float(capacity.eq2_floor(importance, width, alpha, capacity.second_moment(alpha))) + 1e-12


def sae_layers(d_star, lams=(0.5, 1.0, 2.0), layers=(2,), d_teacher=128) -> pd.DataFrame:
    rows = [(layer, lam, layer == layers[0] and lam == 1.0) for layer in layers for lam in lams]
    frame = pd.DataFrame(rows, columns=["layer", "lam", "default"])
    return frame.assign(expansion=16, tokens=500_000, d_star=d_star, d_teacher=d_teacher, fvu=0.1)


def distill_ladder(losses, falls=0.01, verdict="floor", ladder="random") -> pd.DataFrame:
    widths = [16, 32, 64, 128][: len(losses)]
    frame = pd.DataFrame({"width": widths, "floor": losses})
    return frame.assign(
        ladder=ladder, seed=0, steps=400, tail_slope=0.0, fall_per_doubling=falls, verdict=verdict, d_teacher=128
    )


def rows_with(paper, scale="tiny", **tables) -> pd.DataFrame:
    """The measured claims of the ledger, with these result tables at one scale and none elsewhere."""
    paper = paper._replace(claims=[claim for claim in paper.claims if "measure" in claim])
    frame = ledger.ledger(paper, results=lambda s, name: tables.get(name) if s == scale else None)
    return frame.set_index("id")


# ----------------------------------------------------------------------------------------------------- grade and judge


@pytest.mark.parametrize(
    ("value", "expected", "found"),
    [
        (0.95, {"near": 0.93, "within": 0.02}, "yes"),
        (0.96, {"near": 0.93, "within": 0.02}, "no"),
        (0.96, {"near": 0.93, "within": 0.02, "loosely": 0.06}, "loosely"),
        (0.94, {"at_least": 0.93}, "yes"),
        (0.90, {"at_least": 0.93, "loosely": 0.9}, "loosely"),
        (0.89, {"at_least": 0.93, "loosely": 0.9}, "no"),
        (-0.01, {"at_most": 0.0}, "yes"),
        (2, {"at_most": 0, "loosely": 1}, "no"),
        ([-2.4, 2.9], {"near": [-2.4, 2.9], "within": 0.05}, "yes"),
        ([1.1, 0.9], {"at_least": 1.0}, "loosely"),  # some right, some not
        ([0.8, 0.9], {"at_least": 1.0}, "no"),
    ],
)
def test_grades(value, expected, found):
    assert grade(value, expected) == found


@given(
    value=st.floats(-10, 10),
    near=st.floats(-10, 10),
    within=st.floats(0, 5),
    more=st.floats(0, 5),
)
def test_a_wider_tolerance_never_lowers_a_grade(value, near, within, more):
    order = ["no", "loosely", "yes"]
    for narrow, wide in [
        ({"near": near, "within": within}, {"near": near, "within": within + more}),
        ({"at_least": near}, {"at_least": near - more}),
        ({"at_most": near}, {"at_most": near + more}),
    ]:
        assert order.index(grade(value, narrow)) <= order.index(grade(value, wide))


def test_a_check_that_finds_no_number_is_an_error_not_a_verdict():
    with pytest.raises(ValueError, match="needs numbers"):
        grade(float("nan"), {"at_least": 0})
    with pytest.raises(ValueError, match="needs numbers"):
        grade([], {"at_least": 0})


@pytest.mark.parametrize(
    ("kind", "recomputed", "measured", "own", "verdict"),
    [
        ("paper", "yes", [], False, "holds"),
        ("paper", "loosely", [], False, "holds loosely"),
        ("paper", "no", [], False, "contradicts the paper itself"),
        ("theory", "no", [], False, "does not hold"),
        ("sae", "yes", [], False, "not tested here"),
        ("sae", "no", ["yes"], False, "contradicts the paper itself"),
        ("sae", "yes", ["yes", "yes"], False, "holds at our scale"),
        ("sae", "loosely", ["yes"], False, "holds loosely"),
        ("sae", None, ["yes", "no"], False, "holds loosely"),
        ("sae", None, ["no", "no"], False, "does not hold"),
        ("toy", None, ["yes"], True, "holds"),
        ("toy", None, [], False, "not tested here"),
    ],
)
def test_verdicts_from_grades(kind, recomputed, measured, own, verdict):
    assert judge(kind, recomputed, measured, own) == verdict


# ----------------------------------------------------------------------------------------------------------- the claims


def test_every_claim_gets_a_verdict_of_the_closed_list_and_none_is_typed(paper, empty):
    assert 50 <= len(paper.claims) <= 80 and set(empty.verdict) <= set(VERDICTS)
    assert empty.section.is_monotonic_increasing and empty.index.is_unique
    for claim in paper.claims:
        typed = [value for value in claim.values() if isinstance(value, str) and value in VERDICTS]
        assert not typed and "verdict" not in claim
    assert {
        check["check"] for claim in paper.claims for check in map(claim.get, ("recompute", "measure")) if check
    } == set(ledger.CHECKS)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"verdict": "holds"}, "computed, never typed"),
        ({"recompute": {"check": "wishful", "at_least": 0}}, "'wishful'"),
        ({"kind": "hearsay"}, "'hearsay'"),
        ({"how": None}, "lacks how"),
        ({"id": "capacity-identity"}, "share an id"),
    ],
)
def test_a_faulty_claim_is_refused_in_one_sentence(tmp_path, change, sentence):
    import shutil

    import yaml

    shutil.copytree(ledger.PAPER, tmp_path / "paper")
    path = tmp_path / "paper" / "claims.yaml"
    claims = yaml.safe_load(path.read_text())
    claims[3] = {key: value for key, value in (claims[3] | change).items() if value is not None}
    path.write_text(yaml.safe_dump(claims))
    with pytest.raises(ValueError, match=sentence):
        ledger.load_paper(tmp_path / "paper")


def test_without_results_the_measured_claims_say_what_is_missing(paper, empty):
    for claim in paper.claims:
        row = empty.loc[claim["id"]]
        if claim["kind"] in MEASURED and row.verdict != "contradicts the paper itself":
            assert row.verdict == "not tested here"
            assert "no table" in row.why or row.why == claim["untested"]
        elif claim["kind"] not in MEASURED:
            assert row.verdict != "not tested here"
    assert empty.why["toy-pearson"] == "tiny, smollm2, pythia-410m: no table toy_points"


def test_no_results_folder_is_the_same_as_no_results(empty, tmp_path, monkeypatch):
    monkeypatch.setattr(ledger.store, "RESULTS", tmp_path)
    assert ledger.ledger().set_index("id").equals(empty)


# ------------------------------------------------------------------------------- verdicts follow from the result tables


def test_toy_claims_hold_in_a_world_where_eq2_is_exact(paper):
    rows = rows_with(paper, toy_points=toy_frame(eq2))
    held = ["lower-bound", "toy-pearson", "toy-mape", "toy-median-accuracy", "toy-superposition", "toy-vanishes"]
    assert set(rows.verdict[held]) == {"holds"}
    assert rows.verdict["toy-collapse"] != "not tested here"


def test_toy_claims_fail_where_floors_are_what_trained_models_keep(paper):
    rows = rows_with(paper, toy_points=toy_frame(capacity.digon_floor))
    assert rows.verdict["lower-bound"] == "holds"
    assert set(rows.verdict[["toy-mape", "toy-vanishes", "toy-superposition"]]) == {"does not hold"}
    share = capacity.digon_floor(capacity.zipf(20), 1, 0.99) / capacity.second_moment(0.99)  # d* = 0.92 there
    assert f"n = 20, alpha = 0.99, d_S = 1 keeps {share:.0%}" in rows.why["toy-vanishes"]


def test_a_bound_that_is_undercut_does_not_hold(paper):
    rows = rows_with(paper, toy_points=toy_frame(lambda *cell: 0.5 * eq2(*cell)))
    assert rows.verdict["lower-bound"] == "does not hold"


def test_a_reduced_toy_sweep_holds_at_our_scale_only(paper):
    frame = toy_frame(eq2).assign(seeds=2)
    assert rows_with(paper, toy_points=frame).verdict["lower-bound"] == "holds at our scale"


def test_superposition_depends_on_the_saes(paper):
    above = rows_with(paper, sae_layers=sae_layers([300.0, 200.0, 150.0]))
    assert above.verdict["superposition"] == "holds at our scale"
    assert above.verdict["sae-pipeline"] == "does not hold" and "3 of 3" in above.why["superposition"]
    below = rows_with(paper, sae_layers=sae_layers([90.0, 80.0, 70.0]))
    assert below.verdict["superposition"] == "does not hold"
    assert below.tiny["superposition"] == "0.62"


def test_one_layer_or_one_coefficient_is_said_to_be_too_few(paper):
    rows = rows_with(paper, sae_layers=sae_layers([200.0], lams=(1.0,)))
    assert rows.verdict["sae-pipeline"] == "not tested here" == rows.verdict["layers-agree"]
    assert "one L1 coefficient only" in rows.why["sae-pipeline"] and "one layer only" in rows.why["layers-agree"]


def test_an_undefined_number_is_not_a_verdict(paper):
    rows = rows_with(paper, distill_ladder=distill_ladder([1.3, np.nan, 0.7]))
    assert rows.verdict["floors-ordered"] == "not tested here" and "has no loss" in rows.why["floors-ordered"]
    fits = pd.DataFrame({"ladder": ["random"], "predictor": ["eq2"], "lam": [1.0], "fit": ["affine"], "r2": [np.nan]})
    judged = rows_with(paper, distill_fits=fits.assign(loo=np.nan, chosen=True))
    assert judged.verdict["affine-fits"] == "not tested here" and "undefined" in judged.why["affine-fits"]


def test_importance_exponents_come_from_the_floors(paper):
    rank = np.arange(1, 3001.0)
    kept = np.array([50, 100, 200, 400, 800])
    tails = [(rank[k:] ** -1.5).sum() for k in kept]
    frame = pd.DataFrame(
        {"layer": 2, "lam": 1.0, "width": kept // 2, "kept": kept, "dropped": 3000 - kept, "eq2": tails}
    )
    layers = sae_layers([200.0], lams=(1.0,))
    rows = rows_with(paper, sae_layers=layers, sae_floors=frame)
    slopes = [float(word) for word in rows.tiny["importance-power-law"].split()]
    assert slopes == pytest.approx([1.5] * 3, abs=0.06)


@pytest.mark.parametrize(
    ("losses", "falls", "ordered", "baseline"),
    [
        ([1.3, 1.0, 0.7, 0.6], 0.01, "holds at our scale", "holds at our scale"),
        ([1.3, 1.0, 1.1, 0.6], 0.08, "holds loosely", "holds loosely"),
        ([1.0, 1.1, 1.2, 1.3], 0.6, "does not hold", "does not hold"),
    ],
)
def test_ladder_claims(paper, losses, falls, ordered, baseline):
    rows = rows_with(paper, distill_ladder=distill_ladder(losses, falls))
    assert (rows.verdict["floors-ordered"], rows.verdict["baseline-architectural"]) == (ordered, baseline)
    assert rows.verdict["floors-deterministic"] == "not tested here" and "one seed" in rows.why["floors-deterministic"]


def test_a_ladder_without_its_control_cannot_judge_the_baseline(paper):
    rows = rows_with(paper, distill_ladder=distill_ladder([1.3, 1.0, 0.7]))
    assert rows.verdict["baseline-architectural"] == "not tested here"


def test_the_long_ladder_is_judged_where_it_was_run(paper):
    short = distill_ladder([0.7, 1.0, 1.1, 1.3])  # the wrong way round
    seeds = [distill_ladder([1.30 + x, 1.0, 0.7, 0.5]).assign(seed=n) for n, x in enumerate((0.0, 0.001, 0.002))]
    half = distill_ladder([1.5, 1.3, 1.1, 0.9], falls=0.25).assign(steps=200)
    rows = rows_with(paper, distill_ladder=short, distill_long=pd.concat([*seeds, half]))
    assert rows.verdict["floors-ordered"] == "holds at our scale"
    assert rows.verdict["floors-deterministic"] == "holds at our scale"
    assert "3 seeds at width 16" in rows.why["floors-deterministic"]
    assert "at width 128 25 1 % up to 200 400 steps" in rows.why["baseline-architectural"]


@pytest.mark.parametrize(
    ("reverse", "verdict"), [(1.02, "holds at our scale"), (1.08, "holds loosely"), (1.5, "does not hold")]
)
def test_objectives_are_compared_at_the_narrowest_width(paper, reverse, verdict):
    frame = pd.DataFrame({"objective": ["forward", "reverse", "cross_entropy"], "kl": [1.0, reverse, 9.0]})
    wide = frame.assign(width=64, kl=[1.0, 2.0, 9.0])
    frame = pd.concat([frame.assign(width=16), wide]).assign(ladder="random", steps=200, seed=0)
    rows = rows_with(paper, distill_controls=frame)
    assert rows.verdict["objective-independent"] == verdict
    assert "gaps" in rows.why["objective-independent"]
    assert rows_with(paper).verdict["objective-independent"] == "not tested here"


def test_features_of_students_are_counted_against_the_teacher_s_capacity(paper):
    frame = pd.DataFrame({"ladder": ["teacher", "random", "random"], "width": [128, 16, 16], "g": [20.0, 9.0, 9.0]})
    frame = frame.assign(rule=["same", "same", "relative"], alive=[2000, 900, 330])
    rows = rows_with(paper, distill_features=frame)
    assert rows.tiny["student-features"] == "1.0"
    assert rows.verdict["student-features"] == "holds at our scale"
    assert "lambda same: 2.8" in rows.why["student-features"]
    rows = rows_with(paper, distill_features=frame.assign(alive=[2000, 320, 900]))
    assert rows.verdict["student-features"] == "does not hold"


def test_fits_without_a_marked_coefficient_are_judged_at_all(paper):
    columns = ["predictor", "lam", "fit", "r2", "loo"]
    fits = [
        ("eq2", 0.5, "affine", 0.99, 0.98),
        ("eq2", 2.0, "affine", 0.6, -0.2),
        ("log", np.nan, "affine", 0.99, 0.985),
    ]
    rows = rows_with(paper, distill_fits=pd.DataFrame(fits, columns=columns).assign(ladder="random"))
    assert rows.verdict["affine-fits"] == "holds loosely"  # at one coefficient of two
    assert "0.5: 0.99 2: 0.60" in rows.why["affine-fits"]
    assert rows.verdict["linear-fails"] == "not tested here"


def test_fits_are_judged_at_the_coefficient_fixed_beforehand(paper):
    columns = ["predictor", "lam", "fit", "r2", "loo", "chosen"]
    fits = [
        ("eq2", 0.5, "affine", 0.99, 0.98, True),
        ("eq2", 2.0, "affine", 0.6, -0.2, False),
        ("log_width", np.nan, "affine", 0.99, 0.985, False),
    ]
    rows = rows_with(paper, distill_fits=pd.DataFrame(fits, columns=columns).assign(ladder="random"))
    assert rows.verdict["affine-fits"] == "holds at our scale" and rows.tiny["affine-fits"] == "R² 0.99"
    assert rows.tiny["affine-special"] == "0.980 against 0.985"


def test_probe_claims_compare_with_their_controls(paper):
    def probes(control):
        rows = [
            (concept, model, width, name, accuracy)
            for concept in ("french", "code")
            for model, width, name, accuracy in [
                ("teacher", 128, "none", 0.97),
                ("student", 16, "none", 0.95),
                ("student", 16, "untrained", control),
            ]
        ]
        frame = pd.DataFrame(rows, columns=["concept", "model", "width", "control", "accuracy"])
        return frame.assign(low=frame.accuracy - 0.01, high=frame.accuracy + 0.01)

    weak, strong = (rows_with(paper, probe_accuracy=probes(control)).verdict for control in (0.6, 0.96))
    assert weak["probe-mechanism"] == "holds at our scale" and strong["probe-mechanism"] == "does not hold"
    assert weak["probe-survives"] == "holds at our scale" == weak["probe-above-chance"]


def test_probes_are_those_of_the_ladder_from_random_weights(paper):
    rows = [
        ("teacher", "none", 128, "none", 0.97),
        ("teacher", "none", 128, "untrained", 0.99),  # says nothing of the student
        ("student", "random", 16, "none", 0.80),
        ("student", "random", 16, "untrained", 0.60),
        ("student", "width_alone", 16, "none", 0.96),
        ("student", "width_alone", 8, "none", 0.95),
        ("none", "none", 0, "bag_of_words", 0.70),
    ]
    frame = pd.DataFrame(rows, columns=["model", "ladder", "width", "control", "accuracy"])
    frame = frame.assign(concept="french", low=frame.accuracy - 0.01, high=frame.accuracy + 0.01)
    judged = rows_with(paper, probe_accuracy=frame)
    assert judged.tiny["probe-survives"] == "17.0 pp" and judged.tiny["probe-mechanism"] == "1 of 1"


def test_features_encoded_are_compared_with_the_budget(paper):
    frame = toy_frame(eq2)
    frame["represented"] = capacity.features_kept(frame.width, frame.alpha)
    assert rows_with(paper, toy_points=frame).verdict["toy-capacity"] == "holds"
    frame["represented"] = 2 * frame.width
    assert rows_with(paper, toy_points=frame).verdict["toy-capacity"] == "does not hold"
    assert "not kept" in rows_with(paper, toy_points=frame.drop(columns="represented")).why["toy-capacity"]


def test_each_scale_has_its_column_and_they_are_weighed_together(paper):
    good, bad = distill_ladder([1.3, 1.0, 0.7]), distill_ladder([0.7, 1.0, 1.3])
    tables = {"tiny": good, "smollm2": bad}
    paper = paper._replace(claims=[claim for claim in paper.claims if claim["id"] == "floors-ordered"])
    frame = ledger.ledger(paper, results=lambda s, name: tables.get(s) if name == "distill_ladder" else None)
    row = frame.set_index("id").loc["floors-ordered"]
    assert row.tiny.startswith("0 of 2") and row.smollm2.startswith("2 of 2") and row["pythia-410m"] == ""
    assert row.verdict == "holds loosely"


# ------------------------------------------------------------------------------------------------------------ summaries


def test_counts_add_up_and_keep_the_papers_order(empty):
    table = ledger.counts(empty.reset_index())
    assert table.to_numpy().sum() == len(empty) and list(table.columns) == list(VERDICTS)
    assert list(table.index) == list(dict.fromkeys(empty.section))


def test_the_summary_replaces_the_readmes_block_and_nothing_else(empty, tmp_path, monkeypatch, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(f"# Before\n\n{ledger.START}\nstale\n{ledger.END}\n\nAfter\n")
    monkeypatch.setattr(ledger, "OUT", tmp_path)
    monkeypatch.setattr(ledger.store, "RESULTS", tmp_path / "none")
    ledger.main()
    text = readme.read_text()
    assert text.startswith("# Before\n\n") and text.endswith("\n\nAfter\n") and "stale" not in text
    assert ledger.in_readme(text) == ledger.summary_markdown(empty.reset_index())
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].split() == ["claim", "paper", "ours", "verdict"]
    assert 12 <= len(printed) - 5 <= 16 and max(map(len, printed)) <= 140


def test_a_readme_without_the_markers_is_refused():
    with pytest.raises(ValueError, match="once each"):
        ledger.in_readme("# No block here")


def test_the_readme_agrees_with_the_ledger():
    """The committed README against the committed results; ``python -m minwidth.ledger`` brings them together."""
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("there is no README yet")
    committed = ROOT / "data" / "results"

    def results(scale, name):
        path = committed / scale / f"{name}.csv"
        return pd.read_csv(path) if path.exists() else None

    assert ledger.in_readme(readme.read_text()) == ledger.summary_markdown(ledger.ledger(results=results))


def test_the_styled_table_shows_every_claim_and_only_scales_with_results(empty):
    html = ledger.styled(empty.reset_index()).to_html()
    assert all(f">{name}<" in html for name in empty.index)
    assert "pythia-410m</th>" not in html


def test_the_ledger_needs_no_torch():
    code = "import sys, minwidth.ledger; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(ROOT / "src")})
