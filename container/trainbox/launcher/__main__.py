"""`python -m trainbox.launcher PROCESSES SCRATCH SCRIPT`: run the ranks of this host.

The supervisor starts it. The order of imports matters: torch first, then the fork of the server, while this process
still has one thread, then the rest, while the server goes on importing what ranks need.
"""

import contextlib
import gc
import importlib
import os
import signal
import sys
import tempfile
from pathlib import Path

from trainbox.contract.cluster.world import in_world
from trainbox.contract.job import read_environment, read_job
from trainbox.contract.layout import Layout
from trainbox.launcher.ranks.forkserver import STOP_SIGNALS, StartRank, die_with, flush, fork_server

#: What ranks will need: DistributedDataParallel's constructor imports dynamo, which takes a second.
_FOR_RANKS = ("torch._dynamo", "torch.distributed.checkpoint", "trainbox.launcher.ranks.program")


def main() -> int:
    """Run as the agent of this host, and in each forked rank as that rank.

    Returns:
        The exit code: 0, that of the rank that failed first, or that of a lost host.
    """
    die_with(os.getppid())
    processes, scratch = int(sys.argv[1]), Path(sys.argv[2])
    env = read_environment()
    job = in_world(read_job(Layout.from_environment(env).root, env))
    command = [*sys.argv[3:], *job.argv]
    if len(job.hosts) > 1:  # until `launch` can tell the other hosts: importing torch takes seconds
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    # Imports make no garbage, and collections during them take a sixth of their CPU time: `bench-torch`, start.
    gc.disable()
    import torch.distributed  # noqa: PLC0415, F401 - the order matters

    flush()
    made = fork_server(_import_for_ranks if job.settings.preload else _import_nothing)
    if isinstance(made, StartRank):
        if not job.settings.preload:
            fresh = [sys.executable, "-P", "-m", "trainbox.launcher.ranks.program", *command]
            os.execve(fresh[0], fresh, {**env, **made.variables})  # noqa: S606 - it replaces this process
        from trainbox.launcher.ranks.program import run  # noqa: PLC0415

        return run(made.variables, command)
    from trainbox.launcher.launch import launch  # noqa: PLC0415

    gc.enable()
    try:
        return launch(job, processes, scratch, made, env)
    finally:  # all ranks have ended, and the server may still be importing
        made.kill()
        made.wait()


def _import_for_ranks() -> None:
    with contextlib.suppress(OSError):
        tempfile.gettempdir()  # dynamo cannot be imported without one; `launch` reports that
        for name in _FOR_RANKS:
            importlib.import_module(name)


def _import_nothing() -> None:
    """Import nothing: each rank becomes a new interpreter."""


if __name__ == "__main__":
    sys.exit(main())
