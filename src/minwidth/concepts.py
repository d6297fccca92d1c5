"""The six concepts of the paper's section 7 as labelled passages, with what could leak taken out.

From the locked wheels, whose documents say what they are, or from subsets of The Pile, where French and sport must be
told by the words themselves; ``data/concepts.yaml`` says which. Positives and negatives have the same lengths, their
sources equal shares. ``group`` is what a split must not divide: a document, a whole meeting, a family of licences, or a
module with its code and its docstrings.
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import groupby, islice
from operator import attrgetter
from typing import Any

import numpy as np
import pandas as pd
import yaml

from minwidth import errors, store
from minwidth import text as texts
from minwidth.wheels import Document

QUESTION_WORDS = (6, 60)  # shortest and longest sentence
FRENCH_SHARE = 0.1  # of a passage's words, in The Pile
SPORT_WORDS = 3  # different ones in a passage on sport, there
PASSAGES_A_DOCUMENT = 100  # of a book of law or a day of parliament, at most
PERCENT_OF_OTHERS = 2.0  # documents of The Pile's subsets that are cut into passages; of rare EuroParl all


def labelled(per_class: int, seed: int, source: str = "wheels", documents: int = 0) -> store.Record:
    """Record whose ``passages`` hold all six concepts, read once, then found; see ``build``.

    Args:
        source: ``wheels``, or The Pile as a hub name or a folder in its format.
        documents: of The Pile, how many are looked through.
    """
    label, origin = f"n{per_class}-s{seed}", texts.pin(source)
    if source != "wheels":
        label, origin = f"{texts.title(source)}-{label}", origin | {"text": source, "documents": documents}
    origin["concepts"] = hashlib.sha256(json.dumps(collection(source), sort_keys=True).encode()).hexdigest()[:8]

    def compute():
        read = texts.passages(texts.documents()) if source == "wheels" else _pile_passages(source, documents)
        return {"passages": build(read, per_class, seed, source)}

    return store.find_or_compute(f"probe/text/{label}", {"per_class": per_class, "seed": seed} | origin, compute)


def build(passages: Iterable[Document], per_class: int, seed: int, source: str = "wheels") -> pd.DataFrame:
    """Draw ``per_class`` positives of each concept and as many negatives.

    Returns:
        One row a passage: ``concept``, ``label`` (1 or 0), ``set``, ``source``, ``group`` and ``text``. ``set`` is
        ``main``, or ``second`` for what no probe is trained on.

    Raises:
        ParameterError: a concept has fewer passages than ``per_class``.
    """
    known = collection(source)
    found = ((_source_of(passage, known), passage.id, passage.text) for passage in passages)
    pool = pd.DataFrame([row for row in found if row[0]], columns=["source", "document", "text"])
    questions, statements = _sentences(pool, "|".join(known["concepts"]["question"]["positives"]))
    rng, drawn = np.random.default_rng(seed), {}
    for concept, of in known["concepts"].items():
        ones, others = (questions, statements) if concept == "question" else (pool, pool)
        positives = _draw(ones, _quotas(of["positives"], ones, per_class, concept), rng)
        if "negatives" in of:
            quotas = _quotas(of["negatives"], pool, per_class, concept)
        else:
            quotas = positives.source.value_counts().to_dict()
        drawn[concept, "main", 1], drawn[concept, "main", 0] = positives, _draw_alike(others, quotas, positives, rng)
        if "second" in of:
            one, other = of["second"]
            positives = _draw(pool, {one: min(per_class, (pool.source == one).sum())}, rng)
            drawn[concept, "second", 1] = positives
            drawn[concept, "second", 0] = _draw_alike(pool, {other: len(positives)}, positives, rng)
    table = pd.concat(drawn, names=["concept", "set", "label"]).reset_index(["concept", "set", "label"])
    table["group"] = table.document.map(group_of)
    table["text"] = table.text.str.split().str.join(" ")  # line breaks would give code away
    return table[["concept", "label", "set", "source", "group", "text"]].reset_index(drop=True)


@cache
def collection(source: str) -> dict[str, Any]:
    """What ``data/concepts.yaml`` says of the wheels, or of The Pile for any other text."""
    return yaml.safe_load((store.DATA / "concepts.yaml").read_text())["wheels" if source == "wheels" else "pile"]


def _source_of(passage: Document, known: dict[str, Any]) -> str | None:
    if "sources" in known:
        place = f"{passage.domain} {passage.id}"
        found = ((name, re.match(pattern, place)) for name, pattern in known["sources"].items())
        return next((match.expand(name) for name, match in found if match), None)
    words = re.findall(r"[^\W\d_]+", passage.text.lower())
    if passage.domain == "EuroParl":
        french = sum(word in known["french"].split() for word in words) >= FRENCH_SHARE * max(1, len(words))
        return "EuroParl, French" if french else "EuroParl, other"
    if passage.domain in known["everyday"]:
        found = len(set(known["sport"].split()).intersection(words))
        return f"{passage.domain}, sport" if found >= SPORT_WORDS else None if found else passage.domain
    return passage.domain if passage.domain in known["plain"] else None


def _pile_passages(source: str, documents: int) -> Iterator[Document]:
    """Passages of the first ``documents`` documents, of each subset the share that is needed."""
    shares = dict.fromkeys([*collection(source)["everyday"], *collection(source)["plain"]], PERCENT_OF_OTHERS)
    shares["EuroParl"] = 100.0
    chosen = (
        document
        for document in islice(texts.documents(source), documents)
        if document.domain in shares and texts.sampled(document.id, shares[document.domain])
    )
    for _, passages in groupby(texts.passages(chosen), attrgetter("id")):
        yield from islice(passages, PASSAGES_A_DOCUMENT)


def group_of(document: str) -> str:
    """What must stay on one side of a split with this document: a meeting's parts, a licence's versions."""
    whole = re.match(r"public_meetings/.*(?=/)|spdx/data/[A-Za-z]+", document)
    return whole[0] if whole else document


def _sentences(pool: pd.DataFrame, sources: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Questions and statements, each once and without its end; others with ? or ! inside are left out."""
    pool = pool[pool.source.str.fullmatch(sources)]
    pool = pool.iloc[np.argsort(pd.factorize(pool.source)[0], kind="stable")]
    found = pool.assign(text=pool.text.str.split(r"(?<=[.!?])\s+", regex=True)).explode("text", ignore_index=True)
    found[["text", "end"]] = found.text.str.extract(r"(?s)^(.*?)([\W_]*)\Z")
    asked, stated = found.end.str.contains("?", regex=False), found.end.str.contains(".", regex=False)
    plain = (asked != stated) & ~found.end.str.contains("!") & ~found.text.str.contains("[?!]")
    found = found[plain & found.text.str.split().str.len().between(*QUESTION_WORDS)].drop_duplicates("text")
    return found[found.end.str.contains("?", regex=False)], found[found.end.str.contains(".", regex=False)]


