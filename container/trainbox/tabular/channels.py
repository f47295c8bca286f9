"""Connect the processes of a job on tables, and find the channels to read."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from trainbox import toolkit
from trainbox.comm import Communicator, find_members, join
from trainbox.contract.job import Channel, Job
from trainbox.data import log_unread
from trainbox.stopping import leaving_at_once


@contextmanager
def connect() -> Iterator[Communicator]:
    """Connect to the other processes of this job, if it has several.

    Raises:
        PeerError: Some did not connect; the message names them.
        Stopped: This process or another got SIGTERM.
    """
    job = toolkit.current_job()
    members = find_members(job, toolkit.current_ranks())
    timeout, limit = job.settings.peer_timeout_seconds, job.settings.hang_seconds
    with ExitStack() as stack:
        with leaving_at_once("meeting the other hosts"):
            communicator = stack.enter_context(join(members, timeout=timeout, limit=limit, port=job.port))
        yield communicator


def find_channels(job: Job) -> dict[str, Channel]:
    """Return the channel `train`, and as `validation` the channel of that name, or else `test`; logs unread ones.

    Raises:
        DataError: There is no channel `train`; the message lists the channels of the job.
    """
    toolkit.channel("train")
    channels = {"train": job.channels["train"]}
    held_out = [name for name in ("validation", "test") if name in job.channels][:1]
    log_unread(job.channels, ["train", *held_out])
    for name in held_out:
        channels["validation"] = job.channels[name]
    return channels
