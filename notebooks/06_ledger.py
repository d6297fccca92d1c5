# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 6 · The ledger: which of the paper's claims hold?
#
# *All sections of "Geometric Limits of Knowledge Distillation" (arXiv:2604.04037).*
#
# The other notebooks measure; this one judges. Each claim of the paper that a number can decide stands in one table:
# what the paper prints, what its own numbers give when recomputed, what we measured at each scale, and a verdict.
#
# - **For whom.** Anyone who wants to know what to believe, and anyone who wants to see how a paper can be audited by
#   code.
# - **You will learn** how claims become checks, why a verdict should be computed and never typed, what can be learnt
#   from a paper without running an experiment, and which of this paper's ideas survive.
# - **Before this**, a look at 01 to 05 helps; nothing is needed beyond means, straight-line fits and percentages.
# - **Time**: seconds at every scale. The tables in `data/results/` are read, nothing is trained.

# %% tags=["parameters"]
scale = "tiny"  # whose figures folder the summary figure goes to; every scale with results has its column

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

p = scales.validate("06_ledger", globals())

# %%
import numpy as np
import pandas as pd
from IPython.display import Markdown

from minwidth import capacity, figures, ledger, store
from minwidth.exercises import check

# %% [markdown]
# ## How a claim becomes a verdict
#
# `data/paper/` holds the paper's eight tables, digit by digit, and `claims.yaml`: each claim in our words, with the
# value the paper prints, a check by name, and the tolerance that check must meet. Here is one of them.

# %%
paper = ledger.load_paper()
claims = {claim["id"]: claim for claim in paper.claims}
claims["feature-death"]

# %% [markdown]
# A check is a short function in `ledger.py`. It gets the paper's tables, or our result tables, and returns a number.

# %%
found = ledger.feature_death(paper)
found

# %% [markdown]
# The number is then graded against the tolerance. There are three grades, *yes*, *loosely* and *no*:

# %%
ledger.grade(found.value, claims["feature-death"]["recompute"])

# %% [markdown]
# And grades make a verdict, from a closed list:
#
# | verdict | when |
# |---|---|
# | holds | recomputed within rounding, or measured in the paper's own setting within the tolerance |
# | holds at our scale | measured within the tolerance on smaller models than the paper's |
# | holds loosely | within a wider tolerance only, or at some scales and not at others |
# | does not hold | outside both; or a formula says otherwise |
# | contradicts the paper itself | other numbers the paper prints say otherwise |
# | not tested here | there is no result to judge by; the last column says what is missing |
#
# Two rules keep this fair. A claim about models needs a measurement: that the paper agrees with itself is not enough
# to call it true. And where the paper contradicts itself, no measurement of ours can mend that.

# %%
ledger.judge("paper", recomputed="no", measured=[], own_setting=False)

# %% [markdown]
# ## The verdicts

# %%
frame = ledger.ledger(paper)
counts = ledger.counts(frame)
figure = figures.ledger_verdicts(counts, ledger.COLORS, ledger.measured_scales(frame))
record = store.Record("ledger of data/paper and data/results", p.model_dump(), {}, {})
figures.save(figure, "ledger_verdicts", p.scale, record)

# %%
counts

# %% [markdown]
# By name:

# %%
names = frame.groupby("verdict").id.agg(", ".join)
Markdown("\n".join(f"- **{verdict}**: {names[verdict]}" for verdict in ledger.VERDICTS if verdict in names))

# %% [markdown]
# ## The table
#
# One row a claim, in the paper's order. The scales that have results have a column each.

# %% tags=["nbval-ignore-output"]
ledger.styled(frame)

# %% [markdown]
# ## Reading it
#
# ### Arithmetic: what is printed is mostly computed correctly
#
# Many columns of the paper's tables follow from others: the critical width from F and L0, per-token loss from the raw
# sum, parameters from widths. Each such cell is derived again, allowing every number it comes from to be off by half
# a unit of its last digit.

