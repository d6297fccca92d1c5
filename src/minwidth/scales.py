"""Every parameter of every notebook, its meaning, kind and value at three scales, is a line of ``scales.yaml``.

A notebook's parameters cell sets plain values; ``None`` means "as the scale has it". ``validate`` fills those in,
refuses names the notebook does not know (papermill only warns of them), and answers bad input with one sentence.
"""

import ast
import functools
import json
import os
import re
from collections import Counter, namedtuple
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, create_model, model_validator

from minwidth.errors import ParameterError
from minwidth.text import files as text_files

_DATA = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
Shape = namedtuple("Shape", "teacher width layers heads vocabulary context shared_keys", defaults=[False])
Gpu = namedtuple("Gpu", "bf16 tf32 fp32 bandwidth gib")
SHAPES = {name: Shape(**shape) for name, shape in _DATA["shapes"].items()}
GPUS = {name: Gpu(**gpu) for name, gpu in _DATA["gpus"].items()}
FLOORS, CONTROLS = _DATA["floors"], _DATA["controls"]
SCALES: dict[str, dict[str, dict[str, Any]]] = {
    scale: {
        notebook: {name: row[scale] if scale in row else row["all"] for name, row in rows.items()}
        for notebook, rows in _DATA["notebooks"].items()
    }
    for scale in SHAPES
}
ONE_THREAD = 256  # teachers up to this width: a second thread costs more than it brings, two processes do not
SMALLEST_HEAD = 16  # Table 8: a student of width 128 has 8 heads of 16
LONGEST = 2**20  # tokens, of a teacher whose architecture has no limit
EIGHTHS = (1, 2, 4, 6, 8)  # of its width, the students of a teacher that is no scale's
PREDICTED = (1, 2, 3, 4, 6, 8)  # eighths of its width, the students that 03 predicts for such a teacher
LOGITS = 2**28  # of such a teacher, for one KL: with a quarter of a million words, 1,024 tokens

# ------------------------------------------------------------------------------------------- what a parameter may be


