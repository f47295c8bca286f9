"""Writes what a plan says each host finds: its tree, and the files several hosts share."""

import os
import shutil
from pathlib import Path

from trainbox.errors import RunError
from trainbox.local.inputs.place import make_views
from trainbox.local.plan import HYPERPARAMETERS, HostPlan, RunPlan
from trainbox.local.results.folder import remove
from trainbox.local.source import copy_source

_HOSTS_FILE = Path("/etc/hosts")


def prepare(plan: RunPlan, *, has_inputs: bool = True) -> None:
    """Build the trees of all hosts; what an attempt that was killed left behind goes first.

    Args:
        plan: Of the job.
        has_inputs: Whether all inputs are on this machine; a run that was interrupted meanwhile starts no host.

    Raises:
        RunError: Something cannot be written, for want of space or permission.
    """
    try:
        remove(plan.work)
        plan.work.mkdir(parents=True)
        plan.checkpoints.mkdir(exist_ok=True)
        (plan.request.out / "logs").mkdir(exist_ok=True)
        plan.hosts_file.write_text(_hosts_content(plan))
        plan.hosts_file.chmod(0o644)  # as /etc/hosts is, for whatever user a script becomes
        for host in plan.hosts:
            if has_inputs:
                make_views(host)
            _build(host)
            if plan.request.source is not None:
                copy_source(plan.request.source, host.tree / "code")
    except OSError as error:
        raise RunError(f"{error.filename or plan.work} cannot be written: {error.strerror}") from error


def _hosts_content(plan: RunPlan) -> str:
    system = _HOSTS_FILE.read_text(errors="replace") if _HOSTS_FILE.is_file() else "127.0.0.1 localhost\n"
    return f"127.0.0.1 {' '.join(host.name for host in plan.hosts)}\n{system}"


def _build(host: HostPlan) -> None:
    for name in host.directories:
        (host.tree / name).mkdir(parents=True, exist_ok=True)
    for name, content in host.files.items():
        place = host.tree / name
        place.touch(mode=0o600 if name == HYPERPARAMETERS else 0o666)  # before anything is in it
        place.write_text(content, encoding="utf-8")
    for name, target in host.links.items():
        place = host.tree / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)
    for name, directory in host.copies.items():
        shutil.copytree(directory, host.tree / name)
    for name, share in host.shares.items():
        # An empty shard is a directory, too.
        if share.stream is None:
            (host.tree / "input" / "data" / name).mkdir(exist_ok=True)
    for stem in host.streams:
        os.mkfifo(host.tree / f"{stem}_0")
    for mount in host.mounts:
        if mount.target.is_relative_to(host.tree) and mount.target != host.tree:
            _make_mountpoint(mount.source, mount.target)


def _make_mountpoint(source: Path, target: Path) -> None:
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
