"""Fetch the code of a program: from S3, an archive or a directory into the code directory, whole or not at all."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from trainbox.contract.job import Job
from trainbox.contract.text import short
from trainbox.errors import ProgramError
from trainbox.files import disarm, remove_tree
from trainbox.supervisor.program.archive import extract, too_large
from trainbox.supervisor.program.choice import CodeSource

Log = Callable[[str], None]
_BLOCK_BYTES = 1024 * 1024
#: A directory that cannot be changed: a read-only mount, or another user's.
_NOT_OURS = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
#: Without a network (isolation) botocore would try for five minutes.
_CONNECT_SECONDS = 10


def fetch(source: CodeSource, job: Job, log: Log) -> Path:
    """Bring the code to where it runs.

    What is fetched always wins over what lies in the code directory: sagemaker-training skips the download without a
    word when there is anything there (aws/sagemaker-training-toolkit#85, #222).

    Returns:
        The directory that holds the code.

    Raises:
        ProgramError: It cannot be downloaded, is not there, is not safe to unpack, or there is no place for it.
    """
    if source.kind == "place":
        return Path(source.location)
    code_dir, staging = _staging(job.layout.code_dir, log)
    try:
        _fill(staging, source, job, log)
        return _put(staging, code_dir, log)
    except (OSError, RecursionError) as error:  # shutil.Error, which copytree raises, is an OSError too
        raise ProgramError(f"the code of {short(source.location)} cannot be put in {code_dir}: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            remove_tree(staging)


def copy_to_change(directory: Path, job: Job, log: Log) -> Path:
    """Copy code that cannot be written to where it can be: pip builds a package in its own directory.

    Returns:
        The copy, of which every directory can be written.

    Raises:
        ProgramError: There is no place for it, or it cannot be read.
    """
    scratch = _scratch(directory, OSError(errno.EROFS, os.strerror(errno.EROFS)))
    log(f"{directory} cannot be written: pip builds in a copy, {scratch / 'code'}")
    try:
        _copy(directory, scratch / "code", most_bytes=job.settings.source_bytes)
        (scratch / "code").chmod(0o755)
        disarm(scratch / "code")
    except (OSError, RecursionError) as error:
        raise ProgramError(f"the code in {directory} cannot be copied to {scratch}: {error}") from error
    return scratch / "code"


def make_directory(directory: Path) -> Path:
    """Return where a module runs that is installed: a job started by hand may have no code directory.

    Raises:
        ProgramError: No directory can be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return _scratch(directory, error)
    return directory


def _staging(code_dir: Path, log: Log) -> tuple[Path, Path]:
    """A directory beside the code directory to unpack into; below the temporary directory where that is read-only."""
    try:
        code_dir.parent.mkdir(parents=True, exist_ok=True)
        return code_dir, Path(tempfile.mkdtemp(prefix=".code-", dir=code_dir.parent))
    except OSError as error:
        scratch = _scratch(code_dir.parent, error)
        log(f"{code_dir.parent} cannot be written ({error.strerror}): the code goes to {scratch / 'code'}")
        staging = scratch / "staging"
        staging.mkdir()
        return scratch / "code", staging


def _scratch(refused: Path, why: OSError) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="trainbox-"))
    except OSError as error:
        raise ProgramError(
            f"there is no place for the code: {refused} cannot be written ({why.strerror}), {error.strerror}",
            hint="mount one of them writable (docker run --tmpfs /tmp)",
        ) from error


def _fill(staging: Path, source: CodeSource, job: Job, log: Log) -> None:
    if source.kind == "s3":
        with tempfile.TemporaryDirectory(prefix="trainbox-") as scratch:
            archive = Path(scratch) / "source.tar.gz"
            download(source.location, archive, job, log)
            extract(archive, staging, shown=source.location, most_bytes=job.settings.source_bytes)
    elif source.kind == "archive":
        extract(Path(source.location), staging, shown=source.location, most_bytes=job.settings.source_bytes)
    else:
        _copy(Path(source.location), staging, most_bytes=job.settings.source_bytes)


def _copy(directory: Path, staging: Path, *, most_bytes: int) -> None:
    """Copy a directory, or unpack it where it holds nothing but one archive (how the SDKs fill the channel `code`)."""
    try:
        is_directory = directory.is_dir()
    except OSError as error:
        raise ProgramError(
            f"the source {short(str(directory))} cannot be read: {error.strerror}",
            hint="check sagemaker_submit_directory or the channel 'code'",
        ) from error
    if not is_directory:
        raise ProgramError(
            f"the source {directory} is not a directory", hint="check sagemaker_submit_directory or the channel 'code'"
        )
    entries = list(directory.iterdir())
    if len(entries) == 1 and entries[0].name.endswith((".tar.gz", ".tgz")):
        extract(entries[0], staging, shown=str(entries[0]), most_bytes=most_bytes)
        return
    shutil.copytree(directory, staging, dirs_exist_ok=True, symlinks=True)


