"""What of a job none could have: what SageMaker refuses, what trainbox does not know, what is given twice."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

from trainbox.contract.credentials.peer_key import PEER_KEY_VARIABLE
from trainbox.contract.job_spec import JobSpec
from trainbox.contract.setting_values import MOST_PROCESSES_PER_HOST
from trainbox.contract.settings import SETTINGS, require_known
from trainbox.errors import ContractError, RunError
from trainbox.local.backends.isolation import check_containers
from trainbox.local.inputs.hosts import Hosts, check_hosts
from trainbox.local.local_options import LocalOptions, MemberNames

# Limits of API CreateTrainingJob: what the service refuses is refused here, too.
MOST_HYPERPARAMETERS = 100
LONGEST_KEY = 256
LONGEST_VALUE = 2500
MOST_VARIABLES = 100
LONGEST_VARIABLE_NAME = 512
LONGEST_VARIABLE_VALUE = 512

#: Of this backend: each host is a process here, and 127.0.0.N must name it.
MOST_HOSTS = 100
_CHECKPOINTS = "/opt/ml/checkpoints"

_VARIABLE_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
#: Hyperparameters that `trainbox run` writes itself.
_OWN_HYPERPARAMETERS = ("sagemaker_program", "sagemaker_submit_directory", "trainbox_script", "trainbox_module")
#: What `--processes` says.
PROCESSES = "processes_per_host"
#: Variables that `trainbox run` sets or clears itself.
OWN_VARIABLES = (
    *("TRAINBOX_ROOT", "TRAINBOX_SCRIPT", "TRAINBOX_DRILL", "TRAINING_JOB_NAME", "SAGEMAKER_PROGRAM"),
    PEER_KEY_VARIABLE,
)


def check_accepted(spec: JobSpec, options: LocalOptions) -> None:
    """Hyperparameters and variables that a job can have.

    Args:
        spec: The job.
        options: Which flags say a setting, where values came from, and how messages name them.

    Raises:
        RunError: One is refused; the message names it.
    """
    names = options.names
    _check_hyperparameters(spec, options)
    _check_variables(spec.environment, names.variable)
    _check_known(spec.hyper_parameters, spec.environment, names)
    _check_given_once(spec.hyper_parameters, spec.environment, options)


def check_numbers(spec: JobSpec, options: LocalOptions, hosts: Hosts, processes: int | None) -> None:
    """Hosts, processes, times and places that a job here can have.

    Args:
        spec: The job.
        options: How it runs here.
        hosts: Those asked for.
        processes: On each of them.

    Raises:
        RunError: One is refused; the message names it.
    """
    names, max_run = options.names, spec.stopping_condition.max_runtime_in_seconds
    check_hosts(hosts, most=MOST_HOSTS, flag=names.hosts)
    if processes is not None and not 1 <= processes <= MOST_PROCESSES_PER_HOST:
        place = options.flags.get(PROCESSES, f"{names.hyperparameter} {PROCESSES}")
        raise RunError(f"{place} {processes}: expected 1 to {MOST_PROCESSES_PER_HOST}")
    check_containers(options, hosts.count)
    _check_supported(spec, options)
    for flag, seconds in ((names.max_run, max_run), ("--stop-after", options.stop_after)):
        if seconds is not None and not (seconds > 0 and math.isfinite(seconds)):
            raise RunError(f"{flag} {seconds}: expected seconds above 0")


def _check_supported(spec: JobSpec, options: LocalOptions) -> None:
    """Refuse what SageMaker can do and a job here cannot: it would run, and do something else."""
    algorithm = spec.algorithm_specification
    if algorithm.container_arguments and not algorithm.container_entrypoint and not options.docker:
        raise RunError(
            "ContainerArguments: without containers there is no image whose entry point takes them",
            hint="give ContainerEntrypoint, too",
        )
    place = spec.checkpoint_config.local_path if spec.checkpoint_config else ""
    if place.rstrip("/") not in ("", _CHECKPOINTS):
        raise RunError(
            f"CheckpointConfig.LocalPath {place}: checkpoints are kept from {_CHECKPOINTS} alone here",
            hint="leave it out",
        )


def _check_hyperparameters(spec: JobSpec, options: LocalOptions) -> None:
    """Hyperparameters are as SageMaker's API takes them, and none is ours to write."""
    flag = options.names.hyperparameter
    arguments = spec.script.arguments if spec.script else ()
    raw = {"trainbox_raw_arguments": json.dumps(arguments)} if arguments else {}
    given = {name: value for name, value in spec.hyper_parameters.items() if name not in options.flags}
    own = {*_OWN_HYPERPARAMETERS, *raw}
    for value in raw.values():
        if len(value) > LONGEST_VALUE:
            raise RunError(
                f"the arguments behind -- have {len(value)} characters as JSON",
                hint=f"SageMaker refuses more than {LONGEST_VALUE}; pass a file in a channel",
            )
    for name, value in given.items():
        if name in own:
            raise written_by_us(name, flag)
        if len(name) > LONGEST_KEY:
            raise RunError(
                f"{flag} {name[:40]}…: the name has {len(name)} characters",
                hint=f"SageMaker refuses more than {LONGEST_KEY}",
            )
        if len(value) > LONGEST_VALUE:
            raise RunError(
                f"{flag} {name}: the value has {len(value)} characters",
                hint=f"SageMaker refuses more than {LONGEST_VALUE}; pass a long list in a file of a channel",
            )
    hide = bool(options.hyperparameter_origins or options.env_origins)
    written = len(spec.hyper_parameters) + len(raw) + hide + 2
    if written > MOST_HYPERPARAMETERS:
        raise RunError(
            f"{len(given)} hyperparameters, and {written - len(given)} that say what to run, are {written}",
            hint=f"SageMaker refuses more than {MOST_HYPERPARAMETERS}; pass a file in a channel",
        )


