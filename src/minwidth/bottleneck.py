"""The floor of the last state: the least KL that any student of a width can have from a teacher, in nats per token.

**Theorem.** However deep a student is and however it was trained, if its last state has d numbers, its mean KL from the
teacher on N contexts is at least floor_N(d) = min over W [V x d] of mean_c min over h of KL(p_c || softmax(W h / T)).

*Proof.* 1. In context c the student's logits are W h_c: its unembedding times its last state. 2. Its mean KL is
therefore the mean of KL(p_c || softmax(W h_c / T)) at one W and some h_c. 3. The minimum over all W and one free h a
context can only be lower. 4. Averaged over samples of N contexts it stays below the student's expected loss, and grows
with N: the W that suits more contexts best suits each of them less. 5. At d = d_T it is 0: take the teacher's own.

An output bias is one more column of W: the lower end is then that of rank d + 1 (``bias=True``). Of a vocabulary too
large for all of it the likeliest words S will do, by the chain rule: KL(p || q) >= p(S) KL(p|S || q|S) in each context.

**What is estimated.** ``low`` is floor_N(d): a bound for every student on these contexts, and in the mean on any; it is
below the floor of all text, since W is fitted to the contexts. It leans on the minimum of a problem that is not convex,
so several starts are made and what each came to is told. ``high`` needs no such faith: any W gives an upper end, here
one fitted on training contexts, with each *held-out* context's own best state, a convex problem. Between them lies the
floor of all text, up to the sampling error that the intervals tell.

Known as the softmax bottleneck (Yang et al. 2018, arXiv:1711.03953; Godey et al. 2024, arXiv:2404.07647).

``python -m minwidth.bottleneck --scale tiny --widths 32`` computes both ends for a scale's teacher.
"""

import argparse
import functools
import logging
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from minwidth import errors, kl, models, scales, store, stream, text

log = logging.getLogger(__name__)

CACHE_BYTES = 2**32  # the teacher's probabilities are kept up to this size, and computed anew in each pass beyond it
MEMORY = 10  # pairs of steps and gradients that L-BFGS remembers
PATIENCE = 10  # steps over which a fall below the tolerance counts as the end
VALIDATION = 10  # one training context in so many chooses between the two unembeddings of the upper end
DRAWS = 1000  # of documents, for an interval
RANK_TOLERANCE = 1e-10  # share of the largest variance (of logits) below which a direction is rounding
LADDERS: dict[str, dict[str, Any]] = {  # of each scale; ``blocks`` of text that contexts and held-out ones come from
    "tiny": dict(
        widths=[16, 24, 32, 48, 80, 128], contexts=[1280, 2560, 5120], held_out=4096, starts=2, blocks=[512, 384]
    ),
    "smollm2": dict(widths=[64, 128, 256, 384, 512], contexts=[1152, 2304], held_out=1024, starts=1, blocks=[512, 96]),
    "pythia-410m": dict(
        widths=[128, 256, 512, 768], contexts=[8192, 16_384, 32_768], held_out=4096, starts=2, blocks=[2048, 512]
    ),
}
OTHERS: dict[str, Any] = dict(contexts=[2048, 4096, 8192], held_out=2048, starts=2, blocks=[512, 96])


