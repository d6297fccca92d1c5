# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4 · How low does distillation get, and what sets the floor?
#
# **Paper**: section 6 and appendices C and E, with Figures 6, 7, 16, 17, 18 and Tables 3, 4, 5, 8.
#
# **For** readers who know what a language model and a KL divergence are. Notebook 03 has measured the teacher's
# features; its Eq. 2 is the prediction that is tested here.
#
# **You will learn**
# - how a teacher is distilled *exactly* from disk, at a small part of the room its logits would take;
# - why a flat loss curve does not show a floor, and which test does;
# - what a ladder of students measures when heads and feed-forward layers shrink with the width, and when they do not;
# - whether Eq. 2 explains the ladder better than the logarithm of the width does.
#
# **Time** on two cores: about five minutes at scale `tiny`. At `smollm2` one width takes up to 25 minutes
# (`papermill 04_distill.ipynb -p width 512`) and the whole ladder hours; `pythia-410m` is the paper's own setting and
# wants GPUs. Whatever was trained before is found, and an interrupted run continues where it stopped.

# %% tags=["parameters"]
scale = None  # "tiny", "smollm2" or "pythia-410m"; None: the smallest whose teacher is as wide as `width`
width = None  # train only students of this width; None: the whole ladder
widths = None  # the ladder's widths; None, here and below: as the scale has it
random_widths = None  # those of its random students, if not all
ladders = None  # "random" (the paper's) and "width_alone"
seeds = None  # one student each
steps = None  # training steps; every student is trained once more for twice as many
batch = None  # blocks of text a step
parts = None  # in which a batch is computed, for a device that cannot hold it at once
length = None  # tokens a block
text = None  # "wheels", or The Pile as "owner/name@commit" or as a folder in its format
percent = None  # share of the documents that is read
learning_rate = None  # peak of the cosine, for a random student as wide as its teacher
rate_exponent = None  # narrower ones get (d_T / d_S) to this power times that
cut_rate = None  # share of it for students cut from the teacher's own weights
warmup = None  # steps
weight_decay = None
temperature = None  # of both distributions
objective = None  # "forward" or "reverse" KL, "hidden" (states matched too) or "cross_entropy" (of the text alone)
evaluations = None  # on held-out documents
held_out_blocks = None  # blocks an evaluation reads
floor_tolerance = None  # a floor moves by less than this share when the steps double
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

p = scales.validate("04_distill", globals())

# %% [markdown]
# What this would take on a GPU can be asked for first: with `plan = True` the notebook ends here. With several
# `processes`, a device each, the work is done now; the cells below find it.

# %%
if p.plan:
    from minwidth.plan import end_with_plan

    end_with_plan(p)
if p.processes > 1:
    from minwidth import distill, training

    training.launch(p.processes, distill.ladder, p)

# %%
import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown

from minwidth import calibration, controls, distill, exercises, figures, models, store
from minwidth.store import DATA

whole = p.width is None  # else the parts about a ladder have nothing to show
alone = Markdown("*This part is about a whole ladder; run the notebook without `width` to see it.*")
loss = distill.loss_name(p)
paper3 = pd.read_csv(DATA / "paper" / "table3_distillation_floors.csv")

# %% [markdown]
# ## 1. What is minimised
#
# A student with distribution $q$ learns to match its teacher's $p$ at every position of a text. Both are softened by a
# temperature $T$: with logits $z$, $p_T = \mathrm{softmax}(z/T)$. The loss is the forward Kullback-Leibler divergence
#
# $$\mathrm{KL}(p_T\,\|\,q_T) = \sum_v p_T(v)\,\ln\frac{p_T(v)}{q_T(v)} \quad\text{nats per token}.$$
#
# We leave out the factor $T^2$ that some training code multiplies in. The paper's raw numbers carry it, and are sums
# over 512 positions, so they are divided by $512\,T^2 = 2048$:

# %%
pd.DataFrame(
    {"width": paper3.width, "raw": paper3.raw_kl, "raw / 2048": paper3.raw_kl / 2048, "printed": paper3.kl_per_token}
).round(3)

