"""The examples of a documentation page, to be run."""

import re
from pathlib import Path

_DOCS = Path(__file__).parents[2] / "docs"


def example(page: str, containing: str) -> str:
    """The one Python example of a page that contains a text."""
    blocks: list[str] = re.findall(r"^```python\n(.*?)^```", (_DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    (found,) = [block for block in blocks if containing in block]
    return found
