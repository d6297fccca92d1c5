"""What a run would take before it is started: FLOPs, memory, disk and hours, counted on the study's own code.

One training step is executed on tensors without contents (PyTorch's fake tensors). Each operation it calls has its
arithmetic and its memory traffic added up, and the tensors alive at once give the memory. A machine is three numbers:
arithmetic a second, bytes a second, and the time that any operation takes however small. An operation lasts as long as
the slower of its arithmetic and its traffic (the roofline of Williams et al., 2009), and that time on top.

``python -m minwidth.plan --scale pythia-410m`` prints what 03 and 04 take on several GPUs; ``--check`` compares
predicted and measured times of a step on this CPU.
"""

import argparse
import copy
import functools
import sys
import time
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from transformers import PreTrainedConfig

from minwidth import cut, distill, kl, models, residual, sae, scales, training

SUSTAINED = 0.5  # share of a data sheet's arithmetic that matrix products of these sizes reach
STREAMED = 0.8  # share of its bandwidth that passes over large tensors reach
RESERVED = 2  # GiB of a GPU's memory that CUDA and its allocator take
LAUNCH = 8e-6  # seconds from one operation of an eager PyTorch program to the next, at the least
GIB = 2**30
aten = torch.ops.aten


class Machine(NamedTuple):
    """What decides how long an operation takes."""

    name: str
    flops: float  # a second, in float32
    low_flops: float  # a second, in bfloat16
    bandwidth: float  # bytes a second
    latency: float  # seconds an operation


class Cost(NamedTuple):
    """What a piece of the program takes: its operations by (FLOPs, bytes, in bfloat16), and its memory."""

    operations: Counter
    memory: int  # bytes of the tensors alive at once, at the most
    waits: int  # times that the program asked a tensor for a number, for which a GPU would be waited for

    @property
    def flops(self) -> float:
        return sum(count * flops for (flops, _, _), count in self.operations.items())

    def seconds(self, machine: Machine) -> float:
        """Time on a machine: for each operation the slower of arithmetic and traffic, and the latency."""
        rates = {False: machine.flops, True: machine.low_flops}
        return sum(
            count * (max(flops / rates[low], traffic / machine.bandwidth) + machine.latency)
            for (flops, traffic, low), count in self.operations.items()
        )


# ---------------------------------------------------------------------------------------------------------- counting


class _Counting(TorchDispatchMode):
    """Adds up what the operations of a block of code take."""

    FREE = ("empty", "detach", "_unsafe_view", "alias")  # no traffic: only a new name, or memory yet to be written

    def __init__(self):
        super().__init__()
        self.operations: Counter = Counter()
        self.waits = self.peak = self.alive = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is aten._local_scalar_dense.default:
            self.waits += 1
            return 1.0 if args[0].is_floating_point() else 1  # finite, and true
        found = function(*args, **kwargs)
        inputs, outputs = _tensors((args, kwargs)), _tensors(found)
        for tensor in [*inputs, *outputs]:
            self._hold(tensor)
        name = function._schema.name.removeprefix("aten::")
        if function.namespace == "aten" and not function.is_view and not name.startswith(self.FREE):
            packet = aten.addmm if name == "addmm_" else function._overloadpacket
            flops = flop_registry[packet](*args, **kwargs, out_val=found) if packet in flop_registry else 0
            arguments = zip(function._schema.arguments, args, strict=False)  # keywords set numbers, but for ``out``
            written = [value for argument, value in arguments if argument.alias_info and argument.alias_info.is_write]
            touched = {id(tensor): tensor for tensor in inputs}
            traffic = sum(map(_bytes, touched.values())) + sum(map(_bytes, _tensors(written) or outputs))
            self.operations[flops, traffic, any(tensor.dtype == torch.bfloat16 for tensor in outputs)] += 1
        return found

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.alive += storage.nbytes()
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.alive -= self.sizes.pop(key)


def _tensors(values) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


