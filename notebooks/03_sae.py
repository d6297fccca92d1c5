# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3 · How many features does a teacher hold?
#
# **Paper**: section 5 and appendix D, with Tables 1 and 2 and Figures 4, 5 and 15.
#
# **For** readers who know what a residual stream is. Notebook 01 derives the capacity $g$ and the critical width $d^*$
# that are measured here.
#
# **You will learn**
# - how a sparse autoencoder (SAE) turns activations into a count $F$ of features, their sparsity $\alpha$ and their
#   importances $I_i$;
# - what decides $d^*$: the model, or a coefficient that somebody chose;
# - what floor Eq. 2 predicts for every width of a student, before any student is trained, and what simpler rules say;
# - how to measure any causal language model: `papermill 03_sae.ipynb -p teacher <hub name or folder> -p layer N`.
#
# **Time** on two cores: about two minutes at scale `tiny`, ten at `smollm2`. At `pythia-410m` the settings are the
# paper's own: 300 million tokens, for a GPU and a network.

# %% tags=["parameters"]
scale = "tiny"  # "tiny", "smollm2" or "pythia-410m": teacher, text and all that is None below
teacher = None  # another model: a folder, or a hub name with its commit, "owner/name@commit"
revision = None  # the commit of a hub name, if not given there
layer = None  # the layer that predicts floors: the stream after that block; 0 is the embedding
layers = None  # all layers measured
lam = None  # L1 coefficient, fixed before any student is trained
lams = None  # the other coefficients that are tried at `layer`
kind = None  # "l1" (the paper's) or "topk"
topk = None  # active latents a token, for "topk"
expansion = None  # latents a dimension
tokens = None  # of text to train on
steps = None  # training steps
batch = None  # tokens a step
learning_rate = None
held_out_tokens = None  # for statistics, from other documents
kl_tokens = None  # of these, for KL in nats
text = None  # "wheels", or The Pile as "owner/name@commit" or as a folder in its format
percent = None  # share of the documents that is read
length = None  # tokens a block
widths = None  # of students to predict
kappa = None  # of the log-capacity law
doubling = None  # train the default once more, for twice the steps
revive = None  # steps after which latents that were silent start again; 0: never
seed = None
plan = False  # show FLOPs, memory, disk and hours on `gpu`, and run nothing
gpu = None  # "H100", "A100", "L40S" or "RTX 4090"
processes = None  # devices of this machine that train together

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

p = scales.validate("03_sae", globals())

# %% [markdown]
# What this would take on a GPU can be asked for first: with `plan = True` the notebook ends here. With several
# `processes`, a device each, the work is done now; the cells below find it.

# %%
if p.plan:
    from minwidth.plan import end_with_plan

    end_with_plan(p)
if p.processes > 1:
    from minwidth import sae, training

    training.launch(p.processes, sae.measure, p)

# %%
import numpy as np
import pandas as pd
from IPython.display import Markdown

from minwidth import capacity, exercises, figures, sae, sensitivity, store
from minwidth.store import DATA

own = p.teacher == p.shape.teacher  # else this is a measurement of another model
table1 = pd.read_csv(DATA / "paper" / "table1_sae.csv")
table2 = pd.read_csv(DATA / "paper" / "table2_predicted_floors.csv")
said = pd.read_csv(DATA / "paper" / "text_numbers.csv").set_index("name").value

