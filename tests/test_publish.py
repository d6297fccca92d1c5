"""What make paper says at its end: verdicts, which tables equal the committed ones, and where the time went."""

import re

import pandas as pd
import pytest

from minwidth import ledger, store
from workflow import publish

NUMBERS = pd.DataFrame({"name": ["d_star", "steps"], "value": [72.8, 100.0], "spread": [0.4, float("nan")]})
TABLE = pd.DataFrame({"lam": [0.1, 1.0], "ladder": ["random", "alone"], "kl": [0.5, 0.0]})


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Writes a table of this run, and compares it with the committed one."""
    for name in ("RESULTS", "COMMITTED", "FIGURES", "ROOT", "RUNS"):
        monkeypatch.setattr(publish, name, tmp_path / name.lower())

    def difference(name, new, old):
        for folder, frame in (("results", new), ("committed", old)):
            (tmp_path / folder / "tiny").mkdir(parents=True, exist_ok=True)
            frame.to_csv(tmp_path / folder / "tiny" / f"{name}.csv", index=False)
        return dict(publish.compare().to_numpy())[f"tiny/{name}"]

    return difference


@pytest.mark.parametrize(("factor", "differs"), [(0.5, False), (2.0, True)])
def test_a_number_may_differ_by_its_tolerance(run, factor, differs):
    measured = publish.measured.MARGIN * 0.4
    for row, tolerance in ((0, measured), (1, 3.0)):  # the second has no spread yet
        new = NUMBERS.copy()
        new.loc[row, "value"] += factor * tolerance
        assert bool(run("numbers_03_sae", new, NUMBERS)) == differs
    assert run("numbers_03_sae", NUMBERS[:1], NUMBERS).startswith("steps nan for 100")


def test_a_column_may_differ_by_three_per_cent_and_what_was_judged_must_be_the_same(run):
    assert run("sweep", TABLE, TABLE) == run("sweep", TABLE.assign(kl=[0.512, 1e-7]), TABLE) == ""
    assert run("sweep", TABLE.assign(kl=[0.52, 0.0]), TABLE) == "kl 0.52 for 0.5"
    assert run("sweep", TABLE.assign(ladder="random"), TABLE) == "ladder has other entries"
    assert run("sweep", TABLE[:1], TABLE) == "1 x 3 for 2 x 3 entries"
    judged = pd.DataFrame({"id": ["a"], "value": ["1"], "undetermined": [False], "own_setting": [False]})
    assert run("claims_03_sae", judged.assign(value="2"), judged) == ""
    assert run("claims_03_sae", judged.assign(undetermined=True), judged) == "other claims were judged"


def test_only_a_scales_own_tables_are_published(run, tmp_path):
    run("sweep", TABLE[:1], TABLE)
    for place in ("results/other/sweep.csv", "figures/tiny/fig01.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text("x")
    written = sorted(str(path.relative_to(tmp_path)) for path in publish.publish())
    assert written == ["committed/tiny/sweep.csv", "root/figures/tiny/fig01.png"]
    assert len(pd.read_csv(tmp_path / "committed" / "tiny" / "sweep.csv")) == 1


def test_the_end_of_make_paper_says_what_differs_and_where_the_time_went(run, tmp_path, monkeypatch, capsys):
    run("sweep", TABLE, TABLE)
    run("ladder", TABLE[:1], TABLE)
    (tmp_path / "runs" / "tiny" / "benchmarks").mkdir(parents=True)
    for name, seconds in (("03_sae", 60), ("students-w16-s0", 120)):
        line = f"s\th:m:s\tmax_rss\tcpu_time\n{seconds}\t0:01:00\t2048\t90\n"
        (tmp_path / "runs" / "tiny" / "benchmarks" / f"{name}.tsv").write_text(line)
    monkeypatch.setattr("sys.argv", ["publish", "--compare", "tiny"])
    publish.main()
    said = capsys.readouterr().out
    assert "1 of 2 tables equal" in said and "these differ: tiny/ladder (1 x 3 for 2 x 3 entries)" in said
    assert re.search(r"students-w16-s0 +2.0 .*\n +03_sae +1.0", said)
    monkeypatch.setattr("sys.argv", ["publish"])
    readme = tmp_path / "root" / "README.md"
    readme.parent.mkdir()
    readme.write_text(f"# Before\n\n{publish.START}\nstale\n{publish.END}\n\nAfter\n")
    publish.main()
    assert "2 tables and figures copied" in capsys.readouterr().out
    assert publish.compare().differs.eq("").all()
    text = readme.read_text()
    assert text.startswith(f"# Before\n\n{publish.START}\n\n{len(ledger.claims())} claims: holds **")
    assert "stale" not in text and text.endswith(f" |\n\n{publish.END}\n\nAfter\n")
    monkeypatch.setattr(publish, "OUT", tmp_path / "root")
    with pytest.raises(SystemExit, match="MINWIDTH_OUT"):
        publish.main()


def test_readme_and_committed_cards_agree_with_the_committed_records(monkeypatch):
    """``make publish`` brings them together."""
    monkeypatch.setattr(store, "RESULTS", store.COMMITTED)
    frame, readme = ledger.ledger(), (store.ROOT / "README.md").read_text()
    assert publish.in_readme(readme, frame) == readme and readme.count(publish.START) == readme.count(publish.END) == 1
    assert set(frame.verdict) <= set(ledger.VERDICTS)
