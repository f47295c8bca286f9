"""The text of a setting as the value it stands for. What is none is a ValueError."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Literal, TypeVar

C = TypeVar("C")

#: Five times the processors of the largest instance. Each costs the supervisor two open files, and planning some time.
MOST_PROCESSES_PER_HOST = 1024
LAST_EXIT_CODE = 255

Launcher = Literal["auto", "plain", "torchrun"]
Preflight = Literal["auto", "off", "fast", "full"]
#: What pip may install at the start of a job.
Installs = Literal["any", "wheels", "hashes", "off"]
#: What pip is told of each before all else.
PIP_RULES: Mapping[Installs, tuple[str, ...]] = {
    "any": (),
    "wheels": ("--only-binary", ":all:"),
    "hashes": ("--require-hashes",),
    "off": (),
}

_MODULE = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")


def one_of(choices: tuple[C, ...]) -> Callable[[str], C]:
    """A reader of one of some words."""

    def read(text: str) -> C:
        for choice in choices:
            if choice == text:
                return choice
        raise ValueError(text)

    return read


def read_bytes(text: str) -> int:
    """A number of bytes, 1 or more."""
    count = int(text)
    if count < 1:
        raise ValueError(text)
    return count


def read_switch(text: str) -> bool:
    """As SDKs pass a bool on: JSON's word, or Python's."""
    if text.lower() not in {"true", "false"}:
        raise ValueError(text)
    return text.lower() == "true"


def read_on(text: str) -> bool:
    """`on` or `off`."""
    if text not in {"on", "off"}:
        raise ValueError(text)
    return text == "on"


def read_restarts(text: str) -> int:
    """A whole number, 0 or more."""
    count = int(text)
    if count < 0:
        raise ValueError(text)
    return count


def read_module(text: str) -> str:
    """The name of a module, with dots in it."""
    if not _MODULE.fullmatch(text):
        raise ValueError(text)
    return text


def read_strings(text: str) -> tuple[str, ...]:
    """A JSON list of strings that a system can pass on."""
    found = json.loads(text)
    if not isinstance(found, list) or not all(isinstance(one, str) and "\0" not in one for one in found):
        raise ValueError(text)
    "".join(found).encode()  # half a surrogate pair is a ValueError: no system can pass it on
    return tuple(found)


def read_names(text: str) -> tuple[str, ...]:
    """Names separated by commas, or as a JSON list, which may have commas in them.

    Raises:
        ValueError: There is an empty one, or something that is no text.
    """
    names = json.loads(text) if text.startswith("[") else text.split(",")
    if not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(text)
    return tuple(name.strip() for name in names)


def read_count(text: str) -> int:
    """A whole number of processes."""
    count = int(text)
    if not 1 <= count <= MOST_PROCESSES_PER_HOST:
        raise ValueError(text)
    return count


def read_seconds(text: str) -> float:
    """A number of seconds, 0 or more, and finite."""
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise ValueError(text)
    return seconds


def read_exit_code(text: str) -> int:
    """An exit code, 0 to 255."""
    code = int(text)
    if not 0 <= code <= LAST_EXIT_CODE:
        raise ValueError(text)
    return code
