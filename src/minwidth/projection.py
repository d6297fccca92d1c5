"""What is left of a teacher whose residual stream keeps only some directions, in any pre-norm architecture.

A pre-norm transformer reads its stream through norms and nothing else. So a student whose stream holds only some
directions computes exactly what its teacher does when the input of each of those norms is projected onto them: with
the student's gains at sqrt(d_T / d) and its epsilon at d_T / d times the teacher's, the narrower mean cancels. No
architecture has to be known for that. The norms are found by what they do in a forward pass, not by name: adding a
vector to the stream moves the input of those that read it by just that vector.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from minwidth import models, stream
from minwidth.errors import ParameterError

MATRICES = (nn.Linear, Conv1D)


class StreamNorm(NamedTuple):
    """A norm that reads the residual stream: gain * (x - mean) / sqrt(mean square + epsilon) + bias."""

    module: nn.Module
    name: str
    gain: Float[Tensor, "d"]  # as it acts: 1 + weight in Gemma
    bias: Float[Tensor, "d"]
    epsilon: float
    centred: bool  # LayerNorm takes the mean out, RMSNorm does not
    site: int  # norms of one site read the same stream (the two of a parallel block)
    readers: list[nn.Module]  # the matrices that read what it gives; all others of a block write to the stream


@torch.no_grad()
def stream_norms(model: PreTrainedModel) -> list[StreamNorm]:
    """The norms through which ``model`` reads its residual stream, in the order of its forward pass.

    One pass records what every norm of width d and every matrix reads and gives. In a second one a vector is added to
    the stream before the first block, while all norms give what they gave: a norm that reads the stream sees its input
    move by just this vector, one that reads what a block writes, or queries and keys, sees it stay. Raises
    ParameterError where something else happens: a block reads the stream without a norm (OLMo 2), or a norm stands
    behind the sum (post-norm).
    """
    ids = torch.arange(1, 25, device=model.device).view(2, 12) % model.get_input_embeddings().num_embeddings
    d, name = model.config.hidden_size, type(model).__name__
    candidates = {m: n for n, m in model.base_model.named_modules() if not list(m.children()) and is_norm(m, d)}
    matrices = [module for module in model.base_model.modules() if isinstance(module, MATRICES)]
    with _watching([*candidates, *matrices]) as calls:
        final = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    seen = [call for call in calls if call[0] in candidates]
    size = stream.streams(model, ids, [0])[0].square().mean().sqrt()
    kick = size * torch.randn(d, generator=torch.Generator().manual_seed(0)).to(final)
    outputs = [given for *_, given in seen]
    with _watching(candidates, outputs) as moved, stream.spliced(model, 0, lambda stream: stream + kick):
        model.base_model(input_ids=ids, use_cache=False)

    norms: list[StreamNorm] = []
    sites: list[Tensor] = []
    for (module, before, given), (_, after, _) in zip(seen, moved, strict=True):
        rounding = 1e-3 * kick.abs().max() + 1e-5 * before.abs().max()
        if (after - before - kick).abs().max() <= rounding:
            if not sites or not torch.equal(before, sites[-1]):
                sites.append(before)
            readers = [m for m, read, _ in calls if m not in candidates and torch.equal(read, given)]
            norms.append(StreamNorm(module, candidates[module], *asked(module, d), len(sites) - 1, readers))
        elif (after - before).abs().max() > rounding:
            raise ParameterError(
                f"{name} ({model.config.model_type}) cannot be cut: what {candidates[module]} reads moves with the "
                "residual stream but not one for one, so something reads the stream without a norm."
            )
    if not norms or seen[-1][0] is not norms[-1].module or not torch.allclose(seen[-1][2], final, atol=1e-5):
        raise ParameterError(
            f"{name} ({model.config.model_type}) cannot be cut: its final state is not a norm of the residual stream."
        )
    return norms


def is_norm(module: nn.Module, d: int) -> bool:
    """Whether a module gives the same for an input three times as large, and has width d."""
    x = 100 * torch.randn(4, d, generator=torch.Generator().manual_seed(1))
    if any(d not in p.shape or p.ndim > 1 for p in module.parameters()) or isinstance(module, nn.Embedding):
        return False
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    try:
        one, three = module(x.to(device)), module(3 * x.to(device))
    except (TypeError, RuntimeError, ValueError, IndexError):
        return False
    return isinstance(one, Tensor) and one.shape == x.shape and torch.allclose(one, three, rtol=1e-4, atol=1e-5)


def asked(norm: nn.Module, d: int) -> tuple[Tensor, Tensor, float, bool]:
    """Gain, bias, epsilon and whether the mean is taken out, from what a norm answers."""
    device = next((p.device for p in norm.parameters()), torch.device("cpu"))
    x = torch.ones(1, d, device=device)
    x[:, 1::2] = -1
    bias = norm(torch.zeros_like(x))
    large = norm(1e4 * x) - bias
    centred = torch.allclose(norm(1e4 * x + 3e3) - bias, large, rtol=1e-3, atol=1e-4)
    direction = x - x.mean() if centred else x
    gain = large / (direction / direction.square().mean().sqrt())
    small = 1e-3 * direction / direction.square().mean().sqrt()
    kept = float((norm(small) - bias).double().norm() / large.double().norm())
    return gain[0].double(), bias[0].double(), max(0.0, 1e-6 * (kept**-2 - 1)), centred


@contextmanager
def _watching(modules: Iterable[nn.Module], replay: Sequence[Tensor] | None = None) -> Iterator[list]:
    """Record (module, input, output) of every call; with ``replay``, let the calls give these outputs instead."""
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def see(module, inputs, output):
        calls.append((module, inputs[0].clone(), output))
        return None if replay is None else replay[len(calls) - 1]

    with ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_hook(see))
        yield calls


@contextmanager
def projected(
    model: PreTrainedModel, norms: Sequence[StreamNorm], directions: Float[Tensor, "d k"] | Sequence[Tensor]
) -> Iterator[PreTrainedModel]:
    """While the block lasts, ``model`` computes what a student does whose stream holds only ``directions``.

    ``directions`` are orthonormal columns (``kept``), under LayerNorm of zero mean. A list of them, one a site, is a
    student with a basis of its own at each, and adapters between: what one cut takes away, later sites lack too.
    """
    hooks = project(model, norms, directions)
    try:
        yield model
    finally:
        for hook in hooks:
            hook.remove()


def project(
    model: PreTrainedModel, norms: Sequence[StreamNorm], directions: Float[Tensor, "d k"] | Sequence[Tensor]
) -> list[RemovableHandle]:
    """``projected`` for good, or until these hooks are removed; gradients pass, so such a student can be trained."""
    each_site = not isinstance(directions, Tensor)
    bases = [basis.to(model.device, torch.float32) for basis in (directions if each_site else [directions])]
    projectors = [basis @ basis.T for basis in bases]
    first = {norm.site: norm.module for norm in reversed(norms)}

    def cut(norm: StreamNorm, _, inputs):
        if not each_site:
            return (inputs[0] @ projectors[0],)
        if norm.module is first[norm.site]:  # in place: the sum goes past the norm in the same tensor
            inputs[0].copy_(inputs[0] @ projectors[norm.site])
        return None

    return [norm.module.register_forward_pre_hook(partial(cut, norm)) for norm in norms]


def kept(basis: Float[Tensor, "d d"], width: int, centred: bool) -> Float[Tensor, "d k"]:
    """The directions that a student of a width holds: one fewer where LayerNorm takes the mean out."""
    return basis[:, : width - centred]


class Cut(NamedTuple):
    """What a cut costs, a number a held-out token."""

    kl: Float[np.ndarray, " tokens"]  # KL(teacher || student) at a temperature, nats
    loss: Float[np.ndarray, " tokens"]  # the student's own next-token loss, nats; NaN at the end of a block


@torch.no_grad()
def untrained(
    model: PreTrainedModel,
    blocks: Integer[np.ndarray, "blocks length"],
    directions: Float[Tensor, "d k"] | Sequence[Tensor] | None,
    temperature: float = 2.0,
    norms: Sequence[StreamNorm] | None = None,
) -> Cut:
    """KL of the untrained student that keeps ``directions``, from the model's own logits, whatever they are made of.

    A block at a time, so that logits of a large vocabulary never fill the memory. ``directions=None`` is the teacher.
    """
    norms = stream_norms(model) if norms is None else norms
    divergences, losses = [], []
    for block in tqdm(blocks, desc="untrained student", unit=" blocks", leave=False) if len(blocks) > 1 else blocks:
        ids = torch.from_numpy(np.asarray(block, dtype=np.int64))[None].to(model.device)
        teacher = student = model(input_ids=ids, use_cache=False).logits[0].float()
        if directions is not None:
            with projected(model, norms, directions):
                student = model(input_ids=ids, use_cache=False).logits[0].float()
        losses.append(F.pad(F.cross_entropy(student[:-1], ids[0, 1:], reduction="none"), (0, 1), value=torch.nan))
        log_p, log_q = (x.div(temperature).log_softmax(-1) for x in (teacher, student))
        divergences.append((log_p.exp() * (log_p - log_q)).sum(-1))
    return Cut(*(torch.cat(part).cpu().numpy() for part in (divergences, losses)))


@torch.no_grad()
def stream_moments(
    model: PreTrainedModel, token_batches: Iterable[Integer[Tensor, "batch length"]], each_site: bool = False
) -> Float[Tensor, "*sites d d"]:
    """Mean of x x^T in float64, x being what a norm of the stream normalises, after that and before its gain.

    All norms are pooled unless ``each_site``, and all tokens kept, massive activations included: normalised, they weigh
    as much as others. Its trace is d. Batches are tensors or arrays of token ids, without padding; ValueError if none.
    """
    norms, d = stream_norms(model), model.config.hidden_size
    totals = torch.zeros(norms[-1].site + 1 if each_site else 1, d, d, dtype=torch.float64, device=model.device)
    counts = [0] * len(totals)

    def add(norm: StreamNorm, _, inputs):
        stream = inputs[0].detach().double().flatten(0, -2)
        if norm.centred:
            stream = stream - stream.mean(1, keepdim=True)
        stream = stream * torch.rsqrt(stream.square().mean(1, keepdim=True) + norm.epsilon)
        place = norm.site if each_site else 0
        totals[place].addmm_(stream.T, stream)
        counts[place] += len(stream)

    with ExitStack() as hooks:
        for norm in norms:
            hooks.enter_context(norm.module.register_forward_pre_hook(partial(add, norm)))
        for batch in tqdm(token_batches, desc="principal directions", unit=" batches", leave=False):
            ids = batch if isinstance(batch, Tensor) else torch.from_numpy(np.asarray(batch).astype(np.int64))
            models.final_hidden(model, ids.to(model.device))
    if not counts[0]:
        raise ValueError("The principal directions of a residual stream need at least one batch of tokens; got none.")
    means = totals / torch.tensor(counts, dtype=torch.float64, device=totals.device)[:, None, None]
    return means if each_site else means[0]


def principal_basis(model: PreTrainedModel, moments: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """Eigenvectors of the stream's second moments as columns, strongest first, in float64.

    Under LayerNorm the last column is the constant direction, which the norm discards. Signs are fixed: the largest
    entry of a column is positive.
    """
    if stream_norms(model)[-1].centred:
        zero_mean = zero_mean_basis(len(moments)).to(moments.device)
        vectors = zero_mean @ torch.linalg.eigh(zero_mean.T @ moments @ zero_mean).eigenvectors.flip(1)
        vectors = torch.cat([vectors, torch.full_like(vectors[:, :1], len(moments) ** -0.5)], dim=1)
    else:
        vectors = torch.linalg.eigh(moments).eigenvectors.flip(1)
    return vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()


def channel_basis(model: PreTrainedModel, moments: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """The stream's own channels as columns, those of largest mean square first, as pruning by activation keeps them.

    Under LayerNorm each is made zero-mean and orthogonal to those before it, and the last column is constant.
    """
    columns = torch.eye(len(moments)).to(moments)[:, moments.diagonal().argsort(descending=True)]
    if not stream_norms(model)[-1].centred:
        return columns
    constant = torch.full_like(columns[:, :1], len(moments) ** -0.5)
    return torch.cat([torch.linalg.qr(columns[:, :-1] - columns[:, :-1].mean(0)).Q, constant], dim=1)


def stream_basis(model: PreTrainedModel, token_batches: Iterable[Integer[Tensor, "batch length"]]) -> Tensor:
    """Principal basis of the normalised residual stream: ``principal_basis`` of ``stream_moments``."""
    return principal_basis(model, stream_moments(model, token_batches))


def zero_mean_basis(width: int) -> Float[Tensor, "width width-1"]:
    """Orthonormal columns that span the vectors of zero mean (Helmert's contrasts), in float64."""
    columns = torch.triu(torch.ones(width, width, dtype=torch.float64))[:, : width - 1]
    places = torch.arange(1, width)
    columns[places, places - 1] = -places.double()
    return columns / columns.norm(dim=0)
