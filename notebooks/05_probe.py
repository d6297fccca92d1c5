# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5 · What do coarse probes see?
#
# **Paper**: section 7 (linear probing), with Table 6 and Figure 8.
#
# **For** readers of notebook 04 who know logistic regression. Cross-validation and the bootstrap are used, not derived.
#
# **You will learn**
# - how to ask a model's hidden states whether a passage is French, a question, code, sport, law or medicine;
# - which six controls such a probe needs before its accuracy says anything about the *model*;
# - what the paper's Table 6 looks like beside those controls, and what "coarse concepts survive" is worth then.
#
# **You need** the students of notebook 04 at the same scale; at `tiny` missing ones are trained.
#
# **Time** on two cores: about three minutes at `tiny` once 04 has run, an hour at `smollm2`; `pythia-410m` wants a GPU.

# %% tags=["parameters"]
scale = "tiny"  # tiny, smollm2 or pythia-410m
concepts = None  # which of question, french, code, sport, legal, medical; None: all six
text = None  # "wheels", or The Pile as "owner/name@commit" or as a folder in its format
documents = None  # of The Pile, how many are looked through for passages
passages = None  # positives of a concept, and as many negatives
layer = None  # the residual stream after this layer is probed; None: the middle one
widths = None  # of the students to probe
tokens = None  # of each passage that the models read
splits = None  # 80/20 splits by document
train_students = None  # train students that 04_distill has not left
seed = None  # of the passages, the splits and the intervals

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

setting = scales.validate("05_probe", globals())
ladders = scales.parameters("04_distill", setting.scale)  # whose students are probed

# %%
import numpy as np
import pandas as pd
from IPython.display import Markdown

from minwidth import concepts as six
from minwidth import exercises, figures, probe, store
from minwidth.store import DATA

# %% [markdown]
# ## 1. Six questions to a hidden state
#
# The paper asks what the floor of distillation is made of. If a narrow student had lost whole concepts, a linear probe
# would find them gone. So for each concept it collects passages that have it and passages that do not, reads the hidden
# states at the middle layer, averages them over the passage, and fits a logistic regression. That is the whole
# instrument: one vector a passage, one hyperplane a concept.
#
# Everything hangs on the passages. If all French comes from one kind of document and all English from another, a probe
# can score without knowing any French. Ours are built against that:
#
# - both classes have the **same lengths**, and each source gives an equal share of its class;
# - negatives are **near misses**: parliaments in four languages against French meetings, docstrings against the code
#   they describe, other newsgroups against the sport groups, each profession's texts against the other's;
# - questions and statements come from the same sources and have **lost whatever ends them**: no question mark is seen;
# - passages are split **by document** (by meeting, by family of licences), never by passage.
#
# At `pythia-410m` the same is drawn from The Pile, whose subsets name code, law and medicine. French is told from the
# parliament's other languages by its function words, and sport by three words of it, so there the words alone must do
# well: mind that control.

# %% tags=["nbval-ignore-output"]
labelled = six.labelled(setting.passages, setting.seed, setting.text, setting.documents)

# %%
table = labelled["passages"]
table = table[table["concept"].isin(setting.concepts)]
main = table[table["set"] == "main"]
kind = {1: "positives from", 0: "negatives from"}


def sources(part):
    names = part["source"].value_counts().index
    return f"{len(names)} newsgroups" if len(names) > 8 else ", ".join(sorted(names))


overview = main.groupby(["concept", "label"]).apply(sources, include_groups=False).unstack()[[1, 0]]
overview.columns = [kind[label] for label in overview.columns]
overview["documents"] = main.groupby("concept")["group"].nunique()
overview.loc[setting.concepts].style.set_properties(**{"text-align": "left"})

# %%
second = len(table[table["set"] == "second"]) // 2
Markdown(
    f"Each concept has {setting.passages:,} positives and as many negatives. The models read the first "
    f"{setting.tokens} tokens of each, behind the token that ends a document; the mean is over the passage alone."
    + (
        f" Sport has a second set: {second} news passages filed under sport by their address and as many others. No "
        "probe is trained on it."
        if second
        else ""
    )
)

