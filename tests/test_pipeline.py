"""``make paper`` at the larger scales, from nothing to the ledger, on a small copy of the study (``small_study``).

``python -m pytest -m slow tests/test_pipeline.py`` takes seven minutes of one core. The toy models and the known
language are the same at every scale, and ``make test`` runs them: their jobs count as done.
"""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from minwidth import ledger
from tests import small_study

pytestmark = pytest.mark.slow
DONE = ("02_toy_sweep", "07_known_language")
TABLES = ("sae_layers", "claims_03_sae", "distill_ladder", "claims_04_distill", "probe_accuracy", "claims_05_probe")


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    return small_study.save(tmp_path_factory.mktemp("study"))


@pytest.mark.parametrize("scale", ["smollm2", "pythia-410m"])
def test_from_nothing_to_the_ledger(study: Path, scale: str):
    copies, results = study / "runs" / scale, study / "runs" / "paper" / "data" / "results" / scale
    copies.mkdir(parents=True)
    for name in DONE:
        (copies / f"{name}.ipynb").touch()
    command = ["make", "paper", f"SCALE={scale}", "CORES=1", f"BIN={Path(sys.executable).parent}"]
    command += ["--old-file=.venv/.installed"]
    done = subprocess.run(command, cwd=study, env=small_study.environment(study), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-8000:]
    for name in TABLES:
        assert len(pd.read_csv(results / f"{name}.csv"))
    assert f"{len(ledger.claims())} claims: " in done.stdout and (copies / "06_ledger.ipynb").exists()
