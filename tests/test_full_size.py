"""Pythia-410M in full size, with random weights: two steps of 03 and of 04 at width 512 on a CPU, text in shards.

``python -m pytest -m slow tests/test_full_size.py`` takes four minutes of one core, 10 GiB of memory and 4 of disk.
"""

import json
import math
import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from minwidth.store import DATA, ROOT
from tests import pile_world

pytestmark = pytest.mark.slow
MEMORY = 11  # GiB; the most is taken where a checkpoint is written


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a part of ``full_size`` on a made-up text, the model being in a cache of Hugging Face's layout."""
    folder = tmp_path_factory.mktemp("full")
    text = str(pile_world.save_pile(folder / "text"))
    places = {"HF_HUB_CACHE": "hub", "HF_DATASETS_CACHE": "datasets", "MINWIDTH_RUNS": "runs"}
    env = os.environ | {name: str(folder / place) for name, place in places.items()} | {"HF_HUB_OFFLINE": "1"}

    def part(name: str, *arguments: str) -> dict:
        command = [sys.executable, "-m", "tests.full_size", name, *arguments]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        found = json.loads(done.stdout)
        assert found["gib"] < MEMORY
        return found

    assert part("save")["parameters"] == 405_334_016
    yield lambda name, *arguments: part(name, text, *arguments)
    shutil.rmtree(folder)  # gigabytes


def test_two_steps_of_an_autoencoder(run):
    found = run("autoencoder")
    assert found["shapes"] == {"encoder": [32 * 1024, 1024], "bias_pre": [1024]}
    (layer,), (floor,) = found["layers"], found["floors"]
    assert 0 < layer["l0"] < layer["alive"] <= 32 * 1024 and 0 < layer["fvu"] < 1
    assert floor["width"] == 512 and floor["eq2"] > 0 and floor["kl_cut"] > 0


@pytest.mark.parametrize("ladder", ["random", "width_alone"])
def test_two_steps_of_a_student(run, ladder):
    found = run("student", ladder)
    history = pd.DataFrame(found["history"])
    assert list(history.step) == [0, 1, 2]
    assert all(map(math.isfinite, [*history.held_out, *history.train[1:]]))
    assert history.held_out.nunique() == 3, "each step changed the student"
    assert found["stored"] == found["params"]
    if ladder == "random":
        table3 = pd.read_csv(DATA / "paper" / "table3_distillation_floors.csv").set_index("width")
        assert round(found["params"] / 1e6) == table3.params_millions[512]
