"""A student: how it starts, what it learns from the exact offline teacher, and where it ends (paper, section 6).

Three ladders. ``random`` is the paper's: random weights, heads and FFN scaled with the width. ``width_alone`` is the
teacher cut to its first principal directions and trained on. ``head`` is the teacher's own trunk with only its last
state cut: it has nothing to lose but what the last state's width costs (``bottleneck``).

A student's loss is the mean over the last tenth of its evaluations, the paper's rule. Under a cosine schedule that tail
is flat because the learning rate goes to 0, so flatness proves nothing: students are trained again for twice as many
steps with the schedule stretched, and ``curves`` says where they would end.
"""

import copy
import functools
import logging
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from minwidth import cut, errors, kl, models, projection, scales, store, stream, text, training
from minwidth.store import existing

log = logging.getLogger(__name__)

STATES_BYTES = 2**36  # an offline teacher up to this size is kept on disk; beyond it, it runs beside the student
BASIS_TOKENS = 32_768  # of training text, for the principal directions of the stream; of large models a quarter
SAME = 1e-6  # nats: a student this near to its teacher before any training is its teacher
# what goes without saying in a key
USUAL = {"objective": "forward", "parts": 1, "layers": None, "basis": "principal", "decay": None}
LADDERS = {"random": "random weights", "width_alone": "width alone", "head": "last state alone"}


class Job(NamedTuple):
    """One training run of a student of a ladder."""

    ladder: str
    width: int
    seed: int
    steps: int

    @property
    def label(self) -> str:
        """What the run, or the teacher, which is the job without a ladder, is called in records."""
        return f"{self.ladder}-w{self.width}-s{self.seed}-n{self.steps}" if self.ladder else "teacher"


class Text(NamedTuple):
    """Token blocks and the teacher's final states on them."""

    ids: Int[np.ndarray, "blocks length"]  # memory-mapped, as they are stored
    states: Float[np.ndarray, "blocks length d_T"] | None  # None where the teacher runs beside the student


class Head(nn.Module):
    """The teacher's trunk with its last state cut to ``width`` numbers, and a free unembedding: logits W A h.

    Both start from the best rank-``width`` approximation of the teacher's logits in least squares.
    """

    def __init__(self, unembedding: Float[Tensor, "V d_T"], states: Float[Tensor, "tokens d_T"], width: int):
        super().__init__()
        matrix, states = unembedding.double(), states.double()
        values, vectors = torch.linalg.eigh(matrix.T @ matrix)
        root = vectors * values.clamp(min=1e-12 * float(values[-1])).sqrt() @ vectors.T
        _, directions = torch.linalg.eigh(root @ (states.T @ states) @ root)
        kept = directions[:, -width:]
        self.reduce = nn.Parameter((kept.T @ root).to(unembedding))
        self.unembedding = nn.Parameter((matrix @ torch.linalg.solve(root, kept)).to(unembedding))

    def forward(self, states: Float[Tensor, "*tokens d_T"]) -> Float[Tensor, "*tokens width"]:
        return states @ self.reduce.T


# ------------------------------------------------------------------------------------------------------------ inputs


def read(teacher: models.Teacher, p: scales.Distill, split: str) -> Text:
    """``train`` or ``held_out`` text with the offline teacher's states, computed once for all students.

    There is enough training text for the longest run without repetition, if the corpus has that much. States beyond
    ``STATES_BYTES``, or what the disk has free, are not kept: the teacher then runs beside each student, which learns
    the same, up to rounding.
    """
    count = 2 * p.steps * p.batch if split == "train" else p.held_out_blocks
    blocks, name = _blocks(teacher, p, split, count), f"{p.scale}-{split}"
    a_state = models.unembedding(teacher.model)[0].nbytes  # of d numbers, and one more with an output bias
    size, target = blocks.size * a_state, stream.states_file(teacher, blocks, name)
    there = target.stat().st_size if target.exists() else 0
    free = shutil.disk_usage(existing(target.parent)).free
    if size <= STATES_BYTES and size - there <= free:
        return Text(blocks, stream.offline_teacher(teacher, blocks, name))
    fill = f"The teacher's states on {blocks.size:,} tokens would fill {size / 2**30:,.4g} GiB"
    if size > STATES_BYTES:
        _say(f"{fill}, more than the {STATES_BYTES / 2**30:g} GiB set apart for them, so it runs beside each student.")
    else:
        _say(
            f"{fill} and {target.parent} has {free / 2**30:.3g} GiB free, so it runs beside each student; make room "
            "there, or name another folder with MINWIDTH_RUNS, and it runs but once."
        )
    return Text(blocks, None)


