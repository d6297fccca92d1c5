"""The book's pages before Sphinx reads them, the search for links that lead nowhere, the first page on a screen."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from playwright.sync_api import sync_playwright

from minwidth import ledger
from minwidth.scales import NOTEBOOKS
from minwidth.store import ROOT
from tests.test_browser import CHROMIUM, QUIET

SPEC = importlib.util.spec_from_file_location("conf", ROOT / "docs" / "conf.py")
book = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(book)


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("book")
    book.assemble(folder)
    return folder


def test_every_page_and_every_link_between_pages_is_there(pages):
    named = re.findall(r"^\S[^<\n]* <([a-z_0-9/]+)>$", (pages / "index.md").read_text(), re.M)
    assert {f"notebooks/{name}" for name in NOTEBOOKS} < set(named) and "gallery" in named
    for name in named:
        assert any((pages / f"{name}{kind}").exists() for kind in (".md", ".ipynb")), name
    for page in (ROOT / "docs").glob("*.md"):
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (pages / link.removeprefix("../")).exists(), f"{page.name}: {link}"


def test_the_gallery_has_every_figure_of_the_paper_that_is_drawn_with_its_record(pages):
    page = (pages / "gallery.md").read_text()
    shown = re.findall(r"!\[Figure (\d+) at scale (\S+)\]\((\S+)\)", page)
    assert {int(number) for number, *_ in shown} >= {1, 2, 3, 4, 5, 6, 7, 8}
    assert len(shown) == len(list((ROOT / "figures").glob("*/fig*.svg")))
    assert all((pages / picture).exists() and f"Scale `{scale}`" in page for _, scale, picture in shown)
    assert re.search(r"record `distill/tiny/[\w-]+`", page) and re.search(r"record `toy/tiny/[\w-]+`", page)


def test_the_ledger_page_has_every_claim_with_its_verdict(pages):
    page, frame = (pages / "ledger.md").read_text(), ledger.ledger()
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| claim ")]
    assert len(rows) == len(frame)
    for verdict, count in frame["verdict"].value_counts().items():
        assert sum(f" | {verdict} | " in row for row in rows) == count


def test_links_that_lead_nowhere_end_the_build(tmp_path):
    (tmp_path / "a.html").write_text('<h1 id="top"></h1><a href="b.html#there">x</a><a href="https://x.org/y">y</a>')
    (tmp_path / "b.html").write_text(
        '<p id="there"></p><img src="c%20d.png"><a href="a.html#top">x</a><a href="#there">y</a>'
    )
    (tmp_path / "c d.png").write_bytes(b"")
    book.check_links(SimpleNamespace(outdir=tmp_path), None)
    (tmp_path / "b.html").write_text('<img src="gone.png"><a href="a.html#bottom">x</a>')
    with pytest.raises(SystemExit) as broken:
        book.check_links(SimpleNamespace(outdir=tmp_path), None)
    assert sorted(str(broken.value).splitlines()) == [
        "a.html: b.html#there names no place", "b.html: a.html#bottom names no place", "b.html: gone.png is not there",
    ]  # fmt: skip


def test_nothing_in_a_cell_is_read_as_markup():
    assert book.plain("a | b\n`c` $d$ <e> [f]") == r"a \| b \`c\` \$d\$ \<e\> \[f\]"


SHOWN = """() => ({
  headings: [...document.querySelectorAll('article :is(h1, h2, .caption)')].map(e => e.innerText),
  figures: [...document.querySelectorAll('article img')].map(e => [e.alt, e.naturalWidth > 0]),
  rows: [...document.querySelectorAll('article tr')].map(e => e.innerText),
  beyond: [document.documentElement, ...document.querySelectorAll('article, article *')]
    .filter(e => e.scrollWidth > innerWidth || e.getBoundingClientRect().right > innerWidth).map(e => e.outerHTML),
})"""


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM, reason="no browser: install Chromium, as in apt-get install chromium")
@pytest.mark.skipif(not importlib.util.find_spec("sphinx"), reason="no Sphinx: make book installs it")
def test_the_first_page_is_the_same_on_a_phone_and_on_a_desktop(tmp_path):
    (tmp_path / "source").mkdir()
    build = ["--builder", "html", "--quiet", "--conf-dir", "docs", str(tmp_path / "source"), str(tmp_path / "html")]
    subprocess.run([sys.executable, "-m", "sphinx", *build], cwd=ROOT, check=True)
    seen = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, chromium_sandbox=False, args=QUIET.split())
        for width, height in ((390, 844), (1280, 800)):
            page = browser.new_page(viewport={"width": width, "height": height})
            page.goto((tmp_path / "html" / "index.html").as_uri())
            seen.append(page.evaluate(SHOWN))
        browser.close()
    phone, desktop = seen
    assert phone == desktop and not phone["beyond"]
    assert phone["headings"] and len(phone["rows"]) == 1 + len(ledger.headlines(ledger.ledger()))
    assert phone["figures"] and all(drawn for _, drawn in phone["figures"])
