"""The verb `trainbox metrics SCRIPT`: the MetricDefinitions of a script, or what they find in a log."""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO

from trainbox import metrics
from trainbox.cli.screen.pens import print_table
from trainbox.contract.job import read_environment
from trainbox.contract.text import six_digits
from trainbox.errors import RunError
from trainbox.local.scripts.script_module import find_metrics, find_script, load_script

_SHOWN_LENGTH = 160
#: What its help shows.
EXAMPLES = (
    "trainbox metrics train.py > metric-definitions.json",
    "trainbox metrics xgboost --hp num_round=100 --hp eval_metric=auc",
    "trainbox metrics train.py --check result/logs/algo-1.log",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the verb."""
    parser.add_argument("script", metavar="SCRIPT", help="a Python file, or the name of a bundled script")
    parser.add_argument(
        "--hp",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        type=_assignment,
        help="a hyperparameter, where the metrics depend on it (repeatable)",
    )
    parser.add_argument(
        "--check", metavar="LOGFILE", help="say what each regex finds in this log ('-' is stdin) instead of printing it"
    )


def run(args: argparse.Namespace) -> int:
    """Print the definitions; with --check what they find, and 1 if one of them finds nothing."""
    script = find_script(args.script)
    declared = find_metrics(load_script(script), dict(args.hp))
    definitions = metrics.definitions(declared)
    if not declared:
        raise RunError(
            f"'{script}' declares no metrics", hint="write AUC = Metric('validation:auc', 'maximize') at its top level"
        )
    if args.check is None:
        print(json.dumps(definitions, indent=2))
        return 0
    with _opened(args.check) as lines:
        result = metrics.check(declared, lines)
    _report(result, read_environment())
    return 0 if all(finding.count for finding in result.findings) else 1


def _assignment(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not key or not sign:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form KEY=VALUE")
    return key, value


@contextlib.contextmanager
def _opened(name: str) -> Iterator[TextIO]:
    """The lines of a log: only a newline ends one, as for SageMaker, and no byte of it is an error."""
    if name == "-":
        yield sys.stdin
        return
    try:
        with Path(name).open(encoding="utf-8", errors="replace", newline="\n") as lines:
            yield lines
    except OSError as error:
        raise RunError(f"the log '{name}' cannot be read: {error.strerror}") from error


def _report(result: metrics.Check, env: Mapping[str, str]) -> None:
    rows = [
        (
            finding.metric.name,
            finding.metric.goal,
            str(finding.count) if finding.count else "none",
            *("" if number is None else six_digits(number) for number in (finding.first, finding.last, finding.best)),
        )
        for finding in result.findings
    ]
    print_table(sys.stdout, env, ("METRIC", "GOAL", "FOUND", "FIRST", "LAST", "BEST"), rows)
    if result.undeclared:
        print(f"logged but not declared: {', '.join(result.undeclared)} (with the job's own --hp there may be more)")
    if result.unread_count:
        print(f"lines that look like metric lines but are read by no regex: {result.unread_count}")
    for line in result.unread:
        print(f"  line {line.number}: {_shortened(line.text)}")


def _shortened(text: str) -> str:
    shown = repr(text)[1:-1]  # a tab or a carriage return is what one looks for here
    return shown if len(shown) <= _SHOWN_LENGTH else f"{shown[:_SHOWN_LENGTH]}…"
