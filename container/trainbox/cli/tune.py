"""`trainbox tune`: a search for the best hyperparameters, whose trials are jobs of `trainbox run`.

A shell over `run_tuning`: the flags become a plan, the terminal is its listener, Ctrl-C and SIGTERM ask for its end.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from trainbox.cli.run import previews_of, print_plan, private_files
from trainbox.cli.screen.dry_run import describe
from trainbox.cli.screen.tuning_terminal import TuningTerminal
from trainbox.cli.screen.tuning_texts import range_line, tuning_line, tuning_summary
from trainbox.cli.tune_command import read_tuning_command
from trainbox.cli.tune_flags import add_tune_arguments
from trainbox.contract.credentials.secrets import hidden_values, without_secrets
from trainbox.contract.job import read_environment
from trainbox.contract.text import visible
from trainbox.errors import RunError
from trainbox.local.interrupts import Interrupts
from trainbox.local.results.result import MODEL
from trainbox.local.run_job import INTERRUPTED, plan_job
from trainbox.tuning.printed.print_search import print_search
from trainbox.tuning.records import TuningRecord
from trainbox.tuning.tuning_plan import TuningPlan, first_trial, trial_job

#: What its help shows.
EXAMPLES = (
    "trainbox tune xgboost --channel train=a --channel validation=b --hp num_round=100 --range eta=0.01:0.3:log",
    "trainbox tune train.py --channel train=data --range lr=1e-4:1e-1:log --choice optimizer=adam,sgd --early-stop",
    "trainbox tune train.py --channel train=data --range n-estimators=50:300 --metric 'Test AUC=Test AUC: ([0-9.]+)'",
    "trainbox tune train.py --channel train=data --range lr=1e-4:1e-1:log --out search --resume",
    "trainbox tune train.py --channel train=data --range lr=1e-4:1e-1:log --print boto3 > tuning_job.py",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `trainbox tune`."""
    add_tune_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run one search; the exit code is 0 if there is a best trial, 10 if there is none, or 130 after Ctrl-C.

    Raises:
        TrainboxError: What was asked for cannot be done.
    """
    try:
        with private_files() as umask:
            return _run(args, read_environment(), umask)
    except KeyboardInterrupt:  # before the first trial, or after the last one
        return INTERRUPTED


def _run(args: argparse.Namespace, env: Mapping[str, str], umask: int) -> int:
    plan = read_tuning_command(args, env=env, cwd=Path.cwd(), umask=umask)
    if args.dry_run:
        print_plan(_describe(plan))
        return 0
    if args.print is not None:
        code = print_search(plan, args.print)
        print(*(visible(f"trainbox tune: {note}\n") for note in plan.notes), sep="", end="", file=sys.stderr)
        print(code, end="")
        return 0
    from trainbox.tuning.run_tuning import run_tuning  # noqa: PLC0415 - loads Optuna, which a plan does not need

    interrupts, terminal = Interrupts(), TuningTerminal(env)
    try:
        record = run_tuning(plan, terminal, interrupts)
    finally:
        terminal.close()
    best = record.best_trial
    has_model = best is not None and any((plan.out / best.out / MODEL).glob("*"))
    text = tuning_summary(record, plan.out, terminal.pen, has_model=has_model, report=_write_report(record, plan.out))
    terminal.screen.write(without_secrets(text, hidden_values(env, plan.spec.hyper_parameters, also=plan.hide)))
    return _exit_code(record, interrupts)


def _describe(plan: TuningPlan) -> str:
    """The search, and the job of its next trial."""
    from trainbox.tuning.search.search import TrialSearch  # noqa: PLC0415 - loads Optuna

    number = len(plan.record.trials) + 1
    values = TrialSearch(plan.settings).ask(number) or {}
    spec, options = trial_job(plan, first_trial(plan, number, values, ""), 0, resume=False)
    job = plan_job(spec, msgspec.structs.replace(options, overwrite=plan.overwrite))  # nothing has been removed yet
    lines = [tuning_line(plan.record), *plan.notes, *map(range_line, plan.settings.ranges), ""]
    return "\n".join([*lines, describe(job, previews_of(job))])


def _write_report(record: TuningRecord, out: Path) -> str:
    """Write the report; return where it is, or why it is not there: the trials are no worse for it."""
    try:
        from trainbox.tuning.report.write_report import write_report  # noqa: PLC0415 - loads Plotly

        return str(write_report(record, out))
    except RunError as error:
        return f"not written: {error.message}"


def _exit_code(record: TuningRecord, interrupts: Interrupts) -> int:
    if interrupts.first is not None:
        return 128 + interrupts.first
    return 0 if record.best is not None and record.status == "Completed" else RunError.exit_code
