"""One training loop for teachers and students: AdamW, warm-up, cosine, evaluation, checkpoints that resume exactly.

Everything random is a function of (seed, step), so a checkpoint holds weights, moments, the step and the history, and a
killed run continues to the same numbers. ``accelerate launch`` and ``launch`` start a process for each device; all of
them see the same runs folder.
"""

import datetime
import math
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState, notebook_launcher
from accelerate.utils import broadcast_object_list, parse_flag_from_env, reduce
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.multiprocessing import get_context, spawn
from torch.multiprocessing.spawn import ProcessException
from tqdm.auto import tqdm

from minwidth import scales, store
from minwidth.errors import Diverged, Fault, LostError, ParameterError, in_one_sentence

CHECKPOINT_SECONDS = 60.0  # between two checkpoints
CHECKPOINT_SHARE = 0.02  # of the time is spent on writing them, at the most: those of large models come later
LOOK = 16  # steps after which a GPU is asked for their losses; to ask at each would keep it waiting
PATIENCE = datetime.timedelta(days=1)  # for a process that computes what the others wait for
CLIP = 1.0  # the largest norm of a step's gradient


class Schedule(NamedTuple):
    """How long and how fast to train; ``warmup`` in steps, ``batch`` in blocks, cosine decay to ``floor`` x rate.

    ``parts``: a batch's gradients are summed over so many parts of it, for a device that cannot hold it at once.
    ``decay``: the share of the steps, at the end, in which the rate falls linearly; until then it is constant, and the
    run is evaluated in this part alone (Hägele et al. 2024, arXiv:2405.18392). None: half a cosine after the warm-up.
    """

    steps: int
    batch: int
    learning_rate: float
    warmup: int = 0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    floor: float = 0.0
    evaluations: int = 50
    parts: int = 1
    decay: float | None = None

    @property
    def settled(self) -> int:
        """Steps before the rate begins to fall, and with ``decay`` before the first evaluation."""
        return self.warmup if self.decay is None else self.steps - round(self.decay * self.steps)

    def rate(self, step: int) -> float:
        """Learning rate at ``step``: linear warm-up, then what ``decay`` says, down to ``floor`` times the peak."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = max(0, step - self.settled) / max(1, self.steps - self.settled)
        left = 0.5 * (1 + math.cos(math.pi * done)) if self.decay is None else 1 - done
        return self.learning_rate * (self.floor + (1 - self.floor) * left)

    def evaluated(self, step: int) -> bool:
        """Whether the model is evaluated after ``step`` steps: ``evaluations`` times, evenly, and at the end."""
        first = 0 if self.decay is None else self.settled
        done, span = (step - first) * self.evaluations, self.steps - first
        return step > first and done // span > (done - self.evaluations) // span


def batch_rows(total: int, batch: int, step: int, seed: int) -> np.ndarray:
    """Row numbers of the batch that ``step`` trains on: epochs of a fresh permutation each, the tail rows dropped."""
    if batch > total:
        raise ParameterError(f"A batch of {batch} blocks cannot be drawn from {total}; lower the batch or add text.")
    an_epoch = total // batch
    epoch, place = divmod(step, an_epoch)
    return _order(total, epoch, seed)[place * batch : (place + 1) * batch]


@lru_cache(maxsize=4)  # the steps of an epoch ask for the same one
def _order(total: int, epoch: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(total)


def train(
    model: nn.Module,
    loss: Callable[[nn.Module, np.ndarray], Tensor],
    evaluate: Callable[[nn.Module], float],
    rows: int,
    schedule: Schedule,
    seed: int,
    checkpoint: Path | None = None,
    progress: str = "training",
    trunk: Path | None = None,
) -> list[dict]:
    """Train ``model`` in place and return its history: one ``{step, train, held_out}`` an evaluation, losses in nats.

    Each of several processes computes its share of every batch; the first writes the checkpoints.

    Args:
        loss: (model, row numbers) -> scalar to minimise, a mean over rows; draws nothing at random.
        evaluate: model -> held-out loss.
        rows: how many rows of data there are to draw from.
        checkpoint: folder of the state, written every minute or, where that takes long, less often; a run that finds
            one continues it, or starts again where it is damaged.
        trunk: folder of the state in which the rate begins to fall, which longer runs of the same model, data and
            constant rate go on from: to the same numbers as from the start.

    Raises:
        Diverged: the loss is no longer finite.
        ParameterError: the batch cannot be divided evenly among processes and parts.
    """
    optimizer = adamw(model, schedule)
    step, history, running, recent = 0, [], [], []
    for folder in filter(None, (checkpoint, trunk)):
        if (found := load_state(folder)) and (folder == checkpoint or found[1]["step"] <= schedule.settled):
            step, history, running = _continue(model, optimizer, *found)
            break
    computed, first = _Loss(model, loss), state().is_main_process
    if state().num_processes > 1:  # gradients are then means over the processes
        computed = nn.parallel.DistributedDataParallel(computed)
    mode = model.training  # students stay in eval mode: dropout would draw from the global generator
    look, due = 1 if state().device.type == "cpu" else LOOK, checkpointed()
    shown = {} if first else {"disable": True}
    bar = tqdm(total=schedule.steps, initial=step, desc=progress, unit=" steps", leave=False, **shown)
    while step < schedule.steps:
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        recent.append(update(model, optimizer, computed, share(batch_rows(rows, schedule.batch, step, seed)), schedule))
        step += 1
        bar.update()
        if step % look and not schedule.evaluated(step) and step != schedule.settled:
            continue
        losses, recent = reduce(torch.stack(recent), "mean").tolist(), []
        for at, value in enumerate(losses, step - len(losses)):
            if not math.isfinite(value):
                raise Diverged(f"The loss is {value} at step {at}; lower the learning rate {schedule.learning_rate}.")
        running += losses
        if trunk and first and step == schedule.settled:
            _save(trunk, model, optimizer, step, history, running)
        if schedule.evaluated(step):
            model.eval()
            with torch.no_grad():
                history.append({"step": step, "train": sum(running) / len(running), "held_out": evaluate(model)})
            model.train(mode)
            running = []
            bar.set_postfix(held_out=f"{history[-1]['held_out']:.3f}")
        if checkpoint and first and (time.monotonic() > due or step == schedule.steps):
            due = checkpointed(partial(_save, checkpoint, model, optimizer, step, history, running))
    bar.close()
    return history


class _Loss(nn.Module):
    """The loss as a module that holds the model, the form in which gradients can be averaged over processes."""

    def __init__(self, model: nn.Module, loss: Callable):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, rows: np.ndarray) -> Tensor:
        return self.loss(self.model, rows)


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[np.ndarray], Tensor],
    rows: np.ndarray,
    schedule: Schedule,
) -> Tensor:
    """One step down the gradient of the mean loss of ``rows``, its norm clipped; returns that loss."""
    if len(rows) % schedule.parts:
        raise ParameterError(f"{len(rows)} blocks cannot be divided into parts = {schedule.parts}; give a divisor.")
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for part in np.split(rows, schedule.parts):
        value = loss(part) / schedule.parts
        value.backward()
        total = total + value.detach()
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    return total


def adamw(model: nn.Module, schedule: Schedule) -> torch.optim.AdamW:
    """AdamW in one pass over memory; weight decay acts on matrices only, gains and biases go without."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": schedule.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=schedule.betas, fused=True)


