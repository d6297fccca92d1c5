"""A trained teacher of the known language, and students that learn from it what it has learnt.

The teacher is a GPT-NeoX that has read sentences of a ``known_language`` until it nearly says their words' p. Its
students learn from its next words at the end of fresh sentences, by KL at temperature 1. A *head* is told the teacher's
last state; a *random* student is a GPT-NeoX of another width and depth; *width alone* is the teacher itself, cut to a
width (``cut``), and trained on. All are judged by the teacher and by the language, in nats per word.

``python -m minwidth.known_teacher`` trains them, in hours of one core; a killed run goes on where it was.
"""

import argparse
import logging
from collections.abc import Callable
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import GPTNeoXConfig, PreTrainedModel

from minwidth import bottleneck, cut, errors, models, projection, store, training
from minwidth import known_language as known

log = logging.getLogger(__name__)

LANGUAGES = [(32, 0.95), (128, 0.95)]  # features, alpha: of the study, and of a teacher narrower than F
TEACHER = {"width": 64, "depth": 2, "batch": 128, "rate": 3e-3, "steps": 12_000, "seed": 100}
STUDENTS = {"batch": 128, "rate": 1e-2, "beta": 0.95}  # beta: of Adam's second moments
FIRST = 1000  # steps of a student's first run, which are doubled
LADDERS = [  # kind, depth, seeds
    ("head", 0, 3), ("random", 2, 3), ("random", 1, 3), ("width alone", 2, 2), ("random", 4, 1),
]  # fmt: skip
RUNS = {"head": 5, "random": 3, "width alone": 3}  # of a student at most
WIDTHS = [4, 8, 16, 24, 32, 48]
SEEDS = [0, 1, 2]
PART = 2048  # sentences that a model reads at once


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
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    for matrix, drawn in zip(matrices, known.normal(seed, width, *(m.shape for m in matrices)), strict=True):
        matrix.data = drawn
    return model


def last_states(model: PreTrainedModel, tokens: Int[Tensor, "count length"]) -> Float[Tensor, "count d"]:
    """The states that are asked for a word. The last block's FFN computes those alone, and costs next to nothing."""
    norm = model.base_model.layers[-1].post_attention_layernorm
    with norm.register_forward_hook(lambda _module, _inputs, normed: normed[:, -1:]):
        return torch.cat([models.final_hidden(model, part)[:, -1] for part in tokens.split(PART)])


def words(language: known.Language, model: PreTrainedModel) -> Float[Tensor, "words d"]:
    """A model's unembedding of the words; its vocabulary is the larger of words and symbols."""
    return models.unembedding(model)[: len(language.unembedding)]


def said(language: known.Language, model: PreTrainedModel, tokens: Int[Tensor, "count length"]) -> Tensor:
    """Logits [count, words] of the word that follows."""
    return last_states(model, tokens) @ words(language, model).T


@cache
def teacher(language: known.Language) -> tuple[PreTrainedModel, store.Record]:
    """The trained teacher, frozen, and its record, found or computed.

    It learns from p itself, which is what words drawn with p come to in the mean.

    Returns:
        Of the record: on held-out sentences, in nats, ``bayes``, the Bayes loss, and ``gap``, what the teacher loses
        beyond it, its mean KL from p; ``error``, the gap's standard error; and the weights by name.
    """
    of = TEACHER | {"held_out": known.HELD_OUT}
    what = f"known/{language.label}/teacher"
    model = transformer(language, of["width"], of["depth"], of["seed"])

    def loss(model: nn.Module, rows: np.ndarray) -> Tensor:  # a row is a batch: no sentence comes twice
        x, tokens = sentences(language, of["batch"], 4, int(rows[0]))
        return known.divergence(x @ language.unembedding.T, said(language, model, tokens)).mean()

    def compute() -> dict[str, Any]:
        with training.threads(of["width"]):
            state = store.work_folder(what, of) / "state"
            how = schedule(of["steps"], of["rate"])
            training.train(model, loss, lambda model: 0.0, of["steps"], how, of["seed"], state, "teacher")
            x, tokens = sentences(language, known.HELD_OUT, 1)
            with torch.no_grad():
                p = x @ language.unembedding.T
                found = known.judged(language, x, p, said(language, model.eval(), tokens)[None])
        bayes = float(torch.distributions.Categorical(logits=p).entropy().double().mean())
        weights = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
        return {"bayes": bayes, "gap": float(found["losses"][0]), "error": found["error"]} | weights

    record = store.find_or_compute(what, of, compute)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(record[name]))
    return model.eval().requires_grad_(False), record


