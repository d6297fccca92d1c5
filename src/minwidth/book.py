"""The book: the pages of docs/, the committed notebooks, and two pages that are computed, the gallery and the ledger.

``python -m minwidth.book runs/book/source`` puts them in one folder for Sphinx; ``--check runs/book/html`` looks for
links in the finished pages that lead nowhere.
"""

import argparse
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd

from minwidth import errors, figures, ledger, store
from minwidth.scales import NOTEBOOKS, SCALES

FIGURES = store.ROOT / "figures"  # those that are committed, wherever others are written
DRAWN = {int(name[3:5]): function for name, function in vars(figures).items() if re.match(r"fig\d\d_", name)}


def assemble(folder: Path) -> None:
    """Write everything that Sphinx reads to ``folder``, which is replaced."""
    frame = ledger.ledger()
    with store.replace_folder(folder) as temporary:
        shutil.copytree(store.ROOT / "docs", temporary, dirs_exist_ok=True)
        for page in temporary.glob("*.md"):  # in the book the notebooks lie beside, not above
            page.write_text(page.read_text().replace("](../notebooks/", "](notebooks/"))
        (temporary / "notebooks").mkdir()
        for name in NOTEBOOKS:
            shutil.copy(store.ROOT / "notebooks" / f"{name}.ipynb", temporary / "notebooks")
        for scale in SCALES:
            for picture in sorted((FIGURES / scale).glob("*.png")):
                (temporary / "figures" / scale).mkdir(parents=True, exist_ok=True)
                shutil.copy(picture, temporary / "figures" / scale)
        (temporary / "gallery.md").write_text(gallery(frame))
        (temporary / "ledger.md").write_text(verdicts(frame))


def gallery(frame: pd.DataFrame) -> str:
    """Each figure of the paper as this study draws it, the claims that name it, and the record it was drawn from."""
    page = [
        "# The paper's figures, drawn again",
        "The paper's own values are open markers, ours are filled. Under each figure stand the claims of the paper "
        "that name it, with what we measured, and the record it was drawn from.",
    ]
    for number, function in sorted(DRAWN.items()):
        page += [f"## Figure {number}", _plain(function.__doc__.splitlines()[0])]
        for scale in SCALES:
            for picture in sorted((FIGURES / scale).glob(f"fig{number:02d}_*.svg")):
                page.append(f"![Figure {number} at scale {scale}](figures/{scale}/{picture.stem}.png)")
                page.append(f"Scale `{scale}`, {_origin(picture)}.")
        named = frame["place"].map(lambda place, number=number: number in _figures(place))
        page += [_table(frame[named])] if named.any() else ["No claim in the ledger names this figure."]
    return "\n\n".join(page) + "\n"


def verdicts(frame: pd.DataFrame) -> str:
    """Every claim with its verdict, section by section."""
    page = [
        "# The ledger",
        "Every claim of the paper that a number can decide. The verdicts are computed from the paper's printed numbers "
        "and from committed measurements; [notebook 06](notebooks/06_ledger.ipynb) says how.",
    ]
    for section, rows in frame.groupby("section"):
        page += [f"## {section.partition(' ')[2]}", _table(rows)]
    return "\n\n".join(page) + "\n"


def _table(rows: pd.DataFrame) -> str:
    """Claim, paper, ours, verdict and why as a table of Markdown."""
    lines = ["| claim | paper | ours | verdict | why |", "|---|---|---|---|---|"]
    for _, row in rows.iterrows():
        ours = [f"{row[scale]} ({scale})" for scale in ledger.measured_scales(rows) if row[scale]]
        ours += [f"{row['recomputed']} (recomputed)"] if row["recomputed"] else []
        cells = [f"{row['claim']} ({row['place']})", row["printed"], "; ".join(ours) or "–", row["verdict"], row["why"]]
        lines.append("| " + " | ".join(map(_plain, cells)) + " |")
    return "\n".join(lines)


def _figures(place: str) -> set[int]:
    return {int(number) for number in re.findall(r"Fig\. (\d+)", place)}


def _origin(picture: Path) -> str:
    """What a figure's metadata say it was drawn from."""
    said = re.search(r"<dc:description>(.*?)</dc:description>", picture.read_text())
    return f"record `{said[1]}`" if said and "/" in said[1] else "computed from formulas and the paper's own numbers"


def _plain(text: str) -> str:
    """``text`` on one line, with nothing in it that Markdown would read as markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|$~^])", r"\\\1", " ".join(str(text).split()))


# ----------------------------------------------------------------------------------------------------------- links


class _Page(HTMLParser):
    """The links of a page and the places in it that a link can name."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.places |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag != "link" or given.get("rel") == "stylesheet":
            self.links += [given[name] for name in ("href", "src") if given.get(name)]


def broken_links(folder: Path) -> Iterator[str]:
    """Links of the pages in ``folder`` to files or places that are not there; links to other sites are not followed."""
    written = [path for path in sorted(folder.rglob("*.html")) if "_static" not in path.parts]  # the theme's macros
    pages = {path.resolve(): _Page(path.read_text()) for path in written}
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:  # another site: nothing here can tell
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                yield f"{path.relative_to(folder.resolve())}: {link} is not there"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].places:
                yield f"{path.relative_to(folder.resolve())}: {link} names no place"


def main(arguments: list[str] | None = None) -> None:
    """Put the book's pages in one folder, or look for broken links in the finished ones."""
    parser = argparse.ArgumentParser(prog="python -m minwidth.book", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--check", action="store_true", help="look for broken links in the finished pages in folder")
    given = parser.parse_args(arguments)
    if not given.check:
        assemble(given.folder)
    elif found := list(broken_links(given.folder)):
        raise SystemExit("\n".join(found))


if __name__ == "__main__":
    with errors.in_one_sentence():
        main()
