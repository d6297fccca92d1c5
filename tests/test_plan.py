import subprocess
import sys

import nbformat
import numpy as np
import pytest
import torch

from minwidth import distill, models, plan, scales
from minwidth.plan import Machine
from minwidth.store import ROOT

TINY = scales.parameters("04_distill", "tiny", batch=2, length=16)


def test_a_matrix_product_and_what_it_keeps_alive():
    def build():
        a, b = torch.zeros(30, 40), torch.zeros(40, 50)
        return lambda: (a @ b).relu_()

    cost = plan.count(build)
    product, in_place = 4 * (30 * 40 + 40 * 50 + 30 * 50), 2 * 4 * 30 * 50
    assert cost.operations == {(2 * 30 * 40 * 50, product, False): 1, (0, in_place, False): 1}
    assert cost.memory == product
    machine = Machine("slow in each way", flops=1e3, low_flops=1e6, bandwidth=1e3, latency=0.5)
    assert cost.seconds(machine) == pytest.approx(120 + 0.5 + 12 + 0.5)


def test_layers_are_alike():
    config = models.load_config("tiny")
    whole = plan.count(lambda: plan.student_step(TINY, config))
    from_two = plan.count_layers(config, lambda config: plan.student_step(TINY, config))
    assert from_two.flops == whole.flops
    machine = Machine("any", 1e9, 1e9, 1e8, 1e-6)
    assert from_two.seconds(machine) == pytest.approx(whole.seconds(machine), rel=0.01)
    assert from_two.memory == pytest.approx(whole.memory, rel=0.1)


def test_a_steps_arithmetic_is_six_times_its_weights():
    """Two FLOPs a weight and token forward, four backward; attention and the teacher's logits come on top."""
    config, tokens = models.load_config("tiny"), TINY.batch * TINY.length
    student = models.from_config(config)
    weights = sum(p.numel() for name, p in student.named_parameters() if p.ndim == 2 and "embed_in" not in name)
    teacher = 2 * config.vocab_size * config.hidden_size * tokens
    attention = 14 * TINY.batch * TINY.length**2 * config.hidden_size * config.num_hidden_layers
    cost = plan.count(lambda: plan.student_step(TINY, config))
    assert cost.flops == 6 * weights * tokens + teacher + attention


def test_a_gpu_is_not_kept_waiting():
    config = models.load_config("tiny")
    step = plan.count(lambda: plan.student_step(TINY, config, on_gpu=True))
    assert step.waits == 1  # kl looks at the incoming gradient, on a CPU alone
    p = scales.parameters("03_sae", "tiny", expansion=2, batch=8)
    assert plan.count(lambda: plan.autoencoder_step(p, 16)).waits == 0


def test_autoencoders_are_trained_in_tf32_and_measured_in_float32():
    p = scales.parameters("03_sae", "tiny", tokens=409_600, held_out_tokens=409_600)
    fast, slow = plan.plan(p).set_index("part").loc[["Teacher to layer 3", "Teacher, held-out text"]].itertuples()
    assert fast.steps == slow.steps and fast.tflop == slow.tflop and fast.hours < slow.hours


def test_the_overview_says_which_gpu_is_too_small(monkeypatch):
    monkeypatch.setitem(scales.GPUS, "L40S", scales.GPUS["L40S"]._replace(gib=1))
    table = plan.overview("tiny").set_index("part")
    own = plan.plan(scales.parameters("03_sae", "tiny")).set_index("part")
    autoencoders = table.loc["03: autoencoders, 9"]
    assert own.hours["Autoencoders, 9"] == autoencoders.H100 and np.isnan(autoencoders.L40S)
    assert table.H100["all"] == pytest.approx(table.H100[:-1].sum()) and np.isnan(table.L40S["all"])
    lines = plan.as_markdown(table.reset_index()).splitlines()
    assert len(lines) == len(table) + 2 and "| too large |" in lines[-1]


def test_asking_for_a_plan_changes_no_record():
    asked = scales.parameters("04_distill", "tiny", plan=True, gpu="A100")
    job = distill.Job("random", 32, 0, 10)
    assert distill.key(asked, job) == distill.key(scales.parameters("04_distill", "tiny"), job)
    assert not {"plan", "gpu"} & set(scales.parameters("03_sae", "tiny", plan=True).model_dump())


def test_an_unknown_gpu_is_named():
    with pytest.raises(scales.ParameterError, match="gpu = 'Voodoo2' should be 'H100', 'A100'"):
        scales.parameters("04_distill", "tiny", gpu="Voodoo2")


def test_a_plan_says_whether_the_teacher_fits_on_disk():
    p = scales.parameters("04_distill", "tiny", widths=[16], ladders=["random"], batch=2, length=16)
    table = plan.plan(p)
    assert list(table.part) == ["Random weights, 16", "Teacher, kept on disk", "Text"]
    assert (table.hours >= 0).all() and table.hours.sum() > 0
    longer = p.model_copy(update={"steps": 10**7})
    assert "runs beside each student" in plan.in_words(longer, plan.plan(longer))


@pytest.mark.slow
@pytest.mark.parametrize("notebook", ["03_sae", "04_distill"])
def test_a_notebook_ends_with_its_plan(notebook, tmp_path):
    arguments = [str(ROOT / "notebooks" / f"{notebook}.ipynb"), str(tmp_path / "out.ipynb"), "-p", "plan", "True"]
    done = subprocess.run([sys.executable, "-m", "papermill", *arguments, "-p", "scale", "tiny"], capture_output=True)
    assert done.returncode == 0, done.stderr
    cells = [c for c in nbformat.read(tmp_path / "out.ipynb", 4).cells if c.cell_type == "code" and c.execution_count]
    shown = [output.data["text/markdown"] for output in cells[-1].outputs if output.output_type == "display_data"]
    assert "hours** on one H100" in shown[0] and "end_with_plan" in cells[-1].source
    assert not list(tmp_path.glob("runs"))


@pytest.mark.slow
def test_the_readme_has_the_plan_of_the_paper():
    """Counting depends on the machine's PyTorch alone, not on its speed."""
    assert plan.as_markdown(plan.overview("pythia-410m")) in (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_time_of_a_step_is_predicted():
    """Not a limit on how fast the machine is: both sides are measured on it."""
    table = plan.check()
    assert (table.error.abs() < 0.25).all(), table
