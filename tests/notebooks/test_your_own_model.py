"""08 as a new user runs it: a model and texts of one's own in folders, one command, a page with the answer."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from minwidth import models, store
from tests.small_models import config_of, model_of

SMALL = dict(percent=100.0, target=0.5, widths=[8, 16, 24], length=16, basis_blocks=48, blocks=16, contexts=200)
SMALL |= dict(held_out_contexts=60)


def made(folder: Path, config, steps: int) -> tuple[str, pd.DataFrame]:
    """What the page says of a random model on made-up texts, and its table."""
    words, rng = ["the", "cat", "sat", "on", "a", "mat", "and", "slept", "so", "did"], np.random.default_rng(0)
    (folder / "texts").mkdir()
    for number in range(60):
        (folder / "texts" / f"{number}.txt").write_text(" ".join(rng.choice(words, 200)))
    model_of(config).save_pretrained(folder / "model")
    tokenizer = models.load_teacher("tiny").tokenizer
    tokenizer.bos_token = tokenizer.eos_token  # as most families have one
    tokenizer.save_pretrained(folder / "model")

    given = json.dumps(SMALL | dict(teacher=str(folder / "model"), text=str(folder / "texts"), steps=steps))
    environment = os.environ | {"MINWIDTH_RUNS": str(folder / "runs"), "MINWIDTH_OUT": str(folder)}
    line = [Path(sys.executable).with_name("papermill"), "08_your_model.ipynb", "-y", given, "--no-progress-bar"]
    subprocess.run(line, cwd=store.ROOT / "notebooks", env=environment, check=True, capture_output=True)

    (page,) = (folder / "runs").glob("08_your_model__*.html")
    table = pd.read_csv(folder / "data" / "results" / "other" / "your_model.csv")
    return re.sub(r"<[^>]+>", " ", page.read_text()), table


def test_from_two_folders_to_a_page(tmp_path: Path):
    text, table = made(tmp_path, config_of("llama", vocab_size=2048), steps=40)
    assert "For at most 0.5 nats per token" in text and "does worse than word frequencies" in text
    assert "def " not in text and "import " not in text, "a page without code"
    (row,) = table.dropna(subset="trained").itertuples()  # the narrowest that is not excluded, distilled
    assert row.low < row.trained_low <= row.trained <= row.trained_high and row.trained < 0.9 * row.kl


def test_a_model_that_caps_its_logits_has_a_page_without_a_floor(tmp_path: Path):
    text, table = made(tmp_path, config_of("gemma2", vocab_size=2048, final_logit_softcapping=5.0), steps=0)
    assert "its floor is not computed" in text
    assert table.low.isna().all() and (table.kl > 0).all() and table.cut_parameters.isna().all()
