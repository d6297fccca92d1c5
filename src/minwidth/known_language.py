"""A language whose features are known, and heads of it that are trained to their floors.

A sentence is slots of two symbols, and then a word. Each of F features is active with probability p = 1 - alpha,
independently, at one of ``LEVELS`` equally likely strengths in (0, 1); an active feature is shown by one pair of
symbols, of which either alone could belong to many others; other slots are blank. The word is drawn with logits U x.
So p(word | sentence) is exact, and the language is itself a teacher: its last state is x, its unembedding U, and
``kl.divergence`` takes both. U has centred orthogonal columns of root mean square strength i^-1/2: the i-th feature at
x_i = 1 moves the words' logits by that much, and to leading order matters as 1/i (Zipf).

A *head* has read x without error: a linear map to d numbers and an unembedding are all it learns. Students that must
read the sentence are in ``known_teacher``. Losses are in nats per word at temperature 1.

``python -m minwidth.known_language`` trains the study's heads, in half an hour; records found are kept.
"""

import argparse
import logging
import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor, nn
from tqdm.auto import tqdm

from minwidth import bottleneck, curves, errors, store, training

log = logging.getLogger(__name__)

LEVELS = 4  # strengths of a feature: 1/8, 3/8, 5/8, 7/8, nearly the uniform ones of ``capacity``
TOO_LONG = 1e-4  # share of sentences that would need more slots, and are drawn again
HELD_OUT = 16_384  # sentences that judge a student
SAMPLE = 2048  # sentences for each feature's importance
HEADS = {"batch": 256, "rate": 0.1, "steps": 500, "runs": 6}  # steps of the first run, which are doubled; most runs
POOL = 32  # batches that heads draw at once
ROUNDING = 1e-7  # nats: a student that has all may come out below 0
MOVES = 0.01  # the share by which doubling the steps may move a floor
LADDERS = [  # features, alpha, widths
    *[(32, alpha, [1, 2, 4, 8, 16, 24]) for alpha in (0.8, 0.9, 0.95, 0.99)],
    *[(64, alpha, [2, 4, 8, 16, 32, 48]) for alpha in (0.8, 0.95)],
]
SEEDS = [0, 1, 2]


class Language(NamedTuple):
    """What there is to know of a language; made by ``language``."""

    features: int  # F
    alpha: float
    strength: float
    symbols: int  # of either place of a pair
    slots: int
    pairs: Int[Tensor, "F levels"]  # the pair that shows a feature at a level: first * symbols + second
    unembedding: Float[Tensor, "words F"]

    @property
    def label(self) -> str:
        """For records."""
        return f"f{self.features}-a{self.alpha:g}-k{self.strength:g}"


@cache
def language(features: int, alpha: float, strength: float = 8.0) -> Language:
    """The language of so many features: twice as many words, pairs and unembedding drawn once for all.

    Raises:
        ParameterError: fewer than 2 features, alpha outside (0, 1), or a strength that is not positive.
    """
    if features < 2 or not 0 < alpha < 1 or not 0 < strength < math.inf:
        raise errors.ParameterError(
            f"features = {features}, alpha = {alpha}, strength = {strength} make no language: give at least 2, a "
            "share of zeros between 0 and 1, and a positive strength."
        )
    generator = torch.Generator().manual_seed(features)
    symbols = math.isqrt(features * LEVELS - 1) + 1
    pairs = torch.randperm(symbols**2, generator=generator)[: features * LEVELS].view(features, LEVELS)
    directions = torch.randn(2 * features, features, generator=generator, dtype=torch.float64)
    directions = torch.linalg.qr(directions - directions.mean(0)).Q * (2 * features) ** 0.5
    size = strength * torch.arange(1, features + 1) ** -0.5
    slots = max(1, int(stats.binom.isf(TOO_LONG, features, 1 - alpha)))
    return Language(features, alpha, strength, symbols, slots, pairs, (directions * size).float())


