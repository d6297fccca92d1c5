"""What sparse autoencoders say of a residual stream: F, L0, alpha, importances and d*, with intervals over documents.

``measure`` trains (``autoencoder``) and measures all that 03_sae shows. A latent's importance I_i = E[z_i^2] means the
same everywhere, since inputs have a mean norm of sqrt(d).
"""

import argparse
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy import sparse
from torch import Tensor, nn
from tqdm.auto import tqdm

from minwidth import autoencoder, capacity, cut, kl, models, projection, scales, store, stream, text, training
from minwidth.autoencoder import Run, Sae, Settings
from minwidth.errors import ParameterError, command

log = logging.getLogger(__name__)

ALIVE = 1e-5  # a latent is alive if it is active on more than this share of the tokens
TEMPERATURE = 2.0  # of KL in nats, as students are distilled
DRAWS = 200  # of the bootstrap over documents
COUNTED = ("alive", "l0", "alpha", "d_star")


# ------------------------------------------------------------------------------------------------------ statistics


class Sums(NamedTuple):
    """What an autoencoder does on held-out documents, summed within each, so that documents can be drawn again."""

    document: Int[np.ndarray, "documents"]  # their numbers, rising
    tokens: Float[np.ndarray, "documents"]
    active: sparse.csr_array  # tokens on which a latent is active ``[documents, latents]``
    squares: sparse.csr_array  # sum of z^2 ``[documents, latents]``
    error: float  # sum of ||x - x_hat||^2


@torch.no_grad()
def sums(sae: Sae, x: Float[Tensor, "tokens d"], document: Int[Tensor, "tokens"]) -> Sums:
    """Encode ``x`` and sum by ``document``, whose numbers rise."""
    parts = []
    for part, numbers in zip(x.split(4096), document.split(4096), strict=True):
        part = part.to(sae.decoder.device)
        z = sae.encode(part)
        error = float((part - sae.decode(z)).square().sum())
        names, tokens = np.unique(numbers.numpy(), return_counts=True)  # a document's tokens stand together
        lengths = torch.from_numpy(tokens).to(z.device)
        by_document = (torch.segment_reduce(v, "sum", lengths=lengths) for v in ((z > 0).to(z), z.square()))
        parts.append(Sums(names, tokens, *(sparse.csr_array(v.double().cpu().numpy()) for v in by_document), error))
    return joined(parts)


def joined(parts: Sequence[Sums]) -> Sums:
    """Sums of consecutive parts of a text as those of the whole; a document may go on from one part to the next."""
    document, tokens, active, squares, error = zip(*parts, strict=True)
    names, row = np.unique(np.concatenate(document), return_inverse=True)
    gather = sparse.csr_array((np.ones(len(row)), (row, np.arange(len(row)))), (len(names), len(row)))
    matrices = (gather @ sparse.vstack(matrix, "csr") for matrix in (active, squares))
    return Sums(names, gather @ np.concatenate(tokens), *matrices, sum(error))


class Statistics(NamedTuple):
    """Feature statistics of one sample; arrays have one entry a latent."""

    alive: int  # F, latents with frequency above ALIVE
    l0: float  # mean number of active latents
    frequency: Float[np.ndarray, "latents"]
    importance: Float[np.ndarray, "latents"]  # I_i = E[z_i^2]

    @property
    def alpha(self) -> float:
        """Share of zeros among the alive latents, 1 - L0 / F."""
        return 1 - self.l0 / self.alive

    @property
    def d_star(self) -> float:
        """Critical width F / g(alpha) = L0 ln(F / L0)."""
        return float(capacity.critical_width_from_l0(self.alive, self.l0))

    @property
    def tail(self) -> Float[np.ndarray, "alive"]:
        """Importance of the alive latents, in falling order."""
        return np.sort(self.importance[self.frequency > ALIVE])[::-1]


def statistics(sums: Sums, weights: Float[np.ndarray, "documents"] | None = None) -> Statistics:
    """Statistics of the sample, or of one in which each document counts as often as ``weights`` says."""
    weights = np.ones(len(sums.tokens)) if weights is None else weights
    tokens = weights @ sums.tokens
    frequency = weights @ sums.active / tokens
    alive, l0 = int((frequency > ALIVE).sum()), float(frequency.sum())
    if alive < 2 or not 0 < l0 < alive:
        raise ValueError(
            f"The autoencoder has {alive} alive latents and L0 = {l0:g}, which measures nothing; "
            "lower lam or train longer."
        )
    return Statistics(alive, l0, frequency, weights @ sums.squares / tokens)


