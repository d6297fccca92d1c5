import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minwidth import scales
from minwidth.scales import NOTEBOOKS, SCALES, SHAPES, ParameterError


def one_sentence(text: str) -> bool:
    return text.endswith(".") and "\n" not in text and len(text) < 700 and not re.search(r"[.!?] [A-Z]", text)


LONG = "x" * 10_000


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_every_scale_has_valid_parameters_for_every_notebook(notebook, scale):
    parameters = scales.parameters(notebook, scale)
    assert parameters.scale == scale
    assert parameters.shape is SHAPES[scale]


def test_none_means_as_the_scale_has_it():
    given_ = scales.validate("04_distill", {"scale": "tiny", "steps": 50, "batch": None, "unrelated": 3})
    assert given_.steps == 50
    assert given_.batch == SCALES["tiny"]["04_distill"]["batch"]


def test_parameters_cannot_be_changed_afterwards():
    with pytest.raises(ValueError, match="frozen"):
        scales.parameters("01_theory").alpha = 0.5


def injected(code, **namespace):
    """The names a notebook has after papermill injected ``code`` behind its parameters cell."""
    exec(code, namespace)
    namespace["In"] = ["", "# a comment\nalpha = 0.99", f"# Parameters\n{code}"]
    return namespace


@pytest.mark.parametrize("name", ["wdith", "Width", "_width", "steps2", "In2"])
def test_an_unknown_injected_name_is_named(name):
    with pytest.raises(ParameterError, match=f"^04_distill has no parameter '{name}'; it takes scale, .*, width, "):
        scales.validate("04_distill", injected(f"{name} = 3\n"))


def test_known_injected_names_are_taken():
    parameters = scales.validate("04_distill", injected("width = 64\nscale = 'tiny'\n", width=None, scale=None))
    assert parameters.width == 64


def test_only_what_was_injected_last_is_judged():
    namespace = injected("width = 64\n")
    namespace["In"] = ["", "# Parameters\nwdith = 3", "# Parameters\nwidth = 64", "helper = 1"]
    assert scales.validate("04_distill", namespace).width == 64


