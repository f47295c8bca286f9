"""Start one child, with the call that `subprocess` itself is made of: the module would add a tenth to every start."""

import errno
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from trainbox.errors import ProgramError
from trainbox.supervisor.plan import Child

#: What Python ignores and a program does not expect to be ignored.
_RESTORED = (signal.SIGPIPE, signal.SIGXFSZ)
_HINTS = {
    errno.E2BIG: "hyperparameters and variables are longer together than Linux passes on",
    errno.EMFILE: "fewer processes_per_host, or more open files (ulimit -n, docker run --ulimit nofile=65536)",
}


class Started(msgspec.Struct, frozen=True):
    """A running process: its id, and the descriptors to read its stdout and stderr from."""

    pid: int
    streams: tuple[int, int]


def spawn(child: Child) -> Started:
    """Start a child in a session of its own: a Ctrl-C for its group reaches the script and what it starts.

    Raises:
        ProgramError: It cannot be started.
    """
    ends: list[int] = []
    try:
        for _ in range(2):
            ends += os.pipe()
        pid = _spawn(child, ends[1::2])
    except OSError as error:
        for end in ends[::2]:
            os.close(end)
        raise ProgramError(
            f"{child.argv[0]!r} cannot be started in {child.directory}: {error.strerror}",
            hint=_HINTS.get(error.errno or 0, ""),
        ) from error
    finally:
        for end in ends[1::2]:
            os.close(end)
    return Started(pid, (ends[0], ends[2]))


def _spawn(child: Child, outputs: Sequence[int]) -> int:
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        for descriptor in child.descriptors:
            os.set_inheritable(descriptor, True)
        os.chdir(child.directory)  # posix_spawn has no word for it, and there is no other thread here to notice
        return os.posix_spawn(
            _find(child.argv[0], child.environment),
            child.argv,
            dict(child.environment),
            file_actions=[
                *((os.POSIX_SPAWN_DUP2, end, number) for number, end in enumerate(outputs, start=1)),
                *(
                    (os.POSIX_SPAWN_CLOSE, descriptor)
                    for descriptor in _inherited()
                    if descriptor not in child.descriptors
                ),
            ],
            setsid=True,
            setsigdef=_RESTORED,
        )
    finally:
        for descriptor in child.descriptors:
            os.set_inheritable(descriptor, False)
        os.fchdir(here)
        os.close(here)


def _inherited() -> Iterator[int]:
    """Return inherited descriptors, which are closed before the script starts."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names, not paths
        descriptor = int(name)
        try:
            if descriptor > 2 and os.get_inheritable(descriptor):  # noqa: PLR2004 - the standard streams
                yield descriptor
        except OSError:
            continue  # that of the listing itself


def _find(name: str, environment: Mapping[str, str]) -> str:
    """Find a program on the PATH of the child."""
    if os.sep in name:
        return name
    places = [str(Path(directory, name)) for directory in os.get_exec_path(dict(environment))]
    there = [place for place in places if Path(place).is_file()]
    if not there:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    return next((place for place in there if os.access(place, os.X_OK)), there[0])
