# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 8 · How narrow can *your* student be?
#
# *What the paper promises (arXiv:2604.04037, section 8): a practical tool that tells, before any training, how narrow a
# student of a given teacher can be. Here it is, for any causal language model, with other means than the paper's.*
#
# - **For whom.** Anyone about to spend GPU time on a student that is narrower than its teacher.
# - **You will learn** what no student of a width can get below, whatever its depth, data and training; what a student
#   starts from that is cut out of the teacher; what either costs; and what nobody can tell beforehand.
# - **Your own teacher**: `papermill 08_your_model.ipynb -p teacher <folder, .gguf file or owner/name>`, and
#   `-p target 0.1` for the loss that you would accept; `-p steps 200` also distils one width. It leaves this notebook
#   and a page without code, `runs/08_your_model__....html`.
# - **Before this**, nothing is needed but what a KL divergence and a residual stream are.
# - **Time** on two cores: a minute for the tiny teacher, six for SmolLM2-135M (`-p teacher smollm2`). A width
#   that was measured is found again, and an interrupted run goes on behind the last.

# %% tags=["parameters"]
scale = None  # whose sizes of samples are taken: "tiny", "smollm2" or "pythia-410m"; None: the teacher's own, or "tiny"
teacher = None  # a folder, a .gguf file, "owner/name" or "owner/name@commit" on the hub; None: the scale's
revision = None  # commit of a hub model; None: as the name says, else its current one
text = None  # "wheels", a folder of .txt, .jsonl(.zst, .gz) or .parquet, or a data set as "owner/name@commit"
percent = None  # share of its documents that is read
length = None  # tokens a block
temperature = None  # of both distributions
target = None  # nats per token that a student may lose
widths = None  # the students' widths; None: `eighths` of the teacher's
eighths = None
basis_blocks = None  # training blocks, for principal directions and for the contexts of the floor
blocks = None  # held-out blocks, on which students are measured
contexts = None  # training tokens that the floor is computed on
held_out_contexts = None  # and held-out ones
words = None  # of the vocabulary, the likeliest that the floor's lower end looks at
starts = None  # of its minimisation
floor_steps = None
steps = None  # for how many one width is distilled; None: none is
seed = None

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

p = scales.validate("08_your_model", globals())

# %% tags=["nbval-ignore-output"]
from contextlib import suppress

import numpy as np
import pandas as pd
import torch
from IPython.display import HTML, Markdown
from tqdm.auto import tqdm

from minwidth import bottleneck, cut, figures, kl, models, projection, store, stream, training
from minwidth import text as texts
from minwidth.exercises import check
from minwidth.measured import interval

teacher = models.load_teacher(p.teacher, p.revision or None)
widths = p.widths_of(teacher.model.config)
contexts = p.contexts or min(max(768, 4 * teacher.d), p.basis_blocks * p.length)  # four for each dimension
bottleneck.check_width(widths[-1], teacher.d, contexts)  # before anything is measured
if p.steps:
    cut.check_family(teacher.model.config)
train, _ = texts.spread(teacher.tokenizer, "train", p.basis_blocks, p.length, p.percent, p.text)
held_out, documents = texts.spread(teacher.tokenizer, "held_out", p.blocks, p.length, p.percent, p.text)
norms = projection.stream_norms(teacher.model)
basis = projection.stream_basis(teacher.model, stream.batches(train, "cpu"))

# %%
pd.Series(
    {
        "teacher": f"{p.teacher}, revision {teacher.revision}",
        "architecture": type(teacher.model).__name__,
        "width, layers": f"{teacher.d}, {teacher.layers}",
        "vocabulary": f"{teacher.model.get_input_embeddings().num_embeddings:,}",
        "norms that read the stream": f"{len(norms)}, {'LayerNorm' if norms[-1].centred else 'RMSNorm'}",
        "text": p.text,
        "tokens": f"{train.size:,} learnt from, {held_out.size:,} held out",
        "asked for": f"at most {p.target:g} nats per token at T = {p.temperature:g}",
    },
    name="",
).to_frame()