# %% [markdown]
# ## 2. The survey
#
# One call probes the teacher and the students, with all controls. For each of the splits, features are standardised by
# the training side, the penalty is chosen by cross-validation inside the training side (whole documents again), and the
# test side is touched once. Intervals are 95 % and resample **documents**: fifty passages of one meeting are not fifty
# independent tests.

# %% tags=["nbval-ignore-output"]
record = probe.survey(setting, ladders)

# %%
accuracy = record["accuracy"]
store.save_results(setting.place, "probe_accuracy", accuracy, record)
store.save_results(setting.place, "probe_layers", record["layers"], record)

students = accuracy[(accuracy["model"] == "student") & (accuracy["control"] == "none")]
missing = record.parameters["missing"]
Markdown(
    f"Probed: the teacher and {students.groupby(['ladder', 'width']).ngroups} students of widths "
    f"{', '.join(map(str, sorted(students['width'].unique())))}. "
    + (f"Not trained by notebook 04, so left out: {', '.join(missing)}." if missing else "None is missing.")
)

# %% [markdown]
# ### Table 6, the paper's and ours
#
# `random` students have the paper's recipe (random weights, heads and FFN scaled with the width); `width_alone` are the
# teacher itself with its residual stream cut, then distilled. The paper's students are at 12.5, 75 and 100 % of the
# teacher's width. Accuracies in per cent; chance is 50.

# %%
printed = pd.read_csv(DATA / "paper" / "table6_probes.csv")
printed = printed[printed["concept"].isin(setting.concepts)]


def named(rows):
    ladder = rows["ladder"].replace("none", "") + " " + rows["width"].astype(str)
    return rows.assign(name=ladder.where(rows["model"] == "student", "teacher"))


plain = named(accuracy[(accuracy["control"] == "none")])
ours = plain.pivot(index="concept", columns="name", values="accuracy").loc[setting.concepts, plain["name"].unique()]
names = printed["model"].where(printed["model"] == "teacher", printed["width"].astype(str))
theirs = printed.assign(name=names).pivot(index="concept", columns="name", values="accuracy_percent")
theirs = theirs.loc[setting.concepts, ["teacher", "128", "768", "1024"]]
side_by_side = pd.concat({"ours": 100 * ours, "paper (Pythia-410M)": theirs}, axis=1)
side_by_side.columns.names = [None, None]
side_by_side.style.format("{:.1f}")

# %%
reference = printed[printed["model"] == "teacher"].set_index("concept")["accuracy_percent"]
moved = printed[printed["model"] == "student"].assign(
    shift=lambda t: t["accuracy_percent"] - t["concept"].map(reference)
)
figures.save(figures.fig08_probes(plain, moved), "fig08_probes", setting.place, record)

# %% [markdown]
# The right-hand panel holds what the paper calls a reallocation of capacity: shifts of a few points. Every one of ours
# carries an interval, paired passage by passage with the teacher. How many exclude zero?

# %%
clear = students[(students["shift_low"] > 0) | (students["shift_high"] < 0)]
falls = clear[clear["shift"] < 0]

# %% tags=["nbval-ignore-output"]
by_student = 100 * students.groupby(["ladder", "width"])["shift"].apply(lambda shift: shift.abs().mean())
lines = [f"- {ladder}, width {width}: {change:.1f} points" for (ladder, width), change in by_student.items()]
Markdown(
    f"{len(clear)} of {len(students)} shifts exclude zero, {len(falls)} of them falls; at a 5 % error rate, about "
    f"{0.05 * len(students):.0f} would by chance. Mean absolute change over the concepts:\n\n" + "\n".join(lines)
)

# %% [markdown]
# ### Width, or training?
#
# A shift has two possible causes: the narrower state, and a distillation that has not finished. The paper's ladder
# holds the control: the student **as wide as its teacher** has no bottleneck. What it lost, width did not take.

