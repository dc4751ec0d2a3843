"""How the documentation is built: Markdown pages, an API reference read from the source files, one theme."""

import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_extensions"))

project = "ringattn"
author = "The ringattn authors"
copyright = author
release = tomllib.loads((HERE / "../packages/adapters/pyproject.toml").read_text(encoding="utf-8"))["project"][
    "version"
]

extensions = ["myst_parser", "offline_math", "package_api"]
exclude_patterns = ["_build"]
# Two modules may each have a class of the same name; a type in a signature then links to either.
suppress_warnings = ["ref.python"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

html_math_renderer = "mathml"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_title = f"ringattn {release}"
add_module_names = False
toc_object_entries_show_parents = "hide"
