"""The pins: exact, complete, the same for pip, conda and the lock, and the ones installed here."""

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from minwidth.store import ROOT

TOML = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, EXTRAS = TOML["project"], TOML["project"]["optional-dependencies"]
READER = [*PROJECT["dependencies"], *EXTRAS["lab"]]
PINS = [*READER, *EXTRAS["dev"]]
BUILD = TOML["dependency-groups"]["build"]
# what .venv holds, what it may hold for some targets, and what make lock runs
PARTS = [
    [line for line in part.splitlines() if "==" in line]
    for part in re.split(r"^# for .*\n", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
]
CONSTRAINTS = PARTS[0] + PARTS[1]


def test_every_requirement_is_pinned_exactly():
    assert {*PROJECT["dependencies"], *(pin for extra in EXTRAS.values() for pin in extra), *BUILD} <= {*CONSTRAINTS}
    assert set(TOML["build-system"]["requires"]) <= set(BUILD), "what builds the package is locked"


def test_conda_installs_what_a_reader_needs():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (by_pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert sorted(by_pip) == sorted([*READER, "-e ."])
    assert f"python={PROJECT['requires-python'].removeprefix('>=')}" in environment["dependencies"]


def test_what_is_installed_is_what_is_pinned():
    installed = {_normal(item.metadata["Name"]): item.version.split("+")[0] for item in metadata.distributions()}
    for name, version in (pin.split("==") for pin in PARTS[0]):  # a local part such as +cpu names the build
        assert installed.get(_normal(name)) == version, f"{name} is {installed.get(_normal(name))}: run make again"


def test_the_lock_has_these_pins_and_hashes_for_all():
    pattern = r"(?P<pin>[\w.-]+==[\w.]+)(?: ; (?P<where>[^\\]+))?(?P<hashes>(?: \\\n    --hash=sha256:[0-9a-f]{64})+)"
    lock = re.sub(r"^#.*\n", "", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)
    entries = list(re.finditer(pattern + r"\n", lock))
    assert "".join(entry[0] for entry in entries) == lock, "something in requirements.lock has no hash"
    locked = {_normal(entry["pin"]): entry["where"] for entry in entries}
    pinned = {_normal(pin) for pin in CONSTRAINTS}
    assert pinned <= set(locked), "run make lock"
    assert all(locked[pin] for pin in set(locked) - pinned), "run make lock: only other machines' packages are no pins"


@pytest.mark.parametrize("folders", [["src", "notebooks", "workflow"], ["tests"]])
def test_what_is_imported_is_pinned(folders: list[str]):
    pinned = {_normal(pin.split("==")[0]) for pin in (PROJECT["dependencies"] if "src" in folders else PINS)}
    providers = metadata.packages_distributions()
    for file in (file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))):
        for module in _imports(file) - set(sys.stdlib_module_names) - {"minwidth", "tests", "workflow"}:
            names = {_normal(name) for name in providers.get(module, [module])}
            assert names & pinned, f"{file.relative_to(ROOT)} imports {module}, which pyproject.toml does not pin"


def _imports(file: Path) -> set[str]:
    """Top-level names of all modules that ``file`` imports."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.split(".")[0] for name in names}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