# %% [markdown]
# Loading has checked that the final states times the unembedding are the model's logits (with its own scale, bias or
# cap), and that no state depends on a later token.
#
# ## 1. A narrower student, without building it
#
# A transformer reads its residual stream through norms, and nothing else touches it. Which norms those are is found
# out rather than looked up: add a vector to the stream, hold the outputs of all norms, and the inputs that move by
# just that vector are the stream. A student whose stream is cut to $k$ directions then computes what the teacher does
# when the input of each of these norms is projected onto them. Here it is by hand, on one block of text:

# %%
width = widths[0]
keep = projection.kept(basis, width, norms[-1].centred).float()  # LayerNorm takes one direction out itself
block = torch.from_numpy(held_out[:1])

with torch.no_grad():
    of_teacher = teacher.model(block).logits
    hooks = [norm.module.register_forward_pre_hook(lambda _, given: (given[0] @ keep @ keep.T,)) for norm in norms]
    of_student = teacher.model(block).logits
    for hook in hooks:
        hook.remove()

log_p, log_q = ((logits / p.temperature).log_softmax(-1) for logits in (of_teacher, of_student))
by_hand = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())

kernel = projection.untrained(teacher.model, held_out[:1], keep, p.temperature, norms)
assert np.isclose(by_hand, kernel.kl.mean(), rtol=1e-4)
Markdown(f"At width {width} this block costs **{by_hand:.3f} nats** per token, by hand and by `projection.untrained`.")

# %% [markdown]
# At full width nothing may change, and where the family is known (`cut.FAMILIES`) the student can be built, saved and
# trained. It gives the same logits as the projection did:

# %%
whole = projection.untrained(
    teacher.model, held_out[:1], projection.kept(basis, teacher.d, norms[-1].centred), p.temperature, norms
)
assert np.abs(whole.kl).max() < 1e-4, "the teacher cut to its full width is not the teacher"

if teacher.model.config.model_type in cut.FAMILIES:
    student = cut.cut_to_width(teacher.model, basis, max(width, teacher.model.config.num_attention_heads))
    if student.config.hidden_size == width:
        with torch.no_grad():
            apart = (student(block).logits - of_student).abs().max() / of_student.abs().max()
        assert apart < 1e-3, "the student that is built is not the one that was measured"
    built = f"`cut.cut_to_width` builds it: {models.parameter_count(student):,} parameters at width {width}."
else:
    built = f"No {teacher.model.config.model_type} is built narrower here; what follows needs none."
Markdown(built)

# %% [markdown]
# ## 2. What no student passes, and what it starts from
#
# **The floor.** The logits of a student whose last state has $d$ numbers have rank $d$ over any set of contexts,
# however deep it is and however it was trained. The best matrix of that rank, fitted to the teacher's distributions
# with one free state a context, is a bound for all of them (`bottleneck`). *Low* is that bound on the contexts at
# hand; *high*, which uses held-out contexts, says how far above it the floor on all text may lie.
#
# **The start.** The student cut out of the teacher, before any training: a student of that width *exists* that loses no
# more. Training takes it down from there, and how far is what remains unknown. Of each width the KL and its interval
# over documents (over blocks, if the text is one document), and the student's own loss of the same text beside the
# teacher's:

# %% tags=["nbval-ignore-output"]
what = f"your_model/{texts.title(p.teacher)}"  # records: every measurement of a width, found again
pinned = {"teacher": teacher.revision} | p.model_dump(include={"text", "percent", "length", "basis_blocks", "blocks"})
pinned |= texts.pin(p.text)


def untrained(narrow):
    """KL and loss of each held-out token if the stream keeps so many directions; of the teacher if it keeps all."""
    directions = projection.kept(basis, narrow, norms[-1].centred) if narrow < teacher.d else None
    given = teacher.model, held_out, directions, p.temperature, norms
    key = f"{what}/w{narrow}", pinned | {"width": narrow, "temperature": p.temperature}
    return store.find_or_compute(*key, lambda: projection.untrained(*given)._asdict())