# %% [markdown]
# ## 1. The residual stream, cleaned
#
# A transformer's blocks read from and write to one vector per token, the **residual stream** $x\in\mathbb R^{d_T}$. A
# student of width $d_S$ must make do with fewer numbers. How many are needed depends on what the vector holds.
#
# Two things come before any counting. In most models a few tokens carry **massive activations**: the first one, some
# separators and line breaks have norms a hundred times the others', always in the same directions. Left in, they are
# nearly all of the variance. They go by a fixed rule: position 0, and any token whose norm exceeds ten times the
# median at any layer measured. The median comes from training text, so the rule is the same for every document.
#
# Then inputs are scaled to a mean norm of $\sqrt{d_T}$. The loss below weighs squared error against the sum of
# activations, so its coefficient means nothing until the scale is fixed. The paper does not state one.
#
# ## 2. The autoencoder
#
# The SAE explains $x$ by few of many **latents** $z_i\ge0$, each with a direction $w_i$ of unit length:
#
# $$z = \mathrm{ReLU}\big(W_\mathrm{enc}(x-b_\mathrm{pre})\big),\quad \hat x = W_\mathrm{dec}\,z+b_\mathrm{pre},\quad
# \mathcal L=\lVert x-\hat x\rVert^2+\lambda\sum_i z_i .$$
#
# The first term asks for a good copy, the second for few active latents, and **$\lambda$ sets the rate of exchange**.
# Nothing in the data says which $\lambda$ is right; keep that in mind. What is read off afterwards, on documents not
# trained on:
#
# | | | |
# |---|---|---|
# | $F$ | latents active on more than $10^{-5}$ of the tokens ("alive") | how many features |
# | $L_0$ | mean number of active latents per token | how many at once |
# | $\alpha$ | $1-L_0/F$ | their sparsity |
# | $I_i$ | $\mathbb E[z_i^2]$ | the importance of feature $i$ |
# | $d^*$ | $F/g(\alpha)$ | the critical width |
#
# One call does all of it: an SAE with the default $\lambda$ at each layer, one for each $\lambda$ at the layer that
# predicts floors, and the statistics. After the first steps about one latent in a hundred is active, so a step
# multiplies by the active ones only. That is exact, and several times faster.

# %% tags=["nbval-ignore-output"]
record = sae.measure(p)

# %%
measured, floors, curves = record["layers"], record["floors"], record["curves"]
d_teacher, default_lam = record["d_teacher"], record["lam"]
by_layer = measured[measured.lam == default_lam].sort_values("layer")
grid = measured[measured.layer == record["layer"]].sort_values("lam")
default = measured[measured["default"]].iloc[0]
left_out = record["left_out"]
Markdown(
    f"Measured at width d_T = {d_teacher}, on {default.documents} held-out documents, with {default.latents} latents. "
    f"Left out were {left_out['position 0']} tokens at position 0 and {left_out['massive']} with massive activations; "
    f"{default.held_out_tokens} tokens remain."
)

# %% [markdown]
# ## 3. Training
#
# Figure 4 of the paper: error falls first; then $\lambda$, which rises over the first tenth of the steps, closes one
# latent after the other. The last drop in the error comes as the learning rate goes to zero.

# %%
at_default = curves[curves.lam == default_lam]
figures.save(figures.fig04_sae_training(at_default), "fig04_sae_training", p.place, record)

# %% [markdown]
# Layer by layer (the paper's Figure 15), with the number of latents that fire at all within a stretch of training.
# The dotted line is all of them.

# %%
figures.save(figures.fig15_sae_layers(at_default, default.latents), "fig15_sae_layers", p.place, record)

# %%
deepest, shallowest = by_layer.iloc[-1], by_layer.iloc[0]
ratio = table1.mean_l0.max() / table1.mean_l0.min()
Markdown(
    f"The paper writes of its layer 8 that it is reconstructed a hundred times better and has L0 ≈ "
    f"{said.sae_l0_layer8:.0f}, as in its Figure 4. Its Table 1 has L0 = {table1.mean_l0[0]} there; no two of its "
    f"layers differ by more than a factor of {ratio:.2f}. With {said.sae_l0_layer8:.0f} active features, d* would be "
    f"{capacity.critical_width_from_l0(table1.alive_features[0], said.sae_l0_layer8):.0f}. "
    + (
        "Here too the shallowest layer is the easiest to reconstruct."
        if shallowest.fvu == by_layer.fvu.min() and len(by_layer) > 1
        else ""
    )
)

# %% [markdown]
# ## 4. Table 1
#
# The paper's rows and ours. *Alive* is $F$ as a share of all latents. *Unexplained* is the share of the variance that
# the reconstruction misses. *KL* is what it costs in nats per token (at $T=2$) if the model continues from the
# reconstruction; *of mean's* compares that with continuing from the mean of the stream. The paper reports neither.

