"""Turn the command line of `trainbox run` into a JobSpec and the options of this machine."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainbox.contract.fault_injection import Drill, Fault, read_drills
from trainbox.contract.job_spec import (
    FILE_SCHEME,
    AlgorithmSpecification,
    JobSpec,
    LocalScript,
    ResourceConfig,
    ResourceGroup,
    StoppingCondition,
)
from trainbox.errors import RunError
from trainbox.local.acceptance import PROCESSES, written_by_us
from trainbox.local.given import read_hyperparameters, read_variables
from trainbox.local.inputs.channel_flags import read_channel_flags
from trainbox.local.inputs.hosts import Hosts
from trainbox.local.local_options import LocalOptions, MemberNames
from trainbox.local.scripts.find_program import locate, no_script, nothing_named

#: How messages name the arguments.
_FLAGS = MemberNames(
    hyperparameter="--hp",
    variable="--env",
    channel="--channel",
    hosts="--hosts",
    max_run="--max-run",
    job_name="--job-name",
)


def read_command(
    args: argparse.Namespace, *, env: Mapping[str, str], cwd: Path, umask: int = -1
) -> tuple[JobSpec, LocalOptions]:
    """Turn the command line into a job and the options of this machine.

    Args:
        args: As the flags of `trainbox run` are parsed.
        env: The environment of this program.
        cwd: Where relative paths begin.
        umask: Of the files that hosts make.

    Raises:
        RunError: An argument is malformed, or what it names is not there; the message names it.
    """
    hyperparameters, variables = (
        read_hyperparameters(args.hp, args.hp_env, env, cwd),
        read_variables(args.env, env, cwd),
    )
    given = dict(hyperparameters.values)
    if args.processes is not None:
        if PROCESSES in given:
            raise written_by_us(PROCESSES)
        given[PROCESSES] = str(args.processes)
    channels = read_channel_flags(args.channel, env=env, cwd=cwd)
    spec = JobSpec(
        training_job_name=args.job_name or "",
        algorithm_specification=AlgorithmSpecification(training_image=args.docker or ""),
        script=_script(args, cwd),
        hyper_parameters=given,
        environment=variables.values,
        input_data_config=channels.channels,
        resource_config=_resources(args.hosts),
        stopping_condition=StoppingCondition(max_runtime_in_seconds=args.max_run),
    )
    options = LocalOptions(
        env=env,
        directory=cwd,
        out=Path(args.out) if args.out else None,
        resume=args.resume,
        overwrite=args.overwrite,
        fresh=args.fresh,
        stop_after=args.stop_after,
        drills=(*_faults("kill", args.kill), *_faults("freeze", args.freeze)),
        preflight=args.preflight,
        docker=args.docker is not None,
        as_sagemaker=args.as_sagemaker,
        network=args.network,
        keep=args.keep,
        places=channels.places,
        hyperparameter_origins=hyperparameters.origins,
        env_origins=variables.origins,
        flags=_flags_of_settings(args),
        owns_children=True,
        host_umask=umask,
        names=_FLAGS,
    )
    return spec, options


def _flags_of_settings(args: argparse.Namespace) -> dict[str, str]:
    return {
        **({"trainbox_drill": "--kill and --freeze"} if args.kill or args.freeze else {}),
        **({"trainbox_preflight": "--preflight"} if args.preflight is not None else {}),
        **({PROCESSES: "--processes"} if args.processes is not None else {}),
    }


def _resources(hosts: Hosts) -> ResourceConfig:
    if not hosts.groups:
        return ResourceConfig(instance_count=hosts.count)
    groups = (ResourceGroup(instance_group_name=group.name, instance_count=group.count) for group in hosts.groups)
    return ResourceConfig(instance_groups=tuple(groups))


def _faults(fault: Fault, given: Sequence[str]) -> tuple[Drill, ...]:
    try:
        return tuple(drill for text in given for drill in read_drills(f"{fault} {text}"))
    except ValueError as error:
        raise RunError(f"--{fault}: found {str(error).partition(' ')[2]!r}, expected RANK@STEP") from None


def _script(args: argparse.Namespace, cwd: Path) -> LocalScript:
    """Return the script: a file of this machine with its directory, anything else by its name, also one of an image."""
    if args.script is not None and args.module is not None:
        raise RunError(
            f"-m {args.module} and {args.script}: only one of them can run",
            hint=f"arguments of the module stand behind --: trainbox run -m {args.module} -- {args.script}",
        )
    directory = None if args.source_dir is None else (cwd / args.source_dir).resolve()
    if directory is not None and not directory.is_dir():
        raise RunError(f"--source-dir {args.source_dir}: there is no such directory")
    rest: dict[str, Any] = {"arguments": tuple(args.raw_arguments)}
    if args.module is not None:
        return LocalScript(module=str(args.module), source_dir=f"{FILE_SCHEME}{directory or cwd.resolve()}", **rest)
    if args.script is None:
        raise nothing_named(args.docker, cwd)
    located = locate(args.script, directory, cwd)
    if located is not None:
        return LocalScript(file=located[0], source_dir=f"{FILE_SCHEME}{located[1]}", **rest)
    if directory is not None:
        raise no_script(args.script, directory, [])
    if args.docker is not None and Path(args.script).is_absolute():
        path = Path(args.script)
        return LocalScript(file=path.name, source_dir=str(path.parent), **rest)
    return LocalScript(name=args.script, **rest)
