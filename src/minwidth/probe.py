"""Linear probes on mean-pooled hidden states, with the controls that say what their accuracy is worth (section 7).

A probe is a scikit-learn pipeline that sees the mean of the residual stream over a passage's first tokens. Splits keep
documents whole, the penalty is chosen on the training side alone, intervals resample documents. Controls: the words
themselves, all of them or squeezed into as many numbers as the model's state has, the embedding layer, the same model
untrained, labels dealt at random, and sources of text that the probe was not trained on.

``python -m minwidth.probe --scale tiny`` probes every student of the ladders, there on as many passages as the paper;
each model is a record of its own, and an interrupted command goes on where it stopped.
"""

import argparse
import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, islice
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import nn
from tqdm.auto import tqdm

from minwidth import concepts, errors, ladders, models, scales, store, stream, students, training

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # C of scikit-learn, on standardised features
WORD_PENALTIES = (1e-2, 1e-1, 1.0, 10.0)  # the same on a bag of words
FOLDS = 5  # four train, one tests: 80/20
INNER = 3  # folds of the training side that choose the penalty
RESAMPLES = 500  # of documents, for 95 % intervals
FORWARD_TOKENS = 8192  # of one forward pass
WORDS = 5000  # most frequent words that the bag of words knows
DEPTHS = 9  # of the teacher's layer curve, at most
CONTROLS = ("projected_words", "embedding", "untrained")  # as many numbers as the state, and no step of distillation


# -------------------------------------------------------------------------------------------------- what a probe sees


def tokenized(tokenizer, texts: Sequence[str], tokens: int) -> list[list[int]]:
    """The first ``tokens`` token ids of each text."""
    return [ids[:tokens] for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]