def draw(language: Language, count: int, *seed: int) -> Float[Tensor, "count F"]:
    """Features of so many sentences, a function of the seeds."""
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1))
    x = torch.empty(0, language.features)
    while len(x) < count:
        on = torch.rand(count, language.features, generator=generator) < 1 - language.alpha
        level = torch.randint(LEVELS, on.shape, generator=generator)
        x = torch.cat([x, (on * (level + 0.5) / LEVELS)[on.sum(1) <= language.slots]])
    return x[:count]


def sentences(language: Language, x: Float[Tensor, "count F"], *seed: int) -> Int[Tensor, "count length"]:
    """Sentences that show these features, in slots drawn at random; the last token asks for the word."""
    m, slots, count = language.symbols, language.slots, len(x)
    rng = np.random.default_rng(seed)
    place = torch.from_numpy(rng.permuted(np.tile(np.arange(slots), (count, 1)), axis=1))
    row, feature = x.nonzero(as_tuple=True)
    number = torch.arange(len(row)) - torch.searchsorted(row, row)  # among the features of its sentence
    pair = language.pairs[feature, (x[row, feature] * LEVELS).long()]
    tokens = torch.full((count, 2 * slots + 1), 2 * m)
    tokens[:, -1] = 2 * m + 1
    at = 2 * place[row, number]
    tokens[row, at], tokens[row, at + 1] = pair // m, m + pair % m
    return tokens


