"""What a job of several hosts needs of its network: names that can be resolved, and hosts that prove who they are."""

import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence

from trainbox.clock import Clock, Sleep, describe_missed, wait_from
from trainbox.contract.credentials.peer_key import PEER_KEY_VARIABLE
from trainbox.contract.job import Job
from trainbox.errors import PeerError

Emit = Callable[[str], None]
SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_TRIES = 0.5
_LOOKUP_SECONDS = 5.0
_MOST_NAMES = 5


def resolves(host: str) -> bool:
    """Whether a name has an address, of either family; a look-up without an answer counts as no.

    It runs in a thread, for the C library neither bounds it (5 s for each lost packet and server) nor lets a signal
    handler run before it ends.
    """
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()
    threading.Thread(target=lambda: answers.put(_look_up(host)), daemon=True).start()
    try:
        return answers.get(timeout=_LOOKUP_SECONDS)
    except queue.Empty:
        return False


def _look_up(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except (socket.gaierror, UnicodeError):  # the latter: a label too long for DNS
        return False
    return True


def wait_for_peers(
    hosts: Sequence[str],
    *,
    timeout: float,
    emit: Emit,
    check_stop: Callable[[], None] = lambda: None,
    is_known: Callable[[str], bool] = resolves,
    clock: Clock = time.monotonic,
    sleep: Sleep = time.sleep,
) -> None:
    """Return once every host can be resolved.

    The names of a cluster appear a little after its containers start (AWS, "How Amazon SageMaker AI provides training
    information"); sagemaker-training waits up to 15 minutes for each host without a word.

    Args:
        hosts: The names to wait for.
        timeout: Seconds for all of them together; a look-up under way may add its own few.
        emit: Gets one line every ten seconds.
        check_stop: Raises if the job is to end.
        is_known: The look-up; a parameter so that a test can hold a name back.
        clock: The time in seconds; a parameter, like `sleep`, so that a test need not wait.
        sleep: Waits for a number of seconds.

    Raises:
        PeerError: Some are still unknown after `timeout`; the message names them.
    """
    pause = _LOOKUP_SECONDS + _SECONDS_BETWEEN_TRIES
    waiting = wait_from(clock(), timeout).look(clock(), pause=pause)
    spoken = waiting.started
    missing = list(hosts)
    while missing:
        for host in tuple(missing):
            if is_known(host):
                missing.remove(host)
                continue
            # After each look-up, not each round: a dead name server holds up every one of them for seconds.
            waiting = waiting.look(clock(), pause=pause)
            if waiting.missed:
                emit(describe_missed(waiting.missed))
            if waiting.is_over:
                raise PeerError(
                    f"after {timeout:g} s these hosts still have no address: {_names(missing)}",
                    hint="did they fail to start? See their logs; the job's security group must allow traffic in it",
                )
            if waiting.now - spoken >= SECONDS_BETWEEN_LINES:
                spoken = waiting.now
                emit(f"waiting for the address of {_names(missing)} ({waiting.waited:.0f} of {timeout:g} s)")
        check_stop()
        if missing:
            sleep(_SECONDS_BETWEEN_TRIES)


def describe_protection(job: Job) -> str:
    """Pure: what keeps strangers out of a job without a key, for the log; empty where there is a key."""
    if job.peer_key is not None:
        return ""
    return (
        f"{PEER_KEY_VARIABLE} is not set: the hosts of this job do not prove who they are, and only its security group"
        f" (VpcConfig) keeps others from joining at {job.hosts[0]}; to change that, set it in the request's Environment"
        " to what `openssl rand -hex 32` prints"
    )


def _names(hosts: Sequence[str]) -> str:
    more = len(hosts) - _MOST_NAMES
    return ", ".join(hosts[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
