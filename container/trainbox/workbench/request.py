"""What a person asked `trainbox run` for, parsed and checked against the machine, once and at the edge."""

import argparse
import contextlib
import datetime as dt
import math
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

import msgspec

from trainbox.contract.drills import Drill, Fault, read_drills
from trainbox.contract.hyperparameters import flags_of
from trainbox.contract.keys import CHECKPOINT_KEY, KEY_BYTES
from trainbox.contract.peer_key import PeerKey, as_handed_on
from trainbox.contract.references import has_reference
from trainbox.contract.secrets import hidden_values
from trainbox.contract.setting_values import MOST_PROCESSES_PER_HOST, Installs, read_names
from trainbox.contract.settings import SETTINGS, is_ours, require_known
from trainbox.errors import RunError
from trainbox.launch.requirements import find_install
from trainbox.workbench.acceptance import OWN_VARIABLES, check_accepted
from trainbox.workbench.find_program import find_program
from trainbox.workbench.folder import read_previous
from trainbox.workbench.given import Origin, read_hyperparameters, read_variables
from trainbox.workbench.inputs.hosts import Group, check_hosts
from trainbox.workbench.inputs.source import ChannelSource, read_channels
from trainbox.workbench.isolation import Isolation, check_containers, find_containers, find_isolation
from trainbox.workbench.overwriting import read_replaced, require_kept
from trainbox.workbench.record import JobRecord
from trainbox.workbench.source import Source, survey

#: Of this backend: each host is a process here, and 127.0.0.N must name it.
MOST_HOSTS = 100

_JOB_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
#: A variable that every script of a job has, and what it starts.
_WITHIN_A_JOB = "SM_HOSTS"
RESULTS = Path("trainbox-out")


class RunRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a plan is made from; nothing else is looked up afterwards."""

    #: The program relative to the source's directory, or the name of a bundled script.
    script: str
    #: The module to run, which the script is the file of, where it is one of the source.
    module: str | None = None
    #: Arguments of the script behind those of the hyperparameters.
    raw_arguments: tuple[str, ...] = ()
    source: Source | None = None
    #: Whether the script, a name or an absolute path, is one that only the image has: nothing of it is known here.
    in_image: bool = False
    channels: Mapping[str, ChannelSource] = {}
    hyperparameters: Mapping[str, str] = {}
    env: Mapping[str, str] = {}
    #: Where those values came from that are not in the command.
    hyperparameter_origins: Mapping[str, Origin] = {}
    env_origins: Mapping[str, Origin] = {}
    #: Names whose values are secret whatever they say.
    hide: tuple[str, ...] = ()
    #: The environment of `trainbox run` itself.
    inherited: Mapping[str, str] = {}
    hosts: int = 1
    #: Instance groups, where `--hosts` names some.
    groups: tuple[Group, ...] = ()
    processes: int | None = None
    job_name: str
    out: Path
    max_run: float | None = None
    stop_after: float | None = None
    resume: bool = False
    #: Faults that the job is to survive.
    drills: tuple[Drill, ...] = ()
    #: Checks of the hosts before the script; off unless asked for: hosts of one machine are no cluster to doubt.
    preflight: str = "off"
    #: Where the ranks meet; None where each job has a network of its own.
    master_port: int | None = None
    #: By which the processes of this attempt prove themselves to each other; None where there is one alone.
    peer_key: PeerKey | None = None
    previous: JobRecord | None = None
    #: The earlier job whose result is removed first.
    replaced: JobRecord | None = None
    #: Containers and their network stay when the job has ended.
    keep: bool = False
    isolation: Isolation
    started: dt.datetime
    #: What pip may install.
    installs: Installs = "any"
    #: Of files that a host makes; -1 is that of this process.
    umask: int = -1

    @property
    def secrets(self) -> tuple[str, ...]:
        """Values that nothing which is shown or kept may hold."""
        key = as_handed_on(self.peer_key)
        sources = (self.inherited, self.env, self.hyperparameters, flags_of(self.raw_arguments), key)
        return hidden_values(*sources, also=self.hide)


def read_request(
    args: argparse.Namespace, *, env: Mapping[str, str], cwd: Path, now: dt.datetime, umask: int = -1
) -> RunRequest:
    """Turn the command line into a request.

    Raises:
        RunError: Something asked for cannot be done; the message names the argument.
        ContractError: A variable of the shell begins as trainbox's own do, and is none.
        ProgramError: There is no such script.
    """
    given, given_variables = read_hyperparameters(args.hp, args.hp_env, env, cwd), read_variables(args.env, env, cwd)
    hyperparameters, variables = given.values, given_variables.values
    check_accepted(hyperparameters, variables, args)
    _check_numbers(args)
    of_shell = _settings_of_shell(env)
    variables = {**{name: of_shell[name] for name in of_shell if name not in OWN_VARIABLES}, **variables}
    if args.preflight is not None:
        variables.pop("TRAINBOX_PREFLIGHT", None)
    drills = _drills(args, of_shell.get("TRAINBOX_DRILL", ""))
    found = find_program(args, env, cwd)
    script, directory, job_name = found.script, found.directory, _job_name(args, found.script, now)
    out = (cwd / Path(args.out or RESULTS / job_name).expanduser()).resolve()
    replaced = read_replaced(out, overwrite=args.overwrite, resume=args.resume)
    previous = None if replaced else read_previous(out, resume=args.resume)
    installs = _installs(hyperparameters, variables)
    outside = (*_asks_pip(args, script, directory, installs), *_referring(hyperparameters, variables))
    channels = read_channels(args.channel, args.hosts, env=env, cwd=cwd)
    require_kept(out, _read_paths(channels, directory, script) if replaced else {})
    return RunRequest(
        script=script,
        module=args.module,
        raw_arguments=tuple(args.raw_arguments),
        source=None if directory is None else survey(directory, leave_out=out),
        in_image=found.in_image,
        channels=channels,
        hyperparameters=hyperparameters,
        env=variables,
        hyperparameter_origins=given.origins,
        env_origins=given_variables.origins,
        hide=_names_to_hide(hyperparameters, variables, (*given.origins, *given_variables.origins)),
        inherited=env,
        hosts=args.hosts.count,
        groups=args.hosts.groups,
        processes=args.processes,
        # The name stays the job's over its attempts, as in the cloud.
        job_name=previous.job_name if previous and args.job_name is None else job_name,
        out=out,
        max_run=args.max_run,
        stop_after=args.stop_after,
        resume=args.resume,
        drills=drills,
        preflight=args.preflight or "off",
        master_port=_master_port(args, variables),
        peer_key=PeerKey(os.urandom(KEY_BYTES)) if args.hosts.count > 1 or (args.processes or 1) > 1 else None,
        previous=previous,
        replaced=replaced,
        keep=args.keep,
        # Asked last: it takes longest, and what was wrong before needs no engine.
        isolation=find_isolation() if args.docker is None else find_containers(args, env, outside),
        started=now,
        installs=installs,
        umask=umask,
    )


def _read_paths(channels: Mapping[str, ChannelSource], directory: Path | None, script: str) -> dict[str, Path]:
    """What the job reads, by how the command names it."""
    source = {} if directory is None else {"the source": directory / script}
    return {**{f"--channel {name}": channel.path for name, channel in channels.items()}, **source}


def _installs(hyperparameters: Mapping[str, str], variables: Mapping[str, str]) -> Installs:
    """What pip may install; nothing where that is misspelt, which the supervisor then says."""
    text = hyperparameters.get("trainbox_requirements") or variables.get("TRAINBOX_REQUIREMENTS") or "any"
    return next((installs for installs in get_args(Installs) if installs == text), "off")


def _asks_pip(args: argparse.Namespace, script: str, directory: Path | None, installs: Installs) -> Iterator[str]:
    """What pip has to install before the script, if that is anything."""
    install = find_install(script, directory, is_module=args.module is not None, installs=installs) if directory else ()
    if install:
        yield " ".join(install)


def _referring(hyperparameters: Mapping[str, str], variables: Mapping[str, str]) -> Iterator[str]:
    """What refers to secrets that are elsewhere; what refers wrongly, the supervisor refuses."""
    for flag, values in (("--hp", hyperparameters), ("--env", variables)):
        yield from (f"the reference in {flag} {name}" for name, value in values.items() if has_reference(value))


def _settings_of_shell(env: Mapping[str, str]) -> dict[str, str]:
    """What the shell says to trainbox counts as `--env` does, unless this shell is within a job: then it is that job's.

    Raises:
        ContractError: It says what no trainbox understands.
    """
    if _WITHIN_A_JOB in env:
        return {}
    require_known((), env, Path())
    names = {CHECKPOINT_KEY, *(name.upper() for name in SETTINGS if is_ours(name))}
    return {name: value for name, value in env.items() if name in names and value}


def _drills(args: argparse.Namespace, of_shell: str) -> tuple[Drill, ...]:
    given = (*_faults("kill", args.kill), *_faults("freeze", args.freeze))
    try:
        drills = (*given, *(read_drills(of_shell) if of_shell else ()))
    except ValueError:
        raise RunError(f"the variable TRAINBOX_DRILL: found {of_shell!r}, expected 'kill RANK@STEP'") from None
    twice = next((drill for drill in drills if drills.count(drill) > 1), None)
    if twice:
        raise RunError(f"the drill '{twice}' is given twice", hint="give it once: each happens once")
    return drills


def _faults(fault: Fault, given: Sequence[str]) -> tuple[Drill, ...]:
    try:
        return tuple(drill for text in given for drill in read_drills(f"{fault} {text}"))
    except ValueError as error:
        raise RunError(f"--{fault}: found {str(error).partition(' ')[2]!r}, expected RANK@STEP") from None


def _master_port(args: argparse.Namespace, variables: Mapping[str, str]) -> int | None:
    """A port of this machine that nobody has: jobs that run here at once must not meet."""
    return None if args.docker is not None or "MASTER_PORT" in variables else find_free_port()


def find_free_port() -> int:
    """Return a port of this machine that nobody has."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _names_to_hide(
    hyperparameters: Mapping[str, str], variables: Mapping[str, str], origins: Sequence[str]
) -> tuple[str, ...]:
    text = hyperparameters.get("trainbox_hide") or variables.get("TRAINBOX_HIDE", "")
    try:
        named = read_names(text) if text else ()
    except ValueError:
        raise RunError(f"trainbox_hide: found {text!r}, expected names, separated by commas") from None
    return tuple(dict.fromkeys((*named, *origins)))


