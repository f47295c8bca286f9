"""Brings the inputs of a plan to its hosts: what is in S3 into the cache, and shards into directories of their own."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

from trainbox.local.backends.hosts import HostListener
from trainbox.local.inputs.s3 import fetch, missing
from trainbox.local.plan import HostPlan, RunPlan

#: The disk is another one, or the file is somebody else's, or has as many names as it can have.
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS})


def fetch_inputs(plan: RunPlan, listener: HostListener, is_stopped: Callable[[], bool]) -> None:
    """Download what is in S3 and not in the cache; returns early once it is stopped.

    Raises:
        RunError: An object cannot be had, or not be kept.
    """
    for name, channel in plan.request.channels.items():
        if channel.bucket is None:
            continue
        wanted = missing(channel.objects)
        count, size = len(channel.objects), sum(each.bytes for each in wanted)
        listener.note(
            f"channel {name}: {count} object{'' if count == 1 else 's'} of {channel.uri},"
            f" {count - len(wanted)} in the cache, {size / 1e6:.1f} MB to download"
        )
        fetch(channel.bucket, wanted, is_stopped)
        if is_stopped():
            return


def make_views(host: HostPlan) -> None:
    """Make the directories of channels of which a host gets some files.

    Regular files, as SageMaker leaves them: other names of the same files where they can have some, else copies.

    Raises:
        OSError: Something cannot be written.
    """
    for directory, entries in host.views.items():
        directory.mkdir(parents=True)
        for entry in entries:
            _place(entry.path.resolve(), directory / entry.name)


def _place(original: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        place.hardlink_to(original)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        shutil.copyfile(original, place)
