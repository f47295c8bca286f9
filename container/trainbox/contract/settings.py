"""What the request says to the container itself, by a reserved hyperparameter or else by a variable."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from trainbox.contract.hyperparameters import ArgumentStyle
from trainbox.errors import ContractError

#: SageMaker kills 120 s after SIGTERM (API StopTrainingJob); 20 s are left for the supervisor to tidy and report.
DEFAULT_GRACE_SECONDS = 100.0
DEFAULT_PEER_TIMEOUT_SECONDS = 120.0

#: Every setting that has a name of its own, and what it does; docs/settings.md is generated from here.
SETTINGS: Mapping[str, str] = {
    "sagemaker_program": "the program to run: a Python or shell script, or any executable, inside the source",
    "sagemaker_submit_directory": "where the source is: `s3://…tar.gz`, an archive or a directory; else the channel"
    " `code`, else `/opt/ml/code`",
    "trainbox_script": "a bundled script by name, where no program is given",
    "trainbox_arguments": "how hyperparameters become arguments: `toolkit` (default, as sagemaker-training) or `json`"
    " (as the drivers of SDK v3)",
    "trainbox_grace_seconds": f"seconds from SIGTERM to SIGKILL, {DEFAULT_GRACE_SECONDS:g} by default",
    "trainbox_peer_timeout_seconds": "seconds to wait for the names of all hosts,"
    f" {DEFAULT_PEER_TIMEOUT_SECONDS:g} by default",
    "processes_per_host": "processes on each host, 1 by default; each gets `RANK`, `LOCAL_RANK`, `WORLD_SIZE`,"
    " `MASTER_ADDR` as torchrun sets them. Only as a hyperparameter",
}


class Settings(msgspec.Struct, frozen=True):
    """What the request says to the container itself, by a reserved hyperparameter or else by the environment."""

    program: str | None = None
    submit_directory: str | None = None
    script: str | None = None
    arguments: ArgumentStyle = "toolkit"
    processes_per_host: int = 1
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
        ContractError: A setting has the wrong type or is out of range.
    """

    def setting(name: str) -> str | None:
        return as_text(reserved.get(name)) or env.get(name.upper()) or None

    given = {
        "program": setting("sagemaker_program"),
        "submit_directory": setting("sagemaker_submit_directory"),
        "script": setting("trainbox_script"),
        "arguments": setting("trainbox_arguments"),
        "processes_per_host": as_text(reserved.get("processes_per_host")) or None,
        "grace_seconds": setting("trainbox_grace_seconds"),
        "peer_timeout_seconds": setting("trainbox_peer_timeout_seconds"),
        "s3_endpoint_url": env.get("S3_ENDPOINT_URL") or env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL"),
        "studio_local_mode": env.get("SM_STUDIO_LOCAL_MODE", "").lower() == "true",
    }
    chosen = {name: value for name, value in given.items() if value is not None and value != ""}
    try:
        settings = msgspec.convert(chosen, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise ContractError(f"{path}, or the environment: a setting of the container: {error}") from error
    if settings.processes_per_host < 1:
        raise ContractError(f"{path}: key 'processes_per_host': found {settings.processes_per_host}, expected >= 1")
    if not 0 <= settings.grace_seconds < float("inf") or not 0 <= settings.peer_timeout_seconds < float("inf"):
        raise ContractError(f"{path}, or the environment: trainbox_*_seconds: expected a number >= 0")
    cache = env.get("SAGEMAKER_MANAGED_WARMPOOL_CACHE_DIRECTORY")
    return msgspec.structs.replace(settings, pip_cache_dir=Path(cache)) if cache else settings


def as_text(value: object) -> str:
    """A decoded value as the text it was: names and places are no numbers, also where they look like one."""
    return "" if value is None else str(value)
