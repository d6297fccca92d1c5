import hashlib
import os
import subprocess
import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib import rcParams
from matplotlib.image import imread

from minwidth import figures
from minwidth.store import ROOT

LIMIT = 220_000  # bytes of a committed figure
RECORD = SimpleNamespace(key="toy/tiny/sweep-1a2b3c4d")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "FIGURES", tmp_path)
    return tmp_path / "tiny"


def draw(points=200):
    """A figure with all that tends to vary: markers, clips, mathematics, a legend, a colour mesh."""
    figure, axes = figures.panels(columns=2)
    x = np.linspace(0, 1, points)
    axes[0, 0].plot(x, np.sin(9 * x), **figures.OURS, label=r"ours, $\alpha$")
    axes[0, 0].plot(x[::20], np.cos(9 * x[::20]), **figures.PAPER, label="paper")
    axes[0, 0].set(xlabel="width", ylabel="floor (nats per token)")
    axes[0, 0].legend()
    axes[0, 1].imshow(np.outer(x, x))
    return figure


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_a_saved_figure_is_small_as_wide_as_a_column_carries_its_record_and_is_the_same_bytes_in_any_process(folder):
    before = dict(rcParams)
    shown = figures.save(draw(), "fig00", "tiny", RECORD)
    assert dict(rcParams) == before, "the style is left alone"
    first, (svg, png) = digests(folder), ((folder / f"fig00.{kind}").read_bytes() for kind in ("svg", "png"))
    assert set(first) == {"fig00.png", "fig00.svg"} and shown.data == png and max(len(svg), len(png)) < LIMIT
    size = [round(inches * figures.STYLE["savefig.dpi"]) for inches in (figures.HEIGHT, figures.WIDTH)]
    assert list(imread(folder / "fig00.png").shape[:2]) == size
    assert RECORD.key.encode() in svg and RECORD.key.encode() in png and b"dc:date" not in svg
    ElementTree.fromstring(svg)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_figures as t\n"
        "t.figures.save(t.draw(), 'fig00', 'tiny', t.RECORD)\n"
    )
    environment = os.environ | {"MINWIDTH_OUT": str(folder.parent / "other"), "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", script, os.path.dirname(__file__)]
    subprocess.run(command, env=environment, check=True, timeout=120)
    assert digests(folder.parent / "other" / "figures" / "tiny") == first


def test_committed_figures_are_small():
    committed = [path for path in (ROOT / "figures").glob("*/*") if path.parent.name != "other"]
    assert len(committed) > 30 and not [path.name for path in committed if path.stat().st_size >= LIMIT]
