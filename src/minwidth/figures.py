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
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

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


# ------------------------------------------------------------------------------------------------------------ 05_probe

CONTROLS = {  # marker, colour: the controls of a probe, the strongest claim first
    "none": ("o", PALETTE[0]),
    "untrained": ("v", PALETTE[1]),
    "embedding": ("s", PALETTE[2]),
    "bag_of_words": ("D", PALETTE[4]),
    "unseen_source": ("^", PALETTE[3]),
    "shuffled": ("x", "0.5"),
}


@matplotlib.rc_context(STYLE)
def fig08_probes(accuracy, paper) -> Figure:
    """Paper's Fig. 8: (a) accuracies as a heat map, (b) change against the teacher in percentage points.

    ``accuracy``: rows without control, columns concept, name (of the model), accuracy, shift, shift_low, shift_high.
    ``paper``: concept, relative_width, shift; drawn open beside ours.
    """
    figure, ((left, right),) = panels(2, height=3.4, width_ratios=[1.15, 1])
    names, concepts = list(dict.fromkeys(accuracy["name"])), list(dict.fromkeys(accuracy["concept"]))
    grid = accuracy.pivot(index="concept", columns="name", values="accuracy").loc[concepts, names]
    sns.heatmap(
        100 * grid, ax=left, vmin=50, vmax=100, cmap="Blues", annot=True, fmt=".0f", annot_kws={"size": 8},
        linewidths=0.5, linecolor="white", cbar=False,
    )  # fmt: skip
    left.set(xlabel="", ylabel="", title="(a) accuracy, % (chance 50)")
    left.set_xticks(np.arange(len(names)) + 0.5, names, rotation=40, ha="right")
    left.tick_params(length=0)
    left.set_yticks(np.arange(len(concepts)) + 0.5, concepts, rotation=0)
    students = [name for name in names if name != "teacher"]
    for place, name in enumerate(students):
        rows = accuracy[accuracy["name"] == name].set_index("concept").loc[concepts]
        y = np.arange(len(concepts)) + 0.6 * ((place + 0.5) / len(students) - 0.5)
        shift = 100 * rows["shift"].to_numpy()
        reach = np.abs(100 * rows[["shift_low", "shift_high"]].to_numpy().T - shift)
        colour = sns.color_palette("viridis", len(students))[place]
        right.errorbar(
            shift, y, xerr=reach, linestyle="none", color=colour, marker="os^Dv<>"[place % 7], markersize=3.5,
            elinewidth=0.9, label=name,
        )  # fmt: skip
    if len(paper):
        y = paper["concept"].map({name: place for place, name in enumerate(concepts)})
        right.plot(paper["shift"], y, label="paper's students", **(PAPER | {"markersize": 4}))
    right.axvline(0, color="0.4", linewidth=0.8)
    right.set_yticks(np.arange(len(concepts)), [""] * len(concepts))
    right.set_ylim(len(concepts) - 0.5, -0.5)
    right.set(xlabel="change against the teacher (points, 95 %)", title="(b) what distillation moved")
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


@matplotlib.rc_context(STYLE)
def probe_controls(accuracy, labels: dict[str, str]) -> Figure:
    """One model's accuracy and its controls: columns concept, control, accuracy, low, high; ``labels`` names them."""
    figure, ((axes,),) = panels(height=3.2)
    concepts = list(dict.fromkeys(accuracy["concept"]))
    for place, control in enumerate(labels):
        rows = accuracy[accuracy["control"] == control]
        marker, colour = CONTROLS[control]
        x = rows["concept"].map(concepts.index) + 0.7 * ((place + 0.5) / len(labels) - 0.5)
        value = 100 * rows["accuracy"]
        reach = np.abs(100 * rows[["low", "high"]].to_numpy().T - value.to_numpy())
        axes.errorbar(
            x, value, yerr=reach, linestyle="none", marker=marker, color=colour, markersize=5, elinewidth=0.9,
            label=labels[control],
        )  # fmt: skip
    axes.axhline(50, color="0.4", linewidth=0.8, linestyle=":")
    for edge in np.arange(len(concepts) - 1) + 0.5:
        axes.axvline(edge, color="0.9", linewidth=0.8)
    axes.set_xticks(np.arange(len(concepts)), concepts)
    axes.grid(axis="x", visible=False)
    axes.set(ylabel="probe accuracy (%, 95 % interval)", ylim=(38, 103), xlim=(-0.5, len(concepts) - 0.5))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


