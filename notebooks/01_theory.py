# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1 · How many features fit in a dimension?
#
# **Paper**: section 3 (the minimum-width theorem) and appendix A, with Figure 1 and Table 7.
#
# **For** readers who know linear algebra and a little probability. Compressed sensing, information theory and
# interpretability are explained where they are used.
#
# **You will learn**
# - what superposition is, and why two features can share one axis at almost no cost;
# - where the law $k\ln(n/k)$ and the paper's capacity $g(\alpha)$ come from: which step is proved, which holds only
#   in a limit, and which is a choice;
# - why the critical width $d^*$ is decided by one number, the mean count $L_0$ of active features;
# - whether Eq. 2 is the lower bound it is said to be, and a bound on the other side that needs no fitted number;
# - a lower bound that *is* a theorem, in nats: no student whose last state has $d$ numbers gets below it (section 8).
#
# **Time**: a minute on two cores, at every scale; no model is loaded and nothing is trained. Notebook 02 trains the toy
# models that this one reasons about.
#
# Formulas are shortest in $p$, the chance that a feature is active. The paper's tables, and the package's functions,
# take the **sparsity** $\alpha = 1-p$, the share of zeros.

# %% tags=["parameters"]
scale = "tiny"  # where figures go; the theory is the same at every scale
alpha = 0.992  # sparsity: share of zeros of a feature; the paper's value for Pythia-410M
features = 28_700  # F, features of the teacher; the paper's value
width = 128  # d_S, the student's width; the paper's narrowest
zipf_exponent = 1.0  # importance of feature i is i^-exponent; 1 in the paper's toy model

# %% tags=["colab", "remove-cell"]
import sys

if "google.colab" in sys.modules:  # elsewhere this cell does nothing
    repository = ""  # where git finds this study: an address, or a folder on a mounted drive
    get_ipython().system(f"git clone --quiet --depth 1 {repository} minwidth")
    sys.path.insert(0, "minwidth/src")
    from minwidth import colab

    colab.install()

# %%
from minwidth import scales

setting = scales.validate("01_theory", globals())

# %%
import functools
import io
import math
import os

import ipywidgets
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from IPython.display import Image, display
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from scipy import optimize, stats

from minwidth import bottleneck, capacity, exercises, figures, ledger, store
from minwidth.figures import OURS, PALETTE, PAPER
from minwidth.store import DATA

save = functools.partial(figures.save, scale=setting.place)
pd.DataFrame(setting.model_dump().items(), columns=["parameter", "value"]).style.hide()

# %% [markdown]
# ## 1. Superposition from scratch
#
# A **feature** is a number that says how strongly something is present: a French word, a closing bracket, a mention
# of courts. Most are absent most of the time. So take features $x_1,\dots,x_n$ that are independent, 0 with
# probability $\alpha$ and otherwise uniform on $[0,1]$. The chance of being active is $p = 1-\alpha$.
#
# The toy model (Elhage et al., 2022; section 4 of the paper) squeezes them through $d<n$ numbers and reads them out
# again:
#
# $$h = Wx \in \mathbb R^d, \qquad \hat x = \mathrm{ReLU}(W^\top h + b), \qquad
# \text{loss} = \sum_i I_i\, \mathbb E\,(x_i-\hat x_i)^2,$$
#
# where the **importance** $I_i$ says how much feature $i$ matters. A linear read-out can keep $d$ features and no
# more. The ReLU changes that. Put *two* features on *one* axis, pointing opposite ways, with $b=0$:


# %%
def read_out(weights, x, bias=0.0):
    """The toy model: weights [d, features], x [features, samples]."""
    return np.maximum(weights.T @ (weights @ x) + bias, 0)


pair = np.array([[1.0, -1.0]])
x = np.array([[0.0, 0.8, 0.0, 0.8], [0.0, 0.0, 0.5, 0.5]])
found = read_out(pair, x)
assert np.allclose(x - found, np.minimum(x[0], x[1]))  # both read too low by the smaller of the two
pd.DataFrame(
    {"x1": x[0], "x2": x[1], "h": (pair @ x)[0], "x1 read": found[0], "x2 read": found[1]},
    index=["neither active", "only the first", "only the second", "both"],
).round(2)

# %% [markdown]
# The sign of $h$ says which feature is meant, and the ReLU silences the other. Only when *both* are active do they
# cancel, and each is read too low by the smaller of the two. If features are rare, both are active so rarely that
# sharing an axis is nearly free. That is **superposition**: more features than dimensions, paid for only in
# collisions.
#
# Five features in two dimensions can be arranged in several ways. Below, each feature is an arrow, its column of $W$.
# The tables show $\mathrm{ReLU}(W^\top W)$: what every read-out hears when one feature is active alone. A perfect
# table is the identity.


# %%
def polygon(sides):
    """Unit vectors at equal angles, [2, sides]."""
    angle = np.pi / 2 + 2 * np.pi * np.arange(sides) / sides
    return np.stack([np.cos(angle), np.sin(angle)])


own_axes, two_pairs = np.zeros((2, 5)), np.zeros((2, 5))
own_axes[:, :2] = np.eye(2)
two_pairs[:, :4] = np.array([[1, -1, 0, 0], [0, 0, 1, -1]])
names = [f"$x_{i}$" for i in range(1, 6)]

with figures.style():
    figure, drawn = figures.panels(3, 2, height=2.1)
    for column, (title, weights) in enumerate(
        {"own axes": own_axes, "two pairs": two_pairs, "pentagon": polygon(5)}.items()
    ):
        top, bottom = drawn[:, column]
        for i, (a, b) in enumerate(weights.T):
            if a or b:
                top.annotate("", (a, b), (0, 0), arrowprops={"arrowstyle": "-|>", "color": PALETTE[i]})
                top.annotate(names[i], (1.22 * a, 1.22 * b), ha="center", va="center", color=PALETTE[i])
        dropped = [name for name, kept in zip(names, weights.any(0), strict=True) if not kept]
        top.text(0, -1.75, "dropped: " + (", ".join(dropped) or "none"), ha="center")
        top.set(xlim=(-1.5, 1.5), ylim=(-1.85, 1.4), xticks=[], yticks=[], aspect="equal", title=title)
        top.spines[:].set_visible(False)
        sns.heatmap(
            read_out(weights, np.eye(5)), ax=bottom, vmin=0, vmax=1, cmap="Blues", square=True, annot=True, fmt=".2g",
            annot_kws={"size": 7}, cbar=False, linewidths=0.5, linecolor="0.9", xticklabels=names, yticklabels=names,
        )  # fmt: skip
        bottom.tick_params(length=0)
        bottom.tick_params("y", rotation=0)
        bottom.set_xlabel("if only this one is active")
    drawn[1, 0].set_ylabel("this one is read as")
save(figure, "theory_arrangements")

# %% [markdown]
# *Own axes* keeps two features perfectly and drops three. *Two pairs* keeps four, with nothing off the diagonal. The
# *pentagon* keeps all five, but each hears 0.31 of its two neighbours even when they are active alone.
#
# Which is best? That depends on $p$. A dropped feature costs its variance $V = p/3 - p^2/4$, since the bias can
# supply its mean. Of a pair neither, one or both may be active, and each case is an integral. The pentagon's cost is
# estimated by sampling. One draw serves every $p$: so many samples with 0, 1, 2, ... active features, weighted by how
# often that happens. What is read, $s\,\mathrm{ReLU}(W^\top Wx+t)$, is linear in the scale $s$, so the best $s$ is a
# projection; the bias $t$ is searched on a grid.