# %% tags=["nbval-ignore-output"]
paper_rows = pd.DataFrame(
    {
        "model": "Pythia-410M (paper)", "layer": table1.layer, "F": table1.alive_features,
        "alive": table1.alive_features / said.sae_latents, "L0": table1.mean_l0, "alpha": table1.alpha, "g": table1.g,
        "d*": table1.critical_width, "d*/d_T": table1.critical_width / said.teacher_width,
    }
)  # fmt: skip
our_rows = pd.DataFrame(
    {
        "model": p.teacher if own else "teacher", "layer": by_layer.layer, "F": by_layer.alive,
        "alive": by_layer.alive / by_layer.latents, "L0": by_layer.l0, "alpha": by_layer.alpha, "g": by_layer.g,
        "d*": by_layer.d_star, "d*/d_T": by_layer.d_star / d_teacher, "unexplained": by_layer.fvu,
        "KL": by_layer.kl_spliced, "of mean's": by_layer.kl_spliced / by_layer.kl_ablated,
    }
)  # fmt: skip
digits = {"alive": "{:.2f}", "L0": "{:.1f}", "alpha": "{:.4f}", "g": "{:.1f}", "d*": "{:.0f}", "d*/d_T": "{:.2f}"}
digits |= {"unexplained": "{:.3f}", "KL": "{:.3f}", "of mean's": "{:.3f}"}
pd.concat([paper_rows, our_rows]).style.format(digits, na_rep="").hide(axis="index")

# %%
Markdown(
    f"At layer {default.layer}: α = {default.alpha:.3f} and d*/d_T = {default.d_star / d_teacher:.2f} "
    f"(d* between {default.d_star_low:.1f} and {default.d_star_high:.1f}, by drawing documents again). The student "
    f"as wide as the teacher should {'lack room' if default.d_star > d_teacher else 'have room to spare'}."
)

# %% [markdown]
# ### What goes into $d^*$
#
# With $\alpha = 1-L_0/F$ the critical width is, identically,
#
# $$d^* = F\,(1-\alpha)\ln\frac1{1-\alpha} = L_0\,\ln\frac F{L_0}.$$
#
# The number $F$ of features enters only through a logarithm. $L_0$ enters almost proportionally.

# %%
doubled = capacity.critical_width_from_l0(2 * default.alive, default.l0) / default.d_star
more_active = capacity.critical_width_from_l0(default.alive, 2 * default.l0) / default.d_star
over_all = capacity.critical_width_from_l0(said.sae_latents, table1.mean_l0[1])
alpha_all = 1 - table1.mean_l0[1] / said.sae_latents
Markdown(
    f"Twice the features would multiply d* by {doubled:.2f}, twice the activity by {more_active:.2f}. "
    f"The paper takes α over the alive latents. Over all {said.sae_latents:.0f} latents its layer 12 has "
    f"α = {alpha_all:.4f}, and {table1.alive_features[1]} / g(α) = "
    f"{capacity.critical_width(table1.alive_features[1], alpha_all):.0f}: below d_T = {said.teacher_width:.0f}, where "
    f"the paper has {table1.critical_width[1]}. Whether its teacher is in superposition hangs on that choice."
)

# %% [markdown]
# ## 5. Is $d^*$ a property of the model?
#
# So everything hangs on $L_0$, and $L_0$ on $\lambda$. The same layer of the same model, the same text, the same
# number of steps; only $\lambda$ differs:

# %%
figures.save(figures.sae_sensitivity(grid), "sae_sensitivity", p.place, record)

# %% tags=["nbval-ignore-output"]
columns = {"lam": "λ", "alive": "F", "l0": "L0", "alpha": "α", "d_star": "d*", "d_star_low": "low"}
columns |= {"d_star_high": "high", "fvu": "unexplained", "kl_spliced": "KL"}
shown = {"L0": "{:.1f}", "α": "{:.4f}", "d*": "{:.0f}", "low": "{:.0f}", "high": "{:.0f}", "λ": "{:g}"}
shown |= {"unexplained": "{:.3f}", "KL": "{:.3f}"}
grid[list(columns)].rename(columns=columns).style.format(shown).hide(axis="index")