@matplotlib.rc_context(STYLE)
def probe_students(accuracy) -> Figure:
    """Accuracy against the width of students, trained and untrained, of both ladders; a panel a concept.

    ``accuracy``: concept, model, ladder, width, control, accuracy, low, high; of the teacher and of a bag of words too.
    """
    concepts = list(dict.fromkeys(accuracy["concept"]))
    figure, axes = panels(min(3, len(concepts)), -(-len(concepts) // 3), height=1.9, sharex=True, sharey=True)
    for panel, concept in zip(axes.flat, concepts, strict=False):
        rows = accuracy[accuracy["concept"] == concept]
        known = rows.groupby(["model", "control"])["accuracy"].mean() * 100
        panel.axhline(known["teacher", "none"], color="0.3", linewidth=1, label="teacher")
        panel.axhline(known["none", "bag_of_words"], color=PALETTE[4], linestyle="--", label="bag of words")
        panel.axhline(50, color="0.4", linewidth=0.8, linestyle=":")
        for place, (ladder, (_, marker, line)) in enumerate(LADDERS.items()):
            students = rows[(rows["model"] == "student") & (rows["ladder"] == ladder)].sort_values("width")
            for control in ("none", before := "untrained" if ladder == "random" else "cut"):
                faded = control == before
                part = students[students["control"] == control]
                value = 100 * part["accuracy"]
                reach = np.abs(100 * part[["low", "high"]].to_numpy().T - value.to_numpy())
                panel.errorbar(
                    part["width"], value, yerr=reach, color=PALETTE[place], marker=marker, linestyle=line, markersize=4,
                    elinewidth=0.9, alpha=0.4 if faded else 1, mfc="white" if faded else None,
                    label=f"{ladder.replace('_', ' ')}, {control if faded else 'distilled'}",
                )  # fmt: skip
        panel.set(title=concept, ylim=(45, 102))
        widths = sorted(set(accuracy.loc[accuracy["model"] == "student", "width"]))
        panel.set_xscale("log", base=2)
        panel.set_xticks(widths, [str(width) for width in widths], rotation=45)
        panel.minorticks_off()
    _finish_panels(figure, axes, len(concepts), "width of the student", "accuracy (%)", columns=3)
    return figure


@matplotlib.rc_context(STYLE)
def probe_layers(layers, words) -> Figure:
    """Accuracy against depth: columns concept, layer, accuracy, low, high; ``words``: concept -> bag of words."""
    concepts = list(dict.fromkeys(layers["concept"]))
    rows = -(-len(concepts) // 3)
    figure, axes = panels(min(3, len(concepts)), rows, height=1.7, sharex=True, sharey=True)
    for panel, concept in zip(axes.flat, concepts, strict=False):
        part = layers[layers["concept"] == concept]
        value = 100 * part["accuracy"]
        reach = np.abs(100 * part[["low", "high"]].to_numpy().T - value.to_numpy())
        panel.errorbar(part["layer"], value, yerr=reach, color=PALETTE[0], elinewidth=0.9, label="teacher", **OURS)
        panel.axhline(100 * words[concept], color=PALETTE[4], linestyle="--", label="bag of words")
        panel.axhline(50, color="0.4", linewidth=0.8, linestyle=":")
        panel.set(title=concept, ylim=(45, 102))
    for panel in axes[-1]:
        panel.xaxis.get_major_locator().set_params(integer=True)
    _finish_panels(figure, axes, len(concepts), "layer (0: embedding)", "accuracy (%)")
    return figure


@matplotlib.rc_context(STYLE)
def probe_staircase(binned) -> Figure:
    """How well the teacher's features can be read from students, by rank of importance; a panel a width.

    ``binned``: model, ladder, width, state, kept, rank, auroc, low, high; students of one ladder, and the teacher.
    """
    students = binned[binned["model"] == "student"]
    widths = sorted(students["width"].unique())
    columns = 2 if len(widths) in (2, 4) else min(3, len(widths))
    figure, axes = panels(columns, -(-len(widths) // columns), height=2.1, sharex=True, sharey=True)
    teacher = binned[binned["model"] == "teacher"]
    for panel, width in zip(axes.flat, widths, strict=False):
        panel.plot(teacher["rank"], teacher["auroc"], color="0.4", linestyle="-", label="the teacher's own state")
        kept = students[students["width"] == width]["kept"].iloc[0]
        for state, colour, marker in (("trained", PALETTE[0], "o"), ("untrained", PALETTE[1], "v")):
            rows = students[(students["width"] == width) & (students["state"] == state)]
            reach = np.abs(rows[["low", "high"]].to_numpy().T - rows["auroc"].to_numpy())
            panel.errorbar(
                rows["rank"], rows["auroc"], yerr=reach, color=colour, marker=marker, markersize=3.5, elinewidth=0.9,
                label=f"{state} student",
            )  # fmt: skip
        panel.axvline(kept, color=PALETTE[3], linestyle="--", label="$F_S = d_S\\, g(\\alpha)$: the law's step")
        panel.axhline(0.5, color="0.4", linewidth=0.8, linestyle=":")
        panel.set(xscale="log", ylim=(0.45, 1.02), title=f"$d_S$ = {width}, $F_S$ = {kept:,.0f}")
    _finish_panels(figure, axes, len(widths), "rank of the feature", "AUROC of the read-out")
    return figure


# ---------------------------------------------------------------------------------------------------------- 04_distill

KL = "KL at T = 2"
LADDERS = {"random": ("random weights, heads and FFN scaled", "o", "-"), "width_alone": ("width alone", "s", "--")}


def _by_width(widths) -> dict[int, tuple]:
    """A colour for each width, dark for narrow ones."""
    widths = sorted(set(widths))
    return dict(zip(widths, sns.color_palette("viridis", len(widths)), strict=True))


def _first_seed(frame):
    return frame[frame["seed"] == frame["seed"].min()]


def _eval_curves(axis, curves, table, ladder: str) -> None:
    """Held-out loss of a ladder's longest runs, the floors as dashes at the right end."""
    part = _first_seed(curves[curves["ladder"] == ladder])
    colours = _by_width(table["width"])
    for width, runs_of_width in part.groupby("width"):
        line = runs_of_width[runs_of_width["steps"] == runs_of_width["steps"].max()]
        axis.plot(line["step"], line["held_out"], color=colours[width], label=f"{width}")
    rows = _first_seed(table[(table["ladder"] == ladder) & table["width"].isin(part["width"])])
    for width, rows_of_width in rows.groupby("width"):
        longest = rows_of_width[rows_of_width["steps"] == rows_of_width["steps"].max()].iloc[0]
        axis.plot(
            [0.9 * longest["steps"], 1.06 * longest["steps"]],
            2 * [longest["floor"]],
            color=colours[width],
            linestyle=":",
        )
    _plain_log(axis)
    axis.set(xlabel="step")


def _plain_log(axis, which: str = "y") -> None:
    """A logarithmic axis, ``x`` or ``y``, with numbers as one writes them: more of them over less than a decade."""
    axis.set(**{f"{which}scale": "log"})
    ticks, (low, high) = getattr(axis, f"{which}axis"), getattr(axis, f"get_{which}lim")()
    ticks.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7) if high < 10 * low else (1, 2, 5)))
    ticks.set_major_formatter("{x:g}")
    ticks.set_minor_formatter(NullFormatter())


@matplotlib.rc_context(STYLE)
def fig06_distillation(curves, table, loss: str = KL) -> Figure:
    """Paper's Fig. 6: held-out loss against training step, a colour a width, floors dotted; one panel a ladder.

    ``curves``: ladder, width, seed, steps, step, held_out. ``table``: ladder, width, seed, steps, floor. ``loss``: what
    it is, here and in the figures below.
    """
    ladders = [name for name in LADDERS if (curves["ladder"] == name).any()]
    figure, (axes,) = panels(len(ladders), sharey=True)
    for axis, ladder in zip(axes, ladders, strict=True):
        _eval_curves(axis, curves[curves["held_out"] > 1e-4], table, ladder)  # a student that is its teacher has 0
        axis.set_title(LADDERS[ladder][0])
    axes[0].set_ylabel(f"held-out {loss} (nats/token)")
    handles, labels = max((axis.get_legend_handles_labels() for axis in axes), key=lambda pair: len(pair[1]))
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), title="student's width")
    return figure


