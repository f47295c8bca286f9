"""The flags of `trainbox tune`: those of `trainbox run`, and those of a search."""

import argparse

from trainbox.cli.run_flags import add_run_arguments

#: By the word of the flag, as the API calls it.
STRATEGIES = {"bayesian": "Bayesian", "random": "Random", "grid": "Grid", "hyperband": "Hyperband"}


def add_tune_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    search = parser.add_argument_group("the search")
    _add_space(search)
    add = search.add_argument
    add("--trials", type=int, metavar="N", help="how many (default 10; of a grid, all of its points)")
    add("--parallel", type=int, default=1, metavar="N", help="how many at a time, which share the processors")
    add("--strategy", choices=tuple(STRATEGIES), default="bayesian", help="how points are chosen (default bayesian)")
    add("--early-stop", action="store_true", help="stop trials that fall behind the median of the others")
    add("--seed", type=int, default=0, metavar="N", help="of the search (default 0)")
    add("--resource", metavar="MIN:MAX", help="with --strategy hyperband: the fewest and the most epochs of a trial")
    add(
        "--print",
        choices=("v2", "v3", "boto3"),
        help="run nothing: print the code that starts the same search on SageMaker, for SDK v2, SDK v3 or boto3",
    )
    add("--warm-start", action="append", default=[], metavar="DIR", help="learn from an earlier search (repeatable)")
    add_run_arguments(parser)
    _describe_anew(parser)


def _add_space(search: argparse._ArgumentGroup) -> None:
    add = search.add_argument
    add(
        "--range",
        action="append",
        default=[],
        metavar="NAME=LOW:HIGH[:SCALE]",
        help="a number to tune; SCALE is linear, log or reverse-log; NAME alone has its declared bounds",
    )
    add(
        "--choice",
        action="append",
        default=[],
        metavar="NAME=VALUE,…",
        help="a hyperparameter to tune that is one of some values; or a JSON list of them",
    )
    add("--objective", metavar="NAME", help="the metric that is tuned (default: what the script declares)")
    add("--goal", choices=("maximize", "minimize"), help="whether more of it is better (default: as declared)")
    add(
        "--metric",
        action="append",
        default=[],
        metavar="NAME=REGEX",
        help="a metric of a script that declares none: the first group of the regex is its value (repeatable)",
    )


def _describe_anew(parser: argparse.ArgumentParser) -> None:
    """Some flags of a job are those of all trials here."""
    texts = {
        "job_name": "name of the search (default: that of DIR, or the script's name and the time)",
        "out": "where its record and its trials go (default ./trainbox-out/NAME)",
        "resume": "go on with the search in DIR; trials that were running go on from their checkpoints",
        "overwrite": "a new search in DIR: the earlier one is removed first",
        "max_run": "stop a trial after so many seconds, as MaxRuntimeInSeconds does",
        "stop_after": "stop a trial after so many seconds, as StopTrainingJob does",
    }
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to list them
        action.help = texts.get(action.dest, action.help)
