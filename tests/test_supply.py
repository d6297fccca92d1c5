"""Nothing is unpickled, no code of others is run by name, and everything fetched has a hash."""

import re

from minwidth.store import CORPORA_LOCK, ROOT


def test_no_source_unpickles_or_runs_what_it_fetched():
    """As far as options say; what else could, ruff refuses (pyproject.toml)."""
    folders = ("src", "notebooks", "workflow", "benchmarks", "tests", "docs")
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        given = re.findall(r"""\b(?:allow_pickle|trust_remote_code)\b["']?\s*[:=]\s*([\w.]+)""", path.read_text())
        assert set(given) <= {"False"}, path


def test_every_wheel_of_text_has_a_hash_and_no_committed_data_is_a_pickle():
    for line in filter(str.strip, CORPORA_LOCK.read_text().splitlines()):
        assert re.fullmatch(r"[a-z0-9-]+==\S+ --hash=sha256:[0-9a-f]{64}", line.strip())
    kinds = {path.suffix for path in (ROOT / "data").rglob("*") if path.is_file() and "wheels" not in path.parts}
    assert kinds <= {".csv", ".json", ".md", ".safetensors", ".txt", ".yaml"}