# %%
def best_pair(p):
    """Mean squared error of each feature of a pair at its best common scale and bias, by integration on a grid."""
    u = (np.arange(200) + 0.5) / 200

    def loss(weights_and_bias):
        s, b = weights_and_bias  # u is read as ReLU(s (u - v) + b) if its partner is v
        alone = ((u - np.maximum(s * u + b, 0)) ** 2).mean() + (np.maximum(b - s * u, 0) ** 2).mean()
        both = ((u[:, None] - np.maximum(s * (u[:, None] - u) + b, 0)) ** 2).mean()
        return (1 - p) ** 2 * max(b, 0) ** 2 + p * (1 - p) * alone + p**2 * both

    return optimize.minimize(loss, (1, 0.1 * p), method="Nelder-Mead", options={"fatol": 1e-9}).fun


def shape_loss(weights, p, seed=0, samples=8000):
    """Mean squared error of a feature in a symmetric arrangement, at its best common scale and bias, for each p."""
    features, rng, shifts = weights.shape[1], np.random.default_rng(seed), np.linspace(-0.5, 1, 151)
    total, (cross, square) = np.zeros((p.size, 1)), np.zeros((2, p.size, shifts.size))
    for active in range(features + 1):
        chance = (math.comb(features, active) * p**active * (1 - p) ** (features - active))[:, None]
        order = rng.permuted(np.tile(np.arange(features), (samples, 1)), axis=1).T
        x = rng.random((features, samples)) * (order < active)
        read = [read_out(weights, x, shift) for shift in shifts]
        total += chance * (x**2).mean()
        cross += chance * [(x * found).mean() for found in read]
        square += chance * [(found**2).mean() for found in read]
    left = total - np.divide(cross**2, square, out=np.zeros_like(cross), where=square > 0)
    return np.minimum(left.min(1), capacity.variance(1 - p))


active = np.geomspace(0.002, 0.7, 60)  # p
dropped, paired = capacity.variance(1 - active), np.array([best_pair(p) for p in active])
assert np.allclose(shape_loss(pair, active), paired, rtol=0.05)  # sampled, against the integral
shapes = {
    "own axes": 3 * dropped,
    "an axis and a pair": 2 * paired + 2 * dropped,
    "two pairs": 4 * paired + dropped,
    "pentagon": 5 * shape_loss(polygon(5), active),
}
with figures.style():
    figure, ((panel,),) = figures.panels()
    for (name, loss), line in zip(shapes.items(), ("-", "--", "-.", ":"), strict=True):
        panel.plot(active, loss / (5 * dropped), line, label=name)
    panel.set(xscale="log", ylim=(0, None), xlabel="p, chance that a feature is active")
    panel.set_ylabel("loss, share of the total variance")
    panel.legend()
save(figure, "theory_shapes")

# %%
pentagon_from = active[np.argmax(shapes["pentagon"] > shapes["two pairs"])]
assert 0.2 < pentagon_from < 0.27
print(f"the pentagon loses less than two pairs below p = {pentagon_from:.2f}")

# %% [markdown]
# Sharing pays more the rarer features are. Below $p\approx0.23$ even the pentagon, with its interference, beats two
# pairs and a dropped feature. Features that are mostly active gain next to nothing: superposition is a gift of
# sparsity.

# %% [markdown]
# ### Two features a dimension are free, a third is not
#
# Pairs are special. Suppose features fire one at a time, and we want no error at all then. Reading $x_i$ exactly needs
# $\lVert w_i\rVert = 1$ and $b_i = 0$; silence from the others needs $\langle w_i, w_j\rangle \le 0$ for all $i\ne j$.
#
# **At most $2d$ vectors in $\mathbb R^d$ can do that.** *Proof.* Project all vectors onto the hyperplane orthogonal
# to $w_1$: $u_i = w_i - \langle w_i,w_1\rangle w_1$. Then $\langle u_i,u_j\rangle = \langle w_i,w_j\rangle - \langle
# w_i,w_1\rangle\langle w_j,w_1\rangle \le 0$ still, and at most one $u_i$ vanishes, the one with $w_i = -w_1$. So the
# hyperplane holds all but two of the vectors, and $m(d)\le m(d-1)+2$, with $m(1)=2$. $\square$
#
# The $d$ axes with both signs attain $2d$. So for this model **two features a dimension cost only collisions, of
# order $p^2$; any more interfere even when alone, at order $p$**, unless a bias clips small values away. Keep the
# number two in mind when the next section speaks of 27.

# %% [markdown]
# ## 2. Where $k\ln(n/k)$ and $g(\alpha)$ come from
#
# The paper says (Eq. 1) that a $d$-dimensional space holds
#
# $$d\cdot g(\alpha)\ \text{ features},\qquad g(\alpha) = \frac{1}{(1-\alpha)\ln\frac1{1-\alpha}} = \frac1{p\ln(1/p)},$$
#
# "from the phase transition analysis of Donoho". It gives no derivation. Here is one, with a label on each step.
#
# ### Step 1 · Naming the active features (proved)
#
# Let $k$ of $n$ features be active. There are $\binom nk$ ways, and
#
# $$\left(\frac nk\right)^k \le \binom nk \le \left(\frac{en}{k}\right)^k
# \quad\Longrightarrow\quad k\ln\frac nk \ \le\ \ln\binom nk\ \le\ k\ln\frac nk + k .$$
#
# (Left: each of the $k$ factors $\frac{n-j}{k-j}$ is at least $\frac nk$. Right: $\binom nk \le n^k/k!$ and $k!\ge
# (k/e)^k$.) So to *name* the active set takes about $k\ln(n/k)$ nats. This is the whole origin of the law.

# %%
k = setting.features * (1 - setting.alpha)  # mean number of active features, L0
law = k * np.log(setting.features / k)
exact = (
    math.lgamma(setting.features + 1) - math.lgamma(k + 1) - math.lgamma(setting.features - k + 1)
)  # ln of the binomial
pd.Series({"k": k, "k ln(n/k)": law, "ln C(n, k), exactly": exact, "k ln(n/k) + k": law + k}).round(0)

# %% [markdown]
# With independent features, $k\approx np$ and the cost of naming is $n$ times the entropy $H(p) = p\ln\frac1p +
# (1-p)\ln\frac1{1-p} = p\ln\frac1p + p - O(p^2)$. **$1/g$ is the first term of that entropy, alone.** This explains a
# strange thing at once. When nearly *all* features are active ($p\to1$), there is nothing to name, so $p\ln(1/p)\to0$
# and $g\to\infty$. The formula counts *which* features are active. It never counts how strongly.
#
# ### Step 2 · One nat a dimension (a choice)
#
# If every dimension carries $c$ nats, naming needs $d\,c\ge np\ln(1/p)$. Put $c=1$:
#
# $$\frac nd\le \frac1{p\ln(1/p)} = g(\alpha).$$
#
# That is the paper's formula, and $c=1$ is its hidden constant. A Gaussian channel carries
# $c=\frac12\ln(1+\mathrm{SNR})$ nats per number, so $g$ supposes a certain signal-to-noise ratio, the same for every
# model and layer (exercise 3 asks which). A noiseless real number has $c=\infty$.
#
# ### Step 3 · Compressed sensing (proved up to a constant; exact in a limit)
#
# Can $x$ be recovered from $h = Ax$ by a *practical* decoder, the $\ell_1$ minimisation $\min\sum z_i$ with $Az=h$,
# $z\ge0$?
# - *Proved*: **stable recovery** of every $k$-sparse vector (a small error in $h$ makes no more than a proportional
#   error in $x$) needs $d\ge C\,k\ln(n/k)$, and random $A$ achieve it (Donoho; Candès, Romberg and Tao; 2006). The
#   constants differ and are not 1.
# - *Exact as $n\to\infty$*: for random $A$ and **most** sparse $x$ (not every one; hence "weak") there is a sharp
#   threshold, Donoho and Tanner's *weak threshold*. Below so many dimensions a feature, recovery nearly always fails,
#   above it nearly always succeeds:
#
# $$M(p) = \min_{z>0}\ p\,(1+z^2) + (1-p)\,\big[(1+z^2)\,\Phi(-z) - z\,\phi(z)\big],$$
#
# with $\phi$ and $\Phi$ the normal density and distribution: the least mean squared error at which a soft threshold
# $z$ removes unit noise from such a feature. $1/M(p)$ is what $g$ stands in for. It has no elementary formula, and no
# logarithm.


