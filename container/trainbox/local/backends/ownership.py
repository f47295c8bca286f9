"""What containers wrote becomes the caller's: root in a container wrote it, where it ran as on SageMaker."""

import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainbox.errors import RunError
from trainbox.files import walk_below
from trainbox.local.backends.engine import Image, run_once
from trainbox.local.backends.hosts import HostListener

if TYPE_CHECKING:
    from docker import APIClient


def give_to_caller(client: "APIClient", places: Sequence[Path], image: Image, listener: HostListener) -> None:
    """Make whoever called the owner of all that lies below some directories; where that fails, say how to do it."""
    foreign = list(_foreign(places))
    if not foreign:
        return
    if os.geteuid() == 0:
        for path in foreign:
            os.chown(path, 0, os.getegid(), follow_symlinks=False)
        return
    try:
        code = _chown(client, places, image)
        problem = f"chown in {image.name} left with exit code {code}" if code else ""
    except RunError as error:
        problem = error.message
    if problem:
        by_hand = shlex.join(["sudo", "chown", "-hR", f"{os.geteuid()}:{os.getegid()}", *map(str, places)])
        listener.note(f"error: files of another user are left ({problem}): {by_hand}")


def _foreign(places: Iterable[Path]) -> Iterator[Path]:
    for place in places:
        if place.is_dir():
            yield from (path for path, found in _walk(place) if found.st_uid != os.geteuid())


def _walk(place: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """What can be seen: a directory of root's that is closed to us is root's itself, and comes with all it holds."""
    entries = walk_below(place)
    try:
        yield from entries
    except PermissionError:
        return


def _chown(client: "APIClient", places: Sequence[Path], image: Image) -> int:
    """Only root may give files away: root in a short container of the same image does it."""
    from docker.types import Mount  # noqa: PLC0415

    # Of an engine that is a user's, root in a container is that user.
    owner = "0:0" if image.rootless else f"{os.geteuid()}:{os.getegid()}"
    inside = {f"/given/{number}": str(place) for number, place in enumerate(places) if place.is_dir()}
    mounts = [Mount(target, source, "bind") for target, source in inside.items()]
    command = ["chown", "-hR", owner, *inside]
    return run_once(client, image.name, command, mounts=mounts, capabilities=["CHOWN", "DAC_OVERRIDE"])
