"""Channels in S3: listed before a job is planned, fetched into the user's cache before it starts.

An object in the cache has the name of all that tells it from others: endpoint, bucket, key, ETag and size. What was
fetched once is not fetched again until S3 has something else there; a download that was cut off goes on where it was.
"""

import contextlib
import fcntl
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from trainbox.errors import ProgramError, RunError
from trainbox.local.inputs.manifest import refuse_name
from trainbox.supervisor.program.source import refuse_unprotected

SCHEME = "s3://"
_CHUNK_BYTES = 1024 * 1024
_CONNECT_SECONDS = 10
_READ_SECONDS = 20
#: Connections at a time: what boto3 keeps open.
_THREADS = 8
_TICK_SECONDS = 0.1
_OF_CREDENTIALS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "403", "Forbidden")
_HINT_CREDENTIALS = "'aws sts get-caller-identity' must work in this shell: set AWS_PROFILE, or run 'aws sso login'"


class Bucket(msgspec.Struct, frozen=True):
    """A bucket, and where its objects lie on this machine."""

    name: str
    endpoint: str
    cache: Path

    @classmethod
    def of(cls, uri: str, env: Mapping[str, str]) -> "Bucket":
        """The bucket of a URI.

        Raises:
            RunError: There is none in it, or no directory for the cache.
        """
        name = uri.removeprefix(SCHEME).partition("/")[0].partition(",")[0]
        if not name or "@" in name:  # `s3://KEY:SECRET@bucket` is not repeated
            raise RunError("--channel: found no bucket in the s3:// URI", hint="write s3://BUCKET/PREFIX")
        home = env.get("XDG_CACHE_HOME") or (f"{env['HOME']}/.cache" if env.get("HOME") else "")
        if not home.startswith("/"):
            raise RunError(
                f"{SCHEME}{name}: there is no place to keep what is fetched",
                hint="XDG_CACHE_HOME=DIR names a cache directory",
            )
        endpoint = env.get("S3_ENDPOINT_URL") or env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL") or ""
        return cls(name, endpoint, Path(home, "trainbox", "s3"))

    def prefix_of(self, uri: str) -> str:
        """What is behind the bucket in a URI."""
        return uri.removeprefix(f"{SCHEME}{self.name}").removeprefix("/")


class S3Object(msgspec.Struct, frozen=True):
    """An object as it was listed."""

    key: str
    #: Its place below the channel.
    name: str
    bytes: int
    etag: str
    #: Where it lies, or is to lie, in the cache.
    path: Path

    def is_beside(self, uri: str) -> bool:
        """Whether it is neither what a URI names nor below it: a prefix of S3 is no folder."""
        prefix = uri.removeprefix(SCHEME).partition("/")[2]
        rest = self.key.removeprefix(prefix)
        return bool(prefix) and not prefix.endswith("/") and rest != "" and not rest.startswith("/")


def name_below(key: str, prefix: str) -> str:
    """Where an object lies below its channel: what is behind the prefix, if that is a folder, else behind its folder.

    >>> name_below("data/train/a.csv", "data/train"), name_below("data/train-1.csv", "data/train")
    ('a.csv', 'train-1.csv')
    """
    folder = prefix if prefix.endswith("/") or not prefix else f"{prefix}/"
    if key.startswith(folder):
        return key[len(folder) :]
    return key[prefix.rfind("/") + 1 :]


def object_exists(bucket: Bucket, uri: str) -> bool:
    """Whether a key begins with what is behind the bucket.

    Raises:
        RunError: S3 does not answer, or refuses.
    """
    with _asking(uri):
        client = _connect(bucket)
        answer = client.list_objects_v2(Bucket=bucket.name, Prefix=bucket.prefix_of(uri), MaxKeys=1)
    return bool(answer.get("Contents"))


