r"""Control characters from elsewhere never reach a terminal: `ESC ]0;` sets the title, `ESC ]52;` the clipboard."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainbox.contract.text import coloured, visible
from trainbox.errors import RunError
from trainbox.log_lines import emit

TITLE = "\x1b]0;pwned\x07"
CLIPBOARD = "\x1b]52;c;cm0gLXJmIH4=\x1b\\"
ASKS = "\x1b[6n\x1b[c"
SGR = re.compile(r"\x1b\[[0-?]*[ -/]*m")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext\nof two lines ü🚂", "plain\ttext\nof two lines ü🚂"),
        (TITLE, "\\x1b]0;pwned\\x07"),
        (CLIPBOARD, "\\x1b]52;c;cm0gLXJmIH4=\\x1b\\"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x9b31mred", "red"),
        ("\x1b[2J\x1b[H", "\\x1b[2J\\x1b[H"),
        ("a\x9b2Jb\x85c", "a\\x9b2Jb\\x85c"),
        ("exit 0\rFAILED", "exit 0\\rFAILED"),
        ("a\x08b\x7f\0", "a\\x08b\\x7f\\x00"),
        ("txt.\u202egpj", "txt.\\u202egpj"),
    ],
)
def test_outside_text_is_shown_and_not_obeyed(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[1;32mgreen\x1b[0m\t✓", "\x1b[1;32mgreen\x1b[0m\t✓"),
        ("50%\x1b[A\x1b[2K\x1b[?25l", "50%"),
        (f"a{TITLE}b", "a\\x1b]0;pwned\\x07b"),
        (f"a{ASKS}b", "ab"),
        (f"\x1b[31m{CLIPBOARD}\x1b[0m", "\x1b[31m\\x1b]52;c;cm0gLXJmIH4=\\x1b\\\x1b[0m"),
        ("\x1bPq\x1b\\\x1bc", "\\x1bPq\\x1b\\\\x1bc"),
    ],
)
def test_of_a_script_the_colours_stay(text: str, shown: str) -> None:
    assert coloured(text) == shown


@given(st.text(st.characters() | st.sampled_from("\x1b\x9b[]?;0m\x07\x08\r"), max_size=60))
def test_no_control_character_is_left(text: str) -> None:
    for shown in (visible(text), SGR.sub("", coloured(text)).replace("\x9b", "")):
        assert {one for one in shown if unicodedata.category(one) == "Cc"} <= {"\n", "\t"}


def test_what_trainbox_says_holds_none(capsys: pytest.CaptureFixture[str]) -> None:
    emit(f"algo-2 gave up: {TITLE}\x1b[2J")
    assert capsys.readouterr().err == "trainbox: algo-2 gave up: \\x1b]0;pwned\\x07\\x1b[2J\n"


def test_an_error_at_the_end_of_a_program_holds_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainbox import cli  # noqa: PLC0415 - the verbs are loaded when they are called

    def fail(_: object) -> int:
        raise RunError(f"there is no file {TITLE}")

    monkeypatch.setattr("sys.argv", ["trainbox", "metrics", "x"])
    monkeypatch.setattr("trainbox.cli.metrics.run", fail)
    assert cli.main() == RunError.exit_code
    assert "\x1b" not in capsys.readouterr().err
