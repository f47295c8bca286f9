"""A job that a program or a person asked for, checked against this machine, once and at the edge."""

import contextlib
import datetime as dt
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

import msgspec

from trainbox.contract.credentials.checkpoint_keys import KEY_BYTES
from trainbox.contract.credentials.peer_key import PeerKey, as_handed_on
from trainbox.contract.credentials.references import has_reference
from trainbox.contract.credentials.secrets import hidden_values
from trainbox.contract.fault_injection import Drill
from trainbox.contract.hyperparameters import flags_of
from trainbox.contract.job_request import script_hyperparameters
from trainbox.contract.job_spec import JobSpec, MetricDefinition
from trainbox.contract.setting_values import Installs, read_names
from trainbox.errors import RunError
from trainbox.local.acceptance import OWN_VARIABLES, PROCESSES, check_accepted, check_numbers
from trainbox.local.backends.isolation import Isolation, find_containers, find_isolation, isolate
from trainbox.local.given import Origin
from trainbox.local.inputs.hosts import LOCAL_TYPE, HostGroup, Hosts, hosts_of
from trainbox.local.inputs.source import ChannelSource, read_channels
from trainbox.local.local_options import LocalOptions, MachineShare, MemberNames
from trainbox.local.results.folder import read_previous
from trainbox.local.results.overwriting import read_replaced, require_kept
from trainbox.local.results.record import JobRecord
from trainbox.local.scripts.find_program import FoundProgram, find_program
from trainbox.local.shell_settings import drills_of, settings_of_shell
from trainbox.local.source import Source, survey
from trainbox.local.unused import unused
from trainbox.supervisor.requirements import find_install

_JOB_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
RESULTS = Path("trainbox-out")
_CODE_CHANNEL = "/opt/ml/input/data/code"


class RunRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a plan is made from; nothing else is looked up afterwards."""

    #: The program relative to the source's directory, or the name of a bundled script.
    script: str
    #: The module to run, which the script is the file of, where it is one of the source.
    module: str | None = None
    #: Arguments of the script behind those of the hyperparameters.
    raw_arguments: tuple[str, ...] = ()
    #: ContainerEntrypoint and ContainerArguments: started in place of trainbox's own `train`.
    entrypoint: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    source: Source | None = None
    #: Where the supervisor gets the source from, where there is none here: an archive, `s3://…`, a place in the image.
    submit_directory: str = ""
    #: Whether the script, a name or an absolute path, is one that only the image has: nothing of it is known here.
    in_image: bool = False
    channels: Mapping[str, ChannelSource] = {}
    hyperparameters: Mapping[str, str] = {}
    env: Mapping[str, str] = {}
    #: Where those values came from that are not in the command.
    hyperparameter_origins: Mapping[str, Origin] = {}
    env_origins: Mapping[str, Origin] = {}
    #: Names whose values are always secret.
    hide: tuple[str, ...] = ()
    #: The environment of `trainbox run` itself.
    inherited: Mapping[str, str] = {}
    hosts: int = 1
    #: Instance groups, where the job names some.
    groups: tuple[HostGroup, ...] = ()
    #: What hosts without groups are told that they are.
    instance_type: str = LOCAL_TYPE
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
    #: What the log is searched for, besides our own metric lines.
    metric_definitions: tuple[MetricDefinition, ...] = ()
    #: What of the job has no effect here, in sentences.
    notes: tuple[str, ...] = ()
    isolation: Isolation
    started: dt.datetime
    #: What pip may install.
    installs: Installs = "any"
    #: Whether nothing but this job starts processes in this program: then every remaining process is the job's.
    owns_children: bool = True
    #: Of files that a host makes; -1 is that of this process.
    umask: int = -1
    #: What hosts have of this machine.
    share: MachineShare = MachineShare()

    @property
    def command(self) -> tuple[str, ...]:
        """What is started in place of trainbox's own `train`; empty where that is."""
        return (*self.entrypoint, *self.arguments)

    @property
    def secrets(self) -> tuple[str, ...]:
        """Values that nothing which is shown or kept may hold."""
        key = as_handed_on(self.peer_key)
        sources = (self.inherited, self.env, self.hyperparameters, flags_of(self.raw_arguments), key)
        return hidden_values(*sources, also=self.hide)


