"""A language whose features are known, and students of it that are trained to their floors.

A sentence is slots of two symbols, and then a word. Each of F features is active with probability p = 1 - alpha,
independently, at one of ``LEVELS`` equally likely strengths in (0, 1); an active feature is shown by one pair of
symbols, of which either alone could belong to many others; other slots are blank. The word is drawn with logits U x.
So p(word | sentence) is exact, and the language is itself a teacher: its last state is x, its unembedding U, and
``kl.divergence`` takes both. U has centred orthogonal columns of root mean square strength i^-1/2: the i-th feature at
x_i = 1 moves the words' logits by that much, and to leading order matters as 1/i (Zipf).

Two kinds of students. A *head* has read x without error: a linear map to d numbers and an unembedding are all it
learns. A *transformer* (GPT-NeoX) must read the sentence. Losses are in nats per word at temperature 1.

``python -m minwidth.known_language`` trains the study's students, in an hour; records found are kept.
"""

import argparse
import logging
import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import GPTNeoXConfig

from minwidth import bottleneck, curves, errors, models, store, training

log = logging.getLogger(__name__)

LEVELS = 4  # strengths of a feature: 1/8, 3/8, 5/8, 7/8, nearly the uniform ones of ``capacity``
TOO_LONG = 1e-4  # share of sentences that would need more slots, and are drawn again
HELD_OUT = 16_384  # sentences that judge a student
PART = 2048  # of them at once; as many for each feature's importance
HEADS = {"batch": 256, "rate": 0.1, "steps": 500, "runs": 6}  # steps of the first run, which are doubled; most runs
TRANSFORMER = {"batch": 128, "rate": 1e-2, "steps": 1000, "runs": 3}
POOL = 32  # batches that heads draw at once
ROUNDING = 1e-7  # nats: a student that has all may come out below 0
MOVES = 0.01  # the share by which doubling the steps may move a floor
STUDY = {  # ladders: features, alpha, depth, widths
    "heads": [
        *[(32, alpha, 0, [1, 2, 4, 8, 16, 24]) for alpha in (0.8, 0.9, 0.95, 0.99)],
        *[(64, alpha, 0, [2, 4, 8, 16, 32, 48]) for alpha in (0.8, 0.95)],
    ],
    "transformers": [(32, 0.95, depth, [8]) for depth in (1, 2)],
}
SEEDS = {"heads": [0, 1, 2], "transformers": [0]}


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
    x, u = draw(language, PART, 2), language.unembedding
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


# ----------------------------------------------------------------------------------------------------------- students


class Heads(nn.Module):
    """Students that read the features themselves, one a seed, side by side: ``width`` linear functions, then words."""

    def __init__(self, language: Language, width: int, seeds: Sequence[int]):
        super().__init__()
        drawn = [_normal(seed, width, (language.features, width), (width, len(language.unembedding))) for seed in seeds]
        self.reduce, self.unembedding = (nn.Parameter(torch.stack(part)) for part in zip(*drawn, strict=True))
        self.bias = nn.Parameter(torch.zeros(len(seeds), 1, width))

    def forward(self, x: Float[Tensor, "count F"], tokens: None = None) -> Float[Tensor, "seeds count words"]:
        return (x @ self.reduce + self.bias) @ self.unembedding

    @torch.no_grad()
    def gradients(self, x: Float[Tensor, "count F"], p: Float[Tensor, "count words"]) -> None:
        """Set every parameter's gradient of the mean KL from ``p``, by hand: a third of autograd's time."""
        states = x @ self.reduce + self.bias
        for_logits = ((states @ self.unembedding).softmax(-1) - p) / len(x)
        for_states = for_logits @ self.unembedding.mT
        self.unembedding.grad = states.mT @ for_logits
        self.reduce.grad, self.bias.grad = x.T @ for_states, for_states.sum(1, keepdim=True)


