"""What README and docs tell people to type: papermill takes it, make has it, files are there, the pipeline is whole."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner
from papermill.cli import papermill as command

from minwidth import notebooks
from minwidth.store import ROOT
from tests import small_study
from tests.small_models import config_of, model_of

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text() for page in PAGES)
PARTS = TEXT.split("```")  # around each block of code
TYPED = [line for block in PARTS[1::2] for line in block.splitlines()] + re.findall(r"`([^`]+)`", " ".join(PARTS[::2]))
COMMANDS = sorted({" ".join(line.partition(" #")[0].split()) for line in TYPED})
PAPERMILL = [line.partition("papermill ")[2] for line in COMMANDS if re.match(r"(\S+/)?papermill \S", line)]


@pytest.mark.parametrize("line", PAPERMILL)
def test_papermill_takes_every_line_up_to_running_it(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model_of(config_of("gpt_neox", num_hidden_layers=7)).save_pretrained(tmp_path / "model")
    words = shlex.split(re.sub(r"<folder>|~/my-model", str(tmp_path / "model"), line))
    monkeypatch.chdir(ROOT / "notebooks")
    monkeypatch.setattr(notebooks, "RUNS", tmp_path / "runs")
    result = CliRunner().invoke(command, [*words, "--prepare-only", "--no-progress-bar"])
    assert result.exit_code == 0, result.output
    if "--help-notebook" not in words:
        (copy,) = (tmp_path / "runs").glob("*.ipynb")
        tags = [cell.metadata.get("tags", []) for cell in nbformat.read(copy, as_version=4).cells]
        assert ["injected-parameters"] in tags


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A small one, with a model of a reader's own that has a layer 6."""
    folder = small_study.save(tmp_path_factory.mktemp("study"))
    small_study.save_teacher(folder / "my-model", "smollm2", hidden_size=72, num_hidden_layers=7)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("line", PAPERMILL)
def test_every_papermill_line_runs_to_its_end(line: str, study: Path):
    line = line.replace("<folder>", "~/my-model")
    done = subprocess.run(
        f"papermill --no-progress-bar {line}", shell=True, cwd=study / "notebooks", env=small_study.environment(study),
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]


def test_every_target_module_and_file_that_is_named_is_there():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {line.split()[1] for line in COMMANDS if re.fullmatch(r"make [a-z-]+", line)} <= targets
    for module in re.findall(r"-m (minwidth\.\w+)", TEXT):
        assert (ROOT / "src" / f"{module.replace('.', '/')}.py").exists(), module
    for page in PAGES:
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists() or page.stem == "index", f"{page.name}: {link}"
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_pipeline_can_be_planned(tmp_path: Path):
    line = [sys.executable, "-m", "snakemake", "--dry-run", "--quiet", "--config", "scale=smollm2", "widths=[128, 512]"]
    place = os.environ | {"MINWIDTH_RUNS": str(tmp_path)}
    done = subprocess.run(line, cwd=ROOT, env=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
