"""What a person asked `trainbox run` for, parsed and checked against the machine, once and at the edge."""

import argparse
import contextlib
import datetime as dt
import difflib
import importlib.util
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
from trainbox.contract.job import CHANNEL_NAME
from trainbox.contract.keys import CHECKPOINT_KEY, KEY_BYTES
from trainbox.contract.peer_key import PeerKey, as_handed_on
from trainbox.contract.references import has_reference
from trainbox.contract.secrets import hidden_values
from trainbox.contract.setting_values import MOST_PROCESSES_PER_HOST, Installs, read_names
from trainbox.contract.settings import SETTINGS, is_ours, require_known
from trainbox.contract.text import did_you_mean
from trainbox.errors import RunError
from trainbox.launch.program import bundled_scripts, find_bundled, find_module
from trainbox.launch.requirements import find_install
from trainbox.workbench.acceptance import OWN_VARIABLES, check_accepted
from trainbox.workbench.folder import read_previous
from trainbox.workbench.given import Origin, pairs, read_hyperparameters, read_variables
from trainbox.workbench.isolation import Isolation, check_containers, find_containers, find_isolation
from trainbox.workbench.overwriting import read_replaced, require_kept
from trainbox.workbench.record import JobRecord
from trainbox.workbench.source import Source, survey

#: Limit of API CreateTrainingJob.
MOST_CHANNELS = 20
#: Of this backend: each host is a process here, and 127.0.0.N must name it.
MOST_HOSTS = 100

_JOB_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
#: A variable that every script of a job has, and what it starts.
_WITHIN_A_JOB = "SM_HOSTS"
RESULTS = Path("trainbox-out")


class ChannelSource(msgspec.Struct, frozen=True):
    """A directory or a single file that becomes a channel."""

    path: Path
    is_file: bool = False


class RunRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a plan is made from; nothing else is looked up afterwards."""

    #: The program relative to the source's directory, or the name of a bundled script.
    script: str
    #: The module to run, which the script is the file of, where it is one of the source.
    module: str | None = None
    #: Arguments of the script behind those of the hyperparameters.
    raw_arguments: tuple[str, ...] = ()
    source: Source | None = None
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
    given = read_hyperparameters(args.hp, args.hp_env, env, cwd)
    given_variables = read_variables(args.env, env, cwd)
    hyperparameters, variables = given.values, given_variables.values
    check_accepted(hyperparameters, variables, args)
    _check_numbers(args)
    of_shell = _settings_of_shell(env)
    variables = {**{name: of_shell[name] for name in of_shell if name not in OWN_VARIABLES}, **variables}
    if args.preflight is not None:
        variables.pop("TRAINBOX_PREFLIGHT", None)
    drills = _drills(args, of_shell.get("TRAINBOX_DRILL", ""))
    script, directory = _find_program(args, cwd)
    job_name = _job_name(args, script, now)
    out = (cwd / Path(args.out or RESULTS / job_name).expanduser()).resolve()
    replaced = read_replaced(out, overwrite=args.overwrite, resume=args.resume)
    previous = None if replaced else read_previous(out, resume=args.resume)
    installs = _installs(hyperparameters, variables)
    asks_pip = _asks_pip(args, script, directory, installs)
    outside = (*filter(None, [asks_pip]), *_referring(hyperparameters, variables))
    channels = _channels(args.channel, cwd)
    require_kept(out, _read_paths(channels, directory, script) if replaced else {})
    return RunRequest(
        script=script,
        module=args.module,
        raw_arguments=tuple(args.raw_arguments),
        source=None if directory is None else survey(directory, leave_out=out),
        channels=channels,
        hyperparameters=hyperparameters,
        env=variables,
        hyperparameter_origins=given.origins,
        env_origins=given_variables.origins,
        hide=_names_to_hide(hyperparameters, variables, (*given.origins, *given_variables.origins)),
        inherited=env,
        hosts=args.hosts,
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
        peer_key=PeerKey(os.urandom(KEY_BYTES)) if args.hosts > 1 or (args.processes or 1) > 1 else None,
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


def _asks_pip(args: argparse.Namespace, script: str, directory: Path | None, installs: Installs) -> str:
    """What pip has to install before the script; empty where nothing is asked for."""
    if directory is None:
        return ""
    return " ".join(find_install(script, directory, is_module=args.module is not None, installs=installs))


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
    if not 1 <= args.hosts <= MOST_HOSTS:
        raise RunError(f"--hosts {args.hosts}: expected 1 to {MOST_HOSTS}")
    if args.processes is not None and not 1 <= args.processes <= MOST_PROCESSES_PER_HOST:
        raise RunError(f"--processes {args.processes}: expected 1 to {MOST_PROCESSES_PER_HOST}")
    check_containers(args)
    for flag, seconds in (("--max-run", args.max_run), ("--stop-after", args.stop_after)):
        if seconds is not None and not (seconds > 0 and math.isfinite(seconds)):
            raise RunError(f"{flag} {seconds}: expected seconds above 0")


def _find_program(args: argparse.Namespace, cwd: Path) -> tuple[str, Path | None]:
    """The script or the module of the command line, and the directory of its source."""
    if args.script is not None and args.module is not None:
        raise RunError(
            f"-m {args.module} and {args.script}: only one of them can run",
            hint=f"arguments of the module stand behind --: trainbox run -m {args.module} -- {args.script}",
        )
    if args.module is not None:
        return _find_module(args, cwd)
    if args.script is None:
        raise RunError("no script is named", hint="trainbox run SCRIPT_OR_NAME, or trainbox run -m MODULE")
    return _find_script(args.script, args.source_dir, cwd)


def _find_module(args: argparse.Namespace, cwd: Path) -> tuple[str, Path]:
    """As Python does it the current directory is where names of modules begin: it is the source."""
    directory = (cwd / (args.source_dir or ".")).resolve()
    if not directory.is_dir():
        raise RunError(f"--source-dir {args.source_dir}: there is no such directory")
    name = str(args.module)
    if not all(part.isidentifier() for part in name.split(".")):
        raise RunError(f"-m {name}: expected the name of a module, as in package.train", hint="a script needs no -m")
    file = find_module(name, directory)
    if file is not None:
        return file.relative_to(directory).as_posix(), directory
    if args.docker is None and importlib.util.find_spec(name.partition(".")[0]) is None:
        there = [path.stem for path in directory.iterdir() if path.suffix == ".py" or path.is_dir()]
        raise RunError(
            f"there is no module {name!r} in {directory}{did_you_mean(name.partition('.')[0], there)}",
            hint="--source-dir names the directory where packages lie; an installed module works, too",
        )
    return name, directory


def _find_script(given: str, source_dir: str | None, cwd: Path) -> tuple[str, Path | None]:
    """The program relative to its source directory; or a bundled script, which has none."""
    if source_dir is not None:
        directory = (cwd / source_dir).resolve()
        if not directory.is_dir():
            raise RunError(f"--source-dir {source_dir}: there is no such directory")
        candidates = [directory / given, cwd / given]
    else:
        directory = (cwd / given).resolve().parent
        candidates = [cwd / given]
    for candidate in candidates:
        if candidate.is_file() and candidate.resolve().is_relative_to(directory):
            return candidate.resolve().relative_to(directory).as_posix(), directory
    if source_dir is None and "/" not in given:
        return _find_bundled(given, cwd)
    raise _no_script(given, directory, [])


def _find_bundled(given: str, cwd: Path) -> tuple[str, None]:
    names = bundled_scripts()
    known = {*names, *(name.removesuffix("_train") for name in names)}
    if given.removesuffix(".py") in known or given.removesuffix(".py").replace("-", "_") in known:
        return find_bundled(given).stem, None
    raise _no_script(given, cwd, sorted(names))


def _no_script(given: str, directory: Path, bundled: Sequence[str]) -> RunError:
    there = [path.name for path in directory.iterdir() if path.is_file()] if directory.is_dir() else []
    close = difflib.get_close_matches(Path(given).name, [*there, *bundled], n=3)
    meant = f" - did you mean {' or '.join(map(repr, close))}?" if close else ""
    choices = f"; the bundled scripts are {', '.join(bundled)}" if bundled else ""
    return RunError(f"there is no script {given!r} in {directory}{meant}", hint=f"give the path of a file{choices}")


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


def _channels(given: Sequence[str], cwd: Path) -> dict[str, ChannelSource]:
    if len(given) > MOST_CHANNELS:
        raise RunError(f"{len(given)} channels", hint=f"SageMaker refuses more than {MOST_CHANNELS}")
    channels: dict[str, ChannelSource] = {}
    for name, value in pairs(given, "--channel").items():
        path = (cwd / Path(value).expanduser()).resolve()
        if not CHANNEL_NAME.fullmatch(name):
            raise RunError(
                f"--channel {name}: SageMaker takes names of A-Z a-z 0-9 . - _, at most 64", hint="rename it"
            )
        if not value or not path.exists():
            raise RunError(f"--channel {name}={value}: there is no {path}", hint="give a directory or a file")
        channels[name] = ChannelSource(path, is_file=not path.is_dir())
    return dict(sorted(channels.items()))
