"""Text for people and for JSON, from text that may hold anything."""

from collections.abc import Iterable


def printable(text: str) -> str:
    r"""The same text as UTF-8 can have it: each byte of a file name that is not UTF-8 as `\udcff`.

    Python holds such a byte as half a surrogate pair (PEP 383), which no JSON, log or failure file can.
    """
    return text.encode("utf-8", "backslashreplace").decode()


def short(text: str, most: int = 60) -> str:
    """A piece of outside text as it would be written in Python, cut where it is long."""
    return repr(text if len(text) <= most else text[:most] + "…")


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