# %% tags=["nbval-ignore-output"]
wide = students[(students["ladder"] == "random") & (students["width"] == setting.shape.width)]
thin = students[(students["ladder"] == "random") & (students["width"] == students["width"].min())]
if len(wide) and len(thin) and wide["width"].iloc[0] > thin["width"].iloc[0]:
    lost_wide, lost_thin = (rows.set_index("concept")["shift"] for rows in (wide, thin))
    without = int((wide["shift_high"] < 0).sum())
    both = (
        f"The full-width student changes by {100 * lost_wide.mean():+.0f} points on average, the narrowest by "
        f"{100 * lost_thin.mean():+.0f}. "
        + (
            "Part of every shift is training that is still missing: what a bottleneck took is at most the difference."
            if without
            else "Without a bottleneck no concept falls beyond its interval: what falls, falls by width."
        )
    )
else:
    both = "Without a full-width student and a narrower one of the paper's ladder, the two causes cannot be told apart."
Markdown(both)

# %% [markdown]
# ## 3. The controls
#
# A probe's accuracy belongs to three parties: the concept's words, the probe, and the model. Only what is left after
# the first two is about the model. So, for the same passages and splits:
#
# - **bag of words**: which of the 5,000 most frequent words the passage has, no model at all;
# - **embedding**: the same pooling at layer 0, where nothing has been computed yet;
# - **untrained**: the same student with random weights, before any step of distillation. Random networks carry their
#   input along, and a mean over a passage is rather like a bag of words (Wieting and Kiela, 2019);
# - **shuffled**: labels dealt at random (Hewitt and Liang, 2019, use word types; here a passage is the unit). It must
#   give chance; accuracy above it is *selectivity*;
# - **unseen source**: tested on sources that no passage of the training side came from, for both classes.

# %%
LABELS = {
    "none": "distilled student",
    "untrained": "the same student untrained",
    "embedding": "its embedding layer",
    "bag_of_words": "bag of words",
    "unseen_source": "distilled, tested on unseen sources",
    "shuffled": "labels shuffled",
}
ladder = "random" if "random" in set(students["ladder"]) else "width_alone"
if ladder == "width_alone":
    LABELS = {("cut" if name == "untrained" else name): label for name, label in LABELS.items()}
here = students[students["ladder"] == ladder]
narrow = accuracy[(accuracy["ladder"] == ladder) & (accuracy["width"] == here["width"].min())]
words = accuracy[accuracy["model"] == "none"]
beside = pd.concat([narrow, words[words["control"] == "bag_of_words"]])
figures.save(figures.probe_controls(beside, LABELS), "probe_controls", setting.place, record)

# %% [markdown]
# Now read Table 6 again. The paper's argument is that concepts *survive* because the accuracy is far above 50 %. But
# 50 % is what a probe gets that sees nothing. The accuracy that survival has to beat is that of the strongest control,
# which never saw a step of distillation or never saw a model at all.

# %%
FAIR = [name for name in probe.FAIR_CONTROLS if name in set(beside["control"])]


def verdict(student, control):
    if student["low"] > control["high"]:
        return "above"
    return "below" if student["high"] < control["low"] else "level"


rows = []
for concept, part in beside.set_index("control").groupby("concept", sort=False):
    best = part.loc[FAIR].sort_values("accuracy").iloc[-1]
    student = part.loc["none"]
    rows.append(
        {
            "concept": concept,
            "student": 100 * student["accuracy"],
            "selectivity": 100 * (student["accuracy"] - part.loc["shuffled", "accuracy"]),
            "best control": LABELS[best.name],
            "its accuracy": 100 * best["accuracy"],
            "the student is": verdict(student, best),
        }
    )
margins = pd.DataFrame(rows).set_index("concept")

# %% tags=["nbval-ignore-output"]
margins.style.format("{:.0f}", subset=["student", "selectivity", "its accuracy"])

# %% [markdown]
# *Selectivity* alone would not do: shuffled labels rule out that the probe memorises; they do not rule out that the
# words give the answer. The last column can.
#
# ### Every student
#
# Three widths on a few hundred passages are what minutes allow. `make probes` takes every student of both ladders, and
# at `tiny` the paper's 2,000 + 2,000 passages: this table is committed, and shown here. Open and pale: the same
# students before a step of distillation.

# %%
every = store.load_results(setting.scale, "probe_students")
if every is not None:
    origin = store.origin(setting.scale, "probe_students")
    picture = figures.save(figures.probe_students(every), "probe_students", setting.place, origin)
unmeasured = Markdown(f"*Not measured at this scale: `make probes SCALE={setting.scale}` does it.*")
picture if every is not None else unmeasured

