"""What sparse autoencoders say of a residual stream: F, L0, alpha, importances and d*, with intervals over documents.

``measure`` trains and measures all that 03_sae shows, ``sensitivity`` with one choice after the other changed, as
``python -m minwidth.sae`` does. The importance I_i = E[z_i^2] of a latent means the same at every layer and in every
model, since inputs have a mean norm of sqrt(d). The autoencoder itself, its loss and training: ``autoencoder``.
"""

import argparse
import functools
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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
from minwidth.errors import ParameterError, in_one_sentence

log = logging.getLogger(__name__)

ALIVE = 1e-5  # a latent is alive if it is active on more than this share of the tokens
TEMPERATURE = 2.0  # of KL in nats, as students are distilled
DRAWS = 200  # of the bootstrap over documents
FRACTIONS = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)  # of d_T: widths predicted for a teacher that is no scale's


# ------------------------------------------------------------------------------------------------------ statistics


class Moments:
    """Mean and covariance of a stream that is read in parts, in float64."""

    def __init__(self, d: int):
        self.products = torch.zeros(d + 1, d + 1, dtype=torch.float64)  # of the stream with a 1 at its end

    def add(self, x: Float[Tensor, "tokens d"]) -> None:
        """Count these tokens too."""
        for part in x.split(4096):
            part = nn.functional.pad(part.double(), (0, 1), value=1.0)
            self.products += part.T @ part

    @property
    def tokens(self) -> int:
        return int(self.products[-1, -1])

    @property
    def mean(self) -> Float[Tensor, "d"]:
        return self.products[-1, :-1] / self.tokens

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """Unbiased: over one less than the number of tokens."""
        return (self.products[:-1, :-1] - self.tokens * torch.outer(self.mean, self.mean)) / (self.tokens - 1)

    def unexplained(self, error: float) -> float:
        """A sum of squared errors over these tokens as a share of the stream's variance."""
        return error / ((self.tokens - 1) * float(self.covariance.trace()))


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
        active, squares = (sparse.csr_array(v.double().cpu().numpy()) for v in by_document)
        parts.append(Sums(names, tokens.astype(float), active, squares, error))
    return joined(parts)


def joined(parts: Sequence[Sums]) -> Sums:
    """Sums of consecutive parts of a text as those of the whole; a document may go on from one part to the next."""
    names, row = np.unique(np.concatenate([part.document for part in parts]), return_inverse=True)
    gather = sparse.csr_array((np.ones(len(row)), (row, np.arange(len(row)))), (len(names), len(row)))
    active, squares = (
        gather @ sparse.vstack([getattr(part, name) for part in parts], "csr") for name in ("active", "squares")
    )
    tokens = gather @ np.concatenate([part.tokens for part in parts])
    return Sums(names, tokens, active, squares, sum(part.error for part in parts))


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
    """Statistics of the sample, or of one in which each document counts as often as ``weights`` says.

    Raises:
        ValueError: fewer than two alive latents, or all of them active on every token.
    """
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


def bootstrap(sums: Sums, draws: int, seed: int) -> list[Statistics]:
    """Statistics of samples of as many documents, drawn with replacement."""
    documents = len(sums.tokens)
    weights = np.random.default_rng(seed).multinomial(documents, np.full(documents, 1 / documents), draws)
    return [statistics(sums, row) for row in weights.astype(float)]


def interval(value: float, replicates: Sequence[float]) -> tuple[float, float]:
    """95 % percentile interval, shifted so that the replicates' mean lies on the value.

    The shift matters where resampling is biased: documents drawn again hold fewer distinct features.
    """
    low, high = np.quantile(replicates, [0.025, 0.975]) - np.mean(replicates) + value
    return min(float(low), value), max(float(high), value)


# ---------------------------------------------------------------------------------------------------------- in nats


class Reference(NamedTuple):
    """Held-out blocks and the teacher's final states on them, to compare other models with."""

    teacher: models.Teacher
    blocks: Int[np.ndarray, "blocks length"]
    states: Float[np.ndarray, "blocks length d"]  # of stream.offline_teacher


@torch.no_grad()
def divergence(reference: Reference, model: nn.Module) -> float:
    """Mean KL(teacher || model) over all positions of the blocks, in nats per token at T = ``TEMPERATURE``."""
    matrices, start, total = (models.unembedding(model), models.unembedding(reference.teacher.model)), 0, 0.0
    for ids in stream.batches(reference.blocks, reference.teacher.model.device):
        states = torch.from_numpy(reference.states[start : start + len(ids)].copy()).to(ids.device)
        hidden, start = models.final_hidden(model, ids), start + len(ids)
        total += float(kl.divergence_per_token(hidden, matrices[0], states, matrices[1], TEMPERATURE).sum())
    return total / reference.blocks.size


