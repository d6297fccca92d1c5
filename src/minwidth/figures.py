"""Every figure: tidy DataFrame in, Matplotlib figure out, one style; ``save`` writes PNG and SVG, byte-stable.

Sized for a text column; units on every axis; the paper's values as open markers, ours filled; the palette is seaborn's
``colorblind``, and no meaning hangs on colour alone.
"""

import io

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from cycler import cycler
from IPython.display import Image
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from minwidth.store import FIGURES, replace_file

WIDTH = 6.3  # inches, a text column
HEIGHT = 2.9  # of a single row of panels
PALETTE = sns.color_palette("colorblind")
OURS = {"marker": "o", "markersize": 5}
PAPER = {"marker": "o", "markersize": 6, "markerfacecolor": "none", "linestyle": "none", "color": "0.25"}
STYLE = {
    "figure.dpi": 110,
    "savefig.dpi": 160,
    **dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize"), 9),
    **dict.fromkeys(("legend.fontsize", "xtick.labelsize", "ytick.labelsize"), 8),
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.linewidth": 0.5,
    "grid.color": "0.9",
    "axes.axisbelow": True,
    "lines.linewidth": 1.4,
    "axes.prop_cycle": cycler(color=PALETTE),
    "svg.hashsalt": "minwidth",
    "svg.fonttype": "path",
}


def style():
    """The house style while a block lasts, for figures that are drawn in a notebook's cell."""
    return matplotlib.rc_context(STYLE)


def panels(columns: int = 1, rows: int = 1, height: float = HEIGHT, **options) -> tuple[Figure, np.ndarray]:
    """A figure of one text column's width with an array of axes ``[rows, columns]``, in the house style.

    The figure is made without pyplot, so nothing is shown twice and none is left open.
    """
    with style():
        figure = Figure(figsize=(WIDTH, height * rows), layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False, **options)


STYLES = [("o", "-"), ("s", "--"), ("^", "-."), ("D", ":"), ("v", "-"), ("P", "--"), ("X", "-."), ("<", ":")]


def lines(
    frame: pd.DataFrame, x: str, y: str, hue: str, column: str | None = None, low: str | None = None,
    high: str | None = None, *, xlabel: str, ylabel: str, legend: str, log: str = "", ordered: bool = False,
    ticks: bool = False,
) -> tuple[Figure, np.ndarray]:  # fmt: skip
    """Lines of ``y`` over ``x``, one a value of ``hue``, a panel a value of ``column``, bars from ``low`` to ``high``.

    Args:
        legend: its title; the legend stands below the panels.
        log: the logarithmic axes, "x", "y" or "xy".
        ordered: the hues are amounts (widths): dark to bright, without markers, instead of colours with markers.
        ticks: a tick at each ``x`` that occurs.

    Returns:
        The figure and its row of axes, to add what is particular.
    """
    columns = [""] if column is None else list(dict.fromkeys(frame[column]))
    hues = list(dict.fromkeys(frame[hue]))
    colours = sns.color_palette("viridis", len(hues)) if ordered else PALETTE
    with style():
        figure, (axes,) = panels(len(columns), sharey=True)
        for axis, name in zip(axes, columns, strict=True):
            panel = frame if column is None else frame[frame[column] == name]
            for number, value in enumerate(hues):
                rows = panel[panel[hue] == value].sort_values(x)
                if rows.empty:
                    continue
                marker, line = ("", "-") if ordered else STYLES[number % len(STYLES)]
                look = {"color": colours[number % len(colours)], "marker": marker, "linestyle": line, "markersize": 4}
                reach = None if low is None else [rows[y] - rows[low], rows[high] - rows[y]]
                axis.errorbar(rows[x], rows[y], reach, capsize=2, label=value, **look)
            for which in log:
                plain_log(axis, which)
            if ticks:
                mark(axis, frame[x])
            axis.set(xlabel=xlabel, title=name)
        axes[0].set_ylabel(ylabel)
        entries = [zip(*axis.get_legend_handles_labels(), strict=True) for axis in axes]
        shown = {label: handle for panel in entries for handle, label in panel}
        figure.legend(shown.values(), shown, loc="outside lower center", ncols=min(len(shown), 6), title=legend)
    return figure, axes


def mark(axis, values) -> None:
    """A tick at each of some values; two that lie too close share the room of one label, the wider one's."""
    values = sorted(set(values))
    axis.set_xticks(values, [f"{value:g}" for value in values])
    axis.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    for label, value, following in zip(axis.get_xticklabels(), values, [*values[1:], np.inf], strict=True):
        if axis.get_xscale() == "log" and following < 1.18 * value:
            label.set_horizontalalignment("right")


def plain_log(axis, which: str = "y") -> None:
    """A logarithmic axis, ``x`` or ``y``, with numbers as one writes them: more of them over less than a decade."""
    axis.set(**{f"{which}scale": "log"})
    ticks, (low, high) = getattr(axis, f"{which}axis"), getattr(axis, f"get_{which}lim")()
    ticks.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7) if high < 10 * low else (1, 2, 5)))
    ticks.set_major_formatter("{x:g}")
    ticks.set_minor_formatter(NullFormatter())


def save(figure: Figure, name: str, scale: str, record=None) -> Image:
    """Write ``figures/<scale>/<name>.svg`` and ``.png``, the record's key in their metadata; return the picture."""
    origin = {"Description": record.key if record is not None else "computed from the paper's own numbers"}
    metadata = {"svg": {"Date": None, "Creator": "minwidth"} | origin, "png": {"Software": "minwidth"} | origin}
    for kind, said in metadata.items():
        drawn = io.BytesIO()
        with style():
            figure.savefig(drawn, format=kind, metadata=said, dpi=50 if kind == "svg" else STYLE["savefig.dpi"])
        replace_file(FIGURES / scale / f"{name}.{kind}", drawn.getvalue())
    return Image(data=drawn.getvalue(), width=WIDTH * STYLE["figure.dpi"])
