"""Every figure: tidy DataFrame in, Matplotlib figure out, one style; ``save`` writes PNG and SVG, byte-stable.

Sized for a text column; units on every axis; the paper's values as open markers, ours filled; the palette is seaborn's
``colorblind``, and no meaning hangs on colour alone.
"""

import io

import matplotlib
import numpy as np
import seaborn as sns
from cycler import cycler
from IPython.display import Image
from matplotlib.figure import Figure

from minwidth.paths import FIGURES, replace_file

WIDTH = 6.3  # inches, a text column
HEIGHT = 2.9  # of a single row of panels
PALETTE = sns.color_palette("colorblind")
OURS = {"marker": "o", "markersize": 5}
PAPER = {"marker": "o", "markersize": 6, "markerfacecolor": "none", "linestyle": "none", "color": "0.25"}
STYLE = {
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
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


def panels(columns: int = 1, rows: int = 1, height: float = HEIGHT, **options) -> tuple[Figure, np.ndarray]:
    """A figure of one text column's width with an array of axes ``[rows, columns]``, in the house style.

    The figure is made without pyplot, so nothing is shown twice and none is left open.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height * rows), layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save(figure: Figure, name: str, scale: str, record=None) -> Image:
    """Write ``figures/<scale>/<name>.svg`` and ``.png``, the record's key in their metadata; return the picture."""
    origin = record.key if record is not None else "computed from the paper's own numbers"
    for kind, metadata in (
        ("svg", {"Date": None, "Creator": "minwidth", "Description": origin}),
        ("png", {"Software": "minwidth", "Description": origin}),
    ):
        buffer = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            figure.savefig(buffer, format=kind, metadata=metadata)
        replace_file(FIGURES / scale / f"{name}.{kind}", buffer.getvalue())
    return Image(data=buffer.getvalue(), width=WIDTH * STYLE["figure.dpi"])
