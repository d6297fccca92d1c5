"""On Colab, what the study needs that is not there. This file imports nothing that would have to be installed."""

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def missing(project: Path = PROJECT) -> list[str]:
    """Of the pins that ``project`` depends on, those of which no version is installed."""
    pins = tomllib.loads(project.read_text())["project"]["dependencies"]
    return [pin for pin in pins if not list(metadata.distributions(name=pin.split("==")[0]))]


def install() -> None:
    """Install the missing pins. Versions that Colab brings stay, as its own kernel needs them."""
    if lacking := missing():
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *lacking], check=True)