class Floor(NamedTuple):
    """Both ends of the floor of a width, in nats per token, and what they rest on."""

    low: float  # floor_N: the least loss found on the contexts
    low_interval: tuple[float, float]  # 95 %, documents of the contexts drawn again, W and states as they are
    high: float  # mean loss of held-out contexts with their own best states under a W fitted on training contexts
    high_interval: tuple[float, float]  # 95 %, documents of the held-out contexts drawn again
    starts: tuple[float, ...]  # what each start came to; low is the least of them
    converged: float  # share by which the best start fell over its last PATIENCE steps
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
    ``PATIENCE`` steps lower the loss by a share less than ``tolerance``. A function of the arguments alone, to the last
    bit with one thread. In float64 where the inputs are.

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
    d_teacher = teacher_hidden.shape[-1]
    _check(teacher_hidden, teacher_unembedding, held_out, width, temperature, words, starts)
    documents = _documents(documents, teacher_hidden)
    held_out_documents = _documents(held_out_documents, held_out)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(teacher_hidden), generator=generator)
    chosen, validation = order[len(order) // VALIDATION :], order[: len(order) // VALIDATION]
    hidden, vocabulary = teacher_hidden / temperature, len(teacher_unembedding)
    words = min(words or vocabulary, vocabulary)

    with torch.no_grad():
        everything = _target(hidden[chosen], teacher_unembedding)
        if words < vocabulary:
            likeliest = _mean_probabilities(everything).topk(words).indices.sort().values
            target = _target(hidden[chosen], teacher_unembedding, likeliest)
        else:
            target = everything
        rank = min(width + bias, d_teacher)

        # W = W_T A first, on as many contexts as make a pass over all words cost what one over S does.
        part = chosen[: max(2 * width, len(chosen) * words // vocabulary)]
        whole = everything if len(part) == len(chosen) else _target(hidden[part], teacher_unembedding)
        upper = _minimise(
            whole, *_principal(whole, width), True, steps, 10 * tolerance, progress and f"{progress}, W = W_T A"
        )
        continued = target is whole and rank == width
        fits = []
        for start in range(starts):
            first = _principal(target, rank, generator if start else None)
            if continued and not start:
                first = upper.hidden, upper.matrix
            said = progress and f"{progress}, start {start + 1}"
            fits.append(_minimise(target, *first, False, steps, tolerance, said))
        best = min(fits, key=lambda fit: fit.loss)
        restricted = True
        if continued:
            unseen = _target(hidden[validation], teacher_unembedding)
            restricted = len(validation) > 0 and bool(
                _held_out(unseen, whole, upper)[0].mean() < _held_out(unseen, whole, best)[0].mean()
            )
            upper = upper if restricted else best
        unseen = _target(held_out / temperature, teacher_unembedding)
        high, states, slack = _held_out(unseen, whole, upper)
    return Floor(
        low=best.loss,
        low_interval=interval(best.losses, documents[chosen]),
        high=float(high.double().mean()),
        high_interval=interval(high, held_out_documents),
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


def interval(losses: Float[Tensor, " tokens"], documents: Int[Tensor, " tokens"], seed: int = 0) -> tuple[float, float]:
    """95 % interval of a mean of losses: whole documents drawn again with replacement, ``DRAWS`` times."""
    _, number = np.unique(np.asarray(documents.cpu()), return_inverse=True)
    sums = np.bincount(number, losses.double().cpu().numpy())
    counts = np.bincount(number)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), DRAWS)
    return tuple(float(end) for end in np.quantile(drawn @ sums / (drawn @ counts), [0.025, 0.975]))


def _check(hidden, unembedding, held_out, width, temperature, words, starts) -> None:
    if hidden.ndim != 2 or held_out.ndim != 2 or not hidden.shape[1] == held_out.shape[1] == unembedding.shape[1]:
        raise ValueError(
            f"contexts {list(hidden.shape)}, held_out {list(held_out.shape)} and unembedding "
            f"{list(unembedding.shape)} must be matrices that share d_T, their second dimension."
        )
    if not 1 <= width <= hidden.shape[1]:
        raise ValueError(f"width = {width} is outside 1 ... {hidden.shape[1]}, the teacher's: give one of those.")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature = {temperature} is not positive and finite; the study's is 2.")
    if len(hidden) < 2 * width or len(held_out) < 1:
        raise ValueError(
            f"{len(hidden)} contexts and {len(held_out)} held out are too few for width {width}: give at least "
            f"{2 * width} and 1, and many times the width for a lower end that says something."
        )
    if words is not None and not width < words:
        raise ValueError(f"words = {words} must exceed the width, {width}: with fewer the lower end is 0.")
    if starts < 1:
        raise ValueError(f"starts = {starts}: give at least 1, and more to see whether they agree.")


def _documents(documents: Tensor | None, hidden: Tensor) -> Tensor:
    if documents is None:
        return torch.arange(len(hidden))
    documents = torch.as_tensor(documents)
    if documents.shape != hidden.shape[:1]:
        raise ValueError(f"documents must be one number for each of {len(hidden)} contexts, not {documents.shape}.")
    return documents


# -------------------------------------------------------------------------------------------------------- a ladder


def ladder(
    scale_or_teacher: str = "tiny",
    widths: Sequence[int] | None = None,
    *,
    temperature: float = 2.0,
    contexts: Sequence[int] | None = None,
    held_out: int | None = None,
    words: int | None = None,
    starts: int | None = None,
    seed: int = 0,
    tolerance: float = 1e-3,
) -> store.Record:
    """Both ends of the floor at each width, for a teacher on the study's text.

    One record for each width and number of contexts, found or computed, the largest numbers first. The value ``table``
    has a row a width, at the most contexts: ``width, temperature, low, low_low, low_high, high, high_low, high_high,
    contexts, held_out, words, mass, starts, starts_spread, converged, slack, restricted, seconds`` (of the processor);
    ``growth`` has them at every number of contexts.

    Args:
        scale_or_teacher: as ``models.load_teacher``.
        contexts: numbers of training contexts to compare, a tenth of which only chooses the W of the upper end. They
            are nested, and drawn like the held-out ones from blocks spread evenly over the documents. The scale's own
            if None, as ``widths``, ``held_out`` and ``starts`` (``LADDERS``).

    Raises:
        ParameterError: as ``models.load_teacher``, and for a width the teacher does not have; ValueError as ``floor``.
    """
    own = LADDERS.get(scale_or_teacher, OTHERS)
    d_teacher = models.load_config(scale_or_teacher).hidden_size
    widths = sorted(widths or own.get("widths") or {max(1, d_teacher * eighths // 8) for eighths in (1, 2, 4, 6)})
    for width in widths:
        if not 1 <= width <= d_teacher:
            raise errors.ParameterError(f"width = {width} is outside 1 ... {d_teacher}, the teacher's: give one there.")
    contexts = sorted(contexts or own["contexts"])
    if contexts[0] < 2 * widths[-1]:
        raise errors.ParameterError(
            f"contexts = {contexts[0]} are too few for width {widths[-1]}: give at least {2 * widths[-1]}."
        )
    text = scales.SCALES.get(scale_or_teacher, scales.SCALES["tiny"])["04_distill"]
    label = re.sub(r"[^A-Za-z0-9_.-]+", "_", scale_or_teacher).strip("_.")
    p = {
        "teacher": models.teacher_revision(scale_or_teacher),
        "temperature": temperature,
        "held_out": held_out or own["held_out"],
        "words": words,
        "starts": starts or own["starts"],
        "seed": seed,
        "tolerance": tolerance,
        "blocks": own["blocks"],
    } | {name: text[name] for name in ("text", "length", "percent")}

    @functools.cache
    def data() -> dict[str, Tensor]:
        return _data(models.load_teacher(scale_or_teacher), label, p, contexts[-1])

    todo = [(count, width) for count in reversed(contexts) for width in widths]
    found = []
    before = torch.get_num_threads()
    torch.set_num_threads(1 if d_teacher <= scales.ONE_THREAD else before)
    try:
        for count, width in tqdm(todo, desc=f"floors of {label}", unit=" floors", leave=False):
            record = store.find_or_compute(
                f"bottleneck/{label}/w{width}-n{count}",
                p | {"width": width, "contexts": count},
                lambda count=count, width=width: _row(data(), p, width, count),
            )
            found.append(record.values)
    finally:
        torch.set_num_threads(before)

    def assemble() -> dict[str, Any]:
        growth = pd.DataFrame(found).sort_values(["width", "contexts"], ignore_index=True)
        return {"growth": growth, "table": growth.groupby("width").tail(1).reset_index(drop=True)}

    return store.find_or_compute(f"bottleneck/{label}/ladder", p | {"widths": widths, "contexts": contexts}, assemble)


def _data(teacher: models.Teacher, label: str, p: dict[str, Any], contexts: int) -> dict[str, Tensor]:
    """The teacher's states in contexts drawn from blocks spread evenly over the documents of each split."""
    found = {"unembedding": models.unembedding(teacher.model).detach()}
    for split, blocks, wanted in zip(("train", "held_out"), p["blocks"], (contexts, p["held_out"]), strict=True):
        wanted_blocks = None if p["text"] == "wheels" else blocks  # few enough to be read whole, and spread over
        every = text.token_blocks(teacher.tokenizer, split, p["length"], p["percent"], p["text"], wanted_blocks)
        documents = text.document_numbers(every, teacher.tokenizer)
        rows = np.linspace(0, len(every) - 1, min(blocks, len(every))).round().astype(int)
        places = np.random.default_rng(p["seed"]).permutation(len(rows) * every.shape[1])[:wanted]
        if len(places) < wanted:
            raise errors.ParameterError(
                f"{wanted} contexts were asked for, and the {len(rows)} blocks of {split} text have {len(places)}: ask "
                "for at most that many."
            )
        states = stream.offline_teacher(teacher, every[rows], f"{label}-{split}-bottleneck")
        found[split] = torch.from_numpy(states.reshape(-1, teacher.d)[places])
        found[f"{split}_documents"] = torch.from_numpy(documents[rows].ravel()[places])
    return found


def _row(data: dict[str, Tensor], p: dict[str, Any], width: int, contexts: int) -> dict[str, Any]:
    started = time.process_time()
    found = floor(
        data["train"][:contexts],
        data["unembedding"],
        width,
        held_out=data["held_out"],
        documents=data["train_documents"][:contexts],
        held_out_documents=data["held_out_documents"],
        progress=f"width {width}, {contexts} contexts",
        **{name: p[name] for name in ("temperature", "words", "starts", "seed", "tolerance")},
    )
    row = {"width": width, "temperature": p["temperature"]}
    for end in ("low", "high"):
        row[end] = getattr(found, end)
        row[f"{end}_low"], row[f"{end}_high"] = getattr(found, f"{end}_interval")
    row |= {name: getattr(found, name) for name in ("contexts", "held_out", "words", "mass")}
    row |= {"starts": len(found.starts), "starts_spread": max(found.starts) - min(found.starts)}
    row |= {name: getattr(found, name) for name in ("converged", "slack", "restricted")}
    return row | {"seconds": time.process_time() - started}


def main(arguments: list[str] | None = None) -> None:
    """Bracket the floor of the last state at several widths of a student; records found are kept."""
    parser = argparse.ArgumentParser(prog="python -m minwidth.bottleneck", description=main.__doc__)
    parser.add_argument("--scale", default="tiny", help="a scale, or a teacher by folder or owner/name@commit")
    parser.add_argument("--widths", type=int, nargs="+", help="of the last state; the scale's own if left out")
    parser.add_argument("--contexts", type=int, nargs="+", help="of training text; more make the lower end higher")
    parser.add_argument("--held-out", type=int, help="contexts of the upper end")
    parser.add_argument("--words", type=int, help="likeliest words that the lower end looks at")
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--starts", type=int, help="of the lower end's minimisation; whether they agree is told")
    given = vars(parser.parse_args(arguments))
    scale = given.pop("scale")
    record = ladder(scale, **given)
    if scale in scales.SCALES:
        for name, table in (("bottleneck", "table"), ("bottleneck_growth", "growth")):
            store.save_results(scale, name, record[table], record)
    columns = ["width", "low", "low_low", "low_high", "high", "high_low", "high_high", "contexts", "words", "mass"]
    log.info("%s", record["table"][columns].to_string(index=False, float_format="%.4f"))


# --------------------------------------------------------------------------------------------------- what is compared


class _Target(NamedTuple):
    """The teacher on some contexts and words; hidden states are divided by the temperature."""

    hidden: Float[Tensor, "contexts d_T"]
    unembedding: Float[Tensor, "words d_T"]
    log_sum: Float[Tensor, "contexts"]  # of exp(logits), over all words
    mass: Float[Tensor, "contexts"]  # p(S)
    negentropy: Float[Tensor, "contexts"]  # sum over S of p log(p / p(S))
    cached: Float[Tensor, "contexts words"] | None  # p

    def probabilities(self, rows: slice) -> Float[Tensor, "rows words"]:
        if self.cached is not None:
            return self.cached[rows]
        return torch.mm(self.hidden[rows], self.unembedding.T).sub_(self.log_sum[rows, None]).exp_()


def _chunks(contexts: int, words: int, device: torch.device) -> Iterator[slice]:
    size = kl.tokens_at_once(device.type, words)
    return (slice(start, min(start + size, contexts)) for start in range(0, contexts, size))


def _target(hidden: Tensor, unembedding: Tensor, chosen: Int[Tensor, "words"] | None = None) -> _Target:
    matrix = unembedding if chosen is None else unembedding[chosen]
    contexts, words = len(hidden), len(matrix)
    cached = None
    if contexts * words * hidden.element_size() <= CACHE_BYTES:
        cached = hidden.new_empty(contexts, words)
    log_sum, mass, negentropy = (hidden.new_empty(contexts) for _ in range(3))
    for rows in _chunks(contexts, len(unembedding), hidden.device):
        logits = hidden[rows] @ unembedding.T
        log_sum[rows] = logits.logsumexp(1)
        p = (logits if chosen is None else logits[:, chosen]).sub_(log_sum[rows, None])
        of_part = p.logsumexp(1) if chosen is not None else torch.zeros_like(log_sum[rows])
        mass[rows] = of_part.exp()
        log_p = p.clone()
        p.exp_()
        negentropy[rows] = torch.linalg.vecdot(p, log_p) - mass[rows] * of_part
        if cached is not None:
            cached[rows] = p
    return _Target(hidden, matrix, log_sum, mass, negentropy, cached)


def _mean_probabilities(target: _Target, weights: Float[Tensor, "contexts"] | None = None) -> Float[Tensor, " words"]:
    """Mean over contexts of each word's probability, or of a weight times that."""
    total = target.hidden.new_zeros(len(target.unembedding))
    for rows in _chunks(len(target.hidden), len(total), total.device):
        p = target.probabilities(rows)
        total += p.sum(0) if weights is None else weights[rows] @ p
    return total / len(target.hidden)


def _losses_and_gradients(
    target: _Target,
    hidden: Float[Tensor, "contexts d"],
    unembedding: Float[Tensor, "words d"],
    gradients: tuple[bool, bool] = (True, True),
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """p(S) KL(p|S || q|S) of each context, and the gradients of their *sum* for states and unembedding."""
    contexts, words = len(hidden), len(unembedding)
    losses = hidden.new_empty(contexts)
    for_hidden = torch.empty_like(hidden) if gradients[0] else None
    for_matrix = torch.zeros_like(unembedding) if gradients[1] else None
    block = max(1, kl.BLOCK_ELEMENTS // words) if hidden.is_cpu else contexts
    for rows in _chunks(contexts, words, hidden.device):
        logits = hidden[rows] @ unembedding.T
        p, mass, negentropy = target.probabilities(rows), target.mass[rows], target.negentropy[rows]
        for start in range(0, len(logits), block):
            part = slice(start, start + block)
            losses[rows][part] = _reduce_(logits[part], p[part], mass[part], any(gradients)).add_(negentropy[part])
        if gradients[0]:
            torch.mm(logits, unembedding, out=for_hidden[rows])
        if gradients[1]:
            for_matrix.addmm_(logits.T, hidden[rows])
    return losses, for_hidden, for_matrix


def _reduce_(logits: Tensor, p: Tensor, mass: Tensor, gradient: bool) -> Tensor:
    """mass log sum exp(logits) - p . logits, row by row; leaves the gradient, mass q - p, in the logits."""
    logits.sub_(logits.amax(1, keepdim=True))
    chosen = torch.linalg.vecdot(p, logits)
    total = logits.exp_().sum(1)
    if gradient:
        logits.mul_((mass / total).unsqueeze(1)).sub_(p)
    return total.log_().mul_(mass).sub_(chosen)


# ---------------------------------------------------------------------------------------------------- minimisation


class _Fit(NamedTuple):
    hidden: Float[Tensor, "contexts d"]
    unembedding: Float[Tensor, "words d"]
    matrix: Float[Tensor, "d_T d"]  # the A of W = W_T A; of a free W that of where it started
    losses: Float[Tensor, "contexts"]
    loss: float
    fall: float  # share over the last PATIENCE steps


def _principal(
    target: _Target, width: int, generator: torch.Generator | None = None
) -> tuple[Float[Tensor, "contexts d"], Float[Tensor, "d_T d"]]:
    """States and the A of W = W_T A that keep most of the logits' variance, words weighted by their mean probability.

    With M the second moment of the teacher's states and G that of its unembedding, centred, they are principal
    directions of G^1/2 M G^1/2. With a generator, a random sketch of them.
    """
    mean = _mean_probabilities(target).double()
    mean /= mean.sum()
    matrix, hidden = target.unembedding.double(), target.hidden.double()
    matrix = matrix - mean @ matrix
    values, vectors = torch.linalg.eigh((matrix.T * mean) @ matrix)
    kept = values > RANK_TOLERANCE * values.max()
    values, vectors = values[kept].sqrt(), vectors[:, kept]
    states = hidden @ (vectors * values)
    moment = states.T @ states / len(states)
    values_of_moment, directions = torch.linalg.eigh(moment)
    rank = int((values_of_moment > RANK_TOLERANCE * values_of_moment.max()).sum())
    width = min(width, rank)
    if generator is None:
        directions = directions[:, -width:].flip(1)
    else:
        noise = torch.randn(len(moment), width, generator=generator, dtype=torch.float64).to(moment.device)
        directions = torch.linalg.qr(moment @ noise).Q
    dtype = target.hidden.dtype
    return (states @ directions).to(dtype), ((vectors / values) @ directions).to(dtype)


def _minimise(
    target: _Target,
    hidden: Float[Tensor, "contexts d"],
    matrix: Float[Tensor, "d_T d"],
    restricted: bool,
    steps: int,
    tolerance: float,
    progress: str | None,
) -> _Fit:
    """Least mean loss over all states and W, or ``restricted``, over all states and A in W = W_T A, from W_T A.

    Coordinates of the state are first chosen so that the mean Hessian is the identity; what a change of a state or of a
    word's row costs then differs by a factor a context or word, which scales the first guess of L-BFGS.
    """
    contexts = len(hidden)
    mean = _mean_probabilities(target)
    unembedding = target.unembedding @ matrix
    unembedding = unembedding - (mean / mean.sum()) @ unembedding
    hessian, costs = _curvature(target, unembedding)
    lower = _cholesky(hessian)
    hidden, matrix = hidden @ lower, torch.linalg.solve_triangular(lower, matrix.T, upper=False).T.contiguous()
    unembedding = torch.linalg.solve_triangular(lower, unembedding.T, upper=False).T.contiguous()
    hessian, costs = _curvature(target, unembedding)
    costs = costs + costs.mean() / 10
    moment = _cholesky(hidden.T @ hidden / contexts)
    basis, start = None, matrix
    if not restricted:
        matrix = unembedding
        spread = _mean_probabilities(target, hidden.square().sum(1)) / hidden.square().sum(1).mean()
        spread = spread + 1e-3 / len(spread)
    else:
        basis = target.unembedding - (mean / mean.sum()) @ target.unembedding
        metric = _cholesky((basis.T * mean) @ basis)

    def unembedding_of(x: Tensor) -> tuple[Tensor, Tensor]:
        states, matrix_ = x[: hidden.numel()].view_as(hidden), x[hidden.numel() :].view_as(matrix)
        return states, matrix_ if basis is None else basis @ matrix_

    def value(x: Tensor) -> tuple[Tensor, Tensor]:
        losses, for_hidden, for_matrix = _losses_and_gradients(target, *unembedding_of(x))
        if basis is not None:
            for_matrix = basis.T @ for_matrix
        return losses, torch.cat([for_hidden.flatten(), for_matrix.flatten()]).div_(contexts)

    def scaled(gradient: Tensor) -> Tensor:
        for_hidden = gradient[: hidden.numel()].view_as(hidden) * (contexts / costs).unsqueeze(1)
        for_matrix = gradient[hidden.numel() :].view_as(matrix)
        for_matrix = for_matrix / spread.unsqueeze(1) if basis is None else torch.cholesky_solve(for_matrix, metric)
        for_matrix = torch.cholesky_solve(for_matrix.T, moment).T
        return torch.cat([for_hidden.flatten(), for_matrix.flatten()])

    x, losses, history = _lbfgs(
        value, scaled, torch.cat([hidden.flatten(), matrix.flatten()]), steps, tolerance, progress
    )
    found = x[hidden.numel() :].view_as(matrix) if restricted else start
    before = history[max(0, len(history) - 1 - PATIENCE)]
    fall = (before - history[-1]) / max(before, 1e-5)  # a loss of 0 is one of rounding
    return _Fit(*unembedding_of(x), found, losses, history[-1], fall)


def _curvature(
    target: _Target, unembedding: Float[Tensor, "words d"]
) -> tuple[Float[Tensor, "d d"], Float[Tensor, "contexts"]]:
    """Mean Hessian of a context's loss in its state, taken at q = p, and each context's trace over d."""
    squares, means, traces = unembedding.square().sum(1), [], []
    for rows in _chunks(len(target.hidden), len(unembedding), unembedding.device):
        p = target.probabilities(rows)
        means.append(p @ unembedding)
        traces.append(p @ squares)
    mean, trace = torch.cat(means), torch.cat(traces)
    weighted = mean / target.mass.unsqueeze(1)
    hessian = (unembedding.T * _mean_probabilities(target)) @ unembedding - mean.T @ weighted / len(mean)
    return hessian, (trace - (mean * weighted).sum(1)) / unembedding.shape[1]


def _cholesky(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """Lower factor of a matrix that is positive, but for rounding."""
    ridge = 100 * torch.finfo(matrix.dtype).eps * matrix.diagonal().mean() + torch.finfo(matrix.dtype).tiny
    return torch.linalg.cholesky(matrix + ridge * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device))


def _lbfgs(value, scaled, x: Tensor, steps: int, tolerance: float, progress: str | None):
    """Minimise the mean of ``value(x)[0]``, whose gradient is ``value(x)[1]``; ``scaled`` guesses H^-1 g."""
    pairs: list[tuple[Tensor, Tensor, float]] = []
    losses, gradient = value(x)
    history = [float(losses.double().mean())]
    bar = tqdm(total=steps, desc=progress, unit=" steps", leave=False, disable=progress is None)
    while len(history) <= steps:
        direction, shares = gradient.clone(), []
        for step, change, product in reversed(pairs):
            shares.append(float(step @ direction) / product)
            direction.sub_(change, alpha=shares[-1])
        direction = scaled(direction)
        if pairs:
            step, change, product = pairs[-1]
            direction.mul_(product / float(change @ scaled(change)))
        for (step, change, product), share in zip(pairs, reversed(shares), strict=True):
            direction.add_(step, alpha=share - float(change @ direction) / product)
        slope, length = -float(direction @ gradient), 1.0 if pairs else 0.5
        while True:
            new = x - length * direction
            new_losses, new_gradient = value(new)
            loss = float(new_losses.double().mean())
            if loss <= history[-1] + 1e-4 * length * slope or length < 1e-3:
                break
            length *= 0.4
        if not loss < history[-1]:  # rounding is all that is left
            break
        pairs.append((new - x, new_gradient - gradient, 0.0))
        product = float(pairs[-1][0] @ pairs[-1][1])
        pairs[-1] = (*pairs[-1][:2], product)
        pairs = pairs[-MEMORY:] if product > 0 else pairs[:-1]
        x, losses, gradient = new, new_losses, new_gradient
        history.append(loss)
        bar.update()
        bar.set_postfix_str(f"{loss:.5f} nats", refresh=False)  # steps are many; each redraw is a message
        if len(history) > PATIENCE and history[-1 - PATIENCE] - loss < tolerance * loss:
            break
    bar.close()
    return x, losses, history


def _held_out(target: _Target, trained: _Target, fit: _Fit) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, best state and Newton decrement of each context under the W of a fit to others.

    Starts from the linear map of the teacher's state that suits the fit's contexts. A Newton step solves for the
    Hessian by conjugate gradients, a few products with W, in coordinates in which the mean Hessian is the identity.
    Convex: near the end the loss is above its minimum by about half the decrement.
    """
    states = trained.hidden.double()
    linear = torch.linalg.pinv(states.T @ states, rtol=1e-10, hermitian=True) @ (states.T @ fit.hidden.double())
    lower = _cholesky(_curvature(target, fit.unembedding)[0])
    unembedding = torch.linalg.solve_triangular(lower, fit.unembedding.T, upper=False).T.contiguous()
    hidden = target.hidden @ linear.to(lower.dtype) @ lower
    losses, decrements = torch.empty_like(target.mass), torch.empty_like(target.mass)
    for rows in _chunks(len(hidden), len(unembedding), hidden.device):
        hidden[rows], losses[rows], decrements[rows] = _newton(
            hidden[rows], unembedding, target.probabilities(rows), target.mass[rows], target.negentropy[rows]
        )
    return losses, torch.linalg.solve_triangular(lower.T, hidden.T, upper=True).T.contiguous(), decrements


def _newton(
    h: Float[Tensor, "rows d"],
    w: Float[Tensor, "words d"],
    p: Float[Tensor, "rows words"],
    mass: Float[Tensor, "rows"],
    negentropy: Float[Tensor, "rows"],
    steps: int = 10,
    inner: int = 12,
) -> tuple[Tensor, Tensor, Tensor]:
    """State, loss and Newton decrement of each row, from the state it starts at."""
    tiny, wanted = torch.finfo(h.dtype).tiny, p @ w

    def loss_and_q(h: Tensor, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        logits = h @ w.T
        losses = _reduce_(logits, p[rows], mass[rows], True).add_(negentropy[rows])
        return losses, logits.add_(p[rows])

    losses, q = loss_and_q(h, slice(None))
    for _ in range(steps):
        mean = q @ w
        gradient = rest = direction = mean - wanted
        step, size = torch.zeros_like(h), gradient.square().sum(1, keepdim=True)
        for _ in range(inner):
            change = direction @ w.T
            moved = torch.linalg.vecdot(q, change).unsqueeze(1) / mass.unsqueeze(1)
            product = (
                change.mul_(q) @ w - moved * mean + 1e-4 * direction
            )  # damped, for states that cost next to nothing
            length = size / torch.linalg.vecdot(direction, product).unsqueeze(1).clamp_min(tiny)
            step, rest = step + length * direction, rest - length * product
            before, size = size, rest.square().sum(1, keepdim=True)
            direction = rest + size / before.clamp_min(tiny) * direction
            if float(size.mean()) < 1e-3 * float(gradient.square().sum(1).mean()):
                break
        decrement = torch.linalg.vecdot(gradient, step)
        new = h - step
        new_losses, new_q = loss_and_q(new, slice(None))
        for shorter in (4.0**-n for n in range(1, 12)):
            worse = ~(new_losses <= losses + 1e-6)  # or not a number
            if not worse.any():
                break
            new[worse] = h[worse] - shorter * step[worse]
            new_losses[worse], new_q[worse] = loss_and_q(new[worse], worse)
        h, losses, q = new, new_losses, new_q
        if float(decrement.mean()) < 1e-6:
            break
    return h, losses, decrement


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with errors.in_one_sentence():
        main()
