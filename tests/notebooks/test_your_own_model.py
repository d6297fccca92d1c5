"""08 as a new user runs it: a model and texts of one's own in folders, one command, a page with the answer."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from minwidth import models, store
from tests.small_models import config_of, model_of

SMALL = "widths: [8, 16, 24]\nlength: 16\nbasis_blocks: 48\nblocks: 16\ncontexts: 200\nheld_out_contexts: 60\nsteps: 3"


def test_from_two_folders_to_a_page(tmp_path: Path):
    words, rng = ["the", "cat", "sat", "on", "a", "mat", "and", "slept", "so", "did"], np.random.default_rng(0)
    (tmp_path / "texts").mkdir()
    for number in range(60):
        (tmp_path / "texts" / f"{number}.txt").write_text(" ".join(rng.choice(words, 200)))
    model_of(config_of("llama", vocab_size=2048)).save_pretrained(tmp_path / "model")
    tokenizer = models.load_teacher("tiny").tokenizer
    tokenizer.bos_token = tokenizer.eos_token  # as most families have one
    tokenizer.save_pretrained(tmp_path / "model")

    given = f"teacher: {tmp_path / 'model'}\ntext: {tmp_path / 'texts'}\npercent: 100.0\ntarget: 0.5\n{SMALL}"
    environment = os.environ | {"MINWIDTH_RUNS": str(tmp_path / "runs"), "MINWIDTH_OUT": str(tmp_path)}
    line = [Path(sys.executable).with_name("papermill"), "08_your_model.ipynb", "-y", given, "--no-progress-bar"]
    subprocess.run(line, cwd=store.ROOT / "notebooks", env=environment, check=True, capture_output=True)

    (page,) = (tmp_path / "runs").glob("08_your_model__*.html")
    text = re.sub(r"<[^>]+>", " ", page.read_text())
    assert "For at most 0.5 nats per token" in text and "does worse than word frequencies" in text
    assert "def " not in text and "import " not in text, "a page without code"
    assert (tmp_path / "data" / "results" / "other" / "your_model.csv").exists()
