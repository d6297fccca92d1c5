"""Every number a notebook runs with: three scales, one parameter class a notebook, and their validation.

A notebook's parameters cell sets plain values; ``None`` means "as the scale has it". ``validate`` fills those in,
refuses names the notebook does not know (papermill only warns of them), and answers bad input with one sentence.
"""

import ast
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from minwidth.errors import ParameterError


class Shape(NamedTuple):
    """What of a teacher must be known before it is loaded."""

    teacher: str
    width: int
    layers: int
    heads: int
    vocabulary: int
    context: int
    shared_keys: bool = False  # several heads to a key


SHAPES = {
    "tiny": Shape("tiny", width=128, layers=4, heads=4, vocabulary=2048, context=128),
    "smollm2": Shape("smollm2", width=576, layers=30, heads=9, vocabulary=49_152, context=2048, shared_keys=True),
    "pythia-410m": Shape("pythia-410m", width=1024, layers=24, heads=16, vocabulary=50_304, context=2048),
}


class Gpu(NamedTuple):
    """A GPU as its maker's data sheet has it (dense arithmetic, no sparsity)."""

    bf16: float  # FLOPs a second, matrix products in bfloat16
    tf32: float  # FLOPs a second, matrix products of float32 numbers rounded to 11 bits
    fp32: float  # FLOPs a second, everything in float32
    bandwidth: float  # bytes a second from and to its memory
    gib: int  # memory


GPUS = {
    "H100": Gpu(bf16=989e12, tf32=495e12, fp32=67e12, bandwidth=3.35e12, gib=80),  # SXM
    "A100": Gpu(bf16=312e12, tf32=156e12, fp32=19.5e12, bandwidth=2.04e12, gib=80),
    "L40S": Gpu(bf16=362e12, tf32=183e12, fp32=91.6e12, bandwidth=0.864e12, gib=48),
    "RTX 4090": Gpu(bf16=165e12, tf32=82.6e12, fp32=82.6e12, bandwidth=1.01e12, gib=24),
}

ONE_THREAD = 256  # teachers up to this width: a second thread costs more than it brings, two processes do not
SMALLEST_HEAD = 16  # Table 8: a student of width 128 has 8 heads of 16

ScaleName = Literal["tiny", "smollm2", "pythia-410m"]
Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[int, Field(gt=0, le=10**9)]
Count = Annotated[int, Field(ge=0, le=10**9)]
Width = Annotated[int, Field(gt=0, le=2**16)]
Rate = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
SEVERAL = Field(min_length=1, max_length=100)


