"""Settings of the documentation; `make docs` builds it."""

import re
from typing import Any

from dualform._version import __version__

project = "dualform"
author = "The dualform authors"
copyright = "2026, The dualform authors"
release = __version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb"]
html_theme = "furo"
html_title = f"dualform {release}"
exclude_patterns = ["_build"]

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Source"]
autodoc_default_options = {"exclude-members": "model_config"}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"

myst_enable_extensions = ["amsmath", "dollarmath"]
# A link such as #predictions leads to the heading of that name on the same page.
myst_heading_anchors = 3
# Pages with cells are run when they are built, each in a folder of its own; one that fails stops the build.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 600
# Bars and chatter of the libraries that the cells call; what a cell means to show it prints.
nb_output_stderr = "remove"
nb_merge_streams = True


def read_as_markdown(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Our docstrings put code in single backticks and use `|` for norms; say so in reStructuredText."""
    for number, line in enumerate(lines):
        # Every second piece stands between backticks. A letter behind the closing ones needs an escape.
        pieces = line.split("`")
        if len(pieces) % 2 == 0:
            continue
        prose = [piece.replace("|", "\\|").replace("*", "\\*") for piece in pieces[::2]]
        text = prose[0]
        for code, after in zip(pieces[1::2], prose[1:], strict=True):
            text += f"``{code}``" + ("\\ " if re.match(r"\w", after) else "") + after
        lines[number] = text
    if what in ("attribute", "property"):
        # A first line that shows nothing, or napoleon takes everything before the first colon for a type.
        lines.insert(0, "\\ ")


def setup(app: Any) -> None:
    """Before napoleon, whose priority is 500."""
    app.connect("autodoc-process-docstring", read_as_markdown, priority=400)