def bootstrap(sums: Sums, seed: int) -> list[Statistics]:
    """Statistics of ``DRAWS`` samples of as many documents, drawn with replacement."""
    documents = len(sums.tokens)
    weights = np.random.default_rng(seed).multinomial(documents, np.full(documents, 1 / documents), DRAWS)
    return [statistics(sums, row) for row in weights.astype(float)]


def interval(value: Float[np.ndarray, "..."], replicates: Float[np.ndarray, "draws ..."]) -> tuple:
    """95 % percentile interval, shifted so that the replicates' mean lies on the value.

    The shift matters where resampling is biased: documents drawn again hold fewer distinct features.
    """
    low, high = np.quantile(replicates, [0.025, 0.975], axis=0) - np.mean(replicates, axis=0) + value
    return np.minimum(low, value), np.maximum(high, value)


def second_moments(x: Float[Tensor, "tokens d"]) -> Float[Tensor, "d+1 d+1"]:
    """Sums of products of a stream with a 1 at its end, in float64; those of parts of a text add up."""
    parts = (nn.functional.pad(part.double(), (0, 1), value=1.0) for part in x.split(4096))
    return sum(part.T @ part for part in parts)


def mean_and_covariance(moments: Float[Tensor, "d+1 d+1"]) -> tuple[Float[Tensor, "d"], Float[Tensor, "d d"]]:
    """Of a stream; the covariance is unbiased."""
    tokens, mean = moments[-1, -1], moments[-1, :-1] / moments[-1, -1]
    return mean, (moments[:-1, :-1] - tokens * torch.outer(mean, mean)) / (tokens - 1)


# ---------------------------------------------------------------------------------------------------------- in nats


@torch.no_grad()
def divergence(
    teacher: models.Teacher,
    blocks: Int[np.ndarray, "blocks length"],
    states: Float[np.ndarray, "blocks length d"],
    model: nn.Module,
) -> float:
    """Mean KL(teacher || model) over all tokens of the blocks, in nats at T = ``TEMPERATURE``; the states are its."""
    matrix, own, start, total = models.unembedding(teacher.model), models.unembedding(model), 0, 0.0
    for ids in stream.batches(blocks, teacher.model.device):
        of_teacher = torch.from_numpy(states[start : start + len(ids)].copy()).to(ids.device)
        hidden, start = models.final_hidden(model, ids), start + len(ids)
        total += float(kl.divergence(hidden, own, of_teacher, matrix, TEMPERATURE, per_token=True).sum())
    return total / blocks.size


def continued(
    teacher: models.Teacher, layer: int, calibration: stream.Calibration, reconstruct: Callable[[Tensor], Tensor]
) -> AbstractContextManager[nn.Module]:
    """The teacher as it continues from ``reconstruct(x)`` at a layer; tokens left out stay as they are."""

    def replace(x: Tensor) -> Tensor:
        keep, scale = stream.kept_tokens({layer: x}, calibration), calibration.scale[layer]
        x = x.clone()
        x[keep] = reconstruct(x[keep] * scale) / scale
        return x

    return stream.spliced(teacher.model, layer, replace)


# --------------------------------------------------------------------------------------------------- the measurement


def measure(p: scales.Sae) -> store.Record:
    """Train autoencoders on a teacher's residual stream and predict floors at every width; found if done before.

    One autoencoder with the default lambda at each layer, and one for each lambda at the predicting layer.

    Returns:
        A record with the tables ``layers`` (a row an autoencoder: F, L0, alpha, g, d* with 95 % intervals over
        documents, unexplained variance ``fvu``, KL in nats if the model continues from the reconstruction,
        ``kl_spliced``, or from the mean, ``kl_ablated``), ``floors`` (``predictions`` of each; ``kl_cut``: KL of the
        teacher cut to that width), ``curves`` (training) and ``doubling`` (the default after its steps and, if asked
        for, twice as many); the arrays ``importance/<layer>/<lam>`` (of alive latents, falling); of the default
        ``latents`` (their numbers, in that order), ``importance``, ``frequency`` and the autoencoder itself (``load``);
        and values: ``alive``, ``alpha``, ``l0``, ``d_star``, ``lam``, ``layer``, ``d_teacher``, ``left_out``.
    """
    place = "-".join(re.findall(r"\w+(?:\.\w+)*", p.teacher, re.ASCII)[-2:])
    parameters = p.model_dump() | text.pin(p.text)
    parameters |= {"revision": models.teacher_revision(p.teacher, p.revision or None)}
    what = f"sae/{p.scale}/{place}-l{p.layer}"
    return training.find_or_compute(what, parameters, lambda: _measure(p, store.work_folder(what, parameters)))