# %% [markdown]
# ## 2. The teacher, from disk
#
# Thousands of training steps ask the same teacher about the same text. Its logits would fill a disk: one number for
# every word of the vocabulary, at every position. A common way out keeps the $k$ largest of them. Here is how much
# probability that keeps:

# %% tags=["nbval-ignore-output"]
teacher = models.load_teacher(p.shape.teacher)
distill.moments(teacher, p)  # the principal directions of its stream, which the second ladder of section 3 keeps
held_out = distill.read(teacher, p, "held_out")

# %%
kept = distill.top_share(teacher, held_out, (16, 64, 256), (1.0, p.temperature))
(100 * kept).round(0).astype(int).add_suffix(", %")

# %%
d, vocabulary = p.shape.width, p.shape.vocabulary
Markdown(
    f"At the temperature of distillation the 64 likeliest tokens hold only {kept.loc[64].iloc[-1]:.0%} of the "
    f"probability: a student trained on them would learn another distribution. We keep the teacher's **final hidden "
    f"state** instead, {d} numbers a token. Times the unembedding it gives all {vocabulary:,} logits exactly, at "
    f"1/{vocabulary / d:.0f} of their room, and one copy serves every width, seed and objective."
    + distill.about_room(p)
)

# %% [markdown]
# In 16 bits the states would take half of that. The KL between the teacher and the one rebuilt from rounded states says
# what it costs, beside floors of tenths of a nat; we store 32.

# %%
cost = distill.storage_cost(teacher, held_out, p.temperature)
Markdown("; ".join(f"{name}: below 10^{int(np.ceil(np.log10(kl)))} nats per token" for name, kl in cost.items()))

# %% [markdown]
# The loss is computed from hidden states too: a chunk of tokens has its logits formed in two reused buffers, its loss
# and both gradients taken, and is forgotten. The tokens × vocabulary tensors never exist.
#
# ## 3. Two ladders of students
#
# The paper's students are **random at the start**, and more than their width changes: heads and feed-forward layers
# shrink along (Table 8). A floor measured on them belongs to the whole smaller network.
#
# The second ladder changes **width alone**. Take the teacher itself, rotate its residual stream into its principal
# directions, and keep the first $d_S$ of them. Depth, heads and feed-forward width stay; at $d_S = d_T$ the student
# *is* the teacher and its loss is 0 before any training. If the theorem is about the width of the stream, this is
# the ladder to test it on.

# %%
table8 = distill.architectures(p)
table8.round({"ratio": 1})

# %%
pd.read_csv(DATA / "paper" / "table8_students.csv").drop(columns="corrected")  # the paper's

# %% [markdown]
# ## 4. Training
#
# AdamW, a linear warm-up, a cosine to zero; the loss is evaluated on documents that no training touches. Every student
# is trained **twice**: for $N$ steps, and from the start again for $2N$ with the schedule stretched. The next
# section tells why.

# %% tags=["nbval-ignore-output"]
record = distill.ladder(p)

# %%
table, curves = record["ladder"], record["curves"]
if whole:
    picture = figures.save(figures.fig06_distillation(curves, table, loss), "fig06_distillation", p.place, record)
else:
    picture = figures.save(figures.distill_student(curves, table, loss), f"distill_w{p.width}", p.place, record)
picture

# %%
uniform = table.uniform.iloc[0]
Markdown(
    "Dotted: the floor as the paper takes it, the mean over the last tenth of the evaluations. A student that gives "
    f"every token the same probability would have {uniform:.2f} nats; {p.held_out_blocks} blocks of {p.length} "
    f"held-out tokens are read, T = {p.temperature:g}."
)

# %% [markdown]
# ## 5. A flat curve is not a floor
#
# The curves above end flat. They would, wherever they end: the cosine has taken the learning rate to zero, and a model
# that no longer moves has a constant loss. Flatness is a property of the *schedule*.
#
# The test is to train longer. If twice the steps (with everything stretched, so that the end is as flat as before)
# give the same loss, it is a floor. If not, it is an upper bound on one, and the fall per doubling says how far from
# settled it is.

