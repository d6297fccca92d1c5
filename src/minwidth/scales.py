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

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from minwidth.errors import ParameterError
from minwidth.text import files as text_files


class Shape(NamedTuple):
    """What of a teacher must be known before it is loaded."""

    teacher: str
    width: int
    layers: int
    heads: int
    vocabulary: int
    context: int
    shared_keys: bool = False  # several heads to a key


class Gpu(NamedTuple):
    """A GPU as its maker's data sheet has it."""

    bf16: float  # FLOPs a second, matrix products in bfloat16
    tf32: float  # FLOPs a second, matrix products of float32 numbers rounded to 11 bits
    fp32: float  # FLOPs a second, everything in float32
    bandwidth: float  # bytes a second from and to its memory
    gib: int  # memory


_NUMBERS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
SHAPES = {name: Shape(**shape) for name, shape in _NUMBERS["shapes"].items()}
GPUS = {name: Gpu(**gpu) for name, gpu in _NUMBERS["gpus"].items()}
SCALES: dict[str, dict[str, dict[str, Any]]] = {
    scale: {name: of["all"] | of.get(scale, {}) for name, of in _NUMBERS["notebooks"].items()} for scale in SHAPES
}
SENSITIVITY: dict[str, dict[str, Any]] = _NUMBERS["sensitivity"]
LONGER: dict[str, dict[str, Any]] = _NUMBERS["longer"]
EVERY_STUDENT: dict[str, dict[str, Any]] = _NUMBERS["every_student"]
PILE: str = _NUMBERS["pile"]

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

    @model_validator(mode="before")
    @classmethod
    def _lists_from_text(cls, given: dict[str, Any]) -> dict[str, Any]:
        """``papermill -p widths "[16, 32]"`` gives text."""
        return {name: _list(value) if _is_list(cls, name) else value for name, value in given.items()}

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
    doubling: bool  # train the default once more, for twice the steps
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
        check_teacher(self.teacher)
        check_text(self.text)
        return self


class Distill(Costly):
    """04_distill (paper, section 6 and appendices C and E)."""

    width: Width | None  # one student of this width; None: the whole ladder
    widths: Annotated[list[Width], SEVERAL]  # the ladder
    random_widths: Annotated[list[Width], SEVERAL] | None  # of its random students, if not all
    ladders: Annotated[list[Literal["random", "width_alone", "head"]], SEVERAL]
    doubled: list[Literal["random", "width_alone", "head"]]  # ladders trained for half their steps too
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
    objective: Literal["forward", "reverse", "hidden", "cross_entropy"]  # students.objective
    evaluations: Annotated[int, Field(ge=2, le=10**6)]  # on held-out documents, evenly spaced
    held_out_blocks: Positive  # blocks an evaluation reads
    layers: Positive | None  # of random students, if not the teacher's

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


class YourModel(Parameters):
    """08_your_model: any teacher, and how much a student of each width must or will lose."""

    teacher: str  # scale's teacher, folder, .gguf file or hub name
    revision: str  # commit of a hub name, else empty: its current one
    text: str  # "wheels", or as 04 takes it
    percent: Annotated[float, Field(gt=0, le=100)]  # share of its documents that is read
    length: Annotated[int, Field(ge=8, le=8192)]  # tokens a block
    temperature: Annotated[float, Field(gt=0, le=100)]  # of both distributions, in all that is called KL
    target: Annotated[float, Field(gt=0, le=100)]  # nats per token: the question is how wide a student must be for it
    widths: Annotated[list[Width], SEVERAL] | None  # None: ``eighths`` of the teacher's
    eighths: Annotated[list[Annotated[int, Field(ge=1, le=7)]], SEVERAL]
    basis_blocks: Positive  # training blocks, for principal directions, word frequencies and contexts
    blocks: Positive  # held-out blocks, on which students are measured
    contexts: Positive  # training tokens that the floor's unembedding is fitted to
    held_out_contexts: Positive  # tokens of its upper end
    words: Positive  # likeliest words that its lower end looks at
    starts: Annotated[int, Field(ge=1, le=100)]  # minimisations of the lower end
    floor_steps: Positive  # at most, of each minimisation
    seed: Seed

    @model_validator(mode="after")
    def _fits(self):
        for contexts, blocks in (("contexts", "basis_blocks"), ("held_out_contexts", "blocks")):
            if getattr(self, contexts) > getattr(self, blocks) * self.length:
                raise ValueError(
                    f"{contexts} = {getattr(self, contexts)} exceeds the tokens of {blocks} = {getattr(self, blocks)} "
                    f"blocks; give at most {getattr(self, blocks) * self.length}"
                )
        check_teacher(self.teacher)
        check_text(self.text)
        return self


NOTEBOOKS = {
    "01_theory": Theory,
    "02_toy_sweep": Toy,
    "03_sae": Sae,
    "04_distill": Distill,
    "05_probe": Probe,
    "06_ledger": Ledger,
    "08_your_model": YourModel,
}


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


def check_teacher(name: str) -> None:
    """Whether ``name`` can be a teacher: a scale's, a folder, a GGUF file, or a hub model, with its commit or without.

    Raises:
        ValueError: it is none of these; says what is.
    """
    place = os.path.expanduser(name)
    if name in SHAPES or os.path.isdir(place) or (name.endswith(".gguf") and os.path.isfile(place)):
        return
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+(@[\w.-]+)?", name, re.ASCII) or name.endswith(".gguf"):
        raise ValueError(
            f"there is no teacher {_shown(name)}: give {', '.join(map(repr, SHAPES))}, an existing folder, a .gguf "
            "file, or a hub model as 'owner/name' or 'owner/name@commit'"
        )


def check_text(name: str) -> None:
    """Whether ``name`` can be a text (``text.documents``): the wheels, a folder with files of one kind, a hub data set.

    Raises:
        ValueError: it is none of these; says what is.
    """
    if name == "wheels" or (os.path.isdir(name) and text_files(name)[1]):
        return
    hub = re.fullmatch(r"(\w[\w.-]*/[\w.-]+)(?::[\w.-]+)?(?:@(\w+))?", name, re.ASCII)
    if not hub:
        raise ValueError(
            f"there is no text {_shown(name)}: give 'wheels', a folder with .txt, .jsonl, .jsonl.zst, .jsonl.gz or "
            ".parquet files, or a hub data set as 'owner/name@commit'"
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
        if notebook == "08_your_model" and given.get("teacher") in list(SCALES):  # a list: it may not be hashable
            scale = given["teacher"]
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


def _is_list(kind: type[Parameters], name: str) -> bool:
    return name in kind.model_fields and "list" in str(kind.model_fields[name].annotation)


def _list(value: Any) -> Any:
    """A list that was written as text; anything else as it is."""
    try:
        read = ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError):
        return value
    return list(read) if isinstance(read, tuple | list) else value


def _shown(value: Any) -> str:
    """A value as Python writes it, on one line and cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text):,} characters)"
