"""Students of a known language at their floors: heads, and transformers that must read its sentences.

A *head* is told its teacher's last state: a linear map to d numbers and an unembedding are all it learns. Its teacher
is the language itself or a GPT-NeoX, ``taught``, that has read sentences until it nearly says their words' p. That one
has two more kinds of student: *random*, a GPT-NeoX of another width and depth, and *width alone*, the teacher itself,
cut to a width (``cut``) and trained on. All learn from the next words of fresh sentences, by KL at temperature 1, and
are judged by their teacher and by the language, in nats per word.

``python -m minwidth.known_students`` trains what is missing, a process on each core; a killed run goes on where it was.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import GPTNeoXConfig, PreTrainedModel

from minwidth import bottleneck, curves, cut, errors, models, projection, store, training
from minwidth import known_language as known

LANGUAGES = [  # features, alpha, widths of the language's own heads
    *[(32, alpha, [1, 2, 4, 8, 16, 24]) for alpha in (0.8, 0.9, 0.95, 0.99)],
    *[(64, alpha, [2, 4, 8, 16, 32, 48]) for alpha in (0.8, 0.95)],
]
TEACHERS = [(32, 0.95), (128, 0.95)]  # features, alpha: of the one with students, and of one narrower than F
LADDERS = [("head", 0), ("random", 2), ("random", 1), ("width alone", 2), ("random", 4)]  # kind, depth
WIDTHS = [4, 8, 16, 24, 32, 48]
SEEDS = [0, 1, 2]
RUNS = {  # steps of a student's first run, which are doubled, and its runs at most
    "own head": (500, 6), "head": (500, 5), "random": (1000, 3), "width alone": (1000, 3),
}  # fmt: skip
TEACHER = {"width": 64, "depth": 2, "batch": 128, "rate": 3e-3, "steps": 12_000, "seed": 100}
STUDENTS = {"batch": 128, "rate": 1e-2, "beta": 0.95}  # beta: of Adam's second moments
HEADS = {"batch": 256, "rate": 0.1}
HELD_OUT = 16_384  # sentences that judge a student
POOL = 32  # batches of heads that are drawn at once
PART = 2048  # sentences that a model reads at once
ROUNDING = 1e-7  # nats: a student that has all may come out below 0
MOVES = 0.01  # the share by which doubling the steps may move a floor
Taught = PreTrainedModel | None  # a trained teacher; None: the language itself

# ----------------------------------------------------------------------------------------------------------- teachers


def transformer(language: known.Language, width: int, depth: int, seed: int) -> PreTrainedModel:
    """A GPT-NeoX that reads sentences, random weights; its logits at the last token are those of words.

    A block's FFN reads what its attention wrote, so two blocks can read pairs, and one only single symbols.
    """
    config = GPTNeoXConfig(
        vocab_size=max(2 * language.symbols + 2, len(language.unembedding)), hidden_size=width,
        intermediate_size=4 * width, num_hidden_layers=depth, num_attention_heads=max(1, width // 16),
        max_position_embeddings=2 * language.slots + 1, use_parallel_residual=False,
        pad_token_id=None, bos_token_id=None, eos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    )  # fmt: skip
    model = models.from_config(config)
    models.start(model.parameters(), width, seed)
    return model


def last_states(model: PreTrainedModel, tokens: Int[Tensor, "count length"]) -> Float[Tensor, "count d"]:
    """The states that are asked for a word. The last block's FFN computes those alone, and costs next to nothing."""
    norm = model.base_model.layers[-1].post_attention_layernorm
    with norm.register_forward_hook(lambda _module, _inputs, normed: normed[:, -1:]):
        return torch.cat([models.final_hidden(model, part)[:, -1] for part in tokens.split(PART)])


def words(language: known.Language, model: Taught) -> Float[Tensor, "words d"]:
    """A model's unembedding of the words, its vocabulary being the larger of words and symbols; or the language's."""
    return models.unembedding(model)[: len(language.unembedding)] if model else language.unembedding


def said(language: known.Language, model: PreTrainedModel, tokens: Int[Tensor, "count length"]) -> Tensor:
    """Logits [count, words] of the word that follows."""
    return last_states(model, tokens) @ words(language, model).T