# %%
last = distill.longest(table)
shown = last[["ladder", "width", "seed", "untrained", "floor"]].copy()
shown[["untrained", "floor"]] = shown[["untrained", "floor"]].map(lambda loss: loss if loss > distill.SAME else 0.0)
shown["verdict"] = [distill.describe(fall, p.floor_tolerance) for fall in last.fall_per_doubling]
HTML(shown.to_html(index=False, float_format="{:.2g}".format))

# %%
if whole:
    picture = figures.save(figures.distill_doubling(table, loss), "distill_doubling", p.place, record)
picture if whole else alone

# %%
Markdown(distill.about_floors(last, pd.read_csv(DATA / "paper" / "text_numbers.csv").set_index("name").value))

# %% [markdown]
# The budget decides more than the level. Students of like width can stand in the wrong order until they have been
# trained long enough, the paper's "monotone" with them:

# %%
Markdown(distill.about_order(table)) if whole else alone

# %% [markdown]
# ### Table 3, ours beside the paper's

# %%
ours3 = last[last.ladder == p.ladders[0]].groupby("width")[["params", "raw_kl", "floor"]].mean().reset_index()
ours3 = ours3.assign(params_millions=ours3.params / 1e6, normalized=ours3.floor / ours3.floor.iloc[0])
columns = ["width", "params_millions", "raw_kl", "floor", "normalized"]
ours3[columns].round({"params_millions": 2, "raw_kl": 0, "floor": 2, "normalized": 2})

# %%
paper3[["width", "params_millions", "raw_kl", "kl_per_token", "normalized"]]

# %%
if whole:
    picture = figures.save(figures.fig16_training(curves, p.ladders[0], loss), "fig16_training", p.place, record)
picture if whole else alone

# %% [markdown]
# ## 6. The prediction
#
# Notebook 03 measured the teacher's features and computed Eq. 2 at every width, **before any student was trained**,
# with the L1 coefficient $\lambda$ of its autoencoder fixed in advance. The prediction is in importance units, the loss
# in nats; the paper compares them divided by their value at the narrowest width (Figure 17).

# %%
if whole:
    predicted = distill.predictors(p, p.widths)
    points = distill.against(table, predicted, p.ladders[0])
    paper2 = pd.read_csv(DATA / "paper" / "table2_predicted_floors.csv")
    paper = pd.DataFrame(
        {
            "width": paper3.width,
            "relative_width": paper3.width / paper3.width.max(),
            "predicted": paper2.predicted_floor,
            "observed": paper3.kl_per_token,
        }
    )
    picture = figures.save(figures.fig17_normalised(points, paper), "fig17_normalised", p.place, record)
picture if whole else alone

# %% [markdown]
# ### Two components? (Tables 4 and 5, Figure 7)
#
# The paper writes observed $= C\cdot L^* + B$, with $B$ read off the student as wide as its teacher. Three fits:
# a line through zero, the affine one with $B$ free, and the one with $B$ fixed at that student's loss.

# %%
if whole:
    fits = distill.fits(table, predicted)
    chosen = fits[(fits.ladder == p.ladders[0]) & fits.chosen]
    table4 = HTML(
        chosen[["fit", "slope", "baseline", "r2", "loo", "aicc"]].to_html(index=False, float_format="{:.2g}".format)
    )
table4 if whole else alone

# %%
pd.read_csv(DATA / "paper" / "table4_calibration.csv").drop(columns="corrected")  # the paper's

# %%
if whole:
    picture = figures.save(figures.fig07_decomposition(points, chosen, paper), "fig07_decomposition", p.place, record)
picture if whole else alone

# %%
if whole:
    table5 = distill.decomposition(points, chosen)
table5.round(3) if whole else alone

# %%
pd.read_csv(DATA / "paper" / "table5_decomposition.csv").drop(columns="corrected")  # the paper's

# %% [markdown]
# ## 7. Does it take an autoencoder to predict this?
#
# Any smooth falling curve fits a handful of points on another one. So the affine fit is given three rivals that know
# nothing of features: $\ln(d_T/d_S)$, $d_T/d_S - 1$, and the share of the residual stream outside its first $d_S$
# principal directions. Open circles: $R^2$ of the fit. Filled: $R^2$ of each point predicted by a fit to the *others*.