# %%
Markdown(probe.about_students(every)) if every is not None else None

# %% [markdown]
# ### A pretrained model
#
# The same of SmolLM2-135M, on fewer passages. Its students are those of 04's longer ladders, which saw few tokens: cut
# from it and distilled back, and two of the paper's kind. Of the cut ones the question is what distillation adds.

# %%
pretrained = store.load_results("smollm2", "probe_students")
if pretrained is not None:
    origin = store.origin("smollm2", "probe_students")
    picture = figures.save(figures.probe_students(pretrained), "probe_students", "smollm2", origin)
not_pretrained = Markdown("*Not measured: `make probes SCALE=smollm2` does it.*")
picture if pretrained is not None else not_pretrained

# %%
Markdown(probe.about_students(pretrained)) if pretrained is not None else None

# %% [markdown]
# ## 4. Sources the probe has not seen
#
# A probe for law may have learned the voice of one publisher. So it is trained without, say, any licence or docstring,
# and tested on just these; sport is learned on newsgroups and tested on news. Beside the student stands the bag of
# words under the same trial.

# %%
unseen = narrow[narrow["control"] == "unseen_source"].set_index("concept")
seen = narrow[narrow["control"] == "none"].set_index("concept")
lexical = words[words["control"] == "bag_of_words_unseen_source"].set_index("concept")
transfer = pd.DataFrame(
    {
        "seen sources": seen["accuracy"],
        "unseen sources": unseen["accuracy"],
        "bag of words, unseen": lexical["accuracy"],
        "AUROC, seen": seen["auroc"],
        "AUROC, unseen": unseen["auroc"],
        "AUROC, bag of words, unseen": lexical["auroc"],
    }
).loc[[name for name in setting.concepts if name in unseen.index]]
transfer.style.format("{:.2f}")

# %%
if len(transfer):
    lost = (transfer["seen sources"] - transfer["unseen sources"]) / (transfer["seen sources"] - 0.5)
    worst = lost.idxmax()
    text_of_transfer = (
        f"On unseen sources {'every' if (lost > 0.2).all() else 'not every'} probe of the narrowest student loses more "
        f"than a fifth of what it had above chance; the most is lost by *{worst}*."
    )
Markdown(text_of_transfer if len(transfer) else "None of the chosen concepts has sources to hold out.")

# %% [markdown]
# What carries over is the concept; what does not was the source. Table 6 of the paper cannot tell the two apart: each
# subset of The Pile has its own subject *and* its own voice.
#
# ## 5. Does depth help?
#
# If concepts were computed, the curve would rise with depth. Where it starts high at layer 0 and stays, the embedding
# knew, and the layers carry it along.

# %%
layers = record["layers"]
by_words = words[words["control"] == "bag_of_words"].set_index("concept")["accuracy"]
figures.save(figures.probe_layers(layers, by_words), "probe_layers", setting.place, record)

# %%
smol_layers = store.load_results("smollm2", "probe_students_layers")
layers_known = smol_layers is not None and pretrained is not None
if layers_known:
    smol_words = pretrained[pretrained["control"] == "bag_of_words"].set_index("concept")["accuracy"]
    origin = store.origin("smollm2", "probe_students_layers")
    picture = figures.save(figures.probe_layers(smol_layers, smol_words), "probe_layers", "smollm2", origin)
picture if layers_known else not_pretrained

# %%
first = layers[layers["layer"] == 0].set_index("concept")
best = layers[layers["layer"] > 0].sort_values("accuracy").groupby("concept").last()
gains = best["low"] > first["high"].reindex(best.index)

# %% tags=["nbval-ignore-output"]
Markdown(
    "Depth adds something that the intervals can see for "
    + (", ".join(f"*{name}*" for name in setting.concepts if gains[name]) or "no concept")
    + f", out of {len(gains)} concepts."
)