# -------------------------------------------------------------------------------------------------------- checkpoints


def checkpointed(write: Callable[[], None] = lambda: None) -> float:
    """Write a checkpoint, at the start none, and tell by ``time.monotonic`` when the next one is due."""
    started = time.monotonic()
    write()
    ended = time.monotonic()
    return ended + max(CHECKPOINT_SECONDS, (ended - started) / CHECKPOINT_SHARE)


def save_state(folder: Path, tensors: dict[str, Tensor], place: dict) -> None:
    """Write a checkpoint, whole or not at all."""
    store.save(folder, {"place": place}, {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()})


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict] | None:
    """What ``save_state`` wrote; None where there is nothing, or what is damaged, which is logged."""
    if found := store.load(folder):
        content, arrays = found
        return {name: torch.tensor(array) for name, array in arrays.items()}, content["place"]
    return None


def _save(folder: Path, model, optimizer, step: int, history: list, running: list) -> None:
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors |= {f"{moment}/{name}": value for moment, value in optimizer.state[parameter].items()}
        tensors[name] = parameter
    save_state(folder, tensors, {"step": step, "history": history, "running": running})


@torch.no_grad()
def _continue(model, optimizer, tensors: dict[str, Tensor], place: dict) -> tuple[int, list, list]:
    for name, parameter in model.named_parameters():
        parameter.copy_(tensors[name])
        for moment in ("step", "exp_avg", "exp_avg_sq"):
            if (value := tensors.get(f"{moment}/{name}")) is not None:
                # strides as the parameter's: a fused step reads both in the order of memory
                like = torch.empty_like(parameter) if value.ndim else torch.empty((), device=parameter.device)
                optimizer.state[parameter][moment] = like.copy_(value)
    return place["step"], place["history"], place["running"]


