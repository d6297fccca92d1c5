"""The floor of the last state: the least KL that any student of a width can have from a teacher, in nats per token.

**Theorem** (proved in 01). However deep a student is and however it was trained, if its last state has d numbers, its
mean KL from the teacher on N contexts is at least floor_N(d) = min over W [V x d] of mean_c min over h of
KL(p_c || softmax(W h / T)). Averaged over samples of N contexts it stays below the student's expected loss, and grows
with N: the W that suits more contexts best suits each of them less.

An output bias is one more column of W: the lower end is then that of rank d + 1 (``bias=True``). Of a vocabulary too
large for all of it the likeliest words S will do, by the chain rule: KL(p || q) >= p(S) KL(p|S || q|S) in each context.

**What is estimated.** ``low`` is floor_N(d): a bound for every student on these contexts, and in the mean on any; it is
below the floor of all text, since W is fitted to the contexts. It leans on the minimum of a problem that is not convex,
so several starts are made and what each came to is told. ``high`` needs no such faith: any W gives an upper end, here
one fitted on training contexts, with each *held-out* context's own best state, a convex problem. Between them lies the
floor of all text, up to the sampling error that the intervals tell.

Known as the softmax bottleneck (Yang et al. 2018, arXiv:1711.03953; Godey et al. 2024, arXiv:2404.07647).
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from minwidth import bottleneck_kernel as kernel
from minwidth import errors, measured, models, scales, store, stream, text, training

VALIDATION = 10  # one training context in so many chooses between the two unembeddings of the upper end


class Floor(NamedTuple):
    """Both ends of the floor of a width, in nats per token, and what they rest on."""

    low: float  # floor_N: the least loss found on the contexts
    low_interval: tuple[float, float]  # 95 %, documents of the contexts drawn again, W and states as they are
    high: float  # mean loss of held-out contexts with their own best states under a W fitted on training contexts
    high_interval: tuple[float, float]  # 95 %, documents of the held-out contexts drawn again
    starts: tuple[float, ...]  # what each start came to; low is the least of them
    converged: float  # share by which the best start fell over its last kernel.PATIENCE steps
    slack: float  # nats that the held-out states may still be above their minimum: mean Newton decrement g H^-1 g
    contexts: int  # N
    held_out: int
    words: int  # S, the words of the lower end
    mass: float  # p(S), mean over contexts
    restricted: bool  # whether the W of the upper end is the teacher's unembedding times a matrix, or free
    unembedding: Float[Tensor, "vocabulary d"]  # the W of the upper end
    states: Float[Tensor, "held_out d"]  # its h, for logits unembedding @ h at temperature 1


def floor(
    teacher_hidden: Float[Tensor, "contexts d_T"],
    teacher_unembedding: Float[Tensor, "vocabulary d_T"],
    width: int,
    temperature: float = 2.0,
    *,
    held_out: Float[Tensor, "held_out d_T"],
    documents: Int[Tensor, "contexts"] | None = None,
    held_out_documents: Int[Tensor, "held_out"] | None = None,
    words: int | None = None,
    starts: int = 2,
    seed: int = 0,
    steps: int = 150,
    tolerance: float = 1e-3,
    bias: bool = False,
    progress: str | None = None,
) -> Floor:
    """The least mean KL(teacher || student) that any student of ``width`` can have: from below and from above.

    One tenth of the contexts only chooses the W of the upper end; N is the rest. The minimisation is L-BFGS over all
    states and W, preconditioned by what a change of each costs. The first start is the best W of the form W_T A, itself
    found from principal components in the metric of the softmax; others are random sketches of them. It ends when
    ``kernel.PATIENCE`` steps lower the loss by a share less than ``tolerance``. A function of the arguments alone, to
    the last bit with one thread. In float64 where the inputs are.

    Args:
        documents: of each context, for the interval; each a document of its own if None.
        words: how many of the likeliest words the lower end looks at; all if None.
        starts: minimisations of the lower end from different points.
        bias: whether the students have an output bias, which raises the rank of their logits to width + 1.
        progress: shown beside a bar, none if None.

    Raises:
        ValueError: shapes that do not fit, a width outside 1 ... d_T, a temperature that is not positive, too few
            contexts or words.
    """
    _check(teacher_hidden, teacher_unembedding, held_out, temperature)
    d_teacher = teacher_hidden.shape[1]
    check_width(width, d_teacher, len(teacher_hidden))
    if words is not None and not width < words:
        raise ValueError(f"words = {words} must exceed the width, {width}: with fewer the lower end is 0.")
    if starts < 1:
        raise ValueError(f"starts = {starts}: give at least 1, and more to see whether they agree.")
    documents = _documents(documents, teacher_hidden)
    held_out_documents = _documents(held_out_documents, held_out)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(teacher_hidden), generator=generator)
    chosen, validation = order[len(order) // VALIDATION :], order[: len(order) // VALIDATION]
    hidden, vocabulary = teacher_hidden / temperature, len(teacher_unembedding)
    words = min(words or vocabulary, vocabulary)

    with torch.no_grad():
        # W = W_T A first, on as many contexts as make a pass over all words cost what one over S does.
        part = chosen[: max(2 * width, len(chosen) * words // vocabulary)]
        target = whole = kernel.target_of(hidden[part], teacher_unembedding)
        if words < vocabulary:
            likeliest = kernel.mean_probabilities(whole).topk(words).indices.sort().values
            target = kernel.target_of(hidden[chosen], teacher_unembedding, likeliest)
        upper = kernel.minimise(
            whole, *kernel.principal(whole, width), True, steps, 10 * tolerance, progress and f"{progress}, W = W_T A"
        )
        rank = min(width + bias, d_teacher)
        continued = target is whole and rank == width
        fits = []
        for start in range(starts):
            first = kernel.principal(target, rank, generator if start else None)
            if continued and not start:
                first = upper.hidden, upper.matrix
            said = progress and f"{progress}, start {start + 1}"
            fits.append(kernel.minimise(target, *first, False, steps, tolerance, said))
        best = min(fits, key=lambda fit: fit.loss)
        restricted = True
        if continued:
            judges = validation if len(validation) else chosen
            unseen = kernel.target_of(hidden[judges], teacher_unembedding)
            upper = min(upper, best, key=lambda fit: float(kernel.held_out_states(unseen, whole, fit)[0].mean()))
            restricted = upper is not best
        unseen = kernel.target_of(held_out / temperature, teacher_unembedding)
        high, states, slack = kernel.held_out_states(unseen, whole, upper)
    return Floor(
        low=best.loss,
        low_interval=measured.interval(best.losses.cpu(), documents[chosen].cpu()),
        high=float(high.double().mean()),
        high_interval=measured.interval(high.cpu(), held_out_documents.cpu()),
        starts=tuple(fit.loss for fit in fits),
        converged=best.fall,
        slack=float(slack.double().mean()),
        contexts=len(chosen),
        held_out=len(held_out),
        words=words,
        mass=float(target.mass.mean()),
        restricted=restricted,
        unembedding=upper.unembedding,
        states=states * temperature,
    )


def _check(hidden: Tensor, unembedding: Tensor, held_out: Tensor, temperature: float) -> None:
    if hidden.ndim != 2 or held_out.ndim != 2 or not hidden.shape[1] == held_out.shape[1] == unembedding.shape[1]:
        raise ValueError(
            f"contexts {list(hidden.shape)}, held_out {list(held_out.shape)} and unembedding "
            f"{list(unembedding.shape)} must be matrices that share d_T, their second dimension."
        )
    if not len(held_out):
        raise ValueError("No context is held out: give at least one for the upper end.")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature = {temperature} is not positive and finite; the study's is 2.")


def check_width(width: int, d_teacher: int, contexts: int) -> None:
    """Raise ``ParameterError`` where the floor of a width cannot be asked for."""
    if not 1 <= width <= d_teacher:
        raise errors.ParameterError(f"width = {width} is outside 1 ... {d_teacher}, the teacher's: give one of those.")
    if contexts < 2 * width:
        raise errors.ParameterError(
            f"{contexts} contexts are too few for width {width}: give at least {2 * width}, and many times the width "
            "for a lower end that says something."
        )


def _documents(documents: Tensor | None, hidden: Tensor) -> Tensor:
    if documents is None:
        return torch.arange(len(hidden))
    documents = torch.as_tensor(documents)
    if documents.shape != hidden.shape[:1]:
        raise ValueError(f"documents must be one number for each of {len(hidden)} contexts, not {documents.shape}.")
    return documents


# -------------------------------------------------------------------------------------------------------- a ladder


def ladder(
    teacher: models.Teacher,
    widths: Sequence[int] | None = None,
    *,
    temperature: float = 2.0,
    contexts: Sequence[int] | None = None,
    **changes: Any,
) -> store.Record:
    """Both ends of the floor at each width, for a teacher on the study's text or another.

    One record for each width and number of contexts, found or computed, the largest numbers first. The value ``table``
    has a row a width, at the most contexts: ``width, temperature, low, low_low, low_high, high, high_low, high_high,
    contexts, held_out, words, mass, starts, starts_spread, converged, slack, restricted, seconds`` (of the processor);
    ``growth`` has them at every number of contexts.

    Args:
        contexts: numbers of training contexts to compare, a tenth of which only chooses the W of the upper end. They
            are nested, and drawn like the held-out ones from blocks spread evenly over the documents. The scale's own
            if None, as ``widths``, and as the rest is (``scales.FLOORS``) but for ``changes``.
        changes: ``held_out``, ``blocks`` of either split; ``text``, ``length``, ``percent``; ``starts``, ``seed``,
            ``steps``, ``tolerance``, and ``words``, of which four times the width are looked at if that is more.

    Raises:
        ParameterError: a width the teacher does not have, fewer contexts than asked for, a model that caps its logits;
            ValueError as ``floor``.
    """
    own = scales.FLOORS.get(teacher.name, scales.FLOORS["other"])
    widths = sorted(widths or own.get("widths") or {max(1, teacher.d * eighths // 8) for eighths in (1, 2, 4, 6)})
    contexts = sorted(contexts or own["contexts"])
    for width in widths:
        check_width(width, teacher.d, contexts[0])
    usual = scales.SCALES.get(teacher.name, scales.SCALES["tiny"])["04_distill"]
    p = {"teacher": teacher.revision, "temperature": temperature, "words": None, "seed": 0, "tolerance": 1e-3}
    p |= {name: own[name] for name in ("held_out", "starts", "blocks")}
    p |= {name: usual[name] for name in ("text", "length", "percent")}
    if unknown := sorted(changes.keys() - {*p, "steps"}):
        raise errors.ParameterError(f"A ladder of floors has no {unknown[0]!r}; it takes {', '.join(p)} and steps.")
    p |= changes | text.pin(changes.get("text", p["text"]))
    label, inputs = text.title(teacher.name), functools.cache(lambda: _inputs(teacher, p, contexts[-1]))
    what = f"bottleneck/{label}"
    todo = [(count, width) for count in reversed(contexts) for width in widths]
    found = []
    with training.threads(teacher.d):
        for count, width in tqdm(todo, desc=f"floors of {label}", unit=" floors", leave=False):
            parameters = p | {"width": width, "contexts": count}
            compute = functools.partial(_row, inputs, p, width, count)
            found.append(store.find_or_compute(f"{what}/w{width}-n{count}", parameters, compute).values)

    def assemble() -> dict[str, Any]:
        growth = pd.DataFrame(found).sort_values(["width", "contexts"], ignore_index=True)
        return {"growth": growth, "table": growth.groupby("width").tail(1).reset_index(drop=True)}

    return store.find_or_compute(f"{what}/ladder", p | {"widths": widths, "contexts": contexts}, assemble)


def _inputs(teacher: models.Teacher, p: dict[str, Any], contexts: int) -> dict[str, Any]:
    """What ``floor`` is given: the teacher's states in contexts drawn from blocks spread over each split."""
    matrix, found = models.unembedding(teacher.model).detach(), []
    for split, count, wanted in zip(("train", "held_out"), p["blocks"], (contexts, p["held_out"]), strict=True):
        blocks, numbers = text.spread(teacher.tokenizer, split, count, p["length"], p["percent"], p["text"])
        if wanted > blocks.size:
            raise errors.ParameterError(
                f"{wanted} contexts were asked for, and the {count} blocks of {split} text have {blocks.size}: ask "
                "for at most that many."
            )
        places = np.random.default_rng(p["seed"]).permutation(blocks.size)[:wanted]
        states = stream.offline_teacher(teacher, blocks, f"{text.title(teacher.name)}-{split}-bottleneck")
        found += [torch.from_numpy(every[places]) for every in (states.reshape(blocks.size, -1), numbers.ravel())]
    names = ("teacher_hidden", "documents", "held_out", "held_out_documents")
    return dict(zip(names, found, strict=True)) | {"teacher_unembedding": matrix, "bias": matrix.shape[1] > teacher.d}


def _row(inputs: Callable[[], dict[str, Any]], p: dict[str, Any], width: int, contexts: int) -> dict[str, Any]:
    given, started = inputs(), time.process_time()
    given = given | {name: given[name][:contexts] for name in ("teacher_hidden", "documents")}
    given |= {name: p[name] for name in ("temperature", "starts", "seed", "tolerance", "steps") if name in p}
    words = p["words"] and max(p["words"], 4 * width)
    found = floor(width=width, words=words, progress=f"width {width}, {contexts} contexts", **given)
    row = {"width": width, "temperature": p["temperature"]}
    for end in ("low", "high"):
        row[end] = getattr(found, end)
        row[f"{end}_low"], row[f"{end}_high"] = getattr(found, f"{end}_interval")
    row |= {name: getattr(found, name) for name in ("contexts", "held_out", "words", "mass")}
    row |= {"starts": len(found.starts), "starts_spread": max(found.starts) - min(found.starts)}
    row |= {name: getattr(found, name) for name in ("converged", "slack", "restricted")}
    return row | {"seconds": time.process_time() - started}
