"""One training loop for teachers and students: AdamW, warm-up, cosine, evaluation, checkpoints that resume exactly.

Everything random is a function of (seed, step): the order of the data is drawn anew for each epoch from the seed, so a
checkpoint holds weights, moments, the step and the history, and a killed run continues to the same numbers.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from tqdm.auto import tqdm

from minwidth import training
from minwidth.errors import Diverged, ParameterError
from minwidth.store import replace_file

log = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 60.0  # between two checkpoints
CHECKPOINT_SHARE = 0.02  # of the time is spent on writing them, at the most: those of large models come later
LOOK = 16  # steps after which a GPU is asked for their losses; to ask at each would keep it waiting


class Schedule(NamedTuple):
    """How long and how fast to train; ``warmup`` in steps, ``batch`` in blocks, cosine decay to ``floor`` x rate.

    ``parts``: a batch's gradients are summed over so many parts of it, for a device that cannot hold it at once.
    """

    steps: int
    batch: int
    learning_rate: float
    warmup: int = 0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    floor: float = 0.0
    evaluations: int = 50
    parts: int = 1

    def rate(self, step: int) -> float:
        """Learning rate at ``step``: linear warm-up, then half a cosine down to ``floor`` times the peak."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done)))

    def evaluated(self, step: int) -> bool:
        """Whether the model is evaluated after ``step`` steps: ``evaluations`` times, evenly, and at the end."""
        every = max(1, self.steps // self.evaluations)
        return step == self.steps or (step % every == 0 and self.steps - step >= every)


def batch_rows(total: int, batch: int, step: int, seed: int) -> np.ndarray:
    """Row numbers of the batch that ``step`` trains on: epochs of a fresh permutation each, the tail rows dropped.

    Raises:
        ParameterError: the batch is larger than the data.
    """
    if batch > total:
        raise ParameterError(f"A batch of {batch} blocks cannot be drawn from {total}; lower the batch or add text.")
    an_epoch = total // batch
    epoch, place = divmod(step, an_epoch)
    return _order(total, epoch, seed)[place * batch : (place + 1) * batch]


@lru_cache(maxsize=4)  # the steps of an epoch ask for the same one
def _order(total: int, epoch: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(total)


def train(
    model: torch.nn.Module,
    loss: Callable[[torch.nn.Module, np.ndarray], torch.Tensor],
    evaluate: Callable[[torch.nn.Module], float],
    rows: int,
    schedule: Schedule,
    seed: int,
    checkpoint: Path | None = None,
    progress: str = "training",
) -> list[dict]:
    """Train ``model`` in place and return its history: one ``{step, train, held_out}`` an evaluation, losses in nats.

    On several devices  each process computes its share of every batch; the first writes the checkpoints.

    Args:
        loss: (model, row numbers) -> scalar to minimise, a mean over rows; draws nothing at random.
        evaluate: model -> held-out loss.
        rows: how many rows of data there are to draw from.
        checkpoint: file of the state, written every minute or, where that takes long, less often; a run that finds one
            continues it, or starts again where it is damaged.

    Raises:
        Diverged: the loss is no longer finite.
        ParameterError: the batch cannot be divided evenly among processes and parts.
    """
    optimizer = adamw(model, schedule.learning_rate, schedule.weight_decay, schedule.betas)
    step, history, running = 0, [], []
    if checkpoint and (state := load_state(checkpoint)):
        step, history, running = _continue(model, optimizer, *state)
    computed, look = ranks.together(_Loss(model, loss)), 1 if training.state().device.type == "cpu" else LOOK
    due, recent = checkpointed(), []
    shown = {} if training.state().is_main_process else {"disable": True}
    bar = tqdm(total=schedule.steps, initial=step, desc=progress, unit=" steps", leave=False, **shown)
    while step < schedule.steps:
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        mine = training.share(batch_rows(rows, schedule.batch, step, seed))
        recent.append(update(model, optimizer, computed, mine, schedule))
        step += 1
        bar.update()
        if not (step % look == 0 or step == schedule.steps or schedule.evaluated(step)):
            continue
        running += _looked_at(recent, step, schedule)
        recent = []
        if schedule.evaluated(step):
            model.eval()
            with torch.no_grad():
                history.append({"step": step, "train": sum(running) / len(running), "held_out": evaluate(model)})
            model.train()
            running = []
            bar.set_postfix(held_out=f"{history[-1]['held_out']:.3f}")
        if checkpoint and training.state().is_main_process and (time.monotonic() > due or step == schedule.steps):
            due = checkpointed(partial(_save, checkpoint, model, optimizer, step, history, running))
    bar.close()
    return history


class _Loss(torch.nn.Module):
    """The loss as a module that holds the model, the form in which gradients can be averaged over processes."""

    def __init__(self, model: torch.nn.Module, loss: Callable):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, rows: np.ndarray) -> torch.Tensor:
        return self.loss(self.model, rows)


def _looked_at(recent: list[torch.Tensor], step: int, schedule: Schedule) -> list[float]:
    """The losses of the last steps up to ``step``, means over the processes."""
    losses = torch.stack(recent)
    training.mean_([losses])
    found = losses.tolist()
    for n, value in enumerate(found):
        if not math.isfinite(value):
            raise Diverged(
                f"The loss is {value} at step {step - len(found) + n}; lower the learning rate "
                f"{schedule.learning_rate}."
            )
    return found


def update(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[np.ndarray], torch.Tensor],
    rows: np.ndarray,
    schedule: Schedule,
) -> torch.Tensor:
    """One step down the gradient of the mean loss of ``rows``, its norm clipped; returns that loss."""
    if len(rows) % schedule.parts:
        raise ParameterError(f"{len(rows)} blocks cannot be divided into parts = {schedule.parts}; give a divisor.")
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for part in np.split(rows, schedule.parts):
        value = loss(part) / schedule.parts
        value.backward()
        total = total + value.detach()
    torch.nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
    optimizer.step()
    return total


