"""A random GPT-NeoX in a folder, made-up text, and parameters of 03_sae small enough for seconds."""

from pathlib import Path

import numpy as np
import pytest
import torch

from minwidth import scales, store, stream, text
from tests import small_models

VOCABULARY = 40
SMALL = dict(expansion=4, tokens=10_000, steps=60, batch=64, held_out_tokens=1600, kl_tokens=160, length=16)


def save_teacher(folder: Path) -> None:
    """Of Pythia's architecture, with a tokenizer."""
    config = small_models.config_of("gpt_neox", vocab_size=VOCABULARY)
    small_models.save_teacher(folder, config, torch.float32, words=VOCABULARY)


def token_blocks(tokenizer, split: str, length: int = 16, *_) -> np.ndarray:
    """Instead of ``text.token_blocks``."""
    made = np.random.default_rng(0).zipf(1.3, (800, length)) % VOCABULARY
    return {"train": made[:700], "held_out": made[700:]}[split].astype(np.uint16)


def parameters(folder: Path, **changes) -> scales.Sae:
    given = SMALL | dict(teacher=str(folder), layer=2, layers=[1, 2], lams=[0.3, 3.0], lam=1.0) | changes
    return scales.parameters("03_sae", "tiny", **given)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Parameters of a measurement; its records lie in a folder of their own, where a module's tests find them."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        for module in (store, stream):
            patch.setattr(module, "RUNS", folder / "runs")
        patch.setattr(text, "token_blocks", token_blocks)
        save_teacher(folder / "teacher")
        yield parameters(folder / "teacher")