@pytest.mark.parametrize(
    ("notebook", "given_", "says"),
    [
        ("04_distill", {"width": "512"}, r"width = '512'.*integer"),
        ("04_distill", {"width": True}, r"width = True.*integer"),
        ("04_distill", {"width": 0}, r"width = 0.*greater than 0"),
        ("04_distill", {"width": 10**30}, r"wider than every teacher; give at most 1024"),
        ("04_distill", {"width": 10**30, "scale": "tiny"}, r"width = 10{30}.*less than or equal"),
        ("04_distill", {"width": 512, "scale": "tiny"}, r"width = 512 is wider than the teacher of tiny.*at most 128"),
        ("04_distill", {"widths": [64, 256], "scale": "tiny"}, r"width = 256 is wider.*at most 128"),
        ("04_distill", {"width": 50, "scale": "tiny"}, r"width = 50 does not divide.*48 and 54"),
        ("04_distill", {"width": 8, "scale": "tiny"}, r"width = 8 must lie between 16 and the teacher.s 128"),
        ("04_distill", {"width": 1, "ladders": ["width_alone"]}, r"width = 1 leaves no direction; give at least 2"),
        ("04_distill", {"widths": 64}, r"widths = 64.*list.*-y"),
        ("04_distill", {"widths": []}, r"widths = \[\].*at least 1"),
        ("04_distill", {"widths": [64, "x"]}, r"widths.1 = 'x'.*integer"),
        ("04_distill", {"ladders": ["narrow"]}, r"ladders.0 = 'narrow'.*'random', 'width_alone'"),
        ("04_distill", {"steps": 3}, r"steps = 3.*greater than or equal to 10"),
        ("04_distill", {"learning_rate": math.nan}, r"learning_rate = nan"),
        ("04_distill", {"learning_rate": "fast"}, r"learning_rate = 'fast'.*number"),
        ("04_distill", {"length": 256, "scale": "tiny"}, r"length = 256 exceeds.*at most 128"),
        ("04_distill", {"seeds": [-1]}, r"seeds.0 = -1.*greater than or equal to 0"),
        ("01_theory", {"alpha": 0}, r"alpha = 0.*greater than 0"),
        ("01_theory", {"alpha": 1.0}, r"alpha = 1.0.*less than 1"),
        ("01_theory", {"alpha": True}, r"alpha = True.*number"),
        ("02_toy_sweep", {"features": [1]}, r"features.0 = 1.*greater than or equal to 2"),
        ("03_sae", {"layer": 5, "scale": "tiny"}, r"layer = 5 does not exist: tiny has layers 1 to 4"),
        ("03_sae", {"kind": "gated"}, r"kind = 'gated'.*'l1' or 'topk'"),
        ("05_probe", {"layer": 31, "scale": "smollm2"}, r"layer = 31 does not exist: smollm2 has layers 1 to 30"),
        ("05_probe", {"widths": [256], "scale": "tiny"}, r"width = 256 is wider.*at most 128"),
        ("05_probe", {"concepts": ["poetry"]}, r"concepts.0 = 'poetry'.*'question'"),
        ("06_ledger", {"scale": "large"}, r"scale = 'large' is not known; it can be tiny, smollm2, pythia-410m"),
        ("06_ledger", {"scale": ["tiny"]}, r"scale = \['tiny'\] is not known"),
        ("01_theory", {"alpha": math.nan}, re.escape("alpha = nan")),
        ("01_theory", {"alpha": 10**400}, re.escape("alpha = 1000000")),
        ("01_theory", {"alpha": 10**5000}, re.escape("alpha = a number of thousands of digits")),
        ("01_theory", {"features": 1e3}, re.escape("features = 1000.0")),
        ("01_theory", {"width": {"a": 1}}, re.escape("width = {'a': 1}")),
        ("01_theory", {"zipf_exponent": 1e308}, re.escape("zipf_exponent = 1e+308")),
        ("01_theory", {"scale": "../../etc"}, re.escape("scale = '../../etc'")),
        ("01_theory", {"scale": LONG}, re.escape("scale = 'xxxxx")),
        ("01_theory", {"__import__('os').system('x')": 1}, re.escape("has no parameter")),
        ("01_theory", {"a b": 1}, re.escape("has no parameter 'a b'")),
        ("02_toy_sweep", {"features": [10, 10]}, re.escape("features names 10 twice")),
        ("02_toy_sweep", {"features": [2]}, re.escape("exceed features = 2")),
        ("02_toy_sweep", {"sparsities": [0.9, None]}, re.escape("sparsities.1 = None")),
        ("03_sae", {"teacher": "/does/not/exist"}, re.escape("no teacher '/does/not/exist'")),
        ("03_sae", {"teacher": "../" * 2000}, re.escape("no teacher '../../")),
        ("03_sae", {"teacher": "a\x00b"}, re.escape(r"no teacher 'a\x00b'")),
        ("03_sae", {"teacher": "line\nbreak"}, re.escape(r"no teacher 'line\nbreak'")),
        ("03_sae", {"teacher": "数/据"}, re.escape("no teacher '数/据'")),
        ("03_sae", {"text": "/etc"}, re.escape("no text '/etc'")),
        ("03_sae", {"text": "https://example.org/x.zst"}, re.escape("no text 'https:")),
        ("03_sae", {"kind": "L1 "}, re.escape("kind = 'L1 '")),
        ("03_sae", {"kind": "topk", "topk": 10**6}, re.escape("topk = 1000000 exceeds the 2048 latents")),
        ("03_sae", {"tokens": 10**30}, re.escape("tokens = 1000000")),
        ("03_sae", {"doubling": "yes"}, re.escape("doubling = 'yes'")),
        ("04_distill", {"width": 2**70}, re.escape("wider than every teacher")),
        ("04_distill", {"width": "５１２"}, re.escape("width = '５１２'")),
        ("04_distill", {"widths": list(range(16, 10_000))}, re.escape("widths")),
        ("04_distill", {"ladders": ["random", "random"]}, re.escape("ladders names 'random' twice")),
        ("04_distill", {"text": "a\x00b", "scale": "tiny"}, re.escape(r"no text 'a\x00b'")),
        ("04_distill", {"objective": "../forward"}, re.escape("objective = '../forward'")),
        ("04_distill", {"batch": 10**12}, re.escape("batch = 1000000000000")),
        ("05_probe", {"concepts": ["question", "'; DROP TABLE"]}, re.escape("concepts.1")),
        ("05_probe", {"tokens": 2048}, re.escape("give at most 127")),
        ("05_probe", {"train_students": 1}, re.escape("train_students = 1")),
        ("06_ledger", {"scale": "TINY"}, re.escape("scale = 'TINY'")),
        ("06_ledger", {"width": 64}, re.escape("has no parameter 'width'")),
        ("06_ledger", {"\u202etiny": 1}, re.escape("has no parameter")),
    ],
)
def test_bad_parameters_are_answered_with_one_sentence(notebook, given_, says):
    with pytest.raises(ParameterError) as refused:
        scales.check_names(notebook, given_)
        scales.validate(notebook, given_)
    assert re.search(says, str(refused.value)) and one_sentence(str(refused.value)), refused.value