class Parameters(BaseModel):
    """Shared by all notebooks: strict types, no unknown names, nothing changed after validation."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)
    scale: ScaleName

    @model_validator(mode="after")
    def _each_once(self):
        for name, value in self:
            if isinstance(value, list) and (twice := [item for item in value if value.count(item) > 1]):
                raise ValueError(f"{name} names {_shown(twice[0])} twice; give each once")
        return self

    @property
    def shape(self) -> Shape:
        return SHAPES[self.scale]

    @property
    def place(self) -> str:
        """Folder of its tables and figures, the scale's own, or ``other`` where a parameter is not as the scale has it.

        What the scale leaves open (the ``width`` of a single student) may be anything.
        """
        notebook = next(name for name, kind in NOTEBOOKS.items() if kind is type(self))
        own = {name: value for name, value in SCALES[self.scale][notebook].items() if value is not None}
        return self.scale if all(getattr(self, name) == value for name, value in own.items()) else "other"


class Costly(Parameters):
    """Of a notebook that may take days: it tells its costs first, or runs on several devices. No result hangs on it."""

    plan: Annotated[bool, Field(exclude=True)] = False  # show what a run would take, and run nothing
    gpu: Annotated[Literal[tuple(GPUS)], Field(exclude=True)] = "H100"  # that it would run on
    processes: Annotated[int, Field(gt=0, le=1024, exclude=True)] = 1  # devices of this machine that train together


class Theory(Parameters):
    """01_theory."""

    alpha: Share  # share of zeros of a feature
    features: Annotated[int, Field(ge=2, le=10**6)]  # F, features of the teacher
    width: Width  # d_S, the student's width
    zipf_exponent: Annotated[float, Field(ge=0, le=5)]  # importance of feature i is i^-exponent


class Toy(Parameters):
    """02_toy_sweep (paper, section 4 and appendix B)."""

    features: Annotated[list[Annotated[int, Field(ge=2, le=256)]], SEVERAL]  # n
    sparsities: Annotated[list[Share], SEVERAL]  # alpha
    teacher_widths: Annotated[list[Width], SEVERAL]  # d_T
    seeds: Annotated[int, Field(ge=1, le=1000)]  # students a cell
    steps: Annotated[int, Field(ge=10, le=10**6)]  # Adam steps a student
    teacher_seeds: Annotated[int, Field(ge=1, le=1000)]  # students a cell that learn a teacher's outputs
    seed: Seed  # the first of the seeds

    @model_validator(mode="after")
    def _teachers_fit(self):
        if max(self.teacher_widths) > min(self.features):
            raise ValueError(
                f"teacher_widths = {self.teacher_widths} exceed features = {min(self.features)}; give at most that"
            )
        return self


class Sae(Costly):
    """03_sae (paper, section 5 and appendix D)."""

    teacher: str  # scale's teacher, hub name or folder
    revision: str  # pinned commit of a hub name, else empty
    layers: Annotated[list[Count], SEVERAL]  # residual streams read, after that layer
    layer: Count  # the one that predicts floors
    kind: Literal["l1", "topk"]
    lam: Annotated[float, Field(gt=0, le=1000)]  # L1 coefficient, fixed before any student is trained
    lams: Annotated[list[Annotated[float, Field(gt=0, le=1000)]], SEVERAL]  # the sensitivity grid
    topk: Positive  # L0 of the TopK kind
    expansion: Annotated[int, Field(ge=1, le=256)]  # latents a dimension
    tokens: Annotated[int, Field(ge=10_000, le=10**12)]  # distinct training tokens
    steps: Positive
    batch: Positive  # tokens a step
    learning_rate: Rate
    held_out_tokens: Annotated[int, Field(ge=1000, le=10**10)]  # for statistics
    kl_tokens: Annotated[int, Field(ge=100, le=10**9)]  # held-out tokens on which KL in nats is measured
    text: str  # "wheels", or The Pile as "owner/name@commit" or as a folder in its format
    percent: Annotated[float, Field(gt=0, le=100)]  # share of its documents that is read
    length: Annotated[int, Field(ge=8, le=2048)]  # tokens a block
    kappa: Annotated[float, Field(ge=0, le=10)]  # of the log-capacity law, as the toy model has it
    doubling: bool  # train the default once more, for twice the steps
    revive: Count  # steps after which silent latents start again; 0: never, as in the paper
    widths: Annotated[list[Width], SEVERAL]  # students to predict
    seed: Seed

    @model_validator(mode="after")
    def _layers_exist(self):
        if self.teacher == self.shape.teacher:
            for layer in [self.layer, *self.layers]:
                if layer > self.shape.layers:
                    raise ValueError(
                        f"layer = {layer} does not exist: {self.teacher} has layers 1 to {self.shape.layers} "
                        "(0 is the embedding)"
                    )
            if self.kind == "topk" and self.topk > self.expansion * self.shape.width:
                raise ValueError(
                    f"topk = {self.topk} exceeds the {self.expansion * self.shape.width} latents; give at most that"
                )
        check_teacher(self.teacher, self.revision)
        check_text(self.text)
        return self


class Distill(Costly):
    """04_distill (paper, section 6 and appendices C and E)."""

    width: Width | None  # one student of this width; None: the whole ladder
    widths: Annotated[list[Width], SEVERAL]  # the ladder
    random_widths: Annotated[list[Width], SEVERAL] | None  # of its random students, if not all
    ladders: Annotated[list[Literal["random", "width_alone"]], SEVERAL]
    seeds: Annotated[list[Seed], SEVERAL]
    steps: Annotated[int, Field(ge=10, le=10**7)]  # the doubling test trains twice as long again
    batch: Positive  # blocks a step
    parts: Positive  # in which a batch is computed, for a device that cannot hold it at once
    length: Annotated[int, Field(ge=8, le=2048)]  # tokens a block
    text: str  # "wheels", or The Pile as "owner/name@commit" or as a folder in its format
    percent: Annotated[float, Field(gt=0, le=100)]  # share of the documents that is read
    learning_rate: Rate  # peak, for a student as wide as its teacher that starts from random weights
    rate_exponent: Annotated[float, Field(ge=0, le=1)]  # narrower ones get (d_T / d_S) to this power times that
    cut_rate: Annotated[float, Field(gt=0, le=1)]  # share of it for students cut from the teacher's own weights
    warmup: Count
    weight_decay: Annotated[float, Field(ge=0, lt=1)]
    temperature: Annotated[float, Field(gt=0, le=100)]
    objective: Literal["forward", "reverse", "hidden", "cross_entropy"]  # distill.objective
    evaluations: Annotated[int, Field(ge=2, le=10**6)]  # on held-out documents, evenly spaced
    held_out_blocks: Positive  # blocks an evaluation reads
    floor_tolerance: Share  # a point is a floor if doubling the steps moves it by less than this share

    @model_validator(mode="after")
    def _widths_fit(self):
        for width in [*self.widths, *(self.random_widths or []), *([self.width] if self.width else [])]:
            if width > self.shape.width:
                raise ValueError(
                    f"width = {width} is wider than the teacher of {self.scale}; give at most {self.shape.width}, "
                    "or a scale with a wider teacher"
                )
            if "random" in self.ladders and width in self.widths_of("random"):
                check_width(width, self.shape.width, self.shape.heads, self.shape.shared_keys)
            elif width < 2:
                raise ValueError(f"width = {width} leaves no direction; give at least 2")
        if self.length > self.shape.context:
            raise ValueError(f"length = {self.length} exceeds the teacher's context; give at most {self.shape.context}")
        check_text(self.text)
        return self

    def widths_of(self, ladder: str) -> list[int]:
        """Widths of one ladder's students, in rising order."""
        some = self.random_widths if ladder == "random" and self.random_widths else self.widths
        return sorted(some if self.width is None else [self.width])

    def longer(self) -> "Distill":
        """The same ladders at more steps, the warm-up stretched along, and what else ``LONGER`` says."""
        changes = dict(LONGER[self.scale])
        times = changes.pop("times")
        return self.model_copy(update={"steps": times * self.steps, "warmup": times * self.warmup} | changes)


