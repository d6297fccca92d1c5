"""Linear probes on mean-pooled hidden states, with the controls that say what their accuracy is worth (section 7).

A probe sees the mean of the residual stream over a passage's first tokens. Splits keep documents whole; the penalty is
chosen on the training side alone; intervals resample documents. Controls: the words themselves, the embedding layer,
the same model untrained, labels dealt at random, and sources of text that the probe was not trained on.

``python -m minwidth.probe --scale tiny`` probes every student of the ladders, there on as many passages as the paper;
each model is a record of its own, and an interrupted command goes on where it stopped.
"""

import argparse
import logging
import os
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import issparse
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import nn
from tqdm.auto import tqdm

from minwidth import capacity, concepts, distill, errors, models, sae, scales, store, stream, training

log = logging.getLogger(__name__)

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # C of scikit-learn, on standardised features
WORD_PENALTIES = (1e-2, 1e-1, 1.0, 10.0)  # the same on a bag of words
FOLDS = 5  # four train, one tests: 80/20
INNER = 3  # folds of the training side that choose the penalty
RESAMPLES = 500  # of documents, for 95 % intervals
FORWARD_TOKENS = 8192  # of one forward pass
WORDS = 5000  # most frequent words that the bag of words counts
DEPTHS = 9  # of the teacher's layer curve, at most
READ_OUT_TOKENS = 40_000  # that a read-out of single features is fitted on; half as many judge it
READ_OUT_ACTIVE = 20  # tokens of either split on which a feature must be active to be judged
RIDGE = 1e-3  # of a read-out, on standardised streams
NEGATIVES_EVERY = 4  # of the held-out tokens, one in so many is what active ones are compared with


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


def bag_of_words(texts: Sequence[str]):
    """Which of the most frequent words each text has, as a sparse matrix ``[texts, words]``."""
    return CountVectorizer(binary=True, max_features=WORDS, token_pattern=r"(?u)\b\w+\b").fit_transform(texts) * 1.0


# ------------------------------------------------------------------------------------------------------------- splits


class Split(NamedTuple):
    """Row numbers of one split, and the folds of its training side that choose the penalty."""

    train: Int[np.ndarray, "train"]
    test: Int[np.ndarray, "test"]
    inner: list[tuple[np.ndarray, np.ndarray]]


