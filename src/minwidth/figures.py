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


def _finish_panels(figure: Figure, axes, used: int, xlabel: str, ylabel: str, columns: int = 2) -> None:
    """Hide the panels that are not used, label the outer ones, and set the first one's legend below them all."""
    for panel in axes.flat[used:]:
        panel.set_visible(False)
    for panel in axes[-1]:
        panel.set_xlabel(xlabel)
    for row in axes:
        row[0].set_ylabel(ylabel)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns)


STYLES = [("o", "-"), ("s", "--"), ("^", "-."), ("D", ":"), ("v", "-"), ("P", "--"), ("X", "-."), ("<", ":")]


def lines(
    frame: pd.DataFrame,
    x: str,
    y: str,
    hue: str | None = None,
    column: str | None = None,
    low: str | None = None,
    high: str | None = None,
    *,
    log: str = "",
    ordered: bool = False,
    ticks: bool = False,
    legend: str | None = None,
    **labels: str,
) -> tuple[Figure, np.ndarray]:
    """Lines of ``y`` over ``x``, one a value of ``hue``, a panel a value of ``column``, bars from ``low`` to ``high``.

    Args:
        log: the logarithmic axes, "x", "y" or "xy".
        ordered: the hues are amounts (widths): dark to bright, without markers, instead of colours with markers.
        ticks: a tick at each ``x`` that occurs.
        legend: its title; the legend stands below the panels.
        labels: ``xlabel`` and ``ylabel``.

    Returns:
        The figure and its row of axes, to add what is particular.
    """
    columns = [None] if column is None else list(dict.fromkeys(frame[column]))
    hues = [None] if hue is None else list(dict.fromkeys(frame[hue]))
    colours = sns.color_palette("viridis", len(hues)) if ordered else PALETTE
    with style():
        figure, (axes,) = panels(len(columns), sharey=True)
        for axis, name in zip(axes, columns, strict=True):
            panel = frame if name is None else frame[frame[column] == name]
            for number, value in enumerate(hues):
                rows = (panel if value is None else panel[panel[hue] == value]).sort_values(x)
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
            axis.set(xlabel=labels.get("xlabel", x), title=name or "")
        axes[0].set_ylabel(labels.get("ylabel", y))
        if hue is not None:
            handles = {
                label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
            }
            figure.legend(
                handles.values(), handles, loc="outside lower center", ncols=min(len(handles), 6), title=legend
            )
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


# ------------------------------------------------------------------------------------------------------- 01_theory

CAPACITIES = {  # name in the frame: colour and line, the same in every figure of 01_theory
    "1/p: search decoder": (PALETTE[2], "-."),
    "g: the paper": (PALETTE[0], "-"),
    "l1 decoder": (PALETTE[1], "-"),
    "ReLU pairs": (PALETTE[3], ":"),
}
FLOORS = {
    "naive (g = 1)": ("0.6", "--"),
    "linear optimum": (PALETTE[7], "-"),
    "pairs": (PALETTE[3], "-"),
    "Eq. 2": (PALETTE[0], "--"),
    "search decoder": (PALETTE[2], "-."),
}


@matplotlib.rc_context(STYLE)
def fig01_capacity(curve, table, marked) -> Figure:
    """Paper's Fig. 1 and Table 7 on the whole range of sparsity.

    ``curve``: alpha, g, and one column "F = n" of critical widths for each n. ``table``: the paper's alpha and g.
    ``marked``: alpha and g at which the toy model is run.
    """
    figure, ((left, right),) = panels(2)
    left.axvspan(0.5, 1, color="0.95", zorder=0)
    left.plot(curve["alpha"], curve["g"])
    left.plot(marked["alpha"], marked["g"], linestyle="none", label="g at the toy's sparsities", **OURS)
    left.plot(table["alpha"], table["g"], label="paper, Table 7", **PAPER)
    lowest = curve.loc[curve["g"].idxmin()]
    left.annotate(
        f"least: {lowest['g']:.2f}\nat {lowest['alpha']:.2f}", (lowest["alpha"], lowest["g"]), (0.36, 12),
        ha="center", arrowprops={"arrowstyle": "-", "color": "0.4", "linewidth": 0.8},
    )  # fmt: skip
    left.set(yscale="log", xlim=(0, 1), ylim=(0.7, 300), xlabel="sparsity α", ylabel="features per dimension g(α)")
    left.legend(loc="upper center")
    left.set_title("Poles at both ends (shaded: what the paper plots)")
    right.axvspan(0.5, 1, color="0.95", zorder=0)
    for name, style in zip((c for c in curve if c.startswith("F = ")), ("-", "--", "-."), strict=False):
        right.plot(curve["alpha"], curve[name], style, label=name)
    right.set(xlim=(0, 1), ylim=(0, 19), xlabel="sparsity α", ylabel="critical width d* (dimensions)")
    right.legend(loc="upper left")
    right.set_title("d* = F/g falls to 0 for dense features too")
    return figure


