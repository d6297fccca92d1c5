"""Jobs of half an hour to hours, whose tables the notebooks show: what 03, 04 and 05 do, at many other parameters.

``python -m workflow.long longer controls --scale tiny`` runs two of them, ``long.yaml`` says what they change. Every
measurement, student and probed model is a record of its own: an interrupted job goes on where it stopped.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from tqdm.auto import tqdm

from minwidth import bottleneck, errors, ladders, models, probe, sae, scales, staircase, store, training
from minwidth.students import Job, losses, read, trained

GRIDS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
JOBS = ("sensitivity", "brackets", "longer", "longest", "controls", "probes")


def grid(job: str, scale: str) -> dict[str, Any]:
    """What a job changes at a scale; ``ParameterError`` where it has nothing to do."""
    if scale not in GRIDS[job]:
        raise errors.ParameterError(f"scale = {scale!r} has no {job}; it can be {', '.join(GRIDS[job])}.")
    return dict(GRIDS[job][scale])


def sensitivity(scale: str) -> None:
    """03 as the grid's ``base`` has it, then with one choice of it changed at a time, for several lambdas.

    Tables: ``sae_sensitivity`` (a row an autoencoder; ``default`` marks the one that all others depart from) and
    ``sae_sensitivity_floors`` (autoencoder x width).
    """
    choices = grid("sensitivity", scale)
    every = [scales.parameters("03_sae", scale, **choices.pop("base"))]
    shared: dict[str, Any] = every[0].model_dump() | {"lams": choices.pop("lams"), "doubling": False}
    for choice, value in ((choice, value) for choice, values in choices.items() for value in values):
        if value != shared[choice]:
            changed = shared | {choice: value}
            every.append(scales.parameters("03_sae", **(changed | {"layers": [changed["layer"]]})))
    records, tables = [sae.measure(p) for p in tqdm(every, desc="measurements", leave=False)], {}
    for name in ("layers", "floors"):
        parts = [found[name].query(f"layer == {p.layer}").assign(steps=p.steps)
                 for found, p in zip(records, every, strict=True)]  # fmt: skip
        tables[name] = pd.concat(parts, ignore_index=True)
    tables["layers"]["default"] &= ~tables["layers"]["default"].duplicated()  # of the first measurement
    what, parameters = f"sae/{scale}/sensitivity", {"records": [record.key for record in records]}
    seconds = sum(record.provenance["seconds"] for record in records)
    record = store.find(what, parameters) or store.keep(what, parameters, tables, seconds)
    store.save_results(scale, "sae_sensitivity", record["layers"], record)
    store.save_results(scale, "sae_sensitivity_floors", record["floors"], record)


def brackets(scale: str) -> None:
    """Both ends of the floor of the last state: tables ``bottleneck`` and, with the contexts, ``bottleneck_growth``."""
    teacher = models.load_teacher(scale)
    record, growth = bottleneck.ladder(teacher), bottleneck.ladder(teacher, **grid("brackets", scale))
    store.save_results(scale, "bottleneck", record["table"], record)
    store.save_results(scale, "bottleneck_growth", growth["growth"], growth)


def stretched(p: scales.Distill) -> scales.Distill:
    """The same ladders at more steps, the warm-up stretched along, and what else the grid says."""
    changes = grid("longer", p.scale)
    times = changes.pop("times")
    return p.model_copy(update={"steps": times * p.steps, "warmup": times * p.warmup} | changes)


def longer(p: scales.Distill) -> None:
    """The ladders at more steps and seeds, the ends of the random one at fewer steps too: table ``distill_long``."""
    p = stretched(p)
    widths = p.widths_of("random")
    ends = {widths[0], widths[-1]} if "random" in p.ladders and widths[-1] == p.shape.width else set()
    budgets = [Job("random", width, seed, p.steps // n) for width in ends for n in (4, 2) for seed in p.seeds]
    record = ladders.ladder(p, budgets)
    store.save_results(p.scale, "distill_long", record["ladder"], record)
    store.save_results(p.scale, "distill_long_curves", record["curves"], record)


def longest(p: scales.Distill) -> None:
    """The ladders at twenty million tokens and at 1/2 to 1/16 of that, some with a seed more: ``distill_longest``.

    ``proved, proved_high``: both ends of the floor of the last state on the text that these students learn;
    ``proved_from, proved_to``: 95 % over documents of the lower one.
    """
    changes = grid("longest", p.scale)
    again = changes.pop("again")
    p = p.model_copy(update=changes)
    lengths = [2 * p.steps // n for n in (16, 8, 4, 2)]
    more = [job._replace(seed=again["seed"]) for job in ladders.jobs(p) if job.width in again["widths"]]
    shorter = [job._replace(steps=steps) for job in [*ladders.jobs(p), *more] for steps in lengths]
    record = ladders.ladder(p, [*more, *shorter])
    store.save_results(p.scale, "distill_longest", with_floors(p, record["ladder"]), record)


def with_floors(p: scales.Distill, ladder: pd.DataFrame) -> pd.DataFrame:
    """A ladder with both ends of the floor of the last state on its own text."""
    given = p.model_dump(include={"temperature", "text", "length", "percent"})
    contexts = scales.FLOORS[p.scale]["contexts"][-1:]
    found = bottleneck.ladder(models.load_teacher(p.shape.teacher), p.widths, contexts=contexts, **given)["table"]
    names = {"low": "proved", "low_low": "proved_from", "low_high": "proved_to", "high": "proved_high"}
    return ladder.merge(found[["width", *names]].rename(columns=names), on="width")


def controls(p: scales.Distill, table: str, seeds: Iterable[int] = (0, 1, 2)) -> pd.DataFrame:
    """Students of three widths in each variant of ``scales.CONTROLS``, all judged by the ladder's own loss.

    In the table ``kl`` is that held-out loss, nats per token, with 95 % over held-out blocks in ``low`` and ``high``;
    ``own`` the loss it was trained on; ``cross_entropy`` that of the text, beside the teacher's.
    """
    teacher = models.load_teacher(p.shape.teacher, device=training.state().device)
    variants = scales.CONTROLS[table]
    cut = any("ladder" in change for change in variants.values())
    some = [width for width in p.widths if width < teacher.d or not cut]  # the teacher, cut to its width, is itself
    widths = sorted({some[0], some[len(some) // 2], some[-1]}, reverse=True)
    todo = []
    for width in widths:
        for name, change in variants.items():
            other = p.model_copy(update={key: value for key, value in change.items() if key != "ladder"})
            todo += [(name, other, Job(change.get("ladder", "random"), width, seed, p.steps)) for seed in seeds]
    records = ladders.train((other, job) for _, other, job in todo)
    parts = {"/".join(map(str, (name, *job))): r.key for (name, _, job), r in zip(todo, records, strict=True)}

    def compute() -> dict[str, Any]:
        text, of_text = read(teacher, p, "held_out"), p.model_copy(update={"objective": "cross_entropy"})
        best = float(losses(of_text, teacher, teacher.model, text).mean())
        rows = []
        for (name, other, job), record in zip(todo, records, strict=True):
            model = trained(other, job, teacher)
            each = losses(p, teacher, model, text)
            spread = 1.96 * each.std(ddof=1) / len(each) ** 0.5
            row = {"student": name} | job._asdict() | {"params": record["params"]}
            row |= {"kl": each.mean(), "low": each.mean() - spread, "high": each.mean() + spread}
            row |= {"own": record["history"].held_out.iloc[-1], "uniform": record["uniform"]}
            row |= {"cross_entropy": losses(of_text, teacher, model, text).mean()}
            rows.append(row | {"teacher_cross_entropy": best, "d_teacher": teacher.d})
        return {"controls": pd.DataFrame(rows).sort_values(["width", "student", "seed"], ignore_index=True)}

    with training.threads(p.shape.width):
        record = store.find_or_compute(f"distill/{p.scale}/{table}", {"runs": parts}, compute)
    return store.save_results(p.scale, table, record["controls"], record)


def every_student(scale: str) -> tuple[scales.Probe, scales.Distill]:
    """The parameters of 05 that probe all students of 04's ladders, or of its longer ones, and those of the ladders."""
    changes, d = grid("probes", scale), scales.parameters("04_distill", scale)
    d = stretched(d) if changes.pop("longer", False) else d
    return scales.parameters("05_probe", scale, **changes), d


