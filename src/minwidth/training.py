"""One training loop for teachers and students: AdamW, warm-up, cosine, evaluation, checkpoints that resume exactly.

Everything random is a function of (seed, step): the order of the data is drawn anew for each epoch from the seed, so a
checkpoint holds weights, moments, the step and the history, and a killed run continues to the same numbers.
"""

import json
import math
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from tqdm.auto import tqdm

from minwidth.paths import replace_file

CHECKPOINT_SECONDS = 60.0


class Schedule(NamedTuple):
    """How long and how fast to train; ``warmup`` in steps, ``batch`` in blocks, cosine decay to ``floor`` x rate."""

    steps: int
    batch: int
    learning_rate: float
    warmup: int = 0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    floor: float = 0.0
    evaluations: int = 50

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
        ValueError: the batch is larger than the data.
    """
    if batch > total:
        raise ValueError(f"A batch of {batch} blocks cannot be drawn from {total}; lower the batch or add text.")
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

    Args:
        loss: (model, row numbers) -> scalar to minimise; draws nothing at random.
        evaluate: model -> held-out loss.
        rows: how many rows of data there are to draw from.
        checkpoint: file of the state, written every minute; a run that finds one continues it.

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    optimizer = torch.optim.AdamW(
        _decay_groups(model, schedule.weight_decay), lr=schedule.learning_rate, betas=schedule.betas, fused=True
    )
    step, history, running = 0, [], []
    if checkpoint and checkpoint.exists():
        step, history, running = _load(checkpoint, model, optimizer)
    saved = time.monotonic()
    bar = tqdm(total=schedule.steps, initial=step, desc=progress, unit=" steps", leave=False)
    while step < schedule.steps:
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        value = loss(model, batch_rows(rows, schedule.batch, step, seed))
        if not math.isfinite(float(value.detach())):
            raise FloatingPointError(
                f"The loss is {float(value.detach())} at step {step}; lower the learning rate {schedule.learning_rate}."
            )
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
        optimizer.step()
        running.append(float(value.detach()))
        step += 1
        bar.update()
        if schedule.evaluated(step):
            model.eval()
            with torch.no_grad():
                history.append({"step": step, "train": sum(running) / len(running), "held_out": evaluate(model)})
            model.train()
            running = []
            bar.set_postfix(held_out=f"{history[-1]['held_out']:.3f}")
        if checkpoint and (time.monotonic() - saved > CHECKPOINT_SECONDS or step == schedule.steps):
            _save(checkpoint, model, optimizer, step, history, running)
            saved = time.monotonic()
    bar.close()
    return history


def _decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay acts on matrices only; gains and biases go without."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _save(file: Path, model, optimizer, step: int, history: list, running: list) -> None:
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
    place = json.dumps({"step": step, "history": history, "running": running})
    packed = save({name: value.contiguous() for name, value in tensors.items()}, metadata={"place": place})
    replace_file(file, packed)


def _load(file: Path, model, optimizer) -> tuple[int, list, list]:
    with safe_open(file, framework="pt") as stored:
        done = json.loads(stored.metadata()["place"])
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
    state: dict[int, dict] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".")
            state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return done["step"], done["history"], done["running"]
