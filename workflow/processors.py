"""03 to 07 as other processors and other seeds have them: ``make processors``, an hour or more a lane on two cores.

Each lane runs the notebooks with what libraries offer to stand for another processor, in processes of their own, since
it is read when they are loaded. Records, tables and executed copies stay in ``runs/processors/<lane>``, so that an
interrupted run goes on. docs/processors.md tells what each setting does.

``python -m workflow.processors --notebooks 06_ledger --lanes own`` runs a part of it; with ``--spreads
runs/processors/*/`` it widens the spreads of the committed numbers (``minwidth.measured``) by what those lanes have.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from minwidth.scales import SCALES
from minwidth.store import COMMITTED, ROOT, RUNS, replace_file

OLD = {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "MKL_CBWR": "COMPATIBLE"}
OLD |= {"ONEDNN_MAX_CPU_ISA": "SSE41", "OPENBLAS_CORETYPE": "Nehalem", "NUMBA_CPU_NAME": "generic"}
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "MKL_CBWR": "AVX2"}
AVX2 |= {"ONEDNN_MAX_CPU_ISA": "AVX2", "OPENBLAS_CORETYPE": "Haswell", "NUMBA_CPU_NAME": "haswell"}
ONE, TWO = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
PROCESSORS = {
    "own": {},
    "old, one thread": OLD | ONE,
    "old, two threads": OLD | TWO,
    "avx2, one thread": AVX2 | ONE,
    "avx2, two threads": AVX2 | TWO,
    "torch alone old": {"ATEN_CPU_CAPABILITY": "default"},
}
SEEDS = (1, 2)  # beside 0, the committed one
SEEDED = {"03_sae": "seed: {0}", "04_distill": "seeds: [{0}]", "05_probe": "seed: {0}"} | {
    "07_known_language": "seeds: [{0}0, {0}1, {0}2]"
}
LANES = [*PROCESSORS, *(f"seed {seed}" for seed in SEEDS)]
NOTEBOOKS = ("03_sae", "04_distill", "05_probe", "07_known_language", "06_ledger")


def run(lane: str, notebook: str) -> str:
    """Run one notebook in a lane: ``passed``, ``failed``, or of another seed, which has nothing to compare, ``ran``."""
    folder = RUNS / "processors" / lane.replace(",", "").replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    settings = PROCESSORS.get(lane, {}) | {"MINWIDTH_RUNS": str(folder / "runs"), "MINWIDTH_OUT": str(folder)}
    path = str(ROOT / "notebooks" / f"{notebook}.ipynb")
    if lane in PROCESSORS:
        command = ["pytest", "--quiet", "--nbval", "--nbval-current-env", path]
    else:
        given = SEEDED[notebook].format(lane.split()[1])
        command = ["papermill", path, str(folder / f"{notebook}.ipynb"), "-y", given, "--no-progress-bar"]
    with (folder / f"{notebook}.log").open("w") as log:
        line = [sys.executable, "-m", *command]
        failed = subprocess.run(line, cwd=ROOT, env=os.environ | settings, stdout=log, stderr=log).returncode
    return "failed" if failed else "passed" if lane in PROCESSORS else "ran"


def measure_spreads(scale: str, folders: Iterable[Path]) -> pd.DataFrame:
    """Widen the spread of every committed number of a scale to what other runs of its notebooks have; return them all.

    ``folders`` are what MINWIDTH_OUT was in those runs. A run with another seed leaves its numbers under ``other``.
    What earlier runs had is kept, so that machines can be measured one after the other.
    """
    found = []
    for file in sorted((COMMITTED / scale).glob("numbers_*.csv")):
        committed = pd.read_csv(file, index_col="name")
        places = [folder / "data" / "results" / place for folder in folders for place in (scale, "other")]
        runs = [place / file.name for place in places if (place / file.name).exists()]
        if runs:
            others = pd.concat([pd.read_csv(run, index_col="name").value for run in runs], axis=1)
            away = others.reindex(committed.index).sub(committed.value, axis=0).abs()
            committed["spread"] = pd.concat([committed.spread, away], axis=1).max(axis=1)
            replace_file(file, committed.to_csv(float_format="%.6g").encode())
        found.append(committed.reset_index().assign(notebook=file.stem.removeprefix("numbers_")))
    return pd.concat(found, ignore_index=True)


def main() -> None:
    """Run the lanes that have not passed yet, one after the other, and print a line for each notebook."""
    parser = argparse.ArgumentParser(prog="python -m workflow.processors", description=main.__doc__)
    parser.add_argument("--notebooks", nargs="+", default=NOTEBOOKS, metavar="NAME")
    parser.add_argument("--lanes", nargs="+", default=LANES, choices=LANES, metavar="LANE", help=", ".join(LANES))
    parser.add_argument("--spreads", nargs="+", type=Path, metavar="FOLDER", help="run nothing; take the spreads")
    parser.add_argument("--scale", default="tiny", choices=list(SCALES), help="whose spreads")
    options = parser.parse_args()
    if options.spreads:
        frame = measure_spreads(options.scale, options.spreads)
        share = (frame.spread / frame.value.abs()).replace([np.inf], np.nan)
        print(frame.assign(share=share).groupby("notebook").share.describe()[["count", "50%", "max"]].round(3))
        return
    said = RUNS / "processors" / "lanes.json"
    found = json.loads(said.read_text()) if said.exists() else {}
    for lane in options.lanes:
        for notebook in options.notebooks:
            name = f"{lane}: {notebook}"
            if found.get(name) not in ("passed", "ran") and (lane in PROCESSORS or notebook in SEEDED):
                found[name] = run(lane, notebook)
                said.write_text(json.dumps(found, indent=1) + "\n")
            if name in found:
                print(f"{name}: {found[name]}", flush=True)
    print(f"The spreads come from: python -m workflow.processors --spreads {said.parent}/*/")
    raise SystemExit("failed" in found.values())


if __name__ == "__main__":
    main()
