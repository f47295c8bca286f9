"""What of a request no job could have: what SageMaker refuses, what trainbox does not know, what is given twice."""

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path

from trainbox.contract.peer_key import PEER_KEY_VARIABLE
from trainbox.contract.settings import SETTINGS, require_known
from trainbox.errors import ContractError, RunError

# Limits of API CreateTrainingJob: what the service refuses is refused here, too.
MOST_HYPERPARAMETERS = 100
LONGEST_KEY = 256
LONGEST_VALUE = 2500
MOST_VARIABLES = 100
LONGEST_VARIABLE_NAME = 512
LONGEST_VARIABLE_VALUE = 512

_VARIABLE_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
#: Hyperparameters that `trainbox run` writes itself.
_OWN_HYPERPARAMETERS = ("sagemaker_program", "sagemaker_submit_directory", "trainbox_script", "trainbox_module")
#: Variables that `trainbox run` sets or clears itself.
OWN_VARIABLES = (
    *("TRAINBOX_ROOT", "TRAINBOX_SCRIPT", "TRAINBOX_DRILL", "TRAINING_JOB_NAME", "SAGEMAKER_PROGRAM"),
    PEER_KEY_VARIABLE,
)


def check_accepted(hyperparameters: Mapping[str, str], variables: Mapping[str, str], args: argparse.Namespace) -> None:
    """Hyperparameters and variables that a job can have.

    Args:
        hyperparameters: Those given.
        variables: Likewise.
        args: The command line.

    Raises:
        RunError: One is refused; the message names it.
    """
    _check_hyperparameters(hyperparameters, args)
    _check_variables(variables)
    _check_known(hyperparameters, variables)
    _check_given_once(hyperparameters, variables, args)


def _check_hyperparameters(given: Mapping[str, str], args: argparse.Namespace) -> None:
    """Hyperparameters are as SageMaker's API takes them, and none is ours to write."""
    raw = {"trainbox_raw_arguments": json.dumps(args.raw_arguments)} if args.raw_arguments else {}
    processes = {"processes_per_host": str(args.processes)} if args.processes is not None else {}
    own = {*_OWN_HYPERPARAMETERS, *raw, *processes}
    for name, value in {**raw, **given}.items():
        if name in raw and len(value) > LONGEST_VALUE:
            raise RunError(
                f"the arguments behind -- have {len(value)} characters as JSON",
                hint=f"SageMaker refuses more than {LONGEST_VALUE}; pass a file in a channel",
            )
    for name, value in given.items():
        if name in own:
            raise RunError(f"--hp {name}: trainbox run sets this one itself", hint="leave it out")
        if len(name) > LONGEST_KEY:
            raise RunError(
                f"--hp {name[:40]}…: the name has {len(name)} characters",
                hint=f"SageMaker refuses more than {LONGEST_KEY}",
            )
        if len(value) > LONGEST_VALUE:
            raise RunError(
                f"--hp {name}: the value has {len(value)} characters",
                hint=f"SageMaker refuses more than {LONGEST_VALUE}; pass a long list in a file of a channel",
            )
    hide = bool(args.hp_env or any(text.partition("=")[2].startswith("@") for text in (*args.hp, *args.env)))
    written = len(given) + len(raw) + len(processes) + hide + 2
    if written > MOST_HYPERPARAMETERS:
        raise RunError(
            f"{len(given)} hyperparameters, and {written - len(given)} that say what to run, are {written}",
            hint=f"SageMaker refuses more than {MOST_HYPERPARAMETERS}; pass a file in a channel",
        )


def _check_variables(given: Mapping[str, str]) -> None:
    """Variables are as SageMaker's API takes them, and none is ours to set."""
    if len(given) > MOST_VARIABLES:
        raise RunError(f"{len(given)} variables", hint=f"SageMaker refuses more than {MOST_VARIABLES}")
    for name, value in given.items():
        if name in OWN_VARIABLES:
            raise RunError(f"--env {name}: trainbox run sets or clears this one itself", hint="leave it out")
        if not _VARIABLE_NAME.fullmatch(name) or len(name) > LONGEST_VARIABLE_NAME:
            raise RunError(
                f"--env {name[:40]}: SageMaker takes names of letters, digits and '_' only", hint="rename it"
            )
        if len(value) > LONGEST_VARIABLE_VALUE:
            raise RunError(
                f"--env {name}: the value has {len(value)} characters",
                hint=f"SageMaker refuses more than {LONGEST_VARIABLE_VALUE}",
            )


def _check_known(hyperparameters: Mapping[str, str], variables: Mapping[str, str]) -> None:
    """Here already, before anything is made: the supervisor would refuse it, too."""
    try:
        require_known(hyperparameters, (), Path("--hp"))
        require_known((), variables, Path("--env"))
    except ContractError as error:
        raise RunError(error.message, hint=error.hint) from None


def _check_given_once(
    hyperparameters: Mapping[str, str], variables: Mapping[str, str], args: argparse.Namespace
) -> None:
    """Of two places that say the same setting one would have no effect."""
    by_flag = {
        "trainbox_drill": "--kill and --freeze" if args.kill or args.freeze else "",
        "trainbox_preflight": "--preflight" if args.preflight is not None else "",
        "processes_per_host": "--processes" if args.processes is not None else "",
    }
    for name in SETTINGS:
        places = [
            *([by_flag[name]] if by_flag.get(name) else []),
            *([f"--hp {name}"] if name in hyperparameters else []),
            *([f"--env {name.upper()}"] if name.upper() in variables else []),
        ]
        if len(places) > 1:
            raise RunError(f"{' and '.join(places)} say the same setting", hint="give one of them")
