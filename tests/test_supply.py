"""Nothing is unpickled, no code of others is run by name, and everything fetched has a hash."""

import ast
import re

import pytest

from minwidth.store import CORPORA_LOCK, ROOT

UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {"eval", "exec", "torch.save", "torch.jit.load", "pd.read_pickle", "os.system", "yaml.load"}


def unsafe(source: str) -> set[str]:
    """What in a module could unpickle a file, or run code that comes with data."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        options = {}
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            found |= UNPICKLERS & {name.split(".")[0] for name in names}
        elif isinstance(node, ast.Call):
            name, options = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            if name in CALLS or (name == "torch.load" and options.get("weights_only") != "True"):
                found.add(name)
        elif isinstance(node, ast.Dict):  # options passed on with **
            options = {getattr(k, "value", None): ast.unparse(v) for k, v in zip(node.keys, node.values, strict=True)}
        found |= {name for name in ("allow_pickle", "trust_remote_code") if options.get(name, "False") != "False"}
    return found


def test_no_source_unpickles_or_runs_what_it_fetched():
    folders = ("src", "notebooks", "workflow", "benchmarks", "tests", "docs")
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        place = str(path.relative_to(ROOT))
        assert unsafe(path.read_text()) <= ({"exec"} if place.startswith("tests/") else set()), place


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", {"pickle"}),
        ("from joblib import load", {"joblib"}),
        ("torch.load(f)", {"torch.load"}),
        ("torch.load(f, weights_only=False)", {"torch.load"}),
        ("np.load(f, allow_pickle=True)", {"allow_pickle"}),
        ("f(x, trust_remote_code=remote)", {"trust_remote_code"}),
        ("f(**{'trust_remote_code': True})", {"trust_remote_code"}),
        ("yaml.load(f)", {"yaml.load"}),
        ("torch.load(f, weights_only=True); np.load(f, allow_pickle=False); yaml.safe_load(f)", set()),
    ],
)
def test_the_scan_sees_what_it_looks_for_and_passes_what_is_safe(source: str, found: set[str]):
    assert unsafe(source) == found


def test_every_wheel_of_text_has_a_hash_and_no_committed_data_is_a_pickle():
    for line in filter(str.strip, CORPORA_LOCK.read_text().splitlines()):
        assert re.fullmatch(r"[a-z0-9-]+==\S+ --hash=sha256:[0-9a-f]{64}", line.strip())
    kinds = {path.suffix for path in (ROOT / "data").rglob("*") if path.is_file() and "wheels" not in path.parts}
    assert kinds <= {".csv", ".json", ".md", ".safetensors", ".txt", ".yaml"}
