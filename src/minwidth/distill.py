"""Distillation (paper, section 6): students trained on the exact offline teacher, their floors, and what explains them.

A floor is the mean held-out loss over the last tenth of the evaluations, the paper's rule. Under a cosine schedule that
tail is flat because the learning rate goes to 0, so flatness proves nothing. Each student is therefore trained a second
time for twice as many steps with the schedule stretched: only if that moves its floor by less than a stated share is it
called a floor, else it is an upper bound, still falling.

``python -m minwidth.distill --scale tiny --ladder random --width 32 --seed 0`` trains one student, both times.
"""

import argparse
import functools
import logging
import multiprocessing
import multiprocessing.connection
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor, nn
from tqdm.auto import tqdm

from minwidth import calibration, cut, errors, kl, models, projection, ranks, residual, runs, scales, training
from minwidth.paths import existing

log = logging.getLogger(__name__)

STATES_BYTES = 2**36  # an offline teacher up to this size is kept on disk; beyond it, it runs beside the student
BASIS_TOKENS = 32_768  # of training text, for the principal directions of the stream; of large models a quarter
SAME = 1e-6  # nats: a student this near to its teacher before any training is its teacher
LADDER_NAMES = {"random": "Random weights", "width_alone": "Width alone"}
RIVALS = {
    "log_width": "ln(d_T / d)",
    "inverse_width": "d_T / d - 1",
    "pca_tail": "the tail of the principal directions",
}
FIT_COLUMNS = ["ladder", "predictor", "lam", "chosen", "fit", "points", "r2", "loo", "aicc"] + [
    f"{name}{end}" for name in ("slope", "baseline", "scale", "exponent", "asymptote") for end in ("", "_low", "_high")
]


class Job(NamedTuple):
    """One training run of a student of a ladder."""

    ladder: str
    width: int
    seed: int
    steps: int


class Text(NamedTuple):
    """Token blocks and the teacher's final states on them."""

    ids: Int[np.ndarray, "blocks length"]  # memory-mapped, as they are stored
    states: Float[np.ndarray, "blocks length d_T"] | None  # None where the teacher runs beside the student


# ------------------------------------------------------------------------------------------------------------ inputs


def read(teacher: models.Teacher, p: scales.Distill, split: str) -> Text:
    """``train`` or ``held_out`` text with the offline teacher's states, computed once for all students.

    There is enough training text for the longest run without repetition, if the corpus has that much.
    """
    count = 2 * p.steps * p.batch if split == "train" else p.held_out_blocks
    blocks, name = _blocks(teacher, p, split, count), f"{p.scale}-{split}"
    if reason := why_beside(teacher, blocks, name):
        _say(reason)
        return Text(blocks, None)
    return Text(blocks, residual.offline_teacher(teacher, blocks, name))


def too_large(tokens: int, d: int) -> str:
    """Why the teacher's states on so many tokens are not kept on disk, in a sentence; empty if they are."""
    if 4 * tokens * d <= STATES_BYTES:
        return ""
    apart = f"{STATES_BYTES / 2**30:g} set apart for them"
    return f"{_would_fill(tokens, d)}, more than the {apart}, so it runs beside each student."


def _would_fill(tokens: int, d: int) -> str:
    return f"The teacher's states on {tokens:,} tokens would fill {4 * tokens * d / 2**30:,.4g} GiB"


def why_beside(teacher: models.Teacher, blocks: Int[np.ndarray, "blocks length"], name: str) -> str:
    """Why the teacher runs beside the student instead of leaving its states on disk, in a sentence; empty if it does.

    They stay within ``STATES_BYTES`` and within what the disk has free. Either way students learn from the same states,
    up to rounding.
    """
    if reason := too_large(blocks.size, teacher.d):
        return reason
    target = residual.states_file(teacher, blocks, name)
    there = target.stat().st_size if target.exists() else 0
    free = shutil.disk_usage(existing(target.parent)).free
    if 4 * blocks.size * teacher.d - there > free:
        return (
            f"{_would_fill(blocks.size, teacher.d)} and {target.parent} has {free / 2**30:.3g} GiB free, so it runs "
            "beside each student; make room there, or name another folder with MINWIDTH_RUNS, and it runs but once."
        )
    return ""


def about_room(p: scales.Distill) -> str:
    """What a reader must be told where the states on the training text are more than is set apart for them."""
    if not too_large(2 * p.steps * p.batch * p.length, p.shape.width):
        return ""
    return (
        f" At this scale that is still more than the {STATES_BYTES / 2**30:g} GiB set apart, so for training the "
        "teacher runs beside each student; only the states on held-out text are kept."
    )