class _Work(msgspec.Struct, frozen=True, kw_only=True):
    """What a job is found to be on this machine."""

    command: tuple[str, ...]
    found: FoundProgram
    hosts: Hosts
    processes: int | None
    hyperparameters: Mapping[str, str]
    variables: Mapping[str, str]
    drills: tuple[Drill, ...]
    job_name: str
    out: Path
    previous: JobRecord | None
    replaced: JobRecord | None


def read_request(spec: JobSpec, options: LocalOptions, *, now: dt.datetime) -> RunRequest:
    """Check a job against this machine.

    Args:
        spec: What is to run.
        options: How it runs here, with the environment of the program.
        now: When the job begins.

    Raises:
        RunError: Something asked for cannot be done; the message names the argument.
        ContractError: A variable of the shell begins as trainbox's own do, and is none.
        ProgramError: There is no such script.
    """
    work = _find_work(spec, options, now)
    found, names, image = work.found, options.names, _image_of(spec, options)
    module = spec.script.module if spec.script and not work.command else ""
    installs = _installs(work.hyperparameters, work.variables)
    outside = (
        *_asks_pip(found.script, found.directory, installs, is_module=bool(module)),
        *_referring(work.hyperparameters, work.variables, names),
    )
    channels = read_channels(
        spec.input_data_config,
        work.hosts,
        env=options.env or {},
        mode=spec.algorithm_specification.training_input_mode,
        places=options.places,
        flag=names.channel,
    )
    require_kept(work.out, _read_paths(channels, found.directory, found.script) if work.replaced else {})
    request = _form_request(spec, options, work, now)
    return msgspec.structs.replace(
        request,
        module=module or None,
        raw_arguments=spec.script.arguments if spec.script and not work.command else (),
        channels=channels,
        source=None if found.directory is None else survey(found.directory, leave_out=work.out),
        installs=installs,
        # Asked last: it takes longest, and what was wrong before needs no engine.
        isolation=_isolate(options) if image is None else find_containers(image, options, work.hosts.count, outside),
    )


def _isolate(options: LocalOptions) -> Isolation:
    return find_isolation() if options.private_mounts is None else isolate(options.private_mounts)


def _image_of(spec: JobSpec, options: LocalOptions) -> str | None:
    return spec.algorithm_specification.training_image if options.docker else None


def _find_work(spec: JobSpec, options: LocalOptions, now: dt.datetime) -> _Work:
    env, cwd, algorithm = options.env or {}, options.directory.absolute(), spec.algorithm_specification
    check_accepted(spec, options)
    hosts, processes = hosts_of(spec.resource_config), _processes(spec)
    check_numbers(spec, options, hosts, processes)
    of_shell = settings_of_shell(env)
    given = {name: of_shell[name] for name in of_shell if name not in OWN_VARIABLES}
    variables = {**given, **spec.environment}
    if options.preflight is not None:
        variables.pop("TRAINBOX_PREFLIGHT", None)
    drills = drills_of(options, of_shell.get("TRAINBOX_DRILL", ""))
    command = (*algorithm.container_entrypoint, *algorithm.container_arguments)
    image = _image_of(spec, options)
    if command:
        found = FoundProgram(command[0])
    elif spec.script is not None and not spec.script.name and _is_in_channel(spec):
        found = FoundProgram(spec.script.file or spec.script.module, submit_directory=_CODE_CHANNEL)
    elif spec.script is None and image:
        found = FoundProgram("", in_image=True)  # its `train` knows what to run
    else:
        found = find_program(spec.script, image, env, cwd)
    job_name = _job_name(spec, options, found.script, now)
    out = (cwd / (options.out or RESULTS / job_name).expanduser()).resolve()
    replaced = read_replaced(out, overwrite=options.overwrite, resume=options.resume)
    previous = None if replaced else read_previous(out, resume=options.resume)
    hyperparameters = {name: value for name, value in spec.hyper_parameters.items() if name != PROCESSES}
    if processes is None and PROCESSES in spec.hyper_parameters:
        hyperparameters[PROCESSES] = spec.hyper_parameters[PROCESSES]  # no number: the supervisor says so
    return _Work(
        command=command,
        found=found,
        hosts=hosts,
        processes=processes,
        hyperparameters=hyperparameters | (script_hyperparameters(spec.script) if command else {}),
        variables=variables,
        drills=drills,
        # The name stays the job's over its attempts, as in the cloud.
        job_name=previous.job_name if previous and not spec.training_job_name else job_name,
        out=out,
        previous=previous,
        replaced=replaced,
    )


