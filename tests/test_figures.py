import hashlib
import os
import subprocess
import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
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


def test_a_figure_is_the_same_bytes_each_time_it_is_drawn(folder):
    figures.save(draw(), "fig00", "tiny", RECORD)
    first = digests(folder)
    assert set(first) == {"fig00.png", "fig00.svg"}
    figures.save(draw(), "fig00", "tiny", RECORD)
    assert digests(folder) == first


def test_a_figure_is_the_same_bytes_in_another_process(folder):
    figures.save(draw(), "fig00", "tiny", RECORD)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_figures as t\n"
        "t.figures.save(t.draw(), 'fig00', 'tiny', t.RECORD)\n"
    )
    environment = os.environ | {"MINWIDTH_OUT": str(folder.parent / "other"), "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", script, os.path.dirname(__file__)]
    subprocess.run(command, env=environment, check=True, timeout=120)
    assert digests(folder) == digests(folder.parent / "other" / "figures" / "tiny")


def test_figures_are_small_and_as_wide_as_a_text_column(folder):
    figures.save(draw(), "fig00", "tiny", RECORD)
    assert all(path.stat().st_size < LIMIT for path in folder.iterdir())
    height, width, _ = imread(folder / "fig00.png").shape
    assert width == round(figures.WIDTH * figures.STYLE["savefig.dpi"])
    assert height == round(figures.HEIGHT * figures.STYLE["savefig.dpi"])


def test_committed_figures_are_small():
    committed = [path for path in (ROOT / "figures").glob("*/*") if path.parent.name != "other"]
    assert len(committed) > 30
    assert not [path.name for path in committed if path.stat().st_size >= LIMIT]


def test_figures_carry_the_key_of_their_record_and_no_date(folder):
    figures.save(draw(), "fig00", "tiny", RECORD)
    svg, png = (folder / "fig00.svg").read_text(), (folder / "fig00.png").read_bytes()
    assert RECORD.key in svg and RECORD.key.encode() in png
    assert "dc:date" not in svg
    ElementTree.fromstring(svg)


def test_save_returns_the_picture_it_wrote(folder):
    assert figures.save(draw(), "fig00", "tiny").data == (folder / "fig00.png").read_bytes()


def test_the_house_style_stays_in_its_figures():
    from matplotlib import rcParams

    before = dict(rcParams)
    figures.save(draw(), "fig00", "tiny", RECORD)
    assert dict(rcParams) == before


def test_explorer_is_a_picture_unless_someone_can_move_a_slider(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert figures.explore(None, "still", width=(1, 10, 3)) == "still"
    widgets = pytest.importorskip("ipywidgets")
    monkeypatch.setenv("JPY_SESSION_NAME", "01_theory.ipynb")
    live = figures.explore(lambda **values: draw(), "still", width=(1, 10, 30), alpha=(0.5, 1, 0.9))
    assert isinstance(live, widgets.VBox)
    assert [slider.value for slider in live.children[:2]] == [10, 0.9]  # clipped into its range
