"""The pins: exact, the same for pip and conda, and the ones installed here."""

import re
import tomllib
from importlib import metadata

import pytest
import yaml

from minwidth.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = [*PROJECT["dependencies"], *EXTRAS["lab"], *EXTRAS["test"]]


@pytest.mark.parametrize("pin", [*PINS, *EXTRAS["bench"], *EXTRAS["slurm"]])
def test_every_requirement_is_pinned_exactly(pin: str):
    assert re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*", pin)


def test_conda_and_pip_install_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (by_pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert sorted(by_pip) == sorted([*PINS, "-e ."])
    (python,) = (entry for entry in environment["dependencies"] if str(entry).startswith("python="))
    assert PROJECT["requires-python"] == f">={python.removeprefix('python=')}"


@pytest.mark.parametrize("pin", PINS)
def test_what_is_installed_is_what_is_pinned(pin: str):
    name, _, version = pin.partition("==")
    assert metadata.version(name).split("+")[0] == version  # a local part such as +cpu names the build
