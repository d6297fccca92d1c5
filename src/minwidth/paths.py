"""Where things lie, from the repository root, and how a file or folder is written whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(os.environ.get("MINWIDTH_ROOT") or Path(__file__).resolve().parents[2])
DATA = ROOT / "data"
CORPORA_LOCK = DATA / "corpora.txt"
WHEELS = DATA / "wheels"
RUNS = Path(os.environ.get("MINWIDTH_RUNS") or ROOT / "runs")
OUT = Path(os.environ.get("MINWIDTH_OUT") or ROOT)  # tests point it to a temporary folder
RESULTS = OUT / "data" / "results"
FIGURES = OUT / "figures"


@contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``target`` that takes its place if the block ends well, else vanishes."""
    unique = uuid.uuid4().hex[:8]
    temporary, old = (target.with_name(f".{target.name}-{role}-{unique}") for role in ("new", "old"))
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if target.exists():
            target.rename(old)
        temporary.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def replace_file(target: Path, content: bytes) -> None:
    """Write ``content`` to ``target`` so that a reader sees the old file or the new one, never half of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}-new-{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