def _check_numbers(args: argparse.Namespace) -> None:
    check_hosts(args.hosts, most=MOST_HOSTS)
    if args.processes is not None and not 1 <= args.processes <= MOST_PROCESSES_PER_HOST:
        raise RunError(f"--processes {args.processes}: expected 1 to {MOST_PROCESSES_PER_HOST}")
    check_containers(args)
    for flag, seconds in (("--max-run", args.max_run), ("--stop-after", args.stop_after)):
        if seconds is not None and not (seconds > 0 and math.isfinite(seconds)):
            raise RunError(f"{flag} {seconds}: expected seconds above 0")


def _job_name(args: argparse.Namespace, script: str, now: dt.datetime) -> str:
    if args.job_name is not None:
        if not _JOB_NAME.fullmatch(args.job_name):
            raise RunError(
                f"--job-name {args.job_name!r}: SageMaker takes letters, digits and dashes between them, 63 at most",
                hint="for example my-job-1",
            )
        return str(args.job_name)
    if args.out is not None and _JOB_NAME.fullmatch(Path(args.out).name):
        return Path(args.out).name
    if args.resume and args.out is None:
        raise RunError("--resume: which job?", hint="give its --job-name, or its directory as --out")
    named = args.module or Path(script).stem
    stem = re.sub(r"[^a-zA-Z0-9]+", "-", named).strip("-")[:40] or "job"
    return f"{stem}-{now:%Y%m%d-%H%M%S}"
