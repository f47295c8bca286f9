"""Manifests of S3, read against a local directory: which files a channel has, or which bytes come through its pipe.

A manifest is a JSON list: an object with the prefix, then what is behind it in the key of each object. An augmented
manifest has a JSON object in each line; of the attributes that the request names, those that end in `-ref` stand for
the content of an object (AWS, "Augmented Manifest File Format for Pipe Mode Training").
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import msgspec

from trainbox.contract.text import did_you_mean, short
from trainbox.errors import RunError

#: Ten million names of files; what is larger is no manifest.
LARGEST_BYTES = 1024**3
_S3 = "s3://"
_REFERENCE = "-ref"
#: Linux allows 255 bytes.
_LONGEST_NAME = 255
#: Control characters, which no console shows as they are, and halves of surrogate pairs, which UTF-8 does not have.
_UNUSABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_FORM = 'a manifest is [{"prefix": "s3://bucket/folder/"}, "a.csv", "b.csv"]'
_AUGMENTED = 'a line of an augmented manifest is {"source-ref": "s3://bucket/a.jpg", "label": 1}'


class Entry(msgspec.Struct, frozen=True):
    """A file of a channel: its place below the channel, and where it lies on this machine."""

    name: str
    path: Path


class Piece(msgspec.Struct, frozen=True):
    """What a pipe brings as one: the content of a file, or a text."""

    path: Path | None = None
    text: str = ""


#: What an augmented manifest's line becomes.
Record = tuple[Piece, ...]


def read_manifest(path: Path, flag: str) -> bytes:
    """The content of a manifest.

    Raises:
        RunError: There is none, or it is too large.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
    except OSError as error:
        hint = "give a manifest, or leave ,manifest= out"
        raise RunError(f"{flag}: the manifest {path} cannot be read: {error.strerror}", hint=hint) from None
    if len(content) > LARGEST_BYTES:
        raise RunError(f"{flag}: the manifest {path} has more than {LARGEST_BYTES:,} bytes", hint="is it a manifest?")
    return content


def is_augmented(content: bytes) -> bool:
    """Whether it has an object in each line, and no list."""
    return content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")


def prefix_of(content: bytes, where: str) -> str:
    """The prefix of a manifest, below which its objects lie.

    Raises:
        RunError: It is no manifest, or an augmented one, which has none.
    """
    if is_augmented(content):
        raise RunError(
            f"{where}: where the objects of an augmented manifest lie here is not said", hint="name their directory"
        )
    entries = _parse(content, where)
    first = entries[0] if isinstance(entries, list) and entries else None
    prefix = first.get("prefix") if isinstance(first, dict) else None
    if not isinstance(prefix, str) or not prefix:
        raise RunError(f"{where}: found no prefix", hint=_FORM)
    return prefix


def names_of(content: bytes, where: str) -> tuple[str, ...]:
    """The names behind the prefix, in their order.

    Args:
        content: A manifest.
        where: How messages name it.

    Raises:
        RunError: It is no manifest.
    """
    entries = _parse(content, where)
    if not isinstance(entries, list) or not entries:
        raise RunError(f"{where}: expected a JSON list", hint=_FORM)
    first = entries[0]
    prefix = first.get("prefix") if isinstance(first, dict) and len(first) == 1 else None
    if not isinstance(prefix, str) or not _key_of(prefix):
        raise RunError(f"{where}: the first entry is {short(json.dumps(first))}, expected the prefix", hint=_FORM)
    names: list[str] = []
    for number, name in enumerate(entries[1:], start=2):
        if not isinstance(name, str):
            raise RunError(f"{where}: entry {number} is {short(json.dumps(name))}, expected a name", hint=_FORM)
        refuse_name(name, f"{where}: entry {number}")
        names.append(name)
    if not names:
        raise RunError(f"{where}: there is no name behind the prefix", hint=_FORM)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RunError(f"{where}: {short(twice)} is named twice", hint="name each object once")
    return tuple(names)


def refuse_name(name: str, where: str) -> None:
    """Refuse what cannot be a file below a directory.

    Raises:
        RunError: It leads out of it, or no file system has such a name.
    """
    parts = name.split("/")
    unusual = any(part in ("", ".", "..") or len(part.encode(errors="surrogatepass")) > _LONGEST_NAME for part in parts)
    if unusual or _UNUSABLE.search(name):
        raise RunError(f"{where}: {short(ascii(name))} cannot be a file below the channel", hint="rename the object")