def sentences(language: known.Language, count: int, *seed: int) -> tuple[Tensor, Tensor]:
    """So many sentences: their features [count, F] and tokens [count, length]."""
    x = known.draw(language, count, *seed)
    return x, known.sentences(language, x, *seed)


def schedule(steps: int, rate: float, beta: float = 0.999) -> training.Schedule:
    """A row of training data is a batch."""
    return training.Schedule(steps, 1, rate, steps // 20, weight_decay=0.0, betas=(0.9, beta), evaluations=1)


def judged(language: known.Language, logits: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Any]:
    """``known.judged`` by the teacher, on held-out sentences, and ``from_language`` [seeds], mean KL from p.

    Args:
        logits: (tokens, the teacher's last states) -> [seeds, count, words].
    """
    x, tokens = sentences(language, known.HELD_OUT, 1)
    model, _ = teacher(language)
    with torch.no_grad():
        states = last_states(model, tokens)
        found = logits(tokens, states)
        from_language = known.divergence(x @ language.unembedding.T, found).double().mean(1).numpy()
        return known.judged(language, x, states @ words(language, model).T, found) | {"from_language": from_language}


# ----------------------------------------------------------------------------------------------------------- students


@lru_cache(256)  # as many as the longest run of heads has
def pool(language: known.Language, step: int) -> tuple[Int[Tensor, "pool length"], Float[Tensor, "pool d_T"]]:
    """Fresh sentences for ``known.POOL`` batches of heads, and the teacher's states: all students share them."""
    _, tokens = sentences(language, known.POOL * known.HEADS["batch"], 0, step)
    with torch.no_grad():
        return tokens, last_states(teacher(language)[0], tokens)


def student(language: known.Language, kind: str, depth: int, width: int, seed: int, steps: int) -> store.Record:
    """The record of one transformer's training, found or computed; a killed run ends at the same numbers.

    Args:
        kind: "random", of the teacher's architecture, or "width alone", whose seed only orders the sentences.

    Returns:
        As ``known.judged`` by the teacher, ``from_language`` [1] by the language; ``untrained``, KL at the start.
    """
    run = {"kind": kind, "depth": depth, "width": width, "seed": seed, "held_out": known.HELD_OUT, "teacher": TEACHER}
    run |= STUDENTS | {"steps": steps}
    what = f"known/{language.label}/{kind.replace(' ', '-')}-d{depth}-w{width}-s{seed}-n{steps}"

    def compute() -> dict[str, Any]:
        of, _ = teacher(language)
        if kind == "random":
            model = transformer(language, width, depth, seed)
        else:
            _, tokens = sentences(language, PART, 5)
            model = cut.cut_to_width(of, projection.stream_basis(of, [tokens]), width)

        def loss(model: nn.Module, rows: np.ndarray) -> Tensor:  # a row is a batch: no sentence comes twice
            number, place = divmod(int(rows[0]) * STUDENTS["batch"], known.POOL * known.HEADS["batch"])
            tokens, states = (part[place:][: STUDENTS["batch"]] for part in pool(language, number * known.POOL))
            return known.divergence(states @ words(language, of).T, said(language, model, tokens)).mean()

        def logits(tokens: Tensor, _) -> Tensor:
            return said(language, model, tokens)[None]

        state, name = store.work_folder(what, run) / "state", f"{kind}, depth {depth}, width {width}"
        with training.threads(width):
            untrained = float(judged(language, logits)["losses"][0])
            how = schedule(steps, STUDENTS["rate"], STUDENTS["beta"])
            training.train(model, loss, lambda model: 0.0, steps, how, seed, state, name)
            model.eval()
            return judged(language, logits) | {"untrained": untrained}

    return store.find_or_compute(what, run, compute)


def heads(language: known.Language, width: int, steps: int) -> store.Record:
    """The record of the teacher's heads, of all seeds side by side: as ``student``'s, found or computed."""
    run = {"width": width, "seeds": SEEDS, "steps": steps, "held_out": known.HELD_OUT, "teacher": TEACHER}
    run |= {"batch": known.HEADS["batch"], "rate": known.HEADS["rate"]}

    def compute() -> dict[str, Any]:
        with training.threads(width):
            matrix = words(language, teacher(language)[0])
            model = known.trained_heads(lambda step: pool(language, step)[1], matrix, width, SEEDS, steps)
            return judged(language, lambda _, states: model(states))

    return store.find_or_compute(f"known/{language.label}/head-w{width}-n{steps}", run, compute)


def bracket(language: known.Language, width: int) -> store.Record:
    """Both ends of the floor of the teacher's last state, as ``known.bracket`` of the language's."""
    of = {"width": width, "contexts": known.HELD_OUT, "starts": 2, "teacher": TEACHER}

    def compute() -> dict[str, Any]:
        model, _ = teacher(language)
        with training.threads(width):
            seen, unseen = (last_states(model, sentences(language, known.HELD_OUT, seed)[1]) for seed in (1, 3))
            matrix = words(language, model)
            found = bottleneck.floor(seen, matrix, width, 1.0, held_out=unseen, starts=of["starts"])
        return {"low": found.low, "high": found.high, "starts_spread": max(found.starts) - min(found.starts)}

    return store.find_or_compute(f"known/{language.label}/taught-bracket-w{width}", of, compute)


# ------------------------------------------------------------------------------------------------------------ ladders


def rung(language: known.Language, kind: str, depth: int, width: int, seed: int) -> dict[str, Any]:
    """A student as a row of the table: ``kind, depth, width, seed``, ``loss`` (from the teacher), ``from_language``,
    ``error``, ``untrained``, what else ``known.doubled`` tells, and the bracket, ``proved, proved_high``.

    The first seed's steps are doubled; others train as long as it did in the end, and have no end of their own. Of
    heads, trained side by side, the mean over seeds is what has to stop moving.
    """
    if kind == "head":
        found, ending = known.doubled(partial(heads, language, width), known.HEADS["steps"], RUNS[kind])
    else:
        found, ending = known.doubled(partial(student, language, kind, depth, width, SEEDS[0]), FIRST, RUNS[kind])
    if seed != SEEDS[0]:
        ending = {"steps": ending["steps"]}
        found = found if kind == "head" else student(language, kind, depth, width, seed, **ending)
    row, place = {"kind": kind, "depth": depth, "width": width, "seed": seed}, SEEDS.index(seed) * (kind == "head")
    row |= ending | {"loss": found["losses"][place], "from_language": found["from_language"][place]}
    row |= {"error": found["error"], "untrained": found.values.get("untrained")}
    proved = bracket(language, width)
    return row | {"proved": proved["low"], "proved_high": proved["high"]}


def gap(language: known.Language) -> dict[str, Any]:
    """A teacher as a row of the table: what it loses beyond the Bayes loss, and what its width makes it lose."""
    _, found = teacher(language)
    width = min(TEACHER["width"], language.features)
    proved = known.bracket(language, width) if width < language.features else {"low": 0.0, "high": 0.0}
    row = {"features": language.features, "alpha": language.alpha, "width": TEACHER["width"], "steps": TEACHER["steps"]}
    row |= {name: found[name] for name in ("bayes", "gap", "error")}
    return row | {"proved": proved["low"], "proved_high": proved["high"]}


def main() -> None:
    """Train the teachers and the first one's students, and write the tables that 07_known_language reads as it goes."""
    argparse.ArgumentParser(prog="python -m minwidth.known_teacher", description=main.__doc__).parse_args()
    languages = [known.language(*which) for which in LANGUAGES]
    language, rows = languages[0], []
    _save("known_teachers", [gap(each) for each in languages])
    todo = [(kind, depth, seed) for seed in SEEDS for kind, depth, seeds in LADDERS if seed in SEEDS[:seeds]]
    for kind, depth, seed in todo:
        for width in tqdm(WIDTHS, desc=f"{kind}, depth {depth}, seed {seed}", leave=False):
            rows.append(rung(language, kind, depth, width, seed))
        table = _save("known_students", rows)[["kind", "depth", "width", "seed", "loss", "moved"]]
        log.info("%s", table[-len(WIDTHS) :].to_string(index=False))


def _save(name: str, rows: list[dict[str, Any]]) -> pd.DataFrame:
    of = {"rows": len(rows), "ladders": LADDERS, "widths": WIDTHS, "seeds": SEEDS, "first": FIRST, "runs": RUNS}
    of |= {"languages": LANGUAGES, "held_out": known.HELD_OUT, "teacher": TEACHER, "students": STUDENTS}
    record = store.find_or_compute(f"known/tiny/{name}", of, lambda: {"table": pd.DataFrame(rows)})
    return store.save_results("tiny", name, record["table"], record)


if __name__ == "__main__":
    errors.command(main)
