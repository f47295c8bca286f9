"""What the request says to the container itself, by a reserved hyperparameter or else by a variable."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar, get_args

import msgspec

from trainbox.contract.cluster.ranks import DEFAULT_PORT
from trainbox.contract.cluster.scheduler import (
    DEFAULT_GRACE_SECONDS,
    DEFAULT_GRACE_SECONDS_OF_SCHEDULERS,
    STOP_EXIT_CODE_OF_SCHEDULERS,
    default_grace_seconds,
    default_stop_exit_code,
)
from trainbox.contract.fault_injection import Drill, read_drills
from trainbox.contract.hyperparameters import ArgumentStyle
from trainbox.contract.setting_values import (
    MOST_PROCESSES_PER_HOST,
    Installs,
    Launcher,
    Preflight,
    one_of,
    read_bytes,
    read_count,
    read_exit_code,
    read_module,
    read_names,
    read_on,
    read_restarts,
    read_seconds,
    read_strings,
    read_switch,
)
from trainbox.contract.text import did_you_mean
from trainbox.errors import ContractError

T = TypeVar("T")
D = TypeVar("D")

DEFAULT_PEER_TIMEOUT_SECONDS = 120.0
DEFAULT_MAX_RESTARTS = 3
DEFAULT_HANG_SECONDS = 30.0
DEFAULT_START_SECONDS = 1200.0
#: Far above any source; SageMaker's smallest volume has 30 GB.
DEFAULT_SOURCE_BYTES = 10 * 1024**3

#: Every setting that has a name of its own, and what it does; docs/settings.md is generated from here.
SETTINGS: Mapping[str, str] = {
    "sagemaker_program": "the program to run: a Python or shell script, or any executable, inside the source",
    "sagemaker_submit_directory": "where the source is: `s3://…tar.gz`, an archive or a directory; else the channel"
    " `code`, else `/opt/ml/code`",
    "trainbox_source_bytes": "bytes that an archive of source may hold once it is unpacked, 10 GiB by default",
    "trainbox_requirements": "what pip may install at the start: `any` (default), `wheels` (nothing whose build runs"
    " code), `hashes` (every requirement has its hash) or `off` (nothing: what the program needs is in the image)",
    "trainbox_script": "a bundled script by name, where no program is given; as a hyperparameter it wins over the"
    " variables `SAGEMAKER_PROGRAM` and `TRAINBOX_MODULE`, which may be left over in the image",
    "trainbox_module": "a module inside the source (`package.train`), or one that is installed: it runs as"
    " `python -m` runs it, in place of a program",
    "trainbox_arguments": "how hyperparameters become arguments: `toolkit` (default, as sagemaker-training), `json` (as"
    " the drivers of SDK v3), `flags` (`--x` for true, nothing for false and null, else `--x` and the value as `json`"
    " writes it), `equals` (`--x=y`, as Python writes the value) or `hydra` (`x=y`)",
    "trainbox_raw_arguments": "a JSON list of strings: more arguments, handed on as they are behind those of the"
    " hyperparameters",
    "trainbox_grace_seconds": f"seconds from SIGTERM to SIGKILL, {DEFAULT_GRACE_SECONDS:g} by default"
    f" ({DEFAULT_GRACE_SECONDS_OF_SCHEDULERS:g} under Slurm and Kubernetes); no more than the variable says where there"
    " is one",
    "trainbox_stop_exit_code": "the exit code of a job that was stopped and whose script left with 0: by default 0, and"
    f" {STOP_EXIT_CODE_OF_SCHEDULERS} under Slurm and Kubernetes, which go by it",
    "trainbox_peer_timeout_seconds": "seconds to wait for the address of the first host, and in the bundled XGBoost and"
    f" forest scripts for all processes of the job, {DEFAULT_PEER_TIMEOUT_SECONDS:g} by default",
    "processes_per_host": f"processes on each host, at most {MOST_PROCESSES_PER_HOST}; each gets"
    " `RANK`, `LOCAL_RANK`, `WORLD_SIZE`, `MASTER_ADDR`,"
    " `MASTER_PORT` as torchrun sets them. By default 1, or with the launcher `torchrun` one per GPU. The variable"
    f" `MASTER_PORT` of the request names the port of the first host where they meet, {DEFAULT_PORT} by default",
    "trainbox_launcher": "who starts the processes: `plain` (the supervisor itself), `torchrun` (torch elastic:"
    " restarts in place, finds hangs, says which rank failed first) or `auto` (default): `torchrun` where the bundled"
    " PyTorch script runs, SDK v2's `distribution=` asks for it, a Python program imports `trainbox.torch` (itself or"
    " through modules of the source), or a drill, restarts or limits for hangs are asked for. A setting that only"
    " `torchrun` honours is refused with `plain`",
    "trainbox_backend": "the backend of `torch.distributed`: `nccl`, `gloo`, …; by default `nccl` with GPUs, else"
    " `gloo`",
    "trainbox_max_restarts": "restarts in place within ten minutes before the job fails,"
    f" {DEFAULT_MAX_RESTARTS} by default",
    "trainbox_hang_seconds": "a rank that makes no step for this long (and for five times the longest step so far)"
    f" counts as hanging, {DEFAULT_HANG_SECONDS:g} by default; 0 never looks. A process that is stopped (`SIGSTOP`;"
    " not one that a debugger holds) for this long is ended and named: the script under any launcher, the launcher's"
    " own processes. In the bundled XGBoost and forest scripts: a process of which nothing is heard for this long"
    " counts as lost",
    "trainbox_start_seconds": "the same limit up to the end of the first step, when things are compiled and connected,"
    f" {DEFAULT_START_SECONDS:g} by default; while saving and evaluating, too. For a process that is"
    " stopped (`SIGSTOP`) it is `trainbox_hang_seconds`, whatever it was at",
    "trainbox_preflight": "health checks of all hosts before the script: `off`, `fast`, `full` or `auto` (default):"
    " `fast` where the job has more than one process or a GPU, else `off`",
    "trainbox_preflight_strict": "`true`: what those checks only warn of ends the job, too",
    "trainbox_preload": "with the launcher `torchrun`: `on` (default) forks ranks from a process with torch imported,"
    " within milliseconds; `off` starts each as a new interpreter, for a script that sets variables before it imports"
    " torch",
    "trainbox_drill": "faults to rehearse, each once: `kill RANK@STEP`, `freeze RANK@STEP`, separated by commas"
    " (launcher `torchrun`, a script with a session); one that did not happen fails the job",
    "trainbox_hide": "names of hyperparameters and variables, separated by commas, whose values are secret whatever"
    " they are called: no log, report or failure file of ours holds them. `trainbox run` adds those of `--hp-env` and"
    " `@FILE`",
}

#: Every other variable of trainbox's own, and what it says; docs/settings.md is generated from here.
VARIABLES: Mapping[str, str] = {
    "TRAINBOX_ROOT": "the tree, `/opt/ml` by default; the supervisor passes it on to all that it starts",
    "TRAINBOX_PEER_KEY": "the key by which the processes of a job prove to each other that they belong to it, the same"
    " on all hosts: 32 random bytes as 64 hexadecimal digits (`openssl rand -hex 32`) or in base64",
    "TRAINBOX_CHECKPOINT_KEY": "a secret: 32 bytes in hexadecimal digits or base64, which seal checkpoints; what they"
    " have not sealed is [refused](checkpoints-and-stopping.md#who-wrote-a-checkpoint). Of several keys, separated by"
    " commas, the first one seals and each verifies. `trainbox run` takes it from its shell",
    "TRAINBOX_PROGRESS_FILE": "set by the launcher `torchrun`: where a rank says how far it is",
    "TRAINBOX_PAUSE_STEP": "set by the launcher `torchrun`: the step after which a rank waits for its drill",
    "TRAINBOX_PRELOADED": "set by the launcher `torchrun`: variables that torch has read before the script",
    "TRAINBOX_STACKS_FILE": "set by the launcher `torchrun`: where a rank writes its stacks",
    "TRAINBOX_RESOLVED": "set by the supervisor: the secrets that the request refers to, for all that it starts",
    "TRAINBOX_HEALTH_DRILL": "a fault to rehearse in the health checks of ranks",
    "TRAINBOX_TEST_IMAGE": "for trainbox's own tests",
    "TRAINBOX_TEST_PATIENCE": "for trainbox's own tests",
    "TRAINBOX_CI_TESTS": "for trainbox's own builds",
    "TRAINBOX_CI_IMAGE_TESTS": "for trainbox's own builds",
}


#: What Kubernetes sets for each service of a namespace, behind the service's name.
_SERVICE = "_SERVICE_HOST"
_LINK = re.compile(r"SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?")


class Settings(msgspec.Struct, frozen=True):
    """What the request says to the container itself, by a reserved hyperparameter or else by the environment."""

    #: None where a bundled script runs.
    program: str | None = None
    #: What to run as a module; the program is then its file, as far as that can be told.
    module: str | None = None
    submit_directory: str | None = None
    source_bytes: int = DEFAULT_SOURCE_BYTES
    installs: Installs = "any"
    script: str | None = None
    arguments: ArgumentStyle = "toolkit"
    raw_arguments: tuple[str, ...] = ()
    #: None: as many as the launcher sees fit.
    processes_per_host: int | None = None
    launcher: Launcher = "auto"
    backend: str | None = None
    max_restarts: int = DEFAULT_MAX_RESTARTS
    hang_seconds: float = DEFAULT_HANG_SECONDS
    start_seconds: float = DEFAULT_START_SECONDS
    preflight: Preflight = "auto"
    preflight_strict: bool = False
    preload: bool = True
    drills: tuple[Drill, ...] = ()
    grace_seconds: float = DEFAULT_GRACE_SECONDS
    stop_exit_code: int = 0
    #: Names whose values are always secret.
    hide: tuple[str, ...] = ()
    peer_timeout_seconds: float = DEFAULT_PEER_TIMEOUT_SECONDS
    s3_endpoint_url: str | None = None
    pip_cache_dir: Path | None = None
    studio_local_mode: bool = False
    #: The names of those that the request gives itself.
    given: frozenset[str] = frozenset()


def is_ours(name: str) -> bool:
    """Whether a hyperparameter or a variable can only be meant for trainbox, however it is spelt."""
    return name.lower().replace("-", "_").startswith("trainbox_")


def require_known(hyperparameters: Iterable[str], variables: Iterable[str], path: Path = Path()) -> None:
    """Refuse a setting that does not exist: it would have no effect, and nobody would know.

    Args:
        hyperparameters: The names of all.
        variables: Likewise.
        path: Where the hyperparameters came from, for messages.

    Raises:
        ContractError: One of them begins as trainbox's own do, and is none.
    """
    hint = "docs/settings.md lists the settings, docs/serving.md those of serve"
    for name in hyperparameters:
        if is_ours(name) and name not in SETTINGS:
            like = did_you_mean(name.lower().replace("-", "_"), SETTINGS, prefix="trainbox_")
            raise ContractError(f"{path}: key {name!r}: there is no such setting{like}", hint=hint)
    known = [*(name.upper() for name in SETTINGS), *VARIABLES]
    given = [name for name in variables if is_ours(name)]
    services = [name.removesuffix(_SERVICE) for name in given if name.endswith(_SERVICE)]
    strange = [name for name in given if name not in known and not any(_is_link(name, service) for service in services)]
    if strange:
        from trainbox.contract.hosting import HOSTING_VARIABLES  # noqa: PLC0415 - 10 ms that few jobs should pay for

        for name in strange:
            if name not in HOSTING_VARIABLES:
                like = did_you_mean(name.upper(), [*known, *HOSTING_VARIABLES], prefix="TRAINBOX_")
                raise ContractError(f"the variable {name}: there is no such setting{like}", hint=hint)


def _is_link(name: str, service: str) -> bool:
    """Whether Kubernetes has set a variable for a service whose name begins as ours do (`enableServiceLinks`)."""
    return name.startswith(f"{service}_") and _LINK.fullmatch(name.removeprefix(f"{service}_")) is not None


class _Asked(msgspec.Struct, frozen=True):
    """Where settings stand; the arguments are those of `read_settings`."""

    reserved: Mapping[str, object]
    env: Mapping[str, str]
    path: Path

    def given(self, name: str) -> str:
        """What is said of a setting; empty where nothing is."""
        return as_text(self.reserved.get(name)) or self.env.get(name.upper(), "")

    def read(self, name: str, reader: Callable[[str], T], default: D, expected: str) -> T | D:
        """One setting, read."""
        value = self.reserved.get(name)
        # A list has been decoded already.
        text = json.dumps(value) if isinstance(value, list) else self.given(name)
        try:
            return reader(text) if text else default
        except (ValueError, RecursionError):
            place = f"{self.path}: key {name!r}" if value is not None else f"the variable {name.upper()}"
            # Arguments may hold a password, which is not known as one where they cannot be told apart.
            found = "something else" if name == "trainbox_raw_arguments" else repr(text)
            raise ContractError(f"{place}: found {found}, expected {expected}") from None

    def choose(self, name: str, choices: tuple[T, ...], default: T) -> T:
        """One setting that is one of some words."""
        return self.read(name, one_of(choices), default, " or ".join(map(str, choices)))


def read_settings(reserved: Mapping[str, object], env: Mapping[str, str], path: Path) -> Settings:
    """Each setting from its hyperparameter, else from the variable of the same name in capitals.

    Args:
        reserved: The hyperparameters for the container, decoded.
        env: The environment of the container.
        path: Where the hyperparameters came from, for messages.

    Raises:
        ContractError: A setting is none of its choices or out of range; the message says which, and where it stands.
    """
    asked = _Asked(reserved, _without_programs(env) if as_text(reserved.get("trainbox_script")) else env, path)
    given, read, choose = asked.given, asked.read, asked.choose
    cache = env.get("SAGEMAKER_MANAGED_WARMPOOL_CACHE_DIRECTORY")
    seconds = "a number of seconds, 0 or more"
    count = f"a whole number, 1 to {MOST_PROCESSES_PER_HOST}"
    module = read("trainbox_module", read_module, None, "the name of a module, as in package.train")
    settings = Settings(
        program=_program(as_text(reserved.get("sagemaker_program")), module) or given("sagemaker_program") or None,
        module=module,
        submit_directory=given("sagemaker_submit_directory") or None,
        source_bytes=read("trainbox_source_bytes", read_bytes, DEFAULT_SOURCE_BYTES, "a number of bytes, 1 or more"),
        installs=choose("trainbox_requirements", get_args(Installs), "any"),
        script=given("trainbox_script") or None,
        arguments=choose("trainbox_arguments", get_args(ArgumentStyle), "toolkit"),
        raw_arguments=read("trainbox_raw_arguments", read_strings, (), "a JSON list of strings"),
        processes_per_host=read("processes_per_host", read_count, None, count),
        launcher=choose("trainbox_launcher", get_args(Launcher), "auto"),
        backend=given("trainbox_backend") or None,
        max_restarts=read("trainbox_max_restarts", read_restarts, DEFAULT_MAX_RESTARTS, "a whole number, 0 or more"),
        hang_seconds=read("trainbox_hang_seconds", read_seconds, DEFAULT_HANG_SECONDS, seconds),
        start_seconds=read("trainbox_start_seconds", read_seconds, DEFAULT_START_SECONDS, seconds),
        grace_seconds=min(
            read("trainbox_grace_seconds", read_seconds, default_grace_seconds(env), seconds), _longest_grace(env)
        ),
        stop_exit_code=read(
            "trainbox_stop_exit_code", read_exit_code, default_stop_exit_code(env), "an exit code, 0 to 255"
        ),
        peer_timeout_seconds=read("trainbox_peer_timeout_seconds", read_seconds, DEFAULT_PEER_TIMEOUT_SECONDS, seconds),
        preflight=choose("trainbox_preflight", get_args(Preflight), "auto"),
        preflight_strict=read("trainbox_preflight_strict", read_switch, False, "true or false"),
        preload=read("trainbox_preload", read_on, True, "on or off"),
        drills=read("trainbox_drill", read_drills, (), "'kill RANK@STEP' or 'freeze RANK@STEP', separated by commas"),
        hide=read("trainbox_hide", read_names, (), "names, separated by commas"),
        s3_endpoint_url=env.get("S3_ENDPOINT_URL") or env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL"),
        pip_cache_dir=Path(cache) if cache else None,
        studio_local_mode=env.get("SM_STUDIO_LOCAL_MODE", "").lower() == "true",
        given=frozenset(name for name in SETTINGS if given(name)),
    )
    _require_effect(settings)
    return settings


def _without_programs(env: Mapping[str, str]) -> dict[str, str]:
    """The environment of a job whose hyperparameters name a bundled script: a program is left over in the image."""
    return {name: value for name, value in env.items() if name not in {"SAGEMAKER_PROGRAM", "TRAINBOX_MODULE"}}


def _program(named: str, module: str | None) -> str:
    """The file of a module, where one is asked for.

    Raises:
        ContractError: The request names a program, too, and it is another file.
    """
    if module is None:
        return named
    path = module.replace(".", "/")
    if named.removesuffix(".py").removesuffix("/__main__") not in {"", path}:
        raise ContractError(
            f"trainbox_module is {module!r}, and sagemaker_program {named!r}: only one of them can run",
            hint=f"leave one out, or name the module's own file: {path}.py",
        )
    return named or f"{path}.py"


def _require_effect(settings: Settings) -> None:
    """Refuse settings that cannot have an effect beside the others, whatever the program is.

    Raises:
        ContractError: There is one.
    """
    if settings.preflight_strict and settings.preflight == "off":
        raise ContractError(
            "trainbox_preflight_strict has no effect: trainbox_preflight is off",
            hint="trainbox_preflight=fast checks the hosts (`trainbox run --preflight fast`)",
        )
    frozen = next((drill for drill in settings.drills if drill.fault == "freeze"), None)
    if frozen and not settings.hang_seconds:
        raise ContractError(
            f"trainbox_drill: '{frozen}' would last for ever: with trainbox_hang_seconds=0 nobody looks for ranks that"
            " hang",
            hint="leave trainbox_hang_seconds out, or give it a limit",
        )


def _longest_grace(env: Mapping[str, str]) -> float:
    """What the platform gives: who runs the container says it in the variable, whatever the request asks for."""
    try:
        return read_seconds(env.get("TRAINBOX_GRACE_SECONDS") or "")
    except ValueError:  # not said, or malformed, which is an error only where it is all there is
        return float("inf")


def as_text(value: object) -> str:
    """A decoded value as the text it was: names and places are no numbers, also where they look like one."""
    return "" if value is None else str(value)
