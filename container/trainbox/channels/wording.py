"""How messages show lists and pieces of files."""

from collections.abc import Sequence


def some(items: Sequence[str], most: int = 5) -> str:
    """The first of many, and how many more there are."""
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def short(text: str, most: int = 60) -> str:
    """A piece of a file as it would be written in Python, cut where it is long."""
    return repr(text if len(text) <= most else text[:most] + "…")