def written_by_us(name: str, flag: str = "--hp") -> RunError:
    """What is said of a hyperparameter that `trainbox run` writes itself."""
    return RunError(f"{flag} {name}: trainbox run sets this one itself", hint="leave it out")


def _check_variables(given: Mapping[str, str], flag: str) -> None:
    """Variables are as SageMaker's API takes them, and none is ours to set."""
    if len(given) > MOST_VARIABLES:
        raise RunError(f"{len(given)} variables", hint=f"SageMaker refuses more than {MOST_VARIABLES}")
    for name, value in given.items():
        if name in OWN_VARIABLES:
            raise RunError(f"{flag} {name}: trainbox run sets or clears this one itself", hint="leave it out")
        if not _VARIABLE_NAME.fullmatch(name) or len(name) > LONGEST_VARIABLE_NAME:
            raise RunError(
                f"{flag} {name[:40]}: SageMaker takes names of letters, digits and '_' only", hint="rename it"
            )
        if len(value) > LONGEST_VARIABLE_VALUE:
            raise RunError(
                f"{flag} {name}: the value has {len(value)} characters",
                hint=f"SageMaker refuses more than {LONGEST_VARIABLE_VALUE}",
            )


def _check_known(hyperparameters: Mapping[str, str], variables: Mapping[str, str], names: MemberNames) -> None:
    """Here already, before anything is made: the supervisor would refuse it, too."""
    try:
        require_known(hyperparameters, (), Path(names.hyperparameter))
        require_known((), variables, Path(names.variable))
    except ContractError as error:
        raise RunError(error.message, hint=error.hint) from None


def _check_given_once(hyperparameters: Mapping[str, str], variables: Mapping[str, str], options: LocalOptions) -> None:
    """Of two places that say the same setting one would have no effect."""
    flags, names = options.flags, options.names
    for name in SETTINGS:
        is_processes = name == PROCESSES and name in flags
        places = [
            *([flags[name]] if name in flags else []),
            # `--processes` becomes a hyperparameter: it is one place.
            *([f"{names.hyperparameter} {name}"] if name in hyperparameters and not is_processes else []),
            *([f"{names.variable} {name.upper()}"] if name.upper() in variables else []),
        ]
        if len(places) > 1:
            raise RunError(f"{' and '.join(places)} say the same setting", hint="give one of them")
