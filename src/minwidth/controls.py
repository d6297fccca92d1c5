"""What 04_distill's ladders are held against beyond a notebook's minutes; every part ends in committed tables.

``long``: both ladders at more steps and three seeds, and the narrowest and widest students at a row of budgets.
``objectives``: students that learn from other losses, or from the text alone, judged by the ladder's own loss.
``features``: F, L0 and alpha of the students themselves, each by an autoencoder of its own.
``references``: what a d-dimensional code of one layer of the teacher costs in nats, linear or with a ReLU decoder.

``python -m minwidth.controls objectives`` runs one part, without a name all; ``--scale`` names another scale. Every
student is a record of its own with checkpoints: an interrupted command goes on where it stopped.
"""

import argparse
import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from minwidth import distill, errors, models, residual, sae, scales, store, training
from minwidth.distill import Job

log = logging.getLogger(__name__)

SEEDS = [0, 1, 2]
BUDGETS = (4, 2)  # of those steps, the fractions at which the narrowest and the widest student are trained too
OBJECTIVES: dict[str, dict[str, Any]] = {  # name -> what differs from the ladder's own, the first
    "forward": {},
    "reverse": {"objective": "reverse"},
    "hidden": {"objective": "hidden"},
    "forward_t1": {"temperature": 1.0},
    "forward_t4": {"temperature": 4.0},
    "cross_entropy": {"objective": "cross_entropy"},
}
OBJECTIVE_NAMES = {
    "forward": "forward KL, T = 2",
    "forward_t1": "forward KL, T = 1",
    "forward_t4": "forward KL, T = 4",
    "reverse": "reverse KL, T = 2",
    "hidden": "forward KL + states",
    "cross_entropy": "text alone",
}
DECODER = training.Schedule(  # of the wide ReLU decoder; a batch of tokens
    steps=1000, batch=512, learning_rate=2e-3, warmup=50, weight_decay=0.0, evaluations=10
)


# ---------------------------------------------------------------------------------------------- longer, and more seeds