# %%
def l1_capacity(p):
    """Features a dimension that l1 minimisation recovers, 1/M(p), by search over the threshold z."""
    z = np.geomspace(1e-4, 8, 20_000)
    silent = (1 + z**2) * stats.norm.sf(z) - z * stats.norm.pdf(z)
    return np.array([1 / np.min(chance * (1 + z**2) + (1 - chance) * silent) for chance in np.atleast_1d(p)])


tried = [0.2, 0.1, 0.05, 0.01]
found = [f"{m:.3f} at p = {p:g}" for p, m in zip(tried, l1_capacity(tried), strict=True)]
print("features a dimension:", ", ".join(found))

# %% [markdown]
# Let us watch the threshold. For each width we draw random projections of a sparse vector and solve the linear
# programme.


# %%
def recovery_rates(features, active, widths, trials, seed):
    """Share of random non-negative vectors that l1 minimisation recovers from so many random projections, by width."""
    rng, rates = np.random.default_rng(seed), []
    for width in widths:
        hits = 0
        for _ in range(trials):
            projection, x = rng.standard_normal((width, features)), np.zeros(features)
            x[rng.choice(features, active, replace=False)] = rng.random(active)
            solved = optimize.linprog(np.ones(features), A_eq=projection, b_eq=projection @ x)
            hits += solved.x is not None and np.abs(solved.x - x).max() < 1e-5
        rates.append(float(hits / trials))
    return rates


# %%
trial = {"features": 100, "active": 5, "widths": list(range(6, 31, 2)), "trials": 20, "seed": 0}
recovery = store.find_or_compute(f"theory/{setting.scale}/recovery", trial, lambda: {"rates": recovery_rates(**trial)})
n, sparsity = trial["features"], 1 - trial["active"] / trial["features"]
uprights = {
    "k + 1, enough for a search": (trial["active"] + 1, PALETTE[2], "-."),
    "k ln(n/k), the paper's d*": (capacity.critical_width(n, sparsity), PALETTE[0], "--"),
    "weak threshold": (n / l1_capacity(1 - sparsity)[0], PALETTE[1], "-"),
}
with figures.style():
    figure, ((panel,),) = figures.panels()
    panel.plot(trial["widths"], recovery["rates"], color="0.25", label="$\\ell_1$ minimisation", **OURS)
    for name, (at, colour, line) in uprights.items():
        panel.axvline(at, color=colour, linestyle=line, label=f"{name}: {at:.1f}")
    panel.set(xlabel="width d (dimensions)", ylabel="share recovered exactly", ylim=(-0.03, 1.03))
    panel.set_title(f"{trial['active']} of {n} features active; {trial['trials']} random projections a width")
    panel.legend(loc="center left", bbox_to_anchor=(1, 0.5))
save(figure, "theory_recovery", record=recovery)

# %% [markdown]
# There *is* a transition, near the weak threshold. It is not sharp at 100 features (its width shrinks like
# $n^{-1/2}$), and $k\ln(n/k)$ is in the neighbourhood without being the threshold.
#
# ### Step 4 · Any decoder at all (proved)
#
# Now allow any decoder, however slow. Let $x$ have support $S$, and let $z\ne x$ with support $S'$ explain the same
# $h$, both supports smaller than $d$. For almost every $A$ any $d$ columns are independent. So $S\not\subset S'$, or
# else $z=x$; and some column of $S$ lies outside the span of those of $S'$, so $x$ lies in a proper subspace of its
# coordinates: an event of probability 0. Hence *searching all supports recovers $x$ if fewer than $d$ features are
# active*. As $n\to\infty$, $d/n > p$ dimensions a feature suffice and $d/n<p$ do not (Wu and Verdú, 2010): $1/p$
# features a dimension. The logarithm is gone.
#
# Four answers, then, to one question:

# %%
active = np.geomspace(1e-4, 0.98, 200)  # p
l1 = l1_capacity(active)
assert (l1 <= 1 / active).all() and np.isclose(l1_capacity(1 - 1e-6), 1)  # below a search; dense: one a dimension
answers = {
    "1/p: search decoder": (1 / active, PALETTE[2], "-."),
    "g: the paper": (capacity.g(1 - active), PALETTE[0], "--"),
    "$\\ell_1$ decoder": (l1, PALETTE[1], "-"),
    "ReLU, pairs": (np.full(active.size, 2.0), PALETTE[3], ":"),
}
with figures.style():
    figure, ((left, right),) = figures.panels(2)
    for name, (answer, colour, line) in answers.items():
        left.plot(active, answer, line, color=colour, label=name)
        right.plot(active, answer / l1, line, color=colour)
    left.set(yscale="log", ylabel="features per dimension")
    right.set(yscale="log", ylabel="the same, over the $\\ell_1$ decoder's", ylim=(0.05, 100))
    for panel in (left, right):
        panel.set(xscale="log", xlabel="p, chance of being active")
        panel.invert_xaxis()  # sparser to the right
    left.legend()
save(figure, "theory_capacities")

# %%
sparsities = np.unique([0.8, 0.9, 0.95, 0.99, 0.992, setting.alpha])
pd.DataFrame(
    {
        "search decoder, 1/p": 1 / (1 - sparsities),
        "g (paper)": capacity.g(sparsities),
        "l1 decoder (exact)": l1_capacity(1 - sparsities),
        "g over l1": capacity.g(sparsities) / l1_capacity(1 - sparsities),
    },
    index=pd.Index([f"{a:g}" for a in sparsities], name="alpha"),
).round(2)

# %%
ledger.claim(
    "donoho", capacity.g(0.992) / l1_capacity(1 - 0.992)[0],
    why="g over the exact l1 threshold at the paper's sparsity; 1.27 at 0.8, and 2 in the limit of no active features",
)  # fmt: skip

# %% [markdown]
# Here the paper is nearly right: at $\alpha=0.992$ its $g$ is 14 % above the exact threshold for non-negative features.
#
# So $g$ lies above what $\ell_1$ recovers from random projections, moderately at the sparsities of interest. Its
# shape is right there, but not because it *is* the phase transition: the ratio tends to 2 as $p\to0$ and to infinity
# as $p\to1$, where the exact curve ends at one feature a dimension and $g$ has a pole. It is far below what a search
# can recover. And none of the three describes a model that reads out with one matrix and a ReLU, for which two a
# dimension are free.
#
# | step | statement | status |
# |---|---|---|
# | 1 | naming $k$ of $n$ takes between $k\ln\frac nk$ and $k\ln\frac nk+k$ nats | proved |
# | 2 | a dimension carries one nat | a choice |
# | 3 | $\ell_1$ needs of order $k\ln\frac nk$ projections | proved, constant unknown |
# | 3' | the $\ell_1$ threshold | exact as $n\to\infty$, random projections, no noise |
# | 4 | a search needs $k+1$ numbers | proved, no noise, exponential time |
# | Eq. 1 | "a d-dimensional space can represent at most $d\cdot g(\alpha)$ features" | an argument: steps 1 and 2 |

