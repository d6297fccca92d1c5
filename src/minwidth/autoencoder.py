"""Sparse autoencoders of a residual stream, the paper's (appendix D) and TopK: loss, training, SAELens's form.

Inputs have a mean norm of sqrt(d), so that lambda means the same at every layer and in every model. Autograd trains by
``Sae.loss`` on a GPU, and on a CPU as long as many latents are active; with few, ``sae_kernel.gradients`` do the same.
"""

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from accelerate.utils import reduce
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from minwidth import models, sae_kernel, stream, training
from minwidth.errors import Diverged
from minwidth.sae_kernel import Gradients
from minwidth.store import replace_folder
from minwidth.training import batch_rows, checkpointed, load_state, save_state

WARMUP = 0.1  # share of the steps in which lambda rises from 0
DECAY = 0.3  # share of the steps, the last, in which the learning rate falls to 0
RETRY = 20  # steps after which the sparse step is tried again
WINDOWS = 60  # points of a training curve
ACTIVATION_BYTES = 2**32  # of the residual stream held at once
ON_DISK = 2**28  # bytes of it above which a second run finds it on disk
WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"  # of SAELens


class Sae(nn.Module):
    """A sparse autoencoder: ``encoder`` and ``decoder`` have a row a feature ``[latents, d]``, the decoder's of norm 1.

    ``bias_pre`` ``[d]`` is taken from the input and added to the reconstruction. The paper has no ``bias_encoder``
    ``[latents]``, so it stays 0; others' have one. ``topk`` latents are kept per token, None for plain ReLU.
    """

    def __init__(
        self, encoder: Tensor, decoder: Tensor, bias_pre: Tensor, bias_encoder: Tensor, topk: int | None = None
    ):
        super().__init__()
        self.encoder, self.decoder, self.bias_pre = map(nn.Parameter, (encoder, decoder, bias_pre))
        self.bias_encoder, self.topk = nn.Parameter(bias_encoder, requires_grad=False), topk

    @classmethod
    def initial(cls, mean: Float[Tensor, "d"], latents: int, seed: int, topk: int | None = None) -> "Sae":
        """Random unit decoder rows, the encoder 2 d / latents times the decoder, biases at the mean and 0.

        With half of the latents firing, that encoder makes the first reconstruction about as large as the input.
        """
        d = len(mean)
        decoder = torch.randn(latents, d, generator=torch.Generator().manual_seed(seed)).to(mean)
        decoder /= decoder.norm(dim=1, keepdim=True)
        return cls(decoder * (2 * d / latents), decoder, mean.clone(), mean.new_zeros(latents), topk)

    def encode(self, x: Float[Tensor, "tokens d"]) -> Float[Tensor, "tokens latents"]:
        """Activations z of the latents."""
        z = torch.addmm(self.bias_encoder, x - self.bias_pre, self.encoder.T).relu()
        if self.topk is None:
            return z
        values, places = z.topk(self.topk, dim=1)
        return torch.zeros_like(z).scatter(1, places, values)

    def decode(self, z: Float[Tensor, "tokens latents"]) -> Float[Tensor, "tokens d"]:
        """Reconstruction from activations."""
        return torch.addmm(self.bias_pre, z, self.decoder)

    def loss(self, x: Float[Tensor, "tokens d"], lam: float) -> tuple[Tensor, Tensor, Float[Tensor, "tokens latents"]]:
        """||x - x_hat||^2 + lam sum_i z_i, the mean over tokens; its first term; and z."""
        z = self.encode(x)
        error = (x - self.decode(z)).square().sum(1).mean()
        return error + lam * z.sum(1).mean(), error, z


def dense_gradients(sae: Sae, x: Float[Tensor, "tokens d"], lam: float) -> Gradients:
    """Gradients of ``sae.loss`` by autograd, on any device; on a GPU nothing here waits for it."""
    sae.zero_grad()
    loss, error, z = sae.loss(x, lam)
    loss.backward()
    counts = (z.detach() > 0).sum(0)
    parameters = tuple(torch.zeros_like(w) if w.grad is None else w.grad for w in sae.parameters())
    return Gradients(parameters, counts, error.detach().double(), (counts.sum() / len(x)).double())


def _mean(found: Gradients) -> Gradients:
    """Of a batch that several processes share: the gradients of the whole from those of the shares."""
    processes = training.state().num_processes
    if processes == 1:
        return found
    fired, counts, (encoder, decoder, *biases) = found.counts > 0, found.counts.double(), found.parameters
    parameters = (encoder.where(fired[:, None], 0), decoder.where(fired[:, None], 0), *biases)
    said = torch.stack([torch.as_tensor(value, device=fired.device).double() for value in (found.error, found.l0)])
    *parameters, said, counts = reduce([*parameters, said, counts], "mean")
    return Gradients(tuple(parameters), (processes * counts).round().int(), *said)


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

    def rate(self, step: int) -> float:
        """Learning rate: constant, then down to 0 in a straight line over the last ``DECAY`` of the steps."""
        return self.learning_rate * min(1.0, (self.steps - step) / (DECAY * self.steps))

    def penalty(self, step: int) -> float:
        """lambda: up from 0 in a straight line over the first ``WARMUP`` of the steps; 0 for TopK."""
        return 0.0 if self.topk else self.lam * min(1.0, (step + 1) / (WARMUP * self.steps))


