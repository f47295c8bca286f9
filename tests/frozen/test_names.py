"""The public names are those that were recorded; the rule for changes is in `recorded.py`."""

from tests.frozen.fixtures import AT_QUANTILES, with_a
from tests.frozen.recorded import compare, names
from tests.frozen.surface import commands, public_names
from tests.frozen.trainings import TRAININGS


def test_the_public_names_are_the_recorded_ones() -> None:
    compare("names.json", public_names(), what="names")


def test_every_command_has_a_recorded_help_text() -> None:
    assert names("help") == sorted(["python", *commands()])


def test_every_training_has_recorded_digests_and_no_fixture_is_lost() -> None:
    assert names("digests/x86_64") == sorted(f"{name}.json" for name in TRAININGS)
    assert names("fixtures") == sorted({AT_QUANTILES, *with_a("checkpoint"), *with_a("model")})