# %% [markdown]
# ## 3. $g$ and $d^*$ drawn: Figure 1 and Table 7
#
# $g$ has its minimum where $\frac{d}{dp}\,p\ln\frac1p = \ln\frac1p - 1 = 0$, at $p=1/e$: there $g = e$. The paper
# draws only $\alpha\ge 0.5$, to the left of which $g$ *falls* as features become sparser.

# %%
axis = np.concatenate(
    [np.geomspace(0.004, 0.1, 40), np.linspace(0.105, 0.99, 178), 1 - np.geomspace(0.0095, 0.001, 40)]
)
table7 = pd.read_csv(DATA / "paper" / "table7_capacity.csv")
toy_sparsities = np.array([0.8, 0.9, 0.95, 0.99])
least = axis[capacity.g(axis).argmin()]
with figures.style():
    figure, ((left, right),) = figures.panels(2)
    left.plot(axis, capacity.g(axis))
    left.plot(toy_sparsities, capacity.g(toy_sparsities), linestyle="none", label="g at the toy's sparsities", **OURS)
    left.plot(table7.alpha, table7.g, label="paper, Table 7", **PAPER)
    left.annotate(
        f"least: {capacity.g(least):.2f}\nat {least:.2f}", (least, capacity.g(least)), (0.36, 12), ha="center",
        arrowprops={"arrowstyle": "-", "color": "0.4", "linewidth": 0.8},
    )  # fmt: skip
    left.set(yscale="log", ylim=(0.7, 300), ylabel="features per dimension g(α)")
    left.set_title("Poles at both ends (shaded: what the paper plots)")
    for count, line in zip((10, 20, 40), ("-", "--", "-."), strict=True):  # the toy model's feature counts
        right.plot(axis, capacity.critical_width(count, axis), line, label=f"F = {count}")
    right.set(ylim=(0, 19), ylabel="critical width d* (dimensions)")
    right.set_title("d* = F/g falls to 0 for dense features too")
    for panel, place in ((left, "upper center"), (right, "upper left")):
        panel.axvspan(0.5, 1, color="0.95", zorder=0)
        panel.set(xlim=(0, 1), xlabel="sparsity α")
        panel.legend(loc=place)
save(figure, "fig01_capacity")

# %%
fine = np.linspace(0, 1, 10_001)[1:-1]
ledger.claim("g-shape", fine[capacity.g(fine).argmin()], why="g has its minimum e at α = 1 - 1/e, and a pole at 0")

# %% [markdown]
# Table 7 row by row. A row is right if $g$ rounds to what is printed.

# %%
checked = pd.DataFrame({"printed": table7["g"].to_numpy()}, index=table7["alpha"])
checked["recomputed"] = [capacity.g(a) if a > 0 else np.inf for a in checked.index]
digits = np.where(checked["printed"] > 100, 0, 1)
checked["right"] = [
    round(g, d) == printed for g, d, printed in zip(checked["recomputed"], digits, checked["printed"], strict=True)
]
belongs = np.linspace(0.99, 0.995, 5001)
print(f"27.0 is g({belongs[np.abs(capacity.g(belongs) - 27.0).argmin()]:.4f})")
assert list(checked.index[~checked["right"]]) == [0, 0.992]
checked.rename("{:g}".format).round(2)

# %% [markdown]
# Six of eight rows are right. $g(0)=1$ is a convention, since $g$ has a pole there. And 27.0 is $g(0.9924)$, the
# sparsity of Table 1 before it was rounded.

# %% [markdown]
# ## 4. The critical width is $L_0\ln(F/L_0)$
#
# The paper's critical width is $d^* = F/g(\alpha)$. An SAE (notebook 03) measures the number $F$ of live features and
# the mean number $L_0$ of active ones, so $p = L_0/F$. Insert that:
#
# $$d^* = F\,p\ln\frac1p = L_0\ln\frac{F}{L_0}.$$
#
# The $F$ in front has cancelled. What remains is the law $k\ln(n/k)$ with $k=L_0$, $n=F$. Table 1 comes out to the
# digit:

# %%
table1 = pd.read_csv(DATA / "paper" / "table1_sae.csv")
again = capacity.critical_width_from_l0(table1["alive_features"], table1["mean_l0"])
sensitivity = 1 / np.log(table1["alive_features"] / table1["mean_l0"])
assert (again.round() == table1["critical_width"]).all()
pd.DataFrame(
    {
        "layer": table1["layer"],
        "F": table1["alive_features"],
        "L0": table1["mean_l0"],
        "d* printed": table1["critical_width"],
        "d* recomputed": again.round().astype(int),
        "% d* per % of L0": (1 - sensitivity).round(2),
        "% d* per % of F": sensitivity.round(2),
    }
)

# %%
from_g = capacity.critical_width(table1["alive_features"], 1 - table1["mean_l0"] / table1["alive_features"])
ledger.claim("critical-width", np.abs(from_g / again - 1).max(), "the same to rounding", why="its algebra alone")

# %% [markdown]
# The last two columns are the elasticities $\frac{\partial\ln d^*}{\partial\ln L_0} = 1-\frac1{\ln(F/L_0)}$ and
# $\frac{\partial\ln d^*}{\partial\ln F} = \frac1{\ln(F/L_0)}$. **$d^*$ is, in the main, a readout of $L_0$.** And
# $L_0$ is set by the SAE's sparsity penalty and by how long it was trained: two choices of the experimenter, not
# properties of the teacher. Notebook 03 measures how far they move $d^*$.

# %%
text = pd.read_csv(DATA / "paper" / "text_numbers.csv").set_index("name")["value"]
alive, mean_l0 = table1.loc[table1["layer"] == 12, ["alive_features", "mean_l0"]].iloc[0]
choices = pd.DataFrame(
    [
        ("alive features, as the paper", alive, mean_l0 / alive),
        ("alpha over all latents, F alive", alive, mean_l0 / text["sae_latents"]),
        ("all latents for both", text["sae_latents"], mean_l0 / text["sae_latents"]),
        ("alpha rounded to 0.992", alive, 1 - text["abstract_alpha"]),
    ],
    columns=["how layer 12 is counted", "F", "p"],
)
choices["d*"] = capacity.critical_width(choices["F"], 1 - choices["p"]).round().astype(int)
choices["above d_T"] = choices["d*"] > text["teacher_width"]
choices.astype({"F": int}).round(5)

# %%
margins = again / text["teacher_width"] - 1
assert choices["above d_T"].nunique() == 2
print(f"margins of d* over d_T = {text['teacher_width']:.0f}:", ", ".join(f"{margin:.0%}" for margin in margins))

# %% [markdown]
# That the full-width teacher is "in superposition" ($d^*$ above 1024) rests on margins of 4 to 16 %, and the way of
# counting can undo that of layer 12.
#
# The figure shows the range. The square is layer 8 with the $L_0$ that the paper's section 5.1 and Figure 4 report
# for it, thirty times that of its Table 1.

# %%
l0, by_figure4 = np.geomspace(10, 9000, 100), text["sae_l0_layer8"]
with figures.style():
    figure, ((panel,),) = figures.panels()
    for count, line in zip((14_350, 28_700, 57_400), ("--", "-", "-."), strict=True):
        panel.plot(l0, capacity.critical_width_from_l0(count, l0), line, label=f"F = {count:,}")
    panel.plot(table1["mean_l0"], table1["critical_width"], label="paper, Table 1", **PAPER)
    panel.plot(
        by_figure4, capacity.critical_width_from_l0(table1["alive_features"][0], by_figure4), label="layer 8 by Fig. 4",
        **(PAPER | {"marker": "s"}),
    )  # fmt: skip
    panel.axhline(1024, color="0.4", linewidth=0.8, linestyle=":")
    panel.text(10, 1024 * 1.08, "$d_T$ = 1024", fontsize=8)
    panel.set(xscale="log", yscale="log", xlabel="mean number of active features $L_0$ (a token)")
    panel.set_ylabel("critical width d* (dimensions)")
    panel.legend()