# %% [markdown]
# ## 6. Single features: is there a staircase?
#
# Coarse probes cannot decide what the theorem says, as section 7.3 of the paper grants: it is about *features*. The law
# of section 3 is sharp: a student of width $d_S$ keeps the $F_S = d_S\,g(\alpha)$ most important features and drops the
# rest. So take the autoencoder of notebook 03, and read each of its features, linearly, from the student's state at
# the same token: is it active? The quality of that read-out (area under the ROC curve, on held-out documents) by rank
# of importance should be a step at $F_S$, from as good as the teacher's to chance. Two references: the teacher's own
# state, and the student before training.

# %% tags=["nbval-ignore-output"]
stairs = probe.staircase(setting, ladders)

# %%
binned = probe.by_rank(stairs)
shown = binned[binned["ladder"].isin([ladder, "none"])]
figures.save(figures.probe_staircase(shown), "probe_staircase", setting.place, stairs)

# %%
sizes = probe.step_sizes(stairs)
store.save_results(setting.place, "probe_staircase", binned, stairs)
store.save_results(setting.place, "probe_steps", sizes, stairs)
of_ladder = sizes[sizes["ladder"] == ladder].set_index(["state", "width"])
Markdown(
    "Below: what a student reads of the features as a share of what the teacher's own state gives, just before and "
    "just after $F_S$, and for the first and last tenth by importance. The law says 1 before and 0 after. Judged are "
    "the features that are active on enough held-out tokens."
)

# %% tags=["nbval-ignore-output"]
of_ladder[["kept", "before", "after", "first", "last"]].rename(columns={"kept": "F_S"}).style.format(
    {"F_S": "{:,.0f}"} | dict.fromkeys(["before", "after", "first", "last"], "{:.2f}"), na_rep="–"
)

# %%
finding = probe.about_steps(sizes[sizes["ladder"] == ladder])
Markdown(finding)

# %% [markdown]
# The same at every width of this ladder, from the committed table:

# %%
every_stair = store.load_results(setting.scale, "probe_students_staircase")
if every_stair is not None:
    origin = store.origin(setting.scale, "probe_students_staircase")
    drawn = every_stair[every_stair["ladder"].isin([ladder, "none"])]
    picture = figures.save(figures.probe_staircase(drawn), "probe_students_staircase", setting.place, origin)
picture if every_stair is not None else unmeasured

# %% [markdown]
# And SmolLM2's, with its students cut to a width and distilled back; "untrained" are those just cut:

# %%
smol_stair = store.load_results("smollm2", "probe_students_staircase")
if smol_stair is not None:
    origin = store.origin("smollm2", "probe_students_staircase")
    drawn = smol_stair[smol_stair["ladder"].isin(["width_alone", "none"])]
    picture = figures.save(figures.probe_staircase(drawn), "probe_students_staircase", "smollm2", origin)
picture if smol_stair is not None else not_pretrained

# %%
smol_steps = store.load_results("smollm2", "probe_students_steps")
if smol_steps is not None:
    smol_steps = smol_steps[smol_steps["ladder"] == "width_alone"]
Markdown(probe.about_steps(smol_steps)) if smol_steps is not None else None

# %% [markdown]
# ## 7. What "coarse concepts survive" is worth
#
# Summed up from the tables above, nothing typed in:

# %% tags=["nbval-ignore-output"]
above = [name for name, row in margins.iterrows() if row["the student is"] == "above"]
below = [name for name, row in margins.iterrows() if row["the student is"] == "below"]
lowest = narrow[narrow["control"] == "none"]["low"].min()
width = int(narrow["width"].iloc[0])
Markdown(f"""
- **{"Holds" if lowest > 0.5 else "Does not hold here"}**: that every concept stays above chance at width {width}: the
  lowest end of an interval is {100 * lowest:.0f} %. Of the shifts against the teacher, {len(students) - len(clear)} of
  {len(students)} are within noise.
- **{"Does not hold" if len(above) < len(margins) else "Holds"}**: that this shows what *distillation* kept. The
  narrowest student beats its strongest control for {", ".join(above) or "no concept"} and is beaten by it for
  {", ".join(below) or "none"}, out of {len(margins)}.
- **Undecided by such probes**: whether features are lost as the theorem says. The read-out of single features can tell.
  {finding}
""")

# %% [markdown]
# ## Exercises
#
# Put your answer in place of `None` and run the cell and its check.
#
# **1.** The paper tests on 800 passages a concept (20 % of 4,000). Two models that are *equally good*, with accuracy
# 0.75, are tested on 800 passages each, drawn independently. Which difference, in points, do they exceed in one trial
# of twenty?

