"""`MANIFEST.json`: what a checkpoint consists of, with a digest of every file and of itself.

The digests tell whether a checkpoint is whole: everybody can compute them. Who has written it only a key can tell
(`TRAINBOX_CHECKPOINT_KEY`): with it the manifest, and by its digests every file, is sealed by an HMAC.
"""

import hashlib
import hmac
import json
import os
import stat
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any

import msgspec

from trainbox.contract.credentials.checkpoint_keys import CHECKPOINT_KEY
from trainbox.errors import CheckpointError

FORMAT = 1
MANIFEST = "MANIFEST.json"
#: It is read whole, before anything vouches for it: names and digests of 100,000 files take a quarter of this.
LARGEST_MANIFEST_BYTES = 64 * 1024 * 1024

# What SageMaker's upload agent puts beside a file while and after it uploads it, and the ending that it passes over:
# not documented, but AWS's own XGBoost container relies on them (sagemaker_xgboost_container/checkpointing.py).
UPLOADING, UPLOADED, NOT_UPLOADED = ".sagemaker-uploading", ".sagemaker-uploaded", ".sagemaker-ignore"

# Linux' NAME_MAX and PATH_MAX, in bytes.
_LONGEST_NAME, _LONGEST_PATH = 255, 4096
#: What a seal is computed over begins with this, so that the key can make nothing else of it.
_PURPOSE = b"trainbox checkpoint manifest\n"

#: The first one seals, each of them verifies; none where there is no key.
Keys = Sequence[bytes]
Natural = Annotated[int, msgspec.Meta(ge=0)]


class FileRecord(msgspec.Struct, frozen=True):
    """What the manifest knows of one file."""

    size: Natural
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """What a checkpoint consists of."""

    step: Natural
    info: msgspec.Raw
    files: dict[str, FileRecord]


class _Format(msgspec.Struct, frozen=True):
    """The one key that every format has: it is read first."""

    format: int


class _Sealed(msgspec.Struct, frozen=True, omit_defaults=True):
    """A manifest as it lies on disk, with a digest of its own: a flipped bit in `info` must not pass either."""

    format: int
    sha256: str
    manifest: msgspec.Raw
    #: The seal, in hexadecimal digits; empty where the writer had no key.
    hmac: str = ""


class NotGenuineError(CheckpointError):
    """A checkpoint is whole, but nobody with a key of this job has sealed it."""


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a checkpoint, its own digest verified.

    Raises:
        CheckpointError: It is missing, damaged or of another format.
    """
    return open_sealed(read_sealed(directory))


def read_sealed(directory: Path) -> bytes:
    """The file with the manifest of a checkpoint as it is.

    Raises:
        CheckpointError: It is missing or too large.
    """
    try:
        with _open_plain(directory, MANIFEST) as file:
            text = file.read(LARGEST_MANIFEST_BYTES + 1)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise CheckpointError(f"it has no {MANIFEST}: its write did not finish") from None
    if len(text) > LARGEST_MANIFEST_BYTES:
        raise CheckpointError(f"{MANIFEST} has {size:,} bytes; at most {LARGEST_MANIFEST_BYTES:,} are read")
    return text


def open_sealed(text: bytes) -> Manifest:
    """The manifest in such a file, its digest verified, its seal not.

    Raises:
        CheckpointError: It is damaged or of another format.
    """
    try:
        version = msgspec.json.decode(text, type=_Format).format
        if version != FORMAT:
            raise CheckpointError(f"{MANIFEST} has format {version}; this version of trainbox reads {FORMAT}")
        sealed = msgspec.json.decode(text, type=_Sealed)
        if hashlib.sha256(sealed.manifest).hexdigest() != sealed.sha256:
            raise CheckpointError(f"{MANIFEST} does not have the digest that it names")
        manifest = msgspec.json.decode(sealed.manifest, type=Manifest)
    except (ValueError, RecursionError) as error:  # text that is not UTF-8 is no DecodeError
        raise CheckpointError(f"{MANIFEST} cannot be read: {error}") from None
    return manifest


def require_genuine(directory: Path, text: bytes, keys: Keys) -> None:
    """Verify the seal of a manifest; without a key there is nothing to verify.

    Args:
        directory: The checkpoint, for the message.
        text: What `read_sealed` gave, and `open_sealed` accepted.
        keys: One of them must have sealed it.

    Raises:
        NotGenuineError: None of them has.
    """
    sealed = msgspec.json.decode(text, type=_Sealed)
    seals = [_seal(bytes(sealed.manifest), key).encode() for key in keys]
    if keys and not any(hmac.compare_digest(sealed.hmac.encode(), seal) for seal in seals):
        why = "was made with none of its keys" if sealed.hmac else "is missing"
        raise _not_genuine(directory, f"the seal of {CHECKPOINT_KEY} {why}")


def require_no_others(directory: Path, files: Mapping[str, FileRecord], keys: Keys) -> None:
    """With a key: refuse files that the manifest does not name, which a reader that lists the directory would take.

    Raises:
        NotGenuineError: There is one.
    """
    if not keys:
        return
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        known = name == MANIFEST or name in files or name.endswith((UPLOADING, UPLOADED, NOT_UPLOADED))
        if not known and not stat.S_ISDIR(path.lstat().st_mode):
            raise _not_genuine(directory, f"{name!r} is not in its {MANIFEST}")


def _not_genuine(directory: Path, why: str) -> NotGenuineError:
    return NotGenuineError(
        f"the checkpoint {directory} is whole, but not genuine: {why}",
        hint="find out who has written it: it may be forged; remove it to resume from the one before, or give the key"
        " that it was sealed with",
    )


def check_files(directory: Path, files: Mapping[str, FileRecord], *, digests: bool) -> None:
    """Compare files with what the manifest knows of them, several at a time.

    Raises:
        CheckpointError: The first of them that is wrong.
    """
    if not digests:
        for name, record in files.items():
            check_file(directory, name, record, digest=False)
        return
    with _threads(len(files)) as pool:
        for _ in pool.map(lambda name: check_file(directory, name, files[name], digest=True), files):
            pass


def _threads(files: int) -> ThreadPoolExecutor:
    """For digests: hashlib computes them without the interpreter's lock. A disk is busy with a few of them."""
    return ThreadPoolExecutor(max(1, min(files, len(os.sched_getaffinity(0)), 4)))


