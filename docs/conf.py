"""Sphinx: `make docs`."""

import snnkernels

project = "snnkernels"
author = "The snnkernels authors"
copyright = author
release = version = snnkernels.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath"]
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Docstrings write `name` for code.
default_role = "code"
autodoc_typehints = "none"

html_theme = "furo"
html_title = f"snnkernels {version}"
exclude_patterns = ["_build"]