# ---------------------------------------------------------------------------------------------------- several devices


def state() -> PartialState:
    """Which process this is, of how many, and its ``device``: a GPU of its own where there are any, else the CPU."""
    on_cpu = not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
    return PartialState(cpu=on_cpu, timeout=PATIENCE)


def share(rows: np.ndarray) -> np.ndarray:
    """This process's rows of a batch, as many as every other's; together the processes read each row once."""
    processes = state().num_processes
    if len(rows) % processes:
        raise ParameterError(f"A batch of {len(rows)} cannot be shared by {processes} processes; give a multiple.")
    return rows[state().process_index :: processes]


def launch(processes: int, work: Callable, *arguments) -> None:
    """Call ``work`` from a notebook in several processes that train together; what they leave is found in runs/."""

    def process(*arguments):
        PartialState._reset_state()  # what the notebook's own process knows came along with the fork
        with in_one_sentence():
            work(*arguments)

    try:
        notebook_launcher(process, arguments, processes, rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0")
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        ended = f"Process {rank} of {processes} has ended with code {failure.exitcode}"
        raise LostError(f"{ended}; run this again, and it continues from its last checkpoint.") from None


def find_or_compute(what: str, parameters: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> store.Record:
    """``store.find_or_compute`` of what all processes compute at once, exchanging with one another.

    Each calls ``compute``; the first stores what it returns, and all read that. ``LostError`` where one has ended.
    """
    if state().num_processes > 1:
        started, first = time.monotonic(), state().is_main_process
        try:
            with store.alone(store.folder_of(what, parameters)) if first else nullcontext():
                (found,) = broadcast_object_list([store.find(what, parameters) is not None])
                values = {} if found else compute()
                if first and not found:
                    store.keep(what, parameters, values, seconds=time.monotonic() - started)
                state().wait_for_everyone()
        except RuntimeError as error:
            if isinstance(error, Fault) or not any(word in str(error) for word in ("onnection", "NCCL", "peer")):
                raise
            ended = f"Another of the {state().num_processes} processes has ended, so this one cannot go on"
            raise LostError(f"{ended}; start them again: the run continues from its last checkpoint.") from error
    return store.find_or_compute(what, parameters, compute)


def sent(array: np.ndarray, to: torch.device) -> Tensor:
    """An array as a tensor on a device; to a GPU by way of pinned memory, so that nothing waits for the copy."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(to, non_blocking=True) if to.type == "cuda" else tensor


def in_processes(work: Callable[[Iterable], Any], items: Sequence, progress: str) -> None:
    """``work`` on all items, by a process on each core, one thread each, that takes the next which no other has taken.

    Args:
        work: a module's function; goes through the items it is given and leaves what it finds in the store.

    Raises:
        LostError: a process failed; its last line says why.
    """
    cores = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, len(items))
    bar = tqdm(items, desc=progress, unit=" runs", leave=False)
    if cores == 1:
        work(bar)
        return
    taken, shown = get_context("spawn").Value("i", 0), os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"  # read by each process: the bar of all of them is here
    try:
        working = spawn(_beside, (work, items, taken), nprocs=cores, join=False)
    finally:
        os.environ.pop("TQDM_DISABLE") if shown is None else os.environ.update(TQDM_DISABLE=shown)
    try:
        with bar:
            while not working.join(timeout=1):
                bar.update(max(0, taken.value - cores) - bar.n)  # of what it took, each has yet to finish the last
    except ProcessException as error:
        raise LostError(str(error).strip().splitlines()[-1].partition(": ")[2] or str(error)) from None


def _beside(_: int, work: Callable[[Iterable], Any], items: Sequence, taken) -> None:
    """In a process of its own, which ends when its parent ends, also by kill -9."""

    def take() -> Any:
        with taken.get_lock():
            taken.value += 1
            return items[taken.value - 1] if taken.value <= len(items) else None

    signal.signal(signal.SIGINT, signal.default_int_handler)  # what then comes; a shell's background job ignores it
    torch.set_num_threads(1)
    work(iter(take, None))


@contextmanager
def threads(width: int) -> Iterator[None]:
    """One thread for models up to ``scales.ONE_THREAD`` wide, which two would slow down; else as many as torch has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if width <= scales.ONE_THREAD else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def tf32(on: torch.device) -> Iterator[None]:
    """While the block lasts, a GPU multiplies float32 matrices with 11 bits of each number; a CPU as always."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if on.type == "cuda" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