def spliced_divergence(
    reference: Reference, layer: int, calibration: stream.Calibration, reconstruct: Callable[[Tensor], Tensor]
) -> float:
    """KL in nats when the model continues from ``reconstruct(x)`` at a layer; tokens left out stay as they are."""

    def replace(x: Tensor) -> Tensor:
        keep, scale = stream.kept_tokens({layer: x}, calibration), calibration.scale[layer]
        x = x.clone()
        x[keep] = reconstruct(x[keep] * scale) / scale
        return x

    with stream.spliced(reference.teacher.model, layer, replace) as model:
        return divergence(reference, model)


def cut_divergences(reference: Reference, text: Int[np.ndarray, "blocks length"], widths: Sequence[int]) -> list[float]:
    """KL in nats of the teacher cut to its stream's first principal directions on ``text``, and not trained.

    An upper bound on what training can reach at a width. NaN for families that can't be cut.
    """
    model = reference.teacher.model
    try:
        basis = projection.stream_basis(model, stream.batches(text, "cpu"))
    except ValueError as error:
        log.warning("%s", error)
        return [math.nan] * len(widths)
    return [divergence(reference, cut.cut_to_width(model, basis, width)) for width in widths]


# --------------------------------------------------------------------------------------------------- the measurement


def measure(p: scales.Sae) -> store.Record:
    """Train autoencoders on a teacher's residual stream and predict floors at every width; found if done before.

    One autoencoder with the default lambda at each layer, and one for each lambda at the predicting layer. Nothing
    here has seen a student.

    Returns:
        A record with the tables ``layers`` (a row an autoencoder: F, L0, alpha, g, d* with 95 % intervals over
        documents, and its quality: unexplained variance ``fvu``, KL in nats if the model continues from the
        reconstruction ``kl_spliced`` or from the mean ``kl_ablated``), ``floors`` (autoencoder x width: Eq. 2, variance
        beyond the first principal components, KL of the teacher cut to that width), ``curves`` (training) and
        ``doubling`` (the default after its steps and, if asked for, twice as many); the arrays ``importance`` and
        ``frequency`` (of the default's alive latents, by falling importance), ``latents`` (their numbers),
        ``importance/<layer>/<lam>``, ``eigenvalues/<layer>`` and the default autoencoder itself (``load``); and the
        values ``alive``, ``alpha``, ``l0``, ``d_star``, ``lam``, ``layer``, ``d_teacher``, ``widths``, ``left_out``,
        ``calibration``.
    """
    place = "-".join(re.findall(r"\w+(?:\.\w+)*", p.teacher, re.ASCII)[-2:])
    parameters = p.model_dump() | {"revision": models.teacher_revision(p.teacher, p.revision or None)}
    what = f"sae/{p.scale}/{place}-l{p.layer}"
    compute = functools.partial(_measure, p, store.work_folder(what, parameters))
    return training.find_or_compute(what, parameters, compute)


