"""Text for people and for JSON, from text that may hold anything."""

import re
from collections.abc import Iterable, Sequence

#: ECMA-48: a control sequence begins with CSI (ESC and a bracket, or one character of C1). Those that end with `m` set
#: colours, the others move the cursor, erase, or ask the terminal for an answer.
_SEQUENCE = re.compile(r"(?:\x1b\[|\x9b)[0-?]{0,99}[ -/]{0,9}([@-~])")
#: What a terminal obeys, and what makes text look like other text: C0, DEL, C1, line separators, marks of direction.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""The same text as UTF-8 can have it: each byte of a file name that is not UTF-8 as `\udcff`.

    Python holds such a byte as half a surrogate pair (PEP 383), which no JSON, log or failure file can.
    """
    return text.encode("utf-8", "backslashreplace").decode()


def visible(text: str) -> str:
    r"""Outside text as a terminal may be given it: each control character as `\x1b`, and no colours.

    Newlines and tabs stay. Without this a file name or a word of a peer could set the title of the window, write to the
    clipboard, or hide what else is said.
    """
    return _escaped(_SEQUENCE.sub(lambda found: "" if found[1] == "m" else found[0], text))


def coloured(text: str) -> str:
    """The same of what a script writes: its colours stay, and the moves of its progress bars are left out."""
    if not _CONTROLS.search(text):
        return text
    parts = []
    end = 0
    for found in _SEQUENCE.finditer(text):
        parts += [_escaped(text[end : found.start()]), found[0] if found[1] == "m" else ""]
        end = found.end()
    return "".join([*parts, _escaped(text[end:])])


def _escaped(text: str) -> str:
    return _CONTROLS.sub(lambda found: repr(found[0])[1:-1], text)


def short(text: str, most: int = 60) -> str:
    """A piece of outside text as it would be written in Python, cut where it is long."""
    return repr(text if len(text) <= most else text[:most] + "…")


def some(items: Sequence[str], most: int = 5) -> str:
    """Return the first of many items, and how many more there are."""
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def six_digits(value: float) -> str:
    """A number for people: six significant digits are what one compares; metric lines have all of them.

    >>> six_digits(0.8659712345678), six_digits(12345.678), six_digits(20)
    ('0.865971', '12345.7', '20')
    """
    return f"{value:.6g}"


def did_you_mean(name: str, names: Iterable[str], *, prefix: str = "") -> str:
    """Return the end of a message about a name that is not known: the one of `names` that is like it, if one is.

    Args:
        name: What was found.
        names: Those that there are.
        prefix: What they begin with, which makes none like another.
    """
    import difflib  # noqa: PLC0415 - only a job that fails has three milliseconds for it

    known = {one.removeprefix(prefix): one for one in names}
    close = difflib.get_close_matches(name.removeprefix(prefix), known, n=1)
    return f" - did you mean {known[close[0]]!r}?" if close else ""
