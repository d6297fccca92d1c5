"""Linear probes on mean-pooled hidden states, with the controls that say what their accuracy is worth (section 7).

A probe is a scikit-learn pipeline that sees the mean of the residual stream over a passage's first tokens. Splits keep
documents whole, the penalty is chosen on the training side alone, intervals resample documents. Controls: the words,
all or in as many numbers as the state has, the embedding layer, the same model untrained, labels dealt at random, and
sources of text that the probe was not trained on. Each model is a record of its own.
"""

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import chain, islice
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
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from minwidth import concepts, ladders, measured, models, scales, store, stream, students, training
from minwidth.errors import ParameterError
from minwidth.students import Job

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # C of scikit-learn, on standardised features
WORD_PENALTIES = (1e-2, 1e-1, 1.0, 10.0)  # the same on a bag of words
FOLDS = 5  # four train, one tests: 80/20
INNER = 3  # folds of the training side that choose the penalty
RESAMPLES = 500  # of documents, for 95 % intervals
FORWARD_TOKENS = 8192  # of one forward pass
WORDS = 5000  # most frequent words that the bag of words knows
DEPTHS = 9  # of the teacher's layer curve, at most


@torch.no_grad()
def pooled(
    model: nn.Module, ids: list[list[int]], start: int, layers: list[int]
) -> Float[np.ndarray, "layers passages d"]:
    """Mean residual stream of each passage at each layer (0: the embedding).

    Each passage stands behind the token ``start``, as documents do in training text; that first position, whose
    activations are massive in many models, is not part of the mean.
    """
    features = np.zeros((len(layers), len(ids), model.config.hidden_size), np.float32)
    lengths = np.array([len(passage) for passage in ids])
    parts = np.array_split(np.argsort(lengths, kind="stable"), -(-len(ids) * (1 + lengths.max()) // FORWARD_TOKENS))
    for rows in tqdm(parts, desc="probing", leave=False):
        batch = pad_sequence([torch.tensor([start, *ids[row]]) for row in rows], batch_first=True).to(model.device)
        place, length = torch.arange(batch.shape[1]), torch.tensor(lengths[rows])[:, None]
        weights = (((place > 0) & (place <= length)) / length).to(model.device)
        found = stream.streams(model, batch, layers)  # causal: padding at the end changes nothing
        for layer, of_layer in zip(layers, features, strict=True):
            of_layer[rows] = torch.einsum("bl,bld->bd", weights, found[layer].float()).cpu().numpy()
    return features


Split = tuple[np.ndarray, np.ndarray, list]  # rows that train, rows that test, folds of places among the former


def split(train: np.ndarray, test: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> Split:
    """A split of given sides; the folds of its training side, which choose the penalty, keep groups whole too."""
    return train, test, list(StratifiedGroupKFold(INNER).split(train, labels[train], groups[train]))


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
    """Of each concept its labels; labels dealt at random; and a test on the pairs of unseen sources that it has.

    Each pair of ``data/concepts.yaml`` is a split whose training side lacks both. The second set is in no other split.
    """
    found = []
    for concept, table in passages.groupby("concept", sort=False):
        labels, groups, main = table.label.to_numpy(), table.group.to_numpy(), (table.set == "main").to_numpy()
        dealt, parts = labels.copy(), splits(np.flatnonzero(main), labels, groups, p.splits, p.seed)
        dealt[main] = np.random.default_rng([p.seed, 1]).permutation(labels[main])
        unseen = []
        for pair in concepts.collection(p.text)["concepts"][concept].get("unseen", []):
            hidden = np.where(labels == 1, *(table.source.str.fullmatch(of) for of in pair))
            kept = main & ~hidden & ~np.isin(groups, groups[hidden])
            unseen.append(split(np.flatnonzero(kept), np.flatnonzero(hidden), labels, groups))
        # labels dealt at random keep the splits of the true ones, and their folds
        asked = [("none", labels, parts), ("shuffled", dealt, parts), ("unseen_source", labels, unseen)]
        found += [Task(concept, name, table.index.to_numpy(), truth, groups, of) for name, truth, of in asked if of]
    return found


def classifier(penalties: tuple[float, ...], folds: list, **options) -> LogisticRegressionCV:
    """A logistic regression whose penalty is chosen on ``folds`` of the training side by its likelihood."""
    return LogisticRegressionCV(
        Cs=penalties, cv=folds, scoring=log_likelihood, max_iter=1000, l1_ratios=(0,), use_legacy_attributes=False,
        **options,
    )  # fmt: skip


def log_likelihood(probe, features: np.ndarray, labels: np.ndarray) -> float:
    """Of a label, in the mean: scikit-learn's ``neg_log_loss`` in a tenth of its time."""
    return -float(np.logaddexp(0, np.where(labels == 1, -1, 1) * probe.decision_function(features)).mean())


def state_probe(folds: list) -> Pipeline:
    """A probe of hidden states ``[passages, d]``."""
    return make_pipeline(StandardScaler(), classifier(PENALTIES, folds))


def word_probe(folds: list, width: int = 0) -> Pipeline:
    """The same of a bag of words: which of the most frequent words a text has; projected to ``width`` numbers, if any.

    The projection keeps the leading singular vectors of the training side's bags (latent semantic analysis).
    """
    bag = CountVectorizer(binary=True, max_features=WORDS, token_pattern=r"(?u)\b\w+\b")
    if not width:  # liblinear is much faster on words
        return make_pipeline(bag, classifier(WORD_PENALTIES, folds, solver="liblinear", random_state=0))
    return make_pipeline(bag, TruncatedSVD(width, n_iter=2, random_state=0), *state_probe(folds))


def scores(probe: Callable[[list], Pipeline], features: np.ndarray, task: Task) -> pd.DataFrame:
    """Train a probe a split, on hidden states ``[passages, d]`` or texts, and apply it to the split's test side.

    One row a tested passage: ``split``, ``row``, ``label``, ``group`` and ``score``, the log-odds of the concept.
    """
    tables = []
    for number, (train, test, folds) in enumerate(task.splits):
        odds = probe(folds).fit(features[train], task.labels[train]).decision_function(features[test])
        tested = {"split": number, "row": test, "label": task.labels[test], "group": task.groups[test], "score": odds}
        tables.append(pd.DataFrame(tested))
    return pd.concat(tables, ignore_index=True)


def summary(table: pd.DataFrame, seed: int) -> dict[str, float]:
    """Of a table of ``scores``: accuracy with its interval, mean area under the splits' ROC curves, and counts."""
    right = (table.score > 0) == table.label
    low, high = measured.interval(right, table.group, seed, RESAMPLES)
    areas = [roc_auc_score(part.label, part.score) for _, part in table.groupby("split")]
    found = {"accuracy": float(right.mean()), "low": low, "high": high, "auroc": float(np.mean(areas))}
    return found | {"passages": len(table), "documents": table.group.nunique(), "splits": len(areas)}


def names(job: Job) -> dict[str, Any]:
    """A model's columns in tables; the teacher is the job without a ladder, an untrained student one of no steps."""
    return {"model": "student" if job.ladder else "teacher", "ladder": job.ladder or "none", "width": job.width}


def trained_students(p: scales.Probe, d: scales.Distill) -> tuple[dict[Job, store.Record], list[str]]:
    """The training of each student of ``d`` to probe, and the labels of those that are missing and not to be trained.

    At full width the width-alone student is the teacher, so it is not among them; nor is a head, whose layers are the
    teacher's. ParameterError if there is none to probe.
    """
    wanted = [
        Job(ladder, width, d.seeds[0], 2 * d.steps)
        for ladder in d.ladders
        if ladder != "head"
        for width in d.widths_of(ladder)
        if width in p.widths and (ladder, width) != ("width_alone", p.shape.width)
    ]
    there = [job for job in wanted if p.train_students or store.find(*students.key(d, job)) is not None]
    if not there:
        raise ParameterError(
            f"No student of widths = {p.widths} has been trained at scale {p.scale}: run 04_distill there first, or "
            "set train_students = True."
        )
    trained = ladders.train((d, job) for job in there)
    return dict(zip(there, trained, strict=True)), [job.label for job in wanted if job not in there]


READING = threading.Lock()  # held while a model is made or read: making one may trace the teacher, which all share


def model_of(d: scales.Distill, job: Job, teacher: models.Teacher) -> nn.Module:
    """The model itself, in eval mode."""
    if not job.ladder:
        return teacher.model
    if job.steps:
        return students.trained(d, job, teacher)
    return students.make(teacher, d, job.ladder, job.width, job.seed).eval()


def side_by_side(p: scales.Probe, compute: Callable[[Job], Any], jobs: Iterable[Job]) -> list:
    """Several small models at a time with one thread each, or a large one after the other."""
    small = p.shape.width <= scales.ONE_THREAD and training.state().device.type == "cpu"
    workers = min(4, os.cpu_count()) if small else 1
    with training.threads(p.shape.width), threadpool_limits(1), ThreadPoolExecutor(workers) as pool:
        waiting = [pool.submit(compute, job) for job in jobs]
        return [future.result() for future in tqdm(waiting, desc="models", unit=" models", leave=False)]


def survey(p: scales.Probe, d: scales.Distill) -> store.Record:
    """Probe the teacher and the students of ``d`` for every concept, with all controls; each model once, then found.

    Returns:
        A record with ``accuracy`` (one row a concept, model and control; ``shift`` is against the teacher, passage by
        passage), ``words``, ``layers`` (the teacher at every depth) and ``students`` (tokens seen, loss and untrained
        loss in nats per token); its parameter ``missing`` names students that are not trained.
    """
    trained, missing = trained_students(p, d)
    text, teacher = concepts.labelled(p.passages, p.seed, p.text, p.documents), Job("", p.shape.width, 0, 0)
    settings = p.model_dump(include={"concepts", "layer", "tokens", "splits", "seed"})  # what all models share
    settings |= {"folds": [FOLDS, INNER], "penalties": [PENALTIES, WORD_PENALTIES]}
    settings |= {"text": text.key, "teacher": models.teacher_revision(p.shape.teacher)}
    twins = {teacher: Job("random", p.shape.width, d.seeds[0], 0)} | {job: job._replace(steps=0) for job in trained}
    keys = {}
    for job in [*twins, *twins.values()]:
        run = {"run": trained[job].key} if job in trained else {}  # what a student was trained on and how
        keys[job] = f"probe/{p.scale}/{job.label}", settings | job._asdict() | run
    inputs = cache(partial(_read, p, text["passages"]))  # by the first model that has no record yet
    found = side_by_side(p, lambda job: probed(p, d, job, keys[job], inputs), keys)
    records, bags = dict(zip(keys, found, strict=True)), words(p, settings, inputs)

    def assemble():
        tables, tested = [], records[teacher]["scores"]  # the same passages as in every record
        right = {job: (record["scores"].score > 0) == tested.label for job, record in records.items()}
        for job, twin in twins.items():
            gain = right[job].astype(float) - right[teacher]
            shifts = [
                (concept, "none", part.mean(), *measured.interval(part, tested.group[part.index], p.seed, RESAMPLES))
                for concept, part in gain.groupby(tested.concept)
            ]
            shifts = pd.DataFrame(shifts, columns=["concept", "control", "shift", "shift_low", "shift_high"])
            # the width-alone student starts from the teacher's own weights: before training it is cut, not ignorant
            before = records[twin]["accuracy"].assign(control="cut" if twin.ladder == "width_alone" else "untrained")
            tables.append(pd.concat([records[job]["accuracy"].merge(shifts, "left"), before]).assign(**names(job)))
        budget = [
            names(job) | {"tokens": job.steps * d.batch * d.length, "loss": run["loss"], "untrained": run["untrained"]}
            for job, run in trained.items()
        ]
        accuracy = pd.concat(tables).set_index([*names(teacher), "concept", "control"]).reset_index()
        rest = {"words": bags["accuracy"], "layers": records[teacher]["layers"], "students": pd.DataFrame(budget)}
        return {"accuracy": accuracy} | rest

    parts = {job.label: record.key for job, record in records.items()} | {"words": bags.key}
    whole = {"parts": parts, "missing": missing, "seed": p.seed}
    return store.find_or_compute(f"probe/{p.scale}/survey", whole, assemble)


def _read(p: scales.Probe, passages: pd.DataFrame) -> tuple[models.Teacher, list[list[int]], list[Task]]:
    """Teacher, first tokens of the passages of the chosen concepts, and what is asked of them."""
    passages = passages[passages.concept.isin(p.concepts)].reset_index(drop=True)
    teacher = models.load_teacher(p.shape.teacher, device=training.state().device)
    ids = teacher.tokenizer(list(passages.text), add_special_tokens=False)["input_ids"]
    return teacher, [of_passage[: p.tokens] for of_passage in ids], tasks(passages, p)


def probed(p: scales.Probe, d: scales.Distill, job: Job, key: tuple[str, dict], inputs: Callable) -> store.Record:
    """The record ``key`` of one model's probes, found or computed from what ``inputs`` reads; see ``probe_states``."""
    learned = bool(job.steps or not job.ladder)
    layers = {0, p.layer} if learned else {p.layer}
    if not job.ladder:  # the curve over depth
        layers |= set(np.linspace(0, p.shape.layers, min(DEPTHS, p.shape.layers + 1)).astype(int).tolist())

    def compute():
        with READING:
            teacher, ids, todo = inputs()
            states = pooled(model_of(d, job, teacher), ids, teacher.tokenizer.eos_token_id, sorted(layers))
        return probe_states(dict(zip(sorted(layers), states, strict=True)), todo, p, controls=learned)

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


def words(p: scales.Probe, settings: dict[str, Any], inputs: Callable) -> store.Record:
    """What the words alone give, of exactly the text that the models read: its table is ``accuracy``.

    Its controls are ``bag_of_words`` and ``bag_of_words_unseen_source``, of width 0, and ``projected_words``, for the
    width of the teacher and of every student, or as many numbers as there are passages to find them by.
    """
    widths = sorted({*p.widths, p.shape.width})

    def compute():
        teacher, ids, todo = inputs()
        texts, rows = np.array(teacher.tokenizer.batch_decode(ids), dtype=object), []
        for task in tqdm([task for task in todo if task.control != "shuffled"], desc="words", leave=False):
            most, alone = min(len(train) for train, *_ in task.splits) - 1, task.control == "none"
            for width in [0, *widths] if alone else [0]:
                control = "projected_words" if width else "bag_of_words" if alone else "bag_of_words_unseen_source"
                found = scores(partial(word_probe, width=min(width, most)), texts[task.place], task)
                row = {"concept": task.concept, "control": control, "width": width}
                rows.append(row | summary(found, p.seed))
        return {"accuracy": pd.DataFrame(rows)}

    with threadpool_limits(1):
        return store.find_or_compute(f"probe/{p.scale}/words", settings | {"widths": widths}, compute)