save(figure, "theory_critical_width")

# %% [markdown]
# ## 5. The floor of Eq. 2
#
# If $F_S = \lfloor d_S\,g(\alpha)\rfloor$ features can be kept, the best are kept, and each lost one costs its full
# power, then
#
# $$L^*(d_S) = \sum_{i>F_S} I_i\,\mathbb E[x_i^2].$$
#
# Importances fall steeply in practice. With $I_i\propto i^{-s}$ (Zipf) the tail that is lost weighs little, and the
# exponent decides how little:

# %%
kept = capacity.features_kept(setting.width, setting.alpha)
tails = pd.DataFrame({"exponent": np.unique([0.0, 0.5, 1.0, 1.5, 2.0, setting.zipf_exponent])})
tails["share of all importance lost"] = [
    capacity.eq2_floor(capacity.zipf(setting.features, s), setting.width, setting.alpha) for s in tails["exponent"]
]
print(f"width {setting.width} keeps {kept:,} of {setting.features:,} features")
tails.round(4)

# %% [markdown]
# Three cautions before the formula is used.
# - **Do not count power twice.** In the toy model $I_i$ is a weight and $\mathbb E[x_i^2]=p/3$. For language models
#   the paper *defines* $I_i=\mathbb E[z_i^2]$; then the second factor must be 1. `eq2_floor(..., second_moment=)`
#   makes one choose.
# - **A dropped feature costs its variance, not its power**: a bias supplies the mean. So even the "naive" floor with
#   $g=1$ lies above what a linear model reaches, $\sum_{i>d} I_iV$, by $3p/4$ of it.
# - **Which loss?** Eq. 2 is in units of importance, distillation in nats. The paper bridges them by a fitted line
#   (notebook 04).

# %% [markdown]
# ## 6. A bound from the other side: pairs
#
# Let us derive what sharing an axis costs, on the board. Two features of one axis, weights $+1$ and $-1$, no bias.
# The read-outs are $\mathrm{ReLU}(x-x')$ and $\mathrm{ReLU}(x'-x)$, so each is off by exactly $\min(x,x')$, which is
# 0 unless both are active:
#
# $$e = \mathbb E\min(x,x')^2 = p^2\,\mathbb E\min(u,v)^2,\qquad u,v\sim U[0,1].$$
#
# The minimum exceeds $m$ with probability $(1-m)^2$, so its density is $2(1-m)$ and
#
# $$\mathbb E\min(u,v)^2=\int_0^1 m^2\,2(1-m)\,dm = \tfrac23-\tfrac12=\tfrac16 .$$
#
# So $e=p^2/6$ for each of the two. This is exact at every $p$ for these weights, not a first order. It is the
# *leading order* of the best pair: a scale slightly above 1 and a small positive bias gain a little (`best_pair` of
# section 1). A simulation checks the formula:

# %%
rng = np.random.default_rng(0)
rows = []
for a in (0.2, 0.5, 0.8, 0.9):
    sample = rng.random((2, 2_000_000)) * (rng.random((2, 2_000_000)) > a)
    simulated = ((read_out(pair, sample) - sample) ** 2).mean()
    unit, best = capacity.pair_loss(a), best_pair(1 - a)
    rows.append((unit, simulated / unit, best / unit, capacity.variance(a) / unit))
columns = ["p²/6", "simulated, over p²/6", "the best pair, over p²/6", "dropping, over p²/6"]
pd.DataFrame(rows, index=pd.Index([0.2, 0.5, 0.8, 0.9], name="alpha"), columns=columns).round(
    dict(zip(columns, (4, 2, 3, 2), strict=True))
)

# %% [markdown]
# Now spend $d$ dimensions on features of unequal importance. Let $d-k$ features own an axis, the next $2k$ share $k$
# axes, and the rest be dropped:
#
# $$L(d) = \min_{0\le k\le d}\ \frac{p^2}6\sum_{i=d-k+1}^{d+k} I_i \;+\; V\sum_{i>d+k} I_i .$$
#
# Raising $k$ by one moves feature $d-k$ from an own axis to a shared one and rescues feature $d+k+1$. That pays as
# long as
#
# $$\frac{I_{d-k}}{I_{d+k+1}} < \frac{V-p^2/6}{p^2/6} = \frac2p-\frac52 ,$$
#
# and the ratio on the left grows with $k$, so the best $k$ is the last step that pays. For equal importances: pair up
# if $p<4/7$. These weights exist, so the optimum of the toy model is **at most** this: a proven upper bound on its
# floor, with no fitted number.

# %%
importance, rank, widths = capacity.zipf(40), np.arange(1, 41), np.arange(1, 21)
colours = {"dropped": "0.93", "shares an axis": PALETTE[3], "owns an axis": PALETTE[0]}
with figures.style():
    figure, (row,) = figures.panels(2, sharey=True)
    for panel, a in zip(row, (0.8, 0.95), strict=True):
        shared = capacity.digon_allocation(importance, widths, a)[:, None]
        own, carried = widths[:, None] - shared, widths[:, None] + shared
        panel.imshow(
            1 * (rank <= carried) + 1 * (rank <= own), cmap=ListedColormap(colours.values()), vmin=0, vmax=2,
            aspect="auto", origin="lower", extent=(0.5, 40.5, 0.5, 20.5), interpolation="nearest",
        )  # fmt: skip
        panel.grid(False)
        panel.set(title=f"40 features, α = {a}", xlabel="feature, by importance", yticks=[1, 5, 10, 15, 20])
    row[0].set_ylabel("width d (dimensions)")
    patches = [Patch(facecolor=colour, edgecolor="0.6", label=name) for name, colour in colours.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=3)
save(figure, "theory_allocation")

# %% [markdown]
# At moderate sparsity the most important features keep their own axes; at high sparsity nearly all share. Here are
# all floors for the largest toy model. The *optimum* lies at or below "pairs". A trained model need not: it may have
# found a local minimum. Notebook 02 finds how close the two come.


# %%
LINES = {
    "naive (g = 1)": ("0.6", "--"),
    "linear optimum": (PALETTE[4], ":"),
    "pairs": (PALETTE[3], "-"),
    "Eq. 2": (PALETTE[0], "--"),
    "search decoder": (PALETTE[2], "-."),
}


def search_floor(importance, widths, alpha):
    """Encode the first m features, search, and give up if d or more are active: the least over m (section 7)."""
    p, m = 1 - alpha, np.arange(importance.size + 1)
    kept, left = np.append(0, importance.cumsum()), np.append(importance[::-1].cumsum()[::-1], 0)
    encoded, dropped = capacity.second_moment(alpha) * kept, capacity.variance(alpha) * left
    fails = [np.where(m > d, stats.binom.sf(d - 2, m - 1, p), 0) for d in widths]  # P(at least d - 1 of m - 1)
    return np.array([(encoded * chance + dropped).min() for chance in fails])


def floors(features, alpha, widths, exponent=1.0):
    """Every floor at every width, as a share of the total variance."""
    importance, power = capacity.zipf(features, exponent), capacity.second_moment(alpha)
    found = {
        "naive (g = 1)": capacity.eq2_floor(importance, widths, alpha, power, capacity=1),
        "linear optimum": capacity.linear_floor(importance, widths, alpha),
        "pairs": capacity.digon_floor(importance, widths, alpha),
        "Eq. 2": capacity.eq2_floor(importance, widths, alpha, power),
        "search decoder": search_floor(importance, widths, alpha),
    }
    return {kind: floor / capacity.variance(alpha) for kind, floor in found.items()}


