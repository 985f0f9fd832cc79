"""How the documentation is built: ``make docs``.

Its pages need no network: no fonts, scripts or formulas come from elsewhere.
"""

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from pygments.lexers import get_lexer_for_filename
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging

ROOT = Path(__file__).parents[1]
log = logging.getLogger(__name__)

project = "vae-lightning"
author = "The vae-lightning authors"
extensions = ["myst_nb"]
nitpicky = True
html_theme = "furo"
html_title = "vae-lightning"
html_show_copyright = False
html_math_renderer = "mathml"
# A font that has large brackets and sums, for systems without one of their own.
html_static_path = ["static", f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSerif.ttf"]
html_css_files = ["pages.css"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # links to headings, as in [results](results.md#networks-and-labels)
nb_execution_mode = "off"  # the notebook's outputs are stored in it: make notebook
linkcheck_retries = 2

# -- formulas become MathML, which browsers draw themselves ------------------------------------


def visit_formula(translator: Any, node: nodes.math | nodes.math_block) -> None:
    """Write a formula in place of its TeX."""
    block = isinstance(node, nodes.math_block)
    try:
        formula = tex2mathml(node.astext(), as_block=block)
    except MathError as error:
        log.warning("formula: %s in %s", error, node.astext(), location=node)
    else:
        # log p, not logp; but log(p).
        formula = re.sub(
            r"<mo>&ApplyFunction;</mo>(?=\s*<m(?!o\b))",
            '<mspace width="0.167em"></mspace>',
            formula,
        )
        translator.body.append(f'<div class="formula">{formula}</div>\n' if block else formula)
    raise nodes.SkipNode


# -- links to source files lead to pages that show them ----------------------------------------

shown: set[Path] = set()


def lines_of_names(file: Path) -> dict[str, int]:
    """Return the line of each ``function``, ``Class``, ``Class.method`` and ``CONSTANT``."""
    lines = {}
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign):
            lines |= {
                target.id: node.lineno for target in node.targets if isinstance(target, ast.Name)
            }
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            lines[node.name] = node.lineno
        if isinstance(node, ast.ClassDef):
            lines |= {
                f"{node.name}.{each.name}": each.lineno
                for each in node.body
                if isinstance(each, ast.FunctionDef)
            }
    return lines


def lead_to_sources(app: Sphinx, doctree: nodes.document) -> None:
    """Replace links to files outside docs/ by links to their pages.

    A link whose text is a name in code leads to its definition.
    """
    if app.builder.format != "html":
        return
    for link in list(doctree.findall(addnodes.download_reference)):
        file = Path(os.path.normpath(app.srcdir / link["reftarget"]))
        if file.suffix == ".mp3":
            continue
        uri = f"source/{file.relative_to(ROOT).as_posix()}.html"
        shown.add(file)
        name = link.astext()
        if (
            file.suffix == ".py"
            and link.next_node(nodes.literal)
            and "/" not in name
            and not name.endswith(".py")
        ):
            lines = lines_of_names(file)
            if name not in lines:
                log.warning("%s defines no %s", file.relative_to(ROOT), name, location=link)
            uri += f"#L-{lines.get(name, 1)}"
        link.replace_self(nodes.reference("", "", *link.children, refuri=uri, internal=True))


def source_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield a page for each source file that is linked."""
    for file in sorted(shown):
        name = file.relative_to(ROOT).as_posix()
        lexer = get_lexer_for_filename(name).aliases[0]
        code = app.builder.highlighter.highlight_block(
            file.read_text(), lexer, lineanchors="L", linenos="inline"
        )  # type: ignore[attr-defined]
        yield f"source/{name}", {"title": name, "body": f"<h1>{name}</h1>\n{code}"}, "page.html"


def setup(app: Sphinx) -> None:
    """Register the above with Sphinx."""
    app.add_html_math_renderer(
        "mathml", inline_renderers=(visit_formula, None), block_renderers=(visit_formula, None)
    )
    app.connect(
        "doctree-read", lead_to_sources, priority=100
    )  # before the files would be collected for download
    app.connect("html-collect-pages", source_pages)
