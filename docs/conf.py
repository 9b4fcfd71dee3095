"""Sphinx's configuration; ``scripts/docs`` builds, from the root, where the packages are found."""

from pathlib import Path

from optimizer.archive.schema import mergefront_version
from scripts.reference.pages import write_pages

DOCS = Path(__file__).resolve().parent

write_pages(DOCS / "reference")

project = "mergefront"
release = mergefront_version()
html_title = f"mergefront {release}"
html_theme = "furo"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["deflist"]
# So that a page can link to a section of another.
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
# Attributes are in the docstrings of their classes.
napoleon_use_ivar = True