def draw_floors(panel, widths, found, title, bottom=1e-4):
    """A line a floor; from where a floor is exactly 0 on, it runs along the lower edge."""
    for kind, (colour, line) in LINES.items():
        panel.plot(widths, np.maximum(found[kind], bottom), line, color=colour, label=kind, clip_on=False)
    panel.set(xscale="log", yscale="log", ylim=(bottom, 2), title=title, xlabel="width d (dimensions)")
    panel.set_yticks([1, 0.1, 0.01, 0.001, bottom], ["1", "0.1", "0.01", "0.001", "$\\leq$ 0.0001"])


widths = np.arange(1, 41)
with figures.style():
    figure, drawn = figures.panels(2, 2, sharey=True)
    for panel, a in zip(drawn.flat, toy_sparsities, strict=True):
        draw_floors(panel, widths, floors(40, a, widths), f"40 features, α = {a:g}")
        panel.set_xticks([1, 2, 5, 10, 20, 40], ["1", "2", "5", "10", "20", "40"])
        panel.minorticks_off()
    for panel in drawn[:, 0]:
        panel.set_ylabel("loss, share of the total variance")
    figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=len(LINES))
save(figure, "theory_floors_toy")

# %%
at_critical = pd.DataFrame({"alpha": toy_sparsities})
at_critical["first width from d* on"] = np.ceil(capacity.critical_width(40, toy_sparsities)).astype(int)
at_critical["pairs lose, of the total variance"] = [
    capacity.digon_floor(importance, d, a) / capacity.variance(a) for a, d in at_critical.to_numpy()
]
assert (at_critical.iloc[:, 2] > 0.15).all()
at_critical.round(3).style.format("{:g}").hide()

# %% [markdown]
# Eq. 2 falls to exactly 0 at $d^*$, where the paper sees a phase transition. With 40 features the pairs floor still
# stands at 18 to 52 % of the total variance there. It reaches 0 only with an axis for every feature.

# %% [markdown]
# ## 7. The data-processing step, examined
#
# Theorem 1 calls Eq. 2 a *lower bound* for any student. Its proof: the hidden layer has rank at most $d_S$, so it
# transmits at most $d_S\,g$ features; by the data processing inequality what is not transmitted cannot be recovered.
#
# The inequality is a theorem: in a chain $x\to h\to\hat x$ we have $I(x;\hat x)\le I(x;h)$. But it says that $\hat x$
# knows no more about $x$ than $h$ does. It is silent on *how much $h$ knows*, and rank is no measure of that: $h$ is
# made of real numbers, and one noiseless real number carries infinitely many nats. Two of them can say which one of
# 1,000 features is active, and how strongly:

# %%
count = 1000
angle = np.linspace(0, np.pi / 2, count)  # a thousand directions in a quarter of the plane
which, strength = rng.integers(count, size=10_000), rng.random(10_000)
h = np.stack([np.cos(angle[which]), np.sin(angle[which])]) * strength
decoded = np.rint(np.arctan2(h[1], h[0]) / (np.pi / 2) * (count - 1)).astype(int)
assert (decoded == which).all() and np.allclose(np.hypot(*h), strength, rtol=1e-12)
print(f"recovered: all {count:,} features; budget 2 g: {capacity.features_kept(2, 1 - 1 / count)}")

# %% [markdown]
# One active feature is a special case, but step 4 of section 2 covers the rest: a search recovers anything with fewer
# than $d$ active features. Encode the $m$ most important features, search, and give up when $d$ or more are active.
# The loss is at most
#
# $$\min_m\ \sum_{i\le m} I_i\,\tfrac p3\,\Pr[\mathrm{Bin}(m-1,p)\ge d-1] + V\sum_{i>m}I_i$$
#
# (`search_floor`; "search decoder" in the figure above). It has a hidden layer of width $d$, sparse
# features, and keeps the most important ones: every assumption of Theorem 1. Wherever it loses less than Eq. 2, Eq. 2
# is no lower bound.


# %%
def search_over_eq2(features, alpha, exponent, widths):
    """What the search decoder loses, in units of Eq. 2, where Eq. 2 is not 0."""
    importance = capacity.zipf(features, exponent)
    claimed = capacity.eq2_floor(importance, widths, alpha, capacity.second_moment(alpha))
    return (search_floor(importance, widths, alpha) / np.where(claimed > 0, claimed, np.nan)).round(3)


paper_widths = pd.read_csv(DATA / "paper" / "table2_predicted_floors.csv")["width"].to_numpy()
alive, mean_l0 = table1.loc[table1["layer"] == 12, ["alive_features", "mean_l0"]].iloc[0]
exponents = (0.0, 0.5, 1.0, 1.5, 2.0)
large = pd.DataFrame(
    {s: search_over_eq2(int(alive), 1 - mean_l0 / alive, s, paper_widths) for s in exponents},
    index=pd.Index(paper_widths, name="width"),
).rename_axis(columns="Zipf exponent")
large

# %%
ledger.claim(
    "data-processing", {f"exponent {s:g}": (large[s] < 1).mean() for s in exponents},
    why="share of the paper's five widths at which a decoder that searches supports loses less than Eq. 2, for F and "
    "L0 of its layer 12",
)  # fmt: skip

# %%
small = np.concatenate([search_over_eq2(n, a, 1.0, np.arange(1, 11)) for n in (10, 20, 40) for a in toy_sparsities])
small = small[~np.isnan(small)]
assert (large < 1).all(axis=None) and (small > 1).all()
print(f"toy model: the search decoder loses {small.min():.2f} to {small.max():.2f} times Eq. 2, in {small.size} cells")

# %% [markdown]
# With the paper's 28,665 features the search decoder loses less than Eq. 2 in every cell of the table. With the few
# features of the toy model (10, 20 or 40) it never does: so few dimensions are often filled by chance, and the search
# then fails.

# %% [markdown]
# One construction is enough: **Eq. 2 bounds nothing as long as the decoder is free.** No student will search
# supports, and noise would stop it; the example does not say that students *do* better than Eq. 2. It says that a
# floor does not follow from width and sparsity alone. It needs a *class of decoders* (one matrix and a ReLU, a few
# layers, bounded norms) or noise, and $g$ knows of neither. For the toy model's own decoder, notebook 02 compares Eq.
# 2 with trained floors.
#
# There is a converse gap. Assumption A3 calls the hidden layer "the primary bottleneck". A student can run out of
# depth, heads and training time as well, and those losses add to the floor whatever its width (notebook 04).

