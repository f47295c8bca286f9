"""Builds trees as SageMaker mounts them at `/opt/ml`, and runs `train` in them as a process of its own."""

import base64
import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import msgspec

from tests.support.waiting import LIMIT
from trainbox.system.procfs import read_stat

#: Longer than any test needs: only a hanging supervisor meets it.
SECONDS = LIMIT
#: What the environment of the test run might have and a job must not depend on.
_FOREIGN = ("SAGEMAKER_", "TRAINBOX_", "SM_", "AWS_", "PYTHON", "PIP_", "TRAINING_JOB_", "S3_ENDPOINT_URL", "COVERAGE_")


class Run(msgspec.Struct, frozen=True):
    """What a supervisor did."""

    code: int
    stdout: bytes
    stderr: bytes
    failure: str | None

    @property
    def log(self) -> str:
        """What it wrote on stderr, as text."""
        return self.stderr.decode(errors="replace")


class Tree:
    """A tree that is being built; each method writes one thing and gives the tree back."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "input/config"
        self.code = root / "code"
        self.model = root / "model"
        self.output = root / "output"
        self.failure_file = root / "output/failure"
        self.config.mkdir(parents=True)
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End what a failed test left running."""
        for process in self._started:
            process.kill()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
            process.wait()

    def write(self, path: str, content: str | bytes, *, mode: int = 0o644) -> "Tree":
        """Any file below the root."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        target.chmod(mode)
        return self

    def hyperparameters(self, **values: object) -> "Tree":
        """`hyperparameters.json`, each value a string, as the API passes them."""
        return self.hyperparameters_from({name: str(value) for name, value in values.items()})

    def hyperparameters_from(self, values: Mapping[str, str]) -> "Tree":
        """The same, for names that are no Python identifiers."""
        return self.write("input/config/hyperparameters.json", json.dumps(values))

    def hosts(self, *names: str, current: str | None = None) -> "Tree":
        """`resourceconfig.json`."""
        content = {"current_host": current or names[0], "hosts": names, "network_interface_name": "lo"}
        return self.write("input/config/resourceconfig.json", json.dumps(content))

    def channel(self, name: str, files: Mapping[str, str | bytes]) -> "Tree":
        """One more channel, in File mode."""
        path = self.config / "inputdataconfig.json"
        channels = json.loads(path.read_text()) if path.exists() else {}
        channels[name] = {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated"}
        (self.root / "input/data" / name).mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            self.write(f"input/data/{name}/{file}", content)
        return self.write("input/config/inputdataconfig.json", json.dumps(channels))

    def program(self, content: str | bytes, name: str = "train.py", *, mode: int = 0o644) -> "Tree":
        """A program in the code directory; what runs unless `SAGEMAKER_PROGRAM` says otherwise is `train.py`."""
        return self.write(f"code/{name}", content, mode=mode)

    def environment(self, env: Mapping[str, str]) -> dict[str, str]:
        """The environment of a container with this tree: nothing of the test run's own that could matter."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        # Checks of several hosts take seconds: tests/health/test_preflight.py has them as they are by default.
        ours = {"TRAINBOX_ROOT": str(self.root), "SAGEMAKER_PROGRAM": "train.py", "TRAINBOX_PREFLIGHT": "off"}
        return {**kept, **ours, **env}

    def start(
        self,
        env: Mapping[str, str] | None = None,
        *,
        prefix: Sequence[str] = (),
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
    ) -> "subprocess.Popen[bytes]":
        """Start `train`; `finish` waits for its end."""
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "trainbox.supervisor"],
            env=self.environment(env or {}),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            cwd=self.root,
        )
        self._started.append(process)
        return process

    def run(self, *, prefix: Sequence[str] = (), **env: str) -> Run:
        """Run `train` to its end."""
        return self.finish(self.start(env, prefix=prefix))

    def finish(self, process: "subprocess.Popen[bytes]") -> Run:
        """Wait for a `train` that was started; a hanging one is killed, and the test fails."""
        try:
            stdout, stderr = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            _, stderr = process.communicate()
            raise AssertionError(f"train did not end within {SECONDS} s:\n{(stderr or b'').decode()[-2000:]}") from None
        return Run(process.returncode, stdout or b"", stderr or b"", self.failure())

    def failure(self) -> str | None:
        """The text of the failure file, `None` where there is none."""
        return self.failure_file.read_text(encoding="utf-8") if self.failure_file.exists() else None

    def leftovers(self) -> list[str]:
        """Files that something half-written left: staging directories, parts of a failure file."""
        hidden = [path for path in self.root.rglob(".*") if "__pycache__" not in path.parts]
        return sorted(str(path.relative_to(self.root)) for path in hidden)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    return not read_stat(pid).has_ended


def wheel(name: str, content: str, version: str = "1.0") -> bytes:
    """The smallest wheel there is: one module."""
    metadata = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": content,
        f"{metadata}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{metadata}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    hashes = {
        file: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        for file, text in files.items()
    }
    files[f"{metadata}/RECORD"] = "".join(f"{file},sha256={value},\n" for file, value in hashes.items())
    with io.BytesIO() as buffer:
        with zipfile.ZipFile(buffer, "w") as archive:
            for file, text in files.items():
                archive.writestr(file, text)
        return buffer.getvalue()
