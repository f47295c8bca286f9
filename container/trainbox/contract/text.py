"""Text for people and for JSON, from text that may hold anything."""


def printable(text: str) -> str:
    r"""The same text as UTF-8 can have it: each byte of a file name that is not UTF-8 as `\udcff`.

    Python holds such a byte as half a surrogate pair (PEP 383), which no JSON, log or failure file can.
    """
    return text.encode("utf-8", "backslashreplace").decode()


def short(text: str, most: int = 60) -> str:
    """A piece of outside text as it would be written in Python, cut where it is long."""
    return repr(text if len(text) <= most else text[:most] + "…")
