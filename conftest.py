"""For tests/ and nbval over notebooks/: what they write goes to a scratch folder, outputs compare with a tolerance."""

import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import settings

settings.register_profile("any machine", deadline=None)  # a busy one is slow, not wrong
settings.load_profile("any machine")

pytest_plugins = ["tests.notebooks.tolerance"]


def pytest_configure(config):
    """Records, tables and figures are written to a folder of their own; the working tree stays clean."""
    config.scratch = Path(tempfile.mkdtemp(prefix="minwidth-"))
    os.environ.setdefault("MINWIDTH_RUNS", str(config.scratch / "runs"))
    os.environ.setdefault("MINWIDTH_OUT", str(config.scratch))
    # nbval reads a cell's messages when the cell has ended; of more than 2,000 the last are lost, and it waits for them
    os.environ.setdefault("TQDM_MININTERVAL", "5")


def pytest_unconfigure(config):
    shutil.rmtree(config.scratch, ignore_errors=True)