class Probe(Parameters):
    """05_probe (paper, section 7)."""

    CONCEPTS: ClassVar[tuple[str, ...]] = ("question", "french", "code", "sport", "legal", "medical")
    concepts: Annotated[list[Literal[CONCEPTS]], SEVERAL]
    text: str  # "wheels", or The Pile as "owner/name@commit" or as a folder in its format
    documents: Positive  # of such a corpus, how many are looked through
    passages: Annotated[int, Field(ge=50, le=10_000)]  # positives, and as many negatives
    layer: Count  # residual stream read, after that layer
    widths: Annotated[list[Width], SEVERAL]  # students probed
    tokens: Annotated[int, Field(ge=8, le=2048)]  # of a passage that the models read
    splits: Annotated[int, Field(ge=1, le=100)]  # 80/20 by document
    train_students: bool  # train a student that 04_distill has not left; else it is left out
    seed: Seed

    @model_validator(mode="after")
    def _fits(self):
        if self.tokens >= self.shape.context:
            raise ValueError(
                f"tokens = {self.tokens} and the one before them exceed the teacher's context; "
                f"give at most {self.shape.context - 1}"
            )
        if self.layer > self.shape.layers:
            raise ValueError(f"layer = {self.layer} does not exist: {self.scale} has layers 1 to {self.shape.layers}")
        for width in self.widths:
            if width > self.shape.width:
                raise ValueError(f"width = {width} is wider than the teacher; give at most {self.shape.width}")
        check_text(self.text)
        return self


