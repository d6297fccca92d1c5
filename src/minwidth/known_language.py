"""A language whose features are known: its sentences, what each feature is worth, and what a student has learnt of it.

A sentence is slots of two symbols, and then a word. Each of F features is active with probability p = 1 - alpha,
independently, at one of ``LEVELS`` equally likely strengths in (0, 1); an active feature is shown by one pair of
symbols, of which either alone could belong to many others; other slots are blank. The word is drawn with logits U x.
So p(word | sentence) is exact, and the language is itself a teacher: its last state is x, its unembedding U, and
``kl.divergence`` takes both. U has centred orthogonal columns of root mean square strength i^-1/2: the i-th feature at
x_i = 1 moves the words' logits by that much, and to leading order matters as 1/i (Zipf).

Losses are in nats per word at temperature 1. Who learns the language, and at what floor that ends: ``known_heads``.
"""

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from minwidth import errors

LEVELS = 4  # strengths of a feature: 1/8, 3/8, 5/8, 7/8, nearly the uniform ones of ``capacity``
TOO_LONG = 1e-4  # share of sentences that would need more slots, and are drawn again
SAMPLE = 2048  # sentences for each feature's importance


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


# ------------------------------------------------------------------------------------------------------------ judging


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
        ``losses`` [seeds], mean KL from the teacher, and ``error``, the standard error of one; ``from_language``
        [seeds], mean KL from p; ``kept`` [seeds, F], how much of each feature is in the logits: R^2, 0 to 1. What
        logits say of feature i is their product with its column of U. The columns are orthogonal: a student that has
        learnt all says x_i times a constant.
    """
    losses = divergence(teacher_logits, logits).double()
    from_language = divergence(x @ language.unembedding.T, logits).double().mean(1)
    said, true = (logits @ language.unembedding).double(), x.double()
    said, true = said - said.mean(1, keepdim=True), true - true.mean(0)
    variances = said.square().sum(1) * true.square().sum(0)
    kept = (said * true).sum(1) ** 2 / variances.clamp_min(1e-300)
    found = {"losses": losses.mean(1), "from_language": from_language, "kept": kept}
    error = float(losses.std(1).max()) / len(x) ** 0.5
    return {name: value.numpy() for name, value in found.items()} | {"error": error}
