"""The verb `trainbox health`; before the script the supervisor runs `python -m trainbox.health --preflight`."""

import argparse
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import NoReturn

import msgspec

from trainbox.contract.job import read_environment, read_job
from trainbox.contract.layout import Layout
from trainbox.health import report
from trainbox.health.checks import explanation
from trainbox.health.host import Subject
from trainbox.health.report import HealthReport
from trainbox.health.run import examine
from trainbox.health.sidecar import run_sidecar
from trainbox.log_lines import emit
from trainbox.system.machine import read_machine

#: What its help shows.
EXAMPLES = (
    "trainbox health",
    "trainbox health --full --json > health.jsonl",
    "trainbox health --explain",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the verb."""
    stage = parser.add_mutually_exclusive_group()
    stage.add_argument(
        "--fast", dest="stage", action="store_const", const="fast", default="fast", help="seconds (default)"
    )
    stage.add_argument("--full", dest="stage", action="store_const", const="full", help="also arithmetic without a GPU")
    parser.add_argument("--backend", choices=("gloo", "nccl"), help="of the collectives (default: the job's own)")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each check, also on a terminal")
    parser.add_argument("--strict", action="store_true", help="warnings count as failures")
    parser.add_argument("--alone", action="store_true", help="this host of the job, without waiting for the others")
    parser.add_argument("--deadline", type=float, metavar="SECONDS", help="of each check (default: its own)")
    parser.add_argument(
        "--processes", type=int, metavar="N", help="of the script on this host (default: the job's own)"
    )
    parser.add_argument("--preflight", action="store_true", help="run as the supervisor does before the script")
    parser.add_argument(
        "--explain", action="store_true", help="list the checks, their effects and SageMaker's own features"
    )
    parser.add_argument("--watch", action="store_true", help="report GPU faults until SIGTERM")
    parser.add_argument(
        "--into", type=Path, metavar="DIRECTORY", help="where --watch writes them for the processes of the job"
    )
    parser.add_argument("--failure", type=Path, metavar="FILE", help="where to write the reason if a check fails")


def run(args: argparse.Namespace) -> int:
    """Run the checks and print the findings.

    Returns:
        0, 64 (configuration) or 78 (hardware).

    Raises:
        ContractError: The files of the job cannot be read.
    """
    if args.explain:
        print(explanation(), end="")
        return 0
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    env = read_environment()
    subject = read_subject(args, env)
    if args.watch:
        return run_sidecar(subject.host, args.into)
    found = examine(subject, env, strict=args.strict, backend=args.backend)
    if args.preflight:
        _print_preflight(found, subject)
    else:
        (report.print_lines if args.json or not sys.stdout.isatty() else report.print_table)(found.findings)
        emit(found.line)
        _write_report(found, subject)
    if args.failure and found.diagnosis:
        args.failure.write_bytes(msgspec.json.encode(found.diagnosis))
    return found.exit_code


def read_subject(args: argparse.Namespace, env: Mapping[str, str]) -> Subject:
    """Return what has to be checked on this host.

    Raises:
        ContractError: The files of the job cannot be read.
    """
    layout = Layout.from_environment(env)
    job = read_job(layout.root, env) if args.preflight or layout.config_dir.is_dir() else None
    if job is not None and args.alone:
        job = msgspec.structs.replace(job, hosts=(job.current_host,))
    if job is not None and args.processes:
        settings = msgspec.structs.replace(job.settings, processes_per_host=args.processes)
        job = msgspec.structs.replace(job, settings=settings)
    if job is None:
        emit(f"no job in {layout.root}: checking only this machine")
    return Subject(
        host=job.current_host if job else socket.gethostname(),
        machine=read_machine(modules=("torch",)),
        stage=args.stage,
        job=job,
        deadline=args.deadline,
    )


def _print_preflight(found: HealthReport, subject: Subject) -> None:
    """Print the checks that do not pass; print all of them if the report cannot be written."""
    directory = _write_report(found, subject)
    shown = [finding for finding in found.findings if finding.status != "pass" or directory is None]
    report.print_lines(shown)
    emit(found.line)
    if passed := len(found.findings) - len(shown):
        emit(f"{passed} checks passed: {directory}")


def _write_report(found: HealthReport, subject: Subject) -> Path | None:
    """Write the report of a job and return its directory; None without a job or if it cannot be written."""
    if subject.job is None:
        return None
    directory = subject.job.layout.output_data_dir / report.DIRECTORY
    try:
        report.write_report(directory, subject.host, found)
    except OSError as error:
        emit(f"the health report cannot be written: {error.strerror}: {error.filename}")
        return None
    return directory


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
