"""What SDK v3 copies into a container and starts there: it becomes `train`, the supervisor of the image.

It lies there alone, so it needs nothing but Python 3.8. What it was given lies beside it: `sourcecode.json` and
`distributed.json`, the dumps of the `SourceCode` and of the `Trainbox` of a `ModelTrainer`.
"""
# ruff: noqa: INP001 - the SDK copies the whole directory: an `__init__.py` here would take the place of its own

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

DRIVERS = Path(__file__).resolve().parents[1]  # /opt/ml/input/data/sm_drivers
INPUT = DRIVERS.parents[1]
OUTPUT = INPUT.with_name("output")
#: The settings of the supervisor (docs/settings.md), by the field of `Trainbox` that gives them.
SETTINGS = {
    "processes_per_host": "PROCESSES_PER_HOST",
    "launcher": "TRAINBOX_LAUNCHER",
    "arguments": "TRAINBOX_ARGUMENTS",
    "grace_seconds": "TRAINBOX_GRACE_SECONDS",
    "peer_timeout_seconds": "TRAINBOX_PEER_TIMEOUT_SECONDS",
}
#: By which the hosts of a job prove themselves to each other.
PEER_KEY = "TRAINBOX_PEER_KEY"
#: The only requirements that the supervisor installs: beside the code, on its top level.
REQUIREMENTS = (None, "auto", "requirements.txt")


def main() -> None:
    """Become the supervisor; with `--check` only say what would keep it from running the job."""
    source, distributed = read(DRIVERS / "sourcecode.json"), read(DRIVERS / "distributed.json")
    refuse_unsupported(source)
    train = find_supervisor()
    variables = {
        **settings(distributed),
        **hosts(read(INPUT / "config" / "resourceconfig.json")),
    }
    variables["SAGEMAKER_PROGRAM"] = str(source["entry_script"])
    if "--check" in sys.argv[1:]:
        return
    warn_of_a_deaf_shell()
    if distributed.get("peer_key"):
        os.environ.setdefault(PEER_KEY, str(distributed["peer_key"]))  # not as an argument, which everybody can read
    # The SDK exports its own dump of `Trainbox`, cut off where the shell left it.
    command = ["env", "-u", "SM_DISTRIBUTED_CONFIG", *(f"{name}={value}" for name, value in variables.items()), train]
    os.execvp(command[0], command)  # noqa: S606 - this process becomes `env`, which becomes `train`


def read(path: Path) -> dict[str, object]:
    """A JSON object, empty where there is no file: what is wrong with SageMaker's own the supervisor says better."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def refuse_unsupported(source: dict[str, object]) -> None:
    """What the SDK would do in its shell script has to be possible without it, too."""
    if source.get("command"):
        refuse("SourceCode(command=...) and Trainbox() exclude each other: give entry_script alone, or no Trainbox()")
    if not source.get("entry_script"):
        refuse(f"{DRIVERS / 'sourcecode.json'} names no entry_script: this is no job of sagemaker-train's ModelTrainer")
    if source.get("requirements") not in REQUIREMENTS:
        refuse(
            f"SourceCode(requirements={source['requirements']!r}): Trainbox() installs 'requirements.txt' at the top of"
            " source_dir and nothing else: name it so"
        )


def settings(distributed: dict[str, object]) -> dict[str, str]:
    """The variables of the supervisor for the fields that were given."""
    given = {name: distributed.get(name) for name in SETTINGS}
    return {SETTINGS[name]: str(value) for name, value in given.items() if value is not None}


def hosts(resources: dict[str, object]) -> dict[str, str]:
    """The variables of the SDK's own start that the supervisor does not set, having others for it."""
    names = resources.get("hosts")
    if not isinstance(names, list) or resources.get("current_host") not in names:
        return {}
    return {
        "SM_HOST_COUNT": str(len(names)),
        "SM_CURRENT_HOST_RANK": str(sorted(names).index(resources["current_host"])),
    }


def find_supervisor() -> str:
    """The path of our `train`; sagemaker-training has a program of that name as well."""
    path = shutil.which("train")
    if path is None:
        refuse(
            "there is no program `train` on PATH: this image has no trainbox; pip install trainbox in its Dockerfile"
        )
    with open(path, "rb") as file:  # noqa: PTH123 - a path of 3.8's shutil is text
        if b"trainbox" not in file.read(4096):
            refuse(f"{path} is not the `train` of trainbox: install trainbox in the image where PATH finds it first")
    return path


def warn_of_a_deaf_shell() -> None:
    """Say so where a shell stayed PID 1 (bash before 5.0): it gets the signals and passes none on."""
    first = Path("/proc/1/comm")
    if os.getpid() != 1 and first.exists() and first.read_text().strip() in {"bash", "sh"}:
        emit("WARNING: process 1 is a shell that passes no signal on: a stop will not reach the script")


def refuse(reason: str) -> NoReturn:
    """End the job with a reason where SageMaker looks for it."""
    text = f"ClientError: {reason}"
    try:
        with (OUTPUT / "failure").open("w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        emit(f"{OUTPUT / 'failure'} cannot be written: {error.strerror}")
    emit(f"FAILED: {text}")
    sys.exit(2)


def emit(text: str) -> None:
    """One line of the log."""
    sys.stderr.write(f"trainbox: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