# %%
above, below = grid[grid.d_star > d_teacher], grid[grid.d_star <= d_teacher]
bars = ((grid.d_star_high - grid.d_star_low) / grid.d_star).median()
crossing = (
    f"It lies above d_T = {d_teacher} up to λ = {above.lam.max():g} and below from λ = {below.lam.min():g} on"
    if len(above) and len(below)
    else f"It lies {'above' if len(above) else 'below'} d_T = {d_teacher} throughout"
)
Markdown(
    f"From λ = {grid.lam.min():g} to {grid.lam.max():g}, d* "
    f"{'falls steadily' if (np.diff(grid.d_star) < 0).all() else 'does not fall steadily'}, from "
    f"{grid.d_star.max() / d_teacher:.1f} to {grid.d_star.min() / d_teacher:.1f} times d_T. {crossing}. "
    f"{'The intervals over documents are far narrower than that' if bars < 0.5 else 'The intervals are wide'}: the "
    "spread is not noise. **Whether the teacher holds more features than it has room for is here a statement about λ, "
    "not about the model.**"
    if len(grid) > 1
    else "*Only one λ was tried.*"
)

# %% [markdown]
# ### And of everything else that somebody chose
#
# $\lambda$ is one of six such choices. The same measurement with one of the others changed at a time: the layer, the
# number of latents per dimension, how much distinct text was read, how long was trained, the seed; each for every
# $\lambda$ again. (`make sensitivity` makes the table that is read here.) The last panel has the floor that Eq. 2
# predicts for a student half as wide as the teacher; red is the measurement that all others depart from.

# %%
choices, choice_floors = (
    store.load_results(p.scale, name) if own else None for name in ("sae_sensitivity", "sae_sensitivity_floors")
)
if choices is None:
    picture = alone = Markdown("*Not measured here; `make sensitivity SCALE=...` does it for a scale's own teacher.*")
else:
    choices = sensitivity.with_floors(choices, choice_floors)
    sweeps = {choice: (name, sensitivity.along(choices, choice)) for choice, name in sensitivity.CHOICES.items()}
    sweeps = {choice: (name, rows) for choice, (name, rows) in sweeps.items() if rows[choice].nunique() > 1}
    origin = store.origin(p.scale, "sae_sensitivity")
    picture = figures.save(figures.sae_choices(choices, sweeps), "sae_choices", p.place, origin)
picture

# %% [markdown]
# Over each choice at the default of all others: the lowest and highest $d^*/d_T$ and the factor between them, at the
# default $\lambda$ and at most; the $\lambda$ at which $d^*=d_T$ (0 or infinity: below or above at every $\lambda$);
# and Eq. 2 at half the width relative to the narrowest student.

# %%
if choices is None:
    table = alone
else:
    spread = sensitivity.spread(choices, choice_floors).replace({"choice": {"lam": "λ"} | sensitivity.CHOICES})
    names = {"choice": "choice", "tried": "tried", "low": "d*/d_T from", "high": "to", "factor": "factor"}
    names |= {"worst": "at most", "crossing_low": "λ at d* = d_T from", "crossing_high": "to "}
    names |= {"left_low": "Eq. 2 from", "left_high": "to  "}
    table = spread.rename(columns=names).style.format(precision=2).hide(axis="index")
table

# %%
alone if choices is None else Markdown(sensitivity.about(choices, choice_floors))

# %% [markdown]
# A smaller $\lambda$ also reconstructs better, so one might ask for the $\lambda$ at which the copy is good enough.
# But no value of the error marks "enough": both curves in the right panel are smooth. The default $\lambda$ was fixed
# before any student was trained, and notebook 04 keeps to it.
#
# Is there at least an end to training? Here is the default autoencoder after the usual number of steps and after twice
# as many, the schedule stretched.

# %%
doubling = record["doubling"]
Markdown(
    "*Not measured with these parameters; set `doubling` to true.*"
    if len(doubling) < 2
    else f"Twice the steps take d* from {doubling.d_star.iloc[0]:.1f} to {doubling.d_star.iloc[1]:.1f}, with the "
    f"unexplained variance going from {doubling.fvu.iloc[0]:.3f} to {doubling.fvu.iloc[1]:.3f}. "
    + (
        "The copy gets no worse and d* smaller: how long one trains is a second knob."
        if doubling.d_star.iloc[1] < 0.97 * doubling.d_star.iloc[0]
        else "That is hardly a change: training has converged."
    )
)

# %% [markdown]
# ## 6. Importance, and the floor it predicts
#
# Eq. 2 lets a student of width $d_S$ keep the $\lfloor d_S\,g(\alpha)\rfloor$ most important features. The floor is
# the importance of the rest:
#
# $$L^*(d_S)=\sum_{i>\lfloor d_S\,g(\alpha)\rfloor} I_i .$$
#
# Eq. 2 as printed multiplies by $\mathbb E[x_i^2]$ as well. With $I_i=\mathbb E[z_i^2]$ that would count it twice, so
# it is left out, as the paper must have done for its Table 2. Its unit is squared activation, at our scale: all
# directions together have about $d_T$ of it.

