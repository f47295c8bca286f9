"""How the tools of a build end and what they say."""

import sys
from typing import NoReturn


def fail(what: str, hint: str) -> NoReturn:
    """End with one message."""
    raise SystemExit(f"image: {what}\n  hint: {hint}")


def emit(text: str) -> None:
    """One line of the log; stdout is for what is asked for."""
    print(f"image: {text}", file=sys.stderr, flush=True)