@torch.no_grad()
def pooled(
    model: nn.Module, ids: Sequence[Sequence[int]], start: int, layers: Sequence[int], progress: str = "probing"
) -> Float[np.ndarray, "layers passages d"]:
    """Mean residual stream of each passage at each layer (0: the embedding).

    Each passage stands behind the token ``start``, as documents do in training text; that first position, whose
    activations are massive in many models, is not part of the mean.
    """
    features = np.zeros((len(layers), len(ids), model.config.hidden_size), np.float32)
    device = next(model.parameters()).device
    lengths = np.array([len(passage) for passage in ids])
    order = np.argsort(lengths, kind="stable")
    bar = tqdm(total=int(lengths.sum()), desc=progress, unit=" tokens", leave=False)
    for rows in np.array_split(order, -(-len(ids) * (1 + lengths.max()) // FORWARD_TOKENS)):
        longest = 1 + lengths[rows].max()
        batch = torch.full((len(rows), longest), start)
        inside = torch.zeros(len(rows), longest)
        for place, i in enumerate(rows):
            batch[place, 1 : 1 + len(ids[i])] = torch.tensor(ids[i])
            inside[place, 1 : 1 + len(ids[i])] = 1 / len(ids[i])
        found = stream.streams(model, batch.to(device), layers)  # causal: padding at the end changes nothing
        for number, layer in enumerate(layers):
            mean = torch.einsum("bl,bld->bd", inside.to(device), found[layer].float())
            features[number, rows] = mean.cpu().numpy()
        bar.update(int(lengths[rows].sum()))
    bar.close()
    return features


# ------------------------------------------------------------------------------------------------------------- splits

Folds = list[tuple[np.ndarray, np.ndarray]]  # places in a training side: those that fit, those that choose the penalty


class Split(NamedTuple):
    """Row numbers of one split, and the folds of its training side that choose the penalty."""

    train: Int[np.ndarray, "train"]
    test: Int[np.ndarray, "test"]
    folds: Folds


def split(train: np.ndarray, test: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> Split:
    """A split of given sides; its folds keep groups whole too."""
    return Split(train, test, list(StratifiedGroupKFold(INNER).split(train, labels[train], groups[train])))


def splits(rows: np.ndarray, labels: np.ndarray, groups: np.ndarray, count: int, seed: int) -> list[Split]:
    """80/20 splits of ``rows`` that keep groups whole and classes balanced.

    Up to five splits test on different passages; more deal the groups anew.
    """
    dealt = (StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed + n) for n in range(-(-count // FOLDS)))
    sides = chain.from_iterable(folds.split(rows, labels[rows], groups[rows]) for folds in dealt)
    return [split(rows[train], rows[test], labels, groups) for train, test in islice(sides, count)]


class Task(NamedTuple):
    """What probes are asked of one concept: its passages by place in the table, and splits of these."""

    concept: str
    control: str  # none, shuffled or unseen_source
    place: Int[np.ndarray, "passages"]
    labels: Int[np.ndarray, "passages"]
    groups: np.ndarray
    splits: list[Split]


def tasks(passages: pd.DataFrame, p: scales.Probe) -> list[Task]:
    """Of each concept its labels; labels dealt at random; and, where it has such sources, a test on unseen ones.

    Unseen sources, of both classes, are those that ``data/concepts.yaml`` pairs: a split each, whose training side
    lacks them. The second set of a concept is in no other training or test side.
    """
    found = []
    for concept, table in passages.groupby("concept", sort=False):
        labels, groups, main = table.label.to_numpy(), table.group.to_numpy(), (table.set == "main").to_numpy()
        dealt, parts = labels.copy(), splits(np.flatnonzero(main), labels, groups, p.splits, p.seed)
        dealt[main] = np.random.default_rng([p.seed, 1]).permutation(labels[main])
        unseen = []
        for pair in concepts.collection(p.text)["concepts"][concept].get("unseen", []):
            pattern = np.where(labels == 1, *pair)
            hidden = np.array([bool(re.fullmatch(*both)) for both in zip(pattern, table.source, strict=True)])
            kept = main & ~hidden & ~np.isin(groups, groups[hidden])
            unseen.append(split(np.flatnonzero(kept), np.flatnonzero(hidden), labels, groups))
        asked = [("none", labels, parts), ("shuffled", dealt, parts), ("unseen_source", labels, unseen)]
        place = table.index.to_numpy()
        found += [Task(concept, name, place, truth, groups, of) for name, truth, of in asked if of]
    return found


# ------------------------------------------------------------------------------------------------------------- probes


def state_probe(folds: Folds) -> Pipeline:
    """A probe of hidden states ``[passages, d]``."""
    return make_pipeline(StandardScaler(), _classifier(PENALTIES, folds))


def word_probe(folds: Folds, width: int | None = None, memory: str | None = None) -> Pipeline:
    """The same of a bag of words: which of the most frequent words a text has; projected to ``width`` numbers if given.

    The projection keeps the leading singular vectors of the training side's bags (latent semantic analysis).
    ``memory`` is a folder in which bags are kept for the next probe of the same texts.
    """
    bag = CountVectorizer(binary=True, max_features=WORDS, token_pattern=r"(?u)\b\w+\b")
    if width is None:  # liblinear is much faster on words
        return make_pipeline(bag, _classifier(WORD_PENALTIES, folds, solver="liblinear", random_state=0), memory=memory)
    return make_pipeline(bag, TruncatedSVD(width, n_iter=2, random_state=0), *state_probe(folds), memory=memory)


def _classifier(penalties: Sequence[float], folds: Folds, **options) -> LogisticRegressionCV:
    return LogisticRegressionCV(
        Cs=penalties, cv=folds, scoring=_log_likelihood, max_iter=1000, l1_ratios=(0,), use_legacy_attributes=False,
        **options,
    )  # fmt: skip


def _log_likelihood(probe, features, labels) -> float:
    """Of a label, in the mean: scikit-learn's ``neg_log_loss`` in a tenth of its time."""
    odds = probe.decision_function(features)
    return -float(np.logaddexp(0, np.where(labels == 1, -odds, odds)).mean())


def scores(probe: Callable[[Folds], Pipeline], features: np.ndarray, task: Task) -> pd.DataFrame:
    """Train a probe a split and apply it to the split's test side.

    Args:
        probe: ``state_probe`` or ``word_probe``.
        features: of the task's passages: hidden states ``[passages, d]``, or an array of texts.

    Returns:
        One row a tested passage: ``split``, ``row``, ``label``, ``group`` and ``score``, the log-odds of the concept.
    """
    tables = []
    for number, (train, test, folds) in enumerate(task.splits):
        fitted = probe(folds).fit(features[train], task.labels[train])
        tested = {"split": number, "row": test, "label": task.labels[test], "group": task.groups[test]}
        tables.append(pd.DataFrame(tested | {"score": fitted.decision_function(features[test])}))
    return pd.concat(tables, ignore_index=True)


# ---------------------------------------------------------------------------------------------------------- intervals


def summary(table: pd.DataFrame, seed: int) -> dict[str, float]:
    """Accuracy with its 95 % interval from resampling groups (documents), over all splits of a table of ``scores``.

    Returns:
        ``accuracy``, ``low``, ``high``; ``auroc``, the mean area under the ROC curve of the splits; and how many
        ``passages``, ``documents`` and ``splits`` were tested.
    """
    accuracy, low, high = _interval((table.score > 0) == table.label, table.group, seed)
    areas = [roc_auc_score(part.label, part.score) for _, part in table.groupby("split")]
    found = {"accuracy": accuracy, "low": low, "high": high, "auroc": float(np.mean(areas))}
    return found | {"passages": len(table), "documents": table.group.nunique(), "splits": len(areas)}


def difference(one: pd.DataFrame, other: pd.DataFrame, seed: int) -> tuple[float, float, float]:
    """Accuracy of ``one`` less that of ``other`` on the same splits, with its 95 % interval from resampling groups.

    Raises:
        ValueError: they were tested on different passages.
    """
    if not np.array_equal(one[["split", "row"]], other[["split", "row"]]):
        raise ValueError("The two probes were tested on different passages; use the same seed and splits.")
    right = [((table.score > 0) == table.label).to_numpy(float) for table in (one, other)]
    return _interval(right[0] - right[1], one.group, seed)


def _interval(values: Sequence[float], groups: Sequence[str], seed: int) -> tuple[float, float, float]:
    """Mean of one value a passage, and its 95 % interval if whole groups are drawn anew with replacement."""
    _, member = np.unique(groups, return_inverse=True)
    total, size = np.bincount(member, np.asarray(values, float)), np.bincount(member)
    drawn = np.random.default_rng(seed).multinomial(len(size), np.full(len(size), 1 / len(size)), size=RESAMPLES)
    low, high = np.percentile(drawn @ total / (drawn @ size), [2.5, 97.5])
    return float(np.mean(values)), float(low), float(high)


def beats(accuracy: pd.DataFrame, words: pd.DataFrame, controls: Sequence[str] = CONTROLS) -> pd.DataFrame:
    """Whether each model beats its controls: its interval lies above that of every one of them.

    Args:
        accuracy, words: as ``survey`` and ``words`` give them. Of the words' widths a model meets its own.
        controls: those that count; one that was not measured (a cut student has no untrained twin) is no rival.

    Returns:
        One row a model and concept: model, ladder, width, concept, accuracy, low; ``control``, the one whose interval
        reaches highest, its control_accuracy and control_high; ``beats``.
    """
    key = ["model", "ladder", "width", "concept"]
    own = accuracy[accuracy.control == "none"][[*key, "accuracy", "low"]]
    words = words[["concept", "control", "width", "accuracy", "high"]]
    full = own[key].merge(words[words.width == 0].drop(columns="width"), on="concept")
    rivals = pd.concat([accuracy, full, own[key].merge(words, on=["width", "concept"])])
    rivals = rivals[rivals.control.isin(controls)].sort_values("high", ascending=False).drop_duplicates(key)
    best = rivals[[*key, "control", "accuracy", "high"]]
    found = own.merge(best.rename(columns={"accuracy": "control_accuracy", "high": "control_high"}), on=key)
    return found.assign(beats=found.low > found.control_high)


# --------------------------------------------------------------------------------------------------------- the models


class Subject(NamedTuple):
    """A model to probe: the teacher (``ladder`` empty), a student after ``steps`` of training, or before (0)."""

    ladder: str
    width: int
    seed: int
    steps: int

    @property
    def label(self) -> str:
        return f"{self.ladder}-w{self.width}-s{self.seed}-n{self.steps}" if self.ladder else "teacher"

    @property
    def names(self) -> dict[str, Any]:  # its columns in tables
        return {"model": "student" if self.ladder else "teacher", "ladder": self.ladder or "none", "width": self.width}


def subjects(p: scales.Probe, d: scales.Distill) -> tuple[list[Subject], list[Subject]]:
    """The trained students of ``d`` to probe, and those left out because 04_distill has not trained them.

    At full width the width-alone student is the teacher, so it is not among them; nor is a head, whose layers are the
    teacher's.
    """
    wanted = [
        Subject(ladder, width, d.seeds[0], 2 * d.steps)
        for ladder in d.ladders
        if ladder != "head"
        for width in d.widths_of(ladder)
        if width in p.widths and not (ladder == "width_alone" and width == p.shape.width)
    ]
    there = [s for s in wanted if p.train_students or store.find(*students.key(d, students.Job(*s))) is not None]
    return there, [s for s in wanted if s not in there]


def trainings(d: scales.Distill, subjects: list[Subject]) -> dict[Subject, store.Record]:
    """The record of each student's training; those that are missing are trained first."""
    return dict(zip(subjects, ladders.train([(d, students.Job(*s)) for s in subjects]), strict=True))


READING = threading.Lock()  # held while a model is made or read: making one may trace the teacher, which all share


def model_of(d: scales.Distill, subject: Subject, teacher: models.Teacher) -> nn.Module:
    """The model itself, in eval mode."""
    if not subject.ladder:
        return teacher.model
    if subject.steps:
        return students.trained(d, students.Job(*subject), teacher)
    return students.untrained(teacher, d, subject.ladder, subject.width, subject.seed).eval()


def side_by_side(p: scales.Probe, compute: Callable[[Subject], Any], subjects: Iterable[Subject]) -> list:
    """Several small models at a time with one thread each, or a large one after the other."""
    small = p.shape.width <= scales.ONE_THREAD and training.state().device.type == "cpu"
    threads = torch.get_num_threads()
    with threadpool_limits(1), ThreadPoolExecutor(min(4, os.cpu_count() or 1) if small else 1) as pool:
        torch.set_num_threads(1 if small else threads)
        waiting = [pool.submit(compute, subject) for subject in subjects]
        found = [future.result() for future in tqdm(waiting, desc="models", unit=" models", leave=False)]
    torch.set_num_threads(threads)
    return found


# ---------------------------------------------------------------------------------------------------------- the survey


class Inputs(NamedTuple):
    """What every model of a survey reads."""

    teacher: models.Teacher
    ids: list[list[int]]  # of each passage, the first tokens
    tasks: list[Task]


def read(p: scales.Probe) -> Inputs:
    """Teacher, first tokens of the passages of the chosen concepts, and what is asked of them."""
    passages = concepts.labelled(p.passages, p.seed, p.text, p.documents)["passages"]
    passages = passages[passages.concept.isin(p.concepts)].reset_index(drop=True)
    teacher = models.load_teacher(p.shape.teacher, device=training.state().device)
    return Inputs(teacher, tokenized(teacher.tokenizer, passages.text, p.tokens), tasks(passages, p))


def _settings(p: scales.Probe) -> dict[str, Any]:
    """All that a probe depends on besides its model."""
    chosen = p.model_dump(include={"concepts", "layer", "tokens", "splits", "seed"})
    chosen |= {"folds": [FOLDS, INNER], "penalties": [PENALTIES, WORD_PENALTIES]}
    chosen["text"] = concepts.labelled(p.passages, p.seed, p.text, p.documents).key
    return chosen | {"teacher": models.teacher_revision(p.shape.teacher)}


def survey(p: scales.Probe, d: scales.Distill) -> store.Record:
    """Probe the teacher and the students of ``d`` for every concept, with all controls; each model once, then found.

    Returns:
        A record with ``accuracy`` (one row a concept, model and control; ``shift`` is against the teacher, passage by
        passage), ``words`` (see there), ``layers`` (the teacher at every depth) and ``students`` (a row each: tokens
        seen, loss and untrained loss in nats per token); its parameter ``missing`` names students that are not trained.
    """
    found, missing = subjects(p, d)
    teacher = Subject("", p.shape.width, 0, 0)
    twins = {teacher: Subject("random", p.shape.width, d.seeds[0], 0)} | {s: s._replace(steps=0) for s in found}
    trained, settings = trainings(d, found), _settings(p)
    keys = {  # a student's says what it was trained on and how
        s: (f"probe/{p.scale}/{s.label}", settings | s._asdict() | ({"run": trained[s].key} if s in trained else {}))
        for s in [*twins, *twins.values()]
    }
    inputs = read(p) if any(store.find(*key) is None for key in keys.values()) else None
    found = side_by_side(p, lambda s: probed(p, d, s, keys[s], inputs), keys)
    records, bags = dict(zip(keys, found, strict=True)), words(p, inputs)

    def assemble():
        tables, of_teacher = [], records[teacher]["scores"]
        for subject, twin in twins.items():
            own, before = records[subject], records[twin]["accuracy"]
            # the width-alone student starts from the teacher's own weights: before training it is cut, not ignorant
            before = before.assign(control="cut" if twin.ladder == "width_alone" else "untrained")
            shifts = [
                (concept, "none", *difference(one, of_teacher[of_teacher.concept == concept], p.seed))
                for concept, one in own["scores"].groupby("concept")
            ]
            shifts = pd.DataFrame(shifts, columns=["concept", "control", "shift", "shift_low", "shift_high"])
            tables.append(pd.concat([own["accuracy"].merge(shifts, "left"), before]).assign(**subject.names))
        budget = [
            s.names | {"tokens": s.steps * d.batch * d.length, "loss": r["floor"], "untrained": r["untrained"]}
            for s, r in trained.items()
        ]
        accuracy = pd.concat(tables, ignore_index=True).set_index([*teacher.names, "concept", "control"]).reset_index()
        rest = {"words": bags["accuracy"], "layers": records[teacher]["layers"], "students": pd.DataFrame(budget)}
        return {"accuracy": accuracy} | rest

    parts = {subject.label: record.key for subject, record in records.items()} | {"words": bags.key}
    whole = {"parts": parts, "missing": [subject.label for subject in missing], "seed": p.seed}
    return store.find_or_compute(f"probe/{p.scale}/survey", whole, assemble)


def probed(
    p: scales.Probe, d: scales.Distill, subject: Subject, key: tuple[str, dict], inputs: Inputs | None
) -> store.Record:
    """The record ``key`` of one model's probes, found or computed from ``inputs``; see ``probe_states``."""
    layers = {0, p.layer} if (learned := bool(subject.steps or not subject.ladder)) else {p.layer}
    if not subject.ladder:  # the curve over depth
        layers |= set(np.linspace(0, p.shape.layers, min(DEPTHS, p.shape.layers + 1)).astype(int).tolist())

    def compute():
        with READING:
            model, start = model_of(d, subject, inputs.teacher), inputs.teacher.tokenizer.eos_token_id
            states = pooled(model, inputs.ids, start, sorted(layers), f"reading by {subject.label}")
        return probe_states(dict(zip(sorted(layers), states, strict=True)), inputs.tasks, p, controls=learned)

    return store.find_or_compute(*key, compute)


def probe_states(
    states: dict[int, Float[np.ndarray, "passages d"]], todo: list[Task], p: scales.Probe, controls: bool = True
) -> dict[str, pd.DataFrame]:
    """A model's probes from its pooled states by layer: ``accuracy`` by concept and control, ``layers``, ``scores``.

    ``accuracy`` is that of layer ``p.layer``, but for the control ``embedding``, which is layer 0; ``scores`` are those
    of the control ``none``, which is no control.
    """
    rows, curve, kept = [], [], []
    for task in todo if controls else [task for task in todo if task.control == "none"]:
        for layer in states if task.control == "none" else [p.layer]:
            found = scores(state_probe, states[layer][task.place], task)
            row = {"concept": task.concept} | summary(found, p.seed)
            rows += [row | {"control": task.control}] if layer == p.layer else []
            if task.control == "none":
                curve.append(row | {"layer": layer})
                rows += [row | {"control": "embedding"}] if layer == 0 and controls else []
                kept += [found.assign(concept=task.concept)] if layer == p.layer else []
    return {"accuracy": pd.DataFrame(rows), "layers": pd.DataFrame(curve), "scores": pd.concat(kept, ignore_index=True)}


def words(p: scales.Probe, inputs: Inputs | None = None) -> store.Record:
    """What the words alone give, of exactly the text that the models read: its table is ``accuracy``.

    Its controls are ``bag_of_words`` and ``bag_of_words_unseen_source``, of width 0, and ``projected_words``, for the
    width of the teacher and of every student, or as many numbers as there are passages to find them by.
    """
    widths = sorted({*p.widths, p.shape.width})

    def compute():
        with TemporaryDirectory() as folder:
            return {"accuracy": pd.DataFrame(rows(partial(word_probe, memory=folder)))}

    def rows(probe: Callable[..., Pipeline]) -> Iterator[dict[str, Any]]:
        teacher, ids, todo = inputs or read(p)
        texts = np.array(teacher.tokenizer.batch_decode(ids), dtype=object)
        for task in tqdm([task for task in todo if task.control != "shuffled"], desc="words", leave=False):
            probes = [("bag_of_words" if task.control == "none" else "bag_of_words_unseen_source", 0, probe)]
            if task.control == "none":
                most = min(len(train) for train, *_ in task.splits) - 1
                probes += [("projected_words", width, partial(probe, width=min(width, most))) for width in widths]
            for control, width, make in probes:
                found = summary(scores(make, texts[task.place], task), p.seed)
                yield {"concept": task.concept, "control": control, "width": width} | found

    with threadpool_limits(1):
        return store.find_or_compute(f"probe/{p.scale}/words", _settings(p) | {"widths": widths}, compute)


# ------------------------------------------------------------------------------------------------------ every student


def every_student(scale: str) -> None:
    """Words, survey and staircase of all students of a scale's ladders, as ``scales.EVERY_STUDENT`` has it.

    Where that says ``longer``, they are those of 04's longer ladders. Writes the tables ``probe_students``, and with
    its endings ``_words``, ``_layers``, ``_budget`` and ``_staircase``.
    """
    from minwidth import staircase  # which reads this module

    changes, d = dict(scales.EVERY_STUDENT[scale]), scales.parameters("04_distill", scale)
    d = d.longer() if changes.pop("longer", False) else d
    p = scales.parameters("05_probe", scale, **changes)
    save = partial(store.save_results, scale)
    bags = words(p)
    save("probe_students_words", bags["accuracy"], bags)
    record = survey(p, d)
    for name, table in (("", "accuracy"), ("_layers", "layers"), ("_budget", "students")):
        save(f"probe_students{name}", record[table], record)
    stairs = staircase.measure(p, d)
    save("probe_students_staircase", staircase.by_rank(stairs), stairs)


def main(arguments: list[str] | None = None) -> None:
    """Probe every student of a scale's ladders and write the tables; records found are kept."""
    parser = argparse.ArgumentParser(prog="python -m minwidth.probe", description=main.__doc__)
    parser.add_argument("--scale", default="tiny", choices=list(scales.EVERY_STUDENT))
    every_student(parser.parse_args(arguments).scale)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with errors.in_one_sentence():
        main()
