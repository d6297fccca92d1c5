"""Distillation beside its peers: the loss alone, a whole training step, and students' speed against matrix products.

    python benchmarks/distill.py          all three parts; --part loss, step or speed for one

**loss** compares ``minwidth.kl.divergence`` with full logits and F.kl_div (naive), with the four matrix products that
no exact method can avoid, and with these peers, all at beta = 0, the forward KL:

- **trl**: the ``generalized_jsd_loss`` of TRL's GKD trainer; **trl chunked**: what its DistillationTrainer calls;
- **liger**: Liger's chunked JSD, **liger compiled** by torch. Liger 0.8.5 has a fused linear KL too, in Triton alone,
  for a GPU, and its target are probabilities, not a teacher's states;
- **torch chunked**: the loss written out, compiled with torch's automatic chunking. In torch 2.13 that has no rule for
  F.kl_div, and by itself takes only products of more than eight times their inputs' size, which these are not: so the
  loss is a sum of p (ln p - ln q), and the threshold is lowered.

Their loss and gradients must be the naive ones in float64 to 1e-5, else the run ends. ``make bench`` installs them;
those that cannot be imported are left out, and the result says which. Work: 1,024 tokens, vocabulary 50,304, widths
512 <- 1,024, T = 2, fp32, one thread. Times are the least CPU seconds of interleaved rounds, compiling left out; memory
is what the peak of a fresh process rises by, gradients included.

**step** times one training step of a student of width 128 on SmolLM2: with the teacher online and full logits, as
TRL's GKD trainer does it, and with the offline teacher.

**speed** compares the training step of each student of scale ``tiny`` with its matrix products alone.
"""

import argparse
import functools
import json
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from common import RESULTS, importable, in_fresh_processes, least_cpu_seconds, peak_memory, save

from minwidth import figures, kl, models, scales, students

TEMPERATURE, CHUNK = 2.0, 256  # tokens of a chunk, where a peer lets one choose
SAME = 1e-5  # relative difference from float64 that counts as none
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


def trl_chunked(hidden, matrix, teacher_hidden, teacher_matrix):
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    mask = torch.ones(1, len(hidden), dtype=torch.long)
    return _chunked_divergence_loss(
        hidden[None], teacher_hidden[None], matrix, teacher_matrix, mask, beta=0.0, temperature=TEMPERATURE
    )[0]


def liger(hidden, matrix, teacher_hidden, teacher_matrix, compiled=False):
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0, temperature=TEMPERATURE, compiled=compiled, chunk_size=CHUNK
    )
    return loss(hidden, matrix, teacher_hidden, teacher_matrix, torch.zeros(len(hidden), dtype=torch.long))