class _FusedAttention(TorchFunctionMode):
    """Attention as one operation that never holds its weights, as GPUs and CPUs both have it."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        queries, *others = args[:3]
        heads = queries.shape[1]
        keys, values = (tensor.repeat_interleave(heads // tensor.shape[1], 1) for tensor in others)  # shared by heads
        return aten._scaled_dot_product_flash_attention(queries, keys, values, 0.0, True)[0]


def count(build: Callable[[], Callable[[], object]]) -> Cost:
    """The cost of what ``build`` returns, run on tensors without contents once gradients and moments are there.

    Args:
        build: makes models and inputs, which count as memory only where they are used, and returns the work to count.
    """
    counting = _Counting()
    with FakeTensorMode():
        work = build()
        with counting, _FusedAttention():
            work()
            counting.operations.clear()
            counting.waits = 0
            work()
    return Cost(counting.operations, counting.peak, counting.waits)


def count_layers(config: PreTrainedConfig, build: Callable[[PreTrainedConfig], Callable[[], object]]) -> Cost:
    """``count`` of a model of many layers from two shallow ones: layers are alike, each adds what the second adds."""
    one, two = (count(functools.partial(build, _with_layers(config, layers))) for layers in (1, 2))
    more = config.num_hidden_layers - 1
    operations = Counter(
        {
            key: one.operations[key] + more * (two.operations[key] - one.operations[key])
            for key in one.operations | two.operations
        }
    )
    return Cost(operations, one.memory + more * (two.memory - one.memory), one.waits + more * (two.waits - one.waits))


def _with_layers(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    config = copy.deepcopy(config)
    config.num_hidden_layers = layers
    return config


# ------------------------------------------------------------------------------------------------------------- steps


def student_step(p: scales.Distill, config: PreTrainedConfig, on_gpu: bool = False) -> Callable[[], Tensor]:
    """One training step of a student, the teacher's states being there, on text and states that are all zeros.

    Args:
        config: the student's architecture.
        on_gpu: in bfloat16 and with chunks as large as on a GPU.
    """
    student, vocabulary = models.from_config(config), config.vocab_size
    ids = torch.zeros(p.batch, p.length, dtype=torch.long)
    states, matrix = torch.zeros(p.batch, p.length, p.shape.width), torch.zeros(vocabulary, p.shape.width)
    if p.objective == "hidden":
        student.match = torch.nn.Linear(config.hidden_size, p.shape.width, bias=False)
    optimizer = training.adamw(student, p.learning_rate, p.weight_decay)
    chunk = kl.tokens_at_once("cuda", vocabulary) if on_gpu else None

    def loss(rows: np.ndarray) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=on_gpu):
            return distill.objective(p, student, ids[rows], states[rows], matrix, chunk=chunk)

    schedule, rows = distill.schedule(p, distill.Job("random", config.hidden_size, 0, p.steps)), np.arange(p.batch)
    return lambda: training.update(student, optimizer, loss, rows, schedule)


def autoencoder_step(p: scales.Sae, d: int) -> Callable[[], None]:
    """One training step of an autoencoder of a stream of width ``d`` by matrix products, as a GPU takes it."""
    latents = p.expansion * d
    with torch.device("meta"):
        parameters = torch.rand(latents, d), torch.rand(latents, d), torch.rand(d), torch.zeros(latents)
        autoencoder = sae.Sae(*parameters, p.topk if p.kind == "topk" else None)
        batch = torch.rand(p.batch, d)
    adam = sae.Adam(autoencoder)
    return lambda: adam.step(autoencoder, sae.dense_gradients(autoencoder, batch, p.lam), p.learning_rate)


def teacher_pass(tokens: int, length: int, config: PreTrainedConfig, low: bool = False) -> Callable[[], None]:
    """The final states of a teacher on ``tokens`` tokens in blocks of ``length``, in bfloat16 where ``low``."""
    teacher = models.from_config(config).requires_grad_(False)
    ids = torch.zeros(max(1, tokens // length), length, dtype=torch.long)

    def forward() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            models.final_hidden(teacher, ids)

    return forward


# ---------------------------------------------------------------------------------------------------------- machines


def gpu(name: str, tf32: bool = False) -> Machine:
    """A GPU of ``scales.GPUS`` at the share of its data sheet that programs like this one reach."""
    sheet = scales.GPUS[name]
    flops = sheet.tf32 if tf32 else sheet.fp32
    return Machine(name, SUSTAINED * flops, SUSTAINED * sheet.bf16, STREAMED * sheet.bandwidth, LAUNCH)


def this_cpu() -> Machine:
    """One thread of this CPU, measured in seconds: products of a layer, passes over large tensors, small operations.

    What is computed is dropped at once, as in a step: fresh memory would cost more than the arithmetic.
    """
    x, weight, slope, large = (torch.rand(shape) for shape in ((1024, 128), (512, 128), (1024, 512), (4096, 1024)))
    products = _fastest(lambda: [len((x @ weight.T, slope @ weight, slope.T @ x)) for _ in range(8)]) / 8
    passes = _fastest(lambda: [len(large * 2) for _ in range(8)]) / 8
    small = torch.rand(16, requires_grad=True)

    def chain() -> None:
        found = small
        for _ in range(100):
            found = found * 2
        found.sum().backward()

    flops = 3 * 2 * x.shape[0] * weight.numel() / products
    return Machine("this CPU", flops, flops, 2 * _bytes(large) / passes, _fastest(chain) / 200)


def _fastest(work: Callable[[], object], times: int = 6) -> float:
    """Seconds of CPU time that the fastest of some runs took, the first left out: other programs do not count."""
    work()
    found = []
    for _ in range(times):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return min(found)


# ------------------------------------------------------------------------------------------------------------- plans


class Part(NamedTuple):
    """A piece of a notebook's work."""

    part: str
    steps: float
    cost: Cost  # of a step
    memory: float = 0  # bytes that the GPU holds besides
    disk: float = 0  # bytes that stay
    tf32: bool = False  # products of float32 matrices in TF32

    def seconds(self, on: str) -> float:
        """A step's, on a GPU of ``scales.GPUS``."""
        return self.cost.seconds(gpu(on, self.tf32))

    def hours(self, on: str) -> float:
        """Those of all steps."""
        return self.steps * self.seconds(on) / 3600

    @property
    def gib(self) -> float:
        """GPU memory."""
        return (self.cost.memory + self.memory) / GIB


