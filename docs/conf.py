"""``sphinx-build -c docs runs/book/source runs/book/html``: the book, whose pages are put together here.

They are the pages of docs/, the committed notebooks, and two that are computed, the gallery and the ledger. They need
nothing from elsewhere when they are read: formulas become MathML, and widgets the pictures beside them.
"""

import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd

from minwidth import ledger
from minwidth.scales import NOTEBOOKS, SCALES
from minwidth.store import ROOT
from workflow import publish

project = "minwidth"
author = "the authors of minwidth"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

nb_execution_mode = "off"  # what was committed is what is shown
nb_ipywidgets_js = {}
nb_render_markdown_format = "myst"
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
nitpick_ignore = [("py:class", "transformers.modeling_rope_utils.RopeParameters")]  # in configs that cut makes
suppress_warnings = ["mystnb.unknown_mime_type"]  # widgets, which have a picture beside them

autodoc_typehints = "none"  # shapes stand in the signatures of the source
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
napoleon_use_rtype = False

html_theme = "pydata_sphinx_theme"
html_title = "minwidth"
html_static_path, html_css_files = ["_static"], ["book.css"]
html_sidebars = {"**": []}
html_theme_options = {
    "header_links_before_dropdown": 5,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": True,
}
html_math_renderer = "mathml"
html_copy_source = False


def setup(app) -> None:
    assemble(Path(app.srcdir))
    shutil.copytree(ROOT / "docs" / "pages", Path(app.outdir) / "pages", dirs_exist_ok=True)  # as 08 leaves them
    app.add_html_math_renderer("mathml", (inline_formula, None), (formula, None))
    app.connect("build-finished", check_links)


def inline_formula(translator, node) -> None:
    _write(translator, node, "{}", "inline")


def formula(translator, node) -> None:
    _write(translator, node, '<div class="math-wrapper">{}</div>', "block")


def _write(translator, node, form: str, display: str) -> None:
    from docutils.nodes import SkipNode
    from latex2mathml.converter import convert

    translator.body.append(form.format(convert(node.astext(), display=display)))
    raise SkipNode


# -------------------------------------------------------------------------------------------------------------- pages


def assemble(folder: Path) -> None:
    """Write everything that Sphinx reads to ``folder``, whose content is replaced."""
    shutil.rmtree(folder)
    shutil.copytree(ROOT / "docs", folder)
    for page in folder.glob("*.md"):  # in the book the notebooks lie beside, not above
        page.write_text(page.read_text().replace("](../notebooks/", "](notebooks/"))
    (folder / "notebooks").mkdir()
    for name in NOTEBOOKS:
        shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", folder / "notebooks")
    shutil.copytree(ROOT / "figures", folder / "figures", ignore=shutil.ignore_patterns("*.svg", "other"))
    frame, first = ledger.ledger(), folder / "index.md"
    first.write_text(publish.in_readme(first.read_text(), frame))  # the verdicts, as README has them
    (folder / "gallery.md").write_text(gallery(frame))
    (folder / "ledger.md").write_text(verdicts(frame))


def gallery(frame: pd.DataFrame) -> str:
    """Each figure of the paper as this study draws it, the claims that name it, and the record it was drawn from."""
    page = [
        "# The paper's figures, drawn again",
        "The paper's own values are open markers, ours are filled. Under each figure stand the claims of the paper "
        "that name it, with what we measured, and the record it was drawn from.",
    ]
    drawn = [path for scale in SCALES for path in sorted((ROOT / "figures" / scale).glob("fig[0-9][0-9]*.svg"))]
    for number in sorted({int(path.stem[3:5]) for path in drawn}):
        page.append(f"## Figure {number}")
        for path in drawn:
            if int(path.stem[3:5]) == number:
                scale = path.parent.name
                page.append(f"![Figure {number} at scale {scale}](figures/{scale}/{path.stem}.png)")
                page.append(f"Scale `{scale}`, {_origin(path)}.")
        named = frame["place"].map(lambda place, number=number: str(number) in re.findall(r"Fig\. (\d+)", place))
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
        lines.append("| " + " | ".join(map(plain, cells)) + " |")
    return "\n".join(lines)


def _origin(picture: Path) -> str:
    """What a figure's metadata say it was drawn from."""
    said = re.search(r"<dc:description>(.*?)</dc:description>", picture.read_text())
    return f"record `{said[1]}`" if said and "/" in said[1] else "computed from formulas and the paper's own numbers"


def plain(text: str) -> str:
    """``text`` on one line, with nothing in it that Markdown would read as markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|$~^])", r"\\\1", " ".join(str(text).split()))


# -------------------------------------------------------------------------------------------------------------- links


class _Page(HTMLParser):
    """The links of a page and the places in it that a link can name."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = {""}  # a page itself
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
            elif target in pages and not pages[target].places & {parts.fragment, unquote(parts.fragment)}:
                yield f"{path.relative_to(folder.resolve())}: {link} names no place"


def check_links(app, error: Exception | None) -> None:
    """End the build where a link leads nowhere."""
    if error is None and (broken := "\n".join(broken_links(Path(app.outdir)))):
        raise SystemExit(broken)