@matplotlib.rc_context(STYLE)
def fig07_decomposition(points, fits, paper) -> Figure:
    """Paper's Fig. 7: floors against Eq. 2 with (a) the line through zero, (b) the affine fit; both axes normalised.

    Both are divided by their value at the narrowest width, which leaves every R^2 as it is. ``points`` and ``paper``:
    width, predicted, observed. ``fits``: fit, r2, slope, baseline of ours (line, affine), in the original units.
    """
    figure, (axes,) = panels(2, sharey=True)
    for axis, name, title in zip(axes, ("line", "affine"), ("(a) line through 0", "(b) affine"), strict=True):
        for frame, marks, who in (
            (points, OURS | {"linestyle": "none", "color": PALETTE[0]}, "ours"),
            (paper, PAPER, "paper"),
        ):
            if frame.empty:
                continue
            top = frame.loc[frame["width"].idxmin()]
            x, y = frame["predicted"] / top["predicted"], frame["observed"] / top["observed"]
            axis.plot(x, y, label=who, **marks)
            grid = np.linspace(0, 1.02, 2)
            fitted = grid * (x @ y) / (x @ x) if name == "line" else np.polyval(np.polyfit(x, y, 1), grid)
            axis.plot(grid, fitted, color=marks["color"], linewidth=1, linestyle="-" if who == "ours" else "--")
        chosen = fits[fits["fit"] == name]
        r2 = f", ours R² = {chosen['r2'].iloc[0]:.2f}" if len(chosen) else ""
        axis.set(title=title + r2, xlabel="Eq. 2 / Eq. 2 at the narrowest", xlim=(-0.03, 1.06), ylim=(0, None))
    axes[0].set_ylabel("loss / loss at the narrowest")
    axes[1].legend(loc="lower right")
    return figure