def heads(width: int, teacher_heads: int, shared_keys: bool = False) -> int:
    """Attention heads of a student: min(teacher's, width / 16), of an even size (paper, Table 8); 0 if that fails.

    Where heads share keys and values, the nearest smaller number that divides the width will do.
    """
    wanted = min(teacher_heads, width // SMALLEST_HEAD)
    least = (wanted + 1) // 2 if shared_keys else wanted
    return next((n for n in range(wanted, least - 1, -1) if n and width % n == 0 and width // n % 2 == 0), 0)


def check_width(width: int, teacher_width: int, teacher_heads: int, shared_keys: bool = False) -> None:
    """Raise ValueError unless the paper's ladder has a student of this width; names the nearest that work."""
    if not SMALLEST_HEAD <= width <= teacher_width:
        raise ValueError(f"width = {width} must lie between {SMALLEST_HEAD} and the teacher's {teacher_width}")
    if not heads(width, teacher_heads, shared_keys):
        allowed = [w for w in range(SMALLEST_HEAD, teacher_width + 1) if heads(w, teacher_heads, shared_keys)]
        near = " and ".join(map(str, sorted(sorted(allowed, key=lambda w: abs(w - width))[:2])))
        wanted = f"{min(teacher_heads, width // SMALLEST_HEAD)} heads of an even size"
        raise ValueError(f"width = {width} does not divide into {wanted}; the nearest widths that work are {near}")


@functools.cache
def shape_of(teacher: str, revision: str | None = None) -> Shape:
    """What must be known of any teacher before it is loaded; ParameterError as ``models.load_config``."""
    if teacher in SHAPES:
        return SHAPES[teacher]
    from minwidth import models  # which reads this module

    config = models.load_config(teacher, revision)
    sizes = config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.vocab_size
    context = getattr(config, "max_position_embeddings", None) or LONGEST
    return Shape(teacher, *sizes, context, hasattr(config, "num_key_value_heads"))


def check_teacher(name: str) -> str:
    """``name`` if it can be a teacher: a scale's, a folder, a GGUF file, or a hub model; ValueError says what can."""
    place = os.path.expanduser(name)
    there = name in SHAPES or os.path.isdir(place) or (name.endswith(".gguf") and os.path.isfile(place))
    hub = re.fullmatch(r"\w[\w.-]*/[\w.-]+(@[\w.-]+)?", name, re.ASCII)
    if not there and (not hub or name.endswith(".gguf")):
        raise ValueError(
            f"there is no teacher {_shown(name)}: give {', '.join(map(repr, SHAPES))}, an existing folder, a .gguf "
            "file, or a hub model as 'owner/name' or 'owner/name@commit'"
        )
    return name


def check_text(name: str) -> str:
    """``name`` if it can be a text, as ``text.documents`` takes it; ValueError says what can."""
    if name == "wheels" or (os.path.isdir(name) and text_files(name)[1]):
        return name
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
    return name


def _list(value: Any) -> Any:
    """A list that was written as text, as ``papermill -p widths "[16, 32]"`` gives it; anything else as it is."""
    read = value
    with suppress(ValueError, SyntaxError):
        read = ast.literal_eval(value) if isinstance(value, str) else value
    return list(read) if isinstance(read, tuple | list) else value


def _each_once(value: list, info) -> list:
    for item, times in Counter(value).items():
        if times > 1:
            raise ValueError(f"{info.field_name} names {_shown(item)} twice; give each once")
    return value


TYPES = {"int": int, "float": float, "str": str, "bool": bool}
TYPES |= {"teacher": Annotated[str, AfterValidator(check_teacher)], "text": Annotated[str, AfterValidator(check_text)]}


def _kind(row: dict[str, Any]) -> Any:
    """The type that pydantic holds a parameter to."""
    said = row.get("is") or row["several"]
    if isinstance(said, list):
        kind = Literal[tuple(said)]
    else:
        bounds = dict(said if isinstance(said, dict) else _DATA["kinds"][said])
        kind = Annotated[TYPES[bounds.pop("type")], Field(**bounds)]
    if "several" in row:
        length = Field(min_length=row.get("least", 1), max_length=100)
        kind = Annotated[list[kind], BeforeValidator(_list), length, AfterValidator(_each_once)]
    return kind | None if row.get("open") else kind


# ------------------------------------------------------------------------------------------------ one class a notebook

NOTEBOOKS: dict[str, type["Parameters"]] = dict.fromkeys(_DATA["notebooks"])


def of(notebook: str) -> Callable[[type["Parameters"]], type["Parameters"]]:
    """Give a class the parameters of a notebook as its fields."""

    def build(base: type["Parameters"]) -> type["Parameters"]:
        fields = {name: (_kind(row), ...) for name, row in _DATA["notebooks"][notebook].items()}
        NOTEBOOKS[notebook] = create_model(base.__name__, __base__=base, __module__=__name__, **fields)
        return NOTEBOOKS[notebook]

    return build


class Parameters(BaseModel):
    """Shared by all notebooks: strict types, no unknown names, nothing changed after validation."""

    model_config = {"strict": True, "extra": "forbid", "frozen": True, "allow_inf_nan": False}
    scale: Literal[tuple(SCALES)]

    @property
    def shape(self) -> Shape:
        return SHAPES[self.scale]

    @property
    def place(self) -> str:
        """Folder of its tables and figures, the scale's own, or ``other`` where a parameter is not as the scale has it.

        The ``width`` of a single student may be anything: its tables have names of their own.
        """
        notebook = next(name for name, kind in NOTEBOOKS.items() if type(self) is kind)
        own = SCALES[self.scale][notebook].items()
        return self.scale if all(name == "width" or getattr(self, name) == value for name, value in own) else "other"

    def check_widths(self, widths: Iterable[int]) -> None:
        for width in widths:
            if width > self.shape.width:
                most = f"give at most {self.shape.width}, or a scale with a wider teacher"
                raise ValueError(f"width = {width} is wider than the teacher, {self.shape.teacher}; {most}")

    def check_layers(self, layers: Iterable[int]) -> None:
        for layer in layers:
            if layer > self.shape.layers:
                has = f"{self.shape.teacher} has layers 1 to {self.shape.layers} (0 is the embedding)"
                raise ValueError(f"layer = {layer} does not exist: {has}")


class Costly(Parameters):
    """Of a notebook that may take days: it tells its costs first, or runs on several devices. No result hangs on it."""

    plan: Annotated[bool, Field(exclude=True)] = False  # show what a run would take, and run nothing
    processes: Annotated[int, Field(gt=0, le=1024, exclude=True)] = 1  # devices of this machine that train together

    @property
    def shape(self) -> Shape:
        return shape_of(self.teacher, getattr(self, "revision", None) or None)

    def check_length(self) -> None:
        if self.length > self.shape.context:
            raise ValueError(f"length = {self.length} exceeds the teacher's context; give at most {self.shape.context}")


for _notebook in ("01_theory", "06_ledger"):
    of(_notebook)(Parameters)


@of("02_toy_sweep")
class Toy(Parameters):
    @model_validator(mode="after")
    def _fits(self):
        if max(self.teacher_widths) > min(self.features):
            most = min(self.features)
            raise ValueError(f"teacher_widths = {self.teacher_widths} exceed features = {most}; give at most that")
        return self


@of("03_sae")
class Sae(Costly):
    @model_validator(mode="after")
    def _fits(self):
        self.check_layers([self.layer, *self.layers])
        self.check_widths(self.widths)
        self.check_length()
        latents = self.expansion * self.shape.width
        if self.kind == "topk" and self.topk > latents:
            raise ValueError(f"topk = {self.topk} exceeds the {latents} latents; give at most that")
        return self


@of("04_distill")
class Distill(Costly):
    @model_validator(mode="after")
    def _fits(self):
        widths = [*self.widths, *(self.random_widths or []), *([self.width] if self.width else [])]
        self.check_widths(widths)
        for width in widths:
            if "random" in self.ladders and width in self.widths_of("random"):
                check_width(width, self.shape.width, self.shape.heads, self.shape.shared_keys)
            elif width < 2:
                raise ValueError(f"width = {width} leaves no direction; give at least 2")
        self.check_length()
        at_peak = self.steps  # of the shortest run; with the cosine the warm-up is as much shorter
        if self.decay is not None:
            at_peak = int((1 - self.decay) * self.steps * (1 if self.doubled else 2))
        if self.warmup >= at_peak:
            raise ValueError(f"warmup = {self.warmup} leaves no step at the peak rate; give fewer than {at_peak}")
        if self.batch % self.parts:
            raise ValueError(f"parts = {self.parts} do not divide batch = {self.batch}; give a divisor of it")
        return self

    def widths_of(self, ladder: str) -> list[int]:
        """Widths of one ladder's students, in rising order."""
        some = self.random_widths if ladder == "random" and self.random_widths else self.widths
        if self.width is None:
            return sorted(some)
        return [self.width] if some is self.widths or self.width in some else []


@of("05_probe")
class Probe(Parameters):
    CONCEPTS: ClassVar = tuple(SCALES["tiny"]["05_probe"]["concepts"])

    @model_validator(mode="after")
    def _fits(self):
        if self.tokens >= self.shape.context:
            most = f"give at most {self.shape.context - 1}"
            raise ValueError(f"tokens = {self.tokens} and the one before them exceed the teacher's context; {most}")
        self.check_layers([self.layer])
        self.check_widths(self.widths)
        return self


@of("07_known_language")
class KnownLanguage(Parameters):
    @model_validator(mode="after")
    def _fits(self):
        if max(self.widths) > self.features:
            raise ValueError(
                f"widths = {self.widths} exceed features = {self.features}, the teacher's width; give at most that"
            )
        return self


@of("08_your_model")
class YourModel(Parameters):
    @model_validator(mode="after")
    def _fits(self):
        for contexts, blocks in (("contexts", "basis_blocks"), ("held_out_contexts", "blocks")):
            wanted, count = getattr(self, contexts), getattr(self, blocks)
            if wanted and wanted > count * self.length:
                most = f"the tokens of {blocks} = {count} blocks; give at most {count * self.length}"
                raise ValueError(f"{contexts} = {wanted} exceeds {most}")
        return self

    def widths_of(self, config: Any) -> list[int]:
        """The students' widths, or eighths of the teacher's, whose ``config`` is known once it is loaded.

        Raises:
            ParameterError: one is not below the teacher's, where a student has nothing to lose, or a block is longer
                than its context.
        """
        d, context = config.hidden_size, getattr(config, "max_position_embeddings", None) or self.length
        widths = sorted(self.widths or {max(2, d * eighths // 8) for eighths in self.eighths})
        if not 2 <= widths[0] <= widths[-1] < d:
            raise ParameterError(f"widths = {widths} must lie between 2 and {d - 1}, below the teacher's {d}.")
        if self.length > context:
            raise ParameterError(f"length = {self.length} exceeds the teacher's context; give at most {context}.")
        return widths


# --------------------------------------------------------------------------------------------------------- validation


def parameters(notebook: str, /, scale: str | None = None, **given: Any) -> Parameters:
    """A notebook's validated parameters: what is ``given`` and not None, the rest from the scale.

    Args:
        scale: if None, the smallest whose teacher is as wide as 04's ``width``, 08's ``teacher``, else ``tiny``.

    Raises:
        ParameterError: a name or value the notebook cannot take; one sentence.
    """
    if scale is None:
        width = given.get("width") if notebook == "04_distill" else None
        wide_enough = (name for name, shape in SHAPES.items() if not isinstance(width, int) or width <= shape.width)
        scale = next(wide_enough, list(SHAPES)[-1])
        if notebook == "08_your_model" and given.get("teacher") in list(SHAPES):  # a list: it may not be hashable
            scale = given["teacher"]
    own, known = _usual(notebook, scale, given) if scale in list(SCALES) else {}, NOTEBOOKS[notebook].model_fields
    values = own | {name: value for name, value in given.items() if value is not None or name not in known}
    try:
        return NOTEBOOKS[notebook].model_validate({"scale": scale} | values)
    except ValidationError as error:
        raise ParameterError(_sentence(notebook, error)) from None


def _usual(notebook: str, scale: str, given: dict[str, Any]) -> dict[str, Any]:
    """What a notebook's parameters are if nothing is said: the scale's values, or what fits another teacher."""
    own, name, revision = SCALES[scale][notebook], given.get("teacher"), given.get("revision")
    if notebook not in ("03_sae", "04_distill") or not isinstance(name, str) or name == own["teacher"]:
        return own
    try:
        shape = shape_of(check_teacher(name), revision if revision and isinstance(revision, str) else None)
    except ValueError:  # validation will say so
        return own
    own = own | {"length": min(own["length"], shape.context)}
    if notebook == "03_sae":
        layer = own["layer"] if given.get("layer") is None else given["layer"]
        own |= {"layers": [layer], "widths": [round(shape.width * n / 8) for n in PREDICTED]}
        return own | {"kl_tokens": min(own["kl_tokens"], LOGITS // shape.vocabulary)}
    widths = sorted({max(2, shape.width * n // 8) for n in EIGHTHS})
    return own | {"ladders": ["width_alone", "head"], "widths": widths, "random_widths": None, "doubled": []}


def validate(notebook: str, namespace: dict[str, Any]) -> Parameters:
    """Read a notebook's parameters out of its ``globals()`` and validate them.

    A name that papermill injected and the notebook does not know is a ``ParameterError``, as is an ill-typed or an
    impossible value: nothing has been computed or written by then.
    """
    cells = [cell for cell in namespace.get("In", []) if cell.lstrip().startswith("# Parameters")]
    injected = re.findall(r"^(\w+) =", cells[-1], re.MULTILINE) if cells else []
    names = [*NOTEBOOKS[notebook].model_fields, *injected]
    return parameters(notebook, **{name: namespace[name] for name in names if name in namespace})


def settings(said: Iterable[str]) -> dict[str, Any]:
    """Parameters from a command line: ``name=value`` each, the value in JSON, or else a text."""
    found: dict[str, Any] = {}
    for item in said:
        name, _, found[name] = item.partition("=")
        if name == "scale":
            raise ParameterError("scale is no parameter to set; give it with --scale.")
        with suppress(json.JSONDecodeError):
            found[name] = json.loads(found[name])
    return found


def _sentence(notebook: str, error: ValidationError) -> str:
    """The first fault of a pydantic error as one sentence: the value, what is allowed."""
    fault = error.errors()[0]
    if fault["type"] == "value_error":  # raised by a validator of ours, already a sentence
        return f"{notebook}: {fault['msg'].removeprefix('Value error, ').removesuffix('.')}."
    name = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        return f"{notebook} has no parameter {_shown(name)}; it takes {', '.join(NOTEBOOKS[notebook].model_fields)}."
    wish = fault["msg"].removeprefix("Input ").removeprefix("List ")
    hint = ' (a list is passed with -y, as in -y "widths: [16, 32]")' if fault["type"] == "list_type" else ""
    return f"{notebook}: {name} = {_shown(fault['input'])} {wish}{hint}."


def _shown(value: Any) -> str:
    """A value as Python writes it, on one line and cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text):,} characters)"