def _measure(p: scales.Sae, work: Path) -> dict[str, Any]:
    teacher = models.load_teacher(p.teacher, p.revision or None, training.state().device)
    p = _fitted(p, teacher)
    text, unseen = read_text(p, teacher, "train", p.tokens), read_text(p, teacher, "held_out", p.held_out_tokens)
    layers = sorted({p.layer, *p.layers})
    calibration = stream.calibrate(teacher, text, layers)
    trained = autoencoder.train(teacher, text, layers, calibration, settings(p, teacher.d), work, f"{p.scale}-sae")
    moments, every_sums, left_out = _held_out(teacher, unseen, layers, calibration, trained)

    blocks = unseen[: max(1, p.kl_tokens // unseen.shape[1])]
    reference = Reference(teacher, blocks, stream.offline_teacher(teacher, blocks, f"{p.scale}-sae"))
    cut = cut_divergences(reference, text[: len(blocks)], p.widths)
    spectra, ablated = {}, {}
    for layer in layers:
        mean = moments[layer].mean.float().to(teacher.model.device)
        spectra[layer] = torch.linalg.eigvalsh(moments[layer].covariance).flip(0).clamp(min=0).numpy()
        ablated[layer] = spliced_divergence(reference, layer, calibration, mean.expand_as)

    rows, floors, curves, doubling, values = [], [], [], [], {}
    for run, sums in zip(tqdm(trained, desc="feature statistics", leave=False), every_sums, strict=True):
        s, sae = run.settings, run.sae
        names = {"layer": s.layer, "lam": s.lam, "expansion": p.expansion, "tokens": p.tokens, "seed": s.seed}
        found, draws = statistics(sums), bootstrap(sums, DRAWS, s.seed)
        spliced = spliced_divergence(reference, s.layer, calibration, lambda x, sae=sae: sae.decode(sae.encode(x)))
        fvu = moments[s.layer].unexplained(sums.error)
        quality = {"fvu": fvu, "kl_spliced": spliced, "kl_ablated": ablated[s.layer]}
        is_default = (s.layer, s.lam) == (p.layer, p.lam)
        if is_default:
            doubling.append({"steps": s.steps, "alive": found.alive, "l0": found.l0, "d_star": found.d_star} | quality)
        if s.steps != p.steps:
            continue
        sample = {"steps": s.steps, "held_out_tokens": moments[s.layer].tokens, "documents": len(sums.tokens)}
        rest = {"kind": p.kind, "latents": s.latents, "d_teacher": teacher.d, "default": is_default}
        row = {"g": float(capacity.g(found.alpha))}
        for name in ("alive", "l0", "alpha", "d_star"):
            row[name] = getattr(found, name)
            row[f"{name}_low"], row[f"{name}_high"] = interval(row[name], [getattr(draw, name) for draw in draws])
        rows.append(names | sample | row | quality | rest)
        floors += [names | row for row in _floors(p.widths, found, draws, spectra[s.layer], cut)]
        curves += [names | point | {"tokens_seen": point["step"] * s.batch} for point in run.curve]
        values[f"importance/{s.layer}/{s.lam:g}"] = found.tail.astype(np.float32)
        if is_default:
            order = np.argsort(-found.importance, kind="stable")
            order = order[found.frequency[order] > ALIVE]
            values |= {"latents": order, "importance": found.importance[order], "frequency": found.frequency[order]}
            values |= {name: getattr(found, name) for name in ("alive", "alpha", "l0", "d_star")}
            values |= {f"sae/{name}": w.detach().cpu().numpy() for name, w in sae.named_parameters()}
    values |= {f"eigenvalues/{layer}": spectrum for layer, spectrum in spectra.items()}
    values |= {"lam": p.lam, "layer": p.layer, "d_teacher": teacher.d, "widths": p.widths}
    values |= {"topk": p.topk if p.kind == "topk" else None, "left_out": left_out}
    values["calibration"] = {"limit": calibration.limit[p.layer], "scale": calibration.scale[p.layer]}
    tables = {"layers": rows, "floors": floors, "curves": curves, "doubling": doubling}
    return values | {name: pd.DataFrame(table) for name, table in tables.items()}


def _fitted(p: scales.Sae, teacher: models.Teacher) -> scales.Sae:
    """The scale's widths and layers are its teacher's: another teacher gets shares of its own width, and one layer."""
    context = getattr(teacher.model.config, "max_position_embeddings", p.length)
    changes: dict[str, Any] = {"length": min(p.length, context)}
    if p.teacher != p.shape.teacher:
        usual = scales.SCALES[p.scale]["03_sae"]
        if p.layers == usual["layers"]:
            changes["layers"] = [p.layer]
        if p.widths == usual["widths"]:
            changes["widths"] = [round(share * teacher.d) for share in FRACTIONS]
    widths = changes.get("widths", p.widths)
    if max(widths) > teacher.d:
        raise ParameterError(f"width = {max(widths)} is wider than {p.teacher}; give at most {teacher.d}.")
    return p.model_copy(update=changes)


def read_text(p: scales.Sae, teacher: models.Teacher, split: str, tokens: int) -> np.ndarray:
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
    """The default lambda at every layer, every lambda at the predicting one; the default for twice the steps if asked.

    TopK knows no lambda.
    """
    topk = p.topk if p.kind == "topk" else None
    pairs = {(layer, p.lam) for layer in [p.layer, *p.layers]}
    pairs |= {(p.layer, lam) for lam in p.lams} if topk is None else set()
    rest = dict(batch=p.batch, learning_rate=p.learning_rate, seed=p.seed, topk=topk)
    every = [Settings(layer, lam, p.expansion * d, p.steps, **rest) for layer, lam in sorted(pairs)]
    return every + [Settings(p.layer, p.lam, p.expansion * d, 2 * p.steps, **rest)] * p.doubling


def _held_out(
    teacher: models.Teacher,
    blocks: Int[np.ndarray, "blocks length"],
    layers: Sequence[int],
    calibration: stream.Calibration,
    trained: Sequence[Run],
) -> tuple[dict[int, Moments], list[Sums], dict[str, int]]:
    """Moments of each layer's stream, sums of each autoencoder, and how many tokens were left out.

    So much text is held at once as in training.
    """
    moments, every, left_out = {layer: Moments(teacher.d) for layer in layers}, [], Counter()
    a_part = autoencoder.blocks_at_once(teacher, blocks, layers)
    documents = torch.from_numpy(text.document_numbers(blocks, teacher.tokenizer))
    for start in range(0, len(blocks), a_part):
        some = slice(start, start + a_part)
        part = stream.activations(teacher, blocks[some], layers, calibration, "reading held-out documents")
        numbers = documents[some].flatten()[part.place]
        left_out.update(part.left_out)
        for layer, x in part.layers.items():
            moments[layer].add(x)

        def of_run(run: Run, part=part, numbers=numbers) -> Sums:
            return sums(run.sae, part.layers[run.settings.layer], numbers)

        every.append(autoencoder.side_by_side(of_run, trained, teacher))
    return moments, [joined(parts) for parts in zip(*every, strict=True)], dict(left_out)


def _floors(
    widths: Sequence[int],
    found: Statistics,
    draws: Sequence[Statistics],
    spectrum: Float[np.ndarray, "d"],
    cut: Sequence[float],
) -> Iterator[dict]:
    """Predictions at each width, in squared units of the scaled stream, and the cut student's KL in nats."""
    value, *replicates = (capacity.eq2_floor(s.tail, np.array(widths), s.alpha) for s in (found, *draws))
    kept = np.minimum(capacity.features_kept(np.array(widths), found.alpha), found.alive)
    for n, width in enumerate(widths):
        low, high = interval(value[n], np.array(replicates)[:, n])
        row = {"width": width, "kept": int(kept[n]), "dropped": int(found.alive - kept[n])}
        row |= {"eq2": value[n], "eq2_low": max(0.0, low), "eq2_high": high, "pca_tail": float(spectrum[width:].sum())}
        yield row | {"total": float(found.tail.sum()), "kl_cut": cut[n]}


def load(record: store.Record) -> tuple[Sae, stream.Calibration]:
    """The default autoencoder of a record of ``measure``, and the rule and scale of its inputs."""
    arrays = (record[f"sae/{name}"] for name in ("encoder", "decoder", "bias_pre", "bias_encoder"))
    rule, layer = record["calibration"], record["layer"]
    calibration = stream.Calibration({layer: rule["limit"]}, {layer: rule["scale"]})
    return Sae(*map(torch.from_numpy, arrays), record["topk"]).requires_grad_(False), calibration


# ----------------------------------------------------------------------------------------------------- command line


def sensitivity(scale: str) -> store.Record:
    """``measure`` as ``scales.SENSITIVITY`` starts, then with one choice of it changed at a time, for several lambdas.

    Each is a record of its own, so an interrupted run goes on where it stopped.

    Returns:
        A record with the tables ``layers`` (a row an autoencoder; ``default`` marks the one that all others depart
        from) and ``floors`` (autoencoder x width).
    """
    if scale not in scales.SENSITIVITY:
        raise ParameterError(f"scale = {scale!r} has no grid of choices; it can be {', '.join(scales.SENSITIVITY)}.")
    grid = dict(scales.SENSITIVITY[scale])
    every = [scales.parameters("03_sae", scale, **grid.pop("base"))]
    shared: dict[str, Any] = every[0].model_dump() | {"lams": grid.pop("lams"), "doubling": False}
    for choice, values in grid.items():
        for value in values:
            if value != shared[choice]:
                changed = shared | {choice: value}
                every.append(scales.parameters("03_sae", **(changed | {"layers": [changed["layer"]]})))
    records = [measure(p) for p in tqdm(every, desc="measurements", leave=False)]
    tables = {
        name: pd.concat(
            [found[name][found[name].layer == p.layer].assign(steps=p.steps)
             for found, p in zip(records, every, strict=True)],
            ignore_index=True,
        )
        for name in ("layers", "floors")
    }  # fmt: skip
    tables["layers"]["default"] &= ~tables["layers"]["default"].duplicated()  # of the first measurement
    what, parameters = f"sae/{scale}/sensitivity", {"records": [record.key for record in records]}
    seconds = sum(record.provenance["seconds"] for record in records)
    return store.find(what, parameters) or store.keep(what, parameters, tables, seconds)


def main(arguments: list[str] | None = None) -> None:
    """Measure F, L0, alpha and d* as 03_sae does, on several devices under ``accelerate launch``."""
    parser = argparse.ArgumentParser(prog="python -m minwidth.sae", description=main.__doc__)
    parser.add_argument("--scale", default="tiny", choices=list(scales.SCALES))
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of 03_sae")
    parser.add_argument("--sensitivity", action="store_true", help="with one choice changed at a time, into tables")
    options = parser.parse_args(arguments)
    try:
        if options.sensitivity:
            record = sensitivity(options.scale)
            store.save_results(options.scale, "sae_sensitivity", record["layers"], record)
            store.save_results(options.scale, "sae_sensitivity_floors", record["floors"], record)
            return
        record = measure(scales.parameters("03_sae", options.scale, **scales.settings(options.set)))
    except ParameterError as error:
        parser.error(str(error))
    log.info("%s: d* = %.4g at a width of %d", record.key, record["d_star"], record["d_teacher"])


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with in_one_sentence():
        main()