def list_objects(bucket: Bucket, uri: str, flag: str) -> tuple[S3Object, ...]:
    """All objects whose keys begin with the prefix, in the order of their keys, as SageMaker takes them.

    Raises:
        RunError: S3 does not answer, refuses, or has no such object; or one cannot be a file.
    """
    prefix = bucket.prefix_of(uri)
    with _asking(uri):
        pages = _connect(bucket).get_paginator("list_objects_v2").paginate(Bucket=bucket.name, Prefix=prefix)
        listed = [entry for page in pages for entry in page.get("Contents", ())]
    # The key of a folder, which consoles make, holds nothing.
    found = [_object(bucket, entry, prefix) for entry in listed if not str(entry["Key"]).endswith("/")]
    if not found:
        raise RunError(f"{flag}: there is no object at {uri}", hint=f"'aws s3 ls {uri}' lists what is there")
    for each in found:
        refuse_name(each.name, f"{SCHEME}{bucket.name}/{each.key!a}"[:300])
    names = {each.name for each in found}
    for each in found:
        above = next((str(path) for path in list(Path(each.name).parents)[:-1] if str(path) in names), None)
        if above is not None:
            raise RunError(
                f"{flag}: {uri} has an object {above!r} and one below it, {each.name!r}: no disk can hold both",
                hint="rename one of them; SageMaker fails with them, too",
            )
    return tuple(sorted(found, key=lambda each: each.name.encode()))


def _object(bucket: Bucket, entry: Mapping[str, Any], prefix: str) -> S3Object:
    key, size, etag = str(entry["Key"]), int(entry["Size"]), str(entry["ETag"])
    told = msgspec.json.encode([bucket.endpoint, bucket.name, key, etag, size])
    digest = hashlib.sha256(told).hexdigest()
    return S3Object(key, name_below(key, prefix), size, etag, bucket.cache / digest[:2] / digest)


def missing(objects: Sequence[S3Object]) -> list[S3Object]:
    """Those that are not in the cache."""
    return [each for each in {each.path: each for each in objects}.values() if not each.path.exists()]


def fetch(bucket: Bucket, objects: Sequence[S3Object], is_stopped: Callable[[], bool]) -> None:
    """Bring objects into the cache, each whole or not at all; returns early, without all of them, once it is stopped.

    Raises:
        RunError: S3 does not answer, refuses, or has something else by now; or the disk is full.
    """
    with _asking(f"{SCHEME}{bucket.name}"):
        client = _connect(bucket)
    stop = threading.Event()
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="s3")
    try:
        rest = {pool.submit(_fetch, client, bucket, each, stop) for each in objects}
        while rest and not is_stopped():
            done, rest = wait(rest, timeout=_TICK_SECONDS, return_when=FIRST_EXCEPTION)
            for each in done:
                each.result()
    finally:
        stop.set()  # one has failed, or it is stopped: the others leave
        pool.shutdown(cancel_futures=True)


def _fetch(client: Any, bucket: Bucket, wanted: S3Object, stop: threading.Event) -> None:  # noqa: ANN401 - boto3
    uri = f"{SCHEME}{bucket.name}/{wanted.key}"
    try:
        wanted.path.parent.mkdir(parents=True, exist_ok=True)
        with wanted.path.with_name(f"{wanted.path.name}.part").open("ab") as part:
            if not _lock(part, stop) or wanted.path.exists():
                return
            with _asking(uri):
                _complete(client, bucket, wanted, part, stop)
            part.flush()
            if stop.is_set() and part.tell() < wanted.bytes:
                return
            os.fsync(part.fileno())
            os.fchmod(part.fileno(), 0o444)  # shared by jobs, none of which may change it
            Path(part.name).replace(wanted.path)
    except OSError as error:
        raise RunError(
            f"{uri} cannot be kept in {wanted.path.parent}: {error.strerror}",
            hint="free some space, or XDG_CACHE_HOME=DIR names another cache directory",
        ) from error


def _lock(part: BinaryIO, stop: threading.Event) -> bool:
    """Wait until nobody else writes to a download; false where it is stopped before."""
    while not stop.is_set():
        try:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stop.wait(_TICK_SECONDS)
        else:
            part.seek(0, os.SEEK_END)
            return True
    return False