@functools.cache
def _say(sentence: str) -> None:
    """Once, however many students it is about."""
    log.warning("%s", sentence)


def moments(teacher: models.Teacher, p: scales.Distill) -> runs.Record:
    """Second moments of the teacher's normalised residual stream on training text (``projection.stream_moments``)."""
    tokens = BASIS_TOKENS if teacher.d <= scales.ONE_THREAD else BASIS_TOKENS // 4

    def compute():
        blocks = _blocks(teacher, p, "train", tokens // p.length)
        batches = (blocks[start : start + 16] for start in range(0, len(blocks), 16))
        return {"moments": projection.stream_moments(teacher.model, batches).cpu().numpy()}

    parameters = {"teacher": teacher.revision, "tokens": tokens}
    parameters |= {"text": p.text, "length": p.length, "percent": p.percent}
    return runs.find_or_compute(f"distill/{p.scale}/moments", parameters, compute)


def _blocks(teacher: models.Teacher, p: scales.Distill, split: str, count: int) -> np.ndarray:
    return residual.token_blocks(teacher, split, p.length, p.percent, p.text, count)[:count]


def untrained(teacher: models.Teacher, p: scales.Distill, ladder: str, width: int, seed: int) -> nn.Module:
    """A student before training: ``random`` is the paper's ladder, ``width_alone`` the teacher cut to its width."""
    if ladder == "random":
        return models.make_student(teacher.model, width, seed)
    basis = projection.principal_basis(teacher.model, torch.from_numpy(moments(teacher, p)["moments"]))
    return cut.cut_to_width(teacher.model, basis, width)


# ------------------------------------------------------------------------------------------------------- one student


def student(p: scales.Distill, job: Job, teacher: models.Teacher | None = None) -> runs.Record:
    """The record of one training run of a student, found or computed; an interrupted run continues exactly.

    Its values: ``history`` (step, train, held_out; ``objective`` in nats per token), ``untrained``, ``uniform`` (of a
    guess that gives every token the same probability), ``floor``, ``tail_slope``, ``low`` and ``high`` (95 % of the
    final loss over held-out blocks), ``params``, ``d_teacher``.

    Raises:
        Diverged: the loss is not finite, or worse than that of a uniform guess.
        ValueError: the student cannot be made at this width.
    """
    what, parameters = key(p, job)
    if record := runs.find(what, parameters):
        return record
    with threads(p):
        teacher = teacher or models.load_teacher(p.shape.teacher, device=ranks.device())
        compute = functools.partial(_train, p, job, teacher, what, parameters)
        return ranks.find_or_compute(what, parameters, compute)


def key(p: scales.Distill, job: Job) -> tuple[str, dict[str, Any]]:
    """Name and parameters of a run's record: everything that its numbers depend on."""
    left_out = {"scale", "width", "widths", "random_widths", "ladders", "seeds", "steps", "floor_tolerance"}
    if p.objective == "forward":
        left_out.add("objective")  # the ladder's own goes without saying
    if p.parts == 1:
        left_out.add("parts")
    chosen = p.model_dump(exclude=left_out)
    chosen |= job._asdict() | {
        "teacher": models.teacher_revision(p.shape.teacher),
        "text_blocks": 2 * p.steps * p.batch,
    }
    return f"distill/{p.scale}/{job.ladder}-w{job.width}-s{job.seed}-n{job.steps}", chosen


@contextmanager
def threads(p: scales.Distill) -> Iterator[None]:
    """One thread for small models, which two would slow down; as many as torch found otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if p.shape.width <= scales.ONE_THREAD else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def objective(
    p: scales.Distill,
    model: nn.Module | None,
    ids: Tensor,
    states: Tensor,
    matrix: Tensor,
    each: bool = False,
    chunk: int | None = None,
) -> Tensor:
    """Loss a student learns from, in nats per token: its mean, or one number a token where ``each`` is set.

    ``forward`` and ``reverse`` are KL divergences at the temperature. ``hidden`` adds to the forward one the share of
    the teacher's final state that a linear map of the student's, ``model.match``, misses; the map is trained along.
    ``cross_entropy`` is that of the text's next token at T = 1 and asks no teacher.

    Args:
        model: the student, or None for a uniform guess.
        states: the teacher's final states on ``ids``.
        matrix: the teacher's unembedding.
        chunk: tokens whose logits are held at once (``kl``), chosen for the device if None.
    """
    if model is None:
        hidden, vocabulary = matrix.new_zeros(*ids.shape, 1), matrix.new_zeros(len(matrix), 1)
    else:
        hidden, vocabulary = models.final_hidden(model, ids), models.unembedding(model)
    if p.objective == "cross_entropy":
        cross_entropy = kl.cross_entropy_per_token if each else kl.cross_entropy
        return cross_entropy(hidden[:, :-1], vocabulary, ids[:, 1:], chunk=chunk)
    divergence = kl.divergence_per_token if each else kl.divergence
    direction = "reverse" if p.objective == "reverse" else "forward"
    value = divergence(hidden, vocabulary, states, matrix, p.temperature, direction=direction, chunk=chunk)
    if p.objective == "hidden":
        missed = states if model is None else states - model.match(hidden)
        value = value + missed.square().sum(-1) / states.square().sum(-1)
    return value if each else value.mean()


def _batch(teacher: models.Teacher, text: Text, rows) -> tuple[Tensor, Tensor]:
    device = teacher.model.device
    ids = ranks.sent(text.ids[rows].astype(np.int64), device)
    if text.states is None:
        with torch.no_grad():
            return ids, models.final_hidden(teacher.model, ids)
    return ids, ranks.sent(text.states[rows], device)


@torch.no_grad()
def losses(
    p: scales.Distill, teacher: models.Teacher, model: nn.Module | None, text: Text
) -> Float[np.ndarray, " blocks"]:
    """Mean of ``objective`` on each block of a text."""
    matrix, found = models.unembedding(teacher.model), []
    for rows in np.array_split(np.arange(len(text.ids)), -(-len(text.ids) // p.batch)):
        found.append(objective(p, model, *_batch(teacher, text, rows), matrix, each=True).mean(1).cpu())
    return torch.cat(found).numpy()


def _train(p: scales.Distill, job: Job, teacher: models.Teacher, what: str, parameters: dict) -> dict[str, Any]:
    text, held_out = read(teacher, p, "train"), read(teacher, p, "held_out")
    matrix = models.unembedding(teacher.model)
    model = untrained(teacher, p, job.ladder, job.width, job.seed)
    params = models.parameter_count(model)
    if p.objective == "hidden":
        model.match = nn.Linear(job.width, teacher.d, bias=False, device=matrix.device)
        nn.init.zeros_(model.match.weight)

    if matrix.is_cuda:
        models.compile_transformer(model)

    def loss(model, rows) -> Tensor:
        with torch.autocast(matrix.device.type, torch.bfloat16, enabled=matrix.is_cuda):
            return objective(p, model, *_batch(teacher, text, rows), matrix)

    guess = float(losses(p, teacher, None, held_out).mean())  # every token has the same probability
    start = float(losses(p, teacher, model, held_out).mean())

    def evaluate(model) -> float:
        value = float(losses(p, teacher, model, held_out).mean())
        if value > 2 * max(guess, start):
            raise errors.Diverged(
                f"The loss rose to {value:.3g} nats from {start:.3g}, a uniform guess having {guess:.3g}; lower the "
                f"learning rate ({rate(p, job):g})."
            )
        return value

    history = [{"step": 0, "train": float("nan"), "held_out": start}]
    if start > SAME:
        history += training.train(
            model,
            loss,
            evaluate,
            rows=len(text.ids),
            schedule=schedule(p, job),
            seed=job.seed,
            checkpoint=runs.work_folder(what, parameters) / "checkpoint",
            progress=f"{job.ladder} {job.width}, {job.steps} steps",
        )
    else:
        log.info("The student of width %d is its teacher before any training.", job.width)
    history = pd.DataFrame(history)
    final = losses(p, teacher, model, held_out)
    spread = 1.96 * final.std(ddof=1) / len(final) ** 0.5
    if ranks.is_first():
        weights = {name: value.detach().float().cpu().numpy() for name, value in model.named_parameters()}
        runs.store(f"{what}-weights", parameters, weights, seconds=0)
    return {
        "history": history,
        "untrained": start,
        "uniform": guess,
        "floor": floor(history),
        "tail_slope": tail_slope(history),
        "low": float(final.mean() - spread),
        "high": float(final.mean() + spread),
        "params": params,
        "d_teacher": teacher.d,
    }


def schedule(p: scales.Distill, job: Job) -> training.Schedule:
    """The paper's: AdamW, linear warm-up, cosine to 0; stretched as a whole where a run is longer."""
    return training.Schedule(
        steps=job.steps,
        batch=p.batch,
        learning_rate=rate(p, job),
        warmup=round(p.warmup * job.steps / p.steps),
        weight_decay=p.weight_decay,
        evaluations=p.evaluations,
        parts=p.parts,
    )


def rate(p: scales.Distill, job: Job) -> float:
    """Peak learning rate: the paper's constant, or rising with 1 / width, lower for students cut from their teacher."""
    wider = (p.shape.width / job.width) ** p.rate_exponent
    return p.learning_rate * wider * (p.cut_rate if job.ladder == "width_alone" else 1)


def trained(p: scales.Distill, job: Job, teacher: models.Teacher) -> nn.Module:
    """The student of a finished run, in eval mode and without gradients; trained first if it was not yet."""
    student(p, job, teacher)
    what, parameters = key(p, job)
    weights = runs.find(f"{what}-weights", parameters)
    if weights is None:
        raise errors.LostError(
            f"The weights of {runs.key_of(what, parameters)} are gone or damaged: "
            f"remove {runs.folder_of(what, parameters)} to train that student again."
        )
    model = untrained(teacher, p, job.ladder, job.width, job.seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(weights[name]))
    return model.eval().requires_grad_(False)


# ------------------------------------------------------------------------------------------------- floor and verdict


def _tail(history: pd.DataFrame) -> pd.DataFrame:
    evaluated = history[history.step > 0] if len(history) > 1 else history
    return evaluated.tail(max(1, round(0.1 * len(evaluated))))


def floor(history: pd.DataFrame) -> float:
    """Mean held-out loss over the last tenth of the evaluations, in nats per token (paper, appendix E)."""
    return float(_tail(history).held_out.mean())


def tail_slope(history: pd.DataFrame) -> float:
    """Fall per doubling of the steps that the tail alone suggests, as a share of the floor; NaN from one evaluation."""
    tail = _tail(history)
    if len(tail) < 2:
        return float("nan")
    return float(-np.polyfit(np.log2(tail.step), tail.held_out, 1)[0] / max(tail.held_out.mean(), SAME))


def fall_per_doubling(short: float, long: float) -> float:
    """Share of the floor lost when the steps are doubled; 0 between floors that are 0 for all we can measure."""
    return 0.0 if max(short, long) < SAME else 1 - long / short


def verdict(fall: float, tolerance: float) -> str:
    """``floor`` if doubling the steps moved it by less than ``tolerance``, either way; else ``upper bound``."""
    return "floor" if abs(fall) < tolerance else "upper bound"


def describe(fall: float, tolerance: float) -> str:
    """The verdict in words, with the fall."""
    if verdict(fall, tolerance) == "floor":
        return f"a floor: doubling the steps moves it by {100 * fall:.1f} %, less than {100 * tolerance:g} %"
    if fall < 0:
        return f"no floor: twice the steps end {-100 * fall:.0f} % higher"
    return f"an upper bound, still falling {100 * fall:.0f} % per doubling of the steps"


# ------------------------------------------------------------------------------------------------------------ ladders


def jobs(p: scales.Distill) -> list[Job]:
    """Every run that the parameters ask for, the most expensive first: each student at ``steps`` and at twice that."""
    found = [
        Job(ladder, width, seed, steps)
        for width in sorted({width for ladder in p.ladders for width in p.widths_of(ladder)}, reverse=True)
        for ladder in p.ladders
        if width in p.widths_of(ladder)
        for seed in p.seeds
        for steps in (2 * p.steps, p.steps)
    ]
    return found


def students(todo: Iterable[tuple[scales.Distill, Job]]) -> list[runs.Record]:
    """The records of several runs at one scale, trained where none is found.

    Small students are trained by several processes side by side, one thread each; large ones one after the other.

    Raises:
        RuntimeError: a process failed; its last line says why.
    """
    todo = list(todo)
    missing = [(p, job) for p, job in todo if runs.find(*key(p, job)) is None]
    if missing:
        _compute(missing)
    return [student(p, job) for p, job in todo]


def ladder(p: scales.Distill, extra: Iterable[Job] = ()) -> runs.Record:
    """All students that the parameters ask for, and ``extra`` runs of them at other numbers of steps.

    Returns:
        A record with ``ladder`` (one row a run; its fall where the same student was trained for half the steps) and
        ``curves`` (one row an evaluation).
    """
    todo = [*jobs(p), *extra]
    records = dict(zip(todo, students((p, job) for job in todo), strict=True))
    parts = {"/".join(map(str, job)): record.key for job, record in records.items()}
    label = "ladder" if p.width is None else f"w{p.width}"
    parameters = {"runs": parts, "floor_tolerance": p.floor_tolerance}
    return runs.find_or_compute(f"distill/{p.scale}/{label}", parameters, lambda: _assemble(p, records))


def _compute(missing: list[tuple[scales.Distill, Job]]) -> None:
    p, _ = missing[0]
    with threads(p):
        teacher = models.load_teacher(p.shape.teacher, device=ranks.device())
        for split in ("train", "held_out"):
            read(teacher, p, split)  # once, before several processes would ask for it
        if any(job.ladder == "width_alone" for _, job in missing):
            moments(teacher, p)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    options = dict(total=len(missing), desc="students", unit=" runs", leave=False)
    in_turn = p.shape.width > scales.ONE_THREAD or min(cores, len(missing)) == 1 or ranks.device().type != "cpu"
    if in_turn or ranks.count() > 1:
        for p, job in tqdm(missing, **options):
            student(p, job, teacher)
        return
    del teacher
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(cores, len(missing)), spawn, initializer=_as_worker) as pool:
        processes = pool._processes
        try:
            waiting = [pool.submit(_key_of_student, p, job) for p, job in missing]
            for future in tqdm(as_completed(waiting), **options):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes.values():  # their checkpoints stay
                process.terminate()
            raise