# %% [markdown]
# ## 8. A floor that is a theorem: the last state
#
# Width does bound what a student can do. It is not features that run out but *logits*. Whatever happens in the layers
# below, the student's logits in context $c$ are $Wh_c$: its unembedding, $V\times d$ for $V$ words, times a last state
# of $d$ numbers. Over any set of contexts, the matrix of its logits has rank $d$ at most.
#
# **Theorem.** Let $p_c$ be the teacher's next-word probabilities at temperature $T$ in each of $N$ contexts. The mean
# KL divergence of *every* student with a last state of width $d$ is at least
#
# $$\mathrm{floor}_N(d)=\min_{W\in\mathbb R^{V\times d}}\ \frac1N\sum_{c=1}^N\ \min_{h\in\mathbb R^d}
# \mathrm{KL}\bigl(p_c\,\Vert\,\mathrm{softmax}(Wh/T)\bigr).$$
#
# *Proof.* (1) A trained student is one matrix $W$ and a rule that turns contexts into states $h_c$. (2) Its mean KL is
# the sum above with that $W$ and those $h_c$ in place of the minima. (3) A minimum is no larger than any value it is
# taken over. (4) Depth, data, objective and training decide *which* $W$ and $h_c$ are found, and (3) holds for all of
# them. (5) At $d=d_T$ the teacher's own $W$ and states give 0, so the floor ends where it should. $\square$
#
# There is no $\alpha$ in it, no autoencoder, no assumption A1 to A3, and it is in nats. An output bias is a column of
# $W$ whose entry in $h$ is always 1, so it counts as one dimension more.
#
# ### Three words, two contexts, one number
#
# Say the words are *cat*, *dog*, *the*, and the teacher gives $p_1=(.8,.1,.1)$ and $p_2=(.1,.8,.1)$ at $T=1$. A student
# with $d=1$ has a vector $w$ of three numbers and one number $h$ a context: its logits move along *one line* through
# the origin, where all words are equally likely. No line passes through both contexts.
#
# *The best state on a given line.* The derivative of the KL with respect to $h$ is $\sum_v w_v\,(q_v-p_v)$ with
# $q=\mathrm{softmax}(wh)$. So at the best $h$ **the student's mean of $w$ is the teacher's**. On the line $w=(1,-1,0)$
# write $x=e^h$, so that $q=(x,\,1/x,\,1)/(x+1/x+1)$. In the first context the mean of $w$ is $.8-.1=.7$:
#
# $$\frac{x-1/x}{x+1/x+1}=.7\quad\Longleftrightarrow\quad .3x^2-.7x-1.7=0\quad\Longrightarrow\quad x=3.818,\quad
# q=(.752,\,.052,\,.197).$$
#
# The second context is its mirror image. What the line cannot say is that *the* is rare: it gets .197 instead of .1.

# %%
words, teacher = ["cat", "dog", "the"], np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]])
x = (0.7 + np.sqrt(0.7**2 + 4 * 0.3 * 1.7)) / (2 * 0.3)
by_hand = np.array([x, 1 / x, 1]) / (x + 1 / x + 1)
lost = (teacher[0] * np.log(teacher[0] / by_hand)).sum()
print(f"x = {x:.3f}, q = {by_hand.round(3)}, KL = {lost:.4f} nats")

# %% [markdown]
# *The best line.* Adding a number to all logits changes nothing, so lines lie in the plane of vectors that sum to 0,
# and an angle says which one. That is the whole problem: a search over the angle, and on each line the state whose
# mean of $w$ fits.


# %%
def student(w, h):
    """softmax(w h), for one number h."""
    e = np.exp(w * h - np.max(w * h))
    return e / e.sum()


def best_state(w, p):
    """The h at which the student's mean of w is the teacher's: the mean rises with h, so bisect."""
    return optimize.brentq(lambda h: w @ (student(w, h) - p), -100, 100)


def loss_on_line(w):
    """Mean KL over the contexts, each with its own best state."""
    return np.mean([(p * np.log(p / student(w, best_state(w, p)))).sum() for p in teacher])


plane = np.array([[1, -1, 0], [1, 1, -2]]) / np.sqrt([[2], [6]])
angles = np.linspace(-90, 90, 181)
losses = np.array([loss_on_line(np.array([np.cos(a), np.sin(a)]) @ plane) for a in np.deg2rad(angles)])

logits = torch.tensor(np.log(teacher))
found = bottleneck.floor(logits, torch.eye(3, dtype=torch.float64), 1, 1.0, held_out=logits, starts=8, tolerance=1e-9)
assert angles[losses.argmin()] == 0 and np.isclose(losses.min(), lost)
assert np.isclose(loss_on_line(np.array([1, 0, 0])), 0.155, atol=5e-4)  # through the first context
assert np.isclose(found.low, lost, rtol=1e-5) and np.isclose(found.high, lost, rtol=1e-3)
pd.Series(
    {"by hand": lost, "least over all lines": losses.min(), "bottleneck.floor": found.low}, name="nats per token"
).to_frame().round(5)

# %% [markdown]
# The same function brackets the floor of language models (notebook 04). There $W$ is found by descent rather than by
# trying all lines. Here the loss has a single valley; in general it can have several, and that the lowest was found is
# the one thing not proved: descents from different starts are compared instead.

# %%
drawn, ((simplex, curve),) = figures.panels(columns=2)
corners = np.array([[0, 0], [1, 0], [0.5, np.sqrt(0.75)]])  # a point of the triangle is a distribution over the words
path = np.array([student(plane[0], h) for h in np.linspace(-12, 12, 400)]) @ corners
simplex.fill(*corners.T, facecolor="none", edgecolor="0.6")
simplex.plot(*path.T, color=figures.PALETTE[0], label="what w = (1, −1, 0) can say")
for p in teacher:
    said = student(plane[0], best_state(plane[0], p))
    simplex.plot(*(np.array([p, said]) @ corners).T, color="0.5", linestyle=":")
    simplex.plot(*(p @ corners), **figures.PAPER)
    simplex.plot(*(said @ corners), **figures.OURS, color=figures.PALETTE[0])
for word, corner, side in zip(words, corners, ((0, -12), (0, -12), (0, 5)), strict=True):
    simplex.annotate(word, corner, side, textcoords="offset points", ha="center")
simplex.set(aspect="equal", xlim=(-0.1, 1.1), ylim=(-0.15, 1.2))
simplex.axis("off")
simplex.legend(loc="upper center", fontsize="small")
curve.plot(angles, losses, color=figures.PALETTE[0])
curve.plot(0, lost, **figures.OURS, color=figures.PALETTE[0])
for angle, context in ((30, "1"), (-30, "2")):
    curve.axvline(angle, color="0.6", linestyle=":")
    curve.annotate(f"through\ncontext {context}", (angle, 0.31), ha="center", va="top", backgroundcolor="white")
curve.set(xlabel="direction of the line (degrees)", ylabel="mean KL (nats per token)", xticks=range(-90, 91, 30))
curve.set_ylim(0, None)
figures.save(drawn, "theory_last_state", setting.place)

# %% [markdown]
# *Left*: a point of the triangle is a distribution over the three words. The student's one number moves it along one
# curve through the middle. Each context (open) gets the point of the curve that fits it best (filled): straight above
# it, since *cat* minus *dog* must stay. *Right*: every other line does worse. A line through one context says that one
# exactly and loses .31 nats in the other, .15 in the mean.
#
# **What it does not say.**
# - *Nothing of the layers below.* It asks what the last state can hold, not whether a narrow stream can compute it. A
#   student's loss is the last state's floor, plus what its narrow layers fail to compute, plus what training has not
#   done yet; notebook 04 measures the first, and the other two together.
# - *Nothing of features.* No count $d\,g(\alpha)$ appears, and no width at which a transition happens: it falls to 0
#   at the rank of the teacher's logits, which is $d_T$ as a rule.
# - *Nothing of other losses.* A student trained on the text or on reversed KL is bound as well, but its *forward KL* is
#   what is bounded.
# - *On finitely many contexts it is below the floor of all text*, since $W$ is chosen to suit them. How far below is
#   measured: with a fixed $W$, the best states of *held-out* contexts give a value from above.

# %% [markdown]
# ## 9. Explore
#
# All floors at the parameters at the top of this notebook (the grey line marks `width`). In JupyterLab the cell gives
# sliders; elsewhere it gives the figure for these parameters.


