"""Heads, the simplest students of a known language, at their floors.

A *head* is told its teacher's last state: a linear map to d numbers and an unembedding are all it learns. Its teacher
is the language itself or a *taught* model that has read sentences; ``workflow/known.py`` trains one, and students that
read too. All learn from fresh sentences, by KL at temperature 1, and are judged by their teacher and by the language.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from minwidth import bottleneck, curves, models, store, training
from minwidth import known_language as known

HEADS = {"batch": 256, "rate": 0.1}
RUNS = (500, 6)  # steps of a first run of the language's own heads, which are doubled, and its runs at most
HELD_OUT = 16_384  # sentences that judge a student
POOL = 32  # batches of heads that are drawn at once
PART = 2048  # sentences that a model reads at once
ROUNDING = 1e-7  # nats: a student that has all may come out below 0
MOVES = 0.01  # the share by which doubling the steps may move a floor
Taught = PreTrainedModel | None  # a teacher that reads sentences; None: the language itself


def last_states(model: PreTrainedModel, tokens: Int[Tensor, "count length"]) -> Float[Tensor, "count d"]:
    """The states that are asked for a word. The last block's FFN computes those alone, and costs next to nothing."""
    norm = model.base_model.layers[-1].post_attention_layernorm
    with norm.register_forward_hook(lambda _module, _inputs, normed: normed[:, -1:]):
        return torch.cat([models.final_hidden(model, part)[:, -1] for part in tokens.split(PART)])


def words(language: known.Language, model: Taught) -> Float[Tensor, "words d"]:
    """A model's unembedding of the words, its vocabulary being the larger of words and symbols; or the language's."""
    return models.unembedding(model)[: len(language.unembedding)] if model else language.unembedding


@torch.no_grad()
def lesson(language: known.Language, taught: Taught, count: int, *seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """So many sentences: their features [count, F], tokens [count, length], and the teacher's last states."""
    x = known.draw(language, count, *seed)
    tokens = known.sentences(language, x, *seed)
    return x, tokens, last_states(taught, tokens) if taught else x


@torch.no_grad()
def judged(language: known.Language, taught: Taught, logits: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Any]:
    """``known.judged`` on held-out sentences; ``logits``: (tokens, teacher's last states) -> [seeds, count, words]."""
    x, tokens, states = lesson(language, taught, HELD_OUT, 1)
    return known.judged(language, x, states @ words(language, taught).T, logits(tokens, states))


@training.threads(1)
def bracket(language: known.Language, width: int, taught: Taught = None, **how: Any) -> dict[str, float]:
    """``proved, proved_high``: both ends of the floor of the teacher's last state (``bottleneck.floor``).

    No student of that width ends below the first. It is found on the very sentences that judge students, so it holds
    for them without a sampling error. Where every feature has a dimension, the language's own state need lose nothing.
    The record says ``how`` the taught learnt.
    """
    if not taught and width >= language.features:
        return {"proved": 0.0, "proved_high": 0.0}
    of = {"width": width, "contexts": HELD_OUT, "starts": 2} | how

    def compute() -> dict[str, Any]:
        seen, unseen = (lesson(language, taught, HELD_OUT, seed)[2] for seed in (1, 3))
        found = bottleneck.floor(seen, words(language, taught), width, 1.0, held_out=unseen, starts=of["starts"])
        return {"low": found.low, "high": found.high, "starts_spread": max(found.starts) - min(found.starts)}

    found = store.find_or_compute(f"known/{language.label}/{'taught-' if taught else ''}bracket-w{width}", of, compute)
    return {"proved": found["low"], "proved_high": found["high"]}


class Heads(nn.Module):
    """Students told the teacher's last state, one a seed, side by side: ``width`` linear functions of it, and words."""

    def __init__(self, teacher_unembedding: Float[Tensor, "words d_T"], width: int, seeds: Sequence[int]):
        super().__init__()
        words, d_teacher = teacher_unembedding.shape
        shapes = (d_teacher, width), (width, words), (1, width)
        self.reduce, self.unembedding, self.bias = (nn.Parameter(torch.zeros(len(seeds), *shape)) for shape in shapes)
        for number, seed in enumerate(seeds):
            models.start([self.reduce[number], self.unembedding[number]], width, seed)

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


@lru_cache(256)  # as many as the longest run of taught heads has
def pool(language: known.Language, taught: PreTrainedModel, step: int) -> tuple[Tensor, Tensor]:
    """``POOL`` batches of heads, for all students of the taught: tokens [pool, length] and its states [pool, d_T]."""
    return lesson(language, taught, POOL * HEADS["batch"], 0, step)[1:]


@training.threads(1)
def heads(
    language: known.Language, width: int, seeds: Sequence[int], steps: int, taught: Taught = None, **how: Any
) -> store.Record:
    """The record of heads trained side by side, found or computed: ``judged``. It says ``how`` the taught learnt."""
    run = {"width": width, "seeds": list(seeds), "steps": steps, "held_out": HELD_OUT} | HEADS
    run |= how if taught else {"depth": 0}

    def compute() -> dict[str, Any]:
        matrix, count = words(language, taught), POOL * HEADS["batch"]
        model, schedule = Heads(matrix, width, seeds), training.Schedule(steps, 1, HEADS["rate"], steps // 20)
        adam = torch.optim.Adam(model.parameters(), betas=(0.9, 0.99), fused=True)
        for step in range(steps):
            if step % POOL == 0:  # the language's own states are drawn faster than kept
                drawn = pool(language, taught, step)[1] if taught else known.draw(language, count, 0, step)
            states = drawn[step % POOL * HEADS["batch"] :][: HEADS["batch"]]
            model.gradients(states, (states @ matrix.T).softmax(-1))
            adam.param_groups[0]["lr"] = schedule.rate(step)
            adam.step()
        return judged(language, taught, lambda _, states: model(states))

    name = f"head-w{width}" if taught else f"d0-w{width}-s{seeds[0]}"
    return store.find_or_compute(f"known/{language.label}/{name}-n{steps}", run, compute)


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


def ladder(language: known.Language, widths: Sequence[int], seeds: Sequence[int]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The language's own heads.

    Returns:
        A row a width: ``loss`` (mean over seeds, ``least``, ``most``), ``error``, what else ``doubled`` tells, and the
        ``bracket``. And a row a width and ``feature``: ``kept`` (mean over seeds).
    """
    floors, kept = [], []
    for width in tqdm(widths, desc=language.label, leave=False):
        found, ending = doubled(partial(heads, language, width, seeds), *RUNS)
        losses = found["losses"].clip(ROUNDING)
        names = {"features": language.features, "alpha": language.alpha, "depth": 0, "width": width}
        spread = {"loss": ending.pop("loss"), "least": losses.min(), "most": losses.max(), "error": found["error"]}
        floors.append(names | spread | ending | bracket(language, width))
        kept.append(pd.DataFrame(names | {"feature": 1 + np.arange(language.features), "kept": found["kept"].mean(0)}))
    return pd.DataFrame(floors), pd.concat(kept, ignore_index=True)
