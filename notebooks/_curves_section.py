# %% [markdown]
# ## Where would each student end?
#
# A student that is still falling has shown an upper bound on its floor. How far below it could go is a question about
# the rest of a loss curve, and an answer is worth only as much as its record on curves whose rest is known. Public
# ones exist (`data/public`): 12 series of *finished* runs, where every budget is a run with its own decay of the
# learning rate as in this study (arXiv:2403.08540), and 22 models with 35 checkpoints along one *path* each
# (arXiv:2502.06857).
#
# If a loss is a power law plus a limit, $L(t) = L_\infty + a\,t^{-b}$, then each doubling brings $2^{-b}$ times the
# fall of the one before. Three losses a doubling apart determine $b$ ("geometric continuation" and the power law are
# then the same curve), but the ratio of two small differences is noisy. The alternative leaves a model only its last
# fall and takes $b$ from other models:
#
# $$L(N) - L(hN) = \left[L(N/2) - L(N)\right]\,(2^{-b} + 4^{-b} + \dots + h^{-b}).$$
#
# Its interval is split conformal: on calibration models, the error in units of the last fall; its 90 % quantile times
# a new model's last fall is the half-width. By hand, on one held-out model:

# %%
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from minwidth import curves, figures
from minwidth.store import RESULTS

public = {kind: curves.public(kind) for kind in ("finished", "path")}
places = pd.concat([curves.cases(table).assign(kind=kind) for kind, table in public.items()], ignore_index=True)
known = {kind: curves.alternate(table) for kind, table in public.items()}  # by size, every other model
places["calibration"] = [model in known[kind] for model, kind in zip(places.model, places.kind, strict=True)]
calibration = {
    (kind, method): curves.calibrate(places[places.calibration & (places.kind == kind)], method)
    for kind in public
    for method in curves.METHODS
}

shared = calibration["finished", "shared exponent"]
losses = public["finished"].query("model == 'rpj-576'").set_index("tokens").loss
assert "rpj-576" not in known["finished"]
quarter, half, last, then = losses.iloc[:4]  # after 5, 10, 20 and 40 tokens a parameter
fall = (half - last) * 2**-shared.exponent
margin = (half - last) * shared.radius[2]
by_hand = (last - fall, last - fall - margin, last - fall + margin)
np.testing.assert_allclose(curves.end(losses.index[:3], losses.iloc[:3], 2, shared), by_hand)
middle, low, high = by_hand
print(f"b = {shared.exponent:.2f}; predicted {middle:.3f}, 90 % [{low:.3f}, {high:.3f}]; it was {then:.3f}")

# %% [markdown]
# Which method? That is asked of the calibration models alone. The table gives the mean error, in nats.

# %%
fitted = pd.concat(
    curves.judged(places[places.calibration & (places.kind == kind)], found).assign(method=method)
    for (kind, method), found in calibration.items()
)
chosen = fitted.assign(error=fitted.error.abs()).pivot_table("error", ["kind", "ahead"], "method")
assert (chosen.idxmin(axis=1) == "shared exponent").all()
chosen[list(curves.METHODS)].round(4)

# %% [markdown]
# The shared exponent, at both kinds and all distances. Now the models that took no part. `width` is the mean width of
# the 90 % interval in nats, `of last` the error as a share of the error of carrying the last loss forward; `bias` above
# 0 means that ends are predicted too high.


# %%
def scores(rows):
    error = rows.error.abs().mean()
    return pd.Series(
        {
            "models": rows.model.nunique(),
            "cases": len(rows),
            "coverage": rows.hit.mean(),
            "width": 2 * rows.half.mean(),
            "error": error,
            "bias": rows.error.mean(),
            "of last": error / rows.fall.abs().mean(),
        }
    )


held_out = pd.concat(
    curves.judged(places[~places.calibration & (places.kind == kind)], found).assign(method=method)
    for (kind, method), found in calibration.items()
)
by_kind = held_out.groupby(["kind", "ahead", "method"])[held_out.columns].apply(scores)
together = held_out.groupby(["ahead", "method"])[held_out.columns].apply(scores)
together = pd.concat({"both": together}, names=["kind"])
table = pd.concat([together, by_kind]).reset_index()
(RESULTS / "public").mkdir(parents=True, exist_ok=True)
table.round(5).to_csv(RESULTS / "public" / "curve_ends.csv", index=False)
table[table.method == "shared exponent"].round(4)