def _as_worker() -> None:
    """In a worker: no bars of its own, and an end when its parent ends, also by kill -9."""
    tqdm.__init__ = functools.partialmethod(tqdm.__init__, disable=True)
    parent = multiprocessing.parent_process()

    def watch():
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@functools.cache
def _teacher(scale: str) -> models.Teacher:
    return models.load_teacher(scales.SHAPES[scale].teacher, device=ranks.device())


def _key_of_student(p: scales.Distill, job: Job) -> str:
    return student(p, job, _teacher(p.scale)).key  # in a worker: the record itself stays on disk


def _assemble(p: scales.Distill, records: dict[Job, runs.Record]) -> dict[str, Any]:
    curves = [record["history"].assign(**job._asdict()) for job, record in records.items()]
    rows = []
    for job, record in records.items():
        half = records.get(job._replace(steps=job.steps // 2))
        fall = fall_per_doubling(half["floor"], record["floor"]) if half and job.steps % 2 == 0 else float("nan")
        names = ("floor", "tail_slope", "low", "high", "untrained", "uniform", "params", "d_teacher")
        rows.append(
            job._asdict()
            | {name: record[name] for name in names}
            | {
                "fall_per_doubling": fall,
                "verdict": "" if np.isnan(fall) else verdict(fall, p.floor_tolerance),
                "raw_kl": record["floor"] * p.length * p.temperature**2,  # the paper's unit (Table 3)
            }
        )
    order = ["ladder", "seed", "width", "steps"]
    return {
        "ladder": pd.DataFrame(rows).sort_values(order, ignore_index=True),
        "curves": pd.concat(curves).sort_values([*order, "step"], ignore_index=True)[
            [*order, "step", "train", "held_out"]
        ],
    }


def longest(table: pd.DataFrame) -> pd.DataFrame:
    """Of a ladder's rows, the longest run of each student."""
    ordered = table.sort_values(["ladder", "width", "seed", "steps"])
    return ordered.drop_duplicates(["ladder", "width", "seed"], keep="last").reset_index(drop=True)


def over_seeds(table: pd.DataFrame, tolerance: float) -> pd.DataFrame:
    """Of a ladder's rows, the longest runs of each width: ``floor`` and ``fall``, means over ``seeds`` of them.

    ``spread`` is the standard deviation over seeds, ``low`` and ``high`` the 95 % interval of the mean that it gives
    (Student's t), ``least`` and ``most`` the extremes. ``verdict`` judges the mean fall.
    """
    rows = []
    for (ladder, width), group in longest(table).groupby(["ladder", "width"]):
        n, mean = len(group), group.floor.mean()
        spread = group.floor.std(ddof=1) if n > 1 else float("nan")
        half = stats.t.ppf(0.975, n - 1) * spread / n**0.5 if n > 1 else float("nan")
        row = {"ladder": ladder, "width": width, "steps": group.steps.max(), "seeds": n, "floor": mean}
        row |= {"spread": spread, "low": mean - half, "high": mean + half}
        row |= {"least": group.floor.min(), "most": group.floor.max()}
        fall = group.fall_per_doubling.mean()
        rows.append(row | {"fall": fall, "verdict": verdict(fall, tolerance), "d_teacher": group.d_teacher.iloc[0]})
    return pd.DataFrame(rows)


# ------------------------------------------------------------------------------------------- what explains the floors


def predictors(p: scales.Distill, widths: list[int]) -> pd.DataFrame:
    """What might explain floors: ``predictor, lam, chosen, width, value``, the larger the higher a floor should be.

    ``eq2`` is Eq. 2 from 03's table at its layer, once an L1 coefficient; ``chosen`` marks the one fixed before any
    student was trained (no rows where 03 has not run). The trivial ones need no SAE: ``log_width`` is ln(d_T / d),
    ``inverse_width`` d_T / d - 1, ``pca_tail`` the share of the normalised residual stream outside as many principal
    directions as a student of that width holds.
    """
    d = p.shape.width
    widths = np.array(sorted(widths))
    record = moments(_teacher(p.scale), p)
    spectrum = np.sort(np.linalg.eigvalsh(record["moments"]))[::-1]
    tail = 1 - np.concatenate([[0], np.cumsum(spectrum)]) / spectrum.sum()
    # LayerNorm takes the mean out of the stream: of d_T directions one is empty, and one of d is lost to the mean
    held = widths - 1 if spectrum[-1] < 1e-6 * spectrum[0] else widths
    trivial = {
        "log_width": np.log(d / widths),
        "inverse_width": d / widths - 1,
        "pca_tail": np.clip(tail[held], 0, None),
    }
    found = [
        pd.DataFrame({"predictor": name, "lam": np.nan, "chosen": False, "width": widths, "value": value})
        for name, value in trivial.items()
    ]
    floors, layers = (runs.load_results(p.scale, name) for name in ("sae_floors", "sae_layers"))
    if floors is not None and layers is not None:
        default = layers[layers["default"].astype(bool)].iloc[0]
        same = [name for name in ("layer", "expansion", "tokens", "kind") if name in floors and name in layers]
        floors = floors[(floors[same] == default[same]).all(axis=1) & floors.width.isin(widths)]
        eq2 = floors.rename(columns={"eq2": "value"})[["lam", "width", "value"]]
        found.insert(0, eq2.assign(predictor="eq2", chosen=np.isclose(eq2.lam, default.lam)))
    return pd.concat(found, ignore_index=True)[["predictor", "lam", "chosen", "width", "value"]]


def fits(table: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    """Calibration of each ladder's floors, means over seeds, by each predictor (Table 4), and its power law (Eq. 4).

    Fits: ``line`` through 0, ``affine``, ``fixed_B`` with B from the student as wide as its teacher (scored on all
    points), ``power`` in the width itself. With scores ``r2``, ``loo`` (R^2 of points left out), ``aicc``, ``points``.
    A predictor that is 0 at all widths, or too few widths, gives no row.
    """
    rows = []
    for ladder, students in longest(table).groupby("ladder"):
        floors = students.groupby("width").floor.mean()
        control = floors.get(int(students.d_teacher.iloc[0]))
        for (predictor, lam), group in predicted.groupby(["predictor", "lam"], dropna=False):
            x = group.set_index("width").value.reindex(floors.index)
            if x.isna().any():
                continue
            head = {"ladder": ladder, "predictor": predictor, "lam": lam, "chosen": bool(group.chosen.iloc[0])}
            for name, fit in _line_fits(x.to_numpy(), floors.to_numpy(), control).items():
                rows.append(head | {"fit": name, "points": len(floors)} | _scores(fit))
        try:
            power = calibration.power_law(floors.index.to_numpy(float), floors.to_numpy())
        except ValueError:
            continue
        head = {"ladder": ladder, "predictor": "width", "lam": np.nan, "chosen": False, "fit": "power"}
        rows.append(head | {"points": len(floors)} | _scores(power))
    return pd.DataFrame(rows).reindex(columns=FIT_COLUMNS)  # all of them, also where few widths leave some fits out


def _line_fits(x: np.ndarray, y: np.ndarray, control: float | None) -> dict[str, calibration.Fit]:
    attempts = {
        "line": lambda: calibration.through_zero(x, y),
        "affine": lambda: calibration.affine(x, y),
        "fixed_B": lambda: _fixed(x, y, control),
    }
    found = {}
    for name, attempt in attempts.items():
        try:
            if fit := attempt():
                found[name] = fit
        except ValueError as error:
            log.info("No %s fit: %s.", name, error)
    return found


def _fixed(x: np.ndarray, y: np.ndarray, control: float | None) -> calibration.Fit | None:
    if control is None:
        return None
    fit = calibration.fixed_baseline(x[y != control], y[y != control], control)
    return fit._replace(r_squared=calibration.r_squared(y, fit.predict(x)))


def _scores(fit: calibration.Fit) -> dict[str, float]:
    scores = {"r2": fit.r_squared, "loo": fit.leave_one_out, "aicc": fit.aicc}
    for name, value in fit.parameters.items():
        low, high = fit.intervals[name]
        scores |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return scores


def against(table: pd.DataFrame, predicted: pd.DataFrame, ladder: str) -> pd.DataFrame:
    """A ladder beside Eq. 2 at the L1 coefficient fixed beforehand: ``width, relative_width, predicted, observed``.

    Losses are means over seeds of the longest runs. Empty where 03 has not run.
    """
    students = longest(table[table.ladder == ladder])
    observed = students.groupby("width", as_index=False).agg(
        observed=("floor", "mean"), d_teacher=("d_teacher", "first")
    )
    eq2 = predicted[predicted.chosen].rename(columns={"value": "predicted"})[["width", "predicted"]]
    points = observed.merge(eq2, on="width")
    return points.assign(relative_width=points.width / points.d_teacher).drop(columns="d_teacher")


def decomposition(points: pd.DataFrame, fitted: pd.DataFrame) -> pd.DataFrame:
    """Table 5 from the fit with B fixed: ``width, observed, geometric`` (C times Eq. 2)``, baseline, sum, share``."""
    fit = fitted[fitted.fit == "fixed_B"]
    if fit.empty:
        return pd.DataFrame(columns=["width", "observed", "geometric", "baseline", "sum", "share"])
    geometric, baseline = fit.slope.iloc[0] * points.predicted, fit.baseline.iloc[0]
    table = pd.DataFrame({"width": points.width, "observed": points.observed, "geometric": geometric})
    return table.assign(baseline=baseline, sum=geometric + baseline, share=geometric / points.observed)


def compared(fitted: pd.DataFrame) -> str:
    """What the affine fits say of Eq. 2 and its rivals, a paragraph a ladder (Markdown)."""
    said = []
    for ladder, group in fitted[fitted.fit == "affine"].groupby("ladder"):
        eq2, rivals = group[group.predictor == "eq2"], group[group.predictor != "eq2"]
        best = rivals.loc[rivals.loo.idxmax()]
        head = (
            f"**{LADDER_NAMES[ladder]}**: the best rival, {RIVALS[best.predictor]}, predicts left-out points with "
            f"R² = {best.loo:.2f}."
        )
        chosen = eq2[eq2.chosen]
        if chosen.empty:
            said.append(f"{head} Eq. 2 has no usable prediction here: run 03_sae first.")
            continue
        value = chosen.loo.iloc[0]
        beaten = int((rivals.loo < value).sum())
        said.append(
            f"{head} Eq. 2 at the λ fixed beforehand has {_r2(value)} and beats {beaten} of {len(rivals)} rivals; over "
            f"all λ it runs from {_r2(eq2.loo.min())} to {_r2(eq2.loo.max())}: λ is a free parameter that the paper "
            "does not count."
        )
    return "\n\n".join(said)


def _r2(value: float) -> str:
    return f"{value:.2f}" if value > -1 else "less than -1"


def about_floors(last: pd.DataFrame, paper: pd.Series) -> str:
    """How many students stand at a floor, and what their own tails would have said (Markdown).

    Args:
        paper: the numbers of its text by name (``data/paper/text_numbers.csv``).
    """
    trained = last[last.floor > SAME]
    said = [f"**{(last.verdict == 'floor').sum()} of {len(last)}** students stand at a floor by this test."]
    falling = trained[trained.verdict != "floor"]
    if len(falling):
        said.append(
            f"Where it does not, doubling the steps lowers the loss by {falling.fall_per_doubling.min():.0%} to "
            f"{falling.fall_per_doubling.max():.0%}, while the slopes of the curves' own tails promise "
            f"{abs(falling.tail_slope.astype(float)).mean():.1%} on average: those are upper bounds."
        )
    if len(trained) < len(last):
        said.append("A student that is its teacher from the start has nothing to learn: its floor is 0.")
    fall, longer = paper["longer_fall_percent"] / 100, paper["longer_steps"] / paper["distill_steps"]
    carried = 1 - (1 - fall) ** (np.log(2) / np.log(longer))
    said.append(
        f"The paper trained its narrowest student {longer:.2f} times as long once, to {fall:.1%} less; at that pace "
        f"a doubling takes off {carried:.0%}."
    )
    return " ".join(said)


def about_order(table: pd.DataFrame) -> str:
    """Whether each wider student ends lower, at every number of steps; a sentence a ladder (Markdown)."""
    said = []
    for ladder, students in table.groupby("ladder"):
        found = []
        for steps, group in students.groupby("steps"):
            falling = group.groupby("width").floor.mean().diff().dropna() < 0
            found.append(f"after {steps} steps {'each' if falling.all() else 'not each'} wider student ends lower")
        said.append(f"**{LADDER_NAMES[ladder]}**: {', '.join(found)}.")
    return "\n\n".join(said)


def about_baseline(table: pd.DataFrame) -> str:
    """What the students as wide as their teacher say of the baseline B, a sentence a ladder (Markdown)."""
    said = []
    for ladder, students in longest(table).groupby("ladder"):
        control = students[students.width == students.d_teacher]
        if control.empty:
            continue
        level, fall = control.floor.mean(), control.fall_per_doubling.mean()
        narrowest = students[students.width == students.width.min()].floor.mean()
        text = f"{level:.2g} nats remain, {level / narrowest:.0%} of the narrowest student's."
        if level < SAME:
            text = "nothing remains; B = 0."
        elif fall > 0:
            text += f" Twice the steps took {fall:.0%} off it: this B is what training has not done yet."
        said.append(f"**{LADDER_NAMES[ladder]}**: at full width {text}")
    return "\n\n".join(said)


def loss_name(p: scales.Distill) -> str:
    """What a student's loss is called on an axis."""
    if p.objective == "cross_entropy":
        return "cross-entropy of the text"
    name = {"forward": "KL", "reverse": "reverse KL", "hidden": "KL + states"}[p.objective]
    return f"{name} at T = {p.temperature:g}"


def top_share(
    teacher: models.Teacher, text: Text, ks: tuple[int, ...], temperatures: tuple[float, ...]
) -> pd.DataFrame:
    """Mean probability of the teacher's ``k`` likeliest tokens (rows) at each temperature (columns)."""
    with torch.no_grad():
        ids = torch.from_numpy(text.ids[: -(-2048 // text.ids.shape[1])].astype(np.int64))
        states = models.final_hidden(teacher.model, ids.to(teacher.model.device)).flatten(0, 1)
        logits = states @ models.unembedding(teacher.model).T
        found = {}
        for t in dict.fromkeys(temperatures):
            largest = torch.softmax(logits / t, -1).topk(min(max(ks), logits.shape[1])).values.mean(0).cumsum(0)
            found[f"T = {t:g}"] = [float(largest[k - 1]) for k in ks]
    return pd.DataFrame(found, index=pd.Index(ks, name="k"))


@torch.no_grad()
def storage_cost(teacher: models.Teacher, text: Text, temperature: float) -> dict[str, float]:
    """KL in nats per token between the teacher and itself from final states that were stored in 16 bits.

    In float64, since float32 would round a KL this small away.
    """
    matrix = models.unembedding(teacher.model).double()
    ids = torch.from_numpy(text.ids[: -(-2048 // text.ids.shape[1])].astype(np.int64))
    states = models.final_hidden(teacher.model, ids.to(matrix.device)).double()
    rounded = {str(kind).removeprefix("torch."): states.to(kind).double() for kind in (torch.float16, torch.bfloat16)}
    return {name: float(kl.divergence(part, matrix, states, matrix, temperature)) for name, part in rounded.items()}


def architectures(p: scales.Distill) -> pd.DataFrame:
    """Table 8 for this teacher: ``ladder, width, layers, heads, head_width, ffn_width, params, ratio``."""
    teacher = _teacher(p.scale)
    rows = []
    for ladder in p.ladders:
        for width in p.widths_of(ladder):
            model = untrained(teacher, p, ladder, width, seed=0)
            config = model.config
            rows.append(
                {
                    "ladder": ladder,
                    "width": width,
                    "layers": config.num_hidden_layers,
                    "heads": config.num_attention_heads,
                    "head_width": getattr(config, "head_dim", None) or width // config.num_attention_heads,
                    "ffn_width": config.intermediate_size,
                    "params": models.parameter_count(model),
                    "ratio": models.parameter_count(teacher.model) / models.parameter_count(model),
                }
            )
    return pd.DataFrame(rows)


# -------------------------------------------------------------------------------------------------------- command line


def main(arguments: list[str] | None = None) -> None:
    """Train the students of one width and seed, at the scale's steps and at twice as many; records found are kept."""
    parser = argparse.ArgumentParser(prog="python -m minwidth.distill", description=main.__doc__)
    parser.add_argument("--scale", default="tiny", choices=list(scales.SCALES))
    parser.add_argument("--ladder", help="random or width_alone; all of the scale's if left out")
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of 04_distill")
    options = parser.parse_args(arguments)
    given = {"ladders": [options.ladder]} if options.ladder else {}
    try:
        given |= scales.settings(options.set) | {"width": options.width, "seeds": [options.seed]}
        p = scales.parameters("04_distill", options.scale, **given)
    except errors.ParameterError as error:
        parser.error(str(error))
    for job in jobs(p):
        record = student(p, job)
        log.info("%s: %.4g nats per token", record.key, record["floor"])


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with errors.in_one_sentence():
        main()