# %%
answer_1 = None


# %%
def check_1(answer):
    drawn = np.random.default_rng(0).binomial(800, 0.75, (2, 200_000)) / 8
    limit = np.quantile(np.abs(drawn[0] - drawn[1]), 0.95)
    hint = "the variance of a share is p(1-p)/n; that of a difference is the sum of two; 95 % is 1.96 deviations."
    return exercises.check(1, answer, lambda a: abs(a - limit) < 0.3, hint)


check_1(answer_1)

# %% [markdown]
# **2.** Suppose we split *passages* 80/20 at random and not documents. For *french*, which share of the tested passages
# would have another passage of their own meeting or speech on the training side? Give an estimate from `main`.

# %%
answer_2 = None


# %%
def check_2(answer):
    groups = main[main["concept"] == main["concept"].iloc[0]]["group"].to_numpy()
    if "french" in setting.concepts:
        groups = main[main["concept"] == "french"]["group"].to_numpy()
    drawn, shares = np.random.default_rng(0), []
    for _ in range(50):
        test = drawn.random(len(groups)) < 0.2
        shares.append(np.isin(groups[test], groups[~test]).mean())
    hint = "a passage of a group of m has all its m - 1 companions on the test side with probability 0.2^(m-1)."
    return exercises.check(2, answer, lambda a: abs(a - np.mean(shares)) < 0.04, hint)


check_2(answer_2)

# %% [markdown]
# **3.** Write the area under the ROC curve as what it means: how often a positive scores above a negative, ties counted
# half.

# %%
answer_3 = None  # a function of (scores, labels), NumPy arrays


# %%
def check_3(answer):
    from sklearn.metrics import roc_auc_score

    drawn = np.random.default_rng(0)
    scores, labels = drawn.integers(0, 6, 60).astype(float), drawn.integers(0, 2, 60)
    hint = "compare scores[labels == 1][:, None] with scores[labels == 0] and take a mean."
    return exercises.check(3, answer, lambda f: abs(f(scores, labels) - roc_auc_score(labels, scores)) < 1e-9, hint)


check_3(answer_3)

# %% [markdown]
# **4.** Cover (1965): a hyperplane with a bias in $d$ dimensions can realise half of all labellings of up to $2(d+1)$
# points in general position. The paper trains each probe on 3,200 passages at $d_T = 1024$. Would a probe without a
# penalty fit *shuffled* labels of its training side perfectly, more often than not? And one on 1,600 passages? Give two
# booleans.

# %%
answer_4 = None


# %%
def check_4(answer):
    right = tuple(bool(count <= 2 * (1024 + 1)) for count in (3200, 1600))
    return exercises.check(4, answer, lambda a: tuple(map(bool, a)) == right, "compare each count with 2(d+1).")


check_4(answer_4)

# %% [markdown] tags=["solution"]
# ## Solutions

# %% [markdown] tags=["solution"]
# **1.** $1.96\sqrt{2\cdot 0.75\cdot 0.25/800}$, about four points. Compare it with the open markers of Figure 8.

# %% tags=["solution"]
check_1(100 * 1.96 * np.sqrt(2 * 0.75 * 0.25 / 800))

# %% [markdown] tags=["solution"]
# **2.** Groups of size $m$ contribute with $1-0.2^{m-1}$: nearly every passage of a meeting has companions in training.

# %% tags=["solution"]
chosen = main[main["concept"] == ("french" if "french" in setting.concepts else main["concept"].iloc[0])]
companions = chosen.groupby("group")["text"].transform("size") - 1
check_2((1 - 0.2**companions).mean())

# %% [markdown] tags=["solution"]
# **3.** All pairs at once.

# %% tags=["solution"]
check_3(lambda s, y: (np.sign(s[y == 1][:, None] - s[y == 0]) / 2 + 0.5).mean())

# %% [markdown] tags=["solution"]
# **4.** $2\cdot1025=2050$: no for 3,200, yes for 1,600. A shuffled control is no formality at such sizes, and neither
# is the penalty.

# %% tags=["solution"]
check_4((False, True))