@matplotlib.rc_context(STYLE)
def theory_arrangements(arrangements) -> Figure:
    """Feature directions in the plane above what each feature's read-out hears of every other, ReLU(W^T W).

    ``arrangements``: title -> weights [2, features]; columns of zeros are features that are dropped.
    """
    figure, axes = panels(len(arrangements), 2, height=2.1)
    for column, (title, weights) in enumerate(arrangements.items()):
        top, bottom = axes[:, column]
        kept = np.linalg.norm(weights, axis=0) > 0
        for i, (x, y) in enumerate(weights.T):
            if kept[i]:
                top.annotate(
                    "", (x, y), (0, 0), arrowprops={"arrowstyle": "-|>", "color": PALETTE[i], "linewidth": 1.6}
                )
                top.annotate(f"$x_{i + 1}$", (1.22 * x, 1.22 * y), ha="center", va="center", color=PALETTE[i])
        if not kept.all():
            top.text(0, -1.75, "dropped: " + ", ".join(f"$x_{i + 1}$" for i in np.flatnonzero(~kept)), ha="center")
        top.set(xlim=(-1.5, 1.5), ylim=(-1.85, 1.4), xticks=[], yticks=[], aspect="equal", title=title)
        top.spines[:].set_visible(False)
        sns.heatmap(
            np.maximum(weights.T @ weights, 0), ax=bottom, vmin=0, vmax=1, cmap="Blues", square=True, annot=True,
            fmt=".2g", annot_kws={"size": 7}, cbar=False, linewidths=0.5, linecolor="0.9",
        )  # fmt: skip
        labels = [f"$x_{i + 1}$" for i in range(weights.shape[1])]
        bottom.set_xticklabels(labels)
        bottom.set_yticklabels([rf"$\hat x_{i + 1}$" for i in range(weights.shape[1])], rotation=0)
        bottom.tick_params(length=0)
        bottom.set_xlabel("if only this one is active")
    axes[1, 0].set_ylabel("read as")
    return figure


@matplotlib.rc_context(STYLE)
def theory_shapes(frame) -> Figure:
    """Loss of arrangements of equal features against how often a feature is active: columns p, shape, share."""
    figure, ((axes,),) = panels()
    sns.lineplot(
        frame, x="p", y="share", hue="shape", style="shape", ax=axes, palette=PALETTE[: frame["shape"].nunique()]
    )
    axes.set(
        xscale="log", ylim=(0, None), xlabel="p = 1 - α, chance that a feature is active",
        ylabel="loss, share of the total variance",
    )  # fmt: skip
    axes.legend(title=None)
    return figure


@matplotlib.rc_context(STYLE)
def theory_recovery(frame, lines, features: int, active: int, trials: int) -> Figure:
    """Share of sparse vectors recovered against width: columns width, rate. ``lines``: name -> width, drawn upright."""
    figure, ((axes,),) = panels()
    axes.plot(frame["width"], frame["rate"], color="0.25", label=f"l1 minimisation, {trials} trials a width", **OURS)
    styles = [CAPACITIES["1/p: search decoder"], CAPACITIES["g: the paper"], CAPACITIES["l1 decoder"]]
    for (name, width), (colour, style) in zip(lines.items(), styles, strict=True):
        axes.axvline(width, color=colour, linestyle=style, label=f"{name}: {width:.1f}")
    axes.set(
        xlabel="width d (dimensions)", ylabel="share recovered exactly", ylim=(-0.03, 1.03),
        title=f"{active} of {features} features active, random projections",
    )  # fmt: skip
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@matplotlib.rc_context(STYLE)
def theory_capacities(frame) -> Figure:
    """Features per dimension by four answers: columns p, capacity, kind."""
    figure, ((left, right),) = panels(2)
    for kind, (colour, style) in CAPACITIES.items():
        rows = frame[frame["kind"] == kind]
        left.plot(rows["p"], rows["capacity"], color=colour, linestyle=style, label=kind)
        reference = frame[frame["kind"] == "l1 decoder"]["capacity"].to_numpy()
        right.plot(rows["p"], rows["capacity"].to_numpy() / reference, color=colour, linestyle=style)
    left.set(xscale="log", yscale="log", xlabel="p = 1 - α (sparser to the right)", ylabel="features per dimension")
    left.legend()
    right.set(
        xscale="log",
        yscale="log",
        xlabel="p = 1 - α (sparser to the right)",
        ylabel="the same, over the l1 decoder's",
        ylim=(0.05, 100),
    )
    for axes in (left, right):
        axes.invert_xaxis()
    return figure