# %%
ours = together.xs("shared exponent", level="method").droplevel("kind").loc[[2, 4]]
assert ours.coverage.between(0.80, 0.97).all() and (ours["of last"] < 0.25).all()

# %% [markdown]
# On the 17 held-out models the intervals hold 94 % (2 times ahead) and 95 % (4 times) of the ends, and are .09 and
# .11 nats wide where the losses fall by .07 and .15; the error is less than a fifth of that of the last value. Among
# finished runs alone they hold 22 of 23 and 18 of 18: with six calibration models the safe quantile is their largest
# error, so those intervals are wider than they need to be. At 8 times ahead it is 88 %, of 24 cases.
#
# One split may be lucky, so here are 200. And how far can it be carried? In the second table a whole shape of the
# finished runs is held out with all its training texts, or one kind of curve is predicted from the other.

# %%
rng, shuffled = np.random.default_rng(0), []
for _ in range(200):
    rows = []
    for _, group in places.groupby("kind"):
        drawn = group.model.isin(rng.permutation(group.model.unique())[: group.model.nunique() // 2])
        rows.append(curves.judged(group[~drawn], curves.calibrate(group[drawn])))
    shuffled.append(pd.concat(rows).groupby("ahead").hit.mean())
shuffled = pd.DataFrame(shuffled).quantile([0.05, 0.25, 0.5, 0.75, 0.95]).rename_axis("quantile of splits")
assert (shuffled.loc[0.05, [2, 4]] > 0.8).all()
shuffled.round(2)

# %%
finished, path = (places[places.kind == kind] for kind in ("finished", "path"))
shapes = finished.model.str.split("-").str[1].astype(int)
transfers = {
    f"finished, width {width} held out": (finished[shapes != width], finished[shapes == width])
    for width in sorted(set(shapes))
}
transfers |= {"path from finished": (finished, path), "finished from path": (path, finished)}
carried = pd.concat(
    {
        name: curves.judged(unseen, curves.calibrate(seen))
        .groupby("ahead")[[*places, "error", "half", "hit"]]
        .apply(scores)
        for name, (seen, unseen) in transfers.items()
    },
    names=["predicted"],
)
assert carried.coverage.loc["finished from path", 4] < 0.8 < carried.coverage.loc["path from finished", 4]
carried.coverage.unstack("ahead").round(2)

# %% [markdown]
# Coverage is a property of curves that are alike. Shapes can be exchanged for one another; the two kinds cannot: paths
# level off sooner (b = .59 against .39), so what was learnt from them promises finished runs too small a fall: 73 % of
# their ends are in the interval at 4 times, 52 % at 8 times. Students of this study are finished runs and get that
# calibration.

# %%
with matplotlib.rc_context(figures.STYLE):
    figure, ((left, right),) = figures.panels(columns=2, height=3.3)
    groups, outside, jitter = [(kind, ahead) for kind in public for ahead in curves.AHEAD], 0, np.random.default_rng(0)
    for column, (kind, ahead) in enumerate(groups):
        found = calibration[kind, "shared exponent"]
        middle, radius = curves.doublings(2**-found.exponent, ahead), found.radius[ahead]
        left.fill_between([column - 0.38, column + 0.38], middle - radius, middle + radius, color="0.85", linewidth=0)
        left.plot([column - 0.38, column + 0.38], [middle, middle], color="0.4", linewidth=1)
        for used, color, face, label in (
            (True, "0.55", "white", "calibration models"),
            (False, figures.PALETTE[0], figures.PALETTE[0], "held-out models"),
        ):
            rows = places[(places.kind == kind) & (places.ahead == ahead) & (places.calibration == used)]
            share = rows.fall / rows.unit
            outside += int((~share.between(-0.2, 3)).sum())
            x = column + (-0.19 if used else 0.19) + jitter.uniform(-0.14, 0.14, len(rows))
            left.plot(x, share, "o", markersize=3, color=color, markerfacecolor=face, markeredgewidth=0.7,
                      label=label if not column else None)  # fmt: skip
    left.set(ylim=(-0.2, 3), xlim=(-0.5, 5.5), xticks=range(6), xticklabels=[f"{ahead} N" for _, ahead in groups])
    left.set(xlabel="finished runs                paths", ylabel="further fall (falls from N/2 to N)")
    left.legend(loc="upper left")
    for method, color in zip(curves.METHODS[1:], figures.PALETTE[1:], strict=False):
        for kind, dash in (("finished", "o-"), ("path", "s--")):
            line = 100 * by_kind["of last"].loc[kind, :, method]
            right.plot(line.index, line, dash, markersize=4, color=color, label=f"{method}, {kind}")
    right.axhline(50, color="0.4", linewidth=0.8)
    right.set_xscale("log", base=2)
    right.set(ylim=(0, 60), xticks=curves.AHEAD, xticklabels=[f"{ahead} N" for ahead in curves.AHEAD])
    right.set(xlabel="how far ahead", ylabel="error (% of carrying the last loss on)")
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=3)
assert outside == 1
picture = figures.save(figure, "curve_ends", "public")
picture

# %% [markdown]
# *Public models. Left: the fall from N to 2, 4 and 8 N in units of the fall from N/2 to N, one mark a place on a curve;
# grey the 90 % interval from the calibration models, around the fall that their exponent promises (one mark lies
# outside the panel). Right: mean error on held-out models by method and distance; a line at half.*
#
# ### Our students
#
# What do the committed ladders say? First the test: two students have four budgets, so their losses after 560 and 1,120
# steps can be predicted from half.

# %%
ladder = pd.read_csv(RESULTS / "tiny" / "distill_long.csv")
ladder = ladder[ladder.untrained > 1e-6]  # the uncut teacher is its own student
tries = []
for (kind, width, seed), runs in ladder.groupby(["ladder", "width", "seed"]):
    runs = runs.sort_values("steps")
    for place in range(1, len(runs) - 1):
        before, after = runs.iloc[: place + 1], runs.iloc[place + 1]
        found = curves.end(before.steps, before.floor, 2)
        tries.append((kind, width, seed, after.steps, *found, after.floor))
tries = pd.DataFrame(tries, columns=["ladder", "width", "seed", "steps", "predicted", "low", "high", "loss"])
tries["hit"] = (tries.low <= tries.loss) & (tries.loss <= tries.high)
print(f"{tries.hit.sum()} of {len(tries)} in the 90 % interval")
tries.round(3)

# %% [markdown]
# That is fewer than nine in ten: curves of so few steps are not yet like the public ones, whose falls shrink with every
# doubling. The student of width 16 first falls as much as before, then less than half. So the ends below are to be read
# with that record; longer runs will have to show a better one. A loss is called a floor only if even the interval's low
# end, 4 times ahead, is below it by no more than 2 % of what training has taken off so far.

# %%
assert tries.hit.mean() < 0.9
mean = ladder.groupby(["ladder", "width", "steps"])[["floor", "untrained"]].mean()
rows = []
for (kind, width), runs in mean.groupby(["ladder", "width"]):
    word, found, could_fall = curves.verdict(runs.index.get_level_values("steps"), runs.floor, runs.untrained.iloc[-1])
    rows.append((kind, width, runs.floor.iloc[-1], *found, could_fall, word))
columns = ["ladder", "width", "loss", "end", "low", "high", "could fall, of learnt", "verdict"]
ends = pd.DataFrame(rows, columns=columns).set_index(["ladder", "width"])
assert (ends.verdict == "upper bound").all() and (ends["could fall, of learnt"] <= 0.05).sum() == 1
ends.round(3)

# %% [markdown]
# No student is at a floor; each has an upper bound and an interval for where 4 times the steps would lead it. At a
# threshold of 5 % one would pass, the width-alone student of 16, which could still lose 8 % of its loss.
#
# **The schedule.** A run in the middle of its decay lies above where it would be had the rate been lowered already, so
# part of a cosine run is no curve to continue. The multi-power law (arXiv:2503.12811) writes the loss as a power law in
# the *summed* rate less what the decay gains, and can then carry one finished run to the end of another schedule. Here:
# fitted to the run of 560 steps alone, what does it say about the end of the run of 1,120? And the same law inside one
# run, from its first half.

# %%
WARMUP = 1 / 7  # of the steps
history = pd.read_csv(RESULTS / "tiny" / "distill_long_curves.csv")
history = history.merge(ladder[["ladder", "width", "seed", "steps"]])


def cosine(steps):
    warm, step = round(WARMUP * steps), np.arange(steps)
    return np.where(step < warm, (step + 1) / warm, 0.5 * (1 + np.cos(np.pi * (step - warm) / (steps - warm))))


scheduled = []
for student, runs in history.groupby(["ladder", "width", "seed"]):
    short, long = (runs[(runs.steps == n) & (runs.step > WARMUP * n)].sort_values("step") for n in (560, 1120))
    part = long[long.step <= 560]
    true, steps = long.held_out.iloc[-1], part.step
    limit, scale, exponent = curves.power_law(steps, part.held_out)
    scheduled += [
        (*student, "of half the length, finished", "last value", short.held_out.iloc[-1] - true),
        (*student, "of half the length, finished", "multi-power law",
         curves.multi_power_law([(cosine(560), short.step, short.held_out)], cosine(1120)) - true),
        (*student, "its own first half", "last value", part.held_out.iloc[-1] - true),
        (*student, "its own first half", "multi-power law",
         curves.multi_power_law([(cosine(1120), steps, part.held_out)], cosine(1120)) - true),
        (*student, "its own first half", "power law", limit + scale * 1120**-exponent - true),
    ]  # fmt: skip
scheduled = pd.DataFrame(scheduled, columns=["ladder", "width", "seed", "seen", "law", "error"])
shown = scheduled.groupby(["seen", "law"]).error.agg(error=lambda e: e.abs().mean(), bias="mean", runs="size")
shown.round(4)

# %%
finished_half, first_half = shown.error["of half the length, finished"], shown.error["its own first half"]
assert finished_half["multi-power law"] < 0.5 * finished_half["last value"]
assert first_half["multi-power law"] > first_half["power law"]

doubled = scheduled.query("seen == 'of half the length, finished' and law == 'multi-power law'")
doubled = doubled.merge(ladder[ladder.steps == 560][["ladder", "width", "seed", "floor"]])
size = (doubled.error.abs() / doubled.floor).to_numpy()
odd = doubled.groupby(["ladder", "width"]).ngroup().to_numpy() % 2 == 1  # every other student, all its seeds
margin = size[~odd].max()  # six students: their largest error is the safe quantile
print(
    f"+- {margin:.0%} of the loss at half the length holds {(size[odd] <= margin).sum()} of {odd.sum()} held-out runs"
)

# %% [markdown]
# From a finished run the law leaves about a third of the last value's error, with ends a little too low. From the first
# half of a run it fails: before the rate has fallen far, little in the curve says what the fall will bring, and a plain
# power law in steps does better, for which we know no reason but the shape of this cosine. An interval of 13 % of the
# loss to either side, the largest error on six students, holds all 15 runs of the other five. The public tables hold no
# learning rates, so the law could not be calibrated there; the verdicts rest on the shared exponent alone.

# %% [markdown]
# ## Laws over width, on public models
#
# The ladders here have five or six widths between 16 and 128. The *path* models have ten, 256 to 3,072, all after
# 350 billion tokens. What do three laws in the width say about widths that were left out? Depth differs too (3 to 80),
# so each law is fitted with and without a term in its logarithm. Error in nats; `each` leaves out one width at a time,
# `wider` fits up to 768 and predicts from 1,024 on, `narrower` the reverse.


# %%
def law(name, seen, unseen, depth):
    """Losses predicted for ``unseen`` by least squares on ``seen``: c + a f(width) (+ e ln depth)."""
    exponents = {"log": [None], "1/sqrt": [0.5], "power": np.geomspace(0.02, 4, 200)}[name]

    def design(rows, exponent):
        width = rows.width.to_numpy(float)
        columns = [np.ones_like(width), np.log(width) if exponent is None else width**-exponent]
        return np.stack([*columns, np.log(rows.depth)] if depth else columns, 1)

    fits = [np.linalg.lstsq(design(seen, e), seen.loss, rcond=None) for e in exponents]
    squares = [((seen.loss - design(seen, e) @ fit[0]) ** 2).sum() for e, fit in zip(exponents, fits, strict=True)]
    best = int(np.argmin(squares))
    return design(unseen, exponents[best]) @ fits[best][0]


def left_out(models, depth, splits):
    rows = []
    for name, (way, seen) in [(name, split) for name in ("log", "power", "1/sqrt") for split in splits]:
        predicted = law(name, models[seen], models[~seen], depth)
        rows.append(models[~seen].assign(law=name, left_out=way, error=predicted - models.loss[~seen]))
    return pd.concat(rows)


at_end = public["path"].query("tokens == tokens.max()").reset_index(drop=True)
each = [("each", at_end.width != width) for width in sorted(set(at_end.width))]
splits = [*each, ("wider", at_end.width <= 768), ("narrower", at_end.width >= 1024)]
laws = pd.concat(left_out(at_end, depth, splits).assign(depth=depth) for depth in (False, True))
summary = laws.groupby(["depth", "left_out", "law"]).error.agg(error=lambda e: e.abs().mean(), bias="mean")
summary.reset_index().round(5).to_csv(RESULTS / "public" / "width_laws.csv", index=False)
summary.unstack("law").round(3)

# %%
for_ours = []
for kind, group in mean.reset_index().query("steps == 1120").groupby("ladder"):
    students = group.rename(columns={"floor": "loss"}).assign(depth=1).reset_index(drop=True)
    each = [("each", students.width != width) for width in students.width]
    for_ours.append(left_out(students, False, each).assign(ladder=kind))
for_ours = pd.concat(for_ours)
print(for_ours.assign(error=for_ours.error.abs()).pivot_table("error", "ladder", "law").round(3))

errors = summary.error
assert (errors[True] < errors[False]).all()
assert errors[True, "each"].idxmin() == "power"
assert errors[True, "wider"].idxmin() == errors[True, "narrower"].idxmin() == "1/sqrt"
assert (
    for_ours.assign(error=for_ours.error.abs()).groupby(["ladder", "law"]).error.mean().unstack().idxmin(axis=1)
    == "log"
).all()

# %% [markdown]
# Width alone says little about these models: without depth every law misses a left-out width by .14 nats or more. With
# it, a power law of fitted exponent interpolates best (.023), but outside the fitted range it is no better than the
# logarithm, and $1/\sqrt{d}$, the worst of the three on our width-alone ladder, errs least there (.07 in both
# directions, where the losses span .89 nats). On our own ladders the logarithm is best in between, by a hair before the
# power law. So a law that wins on five points of one ladder is not thereby a law over width. Beyond that the comparison
# does not reach: those are cross-entropies of models trained on text, ours are divergences from a teacher.

# %%
with matplotlib.rc_context(figures.STYLE):
    figure, ((left, right),) = figures.panels(columns=2, height=3.1)
    colors = dict(zip(("log", "power", "1/sqrt"), figures.PALETTE, strict=False))
    looks = {"each": ("o-", "each left out"), "wider": ("s--", "from 256 to 768"), "narrower": ("^:", "from 1,024 on")}
    looks |= {"random": ("o-", "random"), "width_alone": ("s--", "width alone")}
    for panel, rows, key in ((left, laws[laws.depth], "left_out"), (right, for_ours, "ladder")):
        for (name, look), group in rows.groupby(["law", key]):
            curve = group.groupby("width").error.mean()
            panel.plot(curve.index, curve, looks[look][0], markersize=3.5, color=colors[name])
        for look in rows[key].unique():
            panel.plot([], [], looks[look][0], markersize=3.5, color="0.4", label=looks[look][1])
        panel.axhline(0, color="0.4", linewidth=0.8)
        panel.set_xscale("log", base=2)
        panel.legend(loc="upper left" if panel is left else "upper center")
        panel.minorticks_off()
    for panel, ticks, title in (
        (left, (256, 512, 1024, 2048), "public, with depth in the law"),
        (right, sorted(set(for_ours.width)), "ours, 1,120 steps, mean of three seeds"),
    ):
        panel.set(title=title, xlabel="width left out", xticks=ticks, xticklabels=[f"{tick:,}" for tick in ticks])
    left.set(ylim=(-0.25, 0.36), ylabel="predicted - measured loss (nats)")
    lines = [Line2D([], [], color=color) for color in colors.values()]
    figure.legend(lines, ["logarithm", "power law", "1/sqrt(d)"], loc="outside lower center", ncols=3)
picture = figures.save(figure, "width_laws", "public")
picture

# %% [markdown]
# *Error of a law at widths that were not in its fit; mean over the models of a width. Left: 22 public models after 350
# billion tokens, in cross-entropy. Right: our ladders, in divergence at T = 2.*