def plan(p: scales.Distill | scales.Sae) -> pd.DataFrame:
    """What 03 or 04 would take on one GPU, ``p.gpu``: a row for each part.

    Returns:
        ``part``, ``steps`` (all runs of it together), ``tflop`` (10^12 FLOPs a step), ``ms`` (a step), ``gib`` (of GPU
        memory), ``hours``, ``disk`` (GiB that stay).

    Raises:
        ValueError: a teacher whose architecture cannot be read.
    """
    rows = []
    for found in parts(p):
        row = {"part": found.part, "steps": round(found.steps), "tflop": found.cost.flops / 1e12}
        row |= {"ms": 1e3 * found.seconds(p.gpu), "gib": found.gib}
        rows.append(row | {"hours": found.hours(p.gpu), "disk": found.disk / GIB})
    return pd.DataFrame(rows)


def overview(scale: str) -> pd.DataFrame:
    """What 03 and 04 would take at a scale on each GPU of ``scales.GPUS``: a row a part, and their sum.

    Returns:
        ``part``, ``exaflop`` (10^18 FLOPs), ``gib`` (of GPU memory), ``disk`` (GiB) and for each GPU the hours, NaN
        where it does not have that much memory.
    """
    rows = []
    for notebook in ("03_sae", "04_distill"):
        for found in parts(scales.parameters(notebook, scale)):
            row = {"part": f"{notebook[:2]}: {found.part[0].lower()}{found.part[1:]}"}
            row |= {"exaflop": found.steps * found.cost.flops / 1e18, "gib": found.gib, "disk": found.disk / GIB}
            rows.append(row | {name: found.hours(name) if _fits(found.gib, name) else np.nan for name in scales.GPUS})
    table = pd.DataFrame(rows)
    total = dict(table.sum(numeric_only=True, skipna=False)) | {"part": "all", "gib": table.gib.max()}
    return pd.concat([table, pd.DataFrame([total])], ignore_index=True)