def _complete(client: Any, bucket: Bucket, wanted: S3Object, part: BinaryIO, stop: threading.Event) -> None:  # noqa: ANN401
    """Append what is missing; a connection that breaks after it has brought something is made again."""
    from botocore.exceptions import IncompleteReadError, ReadTimeoutError, ResponseStreamingError  # noqa: PLC0415

    if part.tell() > wanted.bytes:
        part.truncate(0)
    while part.tell() < wanted.bytes and not stop.is_set():
        begin = part.tell()
        try:
            _append(client, bucket, wanted, part, stop)
        except (IncompleteReadError, ReadTimeoutError, ResponseStreamingError):
            if part.tell() == begin:
                raise
    if part.tell() > wanted.bytes:
        part.truncate(0)
        raise ValueError(f"more than its {wanted.bytes:,} bytes came")


def _append(client: Any, bucket: Bucket, wanted: S3Object, part: BinaryIO, stop: threading.Event) -> None:  # noqa: ANN401
    # Only of the object that was listed: half of one and half of another would be nobody's data.
    answer = client.get_object(
        Bucket=bucket.name, Key=wanted.key, IfMatch=wanted.etag, Range=f"bytes={part.tell()}-{wanted.bytes - 1}"
    )
    with contextlib.closing(answer["Body"]) as body:
        for chunk in body.iter_chunks(_CHUNK_BYTES):
            part.write(chunk)
            if stop.is_set():
                return


def _connect(bucket: Bucket) -> Any:  # noqa: ANN401 - boto3 has no types
    import boto3  # noqa: PLC0415 - a quarter of a second that most jobs never need
    from botocore.config import Config  # noqa: PLC0415

    client = boto3.client(
        "s3",
        endpoint_url=bucket.endpoint or None,
        config=Config(
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=_READ_SECONDS,
            retries={"mode": "standard", "max_attempts": 4},
        ),
    )
    refuse_unprotected(client.meta.endpoint_url)
    return client


@contextlib.contextmanager
def _asking(uri: str) -> Iterator[None]:
    """Errors of boto3 become one that says what to do; no credential is in it.

    Raises:
        RunError: boto3 is not installed, there are no credentials, or S3 refuses or does not answer.
    """
    try:
        import boto3  # noqa: F401, PLC0415
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError  # noqa: PLC0415
    except ImportError as error:
        raise RunError(f"{uri} cannot be read: {error}", hint="pip install 'trainbox[s3]'") from error
    try:
        yield
    except ProgramError as error:
        raise RunError(error.message, hint="use https://; http:// is for 127.0.0.1 and localhost alone") from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise RunError(f"{uri} cannot be read: there are no AWS credentials here", hint=_HINT_CREDENTIALS) from error
    except ClientError as error:
        raise RunError(f"{uri} cannot be read: {_said(error.response)}", hint=_hint(error.response)) from error
    except (BotoCoreError, ValueError) as error:
        raise RunError(
            f"{uri} cannot be read: {error}", hint="is there a network, and is the endpoint right? Then start again"
        ) from error


def _said(response: Mapping[str, Any]) -> str:
    error = response.get("Error", {})
    return f"{error.get('Code', 'unknown')}: {error.get('Message', '')}".rstrip(": ")


def _hint(response: Mapping[str, Any]) -> str:
    code = str(response.get("Error", {}).get("Code"))
    hints = {
        "NoSuchBucket": "check the name of the bucket",
        "AccessDenied": "it needs s3:ListBucket on the bucket and s3:GetObject on its objects",
        "InvalidObjectState": "it is archived: restore it first; SageMaker cannot read it either",
        "PreconditionFailed": "it was changed after it was listed: start the job again",
        "NoSuchKey": "it was removed after it was listed: start the job again",
        "PermanentRedirect": "the bucket is in another region: set AWS_REGION",
    }
    if code in _OF_CREDENTIALS:
        return _HINT_CREDENTIALS
    return hints.get(code, "start the job again; 'aws s3 ls' in this shell shows whether S3 answers")
