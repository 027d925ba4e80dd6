"""How `make docs` builds the site: Sphinx reads the Markdown where it lies, so links work there as on a Git host."""

from __future__ import annotations

from typing import Any

project = "Ister"
author = "The authors of Ister"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "Ister"
html_copy_source = False
html_show_sourcelink = False
root_doc = "docs/index"
source_suffix = {".md": "markdown"}
include_patterns = ["*.md", "**/*.md"]
# At any depth: what tools of other languages put beside the clients has Markdown, too.
MADE = ("build", "dist", "node_modules", "target")
exclude_patterns = [".*", "data", "ister", "ister-env", *MADE, *(f"**/{folder}" for folder in MADE)]
suppress_warnings = ["toc.not_included"]  # pages beside these (of clients, of tests) are reached by links
myst_heading_anchors = 4  # links to headings, named as Git hosts name them

# The order of the pages. It is not in index.md, which is also read where nobody knows a toctree.
PAGES = {
    "Ister": ["../README", "architecture"],
    "How-to": ["how-to/index", "how-to/add-*"],
    "Reference": ["../transport/PROTOCOL", "languages", "../storage/FORMAT", "glossary", "../CHANGELOG"],
    "Contributing": ["../CONTRIBUTING", "decisions/index", "decisions/0*"],
}


def add_pages(_app: Any, name: str, source: list[str]) -> None:
    """Append the order of the pages to the first page."""
    if name == root_doc:
        for caption, pages in PAGES.items():
            source[0] += (
                f"\n```{{toctree}}\n:hidden:\n:glob:\n:caption: {caption}\n\n" + "\n".join(pages) + "\n```\n"
            )


def setup(app: Any) -> None:
    """Have Sphinx call `add_pages`."""
    app.connect("source-read", add_pages)