def entries_of(names: Iterable[str], directory: Path, where: str) -> tuple[Entry, ...]:
    """The files of a manifest in a directory, which stands for its prefix.

    Raises:
        RunError: One is not there.
    """
    found = []
    for name in names:
        path = directory / name
        if not path.is_file():
            raise RunError(
                f"{where}: there is no {short(str(path), 200)}",
                hint="the directory of the channel stands for the prefix of the manifest",
            )
        found.append(Entry(name, path))
    return tuple(found)


def records_of(content: bytes, attributes: Sequence[str], directory: Path, where: str) -> tuple[Record, ...]:
    """What each line of an augmented manifest brings, in the order of the attributes.

    Args:
        content: The manifest.
        attributes: Those that the request names.
        directory: Stands for a folder of the bucket: the one below which all objects are found here.
        where: How messages name the manifest.

    Raises:
        RunError: A line is no object, or lacks an attribute; or an object is not below the directory.
    """
    lines = [(number, line) for number, line in enumerate(content.splitlines(), start=1) if line.strip()]
    read = [_attributes_of(line, attributes, f"{where}, line {number}") for number, line in lines]
    keys = {
        _reference(value, name, f"{where}, line {number}")
        for (number, _), values in zip(lines, read, strict=True)
        for name, value in values.items()
        if name.endswith(_REFERENCE)
    }
    found = _find(keys, directory, where)
    return tuple(tuple(_pieces(values, found)) for values in read)


def _attributes_of(line: bytes, attributes: Sequence[str], where: str) -> dict[str, object]:
    value = _parse(line, where)
    if not isinstance(value, dict):
        raise RunError(f"{where}: {short(line.decode(errors='replace'))} is not a JSON object", hint=_AUGMENTED)
    for name in attributes:
        if name not in value:
            raise RunError(
                f"{where}: there is no attribute {name!r}{did_you_mean(name, value)}",
                hint="each line has all of ,attributes=",
            )
    return {name: value[name] for name in attributes}


def _reference(value: object, name: str, where: str) -> str:
    key = _key_of(value) if isinstance(value, str) else ""
    if not key:
        raise RunError(f"{where}: {name} is {short(json.dumps(value))}, expected s3://BUCKET/KEY", hint=_AUGMENTED)
    refuse_name(key, f"{where}: {name}")
    return key


def _pieces(values: dict[str, object], found: dict[str, Path]) -> Iterator[Piece]:
    for name, value in values.items():
        if name.endswith(_REFERENCE):
            yield Piece(path=found[_key_of(str(value))])
        else:
            yield Piece(text=value if isinstance(value, str) else json.dumps(value, separators=(",", ":")))


def _find(keys: set[str], directory: Path, where: str) -> dict[str, Path]:
    """The file of each key: the directory stands for as few of the leading folders of all keys as it can."""
    parts = {key: PurePosixPath(key).parts for key in keys}
    deepest = min((len(each) for each in parts.values()), default=1)
    for left_out in range(deepest):
        found = {key: directory.joinpath(*each[left_out:]) for key, each in parts.items()}
        if all(path.is_file() for path in found.values()):
            return found
    missing = next((key for key in sorted(keys) if not (directory / PurePosixPath(key).name).is_file()), min(keys))
    raise RunError(
        f"{where}: {short(missing, 200)} is not below {directory}",
        hint="the directory of the channel stands for a folder in which all objects of the manifest are",
    )


def _key_of(uri: str) -> str:
    """What is behind `s3://bucket/`; of a bucket alone, a dot; empty where it is no such URI."""
    bucket, slash, key = uri.removeprefix(_S3).partition("/")
    return (key or ".") if uri.startswith(_S3) and bucket and (slash or not key) else ""


def _parse(content: bytes, where: str) -> object:
    try:
        value: object = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RunError(f"{where}: byte {error.start} is not UTF-8", hint=_FORM) from None
    except (ValueError, RecursionError) as error:
        raise RunError(f"{where}: is not JSON: {error}", hint=_FORM) from None
    return value