def _fits(gib: float, name: str) -> bool:
    return gib + RESERVED <= scales.GPUS[name].gib


def as_markdown(table: pd.DataFrame) -> str:
    """``overview`` as a Markdown table."""
    heads = ["10^18 FLOPs", "GPU memory, GiB", "disk, GiB", *(f"hours, {name}" for name in scales.GPUS)]
    lines = [f"| | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    for part, *numbers in table[["part", "exaflop", "gib", "disk", *scales.GPUS]].itertuples(index=False):
        cells = ["too large" if np.isnan(n) else f"{n:.2g}" if n < 100 else f"{n:,.0f}" for n in numbers]
        lines.append(f"| {part} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parts(p: scales.Distill | scales.Sae) -> Iterator[Part]:
    """The pieces of 03's or 04's work, counted."""
    return _distillation(p) if isinstance(p, scales.Distill) else _autoencoders(p)


def _distillation(p: scales.Distill) -> Iterator[Part]:
    config, runs = models.load_config(p.shape.teacher), 2 * len(p.seeds)  # each student is trained twice
    tokens = 2 * p.steps * p.batch * p.length
    beside = bool(distill.too_large(tokens, p.shape.width))
    forward = count_layers(config, functools.partial(teacher_pass, p.batch * p.length, p.length, low=beside))
    evaluated = runs * p.evaluations * p.held_out_blocks / p.batch
    steps = 3 * p.steps * len(p.seeds) + evaluated / 3  # a loss without gradients takes a third of a step
    for ladder in p.ladders:
        for width in reversed(p.widths_of(ladder)):
            student = _narrow(config, ladder, width)
            cost = count_layers(student, functools.partial(student_step, p, on_gpu=True))
            if beside:
                cost.operations.update(forward.operations)
                cost = cost._replace(memory=cost.memory + 4 * _parameters(config))
            uncut = ladder == "width_alone" and width == p.shape.width  # it is its teacher, with nothing to learn
            disk = runs * 4 * _parameters(student)
            yield Part(f"{distill.LADDER_NAMES[ladder]}, {width}", 0 if uncut else steps, cost, disk=disk)
    if not beside:
        yield Part("Teacher, kept on disk", 2 * p.steps, forward, disk=tokens * p.shape.width * 4)
    yield Part("Text", 0, forward, disk=2 * tokens)


def _narrow(config: PreTrainedConfig, ladder: str, width: int) -> PreTrainedConfig:
    return (models.student_config if ladder == "random" else cut.cut_config)(config, width)


def _autoencoders(p: scales.Sae) -> Iterator[Part]:
    config = models.load_config(p.teacher, p.revision or None)
    d, deepest = config.hidden_size, max(p.layer, *p.layers)
    read, every = residual.FORWARD_TOKENS, sae._settings(p, d)
    forward = count_layers(_with_layers(config, max(1, deepest)), functools.partial(teacher_pass, read, p.length))
    yield Part(f"Teacher to layer {deepest}", p.tokens / read, forward, disk=2 * p.tokens, tf32=True)
    step = count(lambda: autoencoder_step(p, d))
    others = (len(every) - 1) * 6 * 4 * p.expansion * d * d  # two matrices, each with two moments, all on the GPU
    held = others + sae.ACTIVATION_BYTES
    yield Part(f"Autoencoders, {len(every)}", sum(s.steps for s in every), step, held, tf32=True)
    yield Part("Teacher, held-out text", p.held_out_tokens / read, forward, disk=2 * p.held_out_tokens)
    # encoding and decoding are two of a step's five matrix products
    yield Part("Statistics", 2 / 5 * len(every) * p.held_out_tokens / p.batch, step, others)


def _parameters(config: PreTrainedConfig) -> int:
    with FakeTensorMode():
        return models.parameter_count(models.from_config(config))


def in_words(p: scales.Distill | scales.Sae, table: pd.DataFrame) -> str:
    """A plan as Markdown: the table, what it comes to and what it takes for granted."""
    heads = {"steps": "steps", "tflop": "TFLOPs a step", "ms": "ms a step", "gib": "GPU memory, GiB"}
    heads |= {"hours": "hours", "disk": "disk, GiB"}
    lines = [f"| {p.scale} | {' | '.join(heads.values())} |", f"|---|{'---:|' * len(heads)}"]
    for row in table.itertuples():
        cells = [f"{row.steps:,}", *(f"{getattr(row, name):.3g}" for name in ("tflop", "ms", "gib", "hours", "disk"))]
        lines.append(f"| {row.part} | {' | '.join(cells)} |")
    exa = (table.steps * table.tflop).sum() / 1e6
    peak, room = table.gib.max(), scales.GPUS[p.gpu].gib
    remedy = "" if _fits(peak, p.gpu) else ", too many: lower the batch, or name a larger GPU"
    said = [
        f"In all {exa:.3g} · 10^18 FLOPs, **{table.hours.sum():.3g} hours** on one {p.gpu}, at most {peak:.3g} GiB of "
        f"memory (of {room}{remedy}) and {table.disk.sum():.3g} GiB of disk; jobs side by side divide the hours.",
        f"Taken for granted: matrix products at {SUSTAINED:.0%} of the data sheet, passes over memory at "
        f"{STREAMED:.0%}, {LAUNCH * 1e6:g} µs from one operation to the next, none of them fused by `torch.compile`; "
        "reading the text takes no time.",
    ]
    if isinstance(p, scales.Distill):
        said.append(distill.too_large(2 * p.steps * p.batch * p.length, p.shape.width))
    return "\n".join(lines) + "\n\n" + " ".join(said).rstrip()


def end_with_plan(p: scales.Distill | scales.Sae) -> None:
    """Show the plan and end the notebook, which papermill takes for a good end; nothing is run or written.

    Raises:
        SystemExit: always, without a code.
    """
    from IPython.display import Markdown, display

    display(Markdown(in_words(p, plan(p)) + "\n\n*The notebook ends here, as `plan = True` asks.*"))
    warnings.filterwarnings("ignore", message="To exit: use")
    raise SystemExit


# ------------------------------------------------------------------------------------------------------------- check

SIZES = (("tiny", "random", 16), ("tiny", "random", 128), ("smollm2", "width_alone", 128))
ROUNDS = 9  # odd, so that one of them is the median


def check() -> pd.DataFrame:
    """Predicted and measured seconds of CPU time of a student's step on one thread: ``size, predicted, measured``.

    The speed of a shared machine changes within seconds, by a quarter or more. So in each round it is described right
    before the step, and the round with the median ratio of the two counts.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    for scale, ladder, width in SIZES:
        p = scales.parameters("04_distill", scale)
        config = _narrow(models.load_config(scale), ladder, width)
        cost, step = count_layers(config, functools.partial(student_step, p)), student_step(p, config)
        rounds = [(cost.seconds(this_cpu()), _fastest(step, 2)) for _ in range(ROUNDS)]
        predicted, measured = sorted(rounds, key=lambda pair: pair[0] / pair[1])[ROUNDS // 2]
        rows.append({"size": f"{scale} {ladder} {width}", "predicted": predicted, "measured": measured})
    torch.set_num_threads(threads)
    table = pd.DataFrame(rows)
    return table.assign(error=table.predicted / table.measured - 1)


def main(arguments: list[str] | None = None) -> None:
    """Print what 03 and 04 would take at a scale on several GPUs, or how well a step is predicted on this CPU."""
    parser = argparse.ArgumentParser(prog="python -m minwidth.plan", description=main.__doc__)
    parser.add_argument("--scale", default="pythia-410m", choices=list(scales.SCALES))
    parser.add_argument("--check", action="store_true", help="compare predicted and measured times instead")
    options = parser.parse_args(arguments)
    if options.check:
        sys.stdout.write(check().to_string(index=False, float_format="{:.3g}".format) + "\n")
        return
    sys.stdout.write(as_markdown(overview(options.scale)) + "\n")


if __name__ == "__main__":
    main()