@matplotlib.rc_context(STYLE)
def fig16_training(curves, ladder: str = "random", loss: str = KL) -> Figure:
    """Paper's Fig. 16: (a) training loss at every width, (b) the narrowest student's runs along their schedules.

    ``curves``: ladder, width, seed, steps, step, train, held_out.
    """
    figure, ((left, right),) = panels(2)
    part = curves[curves["ladder"] == ladder]
    colours = _by_width(part["width"])
    for width, group in _first_seed(part).groupby("width"):
        line = group[(group["steps"] == group["steps"].max()) & (group["step"] > 0)]
        left.plot(line["step"], line["train"], color=colours[width], label=f"{width}")
    _plain_log(left)
    left.set(xlabel="step", ylabel=f"{loss} (nats/token)", title="(a) training loss by width")
    left.legend(title="width", ncols=2)
    narrow = part[part["width"] == part["width"].min()]
    for number, ((seed, steps), group) in enumerate(narrow.groupby(["seed", "steps"])):
        line = group[group["step"] > 0]
        right.plot(
            line["step"] / steps, line["held_out"], color=PALETTE[number % 10], label=f"seed {seed}, {steps} steps",
            linestyle=("-", "--", "-.", ":")[number % 4],
        )  # fmt: skip
    _plain_log(right)
    right.set(xlabel="share of the schedule", title=f"(b) width {narrow['width'].min()}, held-out")
    right.legend()
    return figure


@matplotlib.rc_context(STYLE)
def fig17_normalised(points, paper) -> Figure:
    """Paper's Fig. 17: predicted (Eq. 2) and observed losses, each divided by its value at the narrowest width.

    ``points`` and ``paper``: relative_width (d_S / d_T), predicted, observed, width.
    """
    figure, ((axis,),) = panels(height=3.0)
    _normalised(axis, points, paper)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _normalised(axis, points, paper) -> None:
    for frame, who in ((points, "ours"), (paper, "paper")):
        if frame.empty:
            continue
        frame = frame.sort_values("width")
        x = frame["relative_width"]
        for column, colour, line in (("observed", PALETTE[3], "-"), ("predicted", "0.45", "--")):
            marks = OURS if who == "ours" else {"marker": "o", "markersize": 6, "markerfacecolor": "none"}
            label = f"{column}, {who}"
            axis.plot(x, frame[column] / frame[column].iloc[0], color=colour, linestyle=line, label=label, **marks)
    axis.set(xlabel="width / teacher's width", ylabel="share of the narrowest's", ylim=(-0.03, 1.05))


@matplotlib.rc_context(STYLE)
def fig18_summary(curves, table, points, paper, power) -> Figure:
    """Paper's Fig. 18: held-out curves, loss against width with its power law, normalised losses, the narrowest's runs.

    ``power``: mapping with scale, exponent, asymptote, or None. ``paper``: width, relative_width, predicted, observed.
    """
    figure, axes = panels(2, 2, height=2.6)
    ladder = next(name for name in LADDERS if (table["ladder"] == name).any())
    _eval_curves(axes[0, 0], curves[curves["held_out"] > 1e-4], table, ladder)
    axes[0, 0].set(ylabel="held-out KL (nats/token)", title=f"(a) held-out loss, {LADDERS[ladder][0].split(',')[0]}")
    axis = axes[0, 1]
    for name, (label, marker, _) in LADDERS.items():
        rows = table[table["ladder"] == name]
        rows = rows[rows["steps"] == rows["steps"].max()].groupby("width")["floor"].mean()
        axis.plot(rows.index, rows, marker=marker, linestyle="none", markersize=5, label=label.split(",")[0])
    if power is not None:
        grid = np.geomspace(table["width"].min(), table["width"].max(), 100)
        fitted = power["scale"] * grid ** -power["exponent"] + power["asymptote"]
        axis.plot(grid, fitted, color=PALETTE[0], linewidth=1, label="power law")
    axis.plot(paper["relative_width"] * table["d_teacher"].max(), paper["observed"], label="paper, d_T alike", **PAPER)
    axis.set(xlabel="width d_S", ylabel="nats/token", title="(b) loss where training ended")
    axis.legend(fontsize=7)
    _normalised(axes[1, 0], points, paper)
    axes[1, 0].set_title("(c) normalised")
    axes[1, 0].legend(fontsize=6, loc="lower right", bbox_to_anchor=(1, 0.05))
    part = curves[curves["ladder"] == ladder]
    narrow = part[(part["width"] == part["width"].min()) & (part["step"] > 0)]
    for number, ((seed, steps), line) in enumerate(narrow.groupby(["seed", "steps"])):
        axes[1, 1].plot(
            line["step"] / steps, line["held_out"], color=PALETTE[number % 10], label=f"seed {seed}, {steps} steps",
            linestyle=("-", "--", "-.", ":")[number % 4],
        )  # fmt: skip
    _plain_log(axes[1, 1])
    axes[1, 1].set(xlabel="share of the schedule", title=f"(d) width {narrow['width'].min()}")
    axes[1, 1].legend(fontsize=7)
    return figure