# %%
cells = pd.concat([ledger.rederive(paper, column).assign(column=column) for column in ledger.COLUMNS])
misses = cells[~cells.agrees]
Markdown(
    f"**{int(cells.agrees.sum())} of {len(cells)}** derived cells follow from the others. The exceptions: "
    + "; ".join(f"{cell.column}, printed {cell.printed:g}, is {cell.value:.4g}" for cell in misses.itertuples())
    + "."
)

# %% [markdown]
# So the trouble is not careless arithmetic. It lies between the sections, where a sentence uses a number in a way
# that another table forbids.
#
# ### Contradictions: what one can learn without an experiment

# %%
against_itself = frame[frame.verdict == "contradicts the paper itself"]
ledger.styled(against_itself, ["place", "claim", "printed", "recomputed", "why"])

# %% [markdown]
# Three of them matter most.
#
# **The fit that is called a prediction.** The paper says that B is measured, not fitted, so that one free parameter
# is left, and prints the slope and R² of a fit with *two*. Fix B as described and slope and R² are others:

# %%
rows = frame.set_index("id")
Markdown(f"{rows.recomputed['one-parameter']}; {rows.why['one-parameter']}.")

# %% [markdown]
# **The control that should show superposition.** A student as wide as its teacher still has a loss, and the paper
# blames the critical width, which lies above the teacher's. But its own Eq. 2 has almost nothing to lose there:

# %%
Markdown(f"{rows.why['control-superposition']}.")

# %% [markdown]
# **The exponent.** "Each doubling lowers the geometric component by 28 %" is the exponent of a power law fitted to
# the *losses*. The geometric component is Eq. 2, printed in Table 2, and that falls much faster, so the two describe
# different curves:

# %%
Markdown(f"{rows.why['fall-per-doubling']}.")

# %% [markdown]
# ### Is the right curve being fitted?
#
# R² = 0.993 on five points sounds like evidence for the geometry. Ask what else would do as well. Here are the
# paper's own five losses, fitted by straight lines in Eq. 2 and in three plain curves, two parameters each. The
# second number leaves one student out at a time and predicts it from the other four.

# %%
Markdown(f"{rows.why['affine-special']}.")

# %% [markdown]
# A high R² on a handful of falling points shows that the losses fall smoothly. It doesn't single out the reason.
#
# ### What our measurements say
#
# The claims about models, as far as there are results.

# %%
about_models = frame[frame.kind.isin(["toy", "sae", "distill", "probe"])]
judged = int((about_models.verdict != "not tested here").sum())
where = " and ".join(ledger.measured_scales(frame)) or "no scale yet"
Markdown(
    f"Of {len(about_models)} claims about models {judged} are judged; measured at {where}. The ones that matter most:"
)

# %% tags=["nbval-ignore-output"]
headlines = ledger.headlines(frame)
ledger.styled(headlines, headlines.columns)

# %% [markdown]
# ### Do the verdicts hang on our tolerances?
#
# Widen every tolerance around a printed value, or narrow it, and count the verdicts that change.

# %%
changed = {factor: ledger.ledger(ledger.with_tolerance(paper, factor)).verdict != frame.verdict for factor in (0.5, 2)}
Markdown(
    "; ".join(
        f"with {factor:g} times the tolerance **{int(change.sum())}** verdicts change"
        + (f" ({', '.join(frame.id[change])})" if change.any() else "")
        for factor, change in changed.items()
    )
    + "."
)

# %% [markdown]
# ### What is not tested, and why
#
# An honest ledger has empty rows. Some need a model or a budget we don't have, some a kind of record we don't keep,
# and one or two are worded so that no experiment could decide them.

# %% tags=["nbval-ignore-output"]
untested = frame[frame.verdict == "not tested here"]
ledger.styled(untested, ["id", "claim", "why"])

# %% [markdown]
# ## Exercises
#
# Each check says whether the answer is right, and gives a hint until it is. Put your answer in place of `None`.
#
# **1. Which latents?** Table 1 counts alpha over the *alive* latents of layer 12: alpha = 1 - 218.3/28,665. Count it
# over all 32,768 instead and keep F = 28,665. What is the critical width, and is the teacher, 1,024 wide, still "in
# superposition"? Give the width.