def folds(labels: np.ndarray, groups: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Fold of each passage: groups whole, classes balanced; large groups are dealt first, equal ones at random."""
    names, member = np.unique(groups, return_inverse=True)
    sizes = np.stack([np.bincount(member, labels == label, len(names)) for label in (0, 1)], axis=1)
    order = rng.permutation(len(names))
    filled, fold = np.zeros((count, 2)), np.zeros(len(names), dtype=int)
    for group in order[np.argsort(-sizes[order].max(1), kind="stable")]:
        fold[group] = filled[:, sizes[group].argmax()].argmin()
        filled[fold[group]] += sizes[group]
    return fold[member]


def splits(labels: np.ndarray, groups: np.ndarray, count: int, seed: int) -> list[Split]:
    """80/20 splits that keep groups whole and classes balanced.

    Up to five splits test on different passages; more deal the groups anew.
    """
    dealt = [folds(labels, groups, FOLDS, np.random.default_rng([seed, n])) for n in range(-(-count // FOLDS))]
    sides = [dealt[n // FOLDS] == n % FOLDS for n in range(count)]
    return [inside(np.flatnonzero(~test), np.flatnonzero(test), labels, groups, seed) for test in sides]


def inside(train: np.ndarray, test: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int) -> Split:
    """A split of given sides, with folds inside its training side.

    Raises:
        ValueError: a group stands on both sides.
    """
    if both := set(groups[train]) & set(groups[test]):
        raise ValueError(f"'{min(both)}' stands on both sides of a split; documents must be kept whole.")
    fold = folds(labels[train], groups[train], INNER, np.random.default_rng(seed))
    return Split(train, test, [(train[fold != n], train[fold == n]) for n in range(INNER)])


def unseen_sources(passages: pd.DataFrame, unseen: Sequence[tuple[str, str]], seed: int) -> list[Split]:
    """Splits of one concept's passages that test on sources of both classes which the training side lacks.

    Args:
        unseen: pairs of regular expressions, on sources of positives and of negatives; a split each.
    """
    labels, groups = passages.label.to_numpy(), passages.group.to_numpy()
    found = []
    for positives, negatives in unseen:
        pattern = np.where(labels == 1, positives, negatives)
        is_unseen = [bool(re.fullmatch(p, source)) for p, source in zip(pattern, passages.source, strict=True)]
        test = np.flatnonzero(is_unseen)
        train = (passages.set == "main").to_numpy() & ~np.isin(groups, groups[test]) & ~np.array(is_unseen)
        found.append(inside(np.flatnonzero(train), test, labels, groups, seed))
    return found


# ------------------------------------------------------------------------------------------------------------- probes


def scores(features, labels: np.ndarray, parts: Sequence[Split]) -> pd.DataFrame:
    """Train a probe a split and apply it to the split's test side.

    Args:
        features: ``[passages, d]``, standardised by the training side's mean and deviation; or a sparse bag of words.
        labels: 1 or 0.

    Returns:
        One row a tested passage: ``split``, ``row`` and ``score``, the log-odds of the concept.
    """
    penalties = WORD_PENALTIES if issparse(features) else PENALTIES
    tables = []
    for number, split in enumerate(parts):
        loss = np.zeros(len(penalties))
        for train, test in split.inner:
            for place, odds in enumerate(_log_odds(features, labels, train, test, penalties)):
                loss[place] += np.logaddexp(0, np.where(labels[test] == 1, -odds, odds)).mean()
        (odds,) = _log_odds(features, labels, split.train, split.test, [penalties[int(loss.argmin())]])
        tables.append(pd.DataFrame({"split": number, "row": split.test, "score": odds}))
    return pd.concat(tables, ignore_index=True)


def _log_odds(features, labels, train, test, penalties) -> list[np.ndarray]:
    seen, asked = features[train], features[test]
    probe = LogisticRegression(max_iter=1000, warm_start=True)  # from the stronger penalty to the weaker
    if issparse(features):
        probe.set_params(solver="liblinear", random_state=0)  # much faster on words
    else:
        scaler = StandardScaler().fit(seen)
        seen, asked = scaler.transform(seen), scaler.transform(asked)
    return [probe.set_params(C=C).fit(seen, labels[train]).decision_function(asked) for C in penalties]


# ---------------------------------------------------------------------------------------------------------- intervals


def summary(table: pd.DataFrame, labels: np.ndarray, groups: np.ndarray, seed: int) -> dict[str, float]:
    """Accuracy and area under the ROC curve with 95 % intervals from resampling groups (documents), over all splits.

    Args:
        table: as ``scores`` gives it.
        labels, groups: of all passages; ``row`` numbers into them.
    """
    rows, odds = table.row.to_numpy(), table.score.to_numpy()
    truth = labels[rows]
    weights, member = _resampled(groups[rows], seed)
    accuracy = _mean(((odds > 0) == truth), weights, member)
    area = np.mean(
        [
            _roc_area(odds[part], truth[part], weights[:, member[part]])
            for part in (table.split.to_numpy() == number for number in table.split.unique())
        ],
        axis=0,
    )
    names = ("accuracy", "low", "high", "auroc", "auroc_low", "auroc_high")
    return dict(zip(names, [*_interval(accuracy), *_interval(area)], strict=True))


def difference(one: pd.DataFrame, other: pd.DataFrame, labels, groups, seed: int) -> tuple[float, float, float]:
    """Accuracy of ``one`` less that of ``other`` on the same splits, with its 95 % interval from resampling groups."""
    rows = one.row.to_numpy()
    if not np.array_equal(one[["split", "row"]], other[["split", "row"]]):
        raise ValueError("The two probes were tested on different passages; use the same seed and splits.")
    right = [(table.score.to_numpy() > 0) == labels[rows] for table in (one, other)]
    return _interval(_mean(right[0].astype(float) - right[1], *_resampled(groups[rows], seed)))


def _resampled(groups: np.ndarray, seed: int) -> tuple[Float[np.ndarray, "resamples groups"], np.ndarray]:
    """How often each group is drawn, the first row once each; and the group number of each passage."""
    names, member = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    return np.concatenate([np.ones((1, len(names))), drawn]), member


def _mean(values: np.ndarray, weights: np.ndarray, member: np.ndarray) -> np.ndarray:
    """Weighted means ``[resamples]`` of one value a passage."""
    groups = weights.shape[1]
    total = weights @ np.bincount(member, values.astype(float), groups)
    return total / (weights @ np.bincount(member, minlength=groups))


def _roc_area(odds: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Areas under the ROC curve ``[resamples]``: how often a positive scores above a negative, ties counted half."""
    order = np.argsort(odds, kind="stable")
    positive, negative = weights[:, order] * (truth[order] == 1), weights[:, order] * (truth[order] == 0)
    _, first = np.unique(odds[order], return_index=True)
    positive, negative = (np.add.reduceat(side, first, axis=1) for side in (positive, negative))
    below = np.cumsum(negative, axis=1) - negative / 2
    pairs = positive.sum(1) * negative.sum(1)
    return np.divide((positive * below).sum(1), pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


def _interval(resampled: np.ndarray) -> tuple[float, float, float]:
    low, high = np.nanpercentile(resampled[1:], [2.5, 97.5])
    return float(resampled[0]), float(low), float(high)


# -------------------------------------------------------------------------------------------------------- the survey


class Subject(NamedTuple):
    """A model to probe: the teacher (``ladder`` empty), a student after ``steps`` of training, or before (0)."""

    ladder: str
    width: int
    seed: int
    steps: int

    @property
    def label(self) -> str:
        return f"{self.ladder}-w{self.width}-s{self.seed}-n{self.steps}" if self.ladder else "teacher"


def students(p: scales.Probe, d: scales.Distill) -> tuple[list[Subject], list[Subject]]:
    """The trained students of ``d`` to probe, and those left out because 04_distill has not trained them.

    At full width the width-alone student is the teacher, so it is not among them.
    """
    wanted = [
        Subject(ladder, width, d.seeds[0], 2 * d.steps)
        for ladder in d.ladders
        for width in d.widths_of(ladder)
        if width in p.widths and not (ladder == "width_alone" and width == p.shape.width)
    ]
    if p.train_students:
        return wanted, []
    there = [s for s in wanted if store.find(*distill.key(d, distill.Job(*s))) is not None]
    return there, [s for s in wanted if s not in there]


class Inputs(NamedTuple):
    """What every model of a survey shares."""

    teacher: models.Teacher
    passages: pd.DataFrame
    ids: list[list[int]]  # what of each passage is read


def survey(p: scales.Probe, d: scales.Distill) -> store.Record:
    """Probe the teacher and the students of ``d`` for every concept, with all controls; each model once, then found.

    Small models are probed side by side, one thread each.

    Returns:
        A record with ``accuracy`` (one row a concept, model and control) and ``layers`` (the teacher at every depth);
        its parameter ``missing`` names the students that were not trained.
    """
    found, missing = students(p, d)
    teacher = Subject("", p.shape.width, 0, 0)
    untrained = {teacher: Subject("random", p.shape.width, d.seeds[0], 0)}
    untrained |= {subject: subject._replace(steps=0) for subject in found}
    text = concepts.labelled(p.passages, p.seed, p.text, p.documents)
    passages = text["passages"]
    passages = passages[passages.concept.isin(p.concepts)].reset_index(drop=True)
    lock, inputs = threading.Lock(), []

    def load() -> Inputs:
        with lock:
            if not inputs:  # only if a record has to be computed
                loaded = models.load_teacher(p.shape.teacher, device=training.state().device)
                inputs.append(Inputs(loaded, passages, tokenized(loaded.tokenizer, passages.text, p.tokens)))
            return inputs[0]

    every = list(dict.fromkeys([*untrained, *untrained.values()]))
    # small matrices: a second thread for each costs more than it gives
    with distill.threads(d), threadpool_limits(1), ThreadPoolExecutor(_workers(p)) as pool:
        waiting = [pool.submit(_words, p, text, load)]
        waiting += [pool.submit(_measured, p, d, subject, text, load) for subject in every]
        words, *records = [future.result() for future in tqdm(waiting, desc="models", unit=" models", leave=False)]
    records = dict(zip(every, records, strict=True))
    parts = {subject.label: record.key for subject, record in records.items()} | {"words": words.key}
    return store.find_or_compute(
        f"probe/{p.scale}/survey",
        {"parts": parts, "missing": [subject.label for subject in missing], "seed": p.seed},
        lambda: _assemble(p, passages, records, untrained, words),
    )


def _workers(p: scales.Probe) -> int:
    """How many models are probed side by side: several small ones, or a large one at a time."""
    small = p.shape.width <= scales.ONE_THREAD and training.state().device.type == "cpu"
    return min(4, os.cpu_count() or 1) if small else 1


def _model(d: scales.Distill, subject: Subject, teacher: models.Teacher) -> nn.Module:
    """The model itself, in eval mode."""
    if not subject.ladder:
        return teacher.model
    if subject.steps:
        return distill.trained(d, distill.Job(*subject), teacher)
    return distill.untrained(teacher, d, subject.ladder, subject.width, subject.seed).eval()


def _settings(p: scales.Probe, text: store.Record) -> dict[str, Any]:
    return {
        "concepts": p.concepts,
        "layer": p.layer,
        "tokens": p.tokens,
        "splits": p.splits,
        "seed": p.seed,
        "text": text.key,
        "teacher": models.teacher_revision(p.shape.teacher),
    }


def _measured(
    p: scales.Probe, d: scales.Distill, subject: Subject, text: store.Record, load: Callable[[], Inputs]
) -> store.Record:
    """The record of one model's probes."""
    identity: dict[str, Any] = subject._asdict()
    layers, controls = [0, p.layer], ("none", "embedding", "shuffled", "unseen_source")
    if not subject.ladder:  # the curve
        depths = np.linspace(0, p.shape.layers, min(DEPTHS, p.shape.layers + 1)).astype(int).tolist()
        layers = sorted({0, p.layer, *depths})
    elif subject.steps:  # what it was trained on and how
        identity["run"] = distill.student(d, distill.Job(*subject)).key
    else:
        layers, controls = [p.layer], ("none",)

    def compute():
        shared = load()
        model = _model(d, subject, shared.teacher)
        start = shared.teacher.tokenizer.eos_token_id
        states = pooled(model, shared.ids, start, layers, f"reading by {subject.label}")
        return probe_states(dict(zip(layers, states, strict=True)), shared.passages, p, controls)

    return store.find_or_compute(f"probe/{p.scale}/{subject.label}", _settings(p, text) | identity, compute)


def probe_states(
    states: dict[int, Float[np.ndarray, "passages d"]], passages: pd.DataFrame, p: scales.Probe, controls: Sequence[str]
) -> dict[str, pd.DataFrame]:
    """A model's probes from its pooled states by layer: ``accuracy`` by concept and control, ``layers``, ``scores``.

    ``accuracy`` is that of layer ``p.layer`` but for the control ``embedding``, which is layer 0; ``scores`` are those
    of the control ``none``.
    """
    rows, curve, kept = [], [], []
    for name in p.concepts:
        chosen = (passages.concept == name).to_numpy()
        table = passages[chosen].reset_index(drop=True)
        parts, labels, groups = _main_splits(table, p)
        for layer, features in states.items():
            found = scores(features[chosen], labels, parts)
            result = _row(name, found, labels, groups, p)
            curve.append(result | {"layer": layer})
            if layer == p.layer:
                rows.append(result | {"control": "none"})
                kept.append(found.assign(concept=name))
            if layer == 0 and "embedding" in controls:
                rows.append(result | {"control": "embedding"})
        here = states[p.layer][chosen]
        if "shuffled" in controls:
            dealt = labels.copy()
            main = np.flatnonzero(table.set == "main")
            dealt[main] = np.random.default_rng([p.seed, 1]).permutation(labels[main])
            found = scores(here, dealt, splits_of_main(table, dealt, p))
            rows.append(_row(name, found, dealt, groups, p) | {"control": "shuffled"})
        unseen = concepts.collection(p.text).concepts[name].unseen
        if "unseen_source" in controls and unseen:
            found = scores(here, labels, unseen_sources(table, unseen, p.seed))
            rows.append(_row(name, found, labels, groups, p) | {"control": "unseen_source"})
    return {"accuracy": pd.DataFrame(rows), "layers": pd.DataFrame(curve), "scores": pd.concat(kept, ignore_index=True)}


def splits_of_main(table: pd.DataFrame, labels: np.ndarray, p: scales.Probe) -> list[Split]:
    """The splits of one concept's main passages; its second set stays out."""
    main = np.flatnonzero(table.set == "main")
    parts = splits(labels[main], table.group.to_numpy()[main], p.splits, p.seed)
    return [Split(main[s.train], main[s.test], [(main[a], main[b]) for a, b in s.inner]) for s in parts]


def _main_splits(table: pd.DataFrame, p: scales.Probe) -> tuple[list[Split], np.ndarray, np.ndarray]:
    labels = table.label.to_numpy()
    return splits_of_main(table, labels, p), labels, table.group.to_numpy()


def _row(name: str, found: pd.DataFrame, labels, groups, p: scales.Probe) -> dict[str, Any]:
    tested = {"passages": len(found), "documents": len(np.unique(groups[found.row])), "splits": found.split.nunique()}
    return {"concept": name} | summary(found, labels, groups, p.seed) | tested


def _words(p: scales.Probe, text: store.Record, load: Callable[[], Inputs]) -> store.Record:
    """The bag-of-words control: what the words alone give, of exactly the text that the models read."""

    def compute():
        shared = load()
        read = np.array(shared.teacher.tokenizer.batch_decode(shared.ids), dtype=object)
        rows = []
        for name in p.concepts:
            chosen = (shared.passages.concept == name).to_numpy()
            table, bag = shared.passages[chosen].reset_index(drop=True), bag_of_words(read[chosen])
            parts, labels, groups = _main_splits(table, p)
            rows.append(_row(name, scores(bag, labels, parts), labels, groups, p) | {"control": "bag_of_words"})
            if unseen := concepts.collection(p.text).concepts[name].unseen:
                found = scores(bag, labels, unseen_sources(table, unseen, p.seed))
                rows.append(_row(name, found, labels, groups, p) | {"control": "bag_of_words_unseen_source"})
        return {"accuracy": pd.DataFrame(rows)}

    return store.find_or_compute(f"probe/{p.scale}/words", _settings(p, text), compute)


def _assemble(p, passages, records, untrained, words) -> dict[str, pd.DataFrame]:
    parts = []
    teacher = next(subject for subject in untrained if not subject.ladder)
    for subject, twin in untrained.items():
        found = records[subject]["accuracy"]
        before = records[twin]["accuracy"]
        # the width-alone student starts from the teacher's own weights: before training it is cut, not ignorant
        before = before[before.control == "none"].assign(control="cut" if twin.ladder == "width_alone" else "untrained")
        frame = pd.concat([found, before], ignore_index=True)
        frame["model"] = "student" if subject.ladder else "teacher"
        frame["ladder"], frame["width"] = subject.ladder or "none", subject.width
        for name in p.concepts:  # against the teacher, on the same passages
            table = passages[passages.concept == name]
            one, other = (_of(records[s]["scores"], name) for s in (subject, teacher))
            shift = difference(one, other, table.label.to_numpy(), table.group.to_numpy(), p.seed)
            here = (frame.concept == name) & (frame.control == "none")
            frame.loc[here, ["shift", "shift_low", "shift_high"]] = shift
        parts.append(frame)
    parts.append(words["accuracy"].assign(model="none", ladder="none", width=0))
    frame = pd.concat(parts, ignore_index=True)
    first = ["concept", "model", "ladder", "width", "control"]
    layers = records[teacher]["layers"]
    return {"accuracy": frame[[*first, *(name for name in frame if name not in first)]], "layers": layers}


def _of(table: pd.DataFrame, name: str) -> pd.DataFrame:
    return table[table.concept == name].reset_index(drop=True)


# ---------------------------------------------------------------------------------- single features: the staircase


def staircase(p: scales.Probe, d: scales.Distill) -> store.Record:
    """How well each feature of the teacher's autoencoder can be read, linearly, from each student's hidden state.

    Section 3 of the paper has a student keep the F_S = d_S g(alpha) most important features and lose the others: then
    the quality of the read-out, by rank of importance, is a step at F_S. The read-out is fitted on training tokens and
    judged on held-out documents.

    Returns:
        A record with ``features`` (rank, importance, frequency), ``models`` (a row a model: model, ladder, width,
        state, kept = F_S) and the array ``auroc`` [models, features] of ``read_out``; ``alpha`` and ``alive``.
    """
    s = scales.parameters("03_sae", p.scale)
    found = sae.measure(s)
    trained, _ = students(p, d)
    teacher = Subject("", p.shape.width, 0, 0)
    subjects = [teacher, *trained, *(subject._replace(steps=0) for subject in trained)]
    labels = [distill.student(d, distill.Job(*subject)).key if subject.steps else subject.label for subject in subjects]
    tokens = {"train": READ_OUT_TOKENS, "held_out": READ_OUT_TOKENS // 2}

    def compute():
        loaded = models.load_teacher(p.shape.teacher, device=training.state().device)
        autoencoder, rule = sae.load(found)
        texts = {}
        for split, count in tokens.items():
            blocks = sae.read_text(s, loaded, split, count)
            kept = stream.activations(loaded, blocks, [s.layer], rule)
            z = autoencoder.encode(kept.layers[s.layer])
            texts[split] = blocks, kept.place, z > 0
            if split == "train":
                importance = z.square().mean(0)
        seen, unseen = (texts[split][2] for split in tokens)
        frequency = seen.float().mean(0)
        judged = torch.minimum(seen.sum(0), unseen.sum(0)) >= READ_OUT_ACTIVE
        order = torch.argsort(importance, descending=True)
        order = order[judged[order]]
        seen, unseen = seen[:, order], unseen[:, order]

        def areas(subject: Subject) -> np.ndarray:
            model = _model(d, subject, loaded)
            streams = [_stream(model, *texts[split][:2], s.layer) for split in tokens]
            return read_out(streams[0], seen, streams[1], unseen).numpy()

        with ThreadPoolExecutor(_workers(p)) as pool:
            waiting = [pool.submit(areas, subject) for subject in subjects]
            bar = tqdm(waiting, desc="reading features", unit=" models", leave=False)
            read = np.stack([future.result() for future in bar])
        rows = [
            {
                "model": "student" if subject.ladder else "teacher",
                "ladder": subject.ladder or "none",
                "width": subject.width,
                "state": "trained" if subject.steps or not subject.ladder else "untrained",
                "kept": float(capacity.features_kept(subject.width, found["alpha"])),
            }
            for subject in subjects
        ]
        features = {"rank": np.arange(1.0, len(order) + 1)}
        features |= {"importance": importance[order].numpy(), "frequency": frequency[order].numpy()}
        return {
            "features": pd.DataFrame(features),
            "models": pd.DataFrame(rows),
            "auroc": read,
            "alpha": found["alpha"],
            "alive": found["alive"],
        }

    with distill.threads(d):
        return store.find_or_compute(
            f"probe/{p.scale}/staircase", {"sae": found.key, "models": labels, "tokens": tokens}, compute
        )


def read_out(
    stream: Float[torch.Tensor, "tokens d"],
    active: Bool[torch.Tensor, "tokens F"],
    unseen_stream: Float[torch.Tensor, "unseen d"],
    unseen_active: Bool[torch.Tensor, "unseen F"],
) -> Float[torch.Tensor, "F"]:
    """How well a linear map of a stream tells the tokens on which each feature is active: AUROC on held-out tokens.

    The map is least squares on the training tokens, with a whiff of ridge: Fisher's discriminant for every feature at
    once. 0.5 is chance, 1 is exact. Each active token is compared with every ``NEGATIVES_EVERY``-th inactive one.
    """
    mean, deviation = stream.mean(0), stream.std(0).clamp_min(1e-6)
    x, y = (stream - mean) / deviation, (unseen_stream - mean) / deviation
    gram = (x.T @ x / len(x)).double() + RIDGE * torch.eye(x.shape[1]).double()
    odds = y @ torch.linalg.solve(gram, (x.T @ active.float() / len(x)).double()).float()
    others = odds[::NEGATIVES_EVERY].masked_fill(unseen_active[::NEGATIVES_EVERY], torch.inf)
    others = others.T.contiguous().sort().values
    count = (~unseen_active[::NEGATIVES_EVERY]).sum(0)
    areas = torch.zeros(active.shape[1])
    for feature in range(len(areas)):
        positives = odds[unseen_active[:, feature], feature]
        below = sum(torch.searchsorted(others[feature], positives, right=ties) for ties in (False, True))
        areas[feature] = below.float().mean() / 2 / count[feature]
    return areas


@torch.no_grad()
def _stream(model: nn.Module, blocks: np.ndarray, place: torch.Tensor, layer: int) -> torch.Tensor:
    parts = [
        stream.streams(model, torch.from_numpy(part.astype(np.int64)).to(model.device), [layer])[layer].flatten(0, 1)
        for part in np.array_split(blocks, -(-blocks.size // FORWARD_TOKENS))
    ]
    return torch.cat(parts)[place].float().cpu()


def by_rank(record: store.Record, bins: int = 14) -> pd.DataFrame:
    """The staircase in bins of rank, evenly spaced in its logarithm: mean AUROC of each model's features.

    Returns:
        One row a model and bin: ``rank`` (geometric middle), ``features`` (how many), ``auroc``, ``low`` and ``high``
        (95 %, features resampled).
    """
    total = record["auroc"].shape[1]
    edges = np.unique(np.round(np.geomspace(1, total + 1, bins + 1)).astype(int)) - 1
    rng = np.random.default_rng(0)
    rows = []
    for model, areas in zip(record["models"].to_dict("records"), record["auroc"], strict=True):
        for first, last in pairwise(edges):
            part = areas[first:last]
            draws = rng.choice(part, (RESAMPLES, len(part))).mean(1)
            low, high = np.quantile(draws, [0.025, 0.975])
            middle = float(np.sqrt((first + 1) * last))
            rows.append(model | {"rank": middle, "features": len(part), "auroc": part.mean(), "low": low, "high": high})
    return pd.DataFrame(rows)


def step_sizes(record: store.Record) -> pd.DataFrame:
    """Is there a step at F_S? What each student reads of the features on either side of it, and far from it.

    Every share is the student's AUROC above chance over that of the teacher's own state: for the features ranked from
    F_S / 2 to F_S (``before``), from F_S to 2 F_S (``after``), and for the first and last tenth of all. The law says 1
    before and 0 after. Where F_S exceeds the number of features there is no such pair, and both are NaN.
    """
    total = record["auroc"].shape[1]
    teacher = record["auroc"][(record["models"]["model"] == "teacher").to_numpy()][0]
    rows = []
    for model, areas in zip(record["models"].to_dict("records"), record["auroc"], strict=True):
        kept = round(model["kept"])
        parts = {"first": (0, total // 10), "last": (total - total // 10, total)}
        if kept < total:
            parts |= {"before": (kept // 2, kept), "after": (kept, min(2 * kept, total))}
        shares = {name: float((areas[a:b] - 0.5).sum() / (teacher[a:b] - 0.5).sum()) for name, (a, b) in parts.items()}
        rows.append(model | {"before": np.nan, "after": np.nan} | shares)
    frame = pd.DataFrame(rows)
    return frame[frame["model"] == "student"].reset_index(drop=True)


def about_steps(steps: pd.DataFrame) -> str:
    """Whether a ladder's distilled students have the law's step at F_S, in words (Markdown); ``steps``: step_sizes."""
    tested = steps[steps["state"] == "trained"].dropna(subset=["before", "after"])
    drop = tested["before"] - tested["after"]
    if tested.empty:
        return "Every student is wide enough to keep all features by the law, so no step is predicted to be seen here."
    if (drop > 0.5).all():
        return "At every width that predicts one there is a step: the read-out falls by more than half across $F_S$."
    if (drop < 0.25).all():
        return (
            "There is **no step**: across $F_S$, where the law has it fall from 1 to 0, the read-out changes by less "
            f"than a quarter at every width that predicts one ({', '.join(map(str, tested['width']))})."
        )
    return "The read-out falls across $F_S$, but by less than the law's step at some width: a slope."


# ------------------------------------------------------------------------------------------------------ every student


def every_student(scale: str) -> store.Record:
    """The survey and the staircase of all students of a scale's ladders, as ``scales.EVERY_STUDENT`` has it.

    Where that says ``longer``, they are those of ``minwidth.controls``' longer ladders.

    Tables: ``probe_students`` and ``probe_students_layers`` (as ``survey``), ``probe_students_staircase`` (``by_rank``)
    and ``probe_students_steps`` (``step_sizes``).

    Returns:
        The survey's record.
    """
    changes, d = dict(scales.EVERY_STUDENT[scale]), scales.parameters("04_distill", scale)
    d = d.longer() if changes.pop("longer", False) else d
    p = scales.parameters("05_probe", scale, **changes)
    record, stairs = survey(p, d), staircase(p, d)
    store.save_results(scale, "probe_students", record["accuracy"], record)
    store.save_results(scale, "probe_students_layers", record["layers"], record)
    store.save_results(scale, "probe_students_staircase", by_rank(stairs), stairs)
    store.save_results(scale, "probe_students_steps", step_sizes(stairs), stairs)
    return record


FAIR_CONTROLS = ("bag_of_words", "embedding", "untrained", "cut")  # none of them has seen a step of distillation


def about_students(table: pd.DataFrame) -> str:
    """For how many concepts each distilled student beats all its controls, in words (Markdown)."""
    words = table[table["control"] == "bag_of_words"].set_index("concept")["high"]
    said = []
    for ladder, of_ladder in table[table["model"] == "student"].groupby("ladder"):
        wins = []
        for width, rows in of_ladder.groupby("width"):
            own = rows[rows["control"] == "none"].set_index("concept")["low"]
            best = rows[rows["control"].isin(FAIR_CONTROLS)].groupby("concept")["high"].max().reindex(own.index)
            wins.append(f"{(own > np.fmax(best, words.reindex(own.index))).sum()} at {width}")
        said.append(f"{distill.LADDER_NAMES[ladder]}, {', '.join(wins)}")
    return (
        f"Of {table['concept'].nunique()} concepts, the interval of a distilled student lies above those of the bag of "
        "words, of its embedding layer and of itself before distillation for so many, by width: "
        + "; ".join(said)
        + "."
        if said
        else "No student was probed."
    )


def main(arguments: list[str] | None = None) -> None:
    """Probe every student of a scale's ladders and write the tables; records found are kept."""
    parser = argparse.ArgumentParser(prog="python -m minwidth.probe", description=main.__doc__)
    parser.add_argument("--scale", default="tiny", choices=list(scales.EVERY_STUDENT))
    log.info("%s", about_students(every_student(parser.parse_args(arguments).scale)["accuracy"]))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with errors.in_one_sentence():
        main()
