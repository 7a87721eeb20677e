"""Settings of the documentation; `make docs` builds it."""

from dualform._version import __version__

project = "dualform"
author = "The dualform authors"
copyright = "2026, The dualform authors"
release = __version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb"]
html_theme = "furo"
html_title = f"dualform {release}"
exclude_patterns = ["_build"]

# Our docstrings put code in single backticks, as Markdown does.
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"

nb_execution_mode = "off"
