"""Every help text is what was recorded; the rule for changes is in `recorded.py`."""

from pathlib import Path

import pytest

from tests.frozen.recorded import compare, read
from tests.frozen.surface import PYTHON, commands, help_of

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]


@pytest.mark.parametrize("name", commands())
def test_a_help_text_is_the_recorded_one(name: str, tmp_path: Path) -> None:
    if read("help/python") != PYTHON + "\n":
        pytest.skip("Python's argparse writes it in another way than the Python it was recorded with")
    compare(f"help/{name}", help_of(commands()[name], tmp_path), what="help")