# %%
if whole:
    picture = figures.save(figures.distill_predictors(fits), "distill_predictors", p.place, record)
picture if whole else alone

# %%
Markdown(distill.compared(fits)) if whole else alone

# %% [markdown]
# ## 8. What is $B$?
#
# The paper calls $B$, the loss that remains at full width, a property of the architecture: "B cannot be reduced by
# width, only by changing the objective or depth." Two controls speak to that. The random student as wide as its teacher
# has the *same* architecture as the teacher, so its floor is 0 by construction: what remains is training. And the
# width-alone student of that width has loss 0 without any.

# %%
Markdown(distill.about_baseline(table)) if whole else alone

# %%
if whole:
    power = fits[(fits.ladder == p.ladders[0]) & (fits.fit == "power")]
    picture = figures.save(
        figures.fig18_summary(curves, table, points, paper, power.iloc[0] if len(power) else None),
        "fig18_summary",
        p.place,
        record,
    )
picture if whole else alone

# %%
if whole:
    store.save_results(p.place, "distill_ladder", table, record)
    store.save_results(p.place, "distill_curves", curves, record)
    store.save_results(p.place, "distill_fits", fits, record)
else:
    store.save_results(p.place, f"distill_w{p.width}", table, record)

# %% [markdown]
# ## 9. More steps, three seeds
#
# What follows takes an hour rather than minutes. `make controls` computes it once and goes on where it stopped; this
# notebook reads its tables. First the ladders again, at several times the steps and with three seeds.
# An arrow marks an upper bound and ends where another fall like the last one would lead; a bar marks a floor. The
# bars at the points span the seeds. Grey lines are references, which section 11 explains.

# %%
long, references = (store.load_results(p.scale, f"distill_{name}") for name in ("long", "references"))


def lacking(part):
    return Markdown(f"*Not measured at this scale: `python -m minwidth.controls {part} --scale {p.scale}` does it.*")


if long is not None:
    summary = distill.over_seeds(long, p.floor_tolerance)
    drawn = controls.with_cut(references, long)
    origin = store.origin(p.scale, "distill_long")
    picture = figures.save(figures.distill_long(summary, drawn), "distill_long", p.place, origin)
picture if long is not None else lacking("long")

# %%
Markdown(controls.about_long(summary)) if long is not None else None

# %% [markdown]
# The fits of sections 6 and 7 on these floors, means over seeds; `loo` is the $R^2$ of points left out:

# %%
long_fits = store.load_results(p.scale, "distill_long_fits")
if long_fits is not None:
    affine = long_fits[(long_fits.fit == "affine") & (long_fits.chosen | (long_fits.predictor != "eq2"))]
    table_long = HTML(affine[["ladder", "predictor", "r2", "loo"]].to_html(index=False, float_format="{:.2f}".format))
table_long if long_fits is not None else None

# %%
Markdown(distill.compared(long_fits)) if long_fits is not None else None

# %% [markdown]
# ### Is $B$ architecture or training budget?
#
# The random student as wide as its teacher, and the narrowest, after several numbers of training steps, the schedule
# stretched each time. If $B$ were a property of the architecture, the upper line would keep its height however long one
# trains.

# %%
budgeted = long is not None and (long.ladder == "random").any()
if budgeted:
    picture = figures.save(figures.distill_budget(long), "distill_budget", p.place, origin)
picture if budgeted else lacking("long")

# %%
Markdown(controls.about_budget(long, p.floor_tolerance)) if budgeted else None

# %% [markdown]
# ### The same of a pretrained model
#
# SmolLM2-135M, cut to its first principal directions and distilled back into them; and two students of the paper's
# kind, which start from random weights. Hours of a CPU give them few tokens, so the table says how many, and how much
# the last doubling still moved each. `low` and `high` hold 95 % over blocks of held-out text. After so few tokens, "a
# floor" says only that this doubling moved a student little: one that has hardly begun to learn passes the test too.