def _put(staging: Path, code_dir: Path, log: Log) -> Path:
    """Put the new code in the place of the old, or in a scratch directory where that is another user's or read-only."""
    staging.chmod(0o755)
    try:
        _replace(code_dir, staging)
    except OSError as error:
        if error.errno not in _NOT_OURS:
            raise
        scratch = _scratch(code_dir, error)
        log(f"{code_dir} cannot be written ({error.strerror}): the code goes to {scratch / 'code'}")
        shutil.move(staging, scratch / "code")
        return scratch / "code"
    return code_dir


def _replace(code_dir: Path, staging: Path) -> None:
    """Put the new code in the place of the old; where that cannot be moved away, exchange the content instead."""
    old = staging.with_name(f"{staging.name}-old")
    try:
        code_dir.rename(old)
    except FileNotFoundError:
        staging.rename(code_dir)
    except OSError as error:
        # A mount point is busy; a directory of the image's lower layers cannot be renamed (overlayfs: EXDEV).
        if error.errno not in {errno.EBUSY, errno.EXDEV}:
            raise
        for entry in code_dir.iterdir():
            _remove(entry)
        for entry in staging.iterdir():
            shutil.move(entry, code_dir / entry.name)
    else:
        staging.rename(code_dir)
        with contextlib.suppress(OSError):  # another user's: it stays under its other name
            _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
    else:
        path.unlink()


def refuse_unprotected(endpoint: str) -> None:
    """A signed request shows the session's token to all on its way: only this machine may get one without TLS.

    Raises:
        ProgramError: The endpoint is another machine's, and is spoken to without TLS.
    """
    from ipaddress import ip_address  # noqa: PLC0415 - only for a job whose source is in S3
    from urllib.parse import urlsplit  # noqa: PLC0415 - likewise

    try:
        found = urlsplit(endpoint)
        host = found.hostname or ""
    except ValueError:  # boto3 says what is wrong with it
        return
    if found.scheme != "http" or host == "localhost":
        return
    with contextlib.suppress(ValueError):
        if ip_address(host).is_loopback:
            return
    raise ProgramError(
        f"the S3 endpoint http://{host} is refused: without TLS the job's credentials could be read on the way",
        hint="use https:// in S3_ENDPOINT_URL, AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, or pass the source as the"
        " channel 'code'; http:// is for 127.0.0.1 and localhost alone",
    )


def download(uri: str, target: Path, job: Job, log: Log) -> None:
    """Download one S3 object; boto3 is imported only here.

    Raises:
        ProgramError: boto3 is not installed, or the object cannot be had.
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket or not key:
        raise ProgramError(f"sagemaker_submit_directory: found {uri!r}, expected s3://BUCKET/KEY.tar.gz")
    refuse_unprotected(job.settings.s3_endpoint_url or "")
    try:
        import boto3  # noqa: PLC0415 - a quarter of a second and 20 MB that most jobs never need
        from boto3.exceptions import Boto3Error  # noqa: PLC0415
        from botocore.config import Config  # noqa: PLC0415
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415
    except ImportError as error:
        raise ProgramError(f"{uri} cannot be downloaded: {error}", hint="install boto3 in the image") from error
    log(f"downloading {uri}")
    try:
        client = boto3.client(
            "s3",
            endpoint_url=job.settings.s3_endpoint_url,
            region_name=job.region or None,
            config=Config(connect_timeout=_CONNECT_SECONDS),
        )
        # Not `download_file`: a stop would have to wait for its threads.
        with contextlib.closing(client.get_object(Bucket=bucket, Key=key)["Body"]) as body, target.open("wb") as file:
            while chunk := body.read(_BLOCK_BYTES):
                if file.tell() + len(chunk) > job.settings.source_bytes:
                    raise too_large(uri, job.settings.source_bytes)
                file.write(chunk)
    except (BotoCoreError, Boto3Error, ClientError, ValueError) as error:  # ValueError: the endpoint is no URL
        raise ProgramError(
            f"{uri} cannot be downloaded: {error}",
            hint="the role of the job needs s3:GetObject on it; with network isolation the code must be a channel",
        ) from error