# %%
tails = {layer: record[f"importance/{layer}/{default_lam:g}"] for layer in by_layer.layer}
paper5 = pd.DataFrame({"share": table2.width / said.teacher_width, "normalized": table2.normalized})
at_default = floors[floors.lam == default_lam].assign(d_teacher=d_teacher)
figures.save(figures.fig05_importance(tails, at_default, paper5), "fig05_importance", p.place, record)

# %% tags=["nbval-ignore-output"]
ours = floors[(floors.layer == record["layer"]) & (floors.lam == default_lam)].sort_values("width")
rows = pd.concat(
    [
        pd.DataFrame(
            {
                "model": "Pythia-410M (paper)", "d_S": table2.width, "d_S/d_T": table2.width / said.teacher_width,
                "kept": table2.kept_features, "dropped": table2.dropped_features, "Eq. 2": table2.predicted_floor,
                "normalized": table2.normalized,
            }
        ),
        pd.DataFrame(
            {
                "model": p.teacher if own else "teacher", "d_S": ours.width, "d_S/d_T": ours.width / d_teacher,
                "kept": ours.kept, "dropped": ours.dropped, "Eq. 2": ours.eq2, "low": ours.eq2_low,
                "high": ours.eq2_high, "normalized": ours.eq2 / ours.eq2.iloc[0],
            }
        ),
    ]
)  # fmt: skip
decimals = ["d_S/d_T", "Eq. 2", "low", "high", "normalized"]
rows.style.format(dict.fromkeys(decimals, "{:.3g}"), na_rep="").hide(axis="index")

# %%
narrowest = ours.iloc[0]
Markdown(
    f"At d_S = {narrowest.width:.0f} Eq. 2 keeps a share {narrowest.kept / default.alive:.3f} of the features and "
    f"predicts that {narrowest.eq2 / narrowest.total:.3f} of all importance is lost. The paper keeps "
    f"{table2.kept_features[0] / table1.alive_features[1]:.3f} at an eighth of the width. "
    + (
        "From the width on at which all alive features fit, Eq. 2 predicts no loss at all."
        if (ours.eq2 == 0).any()
        else "No width is wide enough for all."
    )
)

# %%
exponent, cliff = sae.power_tail(record["importance"])
Markdown(
    f"Along the middle of the tail, importance falls as rank to the power −{exponent:.1f}. "
    + (
        f"From rank {cliff} of {len(record['importance'])} on it lies below a tenth of that line: the cliff."
        if cliff
        else "There is no cliff: no rank from which on it stays below a tenth of that line."
    )
    + f" The paper reads an exponent of {said.importance_exponent:.2f} off its own, and a cliff near rank "
    f"{said.cliff_rank:.0f} of {table1.alive_features[1]}."
)

# %% [markdown]
# ## 7. Four predictions
#
# Eq. 2 is one way to turn a teacher into a floor. Others need no SAE or no theory:
#
# - **log capacity**: as Eq. 2, but with $1+\kappa\ln\frac1{1-\alpha}$ features a dimension, the law that the toy models
#   of notebook 02 follow;
# - **tail of the principal components**: the variance of the stream beyond its first $d_S$ directions;
# - **the cut student**: rotate the teacher's weights into the principal directions of its stream, keep the first $d_S$,
#   and read off the KL in nats *without training anything*. What training can reach is below: it is an upper bound on
#   the floor of such students, and it comes in the unit in which students are judged.
#
# The first three are in squared activation, so all are drawn relative to the narrowest student. (In squared activation
# the cut student's prediction *is* the tail, up to what later layers make of it.)

# %%
at_layer = floors[floors.layer == record["layer"]].merge(grid[["lam", "default"]], on="lam")
figures.save(figures.sae_predictions(at_layer, d_teacher), "sae_predictions", p.place, record)

