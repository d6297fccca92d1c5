"""The whole study as one pipeline: the notebooks through papermill, and for 04 first one job a width and seed.

    snakemake --cores 2                          at scale tiny, as `make paper` runs it
    snakemake --cores 2 --config scale=smollm2   at another scale
    snakemake -n                                 the plan
    snakemake --cores 2 --config steps=500       other parameters of 04_distill
    snakemake --workflow-profile workflow/profiles/slurm --config scale=pythia-410m     on a cluster; or kubernetes

Inputs are the notebooks' .py sides and the modules they import: rewriting committed outputs makes nothing run again.
Results are found by their parameters in runs/, so a job that has little new to compute is short.

What waits for nothing and nothing waits for, 02_toy_sweep, comes last: it fills the cores that 04 and 05 leave idle.
"""

import ast
import json
import os
import shlex
import sys
from pathlib import Path

import yaml

from minwidth import scales

SCALE = config.get("scale", "tiny")
if SCALE not in scales.SCALES:
    raise WorkflowError(f"scale = {SCALE} is not known; it can be {', '.join(scales.SCALES)}.")


def typed(value):
    """A value of --config, in whose lists Snakemake leaves everything as text."""
    if isinstance(value, list):
        return [typed(item) for item in value]
    return yaml.safe_load(value) if isinstance(value, str) else value


TOLD = {  # of the study's notebooks; 08 is for models of one's own
    "01_theory": "the theory, recomputed",
    "02_toy_sweep": "the toy models",
    "03_sae": "sparse autoencoders of the teacher",
    "04_distill": "the ladders of students together",
    "05_probe": "probes of teacher and students",
    "06_ledger": "every claim and its verdict",
    "07_known_language": "students of a language whose features are known",
}
GIVEN = {name: typed(value) for name, value in config.items() if name != "scale"}  # other parameters of 04_distill
LADDER = ("width", "widths", "seeds")
COPIES = f"{os.environ.get('MINWIDTH_RUNS') or 'runs'}/{SCALE}"
LADDERS = scales.parameters("04_distill", SCALE, **GIVEN)
WIDTHS = {width for ladder in LADDERS.ladders for width in LADDERS.widths_of(ladder)}
SMALL = LADDERS.shape.width <= scales.ONE_THREAD
TEXT = ["data/corpora.txt", *(sorted(map(str, Path("data/teacher").glob("*"))) if SCALE == "tiny" else [])]
YAML = {
    "src/minwidth/scales.py": "src/minwidth/scales.yaml",
    "src/minwidth/ledger.py": "data/paper/claims.yaml",
    "src/minwidth/concepts.py": "data/concepts.yaml",
}


def sources(start: str) -> list[str]:
    """``start``, every module of the package that it always imports, also through others, and the YAML these read."""
    found, todo = [], [start]
    while todo:
        file = todo.pop()
        if file not in found and Path(file).exists():
            found.append(file)
            for node in ast.parse(Path(file).read_text()).body:
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "minwidth":
                    names = node.module.split(".")[1:] or [alias.name for alias in node.names]
                    todo += [f"src/minwidth/{name}.py" for name in names]
    return sorted([*found, *(YAML[file] for file in found if file in YAML)])


def given(notebook: str) -> str:
    """The parameters that a notebook is run with beside its scale, for papermill."""
    changes = GIVEN if notebook == "04_distill" else {}
    return " ".join(f"-y {shlex.quote(json.dumps({name: value}))}" for name, value in changes.items())


CHANGES = " ".join(  # what a student depends on; which students there are, the rules say
    f"--set {shlex.quote(f'{name}={json.dumps(value)}')}" for name, value in GIVEN.items() if name not in LADDER
)


localrules:
    all,


rule all:
    input:
        expand(COPIES + "/{notebook}.ipynb", notebook=TOLD),
    message:
        f"the notebooks of the study have run at scale {SCALE}"
    default_target: True


rule students:
    """Students of one width, of every ladder; their records are what 04_distill finds, hence the mark alone."""
    input:
        f"{COPIES}/03_sae.ipynb",  # the floors are predicted before any student is trained
        TEXT,
        sources("src/minwidth/ladders.py"),
    output:
        touch(COPIES + "/students/w{width}-s{seed}"),
    log:
        COPIES + "/students/w{width}-s{seed}.log",
    benchmark:
        COPIES + "/benchmarks/students-w{width}-s{seed}.tsv"
    message:
        "04_distill: students of width {wildcards.width}, seed {wildcards.seed}"
    threads: 1 if SMALL else 2  # with small tensors two jobs beat two threads
    priority: 1
    shell:
        "{sys.executable} -m minwidth.ladders --scale {SCALE} --width {wildcards.width} --seed {wildcards.seed}"
        f" {CHANGES} 2> {{log}}"

EARLIER = [f"{COPIES}/{notebook}.ipynb" for notebook in TOLD if notebook != "06_ledger"]
AFTER = {  # what must be there before a notebook runs
    "03_sae": TEXT,
    "04_distill": expand(rules.students.output, width=sorted(WIDTHS, reverse=True), seed=LADDERS.seeds),
    "05_probe": f"{COPIES}/04_distill.ipynb",
    "06_ledger": [*EARLIER, *sorted(map(str, Path("data/paper").glob("*")))],
}
THREADS = {"03_sae": 2} | dict.fromkeys(("04_distill", "05_probe"), 1 if SMALL else 2)

for notebook, told in TOLD.items():

    rule:
        name:
            notebook[3:]
        input:
            AFTER.get(notebook, []),
            sources(f"notebooks/{notebook}.py"),
        output:
            f"{COPIES}/{notebook}.ipynb",
        log:
            f"{COPIES}/{notebook}.log",
        benchmark:
            f"{COPIES}/benchmarks/{notebook}.tsv"
        message:
            f"{notebook}: {told}"
        threads: THREADS.get(notebook, 1)  # 02 takes more where the others leave them
        priority: int(notebook in THREADS)
        params:  # of each rule its own: the command is put together when a job starts, and the loop is over
            notebook=notebook,
            given=given(notebook),
        shell:
            "{sys.executable} -m papermill notebooks/{params.notebook}.ipynb {output} -p scale {SCALE} {params.given}"
            " --no-progress-bar --log-level WARNING 2> {log}"