@cache
@training.threads(1)
def teacher(language: known.Language) -> tuple[PreTrainedModel, store.Record]:
    """The trained teacher, frozen, and its record, found or computed.

    It learns from p itself, which is what words drawn with p come to in the mean.

    Returns:
        Of the record: on held-out sentences, in nats, ``bayes``, the Bayes loss, and ``gap``, what the teacher loses
        beyond it, its mean KL from p; ``error``, the gap's standard error; and the weights by name.
    """
    of = TEACHER | {"held_out": HELD_OUT}
    what = f"known/{language.label}/teacher"
    model = transformer(language, of["width"], of["depth"], of["seed"])

    def compute() -> dict[str, Any]:
        found = learnt(language, None, model, what, of)
        p = lesson(language, None, HELD_OUT, 1)[0] @ language.unembedding.T
        bayes = float(torch.distributions.Categorical(logits=p).entropy().double().mean())
        weights = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
        return {"bayes": bayes, "gap": float(found["losses"][0]), "error": found["error"]} | weights

    record = store.find_or_compute(what, of, compute)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(record[name]))
    return model.eval().requires_grad_(False), record


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
def bracket(language: known.Language, taught: Taught, width: int) -> dict[str, float]:
    """``proved, proved_high``: both ends of the floor of the teacher's last state (``bottleneck.floor``).

    No student of that width ends below the first. It is found on the very sentences that judge students, so it holds
    for them without a sampling error. Where every feature has a dimension, the language's own state need lose nothing.
    """
    if not taught and width >= language.features:
        return {"proved": 0.0, "proved_high": 0.0}
    of = {"width": width, "contexts": HELD_OUT, "starts": 2} | ({"teacher": TEACHER} if taught else {})

    def compute() -> dict[str, Any]:
        seen, unseen = (lesson(language, taught, HELD_OUT, seed)[2] for seed in (1, 3))
        found = bottleneck.floor(seen, words(language, taught), width, 1.0, held_out=unseen, starts=of["starts"])
        return {"low": found.low, "high": found.high, "starts_spread": max(found.starts) - min(found.starts)}

    found = store.find_or_compute(f"known/{language.label}/{'taught-' if taught else ''}bracket-w{width}", of, compute)
    return {"proved": found["low"], "proved_high": found["high"]}


# ----------------------------------------------------------------------------------------------------------- students


class Heads(nn.Module):
    """Students that are told the teacher's last state, one a seed, side by side: ``width`` linear functions of it, and
    words."""

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
def pool(language: known.Language, step: int) -> tuple[Int[Tensor, "pool length"], Float[Tensor, "pool d_T"]]:
    """Fresh sentences for ``POOL`` batches of heads, and the trained teacher's states: all its students share them."""
    return lesson(language, teacher(language)[0], POOL * HEADS["batch"], 0, step)[1:]