def _is_in_channel(spec: JobSpec) -> bool:
    """Return whether the source comes through the channel `code`, as SageMaker's SDKs send it."""
    has_source = spec.script is not None and spec.script.source_dir
    return not has_source and any(channel.channel_name == "code" for channel in spec.input_data_config)


def _form_request(spec: JobSpec, options: LocalOptions, work: _Work, now: dt.datetime) -> RunRequest:
    algorithm, origins = spec.algorithm_specification, (*options.hyperparameter_origins, *options.env_origins)
    several = work.hosts.count > 1 or (work.processes or 1) > 1
    return RunRequest(
        script=work.found.script,
        submit_directory=work.found.submit_directory,
        in_image=work.found.in_image,
        entrypoint=algorithm.container_entrypoint,
        arguments=algorithm.container_arguments,
        hyperparameters=work.hyperparameters,
        env=work.variables,
        hyperparameter_origins=options.hyperparameter_origins,
        env_origins=options.env_origins,
        hide=_names_to_hide(work.hyperparameters, work.variables, origins),
        inherited=options.env or {},
        hosts=work.hosts.count,
        groups=work.hosts.groups,
        instance_type=work.hosts.instance_type,
        processes=work.processes,
        job_name=work.job_name,
        out=work.out,
        max_run=spec.stopping_condition.max_runtime_in_seconds,
        stop_after=options.stop_after,
        resume=options.resume,
        drills=work.drills,
        preflight=options.preflight or "off",
        master_port=None if options.docker or "MASTER_PORT" in work.variables else find_free_port(),
        peer_key=PeerKey(os.urandom(KEY_BYTES)) if several else None,
        previous=work.previous,
        replaced=work.replaced,
        keep=options.keep,
        metric_definitions=algorithm.metric_definitions,
        notes=tuple(unused(spec, options)),
        isolation=Isolation(),
        started=now,
        owns_children=options.owns_children,
        umask=options.host_umask,
        share=options.share,
    )


def _read_paths(channels: Mapping[str, ChannelSource], directory: Path | None, script: str) -> dict[str, Path]:
    """What the job reads, by how the command names it."""
    source = {} if directory is None else {"the source": directory / script}
    return {**{f"--channel {name}": channel.path for name, channel in channels.items()}, **source}


def _installs(hyperparameters: Mapping[str, str], variables: Mapping[str, str]) -> Installs:
    """What pip may install; nothing where that is misspelt, which the supervisor then says."""
    text = hyperparameters.get("trainbox_requirements") or variables.get("TRAINBOX_REQUIREMENTS") or "any"
    return next((installs for installs in get_args(Installs) if installs == text), "off")


def _asks_pip(script: str, directory: Path | None, installs: Installs, *, is_module: bool) -> Iterator[str]:
    """What pip has to install before the script, if that is anything."""
    install = find_install(script, directory, is_module=is_module, installs=installs) if directory else ()
    if install:
        yield " ".join(install)


def _referring(hyperparameters: Mapping[str, str], variables: Mapping[str, str], names: MemberNames) -> Iterator[str]:
    """What refers to secrets that are elsewhere; what refers wrongly, the supervisor refuses."""
    for flag, values in ((names.hyperparameter, hyperparameters), (names.variable, variables)):
        yield from (f"the reference in {flag} {name}" for name, value in values.items() if has_reference(value))


def _processes(spec: JobSpec) -> int | None:
    """Processes on each host; what is no number, the supervisor refuses."""
    text = spec.hyper_parameters.get(PROCESSES, "").strip('"')
    try:
        return int(text) if text else None
    except ValueError:
        return None


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


def _job_name(spec: JobSpec, options: LocalOptions, script: str, now: dt.datetime) -> str:
    name, out = spec.training_job_name, options.out
    if name:
        if not _JOB_NAME.fullmatch(name):
            raise RunError(
                f"{options.names.job_name} {name!r}: SageMaker takes letters, digits and dashes between them,"
                " 63 at most",
                hint="for example my-job-1",
            )
        return name
    if out is not None and _JOB_NAME.fullmatch(out.name):
        return out.name
    if options.resume and out is None:
        raise RunError("--resume: which job?", hint="give its --job-name, or its directory as --out")
    named = (spec.script.module if spec.script else "") or Path(script).stem
    stem = re.sub(r"[^a-zA-Z0-9]+", "-", named).strip("-")[:40] or "job"
    return f"{stem}-{now:%Y%m%d-%H%M%S}"
