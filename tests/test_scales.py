"""Parameters are taken, or answered with one sentence that names the value, what is allowed and the fix."""

import math
import re
from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minwidth import scales
from minwidth.scales import NOTEBOOKS, SCALES, SHAPES, ParameterError


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_every_scale_has_valid_parameters_for_every_notebook(notebook, scale):
    p = scales.parameters(notebook, scale)
    assert (p.scale, p.place, p.shape) == (scale, scale, SHAPES[scale])
    if notebook == "04_distill":
        assert ForkingPickler.loads(ForkingPickler.dumps(p)) == p, "other processes are given it"
    with pytest.raises(ValueError, match="frozen"):
        p.scale = "tiny"


def test_none_means_as_the_scale_has_it():
    p = scales.validate("04_distill", {"scale": "tiny", "steps": 50, "batch": None, "unrelated": 3})
    assert (p.steps, p.batch) == (50, SCALES["tiny"]["04_distill"]["batch"])


def injected(code, **namespace):
    """The names a notebook has after papermill injected ``code`` behind its parameters cell."""
    exec(code, namespace)
    namespace["In"] = ["", "# a comment\nalpha = 0.99", "# Parameters\nwdith = 3", f"# Parameters\n{code}", "x = 1"]
    return namespace


@pytest.mark.parametrize("name", ["wdith", "Width", "_width", "steps2", "In2"])
def test_an_unknown_injected_name_is_named(name):
    with pytest.raises(ParameterError, match=f"^04_distill has no parameter '{name}'; it takes scale, .*, width, "):
        scales.validate("04_distill", injected(f"{name} = 3\n"))


@pytest.mark.parametrize(
    ("notebook", "given_", "says"),
    [
        ("04_distill", {"width": "512"}, r"width = '512'.*integer"),
        ("04_distill", {"width": 2000}, r"width = 2000 is wider than the teacher, pythia-410m; give at most 1024"),
        ("04_distill", {"width": 10**30}, r"width = 10{30}.*less than or equal"),
        ("04_distill", {"width": "５１２"}, r"width = '５１２'"),
        ("04_distill", {"width": 50, "scale": "tiny"}, r"width = 50 does not divide.*48 and 54"),
        ("04_distill", {"width": 1, "ladders": ["width_alone"]}, r"width = 1 leaves no direction; give at least 2"),
        ("04_distill", {"widths": 64}, r"widths = 64.*list.*-y"),
        ("04_distill", {"widths": "__import__('os').getcwd()"}, r"widths = .*list.*-y"),
        ("04_distill", {"widths": []}, r"widths = \[\].*at least 1"),
        ("04_distill", {"widths": list(range(16, 10_000))}, r"widths = \[16.*characters\).*at most 100"),
        ("04_distill", {"widths": [64, "x"]}, r"widths.1 = 'x'.*integer"),
        ("04_distill", {"ladders": ["narrow"]}, r"ladders.0 = 'narrow'.*'random', 'width_alone'"),
        ("04_distill", {"ladders": ["random", "random"]}, r"ladders names 'random' twice"),
        ("04_distill", {"learning_rate": math.nan}, r"learning_rate = nan"),
        ("04_distill", {"length": 256, "scale": "tiny"}, r"length = 256 exceeds.*at most 128"),
        ("04_distill", {"text": "a\x00b", "scale": "tiny"}, r"no text 'a\\x00b'"),
        ("04_distill", {"scale": "tiny", "warmup": 140}, r"warmup = 140 leaves no step at the peak rate; .* 140"),
        ("04_distill", {"scale": "tiny", "warmup": 140, "decay": 0.5}, r"warmup = 140 .* fewer than 140"),
        ("04_distill", {"scale": "tiny", "parts": 3}, r"parts = 3 do not divide batch = 8"),
        ("01_theory", {"alpha": 10**400}, r"alpha = 1000000"),
        ("01_theory", {"scale": "../../etc"}, r"scale = '../../etc' should be 'tiny', 'smollm2' or 'pythia-410m'"),
        ("01_theory", {"__import__('os').system('x')": 1}, r"has no parameter"),
        ("01_theory", {"notebook": 1}, r"has no parameter 'notebook'"),
        ("01_theory", {"wdith": None}, r"has no parameter 'wdith'"),
        ("02_toy_sweep", {"features": [2]}, r"exceed features = 2"),
        ("03_sae", {"layer": 5, "scale": "tiny"}, r"layer = 5 does not exist: tiny has layers 1 to 4"),
        ("03_sae", {"kind": "topk", "topk": 10**6}, r"topk = 1000000 exceeds the 2048 latents"),
        ("03_sae", {"teacher": "line\nbreak"}, r"no teacher 'line\\nbreak'"),
        ("05_probe", {"layer": 31, "scale": "smollm2"}, r"layer = 31 does not exist: smollm2 has layers 1 to 30"),
        ("05_probe", {"widths": [256], "scale": "tiny"}, r"width = 256 is wider.*at most 128"),
        ("05_probe", {"tokens": 2048}, r"give at most 127"),
        ("06_ledger", {"scale": ["tiny"]}, r"scale = \['tiny'\] should be 'tiny'"),
        ("07_known_language", {"widths": [99]}, r"widths = \[99\] exceed features = \d+, the teacher.s width"),
        ("08_your_model", {"contexts": 99_999}, r"contexts = 99999 exceeds the tokens of basis_blocks = 128"),
    ],
)
def test_bad_parameters_are_answered_with_one_sentence(notebook, given_, says):
    with pytest.raises(ParameterError) as refused:
        scales.parameters(notebook, **given_)
    said = str(refused.value)
    assert re.search(says, said) and said.endswith(".") and "\n" not in said and len(said) < 700, said
    assert not re.search(r"[.!?] [A-Z]", said), "one sentence"
    assert refused.value._render_traceback_() == [f"ParameterError: {said}"]


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ({"widths": [8, 32]}, r"widths = \[8, 32\] must lie between 2 and 31, below the teacher's 32"),
        ({"length": 128}, "length = 128 exceeds the teacher's context; give at most 64"),
    ],
)
def test_what_a_teacher_cannot_have_is_said_once_it_is_known(given_, says):
    config = SimpleNamespace(hidden_size=32, max_position_embeddings=64)
    assert scales.parameters("08_your_model", length=64).widths_of(config) == [4, 8, 16, 24, 28]
    with pytest.raises(ParameterError, match=says):
        scales.parameters("08_your_model", **{"length": 64} | given_).widths_of(config)