@functools.cache
def _compiled(tokens: int) -> Callable:
    chunker = {"enable": True, "amplify_ratio_threshold": 1, "num_chunk": max(2, tokens // CHUNK)}

    def loss(hidden, matrix, teacher_hidden, teacher_matrix):
        student = torch.log_softmax(hidden @ matrix.T / TEMPERATURE, -1)
        teacher = torch.log_softmax(teacher_hidden @ teacher_matrix.T / TEMPERATURE, -1)
        return (teacher.exp() * (teacher - student)).sum() / len(hidden)

    options = {f"auto_chunker.{name}": value for name, value in chunker.items()}
    return torch.compile(loss, dynamic=False, options=options)


def torch_chunked(*tensors):
    return _compiled(len(tensors[0]))(*tensors)


CONTESTANTS: dict[str, Callable] = {
    "naive": naive,
    "trl": trl,
    "trl chunked": trl_chunked,
    "liger": liger,
    "liger compiled": functools.partial(liger, compiled=True),
    "torch chunked": torch_chunked,
    "ours": ours,
}
COMPILED = ("liger compiled", "torch chunked")  # for one size of their inputs


def products(hidden, matrix, teacher_hidden, teacher_matrix, chunk: int = CHUNK) -> None:
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


def step(name: str, tensors: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    loss = CONTESTANTS[name](*tensors)
    return loss.detach(), *torch.autograd.grad(loss, tensors[:2])


def parity(found: list[str], tensors: list[torch.Tensor]) -> dict[str, dict[str, float]]:
    """Relative difference of each contestant's loss and gradients from the naive ones in float64, all within SAME."""
    exact = step("naive", [x.detach().double().requires_grad_(x.requires_grad) for x in tensors])
    names = ("loss", "hidden_gradient", "unembedding_gradient")
    differences = {
        name: {
            part: float((value.double() - wanted).norm() / wanted.norm())
            for part, value, wanted in zip(names, step(name, tensors), exact, strict=True)
        }
        for name in found
    }
    if any(value > SAME for parts in differences.values() for value in parts.values()):
        raise SystemExit(f"Not all losses and gradients are the same: {differences}.")
    return differences


def peak_rise(name: str) -> int:
    """Bytes by which the resident peak of this fresh process rises above its inputs."""
    torch.set_num_threads(1)
    tensors = inputs(**WORK)
    # imports, compiling and library buffers are not the loss's
    step(name, inputs(**WORK) if name in COMPILED else inputs(8, 16, 4, 4))
    return peak_memory(lambda: step(name, tensors))["extra"]


def loss_benchmark(rounds: int) -> dict:
    """Part (a): the loss alone."""
    torch.set_num_threads(1)
    found, missing = importable(CONTESTANTS, lambda name: step(name, inputs(8, 16, 4, 4)))
    tensors = inputs(**WORK)
    agreement = parity(found, tensors)
    runs = {"products": lambda: products(*tensors)}
    seconds = least_cpu_seconds(runs | {name: functools.partial(step, name, tensors) for name in found}, rounds)
    memory = in_fresh_processes(peak_rise, found)
    return {
        "work": WORK | {"temperature": TEMPERATURE, "dtype": "float32", "threads": 1, "rounds": rounds},
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


# ------------------------------------------------------------------------------------------------------ whole steps


def step_benchmark(rounds: int, width: int = 128, blocks: int = 4, length: int = 128) -> dict:
    """Part (b): one AdamW step on SmolLM2, teacher online against offline; all threads, seconds of wall time."""
    teacher = models.load_teacher("smollm2")
    matrix = models.unembedding(teacher.model)
    ids = torch.randint(len(matrix), (blocks, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        states = models.final_hidden(teacher.model, ids)

    def online(student):
        with torch.no_grad():
            wanted = teacher.model(ids, use_cache=False).logits
        found = student(ids, use_cache=False).logits
        return F.kl_div(
            F.log_softmax(found / TEMPERATURE, -1).flatten(0, 1),
            F.softmax(wanted / TEMPERATURE, -1).flatten(0, 1),
            reduction="batchmean",
        )

    def offline(student):
        hidden = models.final_hidden(student, ids)
        return kl.divergence(hidden, models.unembedding(student), states, matrix, TEMPERATURE)

    seconds, losses = {"online": [], "offline": []}, {}
    for name, loss in (("online", online), ("offline", offline)):
        student = models.make_student(teacher.model, width, 0)
        optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, fused=True)
        for _ in range(rounds + 1):
            started = time.perf_counter()
            value = loss(student)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            seconds[name].append(time.perf_counter() - started)
            losses.setdefault(name, float(value.detach()))
    if abs(losses["online"] / losses["offline"] - 1) > 1e-4:
        raise SystemExit(f"The two steps do not start from the same loss: {losses}.")
    best = {name: min(values[1:]) for name, values in seconds.items()}
    return {
        "work": {"teacher": "smollm2", "width": width, "tokens": ids.numel(), "threads": torch.get_num_threads()},
        "first_loss": losses,
        "seconds": best,
        "ratios": {"online_to_offline": best["online"] / best["offline"]},
    }


def speed_benchmark(rounds: int) -> dict:
    """Part (c): steps of the ``tiny`` students against their matrix products alone; one thread, CPU seconds."""
    torch.set_num_threads(1)
    p = scales.parameters("04_distill", "tiny")
    teacher = models.load_teacher("tiny")
    matrix = models.unembedding(teacher.model)
    ids = torch.randint(len(matrix), (p.batch, p.length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        states = models.final_hidden(teacher.model, ids)
    rows = []
    for ladder in p.ladders:
        for width in p.widths:
            student = students.make(teacher, p, ladder, width, seed=0)
            optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, fused=True)

            def train(student=student, optimizer=optimizer):
                loss = students.objective(p, student, ids, states, matrix)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
                optimizer.step()

            # weights are read in the forward pass and twice in the backward pass; the teacher's unembedding once
            tables = {id(m.weight) for m in student.modules() if isinstance(m, torch.nn.Embedding)}
            matrices = [w for w in student.parameters() if w.ndim == 2 and id(w) not in tables]
            shapes = [(*w.shape, 3) for w in matrices]
            shapes.append((*matrix.shape, 1))
            runs = {"step": train, "products": functools.partial(_multiply, shapes, ids.numel())}
            least, row = least_cpu_seconds(runs, rounds), {"ladder": ladder, "width": width}
            row |= {"tokens_per_second": ids.numel() / least["step"], "to_products": least["step"] / least["products"]}
            rows.append(row)
    return {"work": {"teacher": "tiny", "tokens": ids.numel(), "threads": 1}, "students": rows}


def _multiply(shapes: list[tuple[int, int, int]], tokens: int) -> None:
    for out_features, in_features, times in shapes:
        left, right = torch.ones(tokens, in_features), torch.ones(in_features, out_features)
        for _ in range(times):
            torch.mm(left, right)


# ----------------------------------------------------------------------------------------------------------- output


def draw(found: dict[str, dict]):
    """The parts as panels: time and memory of the loss, a whole step, students against their matrix products."""
    loss, step, speed = found["loss"], found["step"], found["speed"]
    figure, ((left, right), (below, last)) = figures.panels(2, 2, height=2.2)
    names = list(loss["peak_extra_bytes"])
    left.barh(names, [loss["ratios"]["seconds_to_products"][name] for name in names], color=figures.PALETTE[0])
    left.axvline(1, color="0.3", linewidth=1, linestyle="--")
    left.set(xlabel="CPU time / that of the four products", title="(a) the loss")
    right.barh(names, [loss["peak_extra_bytes"][name] / 1e6 for name in names], color=figures.PALETTE[1])
    right.set(xlabel="peak extra memory (MB)", yticklabels=[], title="(b) the loss")
    seconds = step["seconds"]
    below.barh([f"teacher {name}" for name in seconds], list(seconds.values()), color=figures.PALETTE[2])
    below.set(xlabel="seconds", title=f"(c) a step at width {step['work']['width']}")
    measured = dict.fromkeys(row["ladder"] for row in speed["students"])
    for number, (ladder, (marker, line)) in enumerate(zip(measured, figures.STYLES, strict=False)):
        rows = [row for row in speed["students"] if row["ladder"] == ladder]
        points = [row["width"] for row in rows], [row["to_products"] for row in rows]
        last.plot(
            *points,
            line,
            marker=marker,
            markersize=4,
            color=figures.PALETTE[number],
            label=students.LADDERS[ladder],
        )
    last.axhline(1, color="0.3", linewidth=1, linestyle="--")
    last.set(xlabel="width d", ylabel="time / products", title="(d) steps of the tiny students", ylim=(0, 4.5))
    last.legend(loc="upper right")
    return figure


PARTS = {"loss": loss_benchmark, "step": step_benchmark, "speed": speed_benchmark}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=list(PARTS), help="one part only")
    parser.add_argument("--rounds", type=int, default=3, help="how often each contestant is timed")
    options = parser.parse_args()
    for part in [options.part] if options.part else PARTS:
        result = PARTS[part](options.rounds)
        save(f"distill_{part}", result, "torch", "trl", "liger-kernel")
        print(json.dumps({name: value for name, value in result.items() if name != "work"}, indent=1))
    files = {part: RESULTS / f"distill_{part}.json" for part in PARTS}
    if all(file.exists() for file in files.values()):
        with figures.style():
            picture = draw({part: json.loads(file.read_text()) for part, file in files.items()})
        picture.savefig(RESULTS / "distill.png", dpi=150, metadata={"Software": "minwidth"})