@matplotlib.rc_context(STYLE)
def distill_doubling(table, loss: str = KL) -> Figure:
    """What doubling the steps does at every width: open at N steps, filled at 2 N; one panel a ladder.

    ``table``: ladder, width, seed, steps, floor, verdict; a student that starts as its teacher is left out.
    """
    ladders = [name for name in LADDERS if (table["ladder"] == name).any()]
    figure, (axes,) = panels(len(ladders), sharey=True)
    for axis, ladder in zip(axes, ladders, strict=True):
        part = table[(table["ladder"] == ladder) & (table["floor"] > 1e-6)]
        means = part.groupby(["width", "steps"])["floor"].mean().unstack()
        if means.empty:
            continue
        short, long = means.columns.min(), means.columns.max()
        for width, row in means.iterrows():
            axis.annotate("", (width, row[long]), (width, row[short]), arrowprops={"arrowstyle": "->", "color": "0.5"})
        marker = LADDERS[ladder][1]
        axis.plot(means.index, means[short], marker, markerfacecolor="none", color=PALETTE[0], label=f"{short} steps")
        axis.plot(means.index, means[long], marker, color=PALETTE[0], label=f"{long} steps")
        _plain_log(axis)
        axis.set(xscale="log", xlabel="width d_S", title=LADDERS[ladder][0])
        axis.set_xticks(means.index, [str(width) for width in means.index])
        axis.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axis.legend()
    axes[0].set_ylabel(f"held-out {loss} (nats/token)")
    return figure


@matplotlib.rc_context(STYLE)
def distill_predictors(fits) -> Figure:
    """How well each predictor explains a ladder: R^2 of points left out (filled) and of the affine fit (open).

    ``fits``: ladder, predictor, lam, chosen, fit, r2, loo; affine rows are shown, the chosen L1 coefficient named.
    """
    part = fits[fits["fit"] == "affine"].copy()
    names = {"log_width": "ln(d_T / d)", "inverse_width": "d_T / d - 1", "pca_tail": "PCA tail of the stream"}
    eq2 = [f"Eq. 2, λ = {lam:g}" for lam in part["lam"].fillna(0)]
    part["label"] = [names.get(name, text) for name, text in zip(part["predictor"], eq2, strict=True)]
    ladders = [name for name in LADDERS if (part["ladder"] == name).any()]
    order = list(dict.fromkeys(part.sort_values(["lam"])["label"]))[::-1]
    figure, (axes,) = panels(max(1, len(ladders)), height=0.9 + 0.22 * len(order), sharey=True)
    for axis, ladder in zip(axes, ladders, strict=False):
        rows = part[part["ladder"] == ladder]
        y = rows["label"].map(order.index)
        left_out = rows["loo"].clip(lower=-1)
        fitted = {"linestyle": "none", "marker": "o", "markerfacecolor": "none", "color": "0.25", "label": "fitted"}
        axis.plot(rows["r2"].clip(lower=-1), y, **fitted)
        colours = np.where(rows["predictor"] == "eq2", "C0", "C1")
        axis.scatter(left_out, y, color=[PALETTE[int(c[1])] for c in colours], s=26, zorder=3, label="left out")
        axis.axvline(0, color="0.4", linewidth=0.8)
        axis.set(xlabel="R² of the affine fit (below -1 at -1)", title=LADDERS[ladder][0], xlim=(-1.08, 1.08))
    axes[0].set_yticks(range(len(order)), order)
    if ladders:
        axes[-1].legend(loc="lower left")
    return figure


@matplotlib.rc_context(STYLE)
def distill_student(curves, table, loss: str = KL) -> Figure:
    """Held-out loss of the students of one width: a line a run, from the untrained loss on, floors dotted."""
    figure, ((axis,),) = panels(height=3.0)
    for number, ((ladder, seed, steps), line) in enumerate(curves.groupby(["ladder", "seed", "steps"])):
        label = f"{LADDERS[ladder][0].split(',')[0]}, seed {seed}, {steps} steps"
        colour = PALETTE[number % 10]
        axis.plot(line["step"], line["held_out"], color=colour, marker="o", markersize=3, label=label)
        row = table[(table["ladder"] == ladder) & (table["seed"] == seed) & (table["steps"] == steps)].iloc[0]
        axis.plot([0.8 * steps, 1.05 * steps], 2 * [row["floor"]], color=colour, linestyle=":")
    _plain_log(axis)
    axis.set(xlabel="step", ylabel=f"held-out {loss} (nats/token)")
    axis.legend()
    return figure


REFERENCES = {  # label, line
    "cut": ("teacher cut, untrained", "-."),
    "pca": ("PCA, one layer", "--"),
    "relu": ("wide ReLU decoder, one layer", ":"),
}


