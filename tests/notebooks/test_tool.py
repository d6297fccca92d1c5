"""The tool: papermill on 03_sae measures a model in a folder, and leaves the study's own results alone."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import zstandard

from minwidth.store import ROOT
from tests import small_world

PARAMETERS = dict(layer=2, lam=1.0, expansion=4, tokens=10_000, steps=60, batch=64, held_out_tokens=1600, kl_tokens=160)
PARAMETERS |= dict(length=16, percent=100.0, learning_rate=1e-2)


def save_text(folder: Path) -> None:
    """Made-up documents in the Pile's format."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    lines = []
    for _ in range(80):
        words = " ".join(f"w{number}" for number in generator.zipf(1.3, 2000) % 39 + 1)
        lines.append(json.dumps({"text": words, "meta": {"pile_set_name": "made up"}}) + "\n")
    (folder / "00.jsonl.zst").write_bytes(zstandard.compress("".join(lines).encode()))


def texts(notebook: nbformat.NotebookNode) -> str:
    """All that the notebook says, tables as lines of plain text."""
    said = []
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        data = output.get("data", {})
        said.append(
            output.get("text") or data.get("text/markdown") or re.sub(r"<[^>]+>", " ", data.get("text/html", ""))
        )
    return "\n".join(said)


def test_a_pythia_in_a_folder_is_measured(tmp_path: Path):
    small_world.save_teacher(tmp_path / "teacher")
    save_text(tmp_path / "text")
    line = [Path(sys.executable).with_name("papermill"), "notebooks/03_sae.ipynb", tmp_path / "out.ipynb"]
    given = PARAMETERS | {"teacher": tmp_path / "teacher", "text": tmp_path / "text"}
    line += [str(part) for name, value in given.items() for part in ("-p", name, value)]
    line += ["-y", "lams: [0.3, 1.0, 3.0]", "--no-progress-bar"]
    places = {"MINWIDTH_RUNS": tmp_path / "runs", "MINWIDTH_OUT": tmp_path / "written"}
    places |= {"HF_DATASETS_CACHE": tmp_path / "cache", "HF_HUB_OFFLINE": "1"}
    subprocess.run(line, cwd=ROOT, env=os.environ | {name: str(place) for name, place in places.items()}, check=True)

    said = texts(nbformat.read(tmp_path / "out.ipynb", as_version=4))
    assert re.search(r"width d_T\s+32\s+latents\s+128", said)
    measured = pd.read_csv(tmp_path / "written/data/results/other/sae_layers.csv")
    assert list(measured.lam) == [0.3, 1.0, 3.0] and (measured.d_star.diff().dropna() < 0).all()
    floors = pd.read_csv(tmp_path / "written/data/results/other/sae_floors.csv")
    assert set(floors.width) == {4, 8, 12, 16, 24, 32}  # shares of its own width
    for path in (tmp_path / "written").rglob("*.csv"):  # what it tells of the study's own models is as committed
        if path.parent.name != "other":
            new, committed = (pd.read_csv(file) for file in (path, ROOT / path.relative_to(tmp_path / "written")))
            shared = next(name for name in ("id", "name") if name in new)
            pd.testing.assert_frame_equal(new, committed[committed[shared].isin(new[shared])].reset_index(drop=True))