# %%
pretrained = store.load_results("smollm2", "distill_long")
if pretrained is not None:
    smol = scales.parameters("04_distill", "smollm2")
    ends = distill.longest(pretrained)
    ends = ends.assign(tokens=ends.steps * smol.batch * smol.length, fall=ends.fall_per_doubling.map("{:.0%}".format))
    ends[["untrained", "floor"]] = ends[["untrained", "floor"]].map(lambda loss: loss if loss > distill.SAME else 0.0)
    columns = ["ladder", "width", "tokens", "untrained", "floor", "low", "high", "fall", "verdict"]
    ends = HTML(ends[columns].to_html(index=False, float_format="{:.3g}".format))
ends if pretrained is not None else Markdown("*Not measured: `python -m minwidth.controls long --scale smollm2` does.*")

# %%
if pretrained is not None:
    settled = distill.over_seeds(pretrained, smol.floor_tolerance)
    origin = store.origin("smollm2", "distill_long")
    picture = figures.distill_long(settled, controls.with_cut(None, pretrained))
    picture = figures.save(picture, "distill_long", "smollm2", origin)
picture if pretrained is not None else None

# %%
smol_fits = store.load_results("smollm2", "distill_long_fits")
Markdown(
    controls.about_long(settled) + "\n\n" + distill.compared(smol_fits)
) if pretrained is not None and smol_fits is not None else None

# %% [markdown]
# ## 10. Does the objective matter?
#
# The theorem is about width, so a floor should be there whatever is minimised. Students of three widths learn from the
# reverse KL; from the forward one at other temperatures; from the forward one plus the squared error of a linear map
# from their final states to the teacher's; and from the text alone, by cross-entropy, without a teacher. **All are
# judged by the same held-out forward KL at T = 2**, divided here by that of students trained on just this. Bars span
# three seeds; at these few steps none is at its floor, so the comparison is one at equal budgets.

# %%
control = store.load_results(p.scale, "distill_controls")
if control is not None:
    origin = store.origin(p.scale, "distill_controls")
    picture = figures.distill_objectives(control, controls.OBJECTIVE_NAMES)
    picture = figures.save(picture, "distill_objectives", p.place, origin)
picture if control is not None else lacking("objectives")

# %%
scored = control is not None and (control.ladder == "random").any()
Markdown(controls.about_objectives(control)) if scored else None

# %% [markdown]
# Judged by the loss each was trained on (`own`, not comparable across rows), and by the cross-entropy of the text, the
# random students look like this; means over seeds, nats per token:

# %%
if scored:
    means = control[control.ladder == "random"].groupby(["width", "objective"])[["kl", "own", "cross_entropy"]].mean()
    scored_table = HTML(means.reset_index().to_html(index=False, float_format="{:.3f}".format))
scored_table if scored else None

# %%
Markdown(f"The teacher's own cross-entropy is {control.teacher_cross_entropy.iloc[0]:.2f} nats.") if scored else None

# %% [markdown]
# ## 11. What can $d$ numbers hold?
#
# Two references that train no student. Take the teacher's residual stream at one layer, squeeze it through $d$
# numbers, and let the teacher go on from what comes out. **PCA** keeps the first $d$ principal directions. The **wide
# ReLU decoder** reads $d$ numbers off the stream linearly, as any layer of a student would, but may use thousands of
# ReLUs to undo the squeezing: superposition, as far as this training finds it. They squeeze one layer, a student all
# of them; a student may also reorganise what it computes. So these are references for what a width can hold, **no
# bounds**.

# %%
both = long is not None and references is not None
if both:
    shown = references.pivot(index="width", columns="reference", values="kl")
    for name, students in summary.groupby("ladder"):
        shown[distill.LADDER_NAMES[name]] = students.set_index("width").floor
    shown = HTML(shown.where(shown > distill.SAME, 0.0).to_html(float_format="{:.3f}".format))
shown if both else lacking("long" if references is not None else "references")

# %%
Markdown(controls.about_references(references, summary)) if both else None

# %% [markdown]
# ## 12. Does a student inherit its teacher's sparsity?
#
# Theorem 1 gives the student the teacher's $\alpha$ and concludes that it holds $d_S\,g(\alpha)$ features. An
# autoencoder of each student's own stream counts them; all have as many latents as the teacher's. Its $\lambda$ is once
# more a convention: the `same` for all widths, or `relative` to the size of the stream (times $\sqrt{d_S/d_T}$).