class Transformer(nn.Module):
    """A GPT-NeoX that reads sentences. A block's FFN reads what its attention wrote, so two blocks can read pairs."""

    def __init__(self, language: Language, width: int, depth: int, seed: int):
        super().__init__()
        config = GPTNeoXConfig(
            vocab_size=2 * language.symbols + 2, hidden_size=width, intermediate_size=4 * width,
            num_hidden_layers=depth, num_attention_heads=max(1, width // 16), use_parallel_residual=False,
            max_position_embeddings=2 * language.slots + 1, pad_token_id=None, bos_token_id=None, eos_token_id=None,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        )  # fmt: skip
        self.body = models.from_config(config).base_model
        self.unembedding = nn.Parameter(torch.empty(width, len(language.unembedding)))
        matrices = [parameter for parameter in self.parameters() if parameter.ndim == 2]
        for matrix, drawn in zip(matrices, _normal(seed, width, *(m.shape for m in matrices)), strict=True):
            matrix.data = drawn

    def forward(self, x: Tensor, tokens: Int[Tensor, "count length"]) -> Float[Tensor, "1 count words"]:
        return (self.body(input_ids=tokens, use_cache=False).last_hidden_state[:, -1] @ self.unembedding)[None]


def _normal(seed: int, width: int, *shapes: Sequence[int]) -> list[Tensor]:
    """Matrices from N(0, 2 / (5 width)), the study's start of every student."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) * (2 / (5 * width)) ** 0.5 for shape in shapes]


def divergence(model: nn.Module, language: Language, x: Tensor, *seed: int) -> tuple[Tensor, Tensor]:
    """KL [seeds, count] from the language on sentences that show ``x``, in nats per word, and the student's logits."""
    logits = model(x, sentences(language, x, *seed) if isinstance(model, Transformer) else None)
    log_p, log_q = (x @ language.unembedding.T).log_softmax(-1), logits.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1), logits


@torch.no_grad()
def judged(model: nn.Module, language: Language) -> tuple[Float[Tensor, "seeds held_out"], Float[Tensor, "seeds F"]]:
    """KL on held-out sentences, and how much of each feature is in a student's logits: R^2, 0 to 1.

    What logits say of feature i is their product with its column of U. The columns are orthogonal: a student that has
    learnt all says x_i times a constant.
    """
    x, losses, said = draw(language, HELD_OUT, 1), [], []
    for number, part in enumerate(x.split(PART)):
        found, logits = divergence(model, language, part, 1, number)
        losses.append(found.double())
        said.append((logits @ language.unembedding).double())
    said, true = torch.cat(said, 1), x.double()
    said, true = said - said.mean(1, keepdim=True), true - true.mean(0)
    variances = said.square().sum(1) * true.square().sum(0)
    return torch.cat(losses, 1), (said * true).sum(1) ** 2 / variances.clamp_min(1e-300)


