"""One run on several devices: which process this is, which rows it reads, and what all of them agree on.

``accelerate launch`` and ``accelerate.notebook_launcher`` start a process for each device. Started without them there
is one process, nothing is imported and nothing here costs anything. All processes see the same runs folder.
"""

import datetime
import functools
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minwidth import runs
from minwidth.errors import Fault, LostError, ParameterError, in_one_sentence
from minwidth.paths import alone

PATIENCE = datetime.timedelta(days=1)  # for a process that computes what the others wait for


def count() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def is_first() -> bool:
    """Whether this is the process that writes checkpoints, records and progress."""
    return int(os.environ.get("RANK") or 0) == 0


def device() -> torch.device:
    """The device of this process: a GPU of its own where there are any, else the CPU."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK") or 0)) if _on_gpu() else torch.device("cpu")


def sent(array: np.ndarray, to: torch.device) -> Tensor:
    """An array as a tensor on a device; to a GPU by way of pinned memory, so that nothing waits for the copy."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(to, non_blocking=True) if to.type == "cuda" else tensor


@contextmanager
def tf32(on: torch.device) -> Iterator[None]:
    """While the block lasts, a GPU multiplies float32 matrices with 11 bits of each number; a CPU as always."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if on.type == "cuda" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def share(rows: np.ndarray) -> np.ndarray:
    """This process's rows of a batch; together the processes read each row once.

    Raises:
        ParameterError: the batch cannot be divided evenly, which would weigh rows differently.
    """
    if len(rows) % count():
        raise ParameterError(f"A batch of {len(rows)} cannot be shared by {count()} processes; give a multiple.")
    return rows[int(os.environ.get("RANK") or 0) :: count()]


def together(compute: nn.Module) -> nn.Module:
    """``compute``, which returns a loss, so that after its backward pass all processes hold the mean gradients."""
    return _state().prepare_model(compute) if count() > 1 else compute


def mean_(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its mean over the processes."""
    if count() > 1:
        _state()
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)
            tensor /= count()


def agree(said: bool) -> bool:
    """What the first process says."""
    if count() == 1:
        return said
    found = torch.tensor(int(said), device=_state().device)
    torch.distributed.broadcast(found, 0)
    return bool(found)


def launch(processes: int, work: Callable, *arguments) -> None:
    """Call ``work`` from a notebook in several processes that train together; what they leave is found in runs/.

    Raises:
        LostError: one of them failed, whose own words stand above.
    """
    from accelerate import notebook_launcher
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    def process(*arguments):
        with in_one_sentence():
            work(*arguments)

    try:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        notebook_launcher(process, arguments, num_processes=processes, use_port=port)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise LostError(
            f"Process {rank} of {processes} has ended with code {failure.exitcode}; run this again, and it continues "
            "from its last checkpoint."
        ) from None


def find_or_compute(what: str, parameters: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> runs.Record:
    """``runs.find_or_compute`` of what all processes compute at once, exchanging with one another.

    Each calls ``compute``; the first stores what it returns, and all read that.

    Raises:
        LostError: another process has ended meanwhile.
    """
    if count() == 1:
        return runs.find_or_compute(what, parameters, compute)
    started = time.monotonic()
    with _company(), alone(runs.folder_of(what, parameters)) if is_first() else nullcontext():
        if not agree(runs.find(what, parameters) is not None):
            values = compute()
            if is_first():
                runs.store(what, parameters, values, seconds=time.monotonic() - started)
        agree(True)  # that it is stored
    return runs.find_or_compute(what, parameters, compute)


@contextmanager
def _company() -> Iterator[None]:
    """A sentence instead of a network's error where another process has ended."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, Fault) or not any(word in str(error) for word in ("onnection", "NCCL", "peer")):
            raise
        raise LostError(
            f"Another of the {count()} processes has ended, so this one cannot go on; start them again, and the run "
            "continues from its last checkpoint."
        ) from error


def _on_gpu() -> bool:
    return torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true", "yes")


@functools.cache
def _state():
    from accelerate import Accelerator, InitProcessGroupKwargs

    return Accelerator(cpu=not _on_gpu(), kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