loss, rows = float(np.nanmean(untrained(teacher.d)["loss"])), []
for narrow in tqdm(widths, desc="untrained students", unit=" widths", leave=False):
    found = untrained(narrow)
    low, high = interval(found["kl"], documents.ravel())
    row = {"width": narrow, "kl": found["kl"].mean(dtype=float), "kl_low": low, "kl_high": high}
    rows.append(row | {"loss": np.nanmean(found["loss"]), "teacher_loss": loss})
ladder = pd.DataFrame(rows)

# %% [markdown]
# The floor of each width, and which of them it excludes:

# %% tags=["nbval-ignore-output"]
columns = ["width", "low", "low_low", "low_high", "high", "high_low", "high_high", "still_falling"]
floors = pd.DataFrame(columns=columns, dtype=float)
if not getattr(teacher.model.config, "final_logit_softcapping", None):  # capped, they are no matrix times a state
    given = p.model_dump(include={"temperature", "text", "length", "percent", "words", "starts", "seed"})
    given |= {"contexts": [contexts], "held_out": p.held_out_contexts, "blocks": [p.basis_blocks, p.blocks]}
    floors = bottleneck.ladder(teacher, widths, steps=p.floor_steps, **given)["table"]
    floors = floors.rename(columns={"converged": "still_falling"})[columns]

asked = p.model_dump(exclude={"scale", "teacher", "revision", "target", "eighths", "steps"})
asked |= {"widths": widths, "contexts": contexts}
ladder = ladder.merge(floors, "left", on="width")
record = store.find_or_compute(f"{what}/ladder", pinned | asked, lambda: {"table": ladder})
sure = ladder.low_low * (1 - 5 * ladder.still_falling)  # of what fifty more steps might still take
excluded = sure > p.target
tried = ladder.width[~excluded & (ladder.width >= teacher.model.config.num_attention_heads)]
tried = int(tried.min() if len(tried) else ladder.width.max())

# %% [markdown]
# **A try**, with `-p steps N`: the narrowest width that the floor does not exclude is cut out of the teacher and
# distilled, for N steps of eight blocks. The cell below is all that it takes; what is interrupted there goes on.

# %% tags=["nbval-ignore-output"]
batch = 8
rate = 0.1 / teacher.d  # at its peak: what is stable falls with the width
run = f"{what}/distilled-w{tried}", pinned | p.model_dump(include={"temperature", "steps", "seed"}) | {"width": tried}


