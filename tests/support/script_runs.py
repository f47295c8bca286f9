"""Scripts that grow trees, started as processes of their own, and the files that SageMaker gives their hosts."""

import json
import signal
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

import msgspec

from tests.support.addresses import addresses
from tests.support.forks import RUN_SCRIPT, Fork, content, fork, own_environment
from tests.support.waiting import eventually

SCRIPT = Path(__file__).parents[2] / "train_scripts" / "random_forest_train.py"
#: To run first where nobody looks at pictures: to draw them takes longer than all the rest of a test's job.
NO_MATPLOTLIB = "import sys; sys.modules['matplotlib'] = None"

#: To run first: sends its own process a signal right after it has logged a step (of a forest: so many trees).
SIGNAL_AT_STEP = """
import trainbox
log = trainbox.log
def log_and_signal(step, values):
    log(step, values)
    if step == {step}:
        import os
        os.kill(os.getpid(), {number})
trainbox.log = log_and_signal
"""


class Ended(msgspec.Struct, frozen=True):
    """How a script has ended: by a signal n its code is -n."""

    returncode: int
    stdout: str
    stderr: str


class Child:
    """A script that runs."""

    def __init__(self, process: Fork, stdout: IO[bytes], stderr: IO[bytes]) -> None:
        self.pid = process.pid
        self._process, self._stdout, self._stderr = process, stdout, stderr

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.signal(number)

    def stderr(self) -> str:
        """What it has written so far."""
        return content(self._stderr)

    def until(self, text: str) -> None:
        """Wait until it has written something."""
        eventually(lambda: text in self.stderr(), repr(text), logs=self.stderr, ended=self._process.has_ended)

    def wait(self) -> Ended:
        """Wait for its end."""
        code = self._process.wait()
        with self._stdout, self._stderr:
            assert code is not None, f"it does not end: {content(self._stderr)}"
            return Ended(code, content(self._stdout), content(self._stderr))

    def end(self) -> None:
        """Kill it where it still runs."""
        self._process.end()
        self._stdout.close()
        self._stderr.close()


class ScriptRuns:
    """A context manager; leaving it ends what still runs.

    Args:
        pictures: Whether learning curves and importance are drawn.
    """

    def __init__(self, *, pictures: bool = True) -> None:
        self._always_first = "" if pictures else NO_MATPLOTLIB
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.end()

    def start(
        self,
        root: Path,
        *arguments: str,
        script: Path = SCRIPT,
        first: str = "",
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
    ) -> Child:
        """Start a script below a root.

        Args:
            root: Of the tree, as `/opt/ml`.
            arguments: Of the script.
            script: Its file.
            first: Python to run before it, in the same process.
            environment: Variables for it.
            directory: Where it runs.
        """
        stdout, stderr = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - closed by wait, or end
        process = fork(
            f"{self._always_first}\n{first}\n{RUN_SCRIPT}",
            argv=[script, *arguments],
            environment={**own_environment(), "TRAINBOX_ROOT": str(root), **(environment or {})},
            directory=directory or root,
            stdout=stdout,
            stderr=stderr,
        )
        child = Child(process, stdout, stderr)
        self._children.append(child)
        return child

    def run(self, root: Path, *arguments: str, **more: Any) -> Ended:
        """Run a script to its end."""
        return self.start(root, *arguments, **more).wait()


def run_script(script: Path, root: Path, *arguments: str, first: str = "", pictures: bool = False) -> Ended:
    """Run one script to its end."""
    with ScriptRuns(pictures=pictures) as runs:
        return runs.run(root, *arguments, script=script, first=first)


def hosts(count: int) -> list[str]:
    """Names of hosts that are addresses of this machine, which no other test has."""
    return addresses(count)


def make_job(
    root: Path,
    hyperparameters: Mapping[str, str],
    *,
    names: Sequence[str] = ("algo-1",),
    name: str = "algo-1",
    channels: Mapping[str, str] | None = None,
    files: Mapping[str, str | bytes] | None = None,
) -> Path:
    """Write the files that SageMaker gives a host.

    Args:
        root: Of the tree.
        hyperparameters: As they are given.
        names: All hosts.
        name: This one.
        channels: By name, how each is distributed; its files lie below `input/data`, or come there later.
        files: By channel and name (`train/a.csv`), the content of files; their channels need not be named.
    """
    config = root / "input" / "config"
    config.mkdir(parents=True, exist_ok=True)
    files = files or {}
    of_files = dict.fromkeys((path.partition("/")[0] for path in files), "FullyReplicated")
    distributed = of_files | dict(channels or {})
    given = {channel: {"TrainingInputMode": "File", "S3DistributionType": how} for channel, how in distributed.items()}
    (config / "hyperparameters.json").write_text(json.dumps(dict(hyperparameters)))
    (config / "inputdataconfig.json").write_text(json.dumps(given))
    (config / "resourceconfig.json").write_text(json.dumps({"current_host": name, "hosts": list(names)}))
    (config / "checkpointconfig.json").write_text(json.dumps({"LocalPath": "/opt/ml/checkpoints"}))
    for channel in given:
        (root / "input" / "data" / channel).mkdir(parents=True, exist_ok=True)
    for path, written in files.items():
        (root / "input" / "data" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "input" / "data" / path).write_bytes(written.encode() if isinstance(written, str) else written)
    return root
