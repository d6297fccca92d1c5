"""Nothing is unpickled, no code of others is run by name, and everything fetched has a hash."""

import ast
import re
from pathlib import Path

import pytest

from minwidth.store import CORPORA_LOCK, ROOT

FOLDERS = ("src", "notebooks", "benchmarks", "tests", "docs")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
ALLOWED = {"tests/test_models.py": {"torch.save"}}  # it writes a pickle to see it refused


def unsafe(source: str) -> set[str]:
    """What in a module could unpickle a file, or run code that comes with data."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] in UNPICKLERS}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} if (node.module or "").split(".")[0] in UNPICKLERS else set()
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if name in ("eval", "exec", "torch.save", "torch.jit.load", "pd.read_pickle", "os.system", "yaml.load"):
                found.add(name)
            if name == "torch.load" and given.get("weights_only") != "True":
                found.add(name)
            for option in ("allow_pickle", "trust_remote_code"):
                if given.get(option, "False") != "False":
                    found.add(f"{option}={given[option]}")
        elif isinstance(node, ast.Dict):  # options passed on with **
            options = [
                (ast.unparse(key), ast.unparse(value)) for key, value in zip(node.keys, node.values, strict=True) if key
            ]
            found |= {key for key, value in options if "trust_remote_code" in key and value != "False"}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_unpickles_or_runs_what_it_fetched(path: Path):
    place = str(path.relative_to(ROOT))
    harmless = {"exec"} if place.startswith("tests/") else set()
    assert unsafe(path.read_text()) <= ALLOWED.get(place, set()) | harmless


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", "pickle"),
        ("from joblib import load", "joblib"),
        ("torch.load(f)", "torch.load"),
        ("torch.load(f, weights_only=False)", "torch.load"),
        ("np.load(f, allow_pickle=True)", "allow_pickle=True"),
        ("f(x, trust_remote_code=remote)", "trust_remote_code=remote"),
        ("f(**{'trust_remote_code': True})", "'trust_remote_code'"),
        ("yaml.load(f)", "yaml.load"),
    ],
)
def test_the_scan_sees_what_it_looks_for(source: str, found: str):
    assert unsafe(source) == {found}


def test_safe_forms_pass_the_scan():
    assert not unsafe("torch.load(f, weights_only=True); np.load(f, allow_pickle=False); yaml.safe_load(f)")


def test_every_wheel_of_text_has_a_hash():
    for line in CORPORA_LOCK.read_text().splitlines():
        assert re.fullmatch(
            r"[a-z0-9-]+==\S+ --hash=sha256:[0-9a-f]{64}", line.strip() or "a==1 --hash=sha256:" + 64 * "0"
        )


def test_no_data_that_is_committed_is_a_pickle():
    kinds = {path.suffix for path in (ROOT / "data").rglob("*") if path.is_file() and "wheels" not in path.parts}
    assert kinds <= {".csv", ".json", ".md", ".safetensors", ".txt", ".yaml"}