class Run:
    """An autoencoder in training: parameters, moments, its curve; the intact state in ``checkpoint`` is continued."""

    PLACE = ("step", "sparse", "curve")  # what a checkpoint holds beside tensors

    def __init__(self, settings: Settings, mean: Float[Tensor, "d"], checkpoint: Path | None = None):
        s = self.settings = settings
        self.sae = Sae.initial(mean, s.latents, s.seed, s.topk)
        self.adam, self.checkpoint, self.due = sae_kernel.Adam(self.sae), checkpoint, checkpointed()
        self.step, self.curve = 0, []
        self.sparse, self.buffers = True, None  # buffers of the sparse step; none on a GPU
        if checkpoint and (found := load_state(checkpoint)):
            tensors, place = found
            for name, tensor in self._tensors().items():
                tensor.copy_(tensors[name])
            vars(self).update(place)
            self.adam.steps = self.step

    def advance(
        self,
        x: Float[Tensor, "tokens d"],
        until: int,
        began: int = 0,
        seen: Callable[[int], object] = lambda steps: None,
    ) -> None:
        """Train up to step ``until`` on batches drawn from ``x``, one epoch of a fresh permutation after the other.

        Step ``began`` was the first on ``x``. ``seen`` is told the number of steps done, now and then. Raises
        ``Diverged`` if the loss is no longer finite.
        """
        s, device, world = self.settings, self.sae.decoder.device, training.state()
        if device.type == "cpu" and self.buffers is None:
            self.buffers = sae_kernel.Buffers(s.batch // world.num_processes, s.latents, x.shape[1])
        window = max(1, s.steps // WINDOWS)
        while self.step < until:
            steps = min(until, (self.step // window + 1) * window) - self.step
            error, l0, fired = 0.0, 0.0, torch.zeros(s.latents, dtype=torch.bool, device=device)
            for _ in range(steps):
                rows = batch_rows(len(x), s.batch, self.step - began, s.seed + began)
                found = _mean(self.gradients(x[training.share(rows)].to(device)))
                self.adam.step(self.sae, found, s.rate(self.step))
                self.step += 1
                error, l0, fired = error + found.error, l0 + found.l0, fired | (found.counts > 0)
            error, l0 = float(error) / steps, float(l0) / steps
            if not math.isfinite(error):
                raise Diverged(
                    f"The loss of the autoencoder is not finite at step {self.step}; "
                    f"lower learning_rate = {s.learning_rate}."
                )
            self.curve.append({"step": self.step, "error": error, "l0": l0, "firing": int(fired.sum())})
            seen(steps)
            if self.checkpoint and world.is_main_process and (time.monotonic() > self.due or self.step == s.steps):
                place = {name: getattr(self, name) for name in self.PLACE}
                self.due = checkpointed(partial(save_state, self.checkpoint, self._tensors(), place))

    def gradients(self, batch: Float[Tensor, "batch d"]) -> Gradients:
        """Of the loss at this step, by whichever way is faster."""
        penalty, found = self.settings.penalty(self.step), None
        if self.buffers and (self.sparse or self.step % RETRY == 0):
            found = sae_kernel.gradients(self.sae, batch, penalty, self.buffers)
        self.sparse = found is not None
        return found or dense_gradients(self.sae, batch, penalty)

    def _tensors(self) -> dict[str, Tensor]:
        every = [*self.sae.parameters(), *itertools.chain(*self.adam.moments)]
        return {str(n): tensor.detach() for n, tensor in enumerate(every)}


def train(
    model: models.Teacher,
    text: np.ndarray,
    calibration: stream.Calibration,
    every: list[Settings],
    work: Path,
    name: str,
) -> list[Run]:
    """Train all autoencoders side by side, a core each, on one shard of the text ``[blocks, length]`` after the other.

    The stream of a text that is read once, but takes long to read, is kept on disk under ``name``. A GPU multiplies in
    TF32 here, the model's pass included; what is measured afterwards is in float32.
    """
    device = model.model.device
    zero = torch.zeros(model.d, device=device)
    jobs = [Run(s, zero, work / f"layer{s.layer}-lam{s.lam:g}-steps{s.steps}.safetensors") for s in every]
    total, done = sum(s.steps for s in every), sum(job.step for job in jobs)
    bar = tqdm(total=total, initial=done, desc="training autoencoders", unit=" steps", leave=False)
    a_shard = blocks_at_once(model, text, calibration)
    kept = name if text.size * model.d * len(calibration.scale) * 4 > ON_DISK and a_shard >= len(text) else None
    with training.tf32(device):
        for start, first, until in _visits(len(text), a_shard, text.shape[1], max(every, key=lambda s: s.steps)):
            if all(job.step >= min(until, job.settings.steps) for job in jobs):
                continue
            read = stream.activations(model, text[start : start + a_shard], calibration, name=kept)
            part = {layer: x.to(device) for layer, x in read.layers.items()}

            def advance(job: Run, part=part, first=first, until=until) -> None:
                x = part[job.settings.layer]
                if job.step == 0:
                    job.sae.bias_pre.data.copy_(x.mean(0))
                job.advance(x, min(until, job.settings.steps), first, bar.update)

            side_by_side(advance, sorted(jobs, key=lambda job: -job.settings.steps), model)
    bar.close()
    return jobs


def side_by_side(work: Callable, items: Sequence, model: models.Teacher) -> list:
    """``work`` on each item: on a CPU as many at once as torch has threads, each with one; on a GPU in turn.

    With one thread the numbers don't depend on how many there are. What several processes do together is in one order.
    """
    if model.model.device.type != "cpu" or training.state().num_processes > 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(work, items))


def blocks_at_once(model: models.Teacher, blocks: np.ndarray, calibration: stream.Calibration) -> int:
    """How many blocks' streams fit into ``ACTIVATION_BYTES``."""
    return max(1, ACTIVATION_BYTES // (4 * model.d * len(calibration.scale) * blocks.shape[1]))


def _visits(blocks: int, a_shard: int, length: int, s: Settings) -> Iterator[tuple[int, int, int]]:
    """Which shard of the text serves which steps: first block, first step, step after the last."""
    if a_shard >= blocks:
        yield 0, 0, s.steps
        return
    step, a_visit = 0, max(1, int(0.9 * a_shard * length) // s.batch)  # 0.9: tokens are left out
    for epoch in itertools.count():
        for shard in np.random.default_rng([s.seed, epoch]).permutation(blocks // a_shard):
            if step == s.steps:
                return
            until = min(s.steps, step + a_visit)
            yield int(shard) * a_shard, step, until
            step = until


# ------------------------------------------------------------------------------------------------ to and from SAELens


def save_saelens(sae: Sae, folder: Path, scale: float = 1.0, **about: str) -> None:
    """Write ``sae`` so that ``sae_lens.SAE.load_from_disk`` reads it and takes the model's own stream.

    ``scale`` is the factor on the stream that ``sae`` was trained on (``stream.Calibration.scale``). As ReLU is
    homogeneous, biases divided by it give the same latents in units of the stream. ``about`` is metadata.
    """
    latents, d = sae.decoder.shape
    config = {
        "architecture": "standard" if sae.topk is None else "topk", "d_in": d, "d_sae": latents, "dtype": "float32",
        "device": "cpu", "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.0.0"} | about,
    }  # fmt: skip
    if sae.topk is not None:
        config |= {"k": sae.topk, "rescale_acts_by_decoder_norm": False}
    weights = {"W_enc": sae.encoder.T, "W_dec": sae.decoder}
    weights |= {"b_enc": sae.bias_encoder / scale, "b_dec": sae.bias_pre / scale}
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in weights.items()}
    with replace_folder(Path(folder)) as temporary:
        (temporary / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
        safetensors.torch.save_file(tensors, temporary / WEIGHTS)


def load_saelens(folder: Path, scale: float = 1.0) -> Sae:
    """Read a standard or TopK autoencoder that SAELens saved, for a stream scaled by ``scale``.

    Decoder rows get unit norm, the latents that much larger, so that importances are comparable.

    Raises:
        ValueError: another architecture, inputs normalised token by token, or a TopK that unit rows would change.
    """
    config = json.loads((Path(folder) / CONFIG).read_text())
    kind, normalised = config.get("architecture", "standard"), config.get("normalize_activations", "none")
    if config.get("activation_fn_str", config.get("activation_fn")) == "topk":  # before SAELens 6
        kind, config["k"] = "topk", config["activation_fn_kwargs"]["k"]
    if kind not in ("standard", "topk"):
        raise ValueError(f"The autoencoder in {folder} is of architecture {kind!r}; 'standard' and 'topk' can be read.")
    if normalised not in ("none", None, False):
        raise ValueError(f"The autoencoder in {folder} normalises its inputs ({normalised}); fold that in and save it.")
    weights = safetensors.torch.load_file(Path(folder) / WEIGHTS)
    encoder, decoder, bias_encoder, bias_pre = (weights[name].float() for name in ("W_enc", "W_dec", "b_enc", "b_dec"))
    if not config.get("apply_b_dec_to_input", True):
        bias_encoder = bias_encoder + bias_pre @ encoder
    norm = decoder.norm(dim=1).clamp_min(1e-12)
    uneven = kind == "topk" and not config.get("rescale_acts_by_decoder_norm", False)
    if uneven and not torch.allclose(norm, norm.mean().expand_as(norm), rtol=1e-4):
        raise ValueError(
            f"The decoder rows in {folder} differ in norm: with unit rows, other latents would be the top k."
        )
    arrays = ((encoder * norm).T.contiguous(), decoder / norm[:, None], bias_pre * scale, bias_encoder * norm * scale)
    return Sae(*arrays, config["k"] if kind == "topk" else None).requires_grad_(False)
