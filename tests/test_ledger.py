"""The ledger: verdicts follow from records, bounds and tolerances, and change with them."""

import re

import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from minwidth import ledger, measured, store
from minwidth.ledger import VERDICTS, grade, judge
from minwidth.store import ROOT


@pytest.fixture
def results(tmp_path, monkeypatch):
    """An empty place for results."""
    for module in (store, ledger, measured):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    for module in (store, ledger):
        monkeypatch.setattr(module, "COMMITTED", tmp_path / "none")
    return tmp_path


def verdict(id: str) -> str:
    return ledger.ledger().set_index("id").verdict[id]


# ----------------------------------------------------------------------------------------------------- grade and judge


@pytest.mark.parametrize(
    ("given_", "found"),
    [
        ((0.95, {"near": 0.93, "within": 0.02}), "yes"),
        ((0.96, {"near": 0.93, "within": 0.02}), "no"),
        ((0.96, {"near": 0.93, "within": 0.02, "loosely": 0.06}), "loosely"),
        ((0.90, {"at_least": 0.93, "loosely": 0.9}), "loosely"),
        ((0.89, {"at_least": 0.93, "loosely": 0.9}), "no"),
        ((-0.01, {"at_most": 0.0}), "yes"),
        ((2, {"at_most": 0, "loosely": 1}), "no"),
        (([-2.4, 2.9], {"near": [-2.4, 2.9], "within": 0.05}), "yes"),
        (([1.1, 0.9], {"at_least": 1.0}), "loosely"),  # some right, some not
        (([0.8, 0.9], {"at_least": 1.0}), "no"),
        (({"λ = 0.1": 4.8, "λ = 3": 0.2}, {"at_least": 1.0}), "varies"),  # a choice of ours decides
        (({"λ = 0.1": 0.95, "λ = 3": 1.2}, {"at_least": 1.0, "loosely": 0.9}), "loosely"),
        ((1.02, {"at_least": 1.0}, 0.01), "yes"),
        ((1.02, {"at_least": 1.0}, 0.03), "varies"),  # it lies within its tolerance of the bound
        (({"a": 1.02, "b": 2.0}, {"at_least": 1.0}, {"a": [0.03], "b": [0.1]}), "varies"),
    ],
)
def test_grades(given_, found):
    assert grade(*given_) == found


@given(st.floats(-10, 10), st.floats(-10, 10), st.floats(0, 5), st.floats(0, 5))
def test_a_wider_bound_never_lowers_a_grade(value, near, within, more):
    order = ["no", "loosely", "yes"]
    for narrow, wide in [
        ({"near": near, "within": within}, {"near": near, "within": within + more}),
        ({"at_least": near}, {"at_least": near - more}),
        ({"at_most": near}, {"at_most": near + more}),
    ]:
        assert order.index(grade(value, narrow)) <= order.index(grade(value, wide))


@pytest.mark.parametrize(
    ("kind", "recomputed", "found", "own", "weak", "expected"),
    [
        ("paper", "yes", [], False, False, "holds"),
        ("paper", "no", [], False, False, "contradicts the paper itself"),
        ("paper", "no", [], False, True, "weakly supported"),
        ("paper", "varies", [], False, False, "undetermined"),
        ("theory", "no", [], False, True, "does not hold"),
        ("sae", "yes", [], False, False, "not tested here"),
        ("sae", "no", ["yes"], False, False, "contradicts the paper itself"),
        ("sae", "yes", ["yes", "yes"], False, False, "holds at our scale"),
        ("sae", "loosely", ["yes"], False, False, "holds loosely"),
        ("sae", None, ["yes", "no"], False, False, "undetermined"),  # the scales disagree
        ("sae", None, ["varies", "no"], False, False, "undetermined"),
        ("sae", None, ["no", "no"], False, False, "does not hold"),
        ("toy", None, ["yes"], True, False, "holds"),
    ],
)
def test_verdicts_from_grades(kind, recomputed, found, own, weak, expected):
    assert judge(kind, recomputed, found, own, weak) == expected


@pytest.mark.parametrize(
    ("bounds", "half", "twice"),
    [
        ({"near": 5.0, "within": 1.0, "loosely": 3}, {"within": 0.5, "loosely": 1.5}, {"within": 2.0, "loosely": 6}),
        ({"at_least": 0.5, "ideal": 1.0}, {"at_least": 2 / 3}, {"at_least": 1 / 3}),  # a share, never moved to 0
        ({"at_least": 0.91, "ideal": 0.93}, {"at_least": 0.9199}, {"at_least": 0.8908}),
        ({"at_least": 60, "ideal": 50}, {"at_least": 55}, {"at_least": 70}),  # a margin
        ({"at_most": 1.3, "ideal": 1.0}, {"at_most": 1.15}, {"at_most": 1.6}),
        ({"at_most": 3.0, "given": True}, {"at_most": 3.0}, {"at_most": 3.0}),  # the paper's own
    ],
)
def test_room_is_counted_from_the_ideal_and_what_is_not_ours_is_left(bounds, half, twice):
    for factor, moved in ((0.5, half), (2.0, twice)):
        assert ledger.with_room(bounds, factor) == pytest.approx(bounds | moved, rel=1e-4)


# ----------------------------------------------------------------------------------------------------------- the claims


NEEDED = {"id", "place", "section", "quote", "printed", "kind", "where", "refute"}
BOUNDED = {"recompute", "measure", "untested"}
BOUNDS = {"near", "within", "at_least", "at_most", "loosely", "reason", "given", "ideal"}


