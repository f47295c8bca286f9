"""Disks that are full or read-only, as mounts of a namespace that ends with this program."""

import fcntl
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

#: What a job of the catalogue leaves is a tenth of it.
_MIB = 32
_FILLER = "filler"
#: <net/if.h>, <linux/sockios.h>
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
INSIDE = "FUZZ_FAULTS_INSIDE"


def namespaces() -> list[str]:
    """The command that gives what follows it private mounts, processes and loopback, which end with it."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    own = ["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc", "--net"]
    return ["unshare", *user, *own]


def refused() -> str:
    """Why this machine gives no such namespaces; empty where it does, found by trying."""
    try:
        tried = subprocess.run([*namespaces(), "true"], check=False, capture_output=True, text=True, timeout=30)
    except OSError as error:
        return str(error)
    return "" if tried.returncode == 0 else tried.stderr.strip()


def enter(argv: Sequence[str]) -> None:
    """Become the same program in such namespaces."""
    os.environ[INSIDE] = "1"
    command = [*namespaces(), sys.executable, "-m", "tools.fuzz_faults", *argv]
    os.execvp(command[0], command)  # noqa: S606 - an argument list, no shell


def settle() -> None:
    """Make the namespaces usable: loopback is up, and /dev/shm is this program's own."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh", b"lo", 0)
        name, flags = struct.unpack("16sh", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request))
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh", name, flags | _IFF_UP))
    _mount("-t", "tmpfs", "tmpfs", "/dev/shm")  # noqa: S108 - it is mounted here


def make_disk(path: Path) -> None:
    """A small disk at a directory."""
    path.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={_MIB}m", "tmpfs", str(path))


def remove_disk(path: Path) -> None:
    """Nothing of it stays."""
    subprocess.run(["umount", "--lazy", path], check=True)
    path.rmdir()


def fill(path: Path, left_kib: int) -> None:
    """Leave so much of a disk."""
    with (path / _FILLER).open("wb") as filler:
        size = 0
        while (free := os.statvfs(path).f_bavail * os.statvfs(path).f_bsize - left_kib * 1024) > 0:
            try:
                os.posix_fallocate(filler.fileno(), size, free)
            except OSError:  # somebody else has just had some of it
                continue
            size += free


def free(path: Path) -> None:
    """Give a disk its space back, and let it be written."""
    _mount("-o", "remount,rw", str(path))
    (path / _FILLER).unlink(missing_ok=True)


def forbid_writing(path: Path) -> bool:
    """Make a whole disk read-only; whether it could be: not while a file of it is open to be written."""
    return subprocess.run(["mount", "-o", "remount,ro", path], check=False, capture_output=True).returncode == 0


def forbid_writing_on_host(pid: int) -> bool:
    """Make the checkpoints of a host read-only, as its processes see them; whether that could be, as above."""
    command = ["nsenter", f"--target={pid}", "--mount", "mount", "-o", "remount,bind,ro", "/opt/ml/checkpoints"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)
