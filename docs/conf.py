"""The documentation site: `python -m sphinx -W --keep-going docs docs/_build`.

The pages are the Markdown files of this folder, as they are on GitHub. The API reference and the
table of optimizers are made at each build (reference.py, gallery.py).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments.lexers.special import TextLexer
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

import gradx

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

import gallery  # noqa: E402
import pages  # noqa: E402
import reference  # noqa: E402

project = "gradx"
version = release = gradx.__version__
copyright = "the authors of gradx"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "**/_*.md"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = f"gradx {version}"

# The pages are plain Markdown. tests/test_docs.py executes their code, so the build does not.
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4  # links to headings, as on GitHub

# In a docstring `name` is a link if it is a public name, and code otherwise.
default_role = "py:obj"
add_module_names = False
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style")]  # the fields of a state, as a list

NAMES = {symbol.name: symbol.path for symbol in reference.symbols()}


def read_page(app: Sphinx, page: str, source: list[str]) -> None:
    if app.env.doc2path(page).suffix == ".md":
        source[0] = pages.for_site(source[0], DOCS)


def read_included(app: Sphinx, path: Path, page: str, source: list[str]) -> None:
    if path.suffix == ".md":
        source[0] = pages.for_site(source[0], (DOCS / path).resolve().parent)


def link_names(app: Sphinx, doctree: nodes.document) -> None:
    """Turns public names that the pages write as code into links."""
    if Path(doctree["source"]).suffix == ".md":
        for code in list(doctree.findall(nodes.literal)):
            name = re.sub(r"^gradx\.|\(.*", "", code.astext(), flags=re.DOTALL)
            if name in NAMES and not isinstance(code.parent, (nodes.reference, nodes.title)):
                about = {"refdomain": "py", "reftype": "obj", "reftarget": NAMES[name]}
                code.replace_self(
                    pending_xref("", code.deepcopy(), refdoc=app.env.docname, **about)
                )


def convert_docstring(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: Any
) -> None:
    lines[:] = reference.rest("\n".join(lines)).splitlines()


def written_signature(
    app: Sphinx, what: str, name: str, obj: Any, *_: Any
) -> tuple[str, str] | None:
    return reference.signature(obj) if callable(obj) else None


def write_pages(app: Sphinx, config: Any) -> None:
    reference.write(DOCS / "api")
    (DOCS / "api/_gallery.md").write_text(gallery.page())


def setup(app: Sphinx) -> ExtensionMetadata:
    app.add_lexer("output", TextLexer)
    app.connect("config-inited", write_pages)
    app.connect("source-read", read_page)
    app.connect("include-read", read_included)
    app.connect("doctree-read", link_names)
    app.connect("autodoc-process-docstring", convert_docstring, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", written_signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