def test_every_claim_quotes_the_paper_says_what_refutes_it_and_types_no_verdict():
    entries = yaml.safe_load((ledger.PAPER / "claims.yaml").read_text())
    assert len(entries) >= 60 and len(ledger.claims()) == len(entries), "each has an id of its own"
    for entry in entries:
        assert NEEDED <= entry.keys() <= NEEDED | BOUNDED | {"headline", "weak"} and entry.keys() & BOUNDED, entry["id"]
        assert not any(value in VERDICTS for value in entry.values() if isinstance(value, str))
        assert entry["kind"] in ("paper", "theory", "toy", "sae", "distill", "probe")
        assert entry["quote"].strip() and entry["refute"].strip()
        assert (ROOT / "notebooks" / f"{entry['where']}.py").exists()
        for bounds in (entry[part] for part in ("recompute", "measure") if part in entry):
            assert {"reason"} < bounds.keys() <= BOUNDS, entry["id"]
            assert len(bounds.keys() & {"near", "at_least", "at_most"}) == 1
            if "loosely" in bounds:  # is the wider of the two
                strict = bounds.get("within", bounds.get("at_most", -bounds.get("at_least", 0)))
                assert bounds["loosely"] * (-1 if "at_least" in bounds else 1) > strict, entry["id"]


def test_every_claim_that_can_be_judged_is_judged_in_its_notebook_and_only_there():
    judged = {}
    for path in (ROOT / "notebooks").glob("0*.py"):
        for id in re.findall(r"\bclaim\(\s*\"([\w-]+)\"", path.read_text()):
            judged.setdefault(id, set()).add(path.stem)
    entries = ledger.claims()
    assert judged == {id: {e["where"]} for id, e in entries.items() if e.keys() & {"recompute", "measure"}}


# ------------------------------------------------------------------------------------------------------------- records


def test_a_claim_is_recorded_shown_and_collected_and_deleting_its_record_unjudges_it(results):
    card = ledger.claim("layers-agree", 11.4, why="as printed").data
    assert "robust to layer choice" in card and "11.4" in card and "as printed" in card
    assert verdict("layers-agree") == "not tested here"  # a claim about models needs a measurement
    assert "holds at our scale" in ledger.claim("layers-agree", 7.0, scale="tiny").data
    assert verdict("layers-agree") == "holds at our scale"
    ledger.claim("layers-agree", 95.0, scale="smollm2")
    assert verdict("layers-agree") == "undetermined"
    ledger.claim("layers-agree", 95.0, scale="tiny")  # replaces what was there
    assert verdict("layers-agree") == "does not hold"
    for file in results.glob("*/claims_03_sae.csv"):
        file.unlink()
    assert verdict("layers-agree") == "not tested here"


def test_a_run_that_judges_some_claims_leaves_the_others_as_they_are_committed(results, monkeypatch):
    ledger.claim("layers-agree", 7.0, scale="tiny")
    ledger.claim("top-features", {"λ = 1": 0.5}, scale="tiny")
    before = ledger.ledger().set_index("id").tiny
    monkeypatch.setattr(ledger, "COMMITTED", results)
    monkeypatch.setattr(ledger, "RESULTS", results / "run")
    ledger.claim("layers-agree", 95.0, scale="tiny")
    after = ledger.ledger().set_index("id").tiny
    assert verdict("layers-agree") == "does not hold"
    assert after["top-features"] == before["top-features"] != ""
    assert set(pd.read_csv(results / "run" / "tiny" / "claims_03_sae.csv").id) == {"layers-agree", "top-features"}


def test_a_budget_that_decides_nothing_and_a_choice_that_decides_leave_a_claim_undetermined(results):
    ledger.claim("geometric-floor", [0.9, 0.8], scale="tiny", undetermined="too few tokens")
    row = ledger.ledger().set_index("id").loc["geometric-floor"]
    assert row.verdict == "undetermined" and row.why == "tiny: too few tokens"
    ledger.claim("superposition", 1.1)
    ledger.claim("superposition", {"λ = 0.1": 3.0, "λ = 1": 0.6}, scale="tiny")
    assert verdict("superposition") == "undetermined"


def test_a_measured_tolerance_counts(results):
    ledger.claim("layers-agree", 7.0, scale="tiny")
    assert verdict("layers-agree") == "holds at our scale"
    file = results / "tiny" / "numbers_03_sae.csv"
    pd.read_csv(file).assign(spread=30.0).to_csv(file, index=False)  # 7 may as well be 67, beyond all bounds
    assert ledger.ledger().set_index("id")["as bounded"]["layers-agree"] == "undetermined"


def test_a_verdict_that_the_size_of_our_bound_decides_is_undetermined_and_says_so(results):
    card = ledger.claim("donoho", 1.15).data  # within 0.1, loosely 0.3
    row = ledger.ledger().set_index("id").loc["donoho"]
    assert row.verdict == "undetermined" and row[list(ledger.ROOMS)].tolist() == ["holds loosely"] * 2 + ["holds"]
    assert "the size of our bound decides" in row.why and "the size of our bound decides" in card
    ledger.claim("donoho", 1.04)
    assert verdict("donoho") == "holds"
    ledger.claim("baseline-gap", 6.4)  # half a unit of the printed digit: rounding is not ours
    assert verdict("baseline-gap") == "holds"


def test_what_cannot_be_judged_is_refused(results):
    with pytest.raises(KeyError):
        ledger.claim("no-such-claim", 1.0)
    with pytest.raises(ValueError, match="no bounds to recompute"):
        ledger.claim("sae-pipeline", 1.0)
    for nothing in (float("nan"), []):
        with pytest.raises(ValueError, match="needs numbers"):
            ledger.claim("toy-points", nothing)
    assert not list(results.rglob("*.csv")), "nothing half-written"
