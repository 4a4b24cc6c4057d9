"""Sphinx reads this: what the pages are made with. ``sphinx-build -W -n docs docs/_build`` builds them."""

import importlib.metadata
import sys
from pathlib import Path

from sphinx.pycode import ModuleAnalyzer

sys.path.insert(0, str(Path(__file__).resolve().parent))

project = "longformer-triton"
author = "the longformer-triton authors"
version = release = importlib.metadata.version("longformer-triton")

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser", "formulas", "generated"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_math_renderer = "mathml"
html_show_copyright = False
html_title = f"longformer-triton {version}"

myst_enable_extensions = ["dollarmath", "amsmath"]
# Anchors of headings down to this level, by GitHub's rule: one link works there and here.
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
napoleon_use_ivar = True
napoleon_numpy_docstring = False

# A reference that leads nowhere is a warning, and CI makes warnings errors. What other packages document is not looked up: the
# build needs no network.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(torch|tokenizers|transformers|numpy|np|collections|pathlib|os|typing|bytes)(\..*)?"),
    # Names that only type checkers see: aliases, type variables, and what is imported for them alone.
    ("py:class", r"(globals_\.)?GlobalAttention|Token|AddedToken|Tokenizer|models\.BPE|Encoding|longformer_triton\..*\._\w+"),
]

_analyze = ModuleAnalyzer.analyze


def _without_overloads(self: ModuleAnalyzer) -> None:
    """Overloads tell type checkers what a flag makes of a result; a page shows the one signature that has the defaults."""
    _analyze(self)
    self.overloads = {}


ModuleAnalyzer.analyze = _without_overloads
