"""Gives one host of a local job its own mounts, then becomes the command it was asked to run.

It runs as a file of its own and imports nothing of trainbox: so it costs milliseconds, and what is installed beside
trainbox cannot get in its way. A command is executed; a module of Python is run in the same interpreter, since a second
one would take as long as all the rest. The process backend imports `spec`, `started_in` and `probe`.
"""

import ctypes
import json
import os
import select
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

Kind = Literal["root", "user", "none"]

#: errors.RunError.exit_code; the tree of errors cannot be imported here.
EXIT_CODE = 10
OPT_ML = Path("/opt/ml")

# <sched.h>, <sys/mount.h>, <sys/prctl.h>
_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_MS_RDONLY = 0x1
_MS_REMOUNT = 0x20
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_PRIVATE = 0x40000
_PR_SET_PDEATHSIG = 1
#: statvfs flag -> mount flag: a remount in a user namespace must keep what the mount had (mount(2), EPERM).
_KEPT_FLAGS = ((os.ST_NOSUID, 0x2), (os.ST_NODEV, 0x4), (os.ST_NOEXEC, 0x8), (os.ST_NOATIME, 0x400))


def spec(kind: Kind, mounts: Iterable[tuple[Path, Path, bool]], processors: Sequence[int] = ()) -> str:
    """The first argument of this program: which namespace, (source, target, read only) in order, which processors."""
    listed = [[str(source), str(target), read_only] for source, target, read_only in mounts]
    own = {"processors": list(processors)} if processors else {}
    return json.dumps({"kind": kind, "mounts": listed, **own})


def started_in(wanted: str, command: Sequence[str]) -> tuple[str, ...]:
    """Pure: what starts a command in a namespace.

    Args:
        wanted: What `spec` gave.
        command: With arguments; `(PYTHON, "-P", "-m", MODULE, …)` needs no second interpreter.
    """
    python, *options = command
    if options[:2] == ["-P", "-m"]:
        return (python, "-P", "-S", __file__, wanted, *options[1:])
    return (sys.executable, "-I", "-S", __file__, wanted, *command)


def probe(kind: Kind) -> str:
    """Why a process of this user may not have private mounts of a kind; empty where it may, found by trying."""
    if sys.platform != "linux":
        return f"{sys.platform} has no mount namespaces"
    import shutil  # noqa: PLC0415 - what starts a host needs neither: they are half of its time
    import subprocess  # noqa: PLC0415

    # The directory is mounted on itself, in a namespace that ends with the process: nothing changes for anybody.
    here = Path(__file__).parent
    nothing = shutil.which("true") or "/bin/true"
    command = started_in(spec(kind, [(here, here, True)]), [nothing])
    tried = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=30)
    return "" if tried.returncode == 0 else tried.stderr.decode(errors="replace").strip().removeprefix("trainbox: ")


class _Refused(Exception):  # noqa: N818 - it says what happened
    """The command shall not be run; the text says why."""


def _call(what: str, result: int) -> None:
    if result != 0:
        raise _Refused(f"{what}: {os.strerror(ctypes.get_errno())}")


def _enter(kind: Kind, mounts: Iterable[tuple[str, str, bool]]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    _call("unshare", libc.unshare(_CLONE_NEWNS | (_CLONE_NEWUSER if kind == "user" else 0)))
    if kind == "user":
        # Everybody stays who they are, so that files have the owner they had. user_namespaces(7): setgroups first.
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    _call("mount --make-rprivate /", libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None))
    for source, target, read_only in mounts:
        if target == str(OPT_ML) and kind == "root":
            OPT_ML.mkdir(parents=True, exist_ok=True)
        _call(
            f"mount --rbind {source} {target}",
            libc.mount(os.fsencode(source), os.fsencode(target), None, _MS_BIND | _MS_REC, None),
        )
        if read_only:
            has = os.statvfs(target).f_flag
            kept = sum(flag for found, flag in _KEPT_FLAGS if has & found)
            flags = _MS_REMOUNT | _MS_BIND | _MS_RDONLY | kept
            _call(f"mount -o remount,ro {target}", libc.mount(None, os.fsencode(target), None, flags, None))


def _die_with_parent() -> None:
    """Ask for SIGTERM when `trainbox run` dies, however it dies (prctl(2)); it outlives execve.

    Where it died before, nothing comes: stdin tells, a pipe that ends with `trainbox run`.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    stdin = sys.stdin.fileno()
    poll = select.poll()
    poll.register(stdin, 0)
    if any(event & select.POLLHUP for _, event in poll.poll(0)):
        raise _Refused("trainbox run has ended")
    os.dup2(os.open(os.devnull, os.O_RDONLY), stdin)


def _run_module(name: str, arguments: Sequence[str]) -> None:
    """Go on as `python -P -m NAME …` does, which finds what is installed (`site`) in the namespace, not before it."""
    import importlib  # noqa: PLC0415 - what executes a command needs none of them
    import runpy  # noqa: PLC0415
    import site  # noqa: PLC0415

    importlib.invalidate_caches()
    site.main()
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def main(argv: list[str]) -> None:
    """Enter the namespace of `argv[0]` and become the command `argv[1:]`, which may be a module (`-m NAME …`)."""
    wanted = json.loads(argv[0])
    try:
        if wanted["kind"] != "none":
            _enter(wanted["kind"], wanted["mounts"])
        if wanted.get("processors") and sys.platform == "linux":
            os.sched_setaffinity(0, wanted["processors"])
        # After unshare: entering a user namespace clears it.
        _die_with_parent()
        os.chdir("/")
        if argv[1] != "-m":
            os.execv(argv[1], argv[1:])  # noqa: S606 - an argument list, no shell: just what is wanted
    except (_Refused, OSError) as error:
        sys.stderr.write(f"trainbox: {error}\n")
        sys.exit(EXIT_CODE)
    _run_module(argv[2], argv[3:])


if __name__ == "__main__":
    main(sys.argv[1:])
