"""Students of the known languages, of which 07 shows the floors: ``make known`` trains what is missing.

Beside the languages' own heads there is a *teacher*, a GPT-NeoX that has read sentences until it nearly says their
words' p. It has three kinds of student: *head* (``known_heads``); *random*, a GPT-NeoX of another width and depth; and
*width alone*, the teacher itself, cut to a width (``cut``) and trained on. A process on each core trains them by KL at
temperature 1, in nats per word; a killed run goes on where it was.
"""

import argparse
from collections.abc import Iterable
from functools import cache, partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import GPTNeoXConfig, PreTrainedModel

from minwidth import cut, errors, known_heads, models, projection, store, training
from minwidth import known_language as known
from minwidth.known_heads import Taught, bracket, doubled, heads, judged, ladder, last_states, lesson, pool, words

LANGUAGES = [  # features, alpha, widths of the language's own heads
    *[(32, alpha, [1, 2, 4, 8, 16, 24]) for alpha in (0.8, 0.9, 0.95, 0.99)],
    *[(64, alpha, [2, 4, 8, 16, 32, 48]) for alpha in (0.8, 0.95)],
]
TEACHERS = [(32, 0.95), (128, 0.95)]  # features, alpha: of the one with students, and of one narrower than F
LADDERS = [("head", 0), ("random", 2), ("random", 1), ("width alone", 2), ("random", 4)]  # kind, depth
WIDTHS = [4, 8, 16, 24, 32, 48]
SEEDS = [0, 1, 2]
RUNS = {"head": (500, 5), "random": (1000, 3), "width alone": (1000, 3)}  # as those of the languages' own heads
TEACHER = {"width": 64, "depth": 2, "batch": 128, "rate": 3e-3, "steps": 12_000, "seed": 100}
STUDENTS = {"batch": 128, "rate": 1e-2, "beta": 0.95}  # beta: of Adam's second moments


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
    what, of = f"known/{language.label}/teacher", TEACHER | {"held_out": known_heads.HELD_OUT}
    model = transformer(language, of["width"], of["depth"], of["seed"])

    def compute() -> dict[str, Any]:
        found = learnt(language, None, model, what, of)
        p = known.draw(language, known_heads.HELD_OUT, 1) @ language.unembedding.T
        bayes = float(torch.distributions.Categorical(logits=p).entropy().double().mean())
        weights = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
        return {"bayes": bayes, "gap": float(found["losses"][0]), "error": found["error"]} | weights

    record = store.find_or_compute(what, of, compute)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(record[name]))
    return model.eval().requires_grad_(False), record


@training.threads(1)
def student(language: known.Language, kind: str, depth: int, width: int, seed: int, steps: int) -> store.Record:
    """The record of a trained teacher's student, found or computed: ``judged``; of a transformer ``untrained`` too, its
    KL at the start.

    Args:
        kind: "random", of the teacher's architecture, or "width alone", whose seed only orders the sentences. Of a
            "head", trained side by side, the record is that of all ``SEEDS``.
    """
    taught, _ = teacher(language)
    if kind == "head":
        return heads(language, width, SEEDS, steps, taught, teacher=TEACHER)
    run = {"kind": kind, "depth": depth, "width": width, "seed": seed, "steps": steps, "teacher": TEACHER}
    run |= STUDENTS | {"held_out": known_heads.HELD_OUT}
    what = f"known/{language.label}/{kind.replace(' ', '-')}-d{depth}-w{width}-s{seed}-n{steps}"

    def compute() -> dict[str, Any]:
        if kind == "random":
            model = transformer(language, width, depth, seed)
        else:
            _, tokens, _ = lesson(language, None, known_heads.PART, 5)
            model = cut.cut_to_width(taught, projection.stream_basis(taught, [tokens]), width)
        return learnt(language, taught, model, what, run)

    return store.find_or_compute(what, run, compute)


def learnt(language: known.Language, taught: Taught, model: PreTrainedModel, what: str, of: dict) -> dict[str, Any]:
    """What is ``judged`` of a transformer that its record's parameters train; and ``untrained``, its KL before."""

    def loss(model: nn.Module, rows: np.ndarray) -> Tensor:  # a row is a batch: no sentence comes twice
        if taught:
            number, place = divmod(int(rows[0]) * of["batch"], known_heads.POOL * known_heads.HEADS["batch"])
            tokens, states = (part[place:][: of["batch"]] for part in pool(language, taught, number * known_heads.POOL))
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
    return row | bracket(language, width, teacher(language)[0], teacher=TEACHER)


def gap(language: known.Language) -> dict[str, Any]:
    """A trained teacher as a row: what it loses beyond the Bayes loss, and what its width makes it lose."""
    _, found = teacher(language)
    row = {"features": language.features, "alpha": language.alpha, "width": TEACHER["width"], "steps": TEACHER["steps"]}
    return row | {name: found[name] for name in ("bayes", "gap", "error")} | bracket(language, TEACHER["width"])


def main(arguments: list[str] | None = None) -> None:
    """Train all teachers and students that are missing, side by side, and write the tables that 07 reads."""
    argparse.ArgumentParser(prog="python -m workflow.known", description=main.__doc__).parse_args(arguments)
    of = {"languages": LANGUAGES, "teachers": TEACHERS, "ladders": LADDERS, "widths": WIDTHS, "seeds": SEEDS}
    of |= {"runs": {"own head": known_heads.RUNS} | RUNS, "teacher": TEACHER, "students": STUDENTS}
    of |= {"heads": known_heads.HEADS, "held_out": known_heads.HELD_OUT}
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