def _quotas(shares: dict[str, int], pool: pd.DataFrame, total: int, concept: str) -> dict[str, int]:
    """How many passages each source gives: equal parts of its pattern's share; the others make up what one lacks."""
    there, part = pool.source.value_counts().sort_index(), {}
    for pattern, share in shares.items():
        matched = there.index[there.index.str.fullmatch(pattern)]
        part |= {source: share / sum(shares.values()) / len(matched) for source in matched}
    left, quotas = total, dict.fromkeys(part, 0)
    if (available := sum(there[source] for source in part)) < total:
        raise errors.ParameterError(
            f"passages = {total} are more than the {available} that a class of {concept} has; give at most that."
        )
    while left:
        part = {source: share for source, share in part.items() if quotas[source] < there[source]}
        scale = left / sum(part.values())
        for source, share in sorted(part.items(), key=lambda item: -item[1]):
            more = min(left, max(1, round(share * scale)), int(there[source]) - quotas[source])
            quotas[source] += more
            left -= more
    return quotas


def _draw(pool: pd.DataFrame, quotas: dict[str, int | None], rng: np.random.Generator) -> pd.DataFrame:
    """A random sample of each source; None draws it whole, in random order."""
    sources = ((pool[pool.source == source], count) for source, count in quotas.items())
    return pd.concat([part.iloc[rng.permutation(len(part))[:count]] for part, count in sources])


def _draw_alike(
    pool: pd.DataFrame, quotas: dict[str, int], models: pd.DataFrame, rng: np.random.Generator
) -> pd.DataFrame:
    """A random sample of each source in which the lengths are those of ``models``, as near as the source has them.

    Each model's length is asked of one source, its own first if that has a quota; no passage is drawn twice.
    """
    waiting, shuffled = defaultdict(dict), _draw(pool, dict.fromkeys(quotas), rng)
    for (source, length), part in shuffled.groupby(["source", shuffled.text.str.split().str.len()]):
        waiting[source][length] = list(part.index)
    left, drawn = dict(quotas), []
    models = models.iloc[rng.permutation(len(models))]
    models = models.iloc[np.argsort(~models.source.isin(quotas), kind="stable")]
    for source, length in zip(models.source, models.text.str.split().str.len(), strict=True):
        if not left.get(source):
            source = max(left, key=left.get)
        nearest = min((n for n, rows in waiting[source].items() if rows), key=lambda n: (abs(n - length), n))
        drawn.append(waiting[source][nearest].pop())
        left[source] -= 1
    return pool.loc[drawn]
