"""03 to 07 as other processors and other seeds have them: ``make processors``, an hour or more a lane on two cores.

Each lane runs the notebooks with what libraries offer to stand for another processor, in processes of their own, since
it is read when they are loaded. Records, tables and executed copies stay in ``runs/processors/<lane>``, so that an
interrupted run goes on; from the tables ``python -m minwidth.measured`` takes the spreads. docs/processors.md tells
what each setting does.

``python -m tests.processors --notebooks 06_ledger --lanes plain avx2`` runs a part of it.
"""

import argparse
import json
import os
import subprocess
import sys

from minwidth.store import ROOT, RUNS

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


def main() -> None:
    """Run the lanes that have not passed yet, one after the other, and print a line for each notebook."""
    parser = argparse.ArgumentParser(prog="python -m tests.processors", description=main.__doc__)
    parser.add_argument("--notebooks", nargs="+", default=NOTEBOOKS, metavar="NAME")
    parser.add_argument("--lanes", nargs="+", default=LANES, choices=LANES, metavar="LANE", help=", ".join(LANES))
    options = parser.parse_args()
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
    print(f"The spreads come from: python -m minwidth.measured --scale tiny {said.parent}/*/")
    raise SystemExit("failed" in found.values())


if __name__ == "__main__":
    main()
