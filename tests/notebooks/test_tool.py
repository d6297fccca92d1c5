"""The tool: papermill on 03_sae measures a model in a folder, from any, and leaves the study's own results alone."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd

from minwidth.store import ROOT
from tests import pile_world, small_world

PARAMETERS = small_world.SMALL | dict(layer=2, lam=1.0, percent=100.0, learning_rate=1e-2)


def test_a_pythia_in_a_folder_is_measured_from_any_folder(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    small_world.save_teacher(tmp_path / "teacher")
    pile_world.save_pile(tmp_path / "text", documents=80, words=2000, vocabulary=small_world.VOCABULARY)
    line = [Path(sys.executable).with_name("papermill"), ROOT / "notebooks/03_sae.ipynb", tmp_path / "out.ipynb"]
    given = PARAMETERS | {"teacher": tmp_path / "teacher", "text": tmp_path / "text"}
    line += [str(part) for name, value in given.items() for part in ("-p", name, value)]
    line += ["-y", "lams: [0.3, 1.0, 3.0]", "--no-progress-bar"]
    places = {"MINWIDTH_RUNS": tmp_path / "runs", "MINWIDTH_OUT": tmp_path / "written"}
    places |= {"HF_DATASETS_CACHE": tmp_path / "cache", "HF_HUB_OFFLINE": "1"}
    environment = os.environ | {name: str(place) for name, place in places.items()}
    subprocess.run(line, cwd=tmp_path / "elsewhere", env=environment, check=True)
    assert not any((tmp_path / "elsewhere").iterdir()) and (tmp_path / "written/figures/other").exists()
    said = re.sub(r"<[^>]+>|\\n", " ", (tmp_path / "out.ipynb").read_text())
    assert re.search(r"width d_T\W+32\W+latents\W+128", said)
    measured = pd.read_csv(tmp_path / "written/data/results/other/sae_layers.csv")
    assert list(measured.lam) == [0.3, 1.0, 3.0] and (measured.d_star.diff().dropna() < 0).all()
    floors = pd.read_csv(tmp_path / "written/data/results/other/sae_floors.csv")
    assert set(floors.width) == {4, 8, 12, 16, 24, 32}  # shares of its own width
    for path in (tmp_path / "written").rglob("*.csv"):  # what it tells of the study's own models is as committed
        if path.parent.name != "other":
            new, committed = (pd.read_csv(file) for file in (path, ROOT / path.relative_to(tmp_path / "written")))
            shared = next(name for name in ("id", "name") if name in new)
            pd.testing.assert_frame_equal(new, committed[committed[shared].isin(new[shared])].reset_index(drop=True))
