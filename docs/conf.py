"""How Sphinx builds the documentation site; `make docs` runs it.

The pages are the Markdown files of this folder, which are also readable on their own. Two parts are generated from code
at build time: the pages of the API (`extensions/reference.py`) and the gallery, whose examples are run for it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "extensions"), str(HERE.parent)]

import inventories  # noqa: E402  needs the path

import skyward  # noqa: E402  needs the path

project = "skyward"
author = "The skyward authors"
project_copyright = "the skyward authors"
version = release = skyward.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "llms",
    "names",
    "outside",
    "reference",
]
exclude_patterns = ["extensions", "static"]
nitpicky = True

# --- Markdown ---

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4  # links to headings, as on GitHub

# --- docstrings ---

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_type_aliases = {
    name: f"skyward.core.events.{name}" for name in ("Event", "Listener")
}  # their names instead of all their members
maximum_signature_line_length = 88
numpydoc_show_class_members = False  # autodoc shows them below their class
numpydoc_class_members_toctree = False
numpydoc_xref_param_type = False
numpydoc_validation_checks = {"GL01", "GL03", "GL05", "GL06", "GL07", "GL09", "GL10", "SS04"}  # layout
numpydoc_validation_checks |= {"PR03", "PR05", "PR06", "PR08", "PR09", "PR10", "RT04", "RT05"}  # parameters, results

# --- the gallery: each example is run during the build, and its pictures are those that it drew ---

sphinx_gallery_conf = {
    "examples_dirs": "../examples/gallery",
    "gallery_dirs": "gallery",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "write_computation_times": False,
    "min_reported_time": 3600,  # it would differ from build to build
    "show_signature": False,
}

for left in (HERE / "gallery").glob("plot_*"):  # files of examples that were renamed
    if left.is_file() and not (HERE.parent / "examples" / "gallery" / f"{left.name.split('.')[0]}.py").exists():
        left.unlink()

# --- other projects ---

# A build needs no internet: inventories that can't be fetched within seconds are left out, and their names not linked.
intersphinx_mapping = inventories.found(HERE.parent / "build" / "docs" / "inventories")
nitpick_ignore_regex = [("py:.*", rf"({'|'.join(inventories.MODULES)})(\..*)?")]

linkcheck_timeout = 20
linkcheck_anchors_ignore_for_url = [r"https://github\.com/.*"]

# --- the look ---

templates_path = ["templates"]
html_theme = "pydata_sphinx_theme"
html_title = "skyward"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_favicon = "static/skyward.svg"
html_logo = "static/skyward.svg"
html_copy_source = True  # llms.txt leads there
html_show_sourcelink = False
html_sourcelink_suffix = ""
html_theme_options = {
    "logo": {"text": "skyward"},
    "header_links_before_dropdown": 6,
    "navigation_with_keys": False,
    "show_prev_next": True,
    "show_toc_level": 2,
    "secondary_sidebar_items": {"**": ["page-toc"], "index": [], "choosing": [], "gallery/index": []},
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "tango",
    "pygments_dark_style": "github-dark",
}
html_sidebars = {"index": [], "choosing": []}
copybutton_prompt_text = re.escape(">>> ")
