"""What 03 and 04 would take on a GPU before they are started: FLOPs, memory, disk and hours, by closed formulas.

FLOPs are exact (a test counts them with PyTorch's FlopCounterMode): six a weight and token in training, two in a
forward pass, and those of attention. The constants of bytes moved and held were fitted once to a count over every
operation of our own steps, and give it within one per cent. Time is arithmetic at the share of a data sheet's rate that
such programs reach, plus bytes, plus a launch for each operation.
"""

import copy
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from transformers import PreTrainedConfig

from minwidth import kl, models, scales, students

SUSTAINED = 0.5  # share of a data sheet's arithmetic that matrix products of these sizes reach
STREAMED = 0.8  # share of its bandwidth that passes over large tensors reach
HIDDEN = 0.22  # share of the bytes that move while a product is computed and takes longer
LAUNCH = 8e-6  # seconds from one operation of an eager PyTorch program to the next, at the least
RESERVED = 2  # GiB of a GPU's memory that CUDA and its allocator take
GIB = 2**30
READ = 4096  # tokens of the teacher's forward pass
# Bytes moved and held by a student's step: a weight; a token and layer times the stream's width, and times that of its
# attention and a quarter of its feed-forward layer; a logit. Then an autoencoder's: a weight; a latent and a dimension
# of each token. Then a forward pass's: a token, layer and dimension.
MOVED, HELD = np.array([61, 168, 321, 230]), np.array([14, 9, 32, 22])
SAE_MOVED, SAE_HELD = np.array([134, 55, 64]), np.array([16, 9, 12])
FORWARD_MOVED = {"bf16": 180, "fp32": 220}


class Part(NamedTuple):
    """A piece of a notebook's work; all but ``steps`` and ``disk`` are of one step."""

    part: str
    steps: float
    bf16: float = 0  # FLOPs of matrix products in each format
    tf32: float = 0
    fp32: float = 0
    moved: float = 0  # bytes from and to memory
    memory: float = 0  # bytes that the GPU holds
    operations: int = 0
    disk: float = 0  # bytes that stay

    def hours(self, gpu: scales.Gpu) -> float:
        """On a GPU; NaN where its memory is too small."""
        if self.memory / GIB + RESERVED > gpu.gib:
            return np.nan
        arithmetic = self.bf16 / gpu.bf16 + self.tf32 / gpu.tf32 + self.fp32 / gpu.fp32
        passes = (1 - HIDDEN) * self.moved / gpu.bandwidth / STREAMED
        return self.steps * (arithmetic / SUSTAINED + passes + self.operations * LAUNCH) / 3600


class Weights(NamedTuple):
    """Numbers in a language model's matrices."""

    all: int
    products: int  # without the embedding, which is looked up and not multiplied by
    config: PreTrainedConfig


def weights(config: PreTrainedConfig, width: int | None = None) -> Weights:
    """Of an architecture, its residual stream ``width`` wide: each matrix reads from the stream or writes to it."""
    with torch.device("meta"):
        model = models.from_config(config)
    share = (width or config.hidden_size) / config.hidden_size
    embedding = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight is embedding
    every = tied * embedding.numel() + sum(p.numel() for p in model.parameters() if p.ndim == 2)
    return Weights(round(every * share), round((every - embedding.numel()) * share), config)


def student_flops(w: Weights, batch: int, length: int, d_teacher: int) -> float:
    """Of a training step: 6 a weight and token, the teacher's logits, and attention 4 forward and 10 backward."""
    tokens, config = batch * length, w.config
    attention = 14 * tokens * length * config.hidden_size * config.num_hidden_layers
    return 6 * w.products * tokens + attention + 2 * config.vocab_size * d_teacher * tokens


def forward_flops(w: Weights, tokens: int, length: int) -> float:
    """Of a teacher's pass to its final state, without its logits."""
    c = w.config
    return 2 * tokens * (w.products - c.vocab_size * c.hidden_size + 2 * length * c.hidden_size * c.num_hidden_layers)


def _students(p: scales.Distill) -> Iterator[Part]:
    config, tokens, d = models.load_config(p.shape.teacher), p.batch * p.length, p.shape.width
    teacher, a_run = weights(config), 2 * p.steps * tokens  # of the longest run
    beside = 4 * a_run * d > students.STATES_BYTES  # the teacher, whose states would not stay on disk
    pass_ = _forward("", p.steps, teacher, tokens, p.length, "bf16" if beside else "fp32")
    evaluated = p.evaluations * p.held_out_blocks / p.batch / 3  # a loss without gradients takes a third of a step
    steps = len(p.seeds) * (p.steps + evaluated / 2)
    at_once = kl.tokens_at_once("cuda", config.vocab_size) * config.vocab_size
    for ladder in p.ladders:
        for width in reversed(p.widths_of(ladder)):
            w = _student(config, ladder, width, p.layers)
            layers = w.config.num_hidden_layers
            sizes = [w.all, width * tokens * layers, w.config.hidden_size * tokens * layers]
            runs = 3 if ladder in p.doubled else 2  # for twice the steps, and where it is doubled for the steps too
            logits = 2 * config.vocab_size * d * tokens  # of the teacher
            uncut = ladder == "width_alone" and width == d  # it is its teacher, with nothing to learn
            yield Part(
                f"{students.LADDERS[ladder]}, {width}",
                0 if uncut else runs * steps,
                bf16=student_flops(w, p.batch, p.length, d) - logits + beside * pass_.bf16,
                fp32=logits,
                moved=MOVED @ [*sizes, tokens * config.vocab_size] + beside * pass_.moved,
                memory=HELD @ [*sizes, at_once] + beside * 4 * teacher.all,
                operations=250 + 130 * layers + beside * pass_.operations,
                disk=(runs - 1) * len(p.seeds) * 4 * w.all,
            )
    if not beside:
        yield pass_._replace(part="Teacher, kept on disk", steps=2 * p.steps, disk=4 * a_run * d)
    yield pass_._replace(part="Text", steps=0, disk=2 * a_run)


