"""The two sides of a comparison: a contract, what sagemaker-training 5.1.4 makes of it, and what trainbox does."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import msgspec
import pytest

from trainbox.contract.job import read_job
from trainbox.errors import ContractError, TrainboxError
from trainbox.supervisor.plan import plan
from trainbox.supervisor.program.choice import Program, choose
from trainbox.system.machine import read_machine

REPOSITORY = Path(__file__).parents[2]
INCUMBENT_BIN = REPOSITORY / ".venv-incumbent" / "bin"

HYPERPARAMETERS = "hyperparameters.json"
RESOURCES = "resourceconfig.json"
CHANNELS = "inputdataconfig.json"
_TRUE = shutil.which("true") or "/bin/true"


def require_incumbent() -> None:
    """Skip where sagemaker-training is not installed beside us; in CI that is a failure, not a choice."""
    if (INCUMBENT_BIN / "train").exists():
        return
    reason = "sagemaker-training 5.1.4 is not installed in .venv-incumbent: run `make venv-incumbent`"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


class Contract(msgspec.Struct, frozen=True):
    """The text of each config file (those that are there), and the environment of the container."""

    files: Mapping[str, str]
    env: Mapping[str, str] = {}

    def read(self, name: str) -> dict[str, object]:
        """The object in a file; an empty one where it holds none."""
        try:
            value = json.loads(self.files.get(name, "{}"))
        except (ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    def with_file(self, name: str, value: object) -> Self:
        return msgspec.structs.replace(self, files={**self.files, name: json.dumps(value)})

    def without_variables(self, *names: str) -> Self:
        return msgspec.structs.replace(self, env={name: self.env[name] for name in self.env if name not in names})

    def hyperparameters(self) -> dict[str, object]:
        """Decoded as sagemaker-training decodes them."""
        return {name: _decode(value) for name, value in self.read(HYPERPARAMETERS).items()}

    def write(self, root: Path) -> None:
        """Write the files, and no others, below a root."""
        config = root / "input" / "config"
        config.mkdir(parents=True, exist_ok=True)
        for path in config.iterdir():
            path.unlink()
        for name, text in self.files.items():
            (config / name).write_bytes(text.encode("utf-8", "surrogateescape"))


def contract(
    hyperparameters: Mapping[str, object] | None = None,
    resources: Mapping[str, object] | None = None,
    channels: Mapping[str, object] | None = None,
    **env: str,
) -> Contract:
    """A contract of a job that runs `train.py`, unless it says otherwise."""
    files = {
        HYPERPARAMETERS: json.dumps({"sagemaker_program": "train.py", **(hyperparameters or {})}),
        RESOURCES: json.dumps({"current_host": "algo-1", "hosts": ["algo-1"], **(resources or {})}),
        CHANNELS: json.dumps(channels or {}),
    }
    return Contract(files, env)


def _decode(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        decoded: object = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return decoded


class Answer(msgspec.Struct, frozen=True):
    """What a script is given, or why it is not started."""

    #: `step: exception` of every step that fails; the job runs if there is none.
    errors: tuple[str, ...]
    #: The variables that the container did not have, or had with another value.
    variables: Mapping[str, str] = {}
    arguments: tuple[str, ...] = ()

    def comparable(self) -> object:
        """Equal for two sides exactly if they do the same: all that refuse are alike."""
        return "refused" if self.errors else (dict(self.variables), self.arguments)

    def without_error(self, error: str) -> Self:
        return msgspec.structs.replace(self, errors=tuple(found for found in self.errors if found != error))


class Incumbent:
    """A process that answers for sagemaker-training, for one tree."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._base = {"HOME": str(root), "PATH": os.environ["PATH"]}
        self._process = subprocess.Popen(
            [INCUMBENT_BIN / "python", Path(__file__).with_name("oracle.py")],
            env={**self._base, "SAGEMAKER_BASE_DIR": str(root)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def answer(self, given: Contract) -> Answer:
        given.write(self.root)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({**self._base, **given.env}) + "\n")
        self._process.stdin.flush()
        return msgspec.json.decode(self._process.stdout.readline(), type=Answer)

    def close(self) -> None:
        self._process.communicate(timeout=300)


def _refusal(error: TrainboxError, root: Path) -> Answer:
    if isinstance(error, ContractError):
        assert str(root / "input" / "config") in error.message  # it says which file is wrong
        return Answer(("contract: ContractError",))
    return Answer((f"program: {type(error).__name__}",))


def answer_of_trainbox(given: Contract, root: Path) -> Answer:
    """What trainbox does with the same contract, up to the start of the script."""
    given.write(root)
    env = {"HOME": str(root), "PATH": os.environ["PATH"], **given.env}
    try:
        job = read_job(root, env)
        name = choose(job).name
    except TrainboxError as error:
        return _refusal(error, root)
    program = Program(name=name, command=(sys.executable, name), directory=job.layout.code_dir)
    # What a script is told is compared, not who starts it: a request that asks for ranks gets torch elastic's from us.
    plain = msgspec.structs.replace(job, settings=msgspec.structs.replace(job.settings, launcher="plain"))
    (child,) = plan(plain, program, env=env, machine=read_machine()).children
    arguments = child.argv[2:]
    try:
        os.waitpid(os.posix_spawn(_TRUE, [_TRUE, *arguments], child.environment), 0)
    except OSError as error:  # `launch.supervise` makes a ProgramError of it; any other exception is a defect
        return Answer((f"exec: {type(error).__name__}",))
    added = {name: value for name, value in child.environment.items() if env.get(name) != value}
    return Answer((), added, tuple(arguments))
