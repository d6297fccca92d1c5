"""Pythia-410M in full size, with random weights: two steps of 03 and of 04 at width 512 on a CPU, text in shards.

``python -m pytest -m slow tests/test_full_size.py`` takes four minutes of one core, 10 GiB of memory and 4 of disk. The
model lies in Hugging Face's cache (``HF_HUB_CACHE``) where the real one would, so what runs is what a machine with a
network runs; each part is a process of its own, which gives its memory back.
"""

import json
import math
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from minwidth import models, sae, scales, store, stream, students
from minwidth.store import DATA, ROOT
from tests import pile_world

pytestmark = pytest.mark.slow
MEMORY = 11  # GiB; the most is taken where a checkpoint is written
WIDTH = 512


def save() -> dict:
    """The model and a tokenizer of made-up words."""
    name, _, commit = models.PYTHIA_410M.partition("@")
    folder = Path(os.environ["HF_HUB_CACHE"]) / f"models--{name.replace('/', '--')}" / "snapshots" / commit
    model = models.from_config(models.load_config("pythia-410m"))
    model.save_pretrained(folder)
    pile_world.tokenizer().save_pretrained(folder)
    return {"parameters": models.parameter_count(model)}


def autoencoder(text: str) -> dict:
    """Two steps of the paper's autoencoder at layer 12, 32 times as wide as the stream, and all that 03 measures."""
    stream.CALIBRATION_TOKENS = 1024
    p = scales.parameters(
        "03_sae", "pythia-410m", text=text, layers=[12], lams=[8e-4], tokens=10_000, steps=2, batch=512, length=64,
        held_out_tokens=1000, kl_tokens=256, widths=[WIDTH],
    )  # fmt: skip
    record = sae.measure(p)
    shapes = {name: list(record[f"sae/{name}"].shape) for name in ("encoder", "bias_pre")}
    columns = ["alive", "l0", "alpha", "d_star", "fvu", "kl_spliced"]
    return {"layers": record["layers"][columns].to_dict("records"), "shapes": shapes} | {
        "floors": record["floors"][["width", "eq2", "kl_cut"]].to_dict("records")
    }


def student(text: str, ladder: str) -> dict:
    """Two steps of a student, in the paper's warm-up, and its evaluation."""
    students.BASIS_TOKENS = 4 * 512
    p = scales.parameters(
        "04_distill", "pythia-410m", text=text, width=WIDTH, ladders=[ladder], steps=10, warmup=5, batch=2, length=32,
        evaluations=2, held_out_blocks=4,
    )  # fmt: skip
    job = students.Job(ladder, WIDTH, seed=0, steps=2)
    record, (what, parameters) = students.student(p, job), students.key(p, job)
    weights = store.find(f"{what}-weights", parameters).values
    found = {"history": record["history"].to_dict("list"), "params": record["params"], "uniform": record["uniform"]}
    return found | {"stored": sum(array.size for array in weights.values())}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs one of the parts above on a made-up text."""
    folder = tmp_path_factory.mktemp("full")
    text = str(pile_world.save_pile(folder / "text"))
    places = {"HF_HUB_CACHE": "hub", "HF_DATASETS_CACHE": "datasets", "MINWIDTH_RUNS": "runs"}
    env = os.environ | {name: str(folder / place) for name, place in places.items()} | {"HF_HUB_OFFLINE": "1"}

    def part(name: str, *arguments: str) -> dict:
        command = [sys.executable, "-m", "tests.test_full_size", name, *arguments]
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
    assert floor["width"] == WIDTH and floor["eq2"] > 0 and floor["kl_cut"] > 0


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
        assert round(found["params"] / 1e6) == table3.params_millions[WIDTH]


if __name__ == "__main__":
    work, *arguments = sys.argv[1:]
    answer = {"save": save, "autoencoder": autoencoder, "student": student}[work](*arguments)
    answer["gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    sys.stdout.write(json.dumps(answer))
