"""What a teacher computes inside: its exact offline states, the residual stream at a layer.

Offline teacher: the final normed hidden states, d_T numbers a token, on disk once. With the unembedding they give the
teacher's logits exactly, for every width and seed, at 1/85 of the room that SmolLM2's logits would need.

Residual stream: "layer l" is the stream after block l, 0 the embedding. The forward pass stops at the deepest layer
asked for. Position 0 and massive activations are left out by a rule fixed beforehand, and what remains is scaled to a
mean norm of sqrt(d), so that an L1 coefficient means the same at every layer and in every model.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from minwidth import models
from minwidth.store import RUNS, alone, load_json, save_json, sha256_part, write_part, writing
from minwidth.text import document_ends, document_numbers

log = logging.getLogger(__name__)

MASSIVE = 10.0  # a token is left out if its norm exceeds this many medians at any layer asked for
CALIBRATION_TOKENS = 16_384  # of training text, for the median and mean norm of each layer
FORWARD_TOKENS = 4096  # tokens of one forward pass
SHARD_BYTES = 2**25  # of the offline teacher: what is checksummed, and lost to an interruption


# --------------------------------------------------------------------------------------------------- offline teacher


def offline_teacher(
    teacher: models.Teacher, blocks: Int[np.ndarray, "blocks length"], name: str
) -> Float[np.memmap, "blocks length d"]:
    """Final normed hidden states of the teacher on ``blocks``, computed once, then found; float32.

    ``states @ models.unembedding(teacher.model).T`` are the teacher's logits. The file is memory-mapped and read-only.
    Each shard has its SHA-256 beside it: only missing or damaged shards are computed, so an interrupted run continues
    and a damaged file heals. A second process that asks for the same states waits.

    Args:
        name: readable part of the file's name under ``runs/states``; the rest hashes teacher and blocks.
    """
    width = models.unembedding(teacher.model).shape[1]  # d, and one more where an output bias is carried along
    return _on_disk(teacher, blocks, [name], lambda ids: [models.final_hidden(teacher.model, ids)], width)[0]


def offline_streams(
    teacher: models.Teacher, blocks: Int[np.ndarray, "blocks length"], layers: Sequence[int], name: str
) -> dict[int, Float[np.memmap, "blocks length d"]]:
    """The residual stream after each of ``layers`` on ``blocks``, as it is, on disk like the offline teacher's states.

    One truncated pass computes what is missing of all of them; a file a layer, so that another set of layers finds it.
    """

    def compute(ids: Tensor) -> list[Tensor]:
        found = streams(teacher.model, ids, layers)
        return [found[layer] for layer in layers]

    names = [f"{name}-layer{layer}" for layer in layers]
    return dict(zip(layers, _on_disk(teacher, blocks, names, compute), strict=True))


def states_file(teacher: models.Teacher, blocks: Int[np.ndarray, "blocks length"], name: str) -> Path:
    """Where states go: ``name`` tells what they are, eight digits the teacher and the blocks."""
    content = hashlib.sha256()
    for start in range(0, len(blocks), FORWARD_TOKENS):  # as 64-bit integers, which would not all fit into memory
        content.update(np.ascontiguousarray(blocks[start : start + FORWARD_TOKENS], dtype=np.int64))
    content.update(json.dumps([teacher.name, teacher.revision, (*blocks.shape, teacher.d), "float32"]).encode())
    return RUNS / "states" / f"{re.sub(r'[^A-Za-z0-9_.=-]+', '_', name)}-{content.hexdigest()[:8]}.bin"


def _on_disk(
    teacher: models.Teacher,
    blocks: Int[np.ndarray, "blocks length"],
    names: Sequence[str],
    compute: Callable[[Int[Tensor, "batch length"]], list[Float[Tensor, "batch length d"]]],
    width: int | None = None,
) -> list[np.memmap]:
    """What ``compute`` gives of ``blocks``, a file a name; ``width`` numbers a token, the teacher's if None."""
    shape = (*blocks.shape, width or teacher.d)
    a_block = 4 * shape[1] * shape[2]
    a_shard = max(1, SHARD_BYTES // a_block)
    targets = [states_file(teacher, blocks, name) for name in names]
    with ExitStack() as locks:
        for target in sorted(targets):
            locks.enter_context(alone(target))
        every = {target: _sums(target, len(blocks) * a_block) for target in targets}
        stale = {
            (target, start)
            for target, sums in every.items()
            for start in range(0, len(blocks), a_shard)
            if sha256_part(target, start * a_block, (start + a_shard) * a_block) != sums.get(str(start), "")
        }
        wanted = sorted({start for _, start in stale})
        total = blocks.shape[1] * sum(min(a_shard, len(blocks) - start) for start in wanted)
        bar = tqdm(total=total, desc=f"teacher on {names[0]}", unit=" tokens", leave=False)
        for start in wanted:
            found = _states(teacher, blocks[start : start + a_shard], compute, bar)
            for (target, sums), states in zip(every.items(), found, strict=True):
                if (target, start) in stale:
                    sums[str(start)] = write_part(target, start * a_block, states)
                    save_json(target.with_suffix(".json"), sums)
        bar.close()
    return [np.memmap(target, "float32", "r", shape=shape) for target in targets]


def _sums(target: Path, size: int) -> dict[str, str]:
    """SHA-256 of the shards, by their first block, that were written into a file of so many bytes."""
    if target.exists() and target.stat().st_size == size:
        return load_json(target.with_suffix(".json")) or {}
    target.with_suffix(".json").unlink(missing_ok=True)
    _reserve(target, size)
    return {}


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


@torch.no_grad()
def _states(teacher: models.Teacher, blocks: np.ndarray, compute: Callable, bar: tqdm) -> list[np.ndarray]:
    parts = []
    for ids in batches(blocks, teacher.model.device):
        parts.append([states.float().cpu().numpy() for states in compute(ids)])
        bar.update(ids.numel())
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def batches(blocks: np.ndarray, device: torch.device | str) -> Iterator[Int[Tensor, "batch length"]]:
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
        if args:
            new = replace(args[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        new = replace(kwargs["hidden_states"])
        return None if new is None else (args, kwargs | {"hidden_states": new})

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
    """Per layer, measured on training text: what counts as massive, and what makes the mean norm sqrt(d)."""

    limit: dict[int, float]  # largest norm kept, MASSIVE medians
    scale: dict[int, float]  # factor on the kept tokens


class Activations(NamedTuple):
    """Scaled residual streams of the tokens kept, in the order of the text."""

    layers: dict[int, Float[Tensor, "tokens d"]]
    document: Int[Tensor, "tokens"]  # number of the document within the split
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
    teacher: models.Teacher,
    blocks: Int[np.ndarray, "blocks length"],
    layers: Sequence[int],
    calibration: Calibration,
    progress: str = "reading the residual stream",
    name: str | None = None,
) -> Activations:
    """Scaled streams of ``blocks`` at several layers from one pass, position 0 and massive tokens left out; float32.

    Args:
        name: if given, the streams are kept on disk under it (``offline_streams``) and read from there.
    """
    on_disk = offline_streams(teacher, blocks, layers, name) if name else None
    parts: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    keeps, start = [], 0
    bar = tqdm(total=blocks.size, desc=progress, unit=" tokens", leave=False)
    for ids in batches(blocks, teacher.model.device):
        if on_disk is None:
            found = streams(teacher.model, ids, layers)
        else:
            found = {n: torch.from_numpy(states[start : start + len(ids)].copy()) for n, states in on_disk.items()}
        start += len(ids)
        keep = kept_tokens(found, calibration)
        for layer, stream in found.items():
            parts[layer].append((stream[keep].float() * calibration.scale[layer]).cpu())
        keeps.append(keep.cpu())
        bar.update(ids.numel())
    bar.close()
    keep = torch.cat(keeps)
    place = torch.nonzero(keep.flatten()).flatten()
    left_out = {"position 0": len(keep), "massive": keep[:, 1:].numel() - int(keep.sum())}
    joined = {layer: torch.cat(parts.pop(layer)) for layer in list(parts)}  # one layer at a time is there twice
    document = torch.from_numpy(document_numbers(blocks, teacher.tokenizer)).flatten()
    return Activations(joined, document[place], place, left_out)


def activations_in_parts(
    teacher: models.Teacher,
    blocks: Int[np.ndarray, "blocks length"],
    layers: Sequence[int],
    calibration: Calibration,
    a_part: int,
    progress: str,
) -> Iterator[Activations]:
    """The same of ``a_part`` blocks after the other, for text whose streams would not fit into memory."""
    documents = 0
    for start in range(0, len(blocks), a_part):
        ids = blocks[start : start + a_part]
        part = activations(teacher, ids, layers, calibration, progress)
        yield part._replace(document=part.document + documents, place=part.place + start * blocks.shape[1])
        documents += int(document_ends(ids, teacher.tokenizer).sum())


def kept_tokens(
    found: dict[int, Float[Tensor, "batch length d"]], calibration: Calibration
) -> Bool[Tensor, "batch length"]:
    """Which tokens the rule keeps: not at position 0, not massive at any of the layers."""
    massive = [stream.float().norm(dim=-1) > calibration.limit[layer] for layer, stream in found.items()]
    keep = ~torch.stack(massive).any(0)
    keep[:, 0] = False
    return keep
