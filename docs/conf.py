"""The documentation site: make docs-site.

The source directory is the root of the repository, so that a relative link of a page is right in the repository, too.
"""

from __future__ import annotations

from importlib.metadata import version as version_of

project = "defectnet"
author = copyright = "The defectnet developers"
version = release = version_of("defectnet")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
root_doc = "docs/index"
include_patterns = [
    "docs/**.md",
    "notebooks/*.ipynb",
    "benchmarks/*.md",
    "data/README.md",
    "examples/README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "MODEL_CARD.md",
]
exclude_patterns = [".venv", "runs", "demo", "dist", "build", "site", "src", "tests", "checkpoints", "configs", ".*"]
suppress_warnings = ["ref.python"]  # a word in backticks that is an attribute of several classes is no reference

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
highlight_language = "bash"
nb_execution_mode = "off"  # outputs are committed: make docs

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
maximum_signature_line_length = 100
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
default_role = "py:obj"
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = "defectnet"
html_static_path = ["_static"]
html_extra_path = ["_extra"]
html_css_files = ["site.css"]
html_js_files = ["sort.js"]
html_show_sourcelink = False
html_copy_source = False
html_show_sphinx = False
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = False