def check_file(directory: Path, name: str, record: FileRecord, *, digest: bool) -> None:
    """Compare a file with what the manifest knows of it.

    Raises:
        CheckpointError: It is missing, a link, of another size or digest, or lies outside.
    """
    if not is_inside(name):
        raise CheckpointError(f"{MANIFEST} names {name!r}, which is no path inside the checkpoint")
    try:
        with _open_plain(directory, name) as file:
            size = os.fstat(file.fileno()).st_size
            if size != record.size:
                raise CheckpointError(f"{name!r} has {size:,} bytes, not {record.size:,}")
            if digest and hashlib.file_digest(file, "sha256").hexdigest() != record.sha256:
                raise CheckpointError(f"{name!r} does not have the digest that {MANIFEST} names")
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{name!r} is missing") from None


def is_inside(name: str) -> bool:
    """Pure: whether a name from outside is a path that leads to nowhere but below a directory, and that Linux takes."""
    try:
        parts = [part.encode() for part in name.split("/")]
    except UnicodeEncodeError:
        return False
    fits = sum(map(len, parts)) + len(parts) <= _LONGEST_PATH and max(map(len, parts)) <= _LONGEST_NAME
    return fits and "\0" not in name and {b"", b".", b".."}.isdisjoint(parts)


def _open_plain(directory: Path, name: str) -> BufferedReader:
    """Open a file for reading, provided that no link leads to it and that reading it cannot block."""
    path = directory / name
    if not stat.S_ISREG(path.lstat().st_mode) or path.resolve() != directory.resolve() / name:
        raise CheckpointError(f"{name!r} is not a plain file inside the checkpoint")
    return path.open("rb")


def encode_info(step: int, info: Mapping[str, object]) -> msgspec.Raw:
    """What the script notes beside a checkpoint, as JSON that reads back.

    Raises:
        CheckpointError: JSON cannot say it.
    """
    if step < 0:
        raise CheckpointError(f"step {step} is negative", hint="count steps from 0")
    try:
        encoded = msgspec.Raw(msgspec.json.encode(dict(info)))
        decode_info(encoded)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CheckpointError(
            f"the info of the checkpoint of step {step} cannot be written as JSON: {error}",
            hint="use numbers, strings, booleans, None, lists and dicts; arrays belong in a file of the checkpoint",
        ) from error
    return encoded


def decode_info(encoded: msgspec.Raw) -> dict[str, Any]:
    """What the script noted."""
    # Not by msgspec, which makes floats of integers beyond 64 bits: the state of numpy's PCG64 has 128.
    info = json.loads(bytes(encoded))
    if not isinstance(info, dict):
        raise TypeError(f"info is of type {type(info).__name__}, not a dict")
    return info


def settle(paths: Sequence[Path]) -> list[FileRecord]:
    """Bring files to the disk, one after the other, while others compute their digests; say what they are."""
    with _threads(len(paths)) as pool:
        digests = pool.map(_digest, paths)
        sizes = [_sync(path) for path in paths]
        return [FileRecord(size, digest) for size, digest in zip(sizes, digests, strict=True)]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> int:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


def seal(manifest: Manifest, keys: Keys = ()) -> bytes:
    """A manifest as it lies on disk, sealed with the first of the keys.

    Raises:
        CheckpointError: A file has a name that is not UTF-8, or there is more to say than can be read back.
    """
    try:
        body = msgspec.json.encode(manifest)
    except UnicodeEncodeError as error:
        raise CheckpointError(
            f"a file of the checkpoint of step {manifest.step} has a name that is not UTF-8: {error.object!r}",
            hint="rename it",
        ) from error
    proof = _seal(body, keys[0]) if keys else ""
    text = msgspec.json.encode(_Sealed(FORMAT, hashlib.sha256(body).hexdigest(), msgspec.Raw(body), proof)) + b"\n"
    if len(text) > LARGEST_MANIFEST_BYTES:
        raise CheckpointError(
            f"the info and the file names of the checkpoint of step {manifest.step} take {len(text):,} bytes;"
            f" at most {LARGEST_MANIFEST_BYTES:,} are possible",
            hint="write large things to a file of the checkpoint",
        )
    return text


def _seal(body: bytes, key: bytes) -> str:
    return hmac.digest(key, _PURPOSE + body, "sha256").hex()


def write_manifest(directory: Path, text: bytes) -> None:
    """Put the manifest into a checkpoint, whole and last."""
    temporary = directory / f"{MANIFEST}{NOT_UPLOADED}"
    with temporary.open("wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(directory / MANIFEST)
    fsync(directory)


def fsync(directory: Path) -> None:
    """Bring the entries of a directory to the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
