import subprocess
import sys

import nbformat
import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minwidth import models, plan, scales
from minwidth.store import ROOT

TINY = scales.parameters("04_distill", "tiny", batch=2, length=16)


def counted(work) -> int:
    """FLOPs that PyTorch counts in a piece of work; of its attentions it counts the plain one."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("width", [16, 128])
def test_a_steps_flops_are_those_that_are_counted(width):
    config = models.student_config(models.load_config("tiny"), width)

    def step():
        student, ids = models.from_config(config), torch.zeros(TINY.batch, TINY.length, dtype=torch.long)
        logits = models.final_hidden(student, ids) @ models.unembedding(student).T
        teacher = torch.zeros(TINY.batch, TINY.length, 128) @ torch.zeros(config.vocab_size, 128).T
        torch.nn.functional.kl_div(logits.log_softmax(-1), teacher.softmax(-1), reduction="sum").backward()

    again = 2 * TINY.batch * TINY.length**2 * width * config.num_hidden_layers  # of flash attention
    assert counted(step) + again == plan.student_flops(plan.weights(config), TINY.batch, TINY.length, 128)


def test_a_passes_flops_are_those_that_are_counted():
    config = models.load_config("tiny")
    found = counted(lambda: models.final_hidden(models.from_config(config), torch.zeros(3, 20, dtype=torch.long)))
    assert found == plan.forward_flops(plan.weights(config), 60, 20)
    assert plan.weights(config, 64)[:2] == tuple(number / 2 for number in plan.weights(config)[:2])  # half the stream


def test_a_plan_has_a_sum_says_which_gpu_is_too_small_and_changes_no_record(monkeypatch):
    monkeypatch.setitem(scales.GPUS, "L40S", scales.GPUS["L40S"]._replace(gib=2))
    found = plan.plan(scales.parameters("03_sae", "tiny"))
    table = found.set_index("part")
    assert np.isnan(table.loc["Autoencoders, 9", "hours, L40S"]) and np.isnan(table.loc["all", "hours, L40S"])
    assert table.loc["all", "hours, H100"] == pytest.approx(table["hours, H100"][:-1].sum())
    assert "| too large |" in plan.as_markdown(found).splitlines()[-1]
    assert "plan" not in scales.parameters("03_sae", "tiny", plan=True).model_dump()


def test_the_teacher_runs_beside_students_where_its_states_would_not_stay_on_disk():
    p = scales.parameters("04_distill", "tiny", widths=[16], ladders=["random"], batch=2, length=16)
    kept, beside = plan.plan(p), plan.plan(p.model_copy(update={"steps": 10**7}))
    assert list(kept.part) == ["random weights, 16", "Teacher, kept on disk", "Text", "all"]
    assert list(beside.part) == ["random weights, 16", "Text", "all"]
    assert beside["GPU memory, GiB"][0] > kept["GPU memory, GiB"][0]


@pytest.mark.parametrize("notebook", ["03_sae", "04_distill"])
def test_the_documentation_has_the_plan_of_the_paper(notebook):
    table = plan.as_markdown(plan.plan(scales.parameters(notebook, "pythia-410m")))
    assert table in (ROOT / "docs" / "running.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("notebook", ["03_sae", "04_distill"])
def test_a_notebook_ends_with_its_plan(notebook, tmp_path):
    arguments = [str(ROOT / "notebooks" / f"{notebook}.ipynb"), str(tmp_path / "out.ipynb"), "-p", "plan", "True"]
    done = subprocess.run([sys.executable, "-m", "papermill", *arguments, "-p", "scale", "tiny"], capture_output=True)
    assert done.returncode == 0, done.stderr
    cells = [c for c in nbformat.read(tmp_path / "out.ipynb", 4).cells if c.cell_type == "code" and c.execution_count]
    shown = [output.data["text/markdown"] for output in cells[-1].outputs if output.output_type == "display_data"]
    assert "hours, H100" in shown[0] and "end_with_plan" in cells[-1].source