@matplotlib.rc_context(STYLE)
def theory_critical_width(frame, paper) -> Figure:
    """d* = L0 ln(F / L0): columns l0, features, critical_width; ``paper``: columns mean_l0, critical_width, label."""
    figure, ((axes,),) = panels()
    for (features, rows), style in zip(frame.groupby("features"), ("--", "-", "-."), strict=False):
        axes.plot(rows["l0"], rows["critical_width"], style, label=f"F = {features:,.0f}")
    known = paper["label"] == ""
    axes.plot(paper["mean_l0"][known], paper["critical_width"][known], label="paper, Table 1", **PAPER)
    for _, row in paper[~known].iterrows():
        axes.plot(row["mean_l0"], row["critical_width"], **(PAPER | {"marker": "s"}), label=row["label"])
    axes.axhline(1024, color="0.4", linewidth=0.8, linestyle=":")
    axes.text(frame["l0"].min(), 1024 * 1.08, "$d_T$ = 1024", fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="mean active features L0", ylabel="critical width d* (dimensions)")
    axes.legend()
    return figure


@matplotlib.rc_context(STYLE)
def theory_floors(frame, mark: float | None = None) -> Figure:
    """Floors against width: columns panel, width, kind, share (of the total variance). A floor of 0 ends its line.

    ``mark``: a width to be marked with an upright line.
    """
    names = list(dict.fromkeys(frame["panel"]))
    columns = min(len(names), 2)
    figure, axes = panels(columns, -(-len(names) // columns), sharey=True)
    for panel, name in zip(axes.flat, names, strict=False):
        rows = frame[frame["panel"] == name]
        for kind, (colour, style) in FLOORS.items():
            line = rows[(rows["kind"] == kind) & (rows["share"] > 0)]
            marker = "." if kind == "Eq. 2" and len(line) < 20 else None  # it may end after one point
            panel.plot(line["width"], line["share"], style, color=colour, marker=marker, label=kind)
        if mark is not None:
            panel.axvline(mark, color="0.7", linewidth=0.8)
        panel.set(xscale="log", yscale="log", ylim=(1e-4, 2), title=name, xlabel="width d (dimensions)")
    for row in axes:
        row[0].set_ylabel("loss, share of the total variance")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(FLOORS))
    return figure


@matplotlib.rc_context(STYLE)
def theory_allocation(grids) -> Figure:
    """Which features own an axis, share one or are dropped, by width.

    ``grids``: title -> array [widths, features] of 0 dropped, 1 shared, 2 owned, row 0 being width 1.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    colours = ["0.93", PALETTE[3], PALETTE[0]]
    figure, (row,) = panels(len(grids), sharey=True)
    for axes, (title, grid) in zip(row, grids.items(), strict=True):
        extent = (0.5, grid.shape[1] + 0.5, 0.5, grid.shape[0] + 0.5)
        axes.imshow(
            grid, cmap=ListedColormap(colours), vmin=0, vmax=2, aspect="auto", origin="lower", extent=extent,
            interpolation="nearest",
        )  # fmt: skip
        axes.grid(False)
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.set(title=title, xlabel="feature, by importance")
    row[0].set_ylabel("width d (dimensions)")
    names = ("dropped", "shares an axis", "owns an axis")
    patches = [Patch(facecolor=c, edgecolor="0.6", label=n) for c, n in zip(colours, names, strict=True)]
    figure.legend(handles=patches, loc="outside lower center", ncols=3)
    return figure


# ------------------------------------------------------------------------------------------------------------ 06_ledger


@matplotlib.rc_context(STYLE)
def ledger_verdicts(counts, colors: dict[str, str], scales: list[str]) -> Figure:
    """Verdicts by section, stacked bars with their counts; ``counts`` has sections as rows and verdicts as columns."""
    figure, axes = panels(height=2.6)
    axis, left = axes[0, 0], np.zeros(len(counts))
    rows = np.arange(len(counts))
    for verdict, hatch in zip(counts.columns, ("", "", "\\\\\\\\", "", "////", ""), strict=True):
        number = counts[verdict].to_numpy()
        axis.barh(rows, number, left=left, color=colors[verdict], hatch=hatch, edgecolor="white", label=verdict)
        for row in rows[number > 0]:
            box = {"facecolor": "white", "edgecolor": "none", "boxstyle": "round,pad=0.15", "alpha": 0.85}
            axis.text(left[row] + number[row] / 2, row, number[row], ha="center", va="center", fontsize=7, bbox=box)
        left += number
    axis.set_yticks(rows, counts.index)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set_xlabel(f"claims ({int(left.sum())} in all; measured at {' and '.join(scales) or 'no scale yet'})")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def explore(draw, still, **ranges):
    """Sliders for ``draw`` in a live Jupyter session with ipywidgets, else the picture ``still``.

    ``ranges``: argument of ``draw`` -> (least, greatest, first) value. Executed notebooks, tests and pages have no one
    to move a slider and get the picture; a notebook server sets JPY_SESSION_NAME for its kernels.
    """
    import os
    from importlib.util import find_spec

    if "JPY_SESSION_NAME" not in os.environ or find_spec("ipywidgets") is None:
        return still
    import ipywidgets
    from IPython.display import display

    def show(**values):
        buffer = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            draw(**values).savefig(buffer, format="png")
        display(Image(data=buffer.getvalue(), width=WIDTH * STYLE["figure.dpi"]))

    sliders = {}
    for name, (least, greatest, first) in ranges.items():
        whole = isinstance(first, int)
        kind = ipywidgets.IntSlider if whole else ipywidgets.FloatSlider
        sliders[name] = kind(
            value=min(max(first, least), greatest), min=least, max=greatest,
            step=1 if whole else (greatest - least) / 500, description=name, continuous_update=False,
            readout_format="d" if whole else ".3f",
            style={"description_width": "8em"}, layout={"width": "32em"},
        )  # fmt: skip
    return ipywidgets.VBox([*sliders.values(), ipywidgets.interactive_output(show, sliders)])


# -------------------------------------------------------------------------------------------------------- 02_toy_sweep

ALPHA_MARKERS = "os^Dv<>p"
PREDICTOR_NAMES = {
    "eq2": "Eq. 2 (the paper's)",
    "naive": "naive (g = 1)",
    "linear": "linear optimum",
    "digon": "pairs, no fit",
    "water_filling": "water-filling",
    "log_capacity": "log capacity, one fit",
}


def _alpha_styles(alphas) -> dict:
    """Colour and marker for each sparsity."""
    return {
        alpha: {"color": PALETTE[i % len(PALETTE)], "marker": ALPHA_MARKERS[i % len(ALPHA_MARKERS)]}
        for i, alpha in enumerate(sorted(set(alphas)))
    }


def _arrows(axis, weights, limit: float = 1.35) -> None:
    """The columns of W [2, n] as arrows in the plane, the most important feature darkest."""
    colours = sns.color_palette("viridis", weights.shape[1])
    axis.add_patch(matplotlib.patches.Circle((0, 0), 1, fill=False, color="0.85", linewidth=0.8))
    for (x, y), colour in list(zip(weights.T, colours, strict=True))[::-1]:
        axis.plot([0, x], [0, y], color=colour, linewidth=1.2)
        axis.plot(x, y, "o", color=colour, markersize=3.5)
    axis.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.grid(visible=False)


@matplotlib.rc_context(STYLE)
def toy_watch(curve, snapshots, lines) -> Figure:
    """One model's loss while it trains, and the columns of its W [2, n] at a few steps.

    ``curve``: step, loss. ``snapshots``: step -> W. ``lines``: label -> level drawn across the curve.
    """
    figure, axes = panels(len(snapshots), 2, height=1.9)
    grid = axes[0, 0].get_gridspec()
    for axis in axes[0]:
        axis.remove()
    top = figure.add_subplot(grid[0, :])
    top.plot(curve["step"], curve["loss"], label="training loss", markevery=4, **OURS)
    for (label, level), style in zip(lines.items(), ("--", "-", ":"), strict=False):
        top.axhline(level, color="0.35", linestyle=style, linewidth=1, label=label)
    for step in snapshots:
        top.axvline(step, color="0.8", linewidth=0.8, zorder=0)
    top.set(xscale="log", yscale="log", xlabel="step", ylabel="loss (importance x error²)")
    top.legend(loc="upper right")
    for axis, (step, weights) in zip(axes[1], snapshots.items(), strict=True):
        _arrows(axis, weights)
        axis.set_title(f"after step {step:,}")
    return figure


@matplotlib.rc_context(STYLE)
def fig02_floors(cells) -> Figure:
    """Paper's Fig. 2: floor against width, rows n, columns alpha; seeds, Eq. 2, the pair bound, d*."""
    counts, alphas = sorted(cells["n"].unique()), sorted(cells["alpha"].unique())
    figure, axes = panels(len(alphas), len(counts), height=1.75, sharex=True, sharey=True)
    for row, n in zip(axes, counts, strict=True):
        for axis, alpha in zip(row, alphas, strict=True):
            part = cells[(cells["n"] == n) & (cells["alpha"] == alpha)]
            total = part["total"]
            axis.plot(part["width"], part["digon"] / total, "-", color=PALETTE[3], label="pairs: a bound that holds")
            axis.plot(part["width"], part["eq2"] / total, "--", color=PALETTE[0], label="Eq. 2, the paper's")
            axis.errorbar(
                part["width"], part["floor_mean"] / total, part["floor_std"] / total, color="0.15", linestyle="none",
                marker="o", markersize=3, elinewidth=0.9, label=f"mean ± std of {part['seeds'].min()} seeds",
            )  # fmt: skip
            critical = part["critical_width"].iloc[0]
            if critical <= part["width"].max():
                axis.axvline(critical, color="0.5", linestyle=":", linewidth=1, label="d*")
            axis.set_title(f"n = {n}, α = {alpha}")
    for axis in axes[:, 0]:
        axis.set_ylabel("floor / total")
    for axis in axes[-1]:
        axis.set_xlabel("width d_S")
    handles = {label: handle for a in axes.flat for handle, label in zip(*a.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=len(handles))
    return figure


def _scatter(axis, points, predictor: str, target: str, low: float, high: float) -> None:
    """Predicted against measured on logarithmic axes; predictions of 0 stand on the lower edge as open markers."""
    axis.plot([low, high], [low, high], color="0.4", linewidth=0.8)
    for alpha, style in _alpha_styles(points["alpha"]).items():
        part = points[points["alpha"] == alpha]
        some = part[part[predictor] > low]
        dots = {"linestyle": "none", "markersize": 3, "alpha": 0.7} | style
        axis.plot(some[predictor], some[target], label=f"α = {alpha}", **dots)
        none = part[part[predictor] <= low]
        axis.plot([low] * len(none), none[target], markerfacecolor="none", **dots)
    axis.set(xscale="log", yscale="log", xlim=(low * 0.8, high), ylim=(low * 0.8, high), aspect="equal")
    axis.minorticks_off()


@matplotlib.rc_context(STYLE)
def fig03_predicted(points) -> Figure:
    """Paper's Fig. 3: predicted against measured floors where Eq. 2 is above zero; left Eq. 2, right naive."""
    some = points[points["eq2"] > 0]
    some = points if some.empty else some
    low = 0.7 * some["floor_mean"].min()
    low = min(low, 0.7 * some["eq2"][some["eq2"] > 0].min()) if (some["eq2"] > 0).any() else low
    high = 1.4 * max(some["naive"].max(), some["floor_mean"].max())
    figure, ((left, right),) = panels(2, height=3.2, sharex=True, sharey=True)
    for axis, predictor in ((left, "eq2"), (right, "naive")):
        _scatter(axis, some, predictor, "floor_mean", low, high)
        axis.set_xlabel("predicted floor (importance x error²)")
        axis.set_title(f"{PREDICTOR_NAMES[predictor]}, {len(some)} points")
    left.set_ylabel("measured floor, mean of seeds")
    right.legend(loc="lower right")
    return figure


@matplotlib.rc_context(STYLE)
def toy_predictors(cells, target: str = "floor_min") -> Figure:
    """Every predictor against the measured floors, a marker a cell; predictions of 0 are open, on the left edge."""
    points = cells[cells["width"] < cells["n"]]
    low, high = 0.5 * points[target].min(), 1.4 * points["naive"].max()
    figure, axes = panels(3, 2, height=2.3, sharex=True, sharey=True)
    for axis, (predictor, name) in zip(axes.flat, PREDICTOR_NAMES.items(), strict=True):
        _scatter(axis, points, predictor, target, low, high)
        axis.set_title(name)
    for axis in axes.flat:  # once more: shared axes had them back
        axis.minorticks_off()
    for axis in axes[-1]:
        axis.set_xlabel("predicted floor")
    for axis in axes[:, 0]:
        axis.set_ylabel("measured, best seed")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


@matplotlib.rc_context(STYLE)
def fig09_sparsity(cells, widest: int = 5) -> Figure:
    """Paper's Fig. 9: floor against width up to d_T = ``widest`` for each n; measured solid, Eq. 2 dashed."""
    counts = sorted(cells["n"].unique())
    figure, (axes,) = panels(len(counts), height=2.7, sharey=True)
    for axis, n in zip(axes, counts, strict=True):
        for alpha, style in _alpha_styles(cells["alpha"]).items():
            part = cells[(cells["n"] == n) & (cells["alpha"] == alpha) & (cells["width"] <= widest)]
            axis.errorbar(
                part["width"], part["floor_mean"], part["floor_std"], markersize=4, elinewidth=0.8,
                label=f"α = {alpha}", **style,
            )  # fmt: skip
            above = part[part["eq2"] > 0]
            axis.plot(above["width"], above["eq2"], "--", color=style["color"], linewidth=1)
        axis.set(yscale="log", xlabel="width d_S", title=f"n = {n}, d_T = {widest}")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("floor (importance x error²)")
    axes[-1].legend(loc="lower left")
    return figure


@matplotlib.rc_context(STYLE)
def fig10_errors(points) -> Figure:
    """Paper's Fig. 10: signed error of Eq. 2 and of the naive formula for each sparsity, in % of the measured floor.

    The shaded band is what an accuracy above 93 % would mean; lines are medians.
    """
    alphas = sorted(points["alpha"].unique())
    figure, (axes,) = panels(len(alphas), height=2.9, sharey=True)
    for axis, alpha in zip(axes, alphas, strict=True):
        part = points[points["alpha"] == alpha]
        axis.axhspan(-7, 7, color="0.9", zorder=0)
        for place, (predictor, style) in enumerate(
            {"eq2": {"color": PALETTE[0], "marker": "o"}, "naive": {"color": "0.55", "marker": "x"}}.items()
        ):
            error = np.sort(100 * (part[predictor] / part["floor_mean"] - 1))
            spread = place + np.linspace(-0.25, 0.25, len(error))
            axis.plot(spread, error, linestyle="none", markersize=3, alpha=0.7, **style)
            axis.plot([place - 0.38, place + 0.38], [np.median(error)] * 2, color="0.1", linewidth=1.6)
        axis.set(xticks=[0, 1], xticklabels=["Eq. 2", "naive"], xlim=(-0.6, 1.6), title=f"α = {alpha}")
        axis.grid(axis="x", visible=False)
    axes[0].set_yscale("symlog", linthresh=100)
    axes[0].set_yticks([-100, -50, 0, 50, 100, 1000], ["-100", "-50", "0", "+50", "+100", "+1000"])
    axes[0].set_ylabel("error, % of the measured floor")
    return figure


@matplotlib.rc_context(STYLE)
def fig11_accuracy(points) -> Figure:
    """Paper's Fig. 11: mean accuracy of Eq. 2, 100 % less the relative error, by sparsity, teacher width and n."""
    frame = points.assign(accuracy=100 - 100 * (points["eq2"] / points["floor_mean"] - 1).abs())
    counts = sorted(frame["n"].unique())
    figure, (axes,) = panels(len(counts), height=2.4, sharey=True)
    for axis, n in zip(axes, counts, strict=True):
        table = frame[frame["n"] == n].pivot_table(index="alpha", columns="teacher_width", values="accuracy")
        sns.heatmap(
            table, ax=axis, vmin=0, vmax=100, cmap="RdYlGn", annot=True, fmt=".0f", annot_kws={"size": 7},
            cbar=bool(axis is axes[-1]), linewidths=0.5, cbar_kws={"label": "mean accuracy (%)"},
        )  # fmt: skip
        axis.set(title=f"n = {n}", xlabel="teacher width d_T", ylabel="sparsity α" if axis is axes[0] else "")
        axis.tick_params(length=0, axis="both")
        axis.set_yticklabels(axis.get_yticklabels(), rotation=0)
    return figure


@matplotlib.rc_context(STYLE)
def fig12_importance(importances) -> Figure:
    """Paper's Fig. 12: the importances (n -> vector) on linear and on logarithmic axes."""
    figure, ((left, right),) = panels(2, height=2.6)
    for (n, weights), marker in zip(importances.items(), "os^Dv", strict=False):
        for axis in (left, right):
            axis.plot(np.arange(1, n + 1), weights, marker=marker, markersize=3, linewidth=1, label=f"n = {n}")
    left.set(xlabel="feature rank i", ylabel="importance I_i (sum 1)")
    right.set(xscale="log", yscale="log", xlabel="feature rank i")
    left.legend()
    return figure


@matplotlib.rc_context(STYLE)
def fig13_collapse(cells, explained: dict[str, float]) -> Figure:
    """Paper's Fig. 13 and its rival: the floor as a share of the total against d_S/d* and against d_S/n.

    ``explained``: column of ``cells`` -> share of the variance that the best falling curve in it explains.
    """
    labels = {"of_critical": "d_S / d*", "of_features": "d_S / n", "of_linear": "d_S (1 + κ ln 1/p) / n"}
    figure, (axes,) = panels(len(explained), height=2.9, sharey=True)
    for axis, (column, share) in zip(axes, explained.items(), strict=True):
        for alpha, style in _alpha_styles(cells["alpha"]).items():
            part = cells[cells["alpha"] == alpha]
            axis.plot(
                part[column], part["floor_mean"] / part["total"], linestyle="none", markersize=3.5, alpha=0.75,
                label=f"α = {alpha}", **style,
            )  # fmt: skip
        if column == "of_critical":
            axis.axvline(1, color="0.4", linestyle="--", linewidth=1)
            axis.plot([0, 1, 1, 2], [1, 1, 0, 0], color="0.4", linewidth=0.8, label="as the paper draws it")
            axis.set_xlim(0, 3)
        axis.set(xlabel=labels[column], title=f"one curve explains {share:.0%}", ylim=(0, 1.05))
    axes[0].set_ylabel("floor / total")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
    return figure


@matplotlib.rc_context(STYLE)
def fig14_curves(curves) -> Figure:
    """Paper's Fig. 14: mean training loss of the seeds at several widths, six configurations; Eq. 2 dashed.

    ``curves``: n, alpha, width, step, loss, eq2.
    """
    groups = list(curves.groupby(["n", "alpha"]))
    columns = min(3, len(groups))
    figure, axes = panels(columns, -(-len(groups) // columns), height=2.2, sharex=True)
    widths = sorted(curves["width"].unique())
    colours = dict(zip(widths, sns.color_palette("viridis", len(widths)), strict=True))
    for axis, ((n, alpha), part) in zip(axes.flat, groups, strict=False):
        for width, line in part.groupby("width"):
            axis.plot(line["step"], line["loss"], color=colours[width], label=f"d_S = {width}")
            if line["eq2"].iloc[0] > 0:
                axis.axhline(line["eq2"].iloc[0], color=colours[width], linestyle="--", linewidth=0.9)
        axis.axvline(200, color="0.6", linestyle=":", linewidth=1)
        axis.set(xscale="log", yscale="log", title=f"n = {n}, α = {alpha}")
        axis.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    for axis in axes[-1]:
        axis.set_xlabel("step")
    for axis in axes[:, 0]:
        axis.set_ylabel("training loss")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


@matplotlib.rc_context(STYLE)
def toy_geometry(models) -> Figure:
    """Title -> W [2, n] (or [1, n]) of trained models: each column an arrow, the most important feature darkest."""
    columns = min(4, len(models))
    figure, axes = panels(columns, -(-len(models) // columns), height=1.9)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (title, weights) in zip(axes.flat, models.items(), strict=False):
        axis.set_axis_on()
        _arrows(axis, np.vstack([weights, np.zeros_like(weights)])[:2])
        axis.set_title(title)
    return figure


@matplotlib.rc_context(STYLE)
def toy_dimensionality(frame) -> Figure:
    """Elhage's dimensionality of each feature by rank; columns alpha, rank, dimensionality."""
    alphas = sorted(frame["alpha"].unique())
    figure, (axes,) = panels(len(alphas), height=2.5, sharey=True)
    for axis, alpha in zip(axes, alphas, strict=True):
        for level, name in ((1, "axis"), (1 / 2, "pair"), (2 / 5, "pentagon")):
            axis.axhline(level, color="0.7", linewidth=0.8)
            if axis is axes[-1]:
                axis.annotate(name, (1.02, level), xycoords=("axes fraction", "data"), va="center", color="0.4")
        part = frame[frame["alpha"] == alpha]
        axis.plot(part["rank"], part["dimensionality"], "o", markersize=2, alpha=0.3, color=PALETTE[0], rasterized=True)
        axis.set(xlabel="feature rank i", title=f"α = {alpha}", ylim=(-0.03, 1.05))
    axes[0].set_ylabel("dimensions a feature has")
    return figure


@matplotlib.rc_context(STYLE)
def toy_represented(cells, capacities) -> Figure:
    """Features represented per dimension against width for each sparsity (one n), and g at the right margin.

    ``capacities``: alpha -> g.
    """
    figure, ((axis,),) = panels(1, height=3.0)
    for alpha, style in _alpha_styles(cells["alpha"]).items():
        part = cells[cells["alpha"] == alpha]
        axis.plot(
            part["width"], part["represented"] / part["width"], markersize=4, label=f"α = {alpha}, measured", **style
        )
        axis.axhline(capacities[alpha], color=style["color"], linestyle="--", linewidth=1)
        axis.annotate(
            f"g = {capacities[alpha]:.1f}", (1.01, capacities[alpha]), xycoords=("axes fraction", "data"), va="center",
            color=style["color"],
        )  # fmt: skip
    axis.axhline(2, color="0.5", linewidth=0.8)
    axis.annotate("pairs: 2", (1.01, 2), xycoords=("axes fraction", "data"), va="center", color="0.4")
    axis.set(yscale="log", xlabel="width d_S", ylabel="represented features / d_S", title=f"n = {cells['n'].iloc[0]}")
    axis.set_yticks([1, 2, 3, 5, 10, 20], ["1", "2", "3", "5", "10", "20"])
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


@matplotlib.rc_context(STYLE)
def toy_band(cells) -> Figure:
    """The two-sided band: best seeds between water-filling below and the pair bound above, all over the pair bound."""
    alphas, counts = sorted(cells["alpha"].unique()), sorted(cells["n"].unique())
    figure, (axes,) = panels(len(alphas), height=2.7, sharey=True)
    for axis, alpha in zip(axes, alphas, strict=True):
        axis.axhline(1, color=PALETTE[3], linewidth=1.4, label="pairs, an upper bound")
        for n, marker, colour in zip(counts, ALPHA_MARKERS, sns.color_palette("viridis", len(counts)), strict=False):
            part = cells[(cells["n"] == n) & (cells["alpha"] == alpha)]
            bound = part["digon"]
            axis.plot(part["width"], part["water_filling"] / bound, "--", color=colour, linewidth=1)
            axis.plot(
                part["width"], part["floor_min"] / bound, linestyle="none", marker=marker, markersize=4, color=colour,
                label=f"best seed, n = {n}",
            )  # fmt: skip
            axis.plot(part["width"], part["eq2"] / bound, ":", color=colour, linewidth=1)
        axis.set(xlabel="width d_S", title=f"α = {alpha}", ylim=(0, 1.15))
    axes[0].plot([], [], "--", color="0.4", linewidth=1, label="water-filling")
    axes[0].plot([], [], ":", color="0.4", linewidth=1, label="Eq. 2")
    axes[0].set_ylabel("floor / pair bound")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


@matplotlib.rc_context(STYLE)
def toy_teacher(points) -> Figure:
    """Students that learn a teacher's outputs (one n): loss against the teacher (filled) and against x (open).

    ``points``: alpha, teacher_width, width, loss_against_teacher, loss_against_x, eq2, total.
    """
    alphas = sorted(points["alpha"].unique())
    figure, (axes,) = panels(len(alphas), height=2.8, sharey=True)
    teachers = sorted(points["teacher_width"].unique())
    for axis, alpha in zip(axes, alphas, strict=True):
        part = points[points["alpha"] == alpha]
        for teacher, marker, colour in zip(
            teachers, ALPHA_MARKERS, sns.color_palette("viridis", len(teachers)), strict=False
        ):
            line = part[part["teacher_width"] == teacher]
            style = {"color": colour, "marker": marker, "markersize": 3.5}
            axis.plot(line["width"], line["loss_against_teacher"] / line["total"], label=f"d_T = {teacher}", **style)
            axis.plot(
                line["width"], line["loss_against_x"] / line["total"], linestyle="none", markerfacecolor="none", **style
            )
        floor = part.drop_duplicates("width").sort_values("width")
        above = floor[floor["eq2"] > 0]
        axis.plot(above["width"], above["eq2"] / above["total"], "--", color="0.3", linewidth=1, label="Eq. 2")
        axis.set(yscale="log", xlabel="width d_S", title=f"α = {alpha}")
    axes[0].set_ylabel("loss / total (open: against x)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure
