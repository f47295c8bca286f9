"""What the request says to the container itself, by a reserved hyperparameter or else by a variable."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, TypeVar, cast, get_args

import msgspec

from trainbox.contract.drills import Drill, read_drills
from trainbox.contract.hyperparameters import ArgumentStyle
from trainbox.contract.ranks import DEFAULT_PORT
from trainbox.errors import ContractError

T = TypeVar("T")
D = TypeVar("D")

#: SageMaker kills 120 s after SIGTERM (API StopTrainingJob); 20 s are left for the supervisor to tidy and report.
DEFAULT_GRACE_SECONDS = 100.0
DEFAULT_PEER_TIMEOUT_SECONDS = 120.0
DEFAULT_MAX_RESTARTS = 3
#: Five times the processors of the largest instance. Each costs the supervisor two open files, and planning some time.
MOST_PROCESSES_PER_HOST = 1024
DEFAULT_HANG_SECONDS = 30.0
DEFAULT_START_SECONDS = 1200.0

Launcher = Literal["auto", "plain", "torchrun"]
Preflight = Literal["auto", "off", "fast", "full"]

#: Every setting that has a name of its own, and what it does; docs/settings.md is generated from here.
SETTINGS: Mapping[str, str] = {
    "sagemaker_program": "the program to run: a Python or shell script, or any executable, inside the source",
    "sagemaker_submit_directory": "where the source is: `s3://…tar.gz`, an archive or a directory; else the channel"
    " `code`, else `/opt/ml/code`",
    "trainbox_script": "a bundled script by name, where no program is given",
    "trainbox_arguments": "how hyperparameters become arguments: `toolkit` (default, as sagemaker-training) or `json`"
    " (as the drivers of SDK v3)",
    "trainbox_grace_seconds": f"seconds from SIGTERM to SIGKILL, {DEFAULT_GRACE_SECONDS:g} by default",
    "trainbox_peer_timeout_seconds": "seconds to wait for the names of all hosts, and in the bundled XGBoost and forest"
    f" scripts for all processes of the job, {DEFAULT_PEER_TIMEOUT_SECONDS:g} by default",
    "processes_per_host": f"processes on each host, at most {MOST_PROCESSES_PER_HOST}; each gets"
    " `RANK`, `LOCAL_RANK`, `WORLD_SIZE`, `MASTER_ADDR`,"
    " `MASTER_PORT` as torchrun sets them. By default 1, or with the launcher `torchrun` one per GPU. The variable"
    f" `MASTER_PORT` of the request names the port of the first host where they meet, {DEFAULT_PORT} by default",
    "trainbox_launcher": "who starts the processes: `plain` (the supervisor itself), `torchrun` (torch elastic:"
    " restarts in place, finds hangs, says which rank failed first) or `auto` (default): `torchrun` where the bundled"
    " PyTorch script runs or SDK v2's `distribution=` asks for it",
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
    " (launcher `torchrun`, a script with a session)",
}


class Settings(msgspec.Struct, frozen=True):
    """What the request says to the container itself, by a reserved hyperparameter or else by the environment."""

    program: str | None = None
    submit_directory: str | None = None
    script: str | None = None
    arguments: ArgumentStyle = "toolkit"
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
    peer_timeout_seconds: float = DEFAULT_PEER_TIMEOUT_SECONDS
    s3_endpoint_url: str | None = None
    pip_cache_dir: Path | None = None
    studio_local_mode: bool = False


def read_settings(reserved: Mapping[str, object], env: Mapping[str, str], path: Path) -> Settings:
    """Each setting from its hyperparameter, else from the variable of the same name in capitals.

    Args:
        reserved: The hyperparameters for the container, decoded.
        env: The environment of the container.
        path: Where the hyperparameters came from, for messages.

    Raises:
        ContractError: A setting is none of its choices or out of range; the message says which, and where it stands.
    """

    def given(name: str) -> str:
        return as_text(reserved.get(name)) or env.get(name.upper(), "")

    def read(name: str, reader: Callable[[str], T], default: D, expected: str) -> T | D:
        text = given(name)
        try:
            return reader(text) if text else default
        except ValueError:
            place = f"{path}: key {name!r}" if reserved.get(name) is not None else f"the variable {name.upper()}"
            raise ContractError(f"{place}: found {text!r}, expected {expected}") from None

    cache = env.get("SAGEMAKER_MANAGED_WARMPOOL_CACHE_DIRECTORY")
    seconds = "a number of seconds, 0 or more"
    count = f"a whole number, 1 to {MOST_PROCESSES_PER_HOST}"
    return Settings(
        program=given("sagemaker_program") or None,
        submit_directory=given("sagemaker_submit_directory") or None,
        script=given("trainbox_script") or None,
        arguments=read("trainbox_arguments", _read_style, "toolkit", " or ".join(get_args(ArgumentStyle))),
        processes_per_host=read("processes_per_host", _read_count, None, count),
        launcher=read("trainbox_launcher", _read_launcher, "auto", " or ".join(get_args(Launcher))),
        backend=given("trainbox_backend") or None,
        max_restarts=read("trainbox_max_restarts", _read_restarts, DEFAULT_MAX_RESTARTS, "a whole number, 0 or more"),
        hang_seconds=read("trainbox_hang_seconds", _read_seconds, DEFAULT_HANG_SECONDS, seconds),
        start_seconds=read("trainbox_start_seconds", _read_seconds, DEFAULT_START_SECONDS, seconds),
        grace_seconds=read("trainbox_grace_seconds", _read_seconds, DEFAULT_GRACE_SECONDS, seconds),
        peer_timeout_seconds=read(
            "trainbox_peer_timeout_seconds", _read_seconds, DEFAULT_PEER_TIMEOUT_SECONDS, seconds
        ),
        preflight=read("trainbox_preflight", _read_preflight, "auto", " or ".join(get_args(Preflight))),
        preflight_strict=read("trainbox_preflight_strict", _read_switch, False, "true or false"),
        preload=read("trainbox_preload", _read_on, True, "on or off"),
        drills=read("trainbox_drill", read_drills, (), "'kill RANK@STEP' or 'freeze RANK@STEP', separated by commas"),
        s3_endpoint_url=env.get("S3_ENDPOINT_URL") or env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL"),
        pip_cache_dir=Path(cache) if cache else None,
        studio_local_mode=env.get("SM_STUDIO_LOCAL_MODE", "").lower() == "true",
    )


def _read_launcher(text: str) -> Launcher:
    for launcher in get_args(Launcher):
        if launcher == text:
            return cast("Launcher", launcher)
    raise ValueError(text)


def _read_preflight(text: str) -> Preflight:
    for preflight in get_args(Preflight):
        if preflight == text:
            return cast("Preflight", preflight)
    raise ValueError(text)


def _read_switch(text: str) -> bool:
    """As SDKs pass a bool on: JSON's word, or Python's."""
    if text.lower() not in {"true", "false"}:
        raise ValueError(text)
    return text.lower() == "true"


def _read_on(text: str) -> bool:
    if text not in {"on", "off"}:
        raise ValueError(text)
    return text == "on"


def _read_restarts(text: str) -> int:
    count = int(text)
    if count < 0:
        raise ValueError(text)
    return count


def _read_style(text: str) -> ArgumentStyle:
    for style in get_args(ArgumentStyle):
        if style == text:
            return cast("ArgumentStyle", style)
    raise ValueError(text)


def _read_count(text: str) -> int:
    count = int(text)
    if not 1 <= count <= MOST_PROCESSES_PER_HOST:
        raise ValueError(text)
    return count


def _read_seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise ValueError(text)
    return seconds


def as_text(value: object) -> str:
    """A decoded value as the text it was: names and places are no numbers, also where they look like one."""
    return "" if value is None else str(value)