# %%
inner = store.load_results(p.scale, "distill_features")
if inner is not None:
    found = inner.assign(per_width=inner.d_star / inner.width)
    columns = ["ladder", "width", "rule", "alive", "l0", "alpha", "fvu", "d_star", "per_width"]
    found = HTML(found[columns].to_html(index=False, float_format="{:.3f}".format))
found if inner is not None else lacking("features")

# %%
Markdown(controls.about_features(inner)) if inner is not None else None

# %% [markdown]
# ## Exercises
#
# Replace `None` and run the cell below it.
#
# **1.** Other code multiplies the loss by $T^2$ and sums it over the 512 positions of a sequence. At $T=2$ it
# reports 1,024 for a student. How many nats per token are that?

# %%
answer_1 = None


# %%
def check_1(answer):
    return exercises.check(1, answer, lambda a: abs(a - 0.5) < 1e-3, "undo both: the paper's 2,703 became 1.320.")


check_1(answer_1)

# %% [markdown]
# **2.** Why would one multiply by $T^2$ at all? Two words, teacher's logits $(2, 0)$, student's $(0, 0)$. What does
# $T^2\,\mathrm{KL}$ tend to as $T\to\infty$?

# %%
answer_2 = None


# %%
def check_2(answer):
    teacher_log = np.log(1 / (1 + np.exp(-np.array([2.0, -2.0]) / 1000)))
    limit = 1000**2 * (np.exp(teacher_log) * (teacher_log - np.log(0.5))).sum()
    hint = "expand ln(p / q) to second order in 1/T: half the variance, under the uniform distribution, of ..."
    return exercises.check(2, answer, lambda a: abs(a - limit) < 0.01, hint)


check_2(answer_2)

# %% [markdown]
# **3.** A student ends at 0.50 nats after $N$ steps and at 0.45 after $2N$. If the excess over its floor falls as
# $1/N$, where is the floor? And if it falls as $1/\sqrt N$?

# %%
answer_3 = None  # (floor under 1/N, floor under 1/sqrt(N))


# %%
def check_3(answer):
    def right(pair):
        return all(
            abs((0.50 - floor) - (0.45 - floor) * 2**power) < 2e-3 for floor, power in zip(pair, (1, 0.5), strict=True)
        )

    return exercises.check(3, answer, right, "the excess at N is 2, or √2, times the excess at 2N.")


check_3(answer_3)

# %% [markdown]
# **4.** The paper's affine fit of Eq. 2 to its five losses has $R^2 = 0.993$. Find a function that knows *nothing but
# the width* and does better: give $f(d)$ whose affine fit to Table 3 has a higher $R^2$.

# %%
answer_4 = None  # e.g. lambda d: 1 / d


# %%
def check_4(answer):
    def right(f):
        return calibration.affine(f(paper3.width.to_numpy(float)), paper3.kl_per_token).r_squared > 0.993

    return exercises.check(4, answer, right, "1/d falls too fast at first and ln d too slowly; try something between.")


check_4(answer_4)

# %% [markdown] tags=["solution"]
# ## Solutions

# %% [markdown] tags=["solution"]
# **1.** $1024/(512\cdot4)$.

# %% tags=["solution"]
check_1(1024 / (512 * 4))

# %% [markdown] tags=["solution"]
# **2.** With $\Delta$ the difference of the logits, $\mathrm{KL}\approx\frac1{2T^2}\mathrm{Var}(\Delta)$ under the
# uniform distribution: $\frac12\cdot1$. The factor keeps gradients of one size across temperatures.

# %% tags=["solution"]
check_2(0.5)

# %% [markdown] tags=["solution"]
# **3.** $F = 2\cdot0.45-0.50$, and $F=(\sqrt2\cdot0.45-0.50)/(\sqrt2-1)$: the same two
# numbers, two very different floors.

# %% tags=["solution"]
check_3((0.40, (2**0.5 * 0.45 - 0.50) / (2**0.5 - 1)))

# %% [markdown] tags=["solution"]
# **4.** $d^{-1/2}$ does. So would many others: five points on a smooth falling curve tell little about its cause.

# %% tags=["solution"]
check_4(lambda d: d**-0.5)
