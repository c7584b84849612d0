"""Settings of Sphinx; `make docs` runs it on the folder that docs/_site prepares."""

import importlib
from pathlib import Path

import functional_opt

project = "functional_opt"
author = "the authors of functional_opt"
release = version = functional_opt.__version__
extensions = ["myst_nb", "sphinx_design", "sphinx.ext.mathjax"]
exclude_patterns = ["README.md"]

myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
myst_links_external_new_tab = False
nitpick_ignore: list[tuple[str, str]] = []

nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 180
nb_merge_streams = True

html_theme = "furo"
html_title = "functional_opt"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "github-dark"

# MathJax comes from a package, because the site loads nothing from elsewhere. One file has the fonts, too.
MATHJAX = Path(importlib.import_module("sphinx-mathjax-offline").__file__ or "").parent / "static" / "mathjax"
html_static_path.append(str(MATHJAX / "tex-svg.js"))
mathjax_path = "tex-svg.js"
mathjax3_config = {"options": {"enableMenu": False}}
