"""The public names are those that were recorded; the rule for changes is in `recorded.py`."""

from frozen.recorded import compare, names
from frozen.surface import commands, public_names


def test_the_public_names_are_the_recorded_ones() -> None:
    compare("names.json", public_names(), what="names")


def test_every_command_has_a_recorded_help_text() -> None:
    assert names("help") == sorted(["python", *commands()])
