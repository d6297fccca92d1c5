"""How narrow can the student of a given teacher be? The measurements of 08_your_model, a record a width.

Of each width: the floor that no student passes (``bottleneck.floor``), what a teacher loses whose stream keeps only
that many directions, untrained (``projection``), and what the cut and the paper's student would cost. Of one width, if
asked for, what the cut student loses once it is distilled.
"""

import functools
import hashlib
import math
import re
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedConfig

from minwidth import bottleneck, cut, kl, measured, models, projection, scales, store, stream, text, training
from minwidth.errors import ParameterError

BATCH = 8  # blocks a step of a distilled student
RATE = 0.1  # its peak learning rate times the teacher's width, as what is stable falls with the width


class Text(NamedTuple):
    """Token blocks, and the number of the document each token belongs to."""

    train: Int[np.ndarray, "blocks length"]
    held_out: Int[np.ndarray, "blocks length"]
    train_documents: Int[np.ndarray, "blocks length"]
    held_out_documents: Int[np.ndarray, "blocks length"]


def widths_of(p: scales.YourModel, d: int) -> list[int]:
    """The widths asked for, or eighths of the teacher's.

    Raises:
        ParameterError: one is not below the teacher's width, where a student has nothing to lose.
    """
    widths = sorted(p.widths or {max(2, d * eighths // 8) for eighths in p.eighths})
    if not 2 <= widths[0] <= widths[-1] < d:
        raise ParameterError(f"widths = {widths} must lie between 2 and {d - 1}, below the teacher's {d}.")
    return widths


def read(teacher: models.Teacher, p: scales.YourModel) -> Text:
    """Blocks of each split, spread over the text: ``basis_blocks`` to learn from, ``blocks`` held out.

    The wheels are few enough to be spread over as a whole; of a streamed text, whose documents come shuffled, four
    times as many blocks are read.

    Raises:
        ParameterError: the text has too few tokens, the blocks are longer than the teacher's context, or a student of
            its family cannot be built and is to be distilled.
    """
    if p.steps:
        cut.check_family(teacher.model.config)
    context = getattr(teacher.model.config, "max_position_embeddings", None) or p.length
    if p.length > context:
        raise ParameterError(f"length = {p.length} exceeds the context of {teacher.name}; give at most {context}.")
    found = []
    for split, count in (("train", p.basis_blocks), ("held_out", p.blocks)):
        wanted = None if p.text == "wheels" else 4 * count
        every = text.token_blocks(teacher.tokenizer, split, p.length, p.percent, p.text, wanted)
        if len(every) < count:
            raise ParameterError(
                f"{count} blocks of {p.length} {split} tokens were asked for and the text {p.text} has {len(every)}: "
                "give fewer, shorter ones, a higher percent, or more text."
            )
        rows = np.linspace(0, len(every) - 1, count).round().astype(int)
        documents = text.document_numbers(every, teacher.tokenizer)
        found.append((np.asarray(every[rows]).astype(np.int64), documents[rows]))
    (train, train_documents), (held_out, held_out_documents) = found
    return Text(train, held_out, train_documents, held_out_documents)


def measure(teacher: models.Teacher, text: Text, p: scales.YourModel) -> store.Record:
    """``table`` with a row a width, of ``untrained``, ``floors`` and ``sizes``; the teacher's own costs and losses."""
    students, ends = untrained(teacher, text, p), floors(teacher, text, p)

    def compute() -> dict[str, Any]:
        costs = sizes(teacher, widths_of(p, teacher.d))
        table = students.merge(ends, "left", on="width").merge(costs, on="width")
        vocabulary = teacher.model.get_output_embeddings().weight.shape[0]
        own = {"parameters": models.parameter_count(teacher.model), "flops": models.flops_per_token(teacher.model)}
        losses = {"loss": float(students.teacher_loss.iloc[0]), "unigram": unigram_loss(text, vocabulary)}
        return {"table": table} | own | losses

    given = p.model_dump(exclude={"scale", "teacher", "revision", "target", "eighths", "steps"})
    parameters = _made_of(teacher, text.train, text.held_out) | given | {"widths": widths_of(p, teacher.d)}
    return store.find_or_compute(_name(teacher, "ladder"), parameters, compute)


def untrained(teacher: models.Teacher, text: Text, p: scales.YourModel) -> pd.DataFrame:
    """KL and next-token loss of the cut student at each width before any training, with 95 % intervals over documents.

    Columns: width, kl, kl_low, kl_high (at the temperature), loss, and the teacher's own loss of the same tokens.
    """
    norms = projection.stream_norms(teacher.model)
    basis = principal_basis(teacher, text)
    whole = _cut(teacher, text, p, None, norms)
    rows = []
    for width in tqdm(widths_of(p, teacher.d), desc="untrained students", unit=" widths", leave=False):
        found = _cut(teacher, text, p, projection.kept(basis, width, norms[-1].centred), norms)
        low, high = measured.interval(found["kl"], text.held_out_documents.ravel())
        losses = {"loss": np.nanmean(found["loss"]), "teacher_loss": np.nanmean(whole["loss"])}
        rows.append({"width": width, "kl": found["kl"].mean(dtype=float), "kl_low": low, "kl_high": high} | losses)
    return pd.DataFrame(rows)


def principal_basis(teacher: models.Teacher, text: Text) -> Tensor:
    """The teacher's principal directions on the training blocks; a record."""

    def compute() -> dict[str, Any]:
        moments = projection.stream_moments(teacher.model, stream.batches(text.train, "cpu"))
        return {"moments": moments.cpu().numpy()}

    record = store.find_or_compute(_name(teacher, "moments"), _made_of(teacher, text.train), compute)
    return projection.principal_basis(teacher.model, torch.from_numpy(record["moments"]))


def _cut(teacher, text: Text, p: scales.YourModel, directions: Tensor | None, norms) -> store.Record:
    width = teacher.d if directions is None else directions.shape[1] + norms[-1].centred
    parameters = _made_of(teacher, text.train, text.held_out) | {"width": width, "temperature": p.temperature}

    def compute() -> dict[str, Any]:
        return projection.untrained(teacher.model, text.held_out, directions, p.temperature, norms)._asdict()

    return store.find_or_compute(_name(teacher, f"w{width}"), parameters, compute)


def floors(teacher: models.Teacher, text: Text, p: scales.YourModel) -> pd.DataFrame:
    """Both ends of the floor of the last state at each width (``bottleneck.floor``), with 95 % intervals.

    ``still_falling`` is the share by which the last ten steps lowered the lower end.

    Empty where a model caps its logits: no student of matrix and state has logits like that, so the theorem, which is
    about such students, still holds, but its teacher cannot be given to ``bottleneck`` as state and matrix.
    """
    columns = ["width", "low", "low_low", "low_high", "high", "high_low", "high_high", "still_falling"]
    try:
        matrix = models.unembedding(teacher.model)
    except ParameterError:
        return pd.DataFrame(columns=columns, dtype=float)
    contexts = functools.cache(functools.partial(_contexts, teacher, text, p))

    def compute(width: int) -> dict[str, Any]:
        data, words = contexts(), max(p.words, 4 * width)
        found = bottleneck.floor(
            data["train"], matrix, width, p.temperature, held_out=data["held_out"], documents=data["train_documents"],
            held_out_documents=data["held_out_documents"], words=words if words < len(matrix) else None, seed=p.seed,
            starts=p.starts, steps=p.floor_steps, bias=matrix.shape[1] > teacher.d, progress=f"floor of width {width}",
        )  # fmt: skip
        ends = {"low": found.low, "high": found.high, "starts": list(found.starts), "converged": found.converged}
        return ends | {"low_interval": list(found.low_interval), "high_interval": list(found.high_interval)}

    names = ("temperature", "contexts", "held_out_contexts", "words", "starts", "floor_steps", "seed")
    parameters = _made_of(teacher, text.train, text.held_out) | {name: getattr(p, name) for name in names}
    rows = []
    for width in tqdm(widths_of(p, teacher.d), desc="floors", unit=" widths", leave=False):
        record = store.find_or_compute(
            _name(teacher, f"floor-w{width}"), parameters | {"width": width}, lambda width=width: compute(width)
        )
        low, high = (record["low"], *record["low_interval"]), (record["high"], *record["high_interval"])
        rows.append(dict(zip(columns, (width, *low, *high, record["converged"]), strict=True)))
    return pd.DataFrame(rows)


def _contexts(teacher: models.Teacher, text: Text, p: scales.YourModel) -> dict[str, Tensor]:
    """The teacher's final states in contexts drawn from both splits, and their documents."""
    found = {}
    for split, wanted in (("train", p.contexts), ("held_out", p.held_out_contexts)):
        blocks, documents = getattr(text, split), getattr(text, f"{split}_documents")
        rows = np.random.default_rng(p.seed).permutation(blocks.size)[:wanted]
        states = [models.final_hidden(teacher.model, ids).flatten(0, 1) for ids in stream.batches(blocks, "cpu")]
        found[split] = torch.cat(states)[rows]
        found[f"{split}_documents"] = torch.from_numpy(documents.ravel()[rows])
    return found


def sizes(teacher: models.Teacher, widths: list[int]) -> pd.DataFrame:
    """Parameters and FLOPs a token of the cut and of the paper's student at each width; NaN where they are not known.

    Where the cut student cannot be built, its width's share of the teacher's: every matrix reads from the stream or
    writes to it. That is exact but for biases, and not known where norms stand behind the writes (Gemma 2), or experts
    are packed in parameters of three axes.

    The paper's, whose heads and FFN shrink along, at the nearest width that divides into heads.
    """
    model, rows = teacher.model, []
    through = {norm.module for norm in projection.stream_norms(model)}
    parts = [module for module in stream.blocks_of(model).modules() if not list(module.children())]
    shared = all(module in through or not projection.is_norm(module, teacher.d) for module in parts)
    shared = shared and all(parameter.ndim < 3 for parameter in model.parameters())
    head, table = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    whole = models.parameter_count(model) + (head is table) * head.numel(), models.flops_per_token(model)
    for width in widths:
        of_cut = [width / teacher.d * of_all if shared else math.nan for of_all in whole]
        with suppress(ValueError, RuntimeError):
            of_cut = _size(cut.cut_config(model.config, width))
        row = {"width": width} | dict(zip(("cut_parameters", "cut_flops"), of_cut, strict=True))
        row |= dict.fromkeys(("paper_width", "paper_parameters", "paper_flops"), math.nan)
        for near in sorted(range(scales.SMALLEST_HEAD, teacher.d + 1), key=lambda other: abs(other - width))[:32]:
            with suppress(ValueError, RuntimeError):
                of_paper = near, *_size(models.student_config(model.config, near))
                row |= dict(zip(("paper_width", "paper_parameters", "paper_flops"), of_paper, strict=True))
                break
        rows.append(row)
    return pd.DataFrame(rows)


def _size(config: PreTrainedConfig) -> tuple[int, int]:
    with torch.device("meta"):
        student = models.from_config(config)
    return models.parameter_count(student), models.flops_per_token(student)


def unigram_loss(text: Text, vocabulary: int) -> float:
    """Held-out loss in nats per token of word frequencies, mixed with the uniform as Witten and Bell do."""
    counts = np.bincount(text.train.ravel(), minlength=vocabulary)
    kinds = (counts > 0).sum()
    probability = (counts + kinds / vocabulary) / (counts.sum() + kinds)
    return float(-np.log(probability[text.held_out[:, 1:]]).mean())


def distilled(teacher: models.Teacher, text: Text, p: scales.YourModel, width: int) -> pd.DataFrame:
    """The cut student of ``width`` after ``p.steps`` steps down its KL from the teacher: one row, none without steps.

    Columns: width, trained, trained_low, trained_high (as ``kl`` of ``untrained``), trained_loss. AdamW with warm-up
    and a cosine, on ``BATCH`` blocks of training text a step; an interrupted run goes on.
    """
    columns = ["width", "trained", "trained_low", "trained_high", "trained_loss"]
    if not p.steps:
        return pd.DataFrame(columns=columns, dtype=float)
    names = ("text", "percent", "length", "temperature", "steps", "seed")
    parameters = _made_of(teacher, text.train, text.held_out) | {name: getattr(p, name) for name in names}
    what, parameters = _name(teacher, f"distilled-w{width}"), parameters | {"width": width}
    record = store.find_or_compute(what, parameters, lambda: _distil(teacher, text, p, width, what, parameters))
    return pd.DataFrame([{"width": width} | {name: record[name] for name in columns[1:]}])


def _distil(teacher, text_: Text, p: scales.YourModel, width: int, what: str, parameters: dict) -> dict[str, Any]:
    student = cut.cut_to_width(teacher.model, principal_basis(teacher, text_), width)
    matrix, wanted = models.unembedding(teacher.model), p.steps * BATCH
    blocks = text.token_blocks(teacher.tokenizer, "train", p.length, p.percent, p.text, wanted)[:wanted]

    def states(ids: Tensor) -> Tensor:
        with torch.no_grad():
            return models.final_hidden(teacher.model, ids)

    def loss(student, rows) -> Tensor:
        ids = torch.from_numpy(blocks[rows].astype(np.int64))
        given = models.final_hidden(student, ids), models.unembedding(student), states(ids), matrix
        return kl.divergence(*given, p.temperature)

    held_out = [(ids, states(ids)) for ids in stream.batches(text_.held_out, "cpu")]

    @torch.no_grad()
    def losses_of(student) -> tuple[Tensor, Tensor]:
        divergences, losses = [], []
        for ids, of_teacher in held_out:
            hidden, own = models.final_hidden(student, ids), models.unembedding(student)
            divergences.append(kl.divergence(hidden, own, of_teacher, matrix, p.temperature, per_token=True).flatten())
            losses.append(kl.cross_entropy(hidden[:, :-1], own, ids[:, 1:], per_token=True).flatten())
        return torch.cat(divergences), torch.cat(losses)

    history = training.train(
        student,
        loss,
        evaluate=lambda student: float(losses_of(student)[0].mean()),
        rows=len(blocks),
        schedule=training.Schedule(p.steps, BATCH, RATE / teacher.d, warmup=p.steps // 10, evaluations=10),
        seed=p.seed,
        checkpoint=store.work_folder(what, parameters) / "checkpoint",
        progress=f"distilling width {width}",
    )
    found, losses = losses_of(student)
    low, high = measured.interval(found, text_.held_out_documents.ravel())
    ends = {"trained": float(found.double().mean()), "trained_low": low, "trained_high": high}
    return ends | {"trained_loss": float(losses.mean()), "history": pd.DataFrame(history)}


def _made_of(teacher: models.Teacher, *blocks: np.ndarray) -> dict[str, Any]:
    digest = hashlib.sha256()
    for part in blocks:
        digest.update(np.ascontiguousarray(part, dtype=np.int64))
        digest.update(str(part.shape).encode())
    return {"teacher": teacher.revision, "blocks": digest.hexdigest()[:16]}


def _name(teacher: models.Teacher, what: str) -> str:
    label = re.sub(r"[^A-Za-z0-9_.-]+", "_", teacher.name.rstrip("/").rpartition("/")[2]).strip("_.") or "teacher"
    return f"your_model/{label}/{what}"