# %%
def draw(alpha, features, width, zipf_exponent):
    """The floors at every width up to the number of features, the chosen width marked."""
    widths = np.unique(np.geomspace(1, features, 80).astype(int))
    with figures.style():
        figure, ((panel,),) = figures.panels()
        found = floors(features, alpha, widths, zipf_exponent)
        draw_floors(panel, widths, found, f"{features:,} features, α = {alpha:g}")
        panel.axvline(width, color="0.7", linewidth=0.8)
        panel.set_ylabel("loss, share of the total variance")
        figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=len(LINES))
    return figure


def explore():
    """Sliders that draw the figure anew."""

    def show(**values):
        with io.BytesIO() as picture, figures.style():
            draw(**values).savefig(picture)
            display(Image(picture.getvalue(), width=700))

    look = {"continuous_update": False, "layout": {"width": "32em"}, "style": {"description_width": "8em"}}
    return ipywidgets.interactive(
        show,
        alpha=ipywidgets.FloatSlider(setting.alpha, min=0.5, max=0.999, step=0.001, readout_format=".3f", **look),
        features=ipywidgets.IntSlider(setting.features, min=10, max=40_000, **look),
        width=ipywidgets.IntSlider(setting.width, min=1, max=2048, **look),
        zipf_exponent=ipywidgets.FloatSlider(setting.zipf_exponent, min=0, max=2, step=0.01, **look),
    )


still = save(draw(setting.alpha, setting.features, setting.width, setting.zipf_exponent), "theory_floors")
explore() if "JPY_SESSION_NAME" in os.environ else still  # a notebook server's; who reads a copy moves no slider

# %% [markdown]
# ## 10. What holds, and what does not
#
# An identity makes $d^*$ a readout of $L_0$. The capacity $g$ has the right size near $\alpha\approx0.99$ for $\ell_1$
# decoding of random projections, where the paper says it comes from; it has the wrong shape for dense features, and no
# force as a bound on what other decoders do. A floor from pairs can be checked against trained models with nothing to
# fit (02). What width alone does to every student follows from the last state (section 8), not from a count of
# features. Whether the floor vanishes at $d^*$ is a question for trained models too. The paper's limitation that "the
# hidden layer approximates a random projection" names no measure, and is not tested.
#
# ## In practice
#
# `papermill 01_theory.ipynb -p alpha 0.95 -p features 1000` writes a copy for other parameters to `runs/`. Sections 2,
# 5 and 9 follow the parameters; what is said of the paper's tables and of the toy model does not depend on them.

# %% [markdown]
# ## Exercises
#
# Put your answer in place of `None` and run the cell and its check.
#
# **1.** There are two sparsities at which the paper's formula gives ten features a dimension. Find both, to three
# digits, smaller first.

# %%
answer_1 = None  # (smaller, larger)


# %%
def check_1(answer):
    def right(a):
        return a[0] < 0.5 < a[1] and max(abs(capacity.g(a[0]) - 10), abs(capacity.g(a[1]) - 10)) < 0.1

    return exercises.check(1, answer, right, "draw g on a fine grid of α, on both sides of its minimum.")


check_1(answer_1)

# %% [markdown]
# **2.** An SAE finds $L_0 = 100$ active among $F=30\,000$ features. By which factor does $d^*$ change if $F$ doubles?
# And if $L_0$ doubles?

# %%
answer_2 = None  # (factor for F, factor for L0)


# %%
def check_2(answer):
    def ratio(more_features, more_active):
        once = capacity.critical_width_from_l0(30_000, 100)
        return capacity.critical_width_from_l0(30_000 * more_features, 100 * more_active) / once

    def right(a):
        return abs(a[0] - ratio(2, 1)) < 0.01 and abs(a[1] - ratio(1, 2)) < 0.01

    return exercises.check(2, answer, right, "write d* as L0 ln(F/L0); in one case only the logarithm changes.")


check_2(answer_2)

# %% [markdown]
# **3.** Which signal-to-noise ratio does $g$ suppose, if each dimension is a Gaussian channel that carries
# $\frac12\ln(1+\mathrm{SNR})$ nats?

# %%
answer_3 = None


# %%
def check_3(answer):
    return exercises.check(3, answer, lambda a: abs(np.log1p(a) / 2 - 1) < 0.01, "step 2 of section 2 put c = 1.")


check_3(answer_3)

# %% [markdown]
# **4.** Let active features be *exponentially* distributed with mean 1 instead of uniform. What does each of a pair
# (weights ±1, no bias) lose now? Give a function of $p$.

# %%
answer_4 = None  # e.g. lambda p: p**2 / 6


# %%
def check_4(answer):
    def simulated(p, samples=400_000):
        drawn = np.random.default_rng(1)
        x = drawn.exponential(size=(2, samples)) * (drawn.random((2, samples)) < p)
        return ((read_out(pair, x) - x) ** 2).mean()

    def right(loss):
        return all(abs(loss(p) / simulated(p) - 1) < 0.03 for p in (0.3, 0.6))

    hint = "the minimum of two exponential times is exponential again, with half the mean."
    return exercises.check(4, answer, right, hint)


check_4(answer_4)

# %% [markdown]
# **5.** Three equal features in two dimensions: a triangle (arrows 120° apart, no bias), or one own axis and a pair?
# Give the total loss of the triangle over $p^2$ for small $p$, and say which arrangement wins.

# %%
answer_5 = None  # (loss of the triangle over p², "triangle" or "axis and pair")


# %%
def check_5(answer):
    simulated = 3 * shape_loss(polygon(3), np.array([0.001]))[0] / 0.001**2

    def right(a):
        winner = "triangle" if simulated < 2 * capacity.pair_loss(0.999) / 0.001**2 else "axis and pair"
        return abs(a[0] / simulated - 1) < 0.05 and a[1] == winner

    hint = "with x₁ = u and x₂ = v active, the first is read as ReLU(u - v/2): off by min(u, v/2). Six such terms."
    return exercises.check(5, answer, right, hint)


check_5(answer_5)

# %% [markdown] tags=["solution"]
# ## Solutions

# %% [markdown] tags=["solution"]
# **1.** Two branches, one on each side of $1-1/e$.

# %% tags=["solution"]
left, right = np.linspace(0.001, 0.5, 100_000), np.linspace(0.7, 0.999, 100_000)
check_1([side[np.abs(capacity.g(side) - 10).argmin()] for side in (left, right)])

# %% [markdown] tags=["solution"]
# **2.** $\ln 600/\ln 300$ and $2\ln150/\ln300$: doubling the dictionary adds an eighth, doubling $L_0$ three quarters.

# %% tags=["solution"]
check_2((np.log(600) / np.log(300), 2 * np.log(150) / np.log(300)))

# %% [markdown] tags=["solution"]
# **3.** $\frac12\ln(1+\mathrm{SNR})=1$ gives $\mathrm{SNR}=e^2-1$, about 8 dB.

# %% tags=["solution"]
check_3(np.exp(2) - 1)

# %% [markdown] tags=["solution"]
# **4.** The minimum is exponential with mean $\frac12$, so its mean square is $2\cdot\frac14=\frac12$ and $e=p^2/2$.

# %% tags=["solution"]
check_4(lambda p: p**2 / 2)

# %% [markdown] tags=["solution"]
# **5.** $\Pr[\min(u,v/2)>m]=(1-m)(1-2m)$ for $m<\frac12$, so $\mathbb
# E\min(u,v/2)^2=\int_0^{1/2}2m(1-m)(1-2m)\,dm=\frac1{16}$. Six ordered pairs give $\frac38p^2$, against
# $2\cdot\frac16p^2=\frac13p^2$ for an axis and a pair: symmetry is no virtue.

# %% tags=["solution"]
check_5((3 / 8, "axis and pair"))
