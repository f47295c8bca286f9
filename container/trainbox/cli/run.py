"""`trainbox run`: a job on this machine, with the same files, the same supervisor and the same ends as in the cloud.

A shell over `run_job`: the flags become a job, the terminal is its listener, Ctrl-C and SIGTERM ask for its end.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from trainbox.cli.run_command import read_command
from trainbox.cli.run_flags import add_run_arguments
from trainbox.cli.screen.dry_run import describe
from trainbox.cli.screen.next_steps import find_pictures, next_lines
from trainbox.cli.screen.summary import summarise
from trainbox.cli.screen.terminal import Terminal
from trainbox.contract.credentials.secrets import without_secrets
from trainbox.contract.job import read_environment
from trainbox.local.interrupts import Interrupts
from trainbox.local.plan import RunPlan
from trainbox.local.preview import Preview, preview
from trainbox.local.results.outcome import JobOutcome
from trainbox.local.results.record import JobRecord
from trainbox.local.run_job import INTERRUPTED, plan_job, run_plan

_UMASK = 0o077
#: What its help shows.
EXAMPLES = (
    "trainbox run xgboost --channel train=data/train --channel validation=data/validation --hp num_round=100",
    "trainbox run train.py --channel train=data --hp epochs=3 --out result",
    "trainbox run train.py --channel train=data --out result --overwrite",
    "trainbox run train.py --channel train=data --hosts 2 --processes 2",
    "trainbox run train.py --channel train=data --docker",
    "trainbox run -m package.train -- config.yaml --compile",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `trainbox run`."""
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run one job; the exit code is 0, that of the host that failed first, or 130 after Ctrl-C.

    Raises:
        TrainboxError: What was asked for cannot be done.
    """
    with private_files() as umask:
        return _run(args, read_environment(), umask)


@contextlib.contextmanager
def private_files() -> Iterator[int]:
    """Keep what this program writes for its user alone; give the umask of the shell, which the script's files have."""
    umask = os.umask(_UMASK)
    try:
        yield umask
    finally:
        os.umask(umask)


def _run(args: argparse.Namespace, env: Mapping[str, str], umask: int) -> int:
    plan = plan_job(*read_command(args, env=env, cwd=Path.cwd(), umask=umask))
    if args.dry_run:
        print_plan(describe(plan, previews_of(plan)))
        return 0
    terminal = Terminal(plan)
    try:
        outcome, record = run_plan(plan, terminal, Interrupts())
    except KeyboardInterrupt:  # while the result was collected: nobody waits for it any more
        return INTERRUPTED
    try:
        _summarise(plan, record, outcome, terminal)
    except (MemoryError, ImportError) as error:  # what is loaded late may find no memory: the result stands
        terminal.note(f"the summary cannot be shown ({type(error).__name__}): the result is in {outcome.out}")
    return outcome.exit_code


def print_plan(text: str) -> None:
    """Print what a dry run shows, in UTF-8 whatever the terminal has."""
    sys.stdout.buffer.write(text.encode())
    sys.stdout.flush()


def previews_of(plan: RunPlan) -> dict[str, Preview]:
    """What the supervisor of each host would start."""
    request = plan.request
    return {
        host.name: preview(host, request.source, request.script, request.hide, in_image=request.in_image)
        for host in plan.hosts
    }


def _summarise(plan: RunPlan, record: JobRecord, outcome: JobOutcome, terminal: Terminal) -> None:
    request, place = plan.request, outcome.checkpoints
    count = sum(1 for _ in place.iterdir()) if place.is_dir() else 0
    pictures = find_pictures(outcome.out) if record.result == record.attempt else ()
    told = outcome.is_reason_in_log
    text = summarise(request, record, checkpoints=count, pen=terminal.pen, pictures=pictures, is_told=told)
    text += next_lines(request, record, pictures, checkpoints=count)
    terminal.screen.write(without_secrets(text, request.secrets))
