"""SageMaker's JSON files below `input/config`, read with errors that name file, key and place."""

import json
import stat
from pathlib import Path
from typing import TypeVar

import msgspec

from trainbox.contract.hyperparameters import is_too_deep
from trainbox.errors import ContractError

#: SageMaker's own files are a few kilobytes; a cluster of thousands of hosts stays far below this.
LARGEST_CONFIG_BYTES = 16 * 1024 * 1024

T = TypeVar("T")


def read_object(path: Path) -> dict[str, object] | None:
    """Return the JSON object in a file; None if there is no such file.

    Raises:
        ContractError: It is not a regular file, is too large or cannot be read, or is not a JSON object.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a FIFO would wait for ever
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a special file"
            raise ContractError(f"{path}: found {kind}, expected a file with a JSON object")
        if status.st_size > LARGEST_CONFIG_BYTES:
            found = f"{status.st_size:,} bytes"
            raise ContractError(f"{path}: found {found}, expected a small JSON object", hint="is it the right file?")
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ContractError(f"{path}: cannot be read: {error.strerror}") from error
    value = _parse_json(content, path)
    if not isinstance(value, dict):
        raise ContractError(f"{path}: found {_kind(value)}, expected a JSON object")
    for key, entry in value.items():
        refuse_unusable(key, key, path)
        refuse_unusable(entry, key, path)
    return value


def refuse_unusable(value: object, key: str, path: Path) -> None:
    """Refuse text that cannot be an argument, a variable or a file name, anywhere in a value.

    Raises:
        ContractError: There is such a text.
    """
    rest = [value]  # not by recursion: JSON may be nested as deeply as Python can go
    while rest:
        entry = rest.pop()
        if isinstance(entry, dict):
            rest += [*entry.keys(), *entry.values()]
        elif isinstance(entry, list):
            rest += entry
        elif isinstance(entry, str) and not _can_be_passed(entry):
            raise ContractError(
                f"{path}: key {key!r}: found a NUL or half a surrogate pair, expected text",
                hint="the operating system can pass it neither as an argument nor in the environment",
            )


def _parse_json(content: bytes, path: Path) -> object:
    if not content.strip():
        raise ContractError(f"{path}: the file is empty, expected a JSON object", hint="write {} for no entries")
    try:
        value: object = json.loads(content.decode())
    except UnicodeDecodeError as error:
        raise ContractError(f"{path}: byte {error.start} is not UTF-8, expected JSON in UTF-8") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        # Only one character of what was found: the next ones may be a password.
        found = repr(error.doc[error.pos]) if error.pos < len(error.doc) else "the end of the file"
        raise ContractError(f"{path}: {where}: {error.msg}, found {found}") from None
    except RecursionError as error:
        raise ContractError(f"{path}: nested too deeply to be read") from error
    except ValueError as error:  # a number of more than 4,300 digits
        raise ContractError(f"{path}: holds a number too long to be read") from error
    if is_too_deep(value):
        raise ContractError(f"{path}: nested too deeply to be read")
    return value


def _kind(value: object) -> str:
    names = {list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def convert(value: object, kind: type[T], path: Path) -> T:
    """Return the value as a type.

    Raises:
        ContractError: It is not of this type.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ContractError(f"{path}: {error}") from error


def _can_be_passed(text: str) -> bool:
    """Whether text fits in arguments and environment: UTF-8 can encode it, and it has no NUL."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)
