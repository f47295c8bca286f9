"""How messages show lists."""

from collections.abc import Sequence


def some(items: Sequence[str], most: int = 5) -> str:
    """The first of many, and how many more there are."""
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
