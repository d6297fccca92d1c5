"""Ladders of students: many trained side by side, their losses in one table.

``python -m minwidth.ladders --scale tiny --width 32`` trains the students of one width. Every student is a record of
its own with checkpoints: an interrupted command goes on where it stopped.
"""

import argparse
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from minwidth import errors, models, scales, store, training
from minwidth.students import LADDERS, SAME, Job, check_saved, key, moments, read, save, student, trunk

log = logging.getLogger(__name__)


def jobs(p: scales.Distill) -> list[Job]:
    """Every run that the parameters ask for, the most expensive first.

    Each student is trained for twice ``steps``, those of the ``doubled`` ladders for ``steps`` too.
    """
    return [
        Job(ladder, width, seed, steps)
        for width in sorted({width for ladder in p.ladders for width in p.widths_of(ladder)}, reverse=True)
        for ladder in p.ladders
        if width in p.widths_of(ladder)
        for seed in p.seeds
        for steps in ((2 * p.steps, p.steps) if ladder in p.doubled else (2 * p.steps,))
    ]


def train(todo: Iterable[tuple[scales.Distill, Job]]) -> list[store.Record]:
    """The records of several runs at one scale, trained where none is found.

    Small students are trained by several processes side by side, one thread each; large ones one after the other.

    Raises:
        LostError: a process failed; its last line says why.
    """
    todo = list(todo)
    if missing := [(p, job) for p, job in todo if store.find(*key(p, job)) is None]:
        _compute(missing)
    return [student(p, job) for p, job in todo]


def _compute(missing: list[tuple[scales.Distill, Job]]) -> None:
    p, _ = missing[0]
    with training.threads(p.shape.width):
        teacher = models.load_teacher(p.shape.teacher, device=training.state().device)
        for split in ("train", "held_out"):
            read(teacher, p, split)  # once, before several processes would ask for it
        for basis in {other.basis for other, job in missing if job.ladder == "width_alone"}:
            moments(teacher, p.model_copy(update={"basis": basis}))
    on_cpu = training.state().device.type == "cpu" and training.state().num_processes == 1
    chains: dict[tuple, list] = {}  # of one student the shorter runs first, which longer ones may go on from
    for p, job in sorted(missing, key=lambda run: run[1].steps):
        chains.setdefault((p.model_dump_json(), job._replace(steps=0)), []).append((p, job))
    work = sorted(chains.values(), key=lambda chain: missing.index(chain[-1]))
    if on_cpu and p.shape.width <= scales.ONE_THREAD:
        training.in_processes(_work, work, "students")
    else:
        _work(tqdm(work, desc="students", unit=" students", leave=False), teacher)


def _work(chains: Iterable[list[tuple[scales.Distill, Job]]], teacher: models.Teacher | None = None) -> None:
    for chain in chains:
        for p, job in chain:
            teacher = teacher or models.load_teacher(p.shape.teacher, device=training.state().device)
            student(p, job, teacher)
        shutil.rmtree(trunk(p, job), ignore_errors=True)


def ladder(p: scales.Distill, extra: Iterable[Job] = ()) -> store.Record:
    """All students that the parameters ask for, and ``extra`` runs of them at other numbers of steps.

    Returns:
        A record with ``ladder`` (one row a run; its fall where the same student was trained for half the steps) and
        ``curves`` (one row an evaluation).
    """
    todo = [*jobs(p), *extra]
    records = dict(zip(todo, train((p, job) for job in todo), strict=True))
    parts = {"/".join(map(str, job)): record.key for job, record in records.items()}
    label = "ladder" if p.width is None else f"w{p.width}"
    return store.find_or_compute(f"distill/{p.scale}/{label}", {"runs": parts}, lambda: _assemble(p, records))


def _assemble(p: scales.Distill, records: dict[Job, store.Record]) -> dict[str, Any]:
    curves = [record["history"].assign(**job._asdict()) for job, record in records.items()]
    rows = []
    for job, record in records.items():
        half = records.get(job._replace(steps=job.steps // 2)) if job.steps % 2 == 0 else None
        row = job._asdict() | {"tokens": job.steps * p.batch * p.length}
        row |= {name: record[name] for name in ("loss", "low", "high", "untrained", "uniform", "params", "d_teacher")}
        row["fall_per_doubling"] = _fall(half["loss"], record["loss"]) if half else float("nan")
        rows.append(row | {"raw_kl": record["loss"] * p.length * p.temperature**2})  # the paper's unit (Table 3)
    order = ["ladder", "seed", "width", "steps"]
    columns = [*order, "step", "train", "held_out"]
    return {
        "ladder": pd.DataFrame(rows).sort_values(order, ignore_index=True),
        "curves": pd.concat(curves).sort_values([*order, "step"], ignore_index=True)[columns],
    }


def _fall(short: float, long: float) -> float:
    """Share of the loss that doubling the steps took off; 0 between losses that are 0 for all we can measure."""
    return 0.0 if max(short, long) < SAME else 1 - long / short


# -------------------------------------------------------------------------------------------------------- command line


def main(arguments: list[str] | None = None) -> None:
    """Train students and leave their records; what is found is kept, and what was interrupted goes on."""
    parser = argparse.ArgumentParser(prog="python -m minwidth.ladders", description=main.__doc__)
    parser.add_argument("--scale", default="tiny", choices=list(scales.SCALES))
    parser.add_argument("--ladder", choices=list(LADDERS), help="all of the scale's if left out")
    parser.add_argument("--width", type=int, help="all of the scale's if left out")
    parser.add_argument("--seed", type=int, help="all of the scale's if left out")
    parser.add_argument("--save", type=Path, help="leave a student as a folder that transformers reads")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of 04_distill")
    options = parser.parse_args(arguments)
    given = {"ladders": [options.ladder]} if options.ladder else {}
    given |= {"seeds": [options.seed]} if options.seed is not None else {}
    given |= {"width": options.width} if options.width is not None else {}
    try:
        p = scales.parameters("04_distill", options.scale, **(scales.settings(options.set) | given))
        if options.save:
            check_saved(p, jobs(p)[0])
    except errors.ParameterError as error:
        parser.error(str(error))
    todo = jobs(p)
    for record in train((p, job) for job in todo):
        log.info("%s: %.4g nats per token", record.key, record["loss"])
    if options.save:
        save(p, todo[0], models.load_teacher(p.shape.teacher), options.save)


if __name__ == "__main__":
    errors.command(main)