class Ledger(Parameters):
    """06_ledger: ``scale`` is the one shown first; every scale with results has its column."""


NOTEBOOKS = {
    "01_theory": Theory,
    "02_toy_sweep": Toy,
    "03_sae": Sae,
    "04_distill": Distill,
    "05_probe": Probe,
    "06_ledger": Ledger,
}

_THEORY = dict(alpha=0.992, features=28_700, width=128, zipf_exponent=1.0)
_TOY = dict(
    features=[10, 20, 40],
    sparsities=[0.80, 0.90, 0.95, 0.99],
    teacher_widths=[3, 5, 8, 10],
    seeds=20,
    steps=6000,
    teacher_seeds=10,
    seed=0,
)
_DISTILL = dict(
    width=None, random_widths=None, parts=1, text="wheels", percent=10.0, weight_decay=0.01, temperature=2.0,
    objective="forward", floor_tolerance=0.02,
)  # fmt: skip
_SAE = dict(revision="", kind="l1", topk=32, text="wheels", percent=10.0, kappa=0.3, doubling=False, revive=0, seed=0)
# The Pile without the subsets that were withdrawn for copyright, at its last commit
PILE = "monology/pile-uncopyrighted@3be90335b66f24456a5d6659d9c8d208c0357119"
_PROBE = dict(concepts=list(Probe.CONCEPTS), text="wheels", documents=2_000_000, seed=0)

# fmt: off
SCALES: dict[str, dict[str, dict[str, Any]]] = {
    "tiny": {
        "01_theory": _THEORY,
        "02_toy_sweep": _TOY,
        "03_sae": _SAE | dict(
            teacher="tiny", layers=[1, 2, 3], layer=2, lam=1.0, lams=[0.1, 0.2, 0.5, 1.0, 3.0, 10.0], expansion=16,
            tokens=150_000, steps=1000, batch=512, learning_rate=1e-2, held_out_tokens=50_000, kl_tokens=8192,
            length=128, doubling=True, widths=[16, 24, 32, 48, 80, 128],
        ),
        "04_distill": _DISTILL | dict(
            widths=[16, 24, 32, 48, 80, 128], ladders=["random", "width_alone"], seeds=[0], steps=140, batch=8,
            length=128, learning_rate=3e-3, rate_exponent=1.0, cut_rate=0.4, warmup=20, evaluations=14,
            held_out_blocks=32,
        ),
        "05_probe": _PROBE | dict(
            passages=500, layer=2, widths=[16, 48, 128], tokens=64, splits=3, train_students=True
        ),
        "06_ledger": {},
    },
    "smollm2": {
        "01_theory": _THEORY,
        "02_toy_sweep": _TOY,
        "03_sae": _SAE | dict(
            teacher="smollm2", layers=[15], layer=15, lam=1.0, lams=[0.3, 1.0, 3.0], expansion=8,
            tokens=40_000, steps=1000, batch=512, learning_rate=3e-3, held_out_tokens=10_000, kl_tokens=1024,
            length=128,
            widths=[128, 256, 384, 512, 576],
        ),
        "04_distill": _DISTILL | dict(
            widths=[128, 256, 384, 512, 576], ladders=["width_alone"], seeds=[0], steps=40, batch=4, length=128,
            learning_rate=1e-4, rate_exponent=0.0, cut_rate=1.0, warmup=4, evaluations=5, held_out_blocks=16,
        ),
        "05_probe": _PROBE | dict(passages=500, layer=15, widths=[128, 512], tokens=64, splits=3, train_students=False),
        "06_ledger": {},
    },
    "pythia-410m": {  # the paper's own settings
        "01_theory": _THEORY,
        "02_toy_sweep": _TOY | dict(teacher_seeds=20),
        "03_sae": _SAE | dict(
            teacher="pythia-410m", layers=[8, 12, 16], layer=12, lam=8e-4,
            lams=[8e-5, 2.5e-4, 8e-4, 2.5e-3, 8e-3, 2.5e-2], expansion=32, tokens=300_000_000, steps=9155,
            batch=32 * 1024, learning_rate=3e-4, held_out_tokens=10_000_000, kl_tokens=65_536,
            text=PILE, percent=100.0, length=1024,
            widths=[128, 256, 512, 768, 1024],
        ),
        "04_distill": _DISTILL | dict(
            widths=[128, 256, 512, 768, 1024], ladders=["random", "width_alone"], seeds=[0, 1], steps=30_000, batch=32,
            length=512, text=PILE, percent=100.0, learning_rate=3e-4, rate_exponent=0.0,
            cut_rate=1.0, warmup=1000, evaluations=60, held_out_blocks=64,
        ),
        "05_probe": _PROBE | dict(
            text=PILE, passages=2000, layer=12, widths=[128, 768, 1024], tokens=256, splits=5,
            train_students=False,
        ),
        "06_ledger": {},
    },
}
# What a job of each rule of the pipeline asks a scheduler for: memory in MB, minutes, and GPUs where one is used. A job
# that runs out of minutes goes on from its checkpoint when it is sent again.
_SMALL = dict(mem_mb=2000, runtime=10)
RESOURCES: dict[str, dict[str, dict[str, int]]] = {
    "tiny": dict(
        theory=_SMALL, toy_sweep=dict(mem_mb=2000, runtime=60), sae=dict(mem_mb=6000, runtime=600),
        students=dict(mem_mb=3000, runtime=600), distill=dict(mem_mb=4000, runtime=600),
        probe=dict(mem_mb=4000, runtime=120), ledger=_SMALL,
    ),
    "smollm2": dict(
        theory=_SMALL, toy_sweep=dict(mem_mb=2000, runtime=60), sae=dict(mem_mb=6000, runtime=600),
        students=dict(mem_mb=6000, runtime=600), distill=dict(mem_mb=6000, runtime=600),
        probe=dict(mem_mb=6000, runtime=120), ledger=_SMALL,
    ),
    "pythia-410m": dict(
        theory=_SMALL, toy_sweep=dict(mem_mb=2000, runtime=60), sae=dict(mem_mb=64_000, runtime=2880, gpu=1),
        students=dict(mem_mb=64_000, runtime=2880, gpu=1), distill=dict(mem_mb=64_000, runtime=600, gpu=1),
        probe=dict(mem_mb=64_000, runtime=240, gpu=1), ledger=_SMALL,
    ),
}

