"""A training step of a sparse autoencoder that touches active entries alone, exactly, on a CPU.

After warm-up one latent in a hundred fires. Pre-activations are formed densely, by one matrix product, and all else on
the active entries: several times faster than autograd (``benchmarks/sae.py``). What is computed here,
``autoencoder.Sae.loss`` says in six lines.
"""

import math
from typing import NamedTuple

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

ACTIVE = 0.2  # share of active entries above which matrix products are faster
BETAS = (0.9, 0.999)
EPSILON = 1e-8
CLIP = 1.0  # largest norm of all gradients together
NUMBA = dict(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz", "arcp"})


class Gradients(NamedTuple):
    """Gradients of a batch's loss, and what the batch says of the fit."""

    parameters: tuple[Tensor, Tensor, Tensor, Tensor]  # as Sae.parameters(); rows of silent latents may hold anything
    counts: Int[Tensor, "latents"]  # tokens on which a latent is active
    error: float | Tensor  # mean squared norm of x - x_hat
    l0: float | Tensor  # mean number of active latents
    squares: tuple[float, float] | None = None  # of encoder's and decoder's gradients, where they came for free


class Buffers:
    """Scratch of a step, kept from step to step: fresh memory costs as much as a fifth of a matrix product."""

    def __init__(self, tokens: int, latents: int, d: int):
        self.pre = torch.empty(tokens, latents)
        self.residual = torch.empty(tokens, d)
        self.d_encoder, self.d_decoder = torch.empty(latents, d), torch.empty(latents, d)
        self.d_bias = torch.empty(latents)
        self.mask = np.zeros(-(-latents // 8) * 8, np.uint8)
        room = int(ACTIVE * tokens * latents) + len(self.mask)
        self.latent, self.token = np.empty(room, np.int32), np.empty(room, np.int32)
        self.z, self.z_by_latent, self.dz = (np.empty(room, np.float32) for _ in range(3))
        self.rows, self.columns = np.empty(tokens + 1, np.int64), np.empty(latents + 1, np.int64)


@torch.no_grad()
def gradients(sae: nn.Module, x: Float[Tensor, "tokens d"], lam: float, buffers: Buffers) -> Gradients | None:
    """Gradients of ``sae.loss(x, lam)``; None if more than ``ACTIVE`` of the entries are positive.

    Raises ValueError where the buffers are for another number of tokens: compiled loops look at no bounds.
    """
    if len(x) != len(buffers.residual):
        raise ValueError(f"{len(x)} tokens do not fit buffers for {len(buffers.residual)}: make them for as many.")
    b, centred, bias = buffers, x - sae.bias_pre, sae.bias_encoder.detach()
    if sae.topk is None:
        torch.mm(centred, sae.encoder.T, out=b.pre)
    else:
        b.pre, bias = sae.encode(x), torch.zeros_like(bias)
    active = _list_active(b.pre.numpy(), bias.numpy(), b.rows, b.latent, b.z, b.mask)
    if active < 0:
        return None
    _by_latent(b.rows, b.latent, b.z, b.columns, b.token, b.z_by_latent)
    sparse, decoder, inputs = (b.columns, b.token, b.z_by_latent), sae.decoder.detach().numpy(), centred.numpy()
    error = _reconstruct(*sparse, decoder, inputs, b.residual.numpy())
    found = (b.d_encoder.numpy(), b.d_decoder.numpy(), b.d_bias.numpy())
    squares = _row_gradients(*sparse, b.dz, lam / len(x), decoder, b.residual.numpy(), inputs, *found)
    d_pre = b.residual.sum(0) - b.d_bias @ sae.encoder
    counts = torch.from_numpy(np.diff(b.columns))
    return Gradients((b.d_encoder, b.d_decoder, d_pre, b.d_bias), counts, error, active / len(x), squares)


@numba.njit(**NUMBA)
def _list_active(pre, bias, rows, latent, z, mask):
    """Positive entries of pre + bias row by row; -1 if they don't fit.

    ``mask`` holds a row's signs, eight to a word: eight without any are passed over at once. Within eight there is no
    branch: each entry is written, and the next over it unless it was positive.
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


@numba.njit(**NUMBA)
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


@numba.njit(**NUMBA)
def _reconstruct(columns, token, z, decoder, centred, residual):
    """Residuals times 2 / tokens, and the mean squared error; latent by latent, so that the decoder is read once."""
    tokens, d = centred.shape
    np.negative(centred, residual)
    for i in range(len(columns) - 1):
        w = decoder[i]
        for k in range(columns[i], columns[i + 1]):
            r, value = residual[token[k]], z[k]
            for j in range(d):
                r[j] += value * w[j]
    total = 0.0
    scale = np.float32(2.0 / tokens)
    for t in range(tokens):
        total += _square(residual[t])
        residual[t] *= scale
    return total / tokens


@numba.njit(**NUMBA)
def _row_gradients(columns, token, z, dz, penalty, decoder, residual, centred, d_encoder, d_decoder, d_bias):
    """Gradients of the rows of the latents that fired, and their squares; the derivatives by z; those of all biases."""
    d = centred.shape[1]
    of_encoder, of_decoder = 0.0, 0.0
    for i in range(len(columns) - 1):
        total = np.float32(0.0)
        if columns[i] < columns[i + 1]:
            w, g = decoder[i], d_decoder[i]
            g[:] = 0
            for k in range(columns[i], columns[i + 1]):
                r, value = residual[token[k]], z[k]
                dot = np.float32(0.0)
                for j in range(d):
                    dot += r[j] * w[j]
                    g[j] += value * r[j]
                dz[k] = dot + np.float32(penalty)
                total += dz[k]
            of_decoder += _square(g)
        d_bias[i] = total
    for i in range(len(columns) - 1):  # in a loop of its own, since residuals and inputs together exceed the cache
        if columns[i] < columns[i + 1]:
            g = d_encoder[i]
            g[:] = 0
            for k in range(columns[i], columns[i + 1]):
                c, value = centred[token[k]], dz[k]
                for j in range(d):
                    g[j] += value * c[j]
            of_encoder += _square(g)
    return of_encoder, of_decoder


@numba.njit(inline="always", **NUMBA)
def _square(row):
    square = np.float32(0.0)
    for j in range(len(row)):
        square += row[j] * row[j]
    return square


class Adam:
    """Adam with gradients clipped at a global norm of ``CLIP``; silent latents have gradient 0, decoder rows norm 1.

    Parameters that need no gradient stay. On a CPU one pass over memory, else torch's operations, none of which makes a
    GPU wait.
    """

    def __init__(self, sae: nn.Module):
        self.moments = [(torch.zeros_like(w.data), torch.zeros_like(w.data)) for w in sae.parameters()]
        self.steps = 0

    @torch.no_grad()
    def step(self, sae: nn.Module, found: Gradients, rate: float) -> None:
        """Change the parameters of ``sae`` in place."""
        self.steps += 1
        every = zip(sae.parameters(), found.parameters, self.moments, strict=True)
        wanted = [(w, gradient, *moments) for w, gradient, moments in every if w.requires_grad]
        matrices = found.squares or (gradient.double().square().sum() for gradient in found.parameters[:2])
        squares = [*matrices, *(gradient.double().square().sum() for _, gradient, *_ in wanted[2:])]
        clip = (CLIP / (torch.as_tensor(sum(squares)).sqrt() + 1e-12)).clamp(max=1)
        first, second = (1 - beta**self.steps for beta in BETAS)
        for w, gradient, m, v in wanted:
            if w.device.type == "cpu":
                rows = found.counts > 0 if w.ndim == 2 else torch.ones(1, dtype=torch.bool)
                arrays = [tensor.detach().reshape(-1, w.shape[-1]).numpy() for tensor in (w, gradient, m, v)]
                _adam(*arrays, rows.numpy(), float(clip), rate / first, second, w is sae.decoder)
            else:
                gradient = gradient * clip.float()
                m.lerp_(gradient, 1 - BETAS[0])
                v.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
                w.addcdiv_(m, (v / second).sqrt_().add_(EPSILON), value=-rate / first)
                if w is sae.decoder:
                    w /= w.norm(dim=1, keepdim=True)


@numba.njit(**NUMBA)
def _adam(p, g, m, v, fired, clip, rate, correction, unit):
    """One pass over parameters and moments, a row at a time, so that each is read from memory once."""
    b1, b2 = np.float32(BETAS[0]), np.float32(BETAS[1])
    a1, a2 = np.float32(1 - BETAS[0]) * np.float32(clip), np.float32(1 - BETAS[1]) * np.float32(clip * clip)
    scale, small, lr = np.float32(1 / correction), np.float32(EPSILON), np.float32(rate)
    zero = np.zeros(p.shape[1], p.dtype)
    for i in range(p.shape[0]):
        pi, gi, mi, vi = p[i], g[i] if fired[i] else zero, m[i], v[i]
        for j in range(p.shape[1]):
            mi[j] = b1 * mi[j] + a1 * gi[j]
            vi[j] = b2 * vi[j] + a2 * gi[j] * gi[j]
            pi[j] -= lr * mi[j] / (math.sqrt(vi[j] * scale) + small)
        if unit:
            inverse = np.float32(1.0 / math.sqrt(_square(pi)))
            for j in range(p.shape[1]):
                pi[j] *= inverse