@training.threads(1)
def heads(language: known.Language, taught: Taught, width: int, seeds: Sequence[int], steps: int) -> store.Record:
    """The record of heads trained side by side, found or computed: ``judged``."""
    run = {"width": width, "seeds": list(seeds), "steps": steps, "held_out": HELD_OUT} | HEADS
    run |= {"teacher": TEACHER} if taught else {"depth": 0}

    def compute() -> dict[str, Any]:
        matrix = words(language, taught)
        model, schedule = Heads(matrix, width, seeds), training.Schedule(steps, 1, HEADS["rate"], steps // 20)
        adam = torch.optim.Adam(model.parameters(), betas=(0.9, 0.99), fused=True)
        for step in range(steps):
            if step % POOL == 0:  # the language's own states are drawn faster than kept
                drawn = pool(language, step)[1] if taught else known.draw(language, POOL * HEADS["batch"], 0, step)
            states = drawn[step % POOL * HEADS["batch"] :][: HEADS["batch"]]
            model.gradients(states, (states @ matrix.T).softmax(-1))
            adam.param_groups[0]["lr"] = schedule.rate(step)
            adam.step()
        return judged(language, taught, lambda _, states: model(states))

    name = f"head-w{width}" if taught else f"d0-w{width}-s{seeds[0]}"
    return store.find_or_compute(f"known/{language.label}/{name}-n{steps}", run, compute)


@training.threads(1)
def student(language: known.Language, kind: str, depth: int, width: int, seed: int, steps: int) -> store.Record:
    """The record of a trained teacher's student, found or computed; a killed run ends at the same numbers.

    Args:
        kind: "random", of the teacher's architecture, or "width alone", whose seed only orders the sentences. Of a
            "head", trained side by side, the record is that of all ``SEEDS``.

    Returns:
        As ``judged``; of a transformer ``untrained`` too, KL at the start.
    """
    taught, _ = teacher(language)
    if kind == "head":
        return heads(language, taught, width, SEEDS, steps)
    run = {"kind": kind, "depth": depth, "width": width, "seed": seed, "held_out": HELD_OUT, "teacher": TEACHER}
    run |= STUDENTS | {"steps": steps}
    what = f"known/{language.label}/{kind.replace(' ', '-')}-d{depth}-w{width}-s{seed}-n{steps}"

    def compute() -> dict[str, Any]:
        if kind == "random":
            model = transformer(language, width, depth, seed)
        else:
            _, tokens, _ = lesson(language, None, PART, 5)
            model = cut.cut_to_width(taught, projection.stream_basis(taught, [tokens]), width)
        return learnt(language, taught, model, what, run)

    return store.find_or_compute(what, run, compute)


def learnt(language: known.Language, taught: Taught, model: PreTrainedModel, what: str, of: dict) -> dict[str, Any]:
    """What is ``judged`` of a transformer that its record's parameters train; and ``untrained``, its KL before."""

    def loss(model: nn.Module, rows: np.ndarray) -> Tensor:  # a row is a batch: no sentence comes twice
        if taught:
            number, place = divmod(int(rows[0]) * of["batch"], POOL * HEADS["batch"])
            tokens, states = (part[place:][: of["batch"]] for part in pool(language, number * POOL))
        else:
            _, tokens, states = lesson(language, None, of["batch"], 4, int(rows[0]))
        return known.divergence(states @ words(language, taught).T, said(language, model, tokens)).mean()

    judge = partial(judged, language, taught, lambda tokens, _: said(language, model, tokens)[None])
    untrained, state = float(judge()["losses"][0]), store.work_folder(what, of) / "state"
    steps, betas = of["steps"], (0.9, of.get("beta", 0.999))
    schedule = training.Schedule(steps, 1, of["rate"], steps // 20, weight_decay=0.0, betas=betas, evaluations=1)
    training.train(model, loss, lambda model: 0.0, steps, schedule, of["seed"], state, what)
    model.eval()
    return judge() | {"untrained": untrained}


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


def ladder(language: known.Language, widths: Sequence[int], seeds: Sequence[int]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The language's own heads.

    Returns:
        A row a width: ``loss`` (mean over seeds, ``least``, ``most``), ``error``, what else ``doubled`` tells, and the
        ``bracket``. And a row a width and ``feature``: ``kept`` (mean over seeds).
    """
    floors, kept = [], []
    for width in tqdm(widths, desc=language.label, leave=False):
        found, ending = doubled(partial(heads, language, None, width, seeds), *RUNS["own head"])
        losses = found["losses"].clip(ROUNDING)
        names = {"features": language.features, "alpha": language.alpha, "depth": 0, "width": width}
        spread = {"loss": ending.pop("loss"), "least": losses.min(), "most": losses.max(), "error": found["error"]}
        floors.append(names | spread | ending | bracket(language, None, width))
        kept.append(pd.DataFrame(names | {"feature": 1 + np.arange(language.features), "kept": found["kept"].mean(0)}))
    return pd.DataFrame(floors), pd.concat(kept, ignore_index=True)


def rung(language: known.Language, kind: str, depth: int, width: int, seed: int) -> dict[str, Any]:
    """A trained teacher's student as a row: ``kind, depth, width, seed``, ``loss`` (from the teacher),
    ``from_language``, ``error``, ``untrained``, what else ``doubled`` tells, and the ``bracket``.

    The first seed's steps are doubled; others train as long as it did in the end, and have no end of their own. Of
    heads, trained side by side, the mean over seeds is what has to stop moving.
    """
    found, ending = doubled(partial(student, language, kind, depth, width, SEEDS[0]), *RUNS[kind])
    if seed != SEEDS[0]:
        ending = {"steps": ending["steps"]}
        found = student(language, kind, depth, width, seed, **ending)
    row, place = {"kind": kind, "depth": depth, "width": width, "seed": seed}, SEEDS.index(seed) * (kind == "head")
    row |= ending | {"loss": found["losses"][place], "from_language": found["from_language"][place]}
    row |= {"error": found["error"], "untrained": found.values.get("untrained")}
    return row | bracket(language, teacher(language)[0], width)


def gap(language: known.Language) -> dict[str, Any]:
    """A trained teacher as a row: what it loses beyond the Bayes loss, and what its width makes it lose."""
    _, found = teacher(language)
    row = {"features": language.features, "alpha": language.alpha, "width": TEACHER["width"], "steps": TEACHER["steps"]}
    return row | {name: found[name] for name in ("bayes", "gap", "error")} | bracket(language, None, TEACHER["width"])


def main(arguments: list[str] | None = None) -> None:
    """Train all teachers and students that are missing, side by side, and write the tables that 07 reads."""
    argparse.ArgumentParser(prog="python -m minwidth.known_students", description=main.__doc__).parse_args(arguments)
    of = {"languages": LANGUAGES, "teachers": TEACHERS, "ladders": LADDERS, "widths": WIDTHS, "seeds": SEEDS}
    of |= {"runs": RUNS, "teacher": TEACHER, "students": STUDENTS, "heads": HEADS, "held_out": HELD_OUT}
    record = store.find_or_compute("known/tiny/tables", of, tables)
    for name in record.values:
        store.save_results("tiny", name, record[name], record)


def tables() -> dict[str, pd.DataFrame]:
    """Every table; teachers are trained first, and first seeds before those that train as long as they did."""
    gaps = [(gap, which) for which in TEACHERS]
    own = [(ladder, which, [width], SEEDS) for *which, widths in LANGUAGES for width in widths]
    rungs = [(rung, TEACHERS[0], *kind, width, seed) for seed in SEEDS for kind in LADDERS for width in WIDTHS]
    training.in_processes(rows, gaps + own + rungs, "known language")
    floors, kept = map(pd.concat, zip(*rows(own), strict=True))
    found = {"known_heads_floors": floors, "known_heads_kept": kept}
    return found | {"known_teachers": pd.DataFrame(rows(gaps)), "known_students": pd.DataFrame(rows(rungs))}


def rows(items: Iterable[tuple]) -> list:
    """What each function says of its language, ``(features, alpha)``, and its other arguments."""
    return [function(known.language(*which), *arguments) for function, which, *arguments in items]


if __name__ == "__main__":
    errors.command(main)