# %%
half = at_layer[at_layer.width <= d_teacher / 2].groupby("lam").last()
share = half.eq2 / at_layer.groupby("lam").eq2.max()
Markdown(
    f"At half the teacher's width, the floor relative to the narrowest is "
    f"{ours[ours.width <= d_teacher / 2].pca_tail.iloc[-1] / ours.pca_tail.iloc[0]:.2f} by the principal components. "
    f"Eq. 2 says {share.max():.2f} with λ = {share.idxmax():g} and {share.min():.1g} with λ = {share.idxmin():g}. "
    "Notebook 04 trains the students and compares."
    if (share > 0).any()
    else ""
)

# %% [markdown]
# ## 8. What the features are
#
# Latents of stated ranks by importance, not picked by hand, and the held-out tokens that activate them most, each
# from another document. The token itself is between bars.

# %% tags=["nbval-ignore-output"]
features = record["features"]
context = features.before + " ▏" + features.token + "▕ " + features.after
examples = features.assign(context=context).groupby("rank", sort=True).context.apply(list)
for rank, lines in examples.items():
    frequency = features[features["rank"] == rank].frequency.iloc[0]
    print(f"feature {rank}, active on {frequency:.1%} of the tokens")
    print(*(f"    {line}" for line in lines), sep="\n")

# %% [markdown]
# ## 9. The tool
#
# All of this works for any causal language model:
#
# ```
# papermill 03_sae.ipynb -p teacher <folder, or owner/name@commit> -p layer 6
# papermill 03_sae.ipynb -p scale smollm2
# ```
#
# and ends in the verdict and the table below. A measurement of another model, or with other parameters, leaves the
# committed tables and figures alone: its own go to folders named `other`. `minwidth.saelens` writes the
# autoencoder as SAELens reads it, and reads theirs.

# %%
quality = default.kl_spliced / default.kl_ablated
advice = (
    "is below the teacher's width: by the paper's rule, students this wide would lose nothing"
    if default.d_star < d_teacher
    else "is above the teacher's width: by the paper's rule, every student loses features"
)
robust = "The other λ agree" if (grid.d_star < d_teacher).nunique() == 1 else "Other λ say the opposite"
ends = grid.iloc[[0, -1]]
reach = f"from λ = {grid.lam.min():g} to {grid.lam.max():g}, F goes from {' to '.join(map(str, ends.alive))}, α from "
reach += " to ".join(f"{alpha:.3f}" for alpha in ends.alpha)
reach += f" and d* from {' to '.join(f'{d_star / d_teacher:.1f}' for d_star in ends.d_star)} times d_T"
Markdown(
    f"**Verdict**, layer {default.layer} of {p.teacher if own else 'this model'}: at λ = {default.lam:g}, "
    f"F = {default.alive} features, α = {default.alpha:.3f} and d* = {default.d_star:.1f} (95 % of samples of "
    f"documents: {default.d_star_low:.1f} to {default.d_star_high:.1f}), where d_T = {d_teacher}. That {advice}. "
    f"{robust + ': ' + reach if len(grid) > 1 else 'Only one λ was tried'}. "
    f"The reconstruction misses {default.fvu:.2f} of the variance"
    + (" and costs little of the model's knowledge." if quality < 0.2 else "; a measurement this poor says little.")
)

# %% [markdown]
# The floor at each width, with 95 % intervals over documents where it comes from the autoencoder. The last column is
# in nats per token, at $T=2$: the KL of the student that was cut to that width and not trained.

# %% tags=["nbval-ignore-output"]
names = {"width": "width", "eq2": "Eq. 2", "eq2_low": "low", "eq2_high": "high", "log_capacity": "log capacity"}
names |= {"log_capacity_low": "low ", "log_capacity_high": "high ", "pca_tail": "tail of components"}
names |= {"kl_cut": "KL of the cut student (nats)"}
predictions = ours[[name for name in names if name in ours]].rename(columns=names)
predictions.style.format(precision=3, na_rep="cannot be cut").hide(axis="index")

# %%
store.save_results(p.place, "sae_layers", measured, record)
store.save_results(p.place, "sae_floors", floors, record)

# %% [markdown]
# ## What holds, and what does not

