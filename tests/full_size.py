"""Pythia-410M in full size with random weights, and two real steps of 03 and of 04 with it.

``python -m tests.full_size save``, ``autoencoder <text>`` or ``student <text> <ladder>``. The model lies in Hugging
Face's cache (``HF_HUB_CACHE``) where the real one would, so what runs is what a machine with a network runs; each part
is a process of its own, which gives its memory back. Prints JSON.
"""

import json
import os
import resource
import sys
from pathlib import Path

from minwidth import models, sae, scales, store, stream, students
from tests import pile_world

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
        "04_distill", "pythia-410m", text=text, width=WIDTH, ladders=[ladder], steps=10, batch=2, length=32,
        evaluations=2, held_out_blocks=4,
    )  # fmt: skip
    job = students.Job(ladder, WIDTH, seed=0, steps=2)
    record, (what, parameters) = students.student(p, job), students.key(p, job)
    weights = store.find(f"{what}-weights", parameters).values
    found = {"history": record["history"].to_dict("list"), "params": record["params"], "uniform": record["uniform"]}
    return found | {"stored": sum(array.size for array in weights.values())}


if __name__ == "__main__":
    work, *arguments = sys.argv[1:]
    answer = {"save": save, "autoencoder": autoencoder, "student": student}[work](*arguments)
    answer["gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    sys.stdout.write(json.dumps(answer))