def read(language: Language, tokens: Int[Tensor, "count length"]) -> Float[Tensor, "count F"]:
    """The features that sentences show: what a student has to compute; the language is exact about its own words."""
    m = language.symbols
    shown = torch.full((m * m,), -1)
    shown[language.pairs.flatten()] = torch.arange(language.pairs.numel())
    first, second = tokens[:, :-1:2], tokens[:, 1::2]
    row, slot = (first < 2 * m).nonzero(as_tuple=True)
    found = shown[first[row, slot] * m + second[row, slot] - m]
    x = torch.zeros(len(tokens), language.features)
    x[row, found // LEVELS] = (found % LEVELS + 0.5) / LEVELS
    return x


def importance(language: Language) -> Float[np.ndarray, "F"]:
    """Nats lost, per word, if one feature alone is taken for 0: its I_i E[x_i^2] in Eq. 2, with no constant to fit.

    p times the mean over sentences in which it is active, at each level in turn.
    """
    x, u = draw(language, SAMPLE, 2), language.unembedding
    level = ((torch.arange(len(x)) % LEVELS + 0.5) / LEVELS)[:, None]
    found = []
    for feature in range(language.features):
        without = x.clone()
        without[:, feature] = 0
        z = without @ u.T
        full = z + level * u[:, feature]
        moved = level[:, 0] * (full.softmax(-1) @ u[:, feature])
        found.append(float((z.logsumexp(-1) - full.logsumexp(-1) + moved).double().mean()))
    return (1 - language.alpha) * np.array(found)


# -------------------------------------------------------------------------------------------------------------- heads


class Heads(nn.Module):
    """Students that are told the teacher's last state, one a seed, side by side: ``width`` linear functions of it, and
    words."""

    def __init__(self, teacher_unembedding: Float[Tensor, "words d_T"], width: int, seeds: Sequence[int]):
        super().__init__()
        words, d_teacher = teacher_unembedding.shape
        drawn = [normal(seed, width, (d_teacher, width), (width, words)) for seed in seeds]
        self.reduce, self.unembedding = (nn.Parameter(torch.stack(part)) for part in zip(*drawn, strict=True))
        self.bias = nn.Parameter(torch.zeros(len(seeds), 1, width))

    def forward(self, states: Float[Tensor, "count d_T"]) -> Float[Tensor, "seeds count words"]:
        return (states @ self.reduce + self.bias) @ self.unembedding

    @torch.no_grad()
    def gradients(self, states: Float[Tensor, "count d_T"], p: Float[Tensor, "count words"]) -> None:
        """Set every parameter's gradient of the mean KL from ``p``, by hand: a third of autograd's time."""
        own = states @ self.reduce + self.bias
        for_logits = ((own @ self.unembedding).softmax(-1) - p) / len(states)
        for_states = for_logits @ self.unembedding.mT
        self.unembedding.grad = own.mT @ for_logits
        self.reduce.grad, self.bias.grad = states.T @ for_states, for_states.sum(1, keepdim=True)


def normal(seed: int, width: int, *shapes: Sequence[int]) -> list[Tensor]:
    """Matrices from N(0, 2 / (5 width)), the study's start of every student."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) * (2 / (5 * width)) ** 0.5 for shape in shapes]


def trained_heads(
    states: Callable[[int], Float[Tensor, "pool d_T"]],
    teacher_unembedding: Float[Tensor, "words d_T"],
    width: int,
    seeds: Sequence[int],
    steps: int,
) -> Heads:
    """Heads after Adam on fresh sentences; ``states`` gives the teacher's on ``POOL`` batches, by their first step."""
    heads = Heads(teacher_unembedding, width, seeds)
    batch, schedule = HEADS["batch"], training.Schedule(steps, 1, HEADS["rate"], steps // 20)
    optimizer = torch.optim.Adam(heads.parameters(), betas=(0.9, 0.99), fused=True)
    for step in range(steps):
        if step % POOL == 0:
            parts = states(step).split(batch)
        part = parts[step % POOL]
        heads.gradients(part, (part @ teacher_unembedding.T).softmax(-1))
        optimizer.param_groups[0]["lr"] = schedule.rate(step)
        optimizer.step()
    return heads


def divergence(
    teacher_logits: Float[Tensor, "count words"], logits: Float[Tensor, "*seeds count words"]
) -> Float[Tensor, "*seeds count"]:
    """KL of each sentence, in nats per word."""
    log_p, log_q = teacher_logits.log_softmax(-1), logits.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@torch.no_grad()
def judged(
    language: Language,
    x: Float[Tensor, "count F"],
    teacher_logits: Float[Tensor, "count words"],
    logits: Float[Tensor, "seeds count words"],
) -> dict[str, Any]:
    """What students say of sentences that show ``x``.

    Returns:
        ``losses`` [seeds], mean KL from the teacher, and ``error``, the standard error of one; ``kept`` [seeds, F], how
        much of each feature is in the logits: R^2, 0 to 1. What logits say of feature i is their product with its
        column of U. The columns are orthogonal: a student that has learnt all says x_i times a constant.
    """
    losses = divergence(teacher_logits, logits).double()
    said, true = (logits @ language.unembedding).double(), x.double()
    said, true = said - said.mean(1, keepdim=True), true - true.mean(0)
    variances = said.square().sum(1) * true.square().sum(0)
    kept = (said * true).sum(1) ** 2 / variances.clamp_min(1e-300)
    error = float(losses.std(1).max()) / len(x) ** 0.5
    return {"losses": losses.mean(1).numpy(), "error": error, "kept": kept.numpy()}


def student(language: Language, width: int, seeds: Sequence[int], steps: int) -> store.Record:
    """The record of heads trained side by side, found or computed: what ``judged`` says on held-out sentences."""
    run = {"width": width, "depth": 0, "seeds": list(seeds), "steps": steps, "held_out": HELD_OUT}
    run |= {"batch": HEADS["batch"], "rate": HEADS["rate"]}
    what = f"known/{language.label}/d0-w{width}-s{seeds[0]}-n{steps}"

    def compute() -> dict[str, Any]:
        u, x = language.unembedding, draw(language, HELD_OUT, 1)
        with training.threads(width), torch.no_grad():
            pool = partial(draw, language, POOL * HEADS["batch"], 0)
            heads = trained_heads(pool, u, width, seeds, steps)
            return judged(language, x, x @ u.T, heads(x))

    return store.find_or_compute(what, run, compute)


# ------------------------------------------------------------------------------------------------------------ ladders


def doubled(train: Callable[[int], store.Record], first: int, runs: int) -> tuple[store.Record, dict[str, float]]:
    """The last of at most so many runs, of ``first`` steps and then twice as many each, and how near it is to a floor.

    Steps are doubled until that moves the mean loss by less than ``MOVES``; at least twice.

    Returns:
        The record, and of the mean over its seeds: ``loss``; ``steps``; ``moved``, the share by which the last doubling
        moved it; ``ends, low, high``, where four times the steps would end, and its interval, by ``curves``.
    """
    steps, losses = [], []
    while len(losses) < 3 or (len(losses) < runs and abs(losses[-2] / losses[-1] - 1) >= MOVES):
        steps.append(first * 2 ** len(losses))
        found = train(steps[-1])
        losses.append(found["losses"].clip(ROUNDING).mean())
    ending = curves.end(steps, losses)
    return found, {
        "loss": losses[-1], "steps": steps[-1], "moved": losses[-2] / losses[-1] - 1,
        "ends": max(0.0, ending.loss), "low": max(0.0, ending.low), "high": ending.high,
    }  # fmt: skip


def ladder(language: Language, widths: Sequence[int], seeds: Sequence[int]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Heads at their floors.

    Returns:
        A row a width: ``loss`` (mean over seeds, ``least``, ``most``), ``error``, what else ``doubled`` tells, and the
        bracket of the last state, ``proved, proved_high`` (``bracket``). And a row a width and ``feature``: ``kept``
        (mean over seeds).
    """
    floors, kept = [], []
    for width in tqdm(widths, desc=language.label, leave=False):
        found, ending = doubled(partial(student, language, width, seeds), HEADS["steps"], HEADS["runs"])
        losses, proved = found["losses"].clip(ROUNDING), bracket(language, width)
        names = {"features": language.features, "alpha": language.alpha, "depth": 0, "width": width}
        spread = {"loss": ending.pop("loss"), "least": losses.min(), "most": losses.max(), "error": found["error"]}
        floors.append(names | spread | ending | {"proved": proved["low"], "proved_high": proved["high"]})
        kept.append(
            pd.DataFrame(names | {"feature": np.arange(1, language.features + 1), "kept": found["kept"].mean(0)})
        )
    return pd.DataFrame(floors), pd.concat(kept, ignore_index=True)


def bracket(language: Language, width: int) -> store.Record:
    """Both ends of the floor of the last state (``bottleneck.floor``): no student of that width ends below ``low``.

    ``low`` is found on the very sentences that judge students, so it holds for them without a sampling error.
    """
    of = {"width": width, "contexts": HELD_OUT, "starts": 2}

    def compute() -> dict[str, Any]:
        x, unseen = draw(language, HELD_OUT, 1), draw(language, HELD_OUT, 3)
        with training.threads(width):
            found = bottleneck.floor(x, language.unembedding, width, 1.0, held_out=unseen, starts=of["starts"])
        return {"low": found.low, "high": found.high, "starts_spread": max(found.starts) - min(found.starts)}

    return store.find_or_compute(f"known/{language.label}/bracket-w{width}", of, compute)


def main() -> None:
    """Train the study's heads, and write the tables that 07_known_language reads after each language."""
    argparse.ArgumentParser(prog="python -m minwidth.known_language", description=main.__doc__).parse_args()
    done = []
    for features, alpha, widths in LADDERS:
        done.append(ladder(language(features, alpha), widths, SEEDS))
        tables = dict(zip(("floors", "kept"), map(pd.concat, zip(*done, strict=True)), strict=True))
        of = {"ladders": [(f, a, 0, w) for f, a, w in LADDERS[: len(done)]], "seeds": SEEDS, "held_out": HELD_OUT}
        record = store.find_or_compute("known/tiny/heads", of | HEADS, lambda tables=tables: tables)
        for name in tables:
            store.save_results("tiny", f"known_heads_{name}", record[name], record)
        log.info("%s", done[-1][0][["features", "alpha", "width", "loss", "moved"]].to_string(index=False))


if __name__ == "__main__":
    errors.command(main)
