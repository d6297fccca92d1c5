"""How narrow can the student of a given teacher be? The measurements of 08_your_model, a record a width.

Of each width: the floor that no student passes (``bottleneck.floor``), and what a teacher loses whose stream keeps only
that many directions, untrained (``projection``).
"""

import functools
import hashlib
import re
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from minwidth import bottleneck, cut, measured, models, projection, scales, store, stream, text
from minwidth.errors import ParameterError


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


def key(teacher: models.Teacher, what: str, *blocks: np.ndarray) -> tuple[str, dict[str, Any]]:
    """Name of a record about a teacher, and what pins the teacher and the token blocks: the first of its parameters."""
    label = re.sub(r"[^A-Za-z0-9_.-]+", "_", teacher.name.rstrip("/").rpartition("/")[2]).strip("_.") or "teacher"
    digest = hashlib.sha256()
    for part in blocks:
        digest.update(np.ascontiguousarray(part, dtype=np.int64))
        digest.update(str(part.shape).encode())
    return f"your_model/{label}/{what}", {"teacher": teacher.revision, "blocks": digest.hexdigest()[:16]}


def measure(teacher: models.Teacher, text: Text, p: scales.YourModel) -> store.Record:
    """``untrained`` and ``floors`` as one ``table`` with a row a width."""
    what, parameters = key(teacher, "ladder", text.train, text.held_out)
    parameters |= p.model_dump(exclude={"scale", "teacher", "revision", "target", "eighths", "steps"})
    parameters |= {"widths": widths_of(p, teacher.d)}
    students, ends = untrained(teacher, text, p), floors(teacher, text, p)
    return store.find_or_compute(what, parameters, lambda: {"table": students.merge(ends, "left", on="width")})


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

    record = store.find_or_compute(*key(teacher, "moments", text.train), compute)
    return projection.principal_basis(teacher.model, torch.from_numpy(record["moments"]))


def _cut(teacher, text: Text, p: scales.YourModel, directions: Tensor | None, norms) -> store.Record:
    width = teacher.d if directions is None else directions.shape[1] + norms[-1].centred
    what, parameters = key(teacher, f"w{width}", text.train, text.held_out)

    def compute() -> dict[str, Any]:
        return projection.untrained(teacher.model, text.held_out, directions, p.temperature, norms)._asdict()

    return store.find_or_compute(what, parameters | {"width": width, "temperature": p.temperature}, compute)


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
    rows = []
    for width in tqdm(widths_of(p, teacher.d), desc="floors", unit=" widths", leave=False):
        what, parameters = key(teacher, f"floor-w{width}", text.train, text.held_out)
        parameters |= {name: getattr(p, name) for name in names} | {"width": width}
        record = store.find_or_compute(what, parameters, functools.partial(compute, width))
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