def long(p: scales.Distill) -> store.Record:
    """The ladders of ``p.longer()``, the narrowest and widest random students at fewer steps too, and the fits.

    Tables: ``distill_long`` (a row a run, as ``distill.ladder``), ``distill_long_curves``, ``distill_long_fits``.
    """
    p = p.longer()
    widths = p.widths_of("random")
    ends = {widths[0], widths[-1]} if "random" in p.ladders and widths[-1] == p.shape.width else set()
    budgets = [Job("random", width, seed, p.steps // n) for width in ends for n in BUDGETS for seed in p.seeds]
    record = distill.ladder(p, budgets)
    fits = distill.fits(record["ladder"], distill.predictors(p, p.widths))
    store.save_results(p.scale, "distill_long", record["ladder"], record)
    store.save_results(p.scale, "distill_long_curves", record["curves"], record)
    store.save_results(p.scale, "distill_long_fits", fits, record)
    return record


# ---------------------------------------------------------------------------------------------------- other objectives


def objectives(p: scales.Distill) -> store.Record:
    """Students of three widths under each of ``OBJECTIVES``, all judged by the held-out loss of the first.

    Random students at three seeds, those cut from the teacher at one (only the order of their data is random; from the
    text alone none, since that control is to know no teacher).

    Table ``distill_controls``: ``kl`` is the ladder's own loss, nats per token, with 95 % over held-out blocks in
    ``low`` and ``high``; ``own`` the loss it was trained on; ``cross_entropy`` that of the text, beside the teacher's.
    """
    teacher = models.load_teacher(p.shape.teacher, device=training.state().device)
    todo = [(name, p.model_copy(update=change), job) for name, change in OBJECTIVES.items() for job in _jobs(p, name)]
    todo.sort(key=lambda item: -item[2].width)  # the most expensive first
    records = distill.students((other, job) for _, other, job in todo)
    parts = {"/".join(map(str, (name, *job))): r.key for (name, _, job), r in zip(todo, records, strict=True)}

    def compute() -> dict[str, Any]:
        text, of_text = distill.read(teacher, p, "held_out"), p.model_copy(update={"objective": "cross_entropy"})
        best = float(distill.losses(of_text, teacher, teacher.model, text).mean())
        rows = []
        for (name, other, job), record in zip(todo, records, strict=True):
            student = distill.trained(other, job, teacher)
            each = distill.losses(p, teacher, student, text)
            spread = 1.96 * each.std(ddof=1) / len(each) ** 0.5
            row = {"objective": name, "temperature": other.temperature} | job._asdict()
            row |= {"kl": each.mean(), "low": each.mean() - spread, "high": each.mean() + spread}
            row |= {"own": record["history"].held_out.iloc[-1], "uniform": record["uniform"]}
            row |= {"cross_entropy": distill.losses(of_text, teacher, student, text).mean()}
            rows.append(row | {"teacher_cross_entropy": best, "d_teacher": teacher.d})
        order = ["ladder", "width", "objective", "seed"]
        return {"controls": pd.DataFrame(rows).sort_values(order, ignore_index=True)}

    with distill.threads(p):
        record = store.find_or_compute(f"distill/{p.scale}/objectives", {"runs": parts}, compute)
    store.save_results(p.scale, "distill_controls", record["controls"], record)
    return record


def _jobs(p: scales.Distill, objective: str) -> list[Job]:
    widths = sorted({p.widths[0], p.widths[len(p.widths) // 2], p.widths[-1]})
    found = [Job("random", width, seed, p.steps) for width in widths for seed in SEEDS if "random" in p.ladders]
    if objective != "cross_entropy":
        found += [Job("width_alone", width, SEEDS[0], p.steps) for width in widths if width < p.shape.width]
    return found


# ----------------------------------------------------------------------------------------------- features of students


def features(p: scales.Distill, s: scales.Sae) -> store.Record:
    """F, L0, alpha and d* of the first seed's students of ``p.longer()`` and of the teacher, each by its autoencoder.

    All have as many latents as the teacher's, so that none is short of them. The L1 coefficient is a convention again:
    ``same`` for all, or ``relative``, times sqrt(d / d_T), which keeps the price of a latent at a given share of the
    stream's norm (the inputs' mean norm is sqrt(d)).

    Table ``distill_features``: a row a model and convention, with intervals over documents.
    """
    p = p.longer()
    teacher = models.load_teacher(p.shape.teacher, device=training.state().device)
    jobs = [Job(ladder, w, p.seeds[0], 2 * p.steps) for ladder in p.ladders for w in p.widths_of(ladder)]
    jobs = [job for job in jobs if job.ladder == "random" or job.width < teacher.d]  # else it is the teacher
    records = distill.students((p, job) for job in jobs)
    keys = {job: record.key for job, record in zip(jobs, records, strict=True)}
    shared = s.model_dump(exclude={"layers", "lams", "topk", "kind", "kappa", "doubling", "widths", "kl_tokens"})
    tables, found = [], {}
    for job in [None, *jobs]:
        name = "teacher" if job is None else f"{job.ladder}-w{job.width}"
        parameters = shared | {"model": teacher.revision if job is None else keys[job]}
        what = f"distill/{p.scale}/features-{name}"
        work = store.work_folder(what, parameters)

        def compute(job=job, work=work):
            model = teacher.model if job is None else distill.trained(p, job, teacher)
            every = _lams(s, model.config.hidden_size)
            return {"features": sae.describe(teacher._replace(model=model), s, every, work)}

        record = store.find_or_compute(what, parameters, compute)
        found[name] = record.key
        width = teacher.d if job is None else job.width
        rules = ["same", "relative"][: len(record["features"])]
        identity = {"ladder": "teacher" if job is None else job.ladder, "width": width, "rule": rules}
        tables.append(record["features"].assign(**identity, d_teacher=teacher.d))
    every = pd.concat(tables, ignore_index=True)
    every = every[[*identity, *(name for name in every if name not in identity)]]
    record = store.find_or_compute(f"distill/{p.scale}/features", {"runs": found}, lambda: {"features": every})
    store.save_results(p.scale, "distill_features", every, record)
    return record


def _lams(s: scales.Sae, width: int) -> list[sae.Settings]:
    """An autoencoder at the teacher's L1 coefficient and, where the model is narrower, one at the relative one."""
    lams = [s.lam, s.lam * (width / s.shape.width) ** 0.5][: 1 + (width < s.shape.width)]
    latents = s.expansion * s.shape.width
    return [sae.Settings(s.layer, lam, latents, s.steps, s.batch, s.learning_rate, s.seed) for lam in lams]


# ---------------------------------------------------------------------------------------------------------- references


class Stream(NamedTuple):
    """The teacher's residual stream at a layer, scaled as the autoencoders' inputs, and where losses are measured."""

    train: Float[Tensor, "tokens d"]
    held_out: Float[Tensor, "tokens d"]
    calibration: residual.Calibration
    reference: sae.Reference


class WideDecoder(nn.Module):
    """x -> a linear code of ``width`` numbers -> a linear decoder plus ``hidden`` ReLUs; at the start it is plain PCA.

    The code's numbers have unit variance at the start; the ReLUs' output weights begin at 0.
    """

    def __init__(self, x: Float[Tensor, "tokens d"], width: int, hidden: int, seed: int):
        super().__init__()
        mean, directions, variances = principal(x, width)
        generator = torch.Generator().manual_seed(seed)
        self.mean = nn.Parameter(mean)
        self.encoder = nn.Parameter(directions / variances.sqrt())
        self.linear = nn.Parameter((directions * variances.sqrt()).T.contiguous())
        self.up = nn.Parameter(torch.randn(width, hidden, generator=generator) / width**0.5)
        self.bias = nn.Parameter(torch.randn(hidden, generator=generator))
        self.down = nn.Parameter(torch.zeros(hidden, x.shape[1]))

    def forward(self, x: Float[Tensor, "tokens d"]) -> Float[Tensor, "tokens d"]:
        code = (x - self.mean) @ self.encoder
        return self.mean + code @ self.linear + torch.relu(code @ self.up + self.bias) @ self.down


def principal(x: Float[Tensor, "tokens d"], width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, first principal directions ``[d, width]`` and their variances, strongest first."""
    values, vectors = torch.linalg.eigh(torch.cov(x.T.double()))
    kept = slice(len(values) - width, None)
    variances = values[kept].flip(0).clamp(min=1e-9 * float(values[-1]))
    return x.mean(0), vectors[:, kept].flip(1).to(x), variances.to(x)


def references(p: scales.Distill, s: scales.Sae) -> store.Record:
    """KL in nats of the teacher continued from a d-dimensional code of its stream at one layer, at the ladder's widths.

    ``pca``: rank d. ``relu``: a linear encoder and a decoder with ``expansion`` x d_T ReLUs, trained to reconstruct the
    stream. One layer is squeezed, not all, and the rest of the teacher stays: these are references for what a width can
    hold, no bounds on what a student can reach. As for the autoencoders, position 0 and massive tokens stay as they
    are. Losses are on the blocks that students are evaluated on.

    Table ``distill_references``: reference, layer, width, kl, fvu.
    """
    text = {"layer", "expansion", "tokens", "held_out_tokens", "text", "percent", "length", "seed"}
    shared = s.model_dump(include=text) | {"schedule": DECODER._asdict()}
    shared |= {"teacher": models.teacher_revision(p.shape.teacher), "blocks": p.held_out_blocks, "t": p.temperature}
    stream = functools.cache(lambda: _stream(p, s))
    rows, found = [], {}
    for width in sorted(p.widths):
        parameters = shared | {"width": width}
        what = f"distill/{p.scale}/reference-w{width}"
        work = store.work_folder(what, parameters)
        with distill.threads(p):
            record = store.find_or_compute(
                what, parameters, lambda width=width, work=work: _reference(stream(), s, width, work / "checkpoint")
            )
        found[str(width)] = record.key
        for name in ("pca", "relu"):
            rows.append(
                {"reference": name, "layer": s.layer, "width": width, "d_teacher": p.shape.width} | record[name]
            )
    table = pd.DataFrame(rows).sort_values(["reference", "width"], ignore_index=True)
    record = store.find_or_compute(f"distill/{p.scale}/references", {"runs": found}, lambda: {"references": table})
    store.save_results(p.scale, "distill_references", table, record)
    return record


def _stream(p: scales.Distill, s: scales.Sae) -> Stream:
    teacher = models.load_teacher(p.shape.teacher, device=training.state().device)
    text = distill.read(teacher, p, "held_out")
    at_once = sae.ACTIVATION_BYTES // (4 * teacher.d)
    wanted = (("train", min(s.tokens, at_once)), ("held_out", min(s.held_out_tokens, at_once)))
    blocks = [sae.read_text(s, teacher, *part) for part in wanted]
    calibration = residual.calibrate(teacher, blocks[0], [s.layer])
    parts = (residual.activations(teacher, part, [s.layer], calibration).layers[s.layer] for part in blocks)
    return Stream(*parts, calibration, sae.Reference(teacher, text.ids, text.states))


def _reference(stream: Stream, s: scales.Sae, width: int, checkpoint) -> dict[str, dict[str, float]]:
    mean, directions, _ = principal(stream.train, width)
    decoder = WideDecoder(stream.train, width, s.expansion * stream.train.shape[1], s.seed)
    training.train(
        decoder,
        lambda model, rows: (model(stream.train[rows]) - stream.train[rows]).square().mean(),
        lambda model: _fvu(stream, model),
        rows=len(stream.train),
        schedule=DECODER,
        seed=s.seed,
        checkpoint=checkpoint,
        progress=f"wide decoder, {width}",
    )
    with torch.no_grad():
        return {
            "pca": _cost(stream, s.layer, lambda x: mean + (x - mean) @ directions @ directions.T),
            "relu": _cost(stream, s.layer, decoder),
        }


def _cost(stream: Stream, layer: int, reconstruct: Callable[[Tensor], Tensor]) -> dict[str, float]:
    kl = sae.spliced_divergence(stream.reference, layer, stream.calibration, reconstruct)
    return {"kl": kl, "fvu": _fvu(stream, reconstruct)}


def _fvu(stream: Stream, reconstruct: Callable[[Tensor], Tensor]) -> float:
    """Share of the held-out stream's variance that a reconstruction misses."""
    x = stream.held_out
    missed = sum(float((reconstruct(part) - part).square().sum()) for part in x.split(8192))
    return missed / float((x - x.mean(0)).square().sum())


# ------------------------------------------------------------------------------------------------- what is said of it


def about_long(summary: pd.DataFrame) -> str:
    """How settled the long ladders are, and how much a seed matters (Markdown). ``summary``: ``distill.over_seeds``."""
    trained = summary[summary.floor > distill.SAME]
    floors, falling = int((trained.verdict == "floor").sum()), trained[trained.verdict != "floor"]
    said = [f"**{floors} of {len(trained)}** widths that had something to learn stand at a floor."]
    if len(falling):
        low, high = falling.fall.min(), falling.fall.max()
        said.append(f"At the others the last doubling took {low:.0%} to {high:.0%} off: upper bounds.")
    spread = (trained.spread / trained.floor).max()
    if np.isfinite(spread):
        said.append(f"Over {trained.seeds.max()} seeds the standard deviation is at most {spread:.1%} of the loss.")
        if len(falling) and spread < falling.fall.median():
            said.append("The budget moves this ladder by more than the seed does.")
    return " ".join(said)


def budgets(table: pd.DataFrame) -> pd.DataFrame:
    """Of the long ladder's rows: loss of the narrowest and the widest random student at each number of steps.

    ``steps, narrowest, widest, share`` (widest / narrowest), ``fall_narrowest, fall_widest`` (against half the steps);
    means over seeds, only the numbers of steps at which both were trained.
    """
    part = table[table.ladder == "random"]
    means = part.groupby(["steps", "width"]).floor.mean().unstack()[[part.width.min(), part.width.max()]].dropna()
    means.columns = ["narrowest", "widest"]
    falls = 1 - means / means.shift().where(means.index.to_series() == 2 * means.index.to_series().shift(), axis=0)
    return means.assign(share=means.widest / means.narrowest).join(falls.add_prefix("fall_")).reset_index()


def about_budget(table: pd.DataFrame, tolerance: float) -> str:
    """Whether the loss at full width is the architecture's or the budget's (Markdown); ``tolerance`` as of a floor."""
    found = budgets(table)
    first, last = found.iloc[0], found.iloc[-1]
    falls = found.fall_widest.dropna()
    text = (
        f"From {first.steps:.0f} to {last.steps:.0f} steps the loss at full width falls from {first.widest:.2f} to "
        f"{last.widest:.2f} nats, by {falls.min():.0%} to {falls.max():.0%} a doubling, and from {first.share:.0%} to "
        f"{last.share:.0%} of the narrowest student's."
    )
    if distill.verdict(falls.iloc[-1], tolerance) == "floor":
        return text + " The last doubling hardly moved it."
    if last.share < first.share:
        text += " A property of the architecture would stay."
    return text + " A *B* read off this student is a statement about its budget."


def about_objectives(table: pd.DataFrame) -> str:
    """Whether another objective ends lower under the ladder's own loss, and what the text alone teaches (Markdown)."""
    means = table[table.ladder == "random"].groupby(["width", "objective"]).kl.mean().unstack()
    ratios = means.div(means.forward, axis=0).drop(columns="forward")
    of_text, others = ratios["cross_entropy"], ratios.drop(columns="cross_entropy")
    best, worst = others.min(axis=1), others.max(axis=1)
    said = []
    for width in ratios.index:
        said.append(
            f"at width {width} between {OBJECTIVE_NAMES[others.loc[width].idxmin()]} ({best[width]:.2f} times) and "
            f"{OBJECTIVE_NAMES[others.loc[width].idxmax()]} ({worst[width]:.2f} times)"
        )
    text = f"Beside the ladder's own objective, the others end {'; '.join(said)}. "
    return text + f"Students that read the text alone end at {of_text.min():.2f} to {of_text.max():.2f} times its loss."


def with_cut(references: pd.DataFrame | None, long: pd.DataFrame) -> pd.DataFrame:
    """The references, and as another one (``cut``) the students that are the teacher cut to their width, untrained."""
    cut = long[long.ladder == "width_alone"].drop_duplicates("width")[["width", "untrained", "d_teacher"]]
    cut = cut.rename(columns={"untrained": "kl"}).assign(reference="cut")
    return cut if references is None else pd.concat([references, cut], ignore_index=True)


def about_references(references: pd.DataFrame, summary: pd.DataFrame) -> str:
    """Where the students end beside the references, at widths below the teacher's (Markdown)."""
    kl = references[references.width < references.d_teacher].pivot(index="width", columns="reference", values="kl")
    share = kl.relu / kl.pca
    said = [f"With the same numbers the ReLU decoder loses {share.min():.0%} to {share.max():.0%} of what PCA loses."]
    for ladder, group in summary.groupby("ladder"):
        floors = group.set_index("width").floor.reindex(kl.index).dropna()
        below = int((floors < kl.relu.reindex(floors.index)).sum())
        said.append(
            f"**{distill.LADDER_NAMES[ladder]}**: below the ReLU reference at {below} of {len(floors)} widths, below "
            f"PCA at {int((floors < kl.pca.reindex(floors.index)).sum())}."
        )
    return "\n\n".join(said)


def about_features(table: pd.DataFrame) -> str:
    """Whether students are as sparse as their teacher, and whether d* / d is one number (Markdown)."""
    teacher, students = table[table.ladder == "teacher"].iloc[0], table[table.ladder != "teacher"]
    said = [f"The teacher's autoencoder has α = {teacher.alpha:.3f} and d*/d = {teacher.d_star / teacher.width:.2f}."]
    for rule, group in students.groupby("rule", sort=False):
        ratio = group.d_star / group.width
        said.append(
            f"With the {rule} λ the students' α goes from {group.alpha.min():.3f} to {group.alpha.max():.3f} and their "
            f"d*/d from {ratio.min():.1f} to {ratio.max():.1f}."
        )
    return " ".join(said)


# -------------------------------------------------------------------------------------------------------- command line

PARTS: dict[str, Callable[[scales.Distill, scales.Sae], store.Record]] = {
    "long": lambda p, s: long(p),
    "objectives": lambda p, s: objectives(p),
    "features": features,
    "references": references,
}


def main(arguments: list[str] | None = None) -> None:
    """Run controls of the ladders of students and write their tables; what is found is not computed again."""
    parser = argparse.ArgumentParser(prog="python -m minwidth.controls", description=main.__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)}; all of them if left out")
    parser.add_argument("--scale", default="tiny", choices=list(scales.SCALES))
    options = parser.parse_args(arguments)
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}; it can be {', '.join(PARTS)}.")
    p, s = (scales.parameters(notebook, options.scale) for notebook in ("04_distill", "03_sae"))
    for part in options.parts or PARTS:
        record = PARTS[part](p, s)
        log.info("%s: %s", part, record.key)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with errors.in_one_sentence():
        main()
