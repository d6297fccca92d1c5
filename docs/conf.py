"""Sphinx reads the folder that ``python -m minwidth.book`` assembles: Markdown, executed notebooks, docstrings.

The pages need nothing from elsewhere when they are read: formulas become MathML here, and widgets the pictures beside
them.
"""

from docutils import nodes
from latex2mathml.converter import convert

project = "minwidth"
author = "the authors of minwidth"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

nb_execution_mode = "off"  # what was committed is what is shown
nb_ipywidgets_js = {}
nb_render_markdown_format = "myst"
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type"]  # widgets, which have a picture beside them

autodoc_typehints = "none"  # shapes stand in the signatures of the source
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
napoleon_use_rtype = False

html_theme = "pydata_sphinx_theme"
html_title = "minwidth"
html_sidebars = {"**": []}
html_theme_options = {
    "header_links_before_dropdown": 6,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": True,
}
html_math_renderer = "mathml"
html_copy_source = False


def inline_formula(translator, node: nodes.math) -> None:
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def formula(translator, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math-wrapper">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app) -> None:
    app.add_html_math_renderer("mathml", (inline_formula, None), (formula, None))
