"""What a teacher computes inside: its exact offline states, the residual stream at a layer.

Offline teacher: the final normed hidden states, d_T numbers a token, on disk once. With the unembedding they give the
teacher's logits exactly, for every width and seed, at 1/85 of the room that SmolLM2's logits would need.

Residual stream: "layer l" is the stream after block l, 0 the embedding. Position 0 and massive activations are left out
by a rule fixed beforehand, and what remains is scaled to a mean norm of sqrt(d), so that an L1 coefficient means the
same at every layer and in every model.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from minwidth import models
from minwidth.store import RUNS, alone, load_json, save_json, sha256_part, write_part, writing

MASSIVE = 10.0  # a token is left out if its norm exceeds this many medians at any layer asked for
CALIBRATION_TOKENS = 16_384  # of training text, for the median and mean norm of each layer
FORWARD_TOKENS = 4096  # tokens of one forward pass
SHARD_BYTES = 2**25  # of what is kept on disk: what is checksummed, and lost to an interruption


# ----------------------------------------------------------------------------------------------------------- on disk


def offline_teacher(
    teacher: models.Teacher, blocks: Int[np.ndarray, "blocks length"], name: str
) -> Float[np.memmap, "blocks length d"]:
    """Final normed hidden states of the teacher on ``blocks``, computed once, then found; float32.

    ``states @ models.unembedding(teacher.model).T`` are the teacher's logits.

    Args:
        name: readable part of the file's name under ``runs/states``; the rest hashes teacher and blocks.
    """
    width = models.unembedding(teacher.model).shape[1]  # d, and one more where an output bias is carried along
    return on_disk(teacher, blocks, name, lambda ids: models.final_hidden(teacher.model, ids), width)


def states_file(teacher: models.Teacher, blocks: Int[np.ndarray, "blocks length"], name: str) -> Path:
    """Where states go: ``name`` tells what they are, eight digits the teacher and the blocks."""
    content = hashlib.sha256()
    for start in range(0, len(blocks), FORWARD_TOKENS):  # as 64-bit integers, which would not all fit into memory
        content.update(np.ascontiguousarray(blocks[start : start + FORWARD_TOKENS], dtype=np.int64))
    content.update(json.dumps([teacher.name, teacher.revision, (*blocks.shape, teacher.d), "float32"]).encode())
    return RUNS / "states" / f"{re.sub(r'[^A-Za-z0-9_.=-]+', '_', name)}-{content.hexdigest()[:8]}.bin"


@torch.no_grad()
def on_disk(
    teacher: models.Teacher,
    blocks: Int[np.ndarray, "blocks length"],
    name: str,
    compute: Callable[[Int[Tensor, "batch length"]], Float[Tensor, "batch length ..."]],
    *width: int,
) -> Float[np.memmap, "blocks length ..."]:
    """What ``compute`` gives of ``blocks``, an array of shape ``width`` a token, memory-mapped and read-only.

    Each shard has its SHA-256 beside it: only missing or damaged ones are computed, so an interrupted run continues and
    a damaged file heals. A second process that asks for the same waits.
    """
    shape, target = (*blocks.shape, *width), states_file(teacher, blocks, name)
    journal, a_block = target.with_suffix(".json"), 4 * math.prod(shape[1:])
    a_shard = max(1, SHARD_BYTES // a_block)
    with alone(target):
        if not target.exists() or target.stat().st_size != len(blocks) * a_block:
            journal.unlink(missing_ok=True)
            _reserve(target, len(blocks) * a_block)
        sums = load_json(journal) or {}
        intact = _intact(target, target.stat().st_mtime_ns, tuple(sums.items()), a_block, a_shard)
        stale = [start for start in range(0, len(blocks), a_shard) if start not in intact]
        for start in tqdm(stale, f"teacher on {name}", unit=" shards", leave=False):
            parts = batches(blocks[start : start + a_shard], teacher.model.device)
            states = np.concatenate([compute(ids).float().cpu().numpy() for ids in parts])
            sums[str(start)] = write_part(target, start * a_block, states)
            save_json(journal, sums)
    return np.memmap(target, "float32", "r", shape=shape)


@lru_cache(maxsize=4)  # many students of one process ask for what may be 64 GiB: an unchanged file is read once
def _intact(target: Path, changed: int, sums: tuple[tuple[str, str], ...], a_block: int, a_shard: int) -> set[int]:
    """First blocks of the shards that are as they were written; ``changed`` is when the file last was."""
    return {
        int(start)
        for start, digest in sums
        if sha256_part(target, int(start) * a_block, (int(start) + a_shard) * a_block) == digest
    }


def _reserve(target: Path, size: int) -> None:
    """Reserve ``size`` bytes of disk, so that a lack of room is met before a long pass and not within it."""
    with writing(target), target.open("wb") as file:
        try:
            if size and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
        except OSError:
            target.unlink()
            raise


def batches(blocks: np.ndarray, device: torch.device | str) -> Iterator[Int[Tensor, "batch length"]]:
    """The blocks, so many at a time as one forward pass takes."""
    a_batch = max(1, FORWARD_TOKENS // blocks.shape[1])
    for start in range(0, len(blocks), a_batch):
        yield torch.from_numpy(np.asarray(blocks[start : start + a_batch], dtype=np.int64)).to(device)


# --------------------------------------------------------------------------------------------------- residual stream


class _Stop(Exception):
    """Raised in the deepest layer asked for, so that nothing behind it is computed."""


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """The transformer blocks of a causal language model of any family.

    Raises:
        ValueError: the model holds no single list of ``num_hidden_layers`` modules.
    """
    count = model.config.num_hidden_layers
    lists = [m for m in model.base_model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not lists:
        raise ValueError(f"No list of {count} blocks was found in {type(model).__name__}; is it a causal LM?")
    return lists[0]


@torch.no_grad()
def streams(
    model: nn.Module, ids: Int[Tensor, "batch length"], layers: Sequence[int]
) -> dict[int, Float[Tensor, "batch length d"]]:
    """The residual stream after each of ``layers`` (0: the embedding), as it is, in one truncated forward pass.

    Raises:
        ValueError: a layer the model does not have.
    """
    blocks, found = blocks_of(model), {}
    for layer in layers:
        if not 0 <= layer <= len(blocks):
            raise ValueError(f"layer = {layer} does not exist; the model has 0 (its embedding) to {len(blocks)}.")

    def keep(layer: int, stream: Tensor) -> None:
        found[layer] = stream
        if layer == max(layers):
            raise _Stop

    with ExitStack() as hooks:
        for layer in set(layers):
            hooks.enter_context(spliced(model, layer, lambda stream, layer=layer: keep(layer, stream)))
        with suppress(_Stop):
            model.base_model(input_ids=ids, use_cache=False)
    return found


@contextmanager
def spliced(model: nn.Module, layer: int, replace: Callable[[Tensor], Tensor | None]) -> Iterator[nn.Module]:
    """While the block lasts, the model continues from ``replace(stream)`` at ``layer``; None changes nothing."""

    def before(_, args, kwargs):
        stream, *rest = args or [kwargs.pop("hidden_states")]
        new = replace(stream)
        return (stream if new is None else new, *rest), kwargs

    def after(_, __, output):
        new = replace(output[0] if isinstance(output, tuple) else output)
        return (new, *output[1:]) if isinstance(output, tuple) and new is not None else new

    blocks = blocks_of(model)
    if layer == 0:
        hook = blocks[0].register_forward_pre_hook(before, with_kwargs=True)
    else:
        hook = blocks[layer - 1].register_forward_hook(after)
    try:
        yield model
    finally:
        hook.remove()


class Calibration(NamedTuple):
    """For each layer that is read, measured on training text: what counts as massive, what makes mean norms sqrt(d)."""

    limit: dict[int, float]  # largest norm kept, MASSIVE medians
    scale: dict[int, float]  # factor on the kept tokens


class Activations(NamedTuple):
    """Scaled residual streams of the tokens kept, in the order of the text."""

    layers: dict[int, Float[Tensor, "tokens d"]]
    place: Int[Tensor, "tokens"]  # position in ``blocks.ravel()``
    left_out: dict[str, int]  # tokens at position 0, and massive ones past it


def calibrate(teacher: models.Teacher, blocks: Int[np.ndarray, "blocks length"], layers: Sequence[int]) -> Calibration:
    """Fix the rule and the scale of each layer on the first ``CALIBRATION_TOKENS`` tokens of training blocks."""
    norms: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for ids in batches(blocks[: max(1, CALIBRATION_TOKENS // blocks.shape[1])], teacher.model.device):
        for layer, stream in streams(teacher.model, ids, layers).items():
            norms[layer].append(stream[:, 1:].float().norm(dim=-1).flatten().cpu())
    flat = {layer: torch.cat(parts) for layer, parts in norms.items()}
    limit = {layer: MASSIVE * float(norm.median()) for layer, norm in flat.items()}
    kept = torch.stack([norm <= limit[layer] for layer, norm in flat.items()]).all(0)
    scale = {layer: teacher.d**0.5 / float(norm[kept].mean()) for layer, norm in flat.items()}
    return Calibration(limit, scale)


def activations(
    teacher: models.Teacher, blocks: Int[np.ndarray, "blocks length"], calibration: Calibration, name: str | None = None
) -> Activations:
    """Scaled streams of ``blocks`` from one pass, position 0 and massive tokens left out; float32.

    With a ``name`` they are kept on disk under it, unscaled, and read from there.
    """
    layers = list(calibration.scale)

    def read(ids: Tensor) -> Float[Tensor, "batch length layers d"]:
        found = streams(teacher.model, ids, layers)
        return torch.stack([found[layer] for layer in layers], 2)

    if name:
        name = "-".join([name, "layers", *map(str, layers)])
        stored = on_disk(teacher, blocks, name, read, len(layers), teacher.d)
    parts: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    keeps, start = [], 0
    bar = tqdm(total=blocks.size, desc="reading the residual stream", unit=" tokens", leave=False)
    for ids in batches(blocks, teacher.model.device):
        every = torch.from_numpy(stored[start : start + len(ids)].copy()) if name else read(ids)
        found, start = dict(zip(layers, every.unbind(2), strict=True)), start + len(ids)
        keep = kept_tokens(found, calibration)
        for layer, stream in found.items():
            parts[layer].append((stream[keep].float() * calibration.scale[layer]).cpu())
        keeps.append(keep.cpu())
        bar.update(ids.numel())
    bar.close()
    keep = torch.cat(keeps)
    left_out = {"position 0": len(keep), "massive": keep[:, 1:].numel() - int(keep.sum())}
    joined = {layer: torch.cat(parts.pop(layer)) for layer in layers}  # one layer at a time is there twice
    return Activations(joined, torch.nonzero(keep.flatten()).flatten(), left_out)


def kept_tokens(
    found: dict[int, Float[Tensor, "batch length d"]], calibration: Calibration
) -> Bool[Tensor, "batch length"]:
    """Which tokens the rule keeps: not at position 0, not massive at any of the layers."""
    massive = [stream.float().norm(dim=-1) > calibration.limit[layer] for layer, stream in found.items()]
    keep = ~torch.stack(massive).any(0)
    keep[:, 0] = False
    return keep