@matplotlib.rc_context(STYLE)
def distill_long(summary, references) -> Figure:
    """(a) Where long training ends, over seeds, and where another doubling may lead; (b) the same beside references.

    ``summary``: ladder, width, floor, least, most, fall, verdict; in (a) an arrow marks an upper bound and ends where a
    fall like the last one would lead, a bar below the mark a floor. ``references``: reference, width, kl; may be empty.
    """
    figure, ((left, right),) = panels(2)
    for name, (label, line) in REFERENCES.items():
        part = references[(references["reference"] == name) & (references["kl"] > 1e-4)].sort_values("width")
        if len(part):
            right.plot(part["width"], part["kl"], line, color="0.45", linewidth=1.2, label=label)
    for number, (ladder, (label, marker, line)) in enumerate(LADDERS.items()):
        part = summary[summary["ladder"] == ladder].sort_values("width")
        if part.empty:
            continue
        colour, y = PALETTE[number], part["floor"]
        reach = [y - part["least"], part["most"] - y]
        style = {"marker": marker, "markersize": 4, "linestyle": line, "color": colour, "zorder": 3}
        left.errorbar(part["width"], y, reach, capsize=3, **style)
        shown = part[part["floor"] > 1e-4]  # a student that is its teacher has 0
        right.plot(shown["width"], shown["floor"], label=label, **style)
        for row in part.itertuples():
            if row.verdict == "floor":
                below = row.floor - 0.03 * summary["floor"].max()
                left.plot([0.92 * row.width, 1.08 * row.width], [below, below], color=colour, linewidth=2.5)
            elif row.fall > 0:
                end, arrow = (row.width, row.floor * (1 - row.fall)), {"arrowstyle": "-|>", "color": colour}
                shape = {"linewidth": 1.2, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 8}
                left.annotate("", end, (row.width, row.floor), arrowprops=arrow | shape)
    _plain_log(right)
    left.set(ylabel=f"held-out {KL} (nats/token)", title="(a) seeds, upper bounds (↓), floors (▁)")
    right.set_title("(b) beside references")
    widths = sorted(set(summary["width"]))
    for axis in (left, right):
        axis.set(xscale="log", xlabel="width d")
        room = [width for width, wider in zip(widths, [*widths[1:], np.inf], strict=True) if wider > 1.2 * width]
        axis.set_xticks(widths, [str(width) if width in room else "" for width in widths])
        axis.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@matplotlib.rc_context(STYLE)
def distill_budget(table) -> Figure:
    """Is B architecture or budget? Loss against training steps at the ends of the random ladder, and the ratio of both.

    ``table``: ladder, width, seed, steps, floor, with several numbers of steps at the narrowest and widest student.
    """
    part = table[table["ladder"] == "random"]
    ends = sorted({part["width"].min(), part["width"].max()})
    figure, ((left, right),) = panels(2)
    means = {}
    for number, width in enumerate(ends):
        rows = part[part["width"] == width].sort_values("steps")
        means[width] = rows.groupby("steps")["floor"].mean()
        style = {"color": PALETTE[number], "marker": "os"[number]}
        left.plot(rows["steps"], rows["floor"], linestyle="none", markersize=4, alpha=0.7, **style)
        line = ("-", "--")[number]
        left.plot(
            means[width].index, means[width], line, color=style["color"], label=f"d = {width}", **{"marker": None}
        )
    left.set(xscale="log", ylabel=f"held-out {KL} (nats/token)", title="(a) loss after training")
    left.set_ylim(0, None)
    left.legend(loc="lower left")
    share = means[ends[-1]] / means[ends[0]]
    right.plot(share.index, 100 * share, color=PALETTE[1], **OURS)
    right.set(xscale="log", ylim=(0, 105), ylabel="widest / narrowest (%)", title='(b) the "baseline" as a share')
    for axis in (left, right):
        axis.set_xlabel("training steps")
        axis.set_xticks(list(share.index), [str(steps) for steps in share.index])
        axis.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    return figure


@matplotlib.rc_context(STYLE)
def distill_objectives(table, objectives: dict[str, str]) -> Figure:
    """Held-out loss of students that learnt from other objectives, divided by that of the ladder's own; seeds as bars.

    ``table``: objective, ladder, width, seed, kl. ``objectives``: what each is called, from the top.
    """
    ladders = [name for name in LADDERS if (table["ladder"] == name).any()]
    names = [name for name in objectives if (table["objective"] == name).any()][::-1]
    figure, (axes,) = panels(max(1, len(ladders)), height=1.1 + 0.3 * len(names), sharey=True)
    for axis, ladder in zip(axes, ladders, strict=False):
        part = table[table["ladder"] == ladder]
        widths = sorted(set(part["width"]))
        for number, width in enumerate(widths):
            rows = part[part["width"] == width]
            own = rows[rows["objective"] == "forward"]["kl"].mean()
            found = rows.groupby("objective")["kl"].agg(["mean", "min", "max"]).reindex(names).dropna() / own
            y = [names.index(name) + 0.2 * (number - (len(widths) - 1) / 2) for name in found.index]
            reach = [found["mean"] - found["min"], found["max"] - found["mean"]]
            style = {"marker": "os^D"[number % 4], "markersize": 5, "linestyle": "none", "capsize": 2}
            axis.errorbar(found["mean"], y, xerr=reach, color=PALETTE[number], label=f"d = {width}", **style)
        axis.axvline(1, color="0.4", linewidth=0.8)
        axis.set(title=LADDERS[ladder][0], xlabel="loss / loss under the ladder's own")
    axes[0].set_yticks(range(len(names)), [objectives[name] for name in names])
    handles, labels = max((axis.get_legend_handles_labels() for axis in axes), key=lambda pair: len(pair[1]))
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