# %%
critical_width = None

# %% tags=["solution"]
critical_width = capacity.critical_width(28_665, 1 - 218.3 / 32_768)

# %%
check(
    1,
    critical_width,
    lambda answer: abs(answer - 957) < 1,
    "only alpha changes: 1 - L0/32,768; then F/g(alpha) with capacity.g or capacity.critical_width",
)

# %% [markdown]
# **2. How much does rounding explain?** The paper prints a mean probe change of 1.27 points, and the printed
# accuracies give 1.28. Each probe was tested on 800 passages, so each accuracy is a whole count out of 800. Use that
# to recover the counts behind "83.8" and "86.9", and give the difference between 86.9 and 84.0 in points, exactly.

# %%
difference = None

# %% tags=["solution"]
difference = 100 * (round(0.869 * 800) - round(0.840 * 800)) / 800

# %%
check(
    2,
    difference,
    lambda answer: abs(answer - 2.875) < 1e-6,
    "0.869 times 800 is nearly a whole number; round it, do the same for 0.840, and divide the difference by 8",
)

# %% [markdown]
# **3. A better curve.** Among the plain curves above, 1/sqrt(d) was best. Fit the paper's five losses affinely in
# d^-c for c = 0.1, 0.2, ... 1.5 by `calibration.affine`. Which c predicts a student that was left out best
# (`leave_one_out`)?

# %%
exponent = None

# %% tags=["solution"]
from minwidth import calibration

width, loss = paper.values["table2"].width, paper.values["table3"].raw_kl / 2048
exponent = max(np.arange(1, 16) / 10, key=lambda c: calibration.affine(width**-c, loss).leave_one_out)

# %%
check(
    3,
    exponent,
    lambda answer: abs(answer - 0.4) < 0.051,
    "calibration.affine(width**-c, loss).leave_one_out for each c, with loss = raw_kl / 2048; take the largest",
)

# %% [markdown]
# **4. A world in which the theory is right.** Suppose toy floors were exactly Eq. 2 (plus a speck, so that no error
# is divided by zero). Build such a `toy_points` table from `ledger.toy_grid()` and judge the toy claims by it. Which
# verdict does `toy-mape` get? If it were not "holds", the check would be unfair.

# %%
verdict = None

# %% tags=["solution"]
world = ledger.toy_grid()
world = world.assign(floor_mean=world.eq2 + 1e-12, floor_min=world.eq2 + 1e-12, seeds=20, total=(1 - world.alpha) / 3)
judged = ledger.ledger(paper, results=lambda s, name: world if (s, name) == ("tiny", "toy_points") else None)
verdict = judged.set_index("id").verdict["toy-mape"]

# %%
check(
    4,
    verdict,
    lambda answer: answer == "holds",
    "the table needs floor_mean, floor_min, seeds and total; results is a function (scale, name) -> table or None",
)

# %% [markdown]
# **5. Judge a claim of your own.** Table 3's losses fall from each width to the next. Is the *share* lost at each
# step (1 - next/previous) constant, as a pure power law without asymptote would have it from 128 to 256 to 512? Give
# the grade of the two shares against "both within 0.02 of their mean", by `ledger.grade`.

# %%
grade = None

# %% tags=["solution"]
loss = paper.values["table3"].kl_per_token.to_numpy()[:3]
shares = 1 - loss[1:] / loss[:-1]
grade = ledger.grade(shares, {"near": float(np.mean(shares)), "within": 0.02})

# %%
check(
    5,
    grade,
    lambda answer: answer == "yes",
    "paper.values['table3'].kl_per_token holds the losses; grade(shares, {'near': mean, 'within': 0.02})",
)

# %% [markdown]
# ## What to take away
#
# - Most printed arithmetic is right. What fails are sentences that join numbers from different sections.
# - A claim about models is only as good as its control: the rival curve, the student as wide as its teacher, the
#   untrained probe.
# - Five falling points can be fitted by nearly anything. Ask for the rival curve, and for the point left out.
# - The verdicts above will change when better results are committed; nobody has to rewrite them.
