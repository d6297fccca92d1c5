"""The distillation loss beside its peers: seconds, peak extra memory and agreement with float64, in one run.

    python benchmarks/distill.py

Compares ``minwidth.kl.divergence`` with full logits and F.kl_div (naive), with the four matrix products that no exact
method can avoid, with the ``generalized_jsd_loss`` of TRL's GKD trainer and with Liger's chunked JSD (both at beta = 0,
the forward KL). The peers are used where they can be imported (``pip install --no-deps --target folder trl
liger-kernel``, then ``PYTHONPATH=folder``); the result says which were missing. Work: 1,024 tokens, vocabulary
50,304, widths 512 <- 1,024, T = 2, fp32, one thread. Times are the least CPU seconds of interleaved rounds, memory is
what the peak of a fresh process rises by, gradients included.
"""

import argparse
import json
import multiprocessing
import platform
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch
import torch.nn.functional as F

from minwidth import kl

RESULTS = Path(__file__).parent / "results"
TEMPERATURE = 2.0
WORK = {"tokens": 1024, "vocabulary": 50_304, "d_student": 512, "d_teacher": 1024}


def inputs(tokens: int, vocabulary: int, d_student: int, d_teacher: int) -> list[torch.Tensor]:
    """Hidden states and unembeddings of a student and a teacher whose logits have a standard deviation of 3."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(tokens, d_student), (vocabulary, d_student), (tokens, d_teacher), (vocabulary, d_teacher)]
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    tensors[1].mul_(3 / d_student**0.5), tensors[3].mul_(3 / d_teacher**0.5)
    return [tensors[0].requires_grad_(), tensors[1].requires_grad_(), *tensors[2:]]


def ours(hidden, matrix, teacher_hidden, teacher_matrix):
    return kl.divergence(hidden, matrix, teacher_hidden, teacher_matrix, TEMPERATURE)


def naive(hidden, matrix, teacher_hidden, teacher_matrix):
    student = F.log_softmax(hidden @ matrix.T / TEMPERATURE, -1)
    teacher = F.softmax(teacher_hidden @ teacher_matrix.T / TEMPERATURE, -1)
    return F.kl_div(student, teacher, reduction="batchmean")


def trl(hidden, matrix, teacher_hidden, teacher_matrix):
    from trl.experimental.gkd import GKDTrainer

    return GKDTrainer.generalized_jsd_loss(
        hidden @ matrix.T, teacher_hidden @ teacher_matrix.T, beta=0, temperature=TEMPERATURE
    )


def liger(hidden, matrix, teacher_hidden, teacher_matrix):
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0, temperature=TEMPERATURE, compiled=False, chunk_size=256
    )
    return loss(hidden, matrix, teacher_hidden, teacher_matrix, torch.zeros(len(hidden), dtype=torch.long))


CONTESTANTS: dict[str, Callable] = {"naive": naive, "trl": trl, "liger": liger, "ours": ours}


def products(hidden, matrix, teacher_hidden, teacher_matrix, chunk: int = 256) -> None:
    """The matrix products alone: student's and teacher's logits, both gradients."""
    hidden, matrix = hidden.detach(), matrix.detach()
    student = torch.empty(chunk, len(matrix))
    teacher, hidden_gradient, gradient = torch.empty_like(student), torch.empty_like(hidden), torch.zeros_like(matrix)
    for rows in torch.arange(len(hidden)).split(chunk):
        rows = slice(int(rows[0]), int(rows[-1]) + 1)
        torch.mm(hidden[rows], matrix.T, out=student)
        torch.mm(teacher_hidden[rows], teacher_matrix.T, out=teacher)
        torch.mm(student, matrix, out=hidden_gradient[rows])
        gradient.addmm_(student.T, hidden[rows])


def step(contestant: Callable, tensors: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    loss = contestant(*tensors)
    return loss.detach(), *torch.autograd.grad(loss, tensors[:2])


def importable() -> tuple[dict[str, Callable], dict[str, str]]:
    """The contestants that run here, and why the others do not."""
    found, missing = {}, {}
    small = inputs(8, 16, 4, 4)
    for name, contestant in CONTESTANTS.items():
        try:
            step(contestant, small)
            found[name] = contestant
        except Exception as error:
            missing[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return found, missing


def parity(found: dict[str, Callable], tensors: list[torch.Tensor]) -> dict[str, dict[str, float]]:
    """Relative difference of each contestant's loss and gradients from the naive ones in float64."""
    exact = step(naive, [x.detach().double().requires_grad_(x.requires_grad) for x in tensors])
    names = ("loss", "hidden_gradient", "unembedding_gradient")
    return {
        name: {
            part: float((value.double() - wanted).norm() / wanted.norm())
            for part, value, wanted in zip(names, step(contestant, tensors), exact, strict=True)
        }
        for name, contestant in found.items()
    }


def cpu_seconds(found: dict[str, Callable], tensors: list[torch.Tensor], rounds: int) -> dict[str, float]:
    """Least CPU seconds of loss and gradients, the contestants taking turns."""
    runs = {"products": lambda: products(*tensors)}
    runs |= {name: (lambda contestant=contestant: step(contestant, tensors)) for name, contestant in found.items()}
    seconds = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.process_time()
            run()
            seconds[name].append(time.process_time() - started)
    return {name: min(values) for name, values in seconds.items()}


def peak_rise(name: str, work: dict[str, int]) -> int:
    """Bytes by which the resident peak of this fresh process rises above its inputs (Linux)."""
    torch.set_num_threads(1)
    tensors = inputs(**work)
    step(CONTESTANTS[name], inputs(8, 16, 4, 4))  # imports and library buffers are not the loss's
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmRSS")
    kept = step(CONTESTANTS[name], tensors)
    del kept
    return _status("VmHWM") - before


def _status(field: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024


def loss_benchmark(rounds: int) -> dict:
    """Part (a): the loss alone."""
    torch.set_num_threads(1)
    found, missing = importable()
    tensors = inputs(**WORK)
    agreement = parity(found, tensors)
    seconds = cpu_seconds(found, tensors, rounds)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = {name: pool.apply(peak_rise, (name, WORK)) for name in found}
    return {
        "work": WORK | {"temperature": TEMPERATURE, "dtype": "float32", "threads": 1, "rounds": rounds},
        "machine": {"processor": _processor(), "system": platform.platform()},
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in ("torch", "trl", "liger-kernel")},
        "missing": missing,
        "difference_from_float64": agreement,
        "cpu_seconds": seconds,
        "peak_extra_bytes": memory,
        "ratios": {
            "seconds_to_products": {name: value / seconds["products"] for name, value in seconds.items()},
            "seconds_to_naive": {name: value / seconds["naive"] for name, value in seconds.items()},
            "memory_to_naive": {name: value / memory["naive"] for name, value in memory.items()},
        },
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((x.split(": ")[1] for x in lines if x.startswith("model name")), platform.processor())


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often each contestant is timed")
    result = loss_benchmark(parser.parse_args().rounds)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "distill_loss.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: result[k] for k in ("difference_from_float64", "cpu_seconds", "ratios", "missing")}, indent=1))