# -------------------------------------------------------------------------------------------------------------- 03_sae

_LAYER_STYLES = [(PALETTE[0], "-", "o"), (PALETTE[1], "--", "s"), (PALETTE[2], "-.", "^"), (PALETTE[4], ":", "D")]


def _layer_styles(layers) -> dict:
    """Colour, line and marker of each layer, shallowest first."""
    return dict(zip(sorted(set(layers)), _LAYER_STYLES * len(set(layers)), strict=False))


@matplotlib.rc_context(STYLE)
def fig04_sae_training(curves) -> Figure:
    """Paper's Fig. 4: reconstruction error and L0 against tokens seen, one line a layer, at the default lambda.

    ``curves``: layer, tokens_seen, error (squared norm, of inputs with mean norm sqrt(d)), l0.
    """
    figure, ((left, right),) = panels(2)
    for layer, (color, line, _) in _layer_styles(curves["layer"]).items():
        part = curves[curves["layer"] == layer]
        left.plot(part["tokens_seen"], part["error"], line, color=color, label=f"layer {layer}")
        right.plot(part["tokens_seen"], part["l0"], line, color=color, label=f"layer {layer}")
    for axis, label in ((left, "squared error per token"), (right, "active latents per token L0")):
        axis.set(xscale="log", yscale="log", xlabel="tokens seen", ylabel=label)
    left.legend()
    return figure


@matplotlib.rc_context(STYLE)
def fig15_sae_layers(curves, latents: int) -> Figure:
    """Paper's Fig. 15: the same curves layer by layer, with the number of latents that fire within a window."""
    layers = sorted(set(curves["layer"]))
    figure, axes = panels(3, len(layers), height=1.6, sharex=True, sharey="col")
    columns = (("error", "squared error"), ("l0", "L0"), ("firing", "latents firing"))
    for row, layer in zip(axes, layers, strict=True):
        part = curves[curves["layer"] == layer]
        for axis, (column, label), color in zip(row, columns, PALETTE, strict=False):
            axis.plot(part["tokens_seen"], part[column], color=color)
            axis.set(yscale="log" if column != "firing" else "linear", ylabel=label)
        row[2].axhline(latents, color="0.5", linewidth=0.8, linestyle=":")
        row[2].set_ylim(0, 1.08 * latents)
        row[0].set_title(f"layer {layer}", loc="left")
    for axis in axes[-1]:
        axis.set_xlabel("tokens seen")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    return figure


@matplotlib.rc_context(STYLE)
def fig05_importance(tails, floors, paper) -> Figure:
    """Paper's Fig. 5: importance against rank (a), and Eq. 2 against width, relative to the narrowest (b).

    ``tails``: layer -> importance in falling order. ``floors``: layer, width, d_teacher, eq2. ``paper``: the same of
    Table 2 as share (width / d_T) and normalized.
    """
    figure, ((left, right),) = panels(2)
    for layer, (color, line, marker) in _layer_styles(tails).items():
        tail = np.asarray(tails[layer])
        left.plot(np.arange(1, len(tail) + 1), tail, line, color=color, label=f"layer {layer}")
        part = floors[floors["layer"] == layer].sort_values("width")
        shown = part[part["eq2"] > 1e-4 * part["eq2"].iloc[0]]
        right.plot(
            shown["width"] / shown["d_teacher"], shown["eq2"] / part["eq2"].iloc[0], line, color=color, marker=marker,
            markersize=4, label=f"layer {layer}",
        )  # fmt: skip
    largest = max(float(np.max(tail)) for tail in tails.values())
    left.set(xscale="log", yscale="log", ylim=(largest * 1e-9, largest * 3))
    left.set(xlabel="feature rank", ylabel="importance $I_i = E[z_i^2]$")
    left.legend(loc="lower left")
    right.plot(paper["share"], paper["normalized"], label="paper, layer 12", **PAPER)
    right.set(yscale="log", ylim=(1e-4, 2), xlim=(0, 1.05))
    right.set(xlabel="student's width $d_S / d_T$", ylabel="Eq. 2, relative to the narrowest")
    right.legend(loc="lower left")
    left.set_title("(a)", loc="left")
    right.set_title("(b)", loc="left")
    return figure