def distil():
    """What the cut student of width `tried` loses after `p.steps` steps down its KL from the teacher."""
    student, matrix = cut.cut_to_width(teacher.model, basis, tried), models.unembedding(teacher.model)
    rows = p.steps * batch
    lessons = texts.token_blocks(teacher.tokenizer, "train", p.length, p.percent, p.text, rows)[:rows]

    def states(ids):
        with torch.no_grad():
            return models.final_hidden(teacher.model, ids)

    def loss(student, rows):
        ids = torch.from_numpy(lessons[rows].astype(np.int64))
        hidden, own = models.final_hidden(student, ids), models.unembedding(student)
        return kl.divergence(hidden, own, states(ids), matrix, p.temperature)

    judging = [(ids, states(ids)) for ids in stream.batches(held_out, "cpu")]

    @torch.no_grad()
    def judged(student):
        divergences, losses = [], []
        for ids, of_teacher in judging:
            hidden, own = models.final_hidden(student, ids), models.unembedding(student)
            divergences.append(kl.divergence(hidden, own, of_teacher, matrix, p.temperature, per_token=True).flatten())
            losses.append(kl.cross_entropy(hidden[:, :-1], own, ids[:, 1:], per_token=True).flatten())
        return torch.cat(divergences), torch.cat(losses)

    history = training.train(
        student,
        loss,
        evaluate=lambda student: float(judged(student)[0].mean()),
        rows=len(lessons),
        schedule=training.Schedule(p.steps, batch, rate, warmup=p.steps // 10, evaluations=10),
        seed=p.seed,
        checkpoint=store.work_folder(*run) / "checkpoint",
        progress=f"distilling width {tried}",
    )
    divergence, losses = judged(student)
    low, high = interval(divergence, documents.ravel())
    ends = {"trained": float(divergence.double().mean()), "trained_low": low, "trained_high": high}
    return ends | {"trained_loss": float(losses.mean()), "history": pd.DataFrame(history)}


trained = pd.DataFrame(columns=["width", "trained", "trained_low", "trained_high", "trained_loss"], dtype=float)
if p.steps:
    distilled = store.find_or_compute(*run, distil)
    trained.loc[0] = [tried, *(distilled[name] for name in trained.columns[1:])]
table = ladder.merge(trained, "left", on="width")

# %%
shown = table[["width", "low", "still_falling", "high", "kl", "kl_low", "kl_high", "loss", "trained"]]
shown = shown.dropna(axis="columns", how="all")
shown = shown.rename(
    columns={"low": "floor, low", "high": "floor, high", "kl": "cut, untrained", "loss": "its own loss"}
)
HTML(shown.to_html(index=False, float_format="{:.3f}".format, na_rep=""))

# %%
def word_frequencies(train, held_out, vocabulary):
    """Held-out loss in nats per token of word frequencies, mixed with the uniform as Witten and Bell do."""
    counts = np.bincount(train.ravel(), minlength=vocabulary)
    kinds = (counts > 0).sum()
    probability = (counts + kinds / vocabulary) / (counts.sum() + kinds)
    return float(-np.log(probability[held_out[:, 1:]]).mean())


of_three = word_frequencies(np.array([[0, 0, 0, 1]]), np.array([[2, 0, 1, 2]]), 3)  # a block's first is not scored
assert np.isclose(of_three, -np.log([11 / 18, 5 / 18, 2 / 18]).mean())  # (3 + 2/3) / 6 and so on

vocabulary = len(teacher.model.get_output_embeddings().weight)
unigram = word_frequencies(train, held_out, vocabulary)
Markdown(
    f"KL in nats per token at T = {p.temperature:g}; `kl_low` and `kl_high` hold 95 % over documents; `still_falling` "
    f"is the share by which the last ten steps of the minimisation lowered the floor's lower end. *Its own loss* is "
    f"the cut student's of the next token at T = 1, in which the teacher has **{loss:.2f}** and word frequencies "
    f"**{unigram:.2f}**."
    + (p.steps > 0) * f" *Trained* is the KL after {p.steps:,} steps."
    + (loss >= unigram)
    * "\n\n**This teacher does worse than word frequencies: wrong text, wrong tokenizer, or no BOS? Nothing "
    "that follows means anything.**"
)

# %%
figure, ((axis,),) = figures.panels()
blue, red = figures.PALETTE[0], figures.PALETTE[3]
axis.fill_between(table.width, table.low, table.high, color="0.85", label="where the floor of the last state lies")
axis.plot(table.width, table.low, color="0.4", **figures.OURS, label="its lower end: no student passes")
bars = (table.kl - table.kl_low, table.kl_high - table.kl)
axis.errorbar(table.width, table.kl, bars, color=blue, **figures.OURS, label="cut out of the teacher, untrained")
if p.steps:
    bars = (table.trained - table.trained_low, table.trained_high - table.trained)
    axis.errorbar(table.width, table.trained, bars, color=red, fmt="D", label=f"distilled for {p.steps:,} steps")
axis.axhline(p.target, color=red, linestyle="--", label=f"asked for: {p.target:g} nats")
axis.set(xlabel="width of the student, $d_S$", ylabel=f"KL, nats per token (T = {p.temperature:g})")
figures.plain_log(axis, "y")
axis.set_title(f"{p.teacher}, $d_T$ = {teacher.d}; {held_out.size:,} held-out tokens")
figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
figures.save(figure, "your_model_loss", p.place, record)

# %% [markdown]
# ## 3. What it costs
#
# The cut keeps depth, heads and feed-forward width; the paper's student (Table 8) shrinks its heads and feed-forward
# layers along, so it is smaller at the same width and has to learn everything. Parameters count the unembedding,
# which a cut student no longer shares with its embedding; FLOPs are two for each weight that multiplies, attention
# scores left out. Of a cut student that cannot be built they are its width's share of the teacher's, biases included;
# where a norm stands behind what a block writes (Gemma 2) they are not known.

# %%
def size_of(model):
    """Parameters, a tied embedding counted once, and FLOPs a token: two for each weight that multiplies."""
    weights = {module: getattr(module, "weight", None) for module in model.modules()}
    matrices = [w for m, w in weights.items() if getattr(w, "ndim", 0) == 2 and not isinstance(m, torch.nn.Embedding)]
    return models.parameter_count(model), 2 * sum(weight.numel() for weight in matrices)


def unbuilt(config):
    with torch.device("meta"):
        return size_of(models.from_config(config))


model, rows = teacher.model, []
uncut = dict(zip(("parameters", "flops"), size_of(model), strict=True))
head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
untied = uncut["parameters"] + (head is embedding) * head.numel(), uncut["flops"]
parts = [module for module in stream.blocks_of(model).modules() if not list(module.children())]
others = set(parts) - {norm.module for norm in norms}
shared = not any(projection.is_norm(module, teacher.d) for module in others)  # each matrix reads or writes the stream
shared = shared and all(parameter.ndim < 3 for parameter in model.parameters())  # experts may be packed in three axes

for narrow in widths:
    of_cut = [narrow / teacher.d * of_all if shared else np.nan for of_all in untied]
    with suppress(ValueError, RuntimeError):
        of_cut = unbuilt(cut.cut_config(model.config, narrow))
    of_paper = [np.nan] * 3
    nearest = sorted(range(scales.SMALLEST_HEAD, teacher.d + 1), key=lambda other, narrow=narrow: abs(other - narrow))
    for near in nearest[:32]:  # that divides into heads
        with suppress(ValueError, RuntimeError):
            of_paper = near, *unbuilt(models.student_config(model.config, near))
            break
    rows.append((narrow, *of_cut, *of_paper))
columns = ["width", "cut_parameters", "cut_flops", "paper_width", "paper_parameters", "paper_flops"]
costs = pd.DataFrame(rows, columns=columns)
table = ladder.merge(costs).merge(trained, "left", on="width")
if teacher.model.config.model_type in cut.FAMILIES and student.config.hidden_size == width:
    assert costs.cut_parameters[0] == models.parameter_count(student)
millions = costs.set_index("width")[["cut_parameters", "cut_flops", "paper_parameters", "paper_flops"]] / 1e6
HTML(millions.rename(columns=lambda name: f"{name.replace('_', ' ')}, million").to_html(float_format="{:.2f}".format))

# %%
figure, axes = figures.panels(2)
for axis, what, unit in zip(axes[0], ("parameters", "flops"), ("parameters", "FLOPs per token"), strict=True):
    of_cut, of_paper = table[f"cut_{what}"] / 1e6, table[f"paper_{what}"] / 1e6
    axis.plot(table.width, of_cut, color=figures.PALETTE[0], **figures.OURS, label="cut")
    axis.plot(table.paper_width, of_paper, color=figures.PALETTE[1], marker="s", label="the paper's student")
    axis.axhline(uncut[what] / 1e6, color="0.4", linestyle=":", label="the teacher")
    axis.set(xlabel="width, $d_S$", ylabel=f"{unit}, million")
    figures.plain_log(axis, "y")
figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
figures.save(figure, "your_model_costs", p.place, record)

# %% [markdown]
# ## 4. The answer

# %%
below = table[excluded].width.max()
above = table[table.kl_high <= p.target].width.min()
free = table[table.high_high <= p.target].width.min()
cost = table[table.width == above]

if table.low.isna().all():
    proved = "nothing, since this model caps its logits and its floor is not computed."
elif np.isnan(below):
    proved = f"none of these widths is excluded; the floor's lower end is below {p.target:g} nats at all of them."
else:
    proved = f"a last state of {below:.0f} numbers or fewer loses more than that, whatever student it belongs to."
if np.isnan(above):
    measured = f"none of these widths is enough; the widest, {table.width.max()}, loses {table.kl.iloc[-1]:.3f}."
else:
    measured = f"width {above:.0f} is enough, cut out of the teacher"
    if not np.isnan(size := cost.cut_parameters.iloc[0]):  # known of most architectures
        measured += f", with {size / 1e6:.2f} million parameters where it has {uncut['parameters'] / 1e6:.2f} million"
    measured += "."
last = "" if np.isnan(free) else f"From width {free:.0f} on the last state alone would allow it. "
if p.steps:
    row = table[table.width == tried].iloc[0]
    measured += (
        f"\n- **Distilled** for {p.steps:,} steps, width {tried} loses {row.trained:.3f} ({row.trained_low:.3f} to "
        f"{row.trained_high:.3f}) where it lost {row.kl:.3f}: {'enough' if row.trained_high <= p.target else 'not'}"
        f"{'.' if row.trained_high <= p.target else ' enough so far.'}"
    )
Markdown(
    f"**For at most {p.target:g} nats per token (T = {p.temperature:g}), how wide?**\n\n"
    f"- **Proved**, on these contexts and as far as the minimisation found its minimum: {proved}\n"
    f"- **Measured**, on held-out text and without training: {measured}\n"
    f"- **Not known**: what training gains between the two, and what the layers below the last state cost. {last}"
    "Only students trained there can tell. One with fewer layers, heads or a smaller FFN is bound by the same floor, "
    "and by nothing else on this page."
)

# %%
store.save_results(p.place, "your_model", table, record)
assert (table.low.isna() | (table.low <= table.kl_high)).all(), "a student below the floor of all students"

# %% [markdown]
# ## 5. A basis is a choice
#
# The stream was cut to one set of directions for all layers. Pruning by activation (Minitron, arXiv:2407.14679) keeps
# *channels* instead, those of largest mean square, and rotates nothing. SliceGPT (arXiv:2401.15024) takes a basis of
# its *own* wherever the stream is read, and pays with a $d_S \times d_S$ matrix between one place and the next. What
# rotation and locality are worth, untrained, on every fourth held-out block:

# %% tags=["nbval-ignore-output"]
centred, sites = norms[-1].centred, norms[-1].site + 1
moments = projection.stream_moments(teacher.model, stream.batches(train, "cpu"), each_site=True)
own = [projection.principal_basis(teacher.model, of_site) for of_site in moments]
strongest = projection.channel_basis(teacher.model, moments.mean(0))

rows = []
for row in table.itertuples():
    choices = {
        "channels": projection.kept(strongest, row.width, centred),
        "one basis": projection.kept(basis, row.width, centred),
        "one at each place": [projection.kept(of_site, row.width, centred) for of_site in own],
    }
    for name, directions in choices.items():
        found = projection.untrained(teacher.model, held_out[::4], directions, p.temperature, norms)
        parameters = row.cut_parameters + (name == "one at each place") * (sites - 1) * row.width**2
        rows.append({"width": row.width, "basis": name, "kl": found.kl.mean(), "parameters": parameters})
bases = pd.DataFrame(rows)
store.save_results(p.place, "your_model_bases", bases, record)
by_width = bases.pivot(index="width", columns="basis", values="kl")[list(choices)]
by_width["matrices between, million"] = (sites - 1) * by_width.index**2 / 1e6
HTML(by_width.to_html(float_format="{:.3f}".format))

# %%
figure, axes = figures.panels(2, sharey=True)
for axis, across in zip(axes[0], ("width", "parameters"), strict=True):
    for number, (name, of_basis) in enumerate(bases.groupby("basis", sort=False)):
        marker, dash = figures.STYLES[number]
        x = of_basis[across] / (1e6 if across == "parameters" else 1)
        axis.plot(x, of_basis.kl, dash, marker=marker, color=figures.PALETTE[number], label=name)
    axis.set(xlabel="width of the student, $d_S$" if across == "width" else "parameters, million")
    figures.plain_log(axis, "y")
axes[0, 0].set_ylabel(f"KL, nats per token (T = {p.temperature:g})")
figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
figures.save(figure, "your_model_bases", p.place, record)

# %% [markdown]
# Of the tiny teacher, rotation is worth little at width 16 (channels lose a tenth more) and most at 112 (three times
# as much). A basis at each place takes off 14 to 21 %; at equal parameters, with the matrices between, nothing of that
# is left from width 96 on. Of SmolLM2, on 512 tokens and without an interval, channels lose 1.4 to 1.9 times as much
# as one basis, and a basis at each place takes a quarter off at width 144 but adds 6 to 26 % from 288 on: what one
# place has cut, all later ones lack. What training leaves of these differences is in 04, section 4.

# %% [markdown]
# ## 6. What holds, what does not
#
# - The floor is a theorem about the *last state* on the contexts that were looked at. It needs no autoencoder, no
#   sparsity and none of the paper's assumptions; it says nothing of what the layers below can compute.
# - The cut is one student out of many. That it exists is certain, and that it loses what is shown; a better one of the
#   same width may well exist untrained, and surely does after training.
# - Both depend on the text. A student for other text needs this page made with that text (`-p text`).
# - The lower end rests on a minimisation that is not convex: more `starts` show whether they agree, and more `contexts`
#   raise it.

# %% [markdown]
# ## Exercises
#
# **1. What a direction is worth.** From the table: by how many nats does the untrained loss fall, on average, for each
# dimension between the two narrowest widths?

# %%
per_dimension = None

# %% tags=["solution"]
per_dimension = (table.kl[0] - table.kl[1]) / (table.width[1] - table.width[0])

# %%
check(
    1,
    per_dimension,
    lambda answer: abs(answer * (table.width[1] - table.width[0]) - (table.kl[0] - table.kl[1])) < 1e-6,
    "divide the difference of the first two entries of table.kl by that of table.width",
)

# %% [markdown]
# **2. Any directions?** Keep random directions instead of principal ones, at the narrowest width and on one block:
# draw a random orthonormal basis with `torch.linalg.qr`, take from it what `projection.kept` takes, and measure.
# (Under LayerNorm, make the columns zero-mean before `qr`.) How many nats?

# %%
random_kl = None

# %% tags=["solution"]
columns = torch.randn(teacher.d, width - norms[-1].centred, generator=torch.Generator().manual_seed(0))
columns = torch.linalg.qr(columns - norms[-1].centred * columns.mean(0))[0]
random_kl = projection.untrained(teacher.model, held_out[:1], columns, p.temperature, norms).kl.mean()

# %%
check(
    2,
    random_kl,
    lambda answer: answer > by_hand,
    "projection.untrained(teacher.model, held_out[:1], columns, p.temperature, norms).kl.mean()",
)

# %% [markdown]
# **3. Another question.** For which `target` would the second width of the table be enough, untrained, with 95 %
# confidence?

# %%
enough = None

# %% tags=["solution"]
enough = table.kl_high[1]

# %%
check(3, enough, lambda answer: abs(answer - table.kl_high[1]) < 1e-9, "the upper end of its interval, table.kl_high")
