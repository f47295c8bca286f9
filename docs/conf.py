"""The site: `make docs-site`. The pages are plain Markdown; everything that is only for the site is in this file."""

import re

from sphinx.application import Sphinx

project = "trainbox"
html_title = project
html_theme = "furo"
extensions = ["myst_parser"]
root_doc = "index"
exclude_patterns = ["LICENSE"]
# Anchors of titles as the repository's pages have them.
myst_heading_anchors = 4
# Every reference must lead somewhere; with `-W` a warning is an error.
nitpicky = True


def setup(app: Sphinx) -> None:
    """Change pages on their way in."""
    app.connect("source-read", prepare)


def prepare(_app: Sphinx, name: str, source: list[str]) -> None:
    """All pages lie in one directory here, and the pages that the index links to are the table of contents."""
    source[0] = re.sub(r"\]\((?:\.\./|docs/)", "](", source[0])
    if name == root_doc:
        pages = dict.fromkeys(re.findall(r"\]\(([\w-]+)\.md\)", source[0]))
        more = ("CHANGELOG", "SECURITY", "THIRD_PARTY")
        source[0] += "\n".join(["", "```{toctree}", ":hidden:", "", *pages, *more, "```", ""])
