"""How Sphinx builds the documentation (`make docs`).

Formulas become MathML, which browsers show and read out by themselves: pages need neither network nor script for them.
"""

import logging
import sys
from pathlib import Path

from docutils.nodes import Element, SkipNode
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import generate  # noqa: E402  found by the line above

logging.getLogger("faiss").setLevel(logging.WARNING)  # it tells which of its builds it loads

project = "GARAGE"
copyright = "The GARAGE developers. MIT licence"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "_generated"]

highlight_language = "none"  # most blocks are commands

html_theme = "furo"
html_title = "GARAGE"
html_static_path = ["_static"]
html_css_files = ["garage.css"]
html_copy_source = False
html_math_renderer = "mathml"

myst_enable_extensions = ["dollarmath", "deflist", "substitution"]
myst_heading_anchors = 3
myst_substitutions = generate.metrics()

default_role = "py:obj"  # `name` in a docstring is a link where that name is documented, and code elsewhere
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"members": True, "undoc-members": True}
napoleon_google_docstring = False
napoleon_custom_sections = ["Returns"]  # plain text here, where numpydoc begins with a type


def write_generated(app: Sphinx) -> None:
    """Write the pages that are made of the code, before Sphinx reads those that include them."""
    folder = HERE / "_generated"
    folder.mkdir(exist_ok=True)
    for name, page in generate.pages().items():
        (folder / f"{name}.md").write_text(page)


def write_inline(translator: HTML5Translator, node: Element) -> None:
    """Write a formula within a sentence."""
    translator.body.append(tex2mathml(node.astext()))
    raise SkipNode


def write_block(translator: HTML5Translator, node: Element) -> None:
    """Write a formula that stands by itself."""
    translator.body.append(tex2mathml(node.astext(), as_block=True))
    raise SkipNode


def keep_first_line(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Save an attribute's first line from napoleon, which takes what stands before a colon there for a type."""
    if what in ("attribute", "property"):
        lines[:0] = ["..", ""]  # an empty comment


def setup(app: Sphinx) -> None:
    """Register the generated pages, a correction of docstrings, and the way to write formulas."""
    app.connect("builder-inited", write_generated)
    app.connect("autodoc-process-docstring", keep_first_line, priority=400)  # before napoleon, which has 500
    app.add_html_math_renderer("mathml", (write_inline, None), (write_block, None))