# %%
paper_widths = table1.critical_width
layer_spread = by_layer.d_star.max() / by_layer.d_star.min() - 1
heavy = record["importance"]
top = heavy[: max(1, len(heavy) // 100)].sum() / heavy.sum()
Markdown(
    f"- **Features are sparse**, α = {default.alpha:.3f}: holds, as far as an SAE can say; it is made sparse.\n"
    f"- **Importance has a heavy head**: holds. One latent in a hundred carries {top:.3f} of it.\n"
    f"- **d\\* > d_T, the teacher is in superposition**: "
    f"{'depends on λ, as shown' if len(above) and len(below) else 'the same at every λ tried'}.\n"
    f"- **d\\* hardly depends on the layer** (paper: {paper_widths.max() / paper_widths.min() - 1:.0%} from lowest to "
    f"highest): "
    + (
        "one layer was measured.\n"
        if len(by_layer) == 1
        else ("does not hold here.\n" if layer_spread > 0.25 else "holds here.\n")
    )
    + "- **A practical tool**: the numbers are quick to get. What they say of a student, notebook 04 finds out."
)

# %% [markdown]
# ## Exercises
#
# Put your answer in place of `None` and run the cell and its check.
#
# **1.** An SAE of a stream with $d_T=512$ has $F=4096$ alive latents. Which $L_0$ makes $d^*$ just equal to $d_T$?
# Give it to 1 %.

# %%
answer_1 = None


# %%
def check_1(answer):
    hint = "solve L0 ln(F/L0) = 512 by bisection between 10 and 1000; there, d* grows with L0."
    return exercises.check(
        1, answer, lambda a: abs(capacity.critical_width_from_l0(4096, a) / 512 - 1) < 0.01 and a < 1000, hint
    )


check_1(answer_1)

# %% [markdown]
# **2.** All inputs are multiplied by 3. By which factor must $\lambda$ grow so that the best autoencoder has the same
# $L_0$? (Decoder columns stay of unit length.)

# %%
answer_2 = None


# %%
def check_2(answer):
    return exercises.check(2, answer, lambda a: abs(a - 9 / 3) < 1e-6, "how do the two terms of the loss grow with x?")


check_2(answer_2)

# %% [markdown]
# **3.** A held-out sample has 50,000 tokens. What is the smallest number of activations on it with which a latent is
# alive, at the paper's threshold of $10^{-5}$? And how many tokens would it take before ten activations are needed?

# %%
answer_3 = None  # (activations, tokens)


# %%
def check_3(answer):
    def right(a):
        return a[0] / 50_000 > sae.ALIVE >= (a[0] - 1) / 50_000 and 9 / a[1] <= sae.ALIVE < 10 / a[1]

    return exercises.check(3, answer, right, "frequency must *exceed* the threshold: 1 in 50,000 is 0.00002.")


check_3(answer_3)

# %% [markdown]
# **4.** Which $\lambda$ would halve the $d^*$ of the smallest $\lambda$ tried? Interpolate between logarithms.

# %%
answer_4 = None


# %%
def check_4(answer):
    def right(a):
        halved = np.interp(np.log(a), np.log(grid.lam), np.log(grid.d_star / grid.d_star.max()))
        return abs(halved - np.log(0.5)) < 0.03

    hint = "np.interp wants rising x: take ln λ as a function of -ln d*, at half the largest d*."
    return exercises.check(4, answer, right, hint)


check_4(answer_4)

# %% [markdown] tags=["solution"]
# ## Solutions
#
# **1.** About 142: then each feature is active on 3.5 % of the tokens.

# %% tags=["solution"]
low, high = 10.0, 1000.0
for _ in range(50):
    middle = (low + high) / 2
    low, high = (middle, high) if capacity.critical_width_from_l0(4096, middle) < 512 else (low, middle)
check_1(low)

# %% [markdown] tags=["solution"]
# **2.** The squared error grows by $3^2$, the sum of activations by 3, so $\lambda$ must grow by 3.

# %% tags=["solution"]
check_2(3)

# %% [markdown] tags=["solution"]
# **3.** One activation, a frequency of $2\cdot10^{-5}$, is enough. From 900,000 tokens on, nine activations no longer
# exceed the threshold. A rare-feature count from a small sample is a count of accidents.

# %% tags=["solution"]
check_3((1, 900_000))

# %% [markdown] tags=["solution"]
# **4.** Where the curve is a straight line, $d^*$ is a power of $\lambda$.

# %% tags=["solution"]
check_4(np.exp(np.interp(-np.log(grid.d_star.max() / 2), -np.log(grid.d_star), np.log(grid.lam))))
