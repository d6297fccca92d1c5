"""The theory notebook's figures: what they must show, and the explorer with and without a live session."""

import numpy as np
import pandas as pd
import pytest

from minwidth import capacity, figures


@pytest.fixture
def floors():
    widths = np.arange(1, 11)
    values = {
        "linear optimum": capacity.linear_floor(capacity.zipf(10), widths, 0.9),
        "Eq. 2": capacity.eq2_floor(capacity.zipf(10), widths, 0.9),
    }
    return pd.concat(
        pd.DataFrame({"panel": panel, "width": widths, "kind": kind, "share": value})
        for panel in ("one", "two", "three")
        for kind, value in values.items()
    )


def test_floors_draw_one_panel_a_name_and_leave_out_floors_of_zero(floors):
    figure = figures.theory_floors(floors, mark=4)
    drawn = [axes for axes in figure.axes if axes.lines and axes.get_title()]
    assert [axes.get_title() for axes in drawn] == ["one", "two", "three"]
    for axes in drawn:
        eq2 = next(line for line in axes.lines if line.get_label() == "Eq. 2")
        assert len(eq2.get_xdata()) == (floors.query("panel == 'one' and kind == 'Eq. 2'")["share"] > 0).sum()
        assert (eq2.get_ydata() > 0).all()


def test_arrangements_show_what_a_read_out_hears():
    figure = figures.theory_arrangements({"pair": np.array([[1.0, -1.0], [0, 0]]), "one": np.array([[1.0, 0], [0, 0]])})
    heard = [float(text.get_text()) for axes in figure.axes for text in axes.texts if text.get_text() in ("0", "1")]
    assert sorted(heard) == [0] * 5 + [1] * 3  # ReLU removes the -1s of the pair; the dropped feature hears nothing
    assert any("dropped: $x_2$" in text.get_text() for axes in figure.axes for text in axes.texts)


def test_explorer_is_a_picture_unless_someone_can_move_a_slider(floors, monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert figures.explore(None, "still", width=(1, 10, 3)) == "still"
    widgets = pytest.importorskip("ipywidgets")
    monkeypatch.setenv("JPY_SESSION_NAME", "01_theory.ipynb")
    live = figures.explore(
        lambda **values: figures.theory_floors(floors), "still", width=(1, 10, 30), alpha=(0.5, 1, 0.9)
    )
    assert isinstance(live, widgets.VBox)
    assert [slider.value for slider in live.children[:2]] == [10, 0.9]  # clipped into its range