# 03_sae with one choice changed at a time (minwidth.sensitivity): what the measurement starts from, where that is not
# the scale's own, the values of each choice, and the lambdas tried at each.
SENSITIVITY: dict[str, dict[str, Any]] = {
    "tiny": dict(
        base=dict(), lams=SCALES["tiny"]["03_sae"]["lams"],
        layer=[1, 2, 3], expansion=[4, 8, 16, 32], tokens=[37_500, 150_000, 600_000], steps=[500, 1000, 2000, 4000],
        seed=[0, 1, 2],
    ),
    "smollm2": dict(
        base=dict(
            layers=[15], layer=15, lams=[0.1, 0.3, 1.0, 3.0, 10.0], tokens=500_000, steps=2000, held_out_tokens=50_000,
            kl_tokens=2048,
        ),
        lams=[0.1, 0.3, 1.0, 3.0],
        layer=[10, 15, 20], expansion=[8], tokens=[500_000], steps=[2000], seed=[0],  # more than that takes hours
    ),
}
# 04_distill's ladders again (minwidth.controls): ``times`` the scale's steps, twice that for the doubling test, and
# what else differs from the scale's own.
LONGER: dict[str, dict[str, Any]] = {
    "tiny": dict(times=4, seeds=[0, 1, 2]),
    "smollm2": dict(  # random weights want another rate, those cut from the teacher the same as in the notebook
        times=2, evaluations=8, learning_rate=1e-3, cut_rate=0.1, ladders=["random", "width_alone"],
        random_widths=[128, 256],
    ),
    "pythia-410m": dict(times=4, seeds=[0, 1, 2]),
}
# 05_probe with every student of the ladder (python -m minwidth.probe), and at tiny with the paper's number of passages:
# what differs from the scale's own.
EVERY_STUDENT: dict[str, dict[str, Any]] = {
    "tiny": dict(passages=2000, splits=5, widths=SCALES["tiny"]["04_distill"]["widths"]),
    "smollm2": dict(passages=250, widths=SCALES["smollm2"]["04_distill"]["widths"], longer=True),
    "pythia-410m": dict(widths=SCALES["pythia-410m"]["04_distill"]["widths"]),
}
# fmt: on