def student(language: Language, width: int, depth: int, seeds: Sequence[int], steps: int) -> store.Record:
    """The record of one training run on fresh sentences, found or computed; a killed one ends at the same numbers.

    Args:
        depth: 0 for heads, trained side by side on the same sentences; else blocks of a transformer of the first seed.

    Returns:
        ``losses`` [seeds] on held-out sentences; ``error``, the standard error of one; ``kept`` [seeds, F], see
        ``judged``.
    """
    of = TRANSFORMER if depth else HEADS
    run = {"width": width, "depth": depth, "seeds": list(seeds), "steps": steps, "held_out": HELD_OUT}
    run |= {"batch": of["batch"], "rate": of["rate"]}
    what = f"known/{language.label}/d{depth}-w{width}-s{seeds[0]}-n{steps}"

    def compute() -> dict[str, Any]:
        schedule = training.Schedule(steps, 1, of["rate"], steps // 20, weight_decay=0.0, evaluations=1)
        with training.threads(width):
            if depth:
                model = Transformer(language, width, depth, seeds[0])

                def loss(model: nn.Module, rows: np.ndarray) -> Tensor:  # a row is a batch: no sentence comes twice
                    number = int(rows[0])
                    return divergence(model, language, draw(language, of["batch"], 0, number), number)[0].mean()

                state = store.work_folder(what, run) / "state"
                training.train(model, loss, lambda model: 0.0, steps, schedule, seeds[0], state, f"width {width}")
            else:
                model = Heads(language, width, seeds)
                _train(model, language, schedule)
            losses, kept = judged(model.eval(), language)
        error = float(losses.std(1).max()) / HELD_OUT**0.5
        return {"losses": losses.mean(1).numpy(), "error": error, "kept": kept.numpy()}

    return store.find_or_compute(what, run, compute)


def _train(heads: Heads, language: Language, schedule: training.Schedule) -> None:
    """Adam on fresh sentences; a matter of seconds, so without checkpoints."""
    batch, optimizer = HEADS["batch"], torch.optim.Adam(heads.parameters(), betas=(0.9, 0.99), fused=True)
    for step in range(schedule.steps):
        if step % POOL == 0:
            pool = draw(language, POOL * batch, 0, step)
            teacher = (pool @ language.unembedding.T).softmax(-1)
        rows = slice(step % POOL * batch, (step % POOL + 1) * batch)
        heads.gradients(pool[rows], teacher[rows])
        optimizer.param_groups[0]["lr"] = schedule.rate(step)
        optimizer.step()


# ------------------------------------------------------------------------------------------------------------ ladders


def ladder(
    language: Language, depth: int, widths: Sequence[int], seeds: Sequence[int]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Students of one depth at their floors: steps are doubled until that moves the mean loss by less than ``MOVES``.

    Returns:
        A row a width: ``loss`` (mean over seeds, ``least``, ``most``), ``error``, ``steps`` of the last run, ``moved``
        (share by which the last doubling moved the loss), ``ends, low, high`` (where four times the steps would end,
        and its interval, by ``curves``), and the bracket of the last state, ``proved, proved_high`` (``bracket``).
        And a row a width and ``feature``: ``kept`` (mean over seeds).
    """
    of, floors, kept = TRANSFORMER if depth else HEADS, [], []
    for width in tqdm(widths, desc=f"{language.label}, depth {depth}", leave=False):
        steps, runs = [], []
        while len(runs) < 3 or (len(runs) < of["runs"] and abs(runs[-2].mean() / runs[-1].mean() - 1) >= MOVES):
            steps.append(of["steps"] * 2 ** len(runs))
            found = student(language, width, depth, seeds, steps[-1])
            runs.append(found["losses"].clip(ROUNDING))
        means, names = [losses.mean() for losses in runs], {"features": language.features, "alpha": language.alpha}
        names |= {"depth": depth, "width": width}
        ending, proved = curves.end(steps, means), bracket(language, width)
        floors.append(
            names
            | {"loss": means[-1], "least": runs[-1].min(), "most": runs[-1].max(), "error": found["error"]}
            | {"steps": steps[-1], "moved": means[-2] / means[-1] - 1}
            | {"ends": max(0.0, ending.loss), "low": max(0.0, ending.low), "high": ending.high}
            | {"proved": proved["low"], "proved_high": proved["high"]}
        )
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
    """Train every student of the study, and write the tables that 07_known_language reads after each ladder."""
    parser = argparse.ArgumentParser(prog="python -m minwidth.known_language", description=main.__doc__)
    parser.add_argument("kinds", nargs="*", default=list(STUDY), help="heads, transformers, or both")
    for kind in parser.parse_args().kinds:
        done = []
        for features, alpha, depth, widths in STUDY[kind]:
            done.append(ladder(language(features, alpha), depth, widths, SEEDS[kind]))
            tables = dict(zip(("floors", "kept"), map(pd.concat, zip(*done, strict=True)), strict=True))
            of = {"ladders": STUDY[kind][: len(done)], "seeds": SEEDS[kind], "held_out": HELD_OUT}
            of |= TRANSFORMER if depth else HEADS
            record = store.find_or_compute(f"known/tiny/{kind}", of, lambda tables=tables: tables)
            for name in tables:
                store.save_results("tiny", f"known_{kind}_{name}", record[name], record)
            log.info("%s", done[-1][0][["features", "alpha", "depth", "width", "loss", "moved"]].to_string(index=False))


if __name__ == "__main__":
    errors.command(main)