def _measure(p: scales.Sae, work: Path) -> dict[str, Any]:
    teacher = models.load_teacher(p.teacher, p.revision or None, training.state().device)
    text, unseen = read_text(p, teacher, "train", p.tokens), read_text(p, teacher, "held_out", p.held_out_tokens)
    layers = sorted({p.layer, *p.layers})
    calibration = stream.calibrate(teacher, text, layers)
    trained = autoencoder.train(teacher, text, calibration, settings(p, teacher.d), work, f"{p.scale}-sae")
    moments, every_sums, left_out = _held_out(teacher, unseen, calibration, trained)

    blocks = unseen[: max(1, p.kl_tokens // unseen.shape[1])]
    nats = partial(divergence, teacher, blocks, stream.offline_teacher(teacher, blocks, f"{p.scale}-sae"))
    basis = cache(lambda: projection.stream_basis(teacher.model, stream.batches(text[: len(blocks)], "cpu")))
    of_cut, refused = [math.nan] * len(p.widths), set()
    for place, width in enumerate(p.widths):
        try:
            of_cut[place] = nats(cut.cut_to_width(teacher.model, basis(), width))
        except ValueError as error:  # of a family, or to a width, that can't be cut
            refused.add(str(error))
    for reason in refused:
        log.warning("%s", reason)
    spectra, variance, ablated = {}, {}, {}
    for layer in layers:
        tokens, (mean, covariance) = int(moments[layer][-1, -1]), mean_and_covariance(moments[layer])
        spectra[layer] = torch.linalg.eigvalsh(covariance).flip(0).clamp(min=0).numpy()
        variance[layer] = (tokens - 1) * float(covariance.trace())
        with continued(teacher, layer, calibration, mean.float().to(teacher.model.device).expand_as) as model:
            ablated[layer] = nats(model)

    rows, floors, curves, values = [], [], [], {}
    for run, sums in zip(tqdm(trained, desc="feature statistics", leave=False), every_sums, strict=True):
        s, sae = run.settings, run.sae
        names = {"layer": s.layer, "lam": s.lam, "expansion": p.expansion, "tokens": p.tokens, "seed": s.seed}
        found, draws, is_default = statistics(sums), bootstrap(sums, s.seed), (s.layer, s.lam) == (p.layer, p.lam)
        row = {"steps": s.steps, "held_out_tokens": int(sums.tokens.sum()), "documents": len(sums.tokens)}
        row["g"] = float(capacity.g(found.alpha))
        counted = {name: getattr(found, name) for name in COUNTED}
        for name, value in counted.items():
            low, high = interval(value, [getattr(draw, name) for draw in draws])
            row |= {name: value, f"{name}_low": low, f"{name}_high": high}
        with continued(teacher, s.layer, calibration, lambda x, sae=sae: sae.decode(sae.encode(x))) as model:
            row |= {"fvu": sums.error / variance[s.layer], "kl_spliced": nats(model), "kl_ablated": ablated[s.layer]}
        rest = {"kind": p.kind, "latents": s.latents, "d_teacher": teacher.d, "default": is_default}
        rows.append(names | row | rest)
        if s.steps != p.steps:
            continue
        floors.append(pd.DataFrame(names | predictions(p.widths, found, draws, spectra[s.layer]) | {"kl_cut": of_cut}))
        curves += [names | point | {"tokens_seen": point["step"] * s.batch} for point in run.curve]
        values[f"importance/{s.layer}/{s.lam:g}"] = found.tail.astype(np.float32)
        if is_default:
            order = np.argsort(-found.importance, kind="stable")
            order = order[found.frequency[order] > ALIVE]
            values |= {"latents": order, "importance": found.importance[order], "frequency": found.frequency[order]}
            values |= counted | {f"sae/{name}": w.detach().cpu().numpy() for name, w in sae.named_parameters()}
    values |= {"lam": p.lam, "layer": p.layer, "d_teacher": teacher.d, "left_out": left_out}
    values["topk"] = p.topk if p.kind == "topk" else None
    values["calibration"] = {"limit": calibration.limit[p.layer], "scale": calibration.scale[p.layer]}
    every = pd.DataFrame(rows)
    doubling = every[every["default"]][["steps", "alive", "l0", "d_star", "fvu", "kl_spliced", "kl_ablated"]]
    tables = {"layers": every[every.steps == p.steps], "floors": pd.concat(floors), "doubling": doubling}
    return values | tables | {"curves": pd.DataFrame(curves)}


def read_text(p: scales.Sae, teacher: models.Teacher, split: str, tokens: int) -> Int[np.ndarray, "blocks length"]:
    """As many token blocks of the split as hold ``tokens``."""
    wanted = math.ceil(tokens / p.length)
    blocks = text.token_blocks(teacher.tokenizer, split, p.length, p.percent, p.text, wanted)
    if len(blocks) < wanted:
        raise ParameterError(
            f"The {split} split has {blocks.size} tokens and {tokens} are wanted; raise percent = {p.percent} "
            "or ask for fewer."
        )
    return blocks[:wanted]


def settings(p: scales.Sae, d: int) -> list[Settings]:
    """The default lambda at every layer, every lambda (of which TopK has none) at the predicting one; the default for
    twice the steps if asked."""
    topk = p.topk if p.kind == "topk" else None
    pairs = {(layer, p.lam) for layer in [p.layer, *p.layers]}
    pairs |= {(p.layer, lam) for lam in p.lams} if topk is None else set()
    rest = dict(batch=p.batch, learning_rate=p.learning_rate, seed=p.seed, topk=topk)
    every = [Settings(layer, lam, p.expansion * d, p.steps, **rest) for layer, lam in sorted(pairs)]
    return every + [Settings(p.layer, p.lam, p.expansion * d, 2 * p.steps, **rest)] * p.doubling


def _held_out(
    teacher: models.Teacher, blocks: np.ndarray, calibration: stream.Calibration, trained: Sequence[Run]
) -> tuple[dict[int, Float[Tensor, "d+1 d+1"]], list[Sums], dict[str, int]]:
    """Moments of each layer's stream, sums of each autoencoder, and how many tokens were left out."""
    moments, every, left_out = dict.fromkeys(calibration.scale, 0), [], Counter()
    a_part = autoencoder.blocks_at_once(teacher, blocks, calibration)
    documents = torch.from_numpy(text.document_numbers(blocks, teacher.tokenizer))
    for start in range(0, len(blocks), a_part):
        some = slice(start, start + a_part)
        part = stream.activations(teacher, blocks[some], calibration)
        moments = {layer: moments[layer] + second_moments(x) for layer, x in part.layers.items()}
        numbers = documents[some].flatten()[part.place]
        left_out.update(part.left_out)

        def of_run(run: Run, part=part, numbers=numbers) -> Sums:
            return sums(run.sae, part.layers[run.settings.layer], numbers)

        every.append(autoencoder.side_by_side(of_run, trained, teacher))
    return moments, [joined(parts) for parts in zip(*every, strict=True)], dict(left_out)


def predictions(
    widths: Sequence[int], found: Statistics, draws: Sequence[Statistics], spectrum: Float[np.ndarray, "d"]
) -> dict[str, Any]:
    """By width, in squared units of the scaled stream: Eq. 2 with its interval, the tail of principal components."""
    widths = np.array(widths)
    eq2, *replicates = (capacity.eq2_floor(s.tail, widths, s.alpha) for s in (found, *draws))
    kept = np.minimum(capacity.features_kept(widths, found.alpha), found.alive).astype(int)
    low, high = interval(eq2, replicates)
    return {
        "width": widths, "kept": kept, "dropped": found.alive - kept, "eq2": eq2, "eq2_low": low.clip(0),
        "eq2_high": high, "pca_tail": [float(spectrum[width:].sum()) for width in widths], "total": found.tail.sum(),
    }  # fmt: skip


def load(record: store.Record) -> tuple[Sae, stream.Calibration]:
    """The default autoencoder of a record of ``measure``, and the rule and scale of its inputs."""
    arrays = (record[f"sae/{name}"] for name in ("encoder", "decoder", "bias_pre", "bias_encoder"))
    rule, layer = record["calibration"], record["layer"]
    calibration = stream.Calibration({layer: rule["limit"]}, {layer: rule["scale"]})
    return Sae(*map(torch.from_numpy, arrays), record["topk"]).requires_grad_(False), calibration


# ----------------------------------------------------------------------------------------------------- command line


def main() -> None:
    """Measure F, L0, alpha and d* as 03_sae does, on several devices under ``accelerate launch``."""
    parser = argparse.ArgumentParser(prog="python -m minwidth.sae", description=main.__doc__)
    parser.add_argument("--scale", default="tiny", choices=list(scales.SCALES))
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of 03_sae")
    options = parser.parse_args()
    record = measure(scales.parameters("03_sae", options.scale, **scales.settings(options.set)))
    log.info("%s: d* = %.4g at a width of %d", record.key, record["d_star"], record["d_teacher"])


if __name__ == "__main__":
    command(main)