def heads(width: int, teacher_heads: int, shared_keys: bool = False) -> int:
    """Attention heads of a student: min(teacher's, width / 16), of an even size (paper, Table 8); 0 if that fails.

    Where heads share keys and values, the nearest smaller number that divides the width will do.
    """
    wanted = min(teacher_heads, width // SMALLEST_HEAD)
    least = (wanted + 1) // 2 if shared_keys else wanted
    return next((n for n in range(wanted, least - 1, -1) if n and width % n == 0 and width // n % 2 == 0), 0)


def check_width(width: int, teacher_width: int, teacher_heads: int, shared_keys: bool = False) -> None:
    """Whether the paper's ladder has a student of this width.

    Raises:
        ValueError: it is below 16, above the teacher's or does not divide into heads; names the nearest that work.
    """
    if not SMALLEST_HEAD <= width <= teacher_width:
        raise ValueError(f"width = {width} must lie between {SMALLEST_HEAD} and the teacher's {teacher_width}")
    if not heads(width, teacher_heads, shared_keys):
        allowed = [w for w in range(SMALLEST_HEAD, teacher_width + 1) if heads(w, teacher_heads, shared_keys)]
        near = sorted(sorted(allowed, key=lambda w: abs(w - width))[:2])
        raise ValueError(
            f"width = {width} does not divide into {min(teacher_heads, width // SMALLEST_HEAD)} heads of an even size; "
            f"the nearest widths that work are {' and '.join(map(str, near))}"
        )


def check_teacher(name: str, revision: str | None = None) -> None:
    """Whether ``name`` can be a teacher: a scale's, an existing folder, or a hub model with its commit.

    Raises:
        ValueError: it is none of these; says what is.
    """
    if name in SHAPES or os.path.isdir(os.path.expanduser(name)):
        return
    hub = re.fullmatch(r"(\w[\w.-]*/[\w.-]+)(?:@(\w+))?", name, re.ASCII)
    if not hub:
        raise ValueError(
            f"there is no teacher {_shown(name)}: give {', '.join(map(repr, SHAPES))}, an existing folder, "
            "or a hub model as 'owner/name@commit'"
        )
    commit = revision or hub[2]
    if not re.fullmatch(r"[0-9a-f]{40}", commit or ""):
        raise ValueError(
            f"the hub model {hub[1]!r} needs a pinned revision and has {_shown(commit)}: give the 40-digit commit "
            f"listed at https://huggingface.co/{hub[1]}/commits/main as '{hub[1]}@<commit>' or as revision"
        )


def check_text(name: str) -> None:
    """Whether ``name`` can be a corpus: the wheels, a folder in the Pile's format, or a hub data set.

    Raises:
        ValueError: it is none of these; says what is.
    """
    if name == "wheels" or (os.path.isdir(name) and any(Path(name).glob("*.jsonl.zst"))):
        return
    hub = re.fullmatch(r"(\w[\w.-]*/[\w.-]+)(?:@(\w+))?", name, re.ASCII)
    if not hub:
        raise ValueError(
            f"there is no text {_shown(name)}: give 'wheels', a folder with *.jsonl.zst files, or a hub data set as "
            "'owner/name@commit'"
        )
    if not re.fullmatch(r"[0-9a-f]{40}", hub[2] or ""):
        raise ValueError(
            f"the hub data set {hub[1]!r} needs a pinned revision and has {_shown(hub[2])}: give the 40-digit commit "
            f"listed at https://huggingface.co/datasets/{hub[1]}/commits/main as '{hub[1]}@<commit>'"
        )


def smallest_scale(width: int | None) -> str:
    """The smallest scale whose teacher is at least as wide as ``width``; ``tiny`` if no width is asked for.

    Raises:
        ParameterError: no teacher is that wide.
    """
    for scale, shape in SHAPES.items():
        if width is None or width <= shape.width:
            return scale
    widest = max(SHAPES.values(), key=lambda shape: shape.width)
    raise ParameterError(
        f"width = {_shown(width)} is wider than every teacher; give at most {widest.width} ({widest.teacher})."
    )


def settings(said: Iterable[str]) -> dict[str, Any]:
    """Parameters from a command line: ``name=value`` each, the value in JSON.

    Raises:
        ParameterError: a value that is not JSON.
    """
    found = {}
    for item in said:
        name, _, value = item.partition("=")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            raise ParameterError(
                f"{name} = {value!r} is not a value in JSON; write steps=500 or 'ladders=[\"random\"]'."
            ) from None
    return found


def parameters(notebook: str, scale: str = "tiny", **given: Any) -> Parameters:
    """A notebook's validated parameters: what is ``given`` and not None, the rest from the scale.

    Raises:
        ParameterError: a name or value the notebook cannot take; one sentence.
    """
    if scale not in list(SCALES):  # a list, since what was given may not be hashable
        raise ParameterError(f"scale = {_shown(scale)} is not known; it can be {', '.join(SCALES)}.")
    values = SCALES[scale][notebook] | {name: value for name, value in given.items() if value is not None}
    try:
        return NOTEBOOKS[notebook](scale=scale, **values)
    except ValidationError as error:
        raise ParameterError(_sentence(notebook, error)) from None


def validate(notebook: str, namespace: dict[str, Any]) -> Parameters:
    """Read a notebook's parameters out of its ``globals()`` and validate them.

    A name that papermill injected and the notebook does not know, an ill-typed or an impossible value is a
    ``ParameterError``: nothing has been computed or written by then.
    """
    known = NOTEBOOKS[notebook].model_fields
    check_names(notebook, _injected(namespace.get("In", [])))
    given = {name: namespace[name] for name in known if name in namespace}
    scale = given.pop("scale", None)
    if scale is None:
        width = given.get("width") if notebook == "04_distill" else None
        scale = smallest_scale(width if isinstance(width, int) else None)
    return parameters(notebook, scale, **given)


def check_names(notebook: str, names: Iterable[str]) -> None:
    """Raise ParameterError unless the notebook knows every one of ``names``."""
    known = NOTEBOOKS[notebook].model_fields
    for name in names:
        if name not in known:
            raise ParameterError(f"{notebook} has no parameter {_shown(name)}; it takes {', '.join(known)}.")


def _injected(inputs: list[str]) -> list[str]:
    """Names assigned in the cell that papermill injected last, which starts with ``# Parameters``."""
    cells = [cell for cell in inputs if cell.lstrip().startswith("# Parameters")]
    tree = ast.parse(cells[-1]) if cells else ast.Module(body=[], type_ignores=[])
    targets = (target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets)
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _sentence(notebook: str, error: ValidationError) -> str:
    """The first fault of a pydantic error as one sentence: the value, what is allowed."""
    fault = error.errors()[0]
    if not fault["loc"] or fault["type"] == "value_error":  # raised by a validator of ours, already a sentence
        return f"{notebook}: {fault['msg'].removeprefix('Value error, ')}."
    name = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"{notebook} has no parameter {_shown(name)}; it takes {', '.join(NOTEBOOKS[notebook].model_fields)}."
    wish = fault["msg"].removeprefix("Input ").removeprefix("List ")
    hint = ' (a list is passed with -y, as in -y "widths: [16, 32]")' if fault["type"] == "list_type" else ""
    return f"{notebook}: {name} = {_shown(fault['input'])} {wish}{hint}."


def _shown(value: Any) -> str:
    """A value as Python writes it, on one line and cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text):,} characters)"