def _student(config: PreTrainedConfig, ladder: str, width: int, layers: int | None) -> Weights:
    if ladder == "random":
        config = models.student_config(config, width)
        config.num_hidden_layers = layers or config.num_hidden_layers
        return weights(config)
    if ladder == "width_alone":
        return weights(config, width)
    trained, config = (config.vocab_size + config.hidden_size) * width, copy.deepcopy(config)
    config.num_hidden_layers = 0  # of a last state alone the layers are the teacher's
    return Weights(trained, trained, config)


def _autoencoders(p: scales.Sae) -> Iterator[Part]:
    config = models.load_config(p.teacher, p.revision or None)
    d, deepest = config.hidden_size, max(p.layer, *p.layers)
    config.num_hidden_layers = max(1, deepest)
    latents, every = p.expansion * d, len({p.layer, *p.layers}) + p.doubling
    every += len({p.lam, *p.lams} - {p.lam}) * (p.kind == "l1")
    sizes = [2 * latents * d, p.batch * latents, p.batch * d]
    flops = 10 * p.batch * latents * d  # five products, of which encoding and decoding are two
    memory = SAE_HELD @ sizes + (every - 1) * 24 * latents * d
    step = Part(f"Autoencoders, {every}", 0, tf32=flops, moved=SAE_MOVED @ sizes, memory=memory, operations=71)
    forward = _forward(f"Teacher to layer {deepest}", p.tokens / READ, weights(config), READ, p.length, "fp32")
    yield forward._replace(tf32=forward.fp32, fp32=0, disk=2 * p.tokens)
    yield step._replace(steps=(every + p.doubling) * p.steps)
    held_out = p.held_out_tokens
    yield forward._replace(part="Teacher, held-out text", steps=held_out / READ, disk=2 * held_out)
    yield step._replace(part="Statistics", steps=2 / 5 * every * held_out / p.batch, tf32=0, fp32=flops)


def _forward(part: str, steps: float, w: Weights, tokens: int, length: int, form: str) -> Part:
    layers, d, flops = w.config.num_hidden_layers, w.config.hidden_size, forward_flops(w, tokens, length)
    moved = 4 * w.products + FORWARD_MOVED[form] * layers * tokens * d
    memory = 4 * w.all + 56 * tokens * d
    return Part(part, steps, **{form: flops}, moved=moved, memory=memory, operations=39 * layers)


def plan(p: scales.Distill | scales.Sae) -> pd.DataFrame:
    """What 03 or 04 would take: a row for each part, and their sum; hours are NaN on a GPU that is too small."""
    rows = [
        {"part": part.part, "10^18 FLOPs": part.steps * (part.bf16 + part.tf32 + part.fp32) / 1e18,
         "GPU memory, GiB": part.memory / GIB, "disk, GiB": part.disk / GIB,
         **{f"hours, {name}": part.hours(gpu) for name, gpu in scales.GPUS.items()}}
        for part in (_students(p) if isinstance(p, scales.Distill) else _autoencoders(p))
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    total = table.sum(numeric_only=True, skipna=False)
    total["GPU memory, GiB"] = table["GPU memory, GiB"].max()
    return pd.concat([table, pd.DataFrame([{"part": "all"} | dict(total)])], ignore_index=True)


def as_markdown(table: pd.DataFrame) -> str:
    lines = [f"| | {' | '.join(table.columns[1:])} |", f"|---|{'---:|' * (table.shape[1] - 1)}"]
    for part, *numbers in table.itertuples(index=False):
        cells = ["too large" if np.isnan(n) else f"{n:.2g}" if n < 100 else f"{n:,.0f}" for n in numbers]
        lines.append(f"| {part} | {' | '.join(cells)} |")
    return "\n".join(lines)


def end_with_plan(p: scales.Distill | scales.Sae) -> None:
    """Show the plan and end the notebook with SystemExit, which papermill takes for a good end; nothing is run."""
    display(Markdown(
        f"{as_markdown(plan(p))}\n\nCounted by closed formulas: matrix products at {SUSTAINED:.0%} of the data sheet, "
        f"passes over memory at {STREAMED:.0%}, {LAUNCH * 1e6:g} µs an operation, nothing fused, text read in no time; "
        "jobs side by side divide the hours. *The notebook ends here, as `plan = True` asks.*"
    ))  # fmt: skip
    warnings.filterwarnings("ignore", message="To exit: use")
    raise SystemExit
