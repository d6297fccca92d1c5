"""Single features: does a narrow student lose the least important ones, and only these (paper, sections 3 and 8)?

A student of width d_S is said to keep the F_S = d_S g(alpha) most important features of its teacher and to lose the
others: then how well each can be read, linearly, from the student's hidden state is a step at F_S, by rank.
"""

from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from minwidth import capacity, models, probe, sae, scales, store, stream, training

TOKENS = 40_000  # that a read-out is fitted on; half as many judge it
ACTIVE = 20  # tokens of either split on which a feature must be active to be judged
RIDGE = 1e-3  # of a read-out, on standardised streams
NEGATIVES_EVERY = 4  # of the held-out tokens, one in so many is what active ones are compared with
RESAMPLES = 500  # of features, for 95 % intervals
BINS = 14  # of rank, evenly spaced in its logarithm


def measure(p: scales.Probe, d: scales.Distill) -> store.Record:
    """How well each feature of the teacher's autoencoder can be read, linearly, from each student's hidden state.

    Returns:
        A record with ``models`` (a row a model: model, ladder, width, state, kept = F_S) and the array ``auroc``
        [models, features] of ``read_out``, features by falling importance E[z^2]; ``alpha`` and ``alive``.
    """
    s = scales.parameters("03_sae", p.scale)
    found, trained = sae.measure(s), probe.trained_students(p, d)[0]
    jobs = [probe.Job("", p.shape.width, 0, 0), *trained, *(job._replace(steps=0) for job in trained)]

    def compute():
        teacher = models.load_teacher(p.shape.teacher, device=training.state().device)
        autoencoder, rule = sae.load(found)
        texts = []  # of either split: blocks, places of the tokens kept, where each feature is active
        for split, count in (("held_out", TOKENS // 2), ("train", TOKENS)):
            blocks = sae.read_text(s, teacher, split, count)
            kept = stream.activations(teacher, blocks, rule)
            z = autoencoder.encode(kept.layers[s.layer])
            texts.append((blocks, kept.place, z > 0))
        judged = torch.minimum(*(active.sum(0) for *_, active in texts)) >= ACTIVE
        order = torch.argsort(z.square().mean(0), descending=True)  # on training text
        unseen, seen = (active[:, order[judged[order]]] for *_, active in texts)

        def areas(job: probe.Job) -> np.ndarray:
            with probe.READING, torch.no_grad():
                model, states = probe.model_of(d, job, teacher), []
                for blocks, place, _ in texts:
                    parts = (stream.streams(model, ids, [s.layer]) for ids in stream.batches(blocks, model.device))
                    states.append(torch.cat([part[s.layer].flatten(0, 1).float().cpu() for part in parts])[place])
            return read_out(states[1], seen, states[0], unseen)

        auroc = np.stack(probe.side_by_side(p, areas, jobs))
        rows = [
            probe.names(job)
            | {"state": "trained" if job.steps or not job.ladder else "untrained"}
            | {"kept": float(capacity.features_kept(job.width, found["alpha"]))}
            for job in jobs
        ]
        return {"models": pd.DataFrame(rows), "auroc": auroc, "alpha": found["alpha"], "alive": found["alive"]}

    labels = [trained[job].key if job in trained else job.label for job in jobs]
    parameters = {"sae": found.key, "models": labels, "tokens": TOKENS}
    return store.find_or_compute(f"probe/{p.scale}/staircase", parameters, compute)


def read_out(
    stream: Float[torch.Tensor, "tokens d"],
    active: Bool[torch.Tensor, "tokens F"],
    unseen_stream: Float[torch.Tensor, "unseen d"],
    unseen_active: Bool[torch.Tensor, "unseen F"],
) -> Float[np.ndarray, "F"]:
    """How well a linear map of a stream tells the tokens on which each feature is active: AUROC on held-out tokens.

    The map is least squares with a whiff of ridge, Fisher's discriminant for every feature at once. Each active token
    is compared with every ``NEGATIVES_EVERY``-th inactive one.
    """
    mean, deviation = stream.mean(0), stream.std(0).clamp_min(1e-6)
    x, y = (stream - mean) / deviation, (unseen_stream - mean) / deviation
    gram = (x.T @ x / len(x)).double() + RIDGE * torch.eye(x.shape[1]).double()
    odds = y @ torch.linalg.solve(gram, (x.T @ active.float() / len(x)).double()).float()
    some, areas = np.arange(len(odds)) % NEGATIVES_EVERY == 0, []
    for score, positive in zip(odds.numpy().T, unseen_active.numpy().T, strict=True):
        compared, count = positive | some, positive.sum()
        ranks = rankdata(score[compared])[positive[compared]]
        areas.append((ranks.mean() - (count + 1) / 2) / (compared.sum() - count))
    return np.array(areas, np.float32)


def by_rank(record: store.Record) -> pd.DataFrame:
    """Mean AUROC of each model's features in bins of rank, with 95 % from resampling features.

    One row a model and bin: ``rank`` (geometric middle), ``features`` (how many), ``auroc``, ``low``, ``high``.
    """
    edges = np.unique(np.round(np.geomspace(1, record["auroc"].shape[1] + 1, BINS + 1)).astype(int)) - 1
    rng, rows = np.random.default_rng(0), []
    for model, areas in zip(record["models"].to_dict("records"), record["auroc"], strict=True):
        for first, last in pairwise(edges):
            part, middle = areas[first:last], float(np.sqrt((first + 1) * last))
            low, high = np.quantile(rng.choice(part, (RESAMPLES, len(part))).mean(1), [0.025, 0.975])
            rows.append(model | {"rank": middle, "features": len(part), "auroc": part.mean(), "low": low, "high": high})
    return pd.DataFrame(rows)