@functools.cache
def _say(sentence: str) -> None:
    """Once, however many students it is about."""
    log.warning("%s", sentence)


def moments(teacher: models.Teacher, p: scales.Distill) -> store.Record:
    """Second moments of the teacher's normalised residual stream on training text (``projection.stream_moments``)."""
    each_site = p.basis == "local"
    tokens = BASIS_TOKENS if teacher.d <= scales.ONE_THREAD else BASIS_TOKENS // 4

    def compute():
        blocks = _blocks(teacher, p, "train", tokens // p.length)
        batches = (blocks[start : start + 16] for start in range(0, len(blocks), 16))
        return {"moments": projection.stream_moments(teacher.model, batches, each_site).cpu().numpy()}

    parameters = {"teacher": teacher.revision, "tokens": tokens}
    parameters |= {"text": p.text, "length": p.length, "percent": p.percent} | text.pin(p.text)
    parameters |= {"each_site": True} if each_site else {}
    return store.find_or_compute(f"distill/{p.scale}/moments", parameters, compute)


def _blocks(teacher: models.Teacher, p: scales.Distill, split: str, count: int) -> np.ndarray:
    blocks = text.token_blocks(teacher.tokenizer, split, p.length, p.percent, p.text, count)[:count]
    if len(blocks) < (least := count if split == "held_out" else p.batch):
        raise errors.ParameterError(
            f"The {split} split of {p.text} has {len(blocks)} blocks of {p.length} tokens and {least} are needed: "
            f"raise percent = {p.percent:g}, give more text, or ask for fewer."
        )
    return blocks


def make(teacher: models.Teacher, p: scales.Distill, ladder: str, width: int, seed: int) -> nn.Module:
    """A student of a ladder before training.

    One of ``width_alone`` holds the ``basis`` of its parameters: the stream's principal directions or its strongest
    ``channels``; ``uncut``, the principal ones, but its weights stay the teacher's, of which only the part is trained
    that those directions reach; ``local``, likewise with principal directions of its own at each place.
    """
    if ladder == "random":
        return models.make_student(teacher.model, width, seed, p.layers)
    if ladder == "head":
        train = read(teacher, p, "train")
        states = _batch(teacher, train, np.arange(min(len(train.ids), BASIS_TOKENS // 4 // p.length)))[1]
        return Head(models.unembedding(teacher.model), states.flatten(0, 1), width)
    found = torch.from_numpy(moments(teacher, p)["moments"])
    if p.basis in ("principal", "channels"):
        basis = projection.principal_basis if p.basis == "principal" else projection.channel_basis
        return cut.cut_to_width(teacher.model, basis(teacher.model, found), width)
    student = copy.deepcopy(teacher.model).requires_grad_(True)
    norms = projection.stream_norms(student)
    bases = [projection.principal_basis(student, each) for each in found.view(-1, teacher.d, teacher.d)]
    directions = [projection.kept(basis, width, norms[-1].centred) for basis in bases]
    projection.project(student, norms, directions if p.basis == "local" else directions[0])
    return student


# ------------------------------------------------------------------------------------------------------- one student


def student(p: scales.Distill, job: Job, teacher: models.Teacher | None = None) -> store.Record:
    """The record of one training run of a student, found or computed; an interrupted run continues exactly.

    Its values: ``history`` (step, train, held_out; ``objective`` in nats per token), ``untrained``, ``uniform`` (of a
    guess that gives every token the same probability), ``loss``, ``low`` and ``high`` (95 % of the final loss over
    held-out blocks), ``params``, ``d_teacher``.

    Raises:
        Diverged: the loss is not finite, or worse than that of a uniform guess.
        ValueError: the student cannot be made at this width.
    """
    what, parameters = key(p, job)
    if record := store.find(what, parameters):
        return record
    with training.threads(p.shape.width):
        teacher = teacher or models.load_teacher(p.shape.teacher, device=training.state().device)
        compute = functools.partial(_train, p, job, teacher, what, parameters)
        return training.find_or_compute(what, parameters, compute)


def key(p: scales.Distill, job: Job) -> tuple[str, dict[str, Any]]:
    """Name and parameters of a run's record: everything that its numbers depend on."""
    left_out = {"scale", "teacher", "width", "widths", "random_widths", "ladders", "doubled", "seeds", "steps"}
    left_out |= {name for name, usual in USUAL.items() if getattr(p, name) == usual}
    chosen = p.model_dump(exclude=left_out) | text.pin(p.text)
    chosen |= {"teacher": models.teacher_revision(p.shape.teacher), "text_blocks": 2 * p.steps * p.batch}
    return f"distill/{p.scale}/{job.label}", chosen | job._asdict()


def trunk(p: scales.Distill, job: Job) -> Path:
    """Where runs of a student that share a constant rate leave the state that longer ones go on from."""
    return store.work_folder(*key(p, job._replace(steps=0)))


def objective(
    p: scales.Distill,
    model: nn.Module | None,
    ids: Tensor,
    states: Tensor,
    matrix: Tensor,
    each: bool = False,
) -> Tensor:
    """Loss a student learns from, in nats per token: its mean, or one number a token where ``each`` is set.

    ``forward`` and ``reverse`` are KL divergences at the temperature. ``hidden`` adds to the forward one the share of
    the teacher's final state that a linear map of the student's, ``model.match``, misses; the map is trained along.
    ``cross_entropy`` is that of the text's next token at T = 1 and asks no teacher.

    Args:
        model: the student, or None for a uniform guess.
        states: the teacher's final states on ``ids``.
        matrix: the teacher's unembedding.
    """
    if model is None:
        hidden, vocabulary = matrix.new_zeros(*ids.shape, 1), matrix.new_zeros(len(matrix), 1)
    elif isinstance(model, Head):
        hidden, vocabulary = model(states), model.unembedding
    else:
        hidden, vocabulary = models.final_hidden(model, ids), models.unembedding(model)
    if p.objective == "cross_entropy":
        return kl.cross_entropy(hidden[:, :-1], vocabulary, ids[:, 1:], per_token=each)
    direction = "reverse" if p.objective == "reverse" else "forward"
    value = kl.divergence(hidden, vocabulary, states, matrix, p.temperature, direction=direction, per_token=each)
    if p.objective == "hidden":
        missed = states if model is None else states - model.match(hidden)
        value = value + missed.square().sum(-1) / states.square().sum(-1)
    return value if each else value.mean()


def _batch(teacher: models.Teacher, text: Text, rows) -> tuple[Tensor, Tensor]:
    device = teacher.model.device
    ids = training.sent(text.ids[rows].astype(np.int64), device)
    if text.states is None:
        with torch.no_grad():
            return ids, models.final_hidden(teacher.model, ids)
    return ids, training.sent(text.states[rows], device)


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
    model = make(teacher, p, job.ladder, job.width, job.seed)
    params = models.parameter_count(model)
    if p.objective == "hidden":
        own = job.width if isinstance(model, Head) else models.unembedding(model).shape[1]  # one more with a bias
        model.match = nn.Linear(own, matrix.shape[1], bias=False, device=matrix.device)
        nn.init.zeros_(model.match.weight)

    if matrix.is_cuda and not isinstance(model, Head):
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
            checkpoint=store.work_folder(what, parameters) / "checkpoint",
            trunk=trunk(p, job) if p.decay else None,
            progress=f"{job.ladder} {job.width}, {job.steps} steps",
        )
    else:
        log.info("The student of width %d is its teacher before any training.", job.width)
    history = pd.DataFrame(history)
    final = losses(p, teacher, model, held_out)
    spread = 1.96 * final.std(ddof=1) / len(final) ** 0.5
    if training.state().is_main_process:
        weights = {name: value.detach().float().cpu().numpy() for name, value in model.named_parameters()}
        store.keep(f"{what}-weights", parameters, weights, seconds=0)
    return {
        "history": history,
        "untrained": start,
        "uniform": guess,
        "loss": final_loss(history),
        "low": float(final.mean() - spread),
        "high": float(final.mean() + spread),
        "params": params,
        "d_teacher": teacher.d,
    }


def schedule(p: scales.Distill, job: Job) -> training.Schedule:
    """The paper's: AdamW, linear warm-up, cosine to 0; stretched as a whole where a run is longer.

    With ``decay`` the rate is constant after the same warm-up for all, so that a longer run goes on from a shorter one.
    """
    return training.Schedule(
        steps=job.steps,
        batch=p.batch,
        learning_rate=rate(p, job),
        warmup=p.warmup if p.decay else round(p.warmup * job.steps / p.steps),
        weight_decay=p.weight_decay,
        evaluations=p.evaluations,
        parts=p.parts,
        decay=p.decay,
    )


def rate(p: scales.Distill, job: Job) -> float:
    """Peak learning rate: the paper's constant, or rising with 1 / width, lower for students cut from their teacher."""
    wider = (p.shape.width / job.width) ** p.rate_exponent
    return p.learning_rate * wider * (1 if job.ladder == "random" else p.cut_rate)


def trained(p: scales.Distill, job: Job, teacher: models.Teacher) -> nn.Module:
    """The student of a finished run, in eval mode and without gradients; trained first if it was not yet."""
    student(p, job, teacher)
    what, parameters = key(p, job)
    weights = store.find(f"{what}-weights", parameters)
    if weights is None:
        raise errors.LostError(
            f"The weights of {store.key_of(what, parameters)} are gone or damaged: "
            f"remove {store.folder_of(what, parameters)} to train that student again."
        )
    model = make(teacher, p, job.ladder, job.width, job.seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(weights[name]))
    return model.eval().requires_grad_(False)


def check_saved(p: scales.Distill, job: Job) -> None:
    """Raise ``ParameterError`` unless a student is a model of its own: no head, and not held by hooks."""
    if job.ladder == "head" or (job.ladder == "width_alone" and p.basis in ("uncut", "local")):
        kind = "head" if job.ladder == "head" else f"student of basis = {p.basis!r}"
        raise errors.ParameterError(f"A {kind} is no model that can be saved: give ladder = random, or another basis.")


def save(p: scales.Distill, job: Job, teacher: models.Teacher, folder: Path) -> None:
    """Leave a trained student with its tokenizer as a folder that ``transformers`` and ``-p teacher`` read."""
    check_saved(p, job)
    trained(p, job, teacher).save_pretrained(folder)
    teacher.tokenizer.save_pretrained(folder)


# ------------------------------------------------------------------------------------------------- where a run ended


def final_loss(history: pd.DataFrame) -> float:
    """Mean held-out loss over the last tenth of the evaluations, in nats per token (paper, appendix E)."""
    evaluated = history[history.step > 0] if len(history) > 1 else history
    return float(evaluated.tail(max(1, round(0.1 * len(evaluated)))).held_out.mean())
