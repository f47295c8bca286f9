"""Data files of public projects, which lie beside the project where they are there at all: `../shared/data`."""

import os
from pathlib import Path

import pytest

#: Where they lie; a checkout elsewhere names the place.
ROOT = Path(os.environ.get("TRAINBOX_SHARED_DATA") or Path(__file__).parents[3] / "shared" / "data")


def shared(name: str) -> Path:
    """A file or folder of them; the test is skipped where it is not there."""
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"there is no {path}")
    return path
