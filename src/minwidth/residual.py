"""What a teacher computes inside: its text as tokens, the exact offline teacher, the residual stream at a layer.

Offline teacher: the final normed hidden states, d_T numbers a token, on disk once. With the unembedding they give the
teacher's logits exactly, for every width and seed, at 1/85 of the room that SmolLM2's logits would need.

Residual stream: "layer l" is the stream after block l, 0 the embedding. The forward pass stops at the deepest layer
asked for. Position 0 and massive activations are left out by a rule fixed beforehand, and what remains is scaled to a
mean norm of sqrt(d), so that an L1 coefficient means the same at every layer and in every model.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from minwidth import corpus, models, pile
from minwidth.paths import RUNS, alone, replace_file, writing

MASSIVE = 10.0  # a token is left out if its norm exceeds this many medians at any layer asked for
CALIBRATION_TOKENS = 16_384  # of training text, for the median and mean norm of each layer
FORWARD_TOKENS = 4096  # tokens of one forward pass
SHARD_BYTES = 2**25  # of the offline teacher: what is checksummed, and lost to an interruption


# ------------------------------------------------------------------------------------------------------------- text


def token_blocks(
    teacher: models.Teacher, split: str, length: int, percent: float = 100, text: str = "wheels", wanted: int = 0
) -> np.ndarray:
    """Token blocks ``[blocks, length]`` of a stated share of the documents, cut by the teacher's tokenizer, cached.

    Args:
        split: ``train`` or ``held_out``.
        percent: share of the documents, drawn by a hash of their id.
        text: ``wheels``, all of which is read, or The Pile (``pile.documents``).
        wanted: of The Pile, how many blocks are read.
    """
    tokenizer = teacher.tokenizer
    if text != "wheels":
        return pile.token_blocks(text, tokenizer, length, split, wanted, percent)
    digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:8]
    source = corpus.passages(corpus.sample(corpus.documents(), percent))
    return corpus.token_blocks(f"wheels-{percent:g}pct-{digest}", tokenizer, source, length, split)


def document_numbers(blocks: Int[np.ndarray, "blocks length"], end: int) -> Int[np.ndarray, "blocks length"]:
    """Number of the document each token belongs to; the end-of-text token closes its document."""
    ends = np.asarray(blocks).ravel() == end
    return (np.cumsum(ends) - ends).reshape(blocks.shape)


# --------------------------------------------------------------------------------------------------- offline teacher


def offline_teacher(
    teacher: models.Teacher, blocks: Int[np.ndarray, "blocks length"], name: str, dtype: str = "float32"
) -> np.memmap:
    """Final normed hidden states ``[blocks, length, d]`` of the teacher on ``blocks``, computed once, then found.

    ``states @ models.unembedding(teacher.model).T`` are the teacher's logits: exactly in float32, the default; float16
    halves the room and rounds to 11 bits. The file is memory-mapped and read-only. Each shard has its SHA-256 beside
    it: only missing or damaged shards are computed, so an interrupted run continues and a damaged file heals. A second
    process that asks for the same states waits.

    Args:
        name: readable part of the file's name under ``runs/states``; the rest hashes teacher, blocks and dtype.

    Raises:
        ValueError: another dtype than float32 or float16.
        OverflowError: a state does not fit into float16.
    """
    width = models.unembedding(teacher.model).shape[1]  # d, and one more where an output bias is carried along
    return _on_disk(teacher, blocks, [name], dtype, lambda ids: [models.final_hidden(teacher.model, ids)], width)[0]


def offline_streams(
    teacher: models.Teacher,
    blocks: Int[np.ndarray, "blocks length"],
    layers: Sequence[int],
    name: str,
    dtype: str = "float32",
) -> dict[int, np.memmap]:
    """The residual stream after each of ``layers`` on ``blocks``, as it is, on disk like the offline teacher's states.

    One truncated pass computes what is missing of all of them; a file a layer, so that another set of layers finds it.
    """

    def compute(ids: Tensor) -> list[Tensor]:
        found = streams(teacher.model, ids, layers)
        return [found[layer] for layer in layers]

    names = [f"{name}-layer{layer}" for layer in layers]
    return dict(zip(layers, _on_disk(teacher, blocks, names, dtype, compute), strict=True))


def states_file(
    teacher: models.Teacher, blocks: Int[np.ndarray, "blocks length"], name: str, dtype: str = "float32"
) -> Path:
    """Where states go: ``name`` tells what they are, eight digits the teacher, the blocks and the dtype."""
    content = hashlib.sha256()
    for start in range(0, len(blocks), FORWARD_TOKENS):  # as 64-bit integers, which would not all fit into memory
        content.update(np.ascontiguousarray(blocks[start : start + FORWARD_TOKENS], dtype=np.int64))
    content.update(json.dumps([teacher.name, teacher.revision, (*blocks.shape, teacher.d), dtype]).encode())
    return RUNS / "states" / f"{re.sub(r'[^A-Za-z0-9_.=-]+', '_', name)}-{content.hexdigest()[:8]}.bin"


def _on_disk(
    teacher: models.Teacher,
    blocks: Int[np.ndarray, "blocks length"],
    names: Sequence[str],
    dtype: str,
    compute: Callable[[Int[Tensor, "batch length"]], list[Float[Tensor, "batch length d"]]],
    width: int | None = None,
) -> list[np.memmap]:
    """What ``compute`` gives of ``blocks``, a file a name; ``width`` numbers a token, the teacher's if None."""
    if dtype not in ("float32", "float16"):
        raise ValueError(f"dtype = {dtype!r} is not how states are stored; give 'float32' (exact) or 'float16'.")
    shape = (*blocks.shape, width or teacher.d)
    targets = [states_file(teacher, blocks, name, dtype) for name in names]
    a_shard = max(1, SHARD_BYTES // (blocks.shape[1] * shape[-1] * np.dtype(dtype).itemsize))
    starts = range(0, len(blocks), a_shard)
    with ExitStack() as locks:
        for target in sorted(targets):
            locks.enter_context(alone(target))
        files = [_File(target, dtype, shape) for target in targets]
        stale = [[start for start in starts if not file.holds(slice(start, start + a_shard))] for file in files]
        wanted = sorted(set().union(*stale))
        bar = tqdm(
            total=len(wanted) * a_shard * blocks.shape[1], desc=f"teacher on {names[0]}", unit=" tokens", leave=False
        )
        for start in wanted:
            part = slice(start, start + a_shard)
            for file, missing, states in zip(
                files, stale, _states(teacher, blocks[part], dtype, compute, bar), strict=True
            ):
                if start in missing:
                    file.write(part, states)
        bar.close()
    return [np.memmap(target, dtype, "r", shape=shape) for target in targets]


class _File:
    """A memory-mapped array with the checksums of its shards beside it."""

    def __init__(self, target: Path, dtype: str, shape: tuple[int, ...]):
        self.sums_file = target.with_suffix(".json")
        if not target.exists() or target.stat().st_size != np.prod(shape) * np.dtype(dtype).itemsize:
            self.sums_file.unlink(missing_ok=True)
            _allocate(target, int(np.prod(shape)) * np.dtype(dtype).itemsize)
        self.array = np.memmap(target, dtype, "r+", shape=shape)
        self.sums = json.loads(self.sums_file.read_text()) if self.sums_file.exists() else {}

    def holds(self, part: slice) -> bool:
        wanted = self.sums.get(str(part.start))
        return wanted is not None and wanted == _sha256(self.array[part])

    def write(self, part: slice, states: np.ndarray) -> None:
        self.array[part] = states
        self.array.flush()
        self.sums[str(part.start)] = _sha256(self.array[part])
        replace_file(self.sums_file, json.dumps(self.sums).encode())


def _allocate(target: Path, size: int) -> None:
    """Reserve ``size`` bytes of disk: writing to a map of bytes that are not there ends the process without a word."""
    with writing(target), target.open("wb") as file:
        try:
            if size and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
        except OSError:
            target.unlink()
            raise


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


@torch.no_grad()
def _states(teacher: models.Teacher, blocks: np.ndarray, dtype: str, compute: Callable, bar: tqdm) -> list[np.ndarray]:
    parts = []
    for ids in batches(blocks, teacher.model.device):
        parts.append([states.float().cpu().numpy() for states in compute(ids)])
        bar.update(ids.numel())
    every = [np.concatenate(part) for part in zip(*parts, strict=True)]
    largest = max(float(np.abs(states).max()) for states in every)
    if dtype == "float16" and largest > np.finfo(np.float16).max:
        raise OverflowError(f"A state of {largest:g} does not fit into float16; store float32.")
    return [states.astype(dtype, copy=False) for states in every]


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
    blocks = blocks_of(model)
    for layer in layers:
        if not 0 <= layer <= len(blocks):
            raise ValueError(f"layer = {layer} does not exist; the model has 0 (its embedding) to {len(blocks)}.")
    found: dict[int, Tensor] = {}
    hooks = []
    try:
        for layer in set(layers):
            hooks.append(_watch(blocks, layer, lambda stream, layer=layer: _keep(found, layer, stream, max(layers))))
        model.base_model(input_ids=ids, use_cache=False)
    except _Stop:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _keep(found: dict[int, Tensor], layer: int, stream: Tensor, deepest: int) -> None:
    found[layer] = stream
    if layer == deepest:
        raise _Stop


def _watch(blocks: nn.ModuleList, layer: int, see):
    """Call ``see(stream)`` with the stream at a layer; what it returns, if anything, takes the stream's place."""

    def before(_, args, kwargs):
        if args:
            new = see(args[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        new = see(kwargs["hidden_states"])
        return None if new is None else (args, kwargs | {"hidden_states": new})

    def after(_, __, output):
        if isinstance(output, tuple):
            new = see(output[0])
            return None if new is None else (new, *output[1:])
        return see(output)

    if layer == 0:
        return blocks[0].register_forward_pre_hook(before, with_kwargs=True)
    return blocks[layer - 1].register_forward_hook(after)


@contextmanager
def spliced(model: nn.Module, layer: int, replace):
    """While the block lasts, the model continues from ``replace(stream)`` at ``layer``."""
    hook = _watch(blocks_of(model), layer, replace)
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
    document = torch.from_numpy(document_numbers(blocks, teacher.tokenizer.eos_token_id)).flatten()
    parts: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    keeps = []
    bar = tqdm(total=blocks.size, desc=progress, unit=" tokens", leave=False)
    start = 0
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
    massive = keep[:, 1:].numel() - int(keep.sum())
    place = torch.nonzero(keep.flatten()).flatten()
    left_out = {"position 0": len(keep), "massive": massive}
    joined = {layer: torch.cat(parts.pop(layer)) for layer in list(parts)}  # one layer at a time is there twice
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
        documents += int((ids == teacher.tokenizer.eos_token_id).sum())


def kept_tokens(found: dict[int, Float[Tensor, "batch length d"]], calibration: Calibration) -> Tensor:
    """Which tokens ``[batch, length]`` the rule keeps: not at position 0, not massive at any of the layers."""
    massive = [stream.float().norm(dim=-1) > calibration.limit[layer] for layer, stream in found.items()]
    keep = ~torch.stack(massive).any(0)
    keep[:, 0] = False
    return keep