@matplotlib.rc_context(STYLE)
def sae_sensitivity(grid) -> Figure:
    """d*, and how good the autoencoder is, against lambda at one layer; the bars are 95 % intervals over documents.

    ``grid``: lam, d_star, d_star_low, d_star_high, d_teacher, fvu, kl_spliced, kl_ablated, default.
    """
    grid = grid.sort_values("lam")
    figure, ((left, right),) = panels(2)
    bars = np.stack([grid["d_star"] - grid["d_star_low"], grid["d_star_high"] - grid["d_star"]])
    left.errorbar(grid["lam"], grid["d_star"], bars, color=PALETTE[0], capsize=2, **OURS)
    default = grid[grid["default"]]
    left.plot(default["lam"], default["d_star"], "o", color=PALETTE[3], markersize=6, label="default λ", zorder=3)
    width = grid["d_teacher"].iloc[0]
    left.axhline(width, color="0.4", linestyle="--", linewidth=1, label=f"$d_T$ = {width}")
    left.set(xscale="log", yscale="log", xlabel="L1 coefficient λ", ylabel="critical width d* (dimensions)")
    left.legend()
    right.plot(grid["lam"], grid["fvu"], color=PALETTE[1], label="variance unexplained", **OURS)
    lost = grid["kl_spliced"] / grid["kl_ablated"]
    right.plot(grid["lam"], lost, "--", color=PALETTE[2], label="KL, as share of the mean's", marker="s", markersize=4)
    right.set(xscale="log", yscale="log", xlabel="L1 coefficient λ", ylabel="share lost (0: perfect)")
    right.legend()
    for axis in (left, right):
        _plain_log(axis, "x")
        _plain_log(axis, "y")
    return figure


@matplotlib.rc_context(STYLE)
def sae_choices(table, sweeps) -> Figure:
    """d* / d_T against lambda while one other choice changes, a panel each, and Eq. 2 at half the teacher's width.

    ``table``: lam, d_star, d_star_low, d_star_high, d_teacher, left, default and the choices, a row an autoencoder.
    ``sweeps``: choice -> (what the panel is called, its rows of ``table``).
    """
    columns = min(3, len(sweeps) + 1)
    figure, axes = panels(columns, -(-(len(sweeps) + 1) // columns), height=2.2, sharex=True)
    for axis in axes.flat[len(sweeps) + 1 :]:
        axis.set_visible(False)
    for axis, (choice, (label, part)) in zip(axes.flat, sweeps.items(), strict=False):
        values = sorted(part[choice].unique())
        for color, value in zip(sns.color_palette("flare", len(values)), values, strict=True):
            line = part[part[choice] == value].sort_values("lam")
            ratio = line["d_star"] / line["d_teacher"]
            bars = np.stack([line["d_star"] - line["d_star_low"], line["d_star_high"] - line["d_star"]])
            bars = bars / line["d_teacher"].to_numpy()
            axis.errorbar(line["lam"], ratio, bars, color=color, marker="o", markersize=3, linewidth=1, capsize=1.5,
                          label=EngFormatter(sep="")(value))  # fmt: skip
        axis.axhline(1, color="0.4", linestyle="--", linewidth=1)
        axis.set(xscale="log", yscale="log", title=label)
        axis.legend(fontsize=6.5)
    last = axes.flat[len(sweeps)]
    for _, line in table.groupby([name for name in sweeps]):
        line = line.sort_values("lam")
        is_default = line["default"].any()
        last.plot(line["lam"], line["left"], color=PALETTE[3] if is_default else "0.7", linewidth=1.6 if is_default else
                  0.7, zorder=3 if is_default else 2)  # fmt: skip
    last.set(xscale="log", title="Eq. 2 at half of $d_T$,\nrelative to the narrowest", ylim=(0, None))
    for axis in axes[:, 0]:
        axis.set_ylabel("$d^* / d_T$")
    for axis in axes[-1]:
        axis.set_xlabel("L1 coefficient λ")
    return figure


@matplotlib.rc_context(STYLE)
def sae_predictions(floors, d_teacher: int) -> Figure:
    """Predictions at each width relative to the narrowest: Eq. 2 at every lambda, and three rivals that need no SAE.

    ``floors``: width, lam, default, eq2, log_capacity, pca_tail, kl_cut of one layer.
    """
    figure, ((axis,),) = panels(1, height=3.2)
    shown = floors.sort_values("width")

    def line(part, column, style, **options):
        relative = part[column] / part[column].iloc[0]
        wanted = relative > 1e-3
        axis.plot((part["width"] / d_teacher)[wanted], relative[wanted], style, **options)

    greys = sns.color_palette("Blues", len(set(shown["lam"])) + 2)[2:]
    for color, (lam, part) in zip(greys, shown.groupby("lam"), strict=True):
        line(part, "eq2", ".-", color=color, linewidth=1, label=f"Eq. 2, λ = {lam:g}")
    default = shown[shown["default"]]
    line(default, "eq2", "o", color=PALETTE[3], markersize=5, label="Eq. 2, default λ")
    line(default, "log_capacity", "-.", color=PALETTE[2], label="log capacity, default λ")
    line(default, "pca_tail", "--", color="0.3", label="tail of principal components")
    if default["kl_cut"].notna().all():
        line(default, "kl_cut", "s-", color=PALETTE[1], markersize=4, label="KL of the cut student")
    axis.set(yscale="log", ylim=(1e-3, 1.5), xlim=(0, 1.05))
    axis.set(xlabel="student's width $d_S / d_T$", ylabel="relative to the narrowest")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