def adamw(
    model: torch.nn.Module, learning_rate: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.AdamW:
    """AdamW in one pass over memory; weight decay acts on matrices only, gains and biases go without."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)


def checkpointed(write: Callable[[], None] = lambda: None) -> float:
    """Write a checkpoint, at the start none, and tell by ``time.monotonic`` when the next one is due."""
    started = time.monotonic()
    write()
    ended = time.monotonic()
    return ended + max(CHECKPOINT_SECONDS, (ended - started) / CHECKPOINT_SHARE)


def _save(file: Path, model, optimizer, step: int, history: list, running: list) -> None:
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
    save_state(file, tensors, {"step": step, "history": history, "running": running})


def _continue(model, optimizer, tensors: dict[str, torch.Tensor], place: dict) -> tuple[int, list, list]:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".")
            if value.ndim:  # strides as its parameter's: a fused step reads both in the order of memory
                value = torch.empty_like(parameters[int(number)]).copy_(value)
            state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return place["step"], place["history"], place["running"]


def save_state(file: Path, tensors: dict[str, torch.Tensor], place: dict) -> None:
    """Write a checkpoint, whole or not at all, with the name it goes by and a SHA-256 of all it says."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    said = {"place": json.dumps(place), "name": _name(file)}
    replace_file(file, save(tensors, said | {"sha256": _digest(tensors, said)}))


def load_state(file: Path) -> tuple[dict[str, torch.Tensor], dict] | None:
    """What ``save_state`` wrote; None where there is nothing, or what is damaged or another run's, which is logged."""
    if not file.exists():
        return None
    try:
        with safe_open(file, framework="pt") as stored:
            said = stored.metadata()
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        if said.pop("sha256") != _digest(tensors, said):
            raise ValueError("it does not match its checksum")
        if said["name"] != _name(file):
            raise ValueError(f"it is that of {said['name']}")
        return tensors, json.loads(said["place"])
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
        log.warning("The checkpoint %s is damaged (%s); its run starts again.", file, error)
        return None


def _name(file: Path) -> str:
    """A checkpoint's name: that of its folder, which is its record's, and its own."""
    return f"{file.parent.name}/{file.name}"


def _digest(tensors: dict[str, torch.Tensor], said: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