def test_a_notebook_shows_the_sentence_without_a_traceback():
    with pytest.raises(ParameterError) as error:
        scales.parameters("01_theory", alpha=2)
    assert error.value._render_traceback_() == [f"ParameterError: {error.value}"]


@pytest.mark.parametrize(
    ("width", "scale"),
    [(None, "tiny"), (16, "tiny"), (128, "tiny"), (129, "smollm2"), (512, "smollm2"), (1024, "pythia-410m")],
)
def test_the_smallest_scale_whose_teacher_is_wide_enough_is_taken(width, scale):
    assert scales.smallest_scale(width) == scale


def test_a_width_alone_chooses_its_scale():
    parameters = scales.validate("04_distill", injected("width = 512\n", scale=None))
    assert (parameters.scale, parameters.width, parameters.ladders) == ("smollm2", 512, ["width_alone"])


@given(st.integers(1, 2000), st.integers(1, 32))
def test_heads_divide_the_width_into_even_sizes_of_at_least_16(width, teacher_heads):
    heads = scales.heads(width, teacher_heads)
    if heads:
        assert heads == min(teacher_heads, width // 16)
        assert width // heads >= 16
        assert width % (2 * heads) == 0
        assert scales.heads(width, teacher_heads, shared_keys=True) == heads
    elif width >= 16:
        with pytest.raises(ValueError, match="does not divide") as error:
            scales.check_width(width, 2000, teacher_heads)
        near = map(int, re.findall(r"\d+", str(error.value).partition("that work are")[2]))
        assert all(scales.heads(width, teacher_heads) for width in near), "what is proposed works"


junk = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=3)
)
fields = [(notebook, name) for notebook, kind in NOTEBOOKS.items() for name in kind.model_fields]


@given(st.sampled_from(fields), junk)
def test_any_value_is_taken_or_answered_with_one_sentence(field, value):
    notebook, name = field
    try:
        scales.validate(notebook, {name: value})
    except ParameterError as error:
        assert str(error).endswith(".") and "\n" not in str(error)


def test_only_a_scale_as_it_stands_has_its_folder():
    assert all(scales.parameters(name, scale).place == scale for name in scales.NOTEBOOKS for scale in scales.SCALES)
    assert scales.parameters("04_distill", "smollm2", width=512).place == "smollm2"
    assert scales.parameters("04_distill", "smollm2", width=512, steps=20).place == "other"
    assert scales.parameters("04_distill", "tiny", objective="reverse").place == "other"
    assert scales.parameters("03_sae", "tiny", teacher="owner/name", revision="0" * 40).place == "other"


def sentence(notebook, **given) -> str:
    """What a notebook answers to impossible parameters."""
    with pytest.raises(scales.ParameterError) as refused:
        scales.parameters(notebook, **given)
    return str(refused.value)


@pytest.mark.parametrize("said", ["[16, 32]", "16, 32", "(16, 32)", [16, 32]])
def test_a_list_may_come_as_text(said):
    """As papermill's ``-p widths "[16, 32]"`` gives it."""
    namespace = injected(f"widths = {said!r}\n", scale="tiny")
    assert scales.validate("04_distill", namespace).widths == [16, 32]
    assert scales.parameters("04_distill", ladders='["random"]').ladders == ["random"]


@pytest.mark.parametrize("said", ["[16, 32", "16", "[16, thirty]", "__import__('os').getcwd()"])
def test_text_that_is_no_list_is_refused_as_text(said):
    assert re.search("widths = .*list.*-y", sentence("04_distill", widths=said))


def test_a_folder_may_have_an_equals_sign_in_its_name(tmp_path):
    folder = tmp_path / "lr=1e-3, seed=0"
    folder.mkdir()
    namespace = injected(f"teacher = {str(folder)!r}\n")
    assert scales.validate("08_your_model", namespace).teacher == str(folder)
    assert scales.settings([f'teacher="{folder}"']) == {"teacher": str(folder)}


def test_a_teacher_of_the_study_brings_its_own_scale():
    assert scales.validate("08_your_model", injected("teacher = 'smollm2'\n")).scale == "smollm2"
    assert scales.validate("08_your_model", injected("teacher = 'owner/name'\n")).scale == "tiny"
    p = scales.validate("08_your_model", injected("target = 0.5\n"))
    assert (p.scale, p.teacher, p.place) == ("tiny", "tiny", "other")
    assert re.search("contexts = 99999 exceeds the tokens of basis_blocks", sentence("08_your_model", contexts=99_999))
    assert re.search("there is no teacher './gone'", sentence("08_your_model", teacher="./gone"))