def probes(scale: str) -> None:
    """Survey and staircase of every student: tables ``probe_students``, ``_words``, ``_layers`` and ``_staircase``."""
    p, d = every_student(scale)
    record, stairs = probe.survey(p, d), staircase.measure(p, d)
    for name, table in (("", "accuracy"), ("_words", "words"), ("_layers", "layers")):
        store.save_results(scale, f"probe_students{name}", record[table], record)
    store.save_results(scale, "probe_students_staircase", staircase.by_rank(stairs), stairs)


def main() -> None:
    """Run the jobs named, one after the other; what is found is kept, and what was interrupted goes on."""
    parser = argparse.ArgumentParser(prog="python -m workflow.long", description=main.__doc__)
    parser.add_argument("jobs", nargs="+", choices=JOBS, metavar="JOB", help=", ".join(JOBS))
    parser.add_argument("--scale", default="tiny", choices=list(scales.SCALES))
    options = parser.parse_args()
    ladder = scales.parameters("04_distill", options.scale)
    for job in options.jobs:
        if job == "sensitivity":
            sensitivity(options.scale)
        elif job == "brackets":
            brackets(options.scale)
        elif job == "longer":
            longer(ladder)
        elif job == "longest":
            longest(ladder)
        elif job == "controls":
            for table in scales.CONTROLS:
                controls(ladder, table)
        else:
            probes(options.scale)


if __name__ == "__main__":
    errors.command(main)