junk = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers())
fields = [(notebook, name) for notebook, kind in NOTEBOOKS.items() for name in kind.model_fields]


@given(st.sampled_from(fields), junk)
def test_any_value_is_taken_or_answered_with_one_sentence(field, value):
    notebook, name = field
    try:
        scales.validate(notebook, {name: value})
    except ParameterError as error:
        assert str(error).endswith(".") and "\n" not in str(error)


@pytest.mark.parametrize(
    ("width", "scale"),
    [(None, "tiny"), (16, "tiny"), (128, "tiny"), (129, "smollm2"), (512, "smollm2"), (1024, "pythia-410m")],
)
def test_a_width_alone_chooses_the_smallest_scale_whose_teacher_is_wide_enough(width, scale):
    ladders = ["width_alone"]
    assert scales.validate("04_distill", {"scale": None, "width": width, "ladders": ladders}).scale == scale


def test_another_teacher_has_students_of_its_own_widths_unless_they_are_given():
    p = scales.parameters("04_distill", "tiny", teacher="smollm2")
    assert (p.widths, p.ladders, p.length) == ([72, 144, 288, 432, 576], ["width_alone", "head"], 128)
    usual = scales.SCALES["tiny"]["04_distill"]
    given_ = {name: usual[name] for name in ("widths", "ladders")}
    p = scales.parameters("04_distill", "tiny", teacher="smollm2", **given_)
    assert {name: getattr(p, name) for name in given_} == given_
    p = scales.parameters("03_sae", "tiny", teacher="smollm2", layer=30, widths=[16])
    assert (p.layers, p.widths, p.kl_tokens) == ([30], [16], 5461)


def test_a_teacher_of_the_study_brings_its_own_scale():
    assert scales.validate("08_your_model", injected("teacher = 'smollm2'\n")).scale == "smollm2"
    assert scales.validate("08_your_model", injected("teacher = 'owner/name'\n")).scale == "tiny"


@pytest.mark.parametrize(
    ("notebook", "changes", "place"),
    [
        ("04_distill", {"scale": "smollm2", "width": 512}, "smollm2"),  # which is left open
        ("04_distill", {"scale": "smollm2", "width": 512, "steps": 20}, "other"),
        ("04_distill", {"objective": "reverse"}, "other"),
        ("03_sae", {"lam": 2.0}, "other"),
        ("08_your_model", {"target": 0.5}, "other"),
    ],
)
def test_only_a_scale_as_it_stands_has_its_folder(notebook, changes, place):
    assert scales.parameters(notebook, **changes).place == place


@pytest.mark.parametrize("said", ["[16, 32]", "16, 32", "(16, 32)", [16, 32]])
def test_known_injected_names_are_taken_and_a_list_may_come_as_text(said):
    """As papermill's ``-p widths "[16, 32]"`` gives it."""
    given = injected(f"widths = {said!r}\nwidth = 64\nscale = 'tiny'\n", width=None, scale=None)
    p = scales.validate("04_distill", given)
    assert (p.widths, p.width, p.scale) == ([16, 32], 64, "tiny")


@pytest.mark.parametrize(
    ("said", "value"),
    [("500", 500), ('["random"]', ["random"]), ("reverse", "reverse"), ("1e-3", 0.001), ("lr=1, x", "lr=1, x")],
)
def test_settings_of_a_command_line_are_json_or_text(said, value):
    assert scales.settings([f"name={said}"]) == {"name": value}
