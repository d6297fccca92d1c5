"""Sparse autoencoders of a residual stream: the paper's (appendix D) and TopK, their training and what they measure.

x_hat = W_dec z + b_pre with z = ReLU(W_enc (x - b_pre) + b_enc), columns of W_dec of unit norm, and loss
``||x - x_hat||^2 + lambda sum_i |z_i|``, summed over dimensions and features, averaged over the batch. Inputs have a
mean norm of sqrt(d), so lambda and the importance I_i = E[z_i^2] mean the same at every layer and in every model.

After warm-up one latent in a hundred fires. A training step on a CPU therefore forms the pre-activations densely (one
matrix product) and everything else on the active entries alone, which is exact: token by token for the
reconstruction, feature by feature for gradients and Adam. Above ``DENSE`` active entries it uses matrix products.
"""

import argparse
import functools
import itertools
import logging
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy import sparse
from torch import Tensor
from tqdm.auto import tqdm

from minwidth import capacity, cut, kl, models, projection, ranks, residual, runs, scales
from minwidth.errors import Diverged, ParameterError, in_one_sentence
from minwidth.training import batch_rows, checkpointed, load_state, save_state

log = logging.getLogger(__name__)

ALIVE = 1e-5  # a latent is alive if it is active on more than this share of the tokens
TEMPERATURE = 2.0  # of KL in nats, as students are distilled
DRAWS = 200  # of the bootstrap over documents
DENSE = 0.1  # share of active latents above which matrix products are faster
BETAS = (0.9, 0.999)
EPSILON = 1e-8
WARMUP = 0.1  # share of the steps in which lambda rises from 0
DECAY = 0.3  # share of the steps, the last, in which the learning rate falls to 0
RETRY = 20  # steps after which sparsity is tried again
_KERNEL = dict(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz", "arcp"})


class Sae:
    """Parameters of a sparse autoencoder with ``latents`` features of a stream of width d.

    Attributes:
        encoder, decoder: ``[latents, d]``, a row a feature; the decoder's have unit norm.
        bias_pre: ``[d]``, taken from the input and added to the reconstruction.
        bias_encoder: ``[latents]``; the paper names none, so by default it is 0 and not trained.
        topk: number of latents kept per token, None for plain ReLU.
    """

    def __init__(self, encoder, decoder, bias_pre, bias_encoder, topk: int | None = None):
        self.encoder, self.decoder, self.bias_pre, self.bias_encoder = encoder, decoder, bias_pre, bias_encoder
        self.topk = topk

    @classmethod
    def initial(cls, mean: Float[Tensor, "d"], latents: int, seed: int, topk: int | None = None) -> "Sae":
        """Random unit decoder rows, the encoder 2 d / latents times the decoder, biases at the mean and 0.

        With half of the latents firing, that encoder makes the first reconstruction about as large as the input.
        """
        d = len(mean)
        decoder = torch.randn(latents, d, generator=torch.Generator().manual_seed(seed)).to(mean)
        decoder /= decoder.norm(dim=1, keepdim=True)
        return cls(decoder * (2 * d / latents), decoder, mean.clone(), mean.new_zeros(latents), topk)

    @property
    def parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.encoder, self.decoder, self.bias_pre, self.bias_encoder

    def encode(self, x: Float[Tensor, "tokens d"]) -> Float[Tensor, "tokens latents"]:
        """Activations z of the latents."""
        pre = torch.addmm(self.bias_encoder, x - self.bias_pre, self.encoder.T)
        return _keep_top(pre.relu_(), self.topk)

    def decode(self, z: Float[Tensor, "tokens latents"]) -> Float[Tensor, "tokens d"]:
        """Reconstruction from activations."""
        return torch.addmm(self.bias_pre, z, self.decoder)


def _keep_top(z: Tensor, topk: int | None) -> Tensor:
    """All but the ``topk`` largest activations of a row set to 0."""
    if topk is None:
        return z
    values, places = z.topk(topk, dim=1)
    return torch.zeros_like(z).scatter_(1, places, values)


# ---------------------------------------------------------------------------------------------------- one step


class Gradients(NamedTuple):
    """Gradients of a batch's loss, and what the batch says of the fit."""

    parameters: tuple[Tensor, Tensor, Tensor, Tensor]  # as Sae.parameters; rows of silent latents hold anything
    counts: Int[Tensor, "latents"]  # tokens on which a latent is active
    error: float | Tensor  # mean squared norm of x - x_hat
    l0: float | Tensor  # mean number of active latents
    squares: tuple[float, float] | None = None  # of encoder's and decoder's gradients, where they came for free


def dense_gradients(sae: Sae, x: Float[Tensor, "tokens d"], lam: float, buffers: "Buffers | None" = None) -> Gradients:
    """Loss gradients by matrix products, on any device; with ``buffers``, in memory that is there already."""
    tokens, b = len(x), buffers
    centred = x - sae.bias_pre
    pre = torch.addmm(sae.bias_encoder, centred, sae.encoder.T, out=b and b.pre)
    z = _keep_top(pre.relu_(), sae.topk)
    residual = torch.addmm(-centred, z, sae.decoder)
    error = _number(residual.square().sum()) / tokens
    residual *= 2 / tokens
    dz = torch.mm(residual, sae.decoder.T, out=b and b.slopes())
    if x.device.type == "cpu":
        counts = torch.zeros(len(sae.encoder), dtype=torch.int32)
        _of_active(z.numpy(), dz.numpy(), lam / tokens, counts.numpy())
    else:
        active = z > 0
        dz.add_(lam / tokens).mul_(active)
        counts = active.sum(0)
    d_bias = dz.sum(0)
    d_pre = residual.sum(0) - d_bias @ sae.encoder
    d_encoder = torch.mm(dz.T, centred, out=b and b.d_encoder)
    d_decoder = torch.mm(z.T, residual, out=b and b.d_decoder)
    return Gradients((d_encoder, d_decoder, d_pre, d_bias), counts, error, _number(counts.sum()) / tokens)


def _mean(gradients: Gradients) -> Gradients:
    """Of a batch that several processes share (``ranks``): the gradients of the whole from those of the shares."""
    if ranks.count() == 1:
        return gradients
    counts, device = gradients.counts.long(), gradients.counts.device
    fired = (counts > 0)[:, None]
    encoder, decoder, d_pre, d_bias = gradients.parameters
    parameters = (encoder.where(fired, 0), decoder.where(fired, 0), d_pre, d_bias.where(fired[:, 0], 0))
    said = torch.stack([torch.as_tensor(value, device=device).double() for value in (gradients.error, gradients.l0)])
    counts = counts.double()
    ranks.mean_([*parameters, said, counts])
    error, l0 = said.tolist() if said.is_cpu else said
    return Gradients(parameters, (ranks.count() * counts).round().int(), error, l0)


def _number(value: Tensor) -> float | Tensor:
    """A plain number on a CPU; on a GPU it stays there, since to look at it would keep the next step waiting."""
    return float(value) if value.is_cpu else value.double()


@numba.njit(**_KERNEL)
def _of_active(z, dz, penalty, counts):
    """Add the penalty's slope to ``dz``, set it to 0 where a latent is silent, and count by latent, in one pass."""
    slope, zero = np.float32(penalty), np.float32(0.0)
    for t in range(z.shape[0]):
        zt, dt = z[t], dz[t]
        for i in range(z.shape[1]):
            dt[i] = dt[i] + slope if zt[i] > zero else zero
        for i in range(z.shape[1]):
            counts[i] += np.int32(zt[i] > zero)


class Buffers:
    """Scratch of a step, kept from step to step: fresh memory costs as much as a fifth of a matrix product."""

    def __init__(self, tokens: int, latents: int, d: int):
        self.pre = torch.empty(tokens, latents)
        self.residual = torch.empty(tokens, d)
        self.d_encoder, self.d_decoder = torch.empty(latents, d), torch.empty(latents, d)
        self.d_bias = torch.empty(latents)
        self.mask = np.zeros(-(-latents // 8) * 8, np.uint8)
        room = int(DENSE * tokens * latents) + len(self.mask)
        self.latent, self.token = np.empty(room, np.int32), np.empty(room, np.int32)
        self.z, self.z_by_latent, self.dz = (np.empty(room, np.float32) for _ in range(3))
        self.rows, self.columns = np.empty(tokens + 1, np.int64), np.empty(latents + 1, np.int64)
        self._slopes: Tensor | None = None

    def slopes(self) -> Tensor:
        """``[tokens, latents]``, which only the dense step needs."""
        if self._slopes is None:
            self._slopes = torch.empty_like(self.pre)
        return self._slopes


def sparse_gradients(sae: Sae, x: Float[Tensor, "tokens d"], lam: float, buffers: Buffers) -> Gradients | None:
    """The same on the active entries alone, on a CPU; None if there are more than ``DENSE`` of them."""
    b = buffers
    centred = x - sae.bias_pre
    if sae.topk is None:
        torch.mm(centred, sae.encoder.T, out=b.pre)
        bias = sae.bias_encoder
    else:
        torch.addmm(sae.bias_encoder, centred, sae.encoder.T, out=b.pre)
        b.pre, bias = _keep_top(b.pre.relu_(), sae.topk), torch.zeros_like(sae.bias_encoder)
    active = _list_active(b.pre.numpy(), bias.numpy(), b.rows, b.latent, b.z, b.mask)
    if active < 0:
        return None
    _by_latent(b.rows, b.latent, b.z, b.columns, b.token, b.z_by_latent)
    by_latent, residual = (b.columns, b.token, b.z_by_latent), b.residual.numpy()
    error = _reconstruct(*by_latent, sae.decoder.numpy(), centred.numpy(), residual)
    squares = _row_gradients(
        *by_latent, b.dz, lam / len(x), sae.decoder.numpy(), residual, centred.numpy(),
        b.d_encoder.numpy(), b.d_decoder.numpy(), b.d_bias.numpy(),
    )  # fmt: skip
    d_pre = b.residual.sum(0) - b.d_bias @ sae.encoder
    counts = torch.from_numpy(np.diff(b.columns))
    return Gradients((b.d_encoder, b.d_decoder, d_pre, b.d_bias), counts, error, active / len(x), squares)


@numba.njit(**_KERNEL)
def _list_active(pre, bias, rows, latent, z, mask):
    """Positive entries of pre + bias row by row; -1 if they don't fit. Eight without any are passed over at once.

    Within eight there is no branch: each entry is written, and the next over it unless it was positive.

    Args:
        mask: ``[latents, rounded up to eights]``, zeros; a row's signs, eight to a word.
    """
    words = mask.view(np.uint64)
    count, latents, room = 0, pre.shape[1], len(z) - len(mask)
    rows[0] = 0
    for t in range(pre.shape[0]):
        row = pre[t]
        for i in range(latents):
            mask[i] = np.uint8(row[i] + bias[i] > 0)
        for word in range(len(words)):
            if words[word] != 0:
                for i in range(8 * word, min(8 * word + 8, latents)):
                    latent[count], z[count] = i, row[i] + bias[i]
                    count += mask[i]
        if count > room:
            return -1
        rows[t + 1] = count
    return count


@numba.njit(**_KERNEL)
def _by_latent(rows, latent, z, columns, token, z_by_latent):
    """Counting sort of the active entries by latent, tokens rising within each."""
    columns[:] = 0
    for k in range(rows[-1]):
        columns[latent[k] + 1] += 1
    for i in range(1, len(columns)):
        columns[i] += columns[i - 1]
    place = columns[:-1].copy()
    for t in range(len(rows) - 1):
        for k in range(rows[t], rows[t + 1]):
            p = place[latent[k]]
            token[p], z_by_latent[p] = t, z[k]
            place[latent[k]] = p + 1


@numba.njit(**_KERNEL)
def _reconstruct(columns, token, z, decoder, centred, residual):
    """Residuals times 2 / tokens, and the mean squared error.

    Latent by latent: the decoder is read once, in order, and the residuals of a batch stay in the cache.
    """
    tokens, d = centred.shape
    for t in range(tokens):
        r, c = residual[t], centred[t]
        for j in range(d):
            r[j] = -c[j]
    for i in range(len(columns) - 1):
        w = decoder[i]
        for k in range(columns[i], columns[i + 1]):
            r, value = residual[token[k]], z[k]
            for j in range(d):
                r[j] += value * w[j]
    total = 0.0
    scale = np.float32(2.0 / tokens)
    for t in range(tokens):
        r = residual[t]
        square = np.float32(0.0)
        for j in range(d):
            square += r[j] * r[j]
            r[j] *= scale
        total += square
    return total / tokens


@numba.njit(**_KERNEL)
def _row_gradients(columns, token, z, dz, penalty, decoder, residual, centred, d_encoder, d_decoder, d_bias):
    """Gradients of the rows of the latents that fired, and their squares; the derivatives by z; those of all biases."""
    d = centred.shape[1]
    of_encoder, of_decoder = 0.0, 0.0
    for i in range(len(columns) - 1):
        total = np.float32(0.0)
        w, g = decoder[i], d_decoder[i]
        for k in range(columns[i], columns[i + 1]):
            r, value = residual[token[k]], z[k]
            dot = np.float32(0.0)
            if k == columns[i]:
                for j in range(d):
                    dot += r[j] * w[j]
                    g[j] = value * r[j]
            else:
                for j in range(d):
                    dot += r[j] * w[j]
                    g[j] += value * r[j]
            dz[k] = dot + np.float32(penalty)
            total += dz[k]
        d_bias[i] = total
        if columns[i] < columns[i + 1]:
            of_decoder += _square(g)
    for i in range(len(columns) - 1):  # in a loop of its own, since residuals and inputs together exceed the cache
        g = d_encoder[i]
        for k in range(columns[i], columns[i + 1]):
            c, value = centred[token[k]], dz[k]
            if k == columns[i]:
                for j in range(d):
                    g[j] = value * c[j]
            else:
                for j in range(d):
                    g[j] += value * c[j]
        if columns[i] < columns[i + 1]:
            of_encoder += _square(g)
    return of_encoder, of_decoder


@numba.njit(inline="always", **_KERNEL)
def _square(row):
    square = np.float32(0.0)
    for j in range(len(row)):
        square += row[j] * row[j]
    return square


class Adam:
    """Adam with gradient clipping by the global norm; silent latents have gradient 0 and unit decoder rows stay so."""

    def __init__(self, sae: Sae, clip: float = 1.0):
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in sae.parameters]
        self.steps, self.clip = 0, clip

    def step(self, sae: Sae, gradients: Gradients, rate: float, bias: bool = False) -> None:
        """Change the parameters of ``sae`` in place; its encoder bias only if ``bias`` is set."""
        self.steps += 1
        fired = gradients.counts > 0
        wanted = list(zip(sae.parameters, gradients.parameters, self.moments, strict=True))[: 4 if bias else 3]
        squares = list(gradients.squares or (_sum_of_squares(g, fired) for g in gradients.parameters[:2]))
        squares += [g.double().square().sum() for _, g, _ in wanted[2:]]
        norm = _number(torch.as_tensor(sum(squares))) ** 0.5
        clip = self.clip / (norm + 1e-12)
        clip = min(1.0, clip) if isinstance(clip, float) else clip.clamp(max=1).float()
        first, second = 1 - BETAS[0] ** self.steps, 1 - BETAS[1] ** self.steps
        for p, g, (m, v) in wanted:
            rows = fired if p.ndim == 2 else torch.ones(1, dtype=torch.bool, device=p.device)
            if p.device.type == "cpu":
                shape = (-1, p.shape[-1])
                arrays = [tensor.view(shape).numpy() for tensor in (p, g.contiguous(), m, v)]
                _adam(*arrays, rows.numpy(), clip, rate / first, second, p is sae.decoder)
            else:
                g = g * clip  # dense: silent rows are 0 already
                m.lerp_(g, 1 - BETAS[0])
                v.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
                p.addcdiv_(m, (v / second).sqrt_().add_(EPSILON), value=-rate / first)
                if p is sae.decoder:
                    p /= p.norm(dim=1, keepdim=True)


def _sum_of_squares(gradient: Float[Tensor, "latents d"], fired: Tensor) -> Tensor | float:
    """Over the rows of the latents that fired."""
    if gradient.device.type == "cpu":
        return _square_of_rows(gradient.contiguous().numpy(), fired.numpy())
    return gradient.double().square().sum()


@numba.njit(**_KERNEL)
def _square_of_rows(gradient, fired):
    total = 0.0
    for i in range(len(fired)):
        if fired[i]:
            total += _square(gradient[i])
    return total


@numba.njit(**_KERNEL)
def _adam(p, g, m, v, fired, clip, rate, correction, unit):
    """One pass over parameters and moments, a row at a time, so that each is read from memory once."""
    b1, b2 = np.float32(BETAS[0]), np.float32(BETAS[1])
    a1, a2 = np.float32(1 - BETAS[0]) * np.float32(clip), np.float32(1 - BETAS[1]) * np.float32(clip * clip)
    scale, small, lr = np.float32(1 / correction), np.float32(EPSILON), np.float32(rate)
    for i in range(p.shape[0]):
        pi, gi, mi, vi = p[i], g[i], m[i], v[i]
        if fired[i]:
            for j in range(p.shape[1]):
                mi[j] = b1 * mi[j] + a1 * gi[j]
                vi[j] = b2 * vi[j] + a2 * gi[j] * gi[j]
                pi[j] -= lr * mi[j] / (math.sqrt(vi[j] * scale) + small)
        else:
            for j in range(p.shape[1]):
                mi[j] = b1 * mi[j]
                vi[j] = b2 * vi[j]
                pi[j] -= lr * mi[j] / (math.sqrt(vi[j] * scale) + small)
        if unit:
            square = np.float32(0.0)
            for j in range(p.shape[1]):
                square += pi[j] * pi[j]
            inverse = np.float32(1.0 / math.sqrt(square))
            for j in range(p.shape[1]):
                pi[j] *= inverse


# ------------------------------------------------------------------------------------------------------- training


class Settings(NamedTuple):
    """One autoencoder to train: of which layer, and how."""

    layer: int
    lam: float
    latents: int
    steps: int
    batch: int  # tokens a step
    learning_rate: float
    seed: int
    topk: int | None = None
    bias: bool = False  # train a bias of the encoder too
    revive: int = 0  # every so many steps, latents silent since the last time start again; 0: never

    def rate(self, step: int) -> float:
        """Learning rate: constant, then down to 0 in a straight line over the last ``DECAY`` of the steps."""
        return self.learning_rate * min(1.0, (self.steps - step) / (DECAY * self.steps))

    def penalty(self, step: int) -> float:
        """lambda: up from 0 in a straight line over the first ``WARMUP`` of the steps; 0 for TopK."""
        return 0.0 if self.topk else self.lam * min(1.0, (step + 1) / (WARMUP * self.steps))


class Run:
    """An autoencoder in training: parameters, moments, its curve. ``advance`` continues it on given activations."""

    WINDOWS = 60  # points of the curve

    def __init__(self, settings: Settings, mean: Float[Tensor, "d"]):
        self.settings = settings
        self.sae = Sae.initial(mean, settings.latents, settings.seed, settings.topk)
        self.adam, self.step, self.began, self.curve = Adam(self.sae), 0, 0, []
        self.due = checkpointed()
        self.buffers: Buffers | None = None  # of the sparse step; none on a GPU
        self.sparse = True
        self.fired = torch.zeros(settings.latents, dtype=torch.bool, device=mean.device)  # since the last revival

    def advance(
        self,
        x: Float[Tensor, "tokens d"],
        until: int,
        checkpoint: Path | None = None,
        seen: Callable[[int], object] = lambda steps: None,
    ) -> None:
        """Train up to step ``until`` on batches drawn from ``x``, one epoch of a fresh permutation after the other.

        Args:
            checkpoint: file for the state, as in ``training.train``.
            seen: told the number of steps done, now and then.

        Raises:
            Diverged: the loss is no longer finite.
        """
        s, device = self.settings, self.sae.decoder.device
        if device.type == "cpu" and self.buffers is None:
            self.buffers = Buffers(s.batch // ranks.count(), s.latents, x.shape[1])
        window = max(1, s.steps // self.WINDOWS)
        while self.step < until:
            steps = min(until, (self.step // window + 1) * window) - self.step
            error, l0, fired = 0.0, 0.0, torch.zeros(s.latents, dtype=torch.bool, device=device)
            for _ in range(steps):
                rows = batch_rows(len(x), s.batch, self.step - self.began, s.seed + self.began)
                gradients = _mean(self._gradients(x[ranks.share(rows)].to(device)))
                self.adam.step(self.sae, gradients, s.rate(self.step), s.bias)
                self.step += 1
                if s.revive:
                    self.fired |= gradients.counts > 0
                    if self.step % s.revive == 0 and self.step < (1 - DECAY) * s.steps:
                        self._revive(x[rows].to(device))
                error, l0, fired = error + gradients.error, l0 + gradients.l0, fired | (gradients.counts > 0)
            error, l0 = float(error), float(l0)
            if not math.isfinite(error):
                raise Diverged(
                    f"The loss of the autoencoder is not finite at step {self.step}; "
                    f"lower learning_rate = {s.learning_rate}."
                )
            point = {"step": self.step, "error": error / steps, "l0": l0 / steps, "firing": int(fired.sum())}
            self.curve.append(point)
            seen(steps)
            if checkpoint and ranks.is_first() and (time.monotonic() > self.due or self.step == s.steps):
                self.due = checkpointed(lambda: self.save(checkpoint))

    def _gradients(self, batch: Float[Tensor, "batch d"]) -> Gradients:
        penalty = self.settings.penalty(self.step)
        if self.buffers is not None and self.step % RETRY == 0:
            self.sparse = True
        if self.buffers is not None and self.sparse:
            gradients = sparse_gradients(self.sae, batch, penalty, self.buffers)
            if gradients is not None:
                return gradients
            self.sparse = False
        return dense_gradients(self.sae, batch, penalty, self.buffers)

    def _revive(self, batch: Float[Tensor, "batch d"]) -> None:
        """Point silent latents at what tokens of the batch leave unexplained, the worst most likely; forget moments.

        Their encoder rows start at a fifth of the others' norm, as Bricken et al. (2023) have it.
        """
        silent = (~self.fired).nonzero().flatten()[: len(batch)]
        self.fired.zero_()
        if len(silent) == 0:
            return
        missed = batch - self.sae.decode(self.sae.encode(batch))
        generator = torch.Generator().manual_seed(self.settings.seed + self.step)
        chosen = torch.multinomial(missed.square().sum(1).cpu(), len(silent), generator=generator)
        rows = missed[chosen] / missed[chosen].norm(dim=1, keepdim=True)
        self.sae.decoder[silent] = rows
        self.sae.encoder[silent] = 0.2 * self.sae.encoder.norm(dim=1).mean() * rows
        self.sae.bias_encoder[silent] = 0
        for parameter, moments in zip(self.sae.parameters, self.adam.moments, strict=True):
            if parameter is not self.sae.bias_pre:
                for moment in moments:
                    moment[silent] = 0

    def visit(self) -> None:
        """From here on, ``advance`` is given other activations."""
        self.began = self.step

    def save(self, path: Path) -> None:
        """Write the state to ``path``, atomically."""
        moments = [moment for pair in self.adam.moments for moment in pair]
        tensors = {str(n): tensor.contiguous() for n, tensor in enumerate([*self.sae.parameters, *moments])}
        if self.settings.revive:
            tensors["fired"] = self.fired
        state = {"step": self.step, "began": self.began, "sparse": self.sparse, "curve": self.curve}
        save_state(path, tensors, state)

    def load(self, path: Path) -> None:
        """Continue from a state that ``save`` wrote, if there is one and it is intact."""
        found = load_state(path)
        if found is None:
            return
        tensors, state = found
        moments = [moment for pair in self.adam.moments for moment in pair]
        for n, tensor in enumerate([*self.sae.parameters, *moments]):
            tensor.copy_(tensors[str(n)])
        if self.settings.revive:
            self.fired.copy_(tensors["fired"])
        self.step, self.began, self.sparse, self.curve = (state[k] for k in ("step", "began", "sparse", "curve"))
        self.adam.steps = self.step


# ------------------------------------------------------------------------------------------------------ statistics


class Moments:
    """Mean and covariance of a stream that is read in parts, in float64."""

    def __init__(self, d: int):
        self.tokens, self.total = 0, torch.zeros(d, dtype=torch.float64)
        self.products = torch.zeros(d, d, dtype=torch.float64)

    def add(self, x: Float[Tensor, "tokens d"]) -> None:
        """Count these tokens too."""
        for part in x.split(4096):
            self.tokens += len(part)
            self.total += part.double().sum(0)
            self.products += part.double().T @ part.double()

    @property
    def mean(self) -> Float[Tensor, "d"]:
        return self.total / self.tokens

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """Unbiased: over one less than the number of tokens."""
        return (self.products - self.tokens * torch.outer(self.mean, self.mean)) / (self.tokens - 1)


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

    alive: int  # latents with frequency above ALIVE
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

    @property
    def exponent(self) -> float:
        """s of the power law I ~ rank^-s along the middle of the tail."""
        return power_tail(self.tail)[0]


def power_tail(tail: Float[np.ndarray, "alive"]) -> tuple[float, int | None]:
    """Exponent of a power law through importances in falling order, and the rank of the cliff behind it.

    The line is fitted to logarithms between 1 % and 25 % of the ranks; the cliff is where importance falls below a
    tenth of it for good, None if it does not.
    """
    rank = np.arange(1, len(tail) + 1)
    fitted = slice(len(tail) // 100, max(len(tail) // 100 + 2, len(tail) // 4))
    slope, level = np.polyfit(np.log(rank[fitted]), np.log(tail[fitted]), 1)
    below = tail < 0.1 * np.exp(level + slope * np.log(rank))
    cliff = len(tail) - int(np.argmin(below[::-1]))  # behind the last rank that is not below
    return -float(slope), None if cliff == len(tail) else cliff + 1


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
    states: np.ndarray  # of residual.offline_teacher


@torch.no_grad()
def divergence(reference: Reference, model: torch.nn.Module) -> float:
    """Mean KL(teacher || model) over all positions of the blocks, in nats per token at T = ``TEMPERATURE``."""
    teacher, total = reference.teacher, 0.0
    device = teacher.model.device
    a_batch = max(1, residual.FORWARD_TOKENS // reference.blocks.shape[1])
    for start in range(0, len(reference.blocks), a_batch):
        ids = torch.from_numpy(reference.blocks[start : start + a_batch].astype(np.int64)).to(device)
        states = torch.from_numpy(reference.states[start : start + a_batch].copy()).to(device)
        total += float(
            kl.divergence_per_token(
                models.final_hidden(model, ids),
                models.unembedding(model),
                states,
                models.unembedding(teacher.model),
                TEMPERATURE,
            ).sum()
        )
    return total / reference.blocks.size


def spliced_divergence(
    reference: Reference, layer: int, calibration: residual.Calibration, reconstruct: Callable[[Tensor], Tensor]
) -> float:
    """KL in nats when the model continues from ``reconstruct(x)`` at a layer; tokens left out stay as they are."""

    def replace(stream: Tensor) -> Tensor:
        keep = residual.kept_tokens({layer: stream}, calibration)
        scale = calibration.scale[layer]
        stream = stream.clone()
        stream[keep] = reconstruct(stream[keep] * scale) / scale
        return stream

    with residual.spliced(reference.teacher.model, layer, replace) as model:
        return divergence(reference, model)


def cut_divergences(reference: Reference, text: Int[np.ndarray, "blocks length"], widths: Sequence[int]) -> list[float]:
    """KL in nats of the untrained width-alone students: the teacher cut to its stream's first principal directions.

    An upper bound on what training can reach at a width, from minutes of work. NaN for families that can't be cut.

    Args:
        text: training blocks, for the principal directions.
    """
    model = reference.teacher.model
    try:
        basis = projection.stream_basis(model, residual.batches(text, "cpu"))
    except ValueError as error:
        log.warning("%s", error)
        return [math.nan] * len(widths)
    return [divergence(reference, cut.cut_to_width(model, basis, width)) for width in widths]


# --------------------------------------------------------------------------------------------------- the measurement

RANKS = (1, 3, 10, 30, 100, 300, 1000, 3000)  # features, by importance, whose strongest tokens are shown
FRACTIONS = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)  # of d_T: widths predicted for a teacher that is no scale's
ACTIVATION_BYTES = 2**32  # of the residual stream held at once
ON_DISK = 2**28  # bytes of it above which a second run finds it on disk


def measure(p: scales.Sae) -> runs.Record:
    """Train autoencoders on a teacher's residual stream and predict floors at every width; found if done before.

    One autoencoder with the default lambda at each layer, and one for each lambda at the predicting layer. Nothing
    here has seen a student.

    Returns:
        A record with the tables ``layers`` (a row an autoencoder: F, L0, alpha, g, d*, quality, intervals),
        ``floors`` (autoencoder x width: Eq. 2, log capacity, tail of the principal components, KL of the student cut
        to that width), ``curves`` (training), ``doubling`` (the default after its steps and, if asked for, twice as
        many) and ``features`` (strongest tokens of the default autoencoder); the arrays ``importance`` and
        ``frequency`` (default autoencoder, alive latents, by falling importance), ``importance/<layer>/<lam>``,
        ``eigenvalues/<layer>`` and the default autoencoder itself (``load``); and the values ``alive``, ``alpha``,
        ``l0``, ``d_star``, ``lam``, ``layer``, ``d_teacher``, ``widths``, ``left_out``, ``calibration``.
    """
    place = "-".join(re.findall(r"\w+(?:\.\w+)*", p.teacher, re.ASCII)[-2:])
    parameters = p.model_dump() | {"revision": models.teacher_revision(p.teacher, p.revision or None)}
    if not p.revive:
        del parameters["revive"]  # the paper's training, by the key it always had
    what = f"sae/{p.scale}/{place}-l{p.layer}"
    compute = functools.partial(_measure, p, runs.work_folder(what, parameters))
    return ranks.find_or_compute(what, parameters, compute)


def _measure(p: scales.Sae, work: Path) -> dict[str, Any]:
    device = ranks.device()
    teacher = models.load_teacher(p.teacher, p.revision or None, device)
    p = _fitted(p, teacher)
    text, unseen = read_text(p, teacher, "train", p.tokens), read_text(p, teacher, "held_out", p.held_out_tokens)
    layers = sorted({p.layer, *p.layers})
    calibration = residual.calibrate(teacher, text, layers)
    trained = _train(teacher, text, layers, calibration, _settings(p, teacher.d), work, f"{p.scale}-sae")

    moments, every_sums, first, left_out = _read_held_out(teacher, unseen, layers, calibration, trained)
    blocks = unseen[: max(1, p.kl_tokens // unseen.shape[1])]
    states = residual.offline_teacher(teacher, blocks, f"{p.scale}-sae")
    reference = Reference(teacher, blocks, states)
    cut = cut_divergences(reference, text[: len(blocks)], p.widths)
    means = {layer: found.mean.float().to(device) for layer, found in moments.items()}
    eigenvalues = {
        layer: torch.linalg.eigvalsh(found.covariance).flip(0).clamp(min=0).numpy() for layer, found in moments.items()
    }
    ablated = {
        layer: spliced_divergence(reference, layer, calibration, lambda x, layer=layer: means[layer].expand_as(x))
        for layer in layers
    }

    rows, floors, curves, doubling, values = [], [], [], [], {}
    bar = tqdm(trained, desc="feature statistics", unit=" autoencoders", leave=False)
    for run, all_sums in zip(bar, every_sums, strict=True):
        s, sae = run.settings, run.sae
        names = {"layer": s.layer, "lam": s.lam, "expansion": p.expansion, "tokens": p.tokens, "seed": s.seed}
        found, draws = statistics(all_sums), bootstrap(all_sums, DRAWS, s.seed)
        spliced = spliced_divergence(reference, s.layer, calibration, lambda x, sae=sae: sae.decode(sae.encode(x)))
        fvu = _unexplained(all_sums, moments[s.layer])
        quality = {"fvu": fvu, "kl_spliced": spliced, "kl_ablated": ablated[s.layer]}
        is_default = s.layer == p.layer and s.lam == p.lam
        if is_default:
            doubling.append({"steps": s.steps, "alive": found.alive, "l0": found.l0, "d_star": found.d_star} | quality)
        if s.steps != p.steps:
            continue
        sample = {"steps": s.steps, "held_out_tokens": moments[s.layer].tokens, "documents": len(all_sums.tokens)}
        rest = {"kind": p.kind, "latents": s.latents, "d_teacher": teacher.d, "default": is_default}
        rows.append(names | sample | _summary(found, draws) | quality | rest)
        floors += _floors(p, names, found, draws, eigenvalues[s.layer], cut)
        curves += [names | point | {"tokens_seen": point["step"] * s.batch} for point in run.curve]
        values[f"importance/{s.layer}/{s.lam:g}"] = found.tail.astype(np.float32)
        if is_default:
            order = [i for i in np.argsort(-found.importance, kind="stable") if found.frequency[i] > ALIVE]
            values |= {"importance": found.importance[order], "frequency": found.frequency[order]}
            values |= {"alive": found.alive, "alpha": found.alpha, "l0": found.l0, "d_star": found.d_star}
            values["features"] = strongest_tokens(teacher, unseen, first, sae, s.layer, order, found.frequency)
            arrays = ("encoder", "decoder", "bias_pre", "bias_encoder")
            values |= {f"sae/{name}": getattr(sae, name).cpu().numpy() for name in arrays}
    values |= {f"eigenvalues/{layer}": spectrum for layer, spectrum in eigenvalues.items()}
    values |= {"lam": p.lam, "layer": p.layer, "d_teacher": teacher.d, "widths": p.widths}
    values |= {"topk": p.topk if p.kind == "topk" else None, "left_out": left_out}
    values["calibration"] = {"limit": calibration.limit[p.layer], "scale": calibration.scale[p.layer]}
    tables = {"layers": rows, "floors": floors, "curves": curves, "doubling": doubling}
    return values | {name: pd.DataFrame(table) for name, table in tables.items()}


def describe(model: models.Teacher, p: scales.Sae, every: Sequence[Settings], work: Path) -> pd.DataFrame:
    """Autoencoders of any model's stream at one layer, on the text of ``p``: a row each, as ``measure``'s ``layers``.

    Args:
        every: which to train, all at one layer.
        work: folder of their checkpoints.
    """
    (layer,) = {s.layer for s in every}
    text, unseen = read_text(p, model, "train", p.tokens), read_text(p, model, "held_out", p.held_out_tokens)
    calibration = residual.calibrate(model, text, [layer])
    trained = _train(model, text, [layer], calibration, every, work)
    moments, every_sums, _, _ = _read_held_out(model, unseen, [layer], calibration, trained)
    rows = []
    for run, found in zip(trained, every_sums, strict=True):
        s = run.settings
        row = {"layer": layer, "lam": s.lam, "latents": s.latents, "steps": s.steps, "tokens": p.tokens, "seed": s.seed}
        row |= _summary(statistics(found), bootstrap(found, DRAWS, s.seed))
        rows.append(row | {"fvu": _unexplained(found, moments[layer])})
    return pd.DataFrame(rows)


def _read_held_out(
    teacher: models.Teacher,
    blocks: Int[np.ndarray, "blocks length"],
    layers: Sequence[int],
    calibration: residual.Calibration,
    trained: Sequence[Run],
) -> tuple[dict[int, Moments], list[Sums], residual.Activations, dict[str, int]]:
    """What is measured on held-out documents, of which so much is held at once as of the training text.

    Returns:
        Moments of each layer's stream, sums of each autoencoder, the first part of the stream itself, and how many
        tokens were left out.
    """
    moments, first = {layer: Moments(teacher.d) for layer in layers}, None
    every: list[list[Sums]] = [[] for _ in trained]
    left_out: Counter[str] = Counter()
    a_part = _blocks_at_once(teacher, blocks, layers)
    for part in residual.activations_in_parts(
        teacher, blocks, layers, calibration, a_part, "reading held-out documents"
    ):
        first = first or part
        left_out.update(part.left_out)
        for layer, stream in part.layers.items():
            moments[layer].add(stream)
        found = _side_by_side(
            lambda run, part=part: sums(run.sae, part.layers[run.settings.layer], part.document), trained, teacher
        )
        for sums_of_run, new in zip(every, found, strict=True):
            sums_of_run.append(new)
    return moments, [joined(parts) for parts in every], first, dict(left_out)


def _unexplained(sums: Sums, moments: Moments) -> float:
    """Share of the stream's variance that an autoencoder's reconstruction misses."""
    return sums.error / ((moments.tokens - 1) * float(moments.covariance.trace()))


def _blocks_at_once(teacher: models.Teacher, blocks: Int[np.ndarray, "blocks length"], layers: Sequence[int]) -> int:
    """How many blocks' streams fit into ``ACTIVATION_BYTES``."""
    return max(1, ACTIVATION_BYTES // (4 * teacher.d * len(layers) * blocks.shape[1]))


def load(record: runs.Record) -> tuple[Sae, residual.Calibration]:
    """The default autoencoder of a record of ``measure``, and the rule and scale of its inputs."""
    arrays = (record[f"sae/{name}"] for name in ("encoder", "decoder", "bias_pre", "bias_encoder"))
    rule = record["calibration"]
    calibration = residual.Calibration({record["layer"]: rule["limit"]}, {record["layer"]: rule["scale"]})
    return Sae(*(torch.from_numpy(array) for array in arrays), record["topk"]), calibration


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
    blocks = residual.token_blocks(teacher, split, p.length, p.percent, p.text, wanted)
    if len(blocks) < wanted:
        raise ParameterError(
            f"The {split} split has {blocks.size} tokens and {tokens} are wanted; raise percent = {p.percent} "
            "or ask for fewer."
        )
    return blocks[:wanted]


def _settings(p: scales.Sae, d: int) -> list[Settings]:
    """The default lambda at every layer, every lambda at the predicting one."""
    pairs = {(layer, p.lam) for layer in p.layers} | {(p.layer, lam) for lam in [p.lam, *p.lams]}
    if p.kind == "topk":  # lambda plays no part
        pairs = {(layer, p.lam) for layer in [p.layer, *p.layers]}
    topk = p.topk if p.kind == "topk" else None
    rest = dict(batch=p.batch, learning_rate=p.learning_rate, seed=p.seed, topk=topk, revive=p.revive)
    every = [Settings(layer, lam, p.expansion * d, p.steps, **rest) for layer, lam in sorted(pairs)]
    longer = Settings(p.layer, p.lam, p.expansion * d, 2 * p.steps, **rest)
    return [*every, longer] if p.doubling else every


def _train(
    teacher: models.Teacher,
    text: Int[np.ndarray, "blocks length"],
    layers: Sequence[int],
    calibration: residual.Calibration,
    every: Sequence[Settings],
    work: Path,
    name: str | None = None,
) -> list[Run]:
    """Train all autoencoders side by side, a core each, on one shard of the text after the other.

    With a ``name``, the stream of a text that is read once, but takes long to read, is kept on disk under it. A GPU
    multiplies in TF32 here, the teacher's pass included; what is measured afterwards is in float32.
    """
    jobs = [Run(s, torch.zeros(teacher.d, device=teacher.model.device)) for s in every]
    files = [work / f"layer{s.layer}-lam{s.lam:g}-steps{s.steps}.safetensors" for s in every]
    for job, file in zip(jobs, files, strict=True):
        job.load(file)
    bar = tqdm(total=sum(s.steps for s in every), desc="training autoencoders", unit=" steps", leave=False)
    bar.update(sum(job.step for job in jobs))
    a_shard = _blocks_at_once(teacher, text, layers)
    longest = max(every, key=lambda s: s.steps)
    kept = text.size * teacher.d * len(layers) * 4 > ON_DISK and a_shard >= len(text)
    with ranks.tf32(teacher.model.device):
        for start, first, until in _visits(len(text), a_shard, text.shape[1], longest):
            if all(job.step >= min(until, job.settings.steps) for job in jobs):
                continue
            read = residual.activations(
                teacher, text[start : start + a_shard], layers, calibration, name=name if kept else None
            )
            part = {layer: x.to(teacher.model.device) for layer, x in read.layers.items()}

            def advance(pair: tuple[Run, Path], part=part, first=first, until=until) -> None:
                job, file = pair
                x = part[job.settings.layer]
                if job.step == 0:
                    job.sae.bias_pre.copy_(x.mean(0))
                if job.step == first:
                    job.visit()
                job.advance(x, min(until, job.settings.steps), file, bar.update)

            longest_first = sorted(zip(jobs, files, strict=True), key=lambda pair: -pair[0].settings.steps)
            _side_by_side(advance, longest_first, teacher)
    bar.close()
    return jobs


def _side_by_side(work: Callable, items: Sequence, teacher: models.Teacher) -> list:
    """``work`` on each item: on a CPU as many at once as torch has threads, each with one; on a GPU in turn.

    Small matrices gain little from a second thread, and with one the numbers don't depend on how many there are. What
    several processes do together they do in one order.
    """
    if teacher.model.device.type != "cpu" or ranks.count() > 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(work, items))


def _visits(blocks: int, a_shard: int, length: int, s: Settings) -> Iterator[tuple[int, int, int]]:
    """Which shard of the text serves which steps: first block, first step, step after the last."""
    if a_shard >= blocks:
        yield 0, 0, s.steps
        return
    step = 0
    for epoch in itertools.count():
        for shard in np.random.default_rng([s.seed, epoch]).permutation(blocks // a_shard):
            until = min(s.steps, step + max(1, int(0.9 * a_shard * length) // s.batch))  # 0.9: tokens are left out
            yield int(shard) * a_shard, step, until
            step = until
            if step == s.steps:
                return


def _summary(found: Statistics, draws: Sequence[Statistics]) -> dict[str, float]:
    """F, L0, alpha, g and d* with intervals, alpha and d* also over all latents instead of the alive ones."""
    row: dict[str, float] = {}
    for name in ("alive", "l0", "alpha", "d_star", "exponent"):
        row[name] = getattr(found, name)
        row[f"{name}_low"], row[f"{name}_high"] = interval(row[name], [getattr(draw, name) for draw in draws])
    latents, cliff = len(found.importance), power_tail(found.tail)[1]
    row |= {"cliff": math.nan if cliff is None else cliff}
    row |= {"g": float(capacity.g(found.alpha)), "alpha_all": 1 - found.l0 / latents}
    return row | {"d_star_all": float(capacity.critical_width_from_l0(latents, found.l0))}


def _floors(
    p: scales.Sae,
    names: dict[str, Any],
    found: Statistics,
    draws: Sequence[Statistics],
    spectrum: Float[np.ndarray, "d"],
    cut: Sequence[float],
) -> list[dict]:
    """Predictions at each width, in squared units of the scaled stream, and the cut student's KL in nats."""

    def floor(s: Statistics, law: Callable[[float], float] | None = None) -> np.ndarray:
        options = {} if law is None else {"capacity": law(s.alpha)}
        return capacity.eq2_floor(s.tail, np.array(p.widths), s.alpha, **options)

    def logarithmic(alpha: float) -> float:
        return capacity.log_capacity(alpha, p.kappa)

    kept = np.minimum(capacity.features_kept(np.array(p.widths), found.alpha), found.alive)
    laws = {"eq2": None, "log_capacity": logarithmic}
    values = {name: floor(found, law) for name, law in laws.items()}
    replicates = {name: np.array([floor(draw, law) for draw in draws]) for name, law in laws.items()}
    rows = []
    for n, width in enumerate(p.widths):
        row = {"width": width, "kept": int(kept[n]), "dropped": int(found.alive - kept[n])}
        for name in laws:
            low, high = interval(values[name][n], replicates[name][:, n])
            row |= {name: values[name][n], f"{name}_low": max(0.0, low), f"{name}_high": high}
        row |= {"pca_tail": float(spectrum[width:].sum()), "total": float(found.tail.sum()), "kl_cut": cut[n]}
        rows.append(names | row)
    return rows


@torch.no_grad()
def strongest_tokens(
    teacher: models.Teacher,
    blocks: Int[np.ndarray, "blocks length"],
    held_out: residual.Activations,
    sae: Sae,
    layer: int,
    order: Sequence[int],
    frequency: Float[np.ndarray, "latents"],
    top: int = 5,
) -> pd.DataFrame:
    """The tokens of different documents on which features of stated ranks are most active, in a few words of context.

    Args:
        held_out: the stream, or its first part, in which the tokens are looked for.
        order: latents by falling importance.
    """
    picked = [(rank, order[rank - 1]) for rank in RANKS if rank <= len(order)]
    x = held_out.layers[layer].to(sae.decoder.device)
    z = torch.cat([sae.encode(part)[:, [latent for _, latent in picked]].cpu() for part in x.split(4096)])
    flat, end = np.asarray(blocks).ravel(), teacher.tokenizer.eos_token_id
    rows = []
    for column, (rank, latent) in enumerate(picked):
        seen: set[int] = set()
        for token in z[:, column].argsort(descending=True).tolist():
            document, place = int(held_out.document[token]), int(held_out.place[token])
            if z[token, column] <= 0 or len(seen) == top:
                break
            if document in seen:
                continue
            seen.add(document)
            start = place // blocks.shape[1] * blocks.shape[1]
            pieces = (flat[max(start, place - 10) : place], flat[place : place + 1], flat[place + 1 : place + 4])
            before, here, after = (
                re.sub(r"\s+", " ", teacher.tokenizer.decode([i for i in piece if i != end])) for piece in pieces
            )
            rows.append({"rank": rank, "latent": int(latent), "frequency": float(frequency[latent])})
            rows[-1] |= {"activation": float(z[token, column]), "before": before, "token": here, "after": after}
    return pd.DataFrame(rows)


def main(arguments: list[str] | None = None) -> None:
    """Measure F, L0, alpha and d* as 03_sae does, on several devices under ``accelerate launch``."""
    parser = argparse.ArgumentParser(prog="python -m minwidth.sae", description=main.__doc__)
    parser.add_argument("--scale", default="tiny", choices=list(scales.SCALES))
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of 03_sae")
    options = parser.parse_args(arguments)
    try:
        p = scales.parameters("03_sae", options.scale, **scales.settings(options.set))
    except ParameterError as error:
        parser.error(str(error))
    record = measure(p)
    log.info("%s: d* = %.4g at a width of %d", record.key, record["d_star"], record["d_teacher"])


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with in_one_sentence():
        main()
