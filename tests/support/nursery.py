"""Starts scripts as processes of their own, forked from one that has imported what all of them need.

To import scikit-learn, skops and Matplotlib takes a script longer than to grow the few trees of a test.
"""

import itertools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

import msgspec

SCRIPT = Path(__file__).parents[2] / "train_scripts" / "random_forest_train.py"
#: Longer than any test needs: only a process that hangs meets it.
SECONDS = 90.0
_FOREIGN = ("SAGEMAKER_", "TRAINBOX_", "SM_", "RANK", "LOCAL_", "WORLD_SIZE", "MASTER_", "COVERAGE_")
_NUMBERS = itertools.count()

_PROGRAM = """
import json, os, runpy, sys
import matplotlib.backends.backend_agg, matplotlib.figure, matplotlib.ticker
import trainbox.toolkit, trainbox.sklearn.packing
trainbox.sklearn.packing.load_skops(of_forests=False)
pids = {}
for line in sys.stdin:
    order = json.loads(line)
    if "wait" in order:
        _, status = os.waitpid(order["wait"], 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
        continue
    pid = os.fork()
    if not pid:
        break
    print(pid, flush=True)
else:
    sys.exit()
os.setsid()
for name, number in (("/dev/null", 0), (order["stdout"], 1), (order["stderr"], 2)):
    os.dup2(os.open(name, os.O_RDWR | os.O_APPEND), number)
os.environ.clear()
os.environ.update(order["environment"])
os.chdir(order["directory"])
sys.argv = order["argv"]
sys.path[0] = os.path.dirname(sys.argv[0])
exec(order["first"])
runpy.run_path(sys.argv[0], run_name="__main__")
"""

#: To run first where nobody looks at pictures: to draw them takes longer than all the rest of a test's job.
_NO_PICTURES = """
import trainbox.sklearn.model
trainbox.sklearn.model.draw_curves = trainbox.sklearn.model.draw_importance = lambda *_, **__: None
"""

#: To run first: sends its own process a signal right after it has logged so many trees.
SIGNAL_AT_TREES = """
import trainbox
log = trainbox.log
def log_and_signal(step, values):
    log(step, values)
    if step == {trees}:
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

    def __init__(self, nursery: "Nursery", pid: int, stdout: IO[bytes], stderr: IO[bytes]) -> None:
        self.pid = pid
        self._nursery, self._stdout, self._stderr = nursery, stdout, stderr

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def stderr(self) -> str:
        """What it has written so far."""
        return _content(self._stderr)

    def until(self, text: str) -> None:
        """Wait until it has written something."""
        end = time.monotonic() + SECONDS
        while text not in self.stderr():
            assert time.monotonic() < end, self.stderr()
            time.sleep(0.01)

    def wait(self) -> Ended:
        """Wait for its end."""
        code = int(self._nursery.ask({"wait": self.pid}, hanging=self))
        with self._stdout, self._stderr:
            return Ended(code, _content(self._stdout), _content(self._stderr))


class Nursery:
    """A context manager; leaving it ends what still runs.

    Args:
        pictures: Whether learning curves and importance are drawn.
    """

    def __init__(self, *, pictures: bool = True) -> None:
        self._always_first = "" if pictures else _NO_PICTURES

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

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
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        # Files, not pipes, which would fill up while nobody reads.
        stdout, stderr = tempfile.NamedTemporaryFile(), tempfile.NamedTemporaryFile()  # noqa: SIM115 - closed by wait
        pid = self.ask(
            {
                "argv": [str(script), *arguments],
                "environment": {**kept, "TRAINBOX_ROOT": str(root), **(environment or {})},
                "first": self._always_first + first,
                "directory": str(directory or root),
                "stdout": stdout.name,
                "stderr": stderr.name,
            }
        )
        return Child(self, int(pid), stdout, stderr)

    def run(self, root: Path, *arguments: str, **more: Any) -> Ended:
        """Run a script to its end."""
        return self.start(root, *arguments, **more).wait()

    def ask(self, order: Mapping[str, object], *, hanging: Child | None = None) -> str:
        """Give an order and wait for the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], SECONDS)[0]:
            said = ""
            if hanging:
                hanging.signal(signal.SIGKILL)
                said = hanging.stderr()
            raise AssertionError(f"no answer to {order} within {SECONDS} s: {said}")
        return self._process.stdout.readline().decode()


def hosts(count: int) -> list[str]:
    """Names of hosts that are addresses of this machine, which no other test has."""
    number = next(_NUMBERS) % 250 + 1
    return [f"127.{os.getpid() % 250 + 1}.{number}.{place}" for place in range(1, count + 1)]


def make_job(
    root: Path,
    hyperparameters: Mapping[str, str],
    *,
    names: Sequence[str] = ("algo-1",),
    name: str = "algo-1",
    channels: Mapping[str, str] | None = None,
) -> Path:
    """Write the files that SageMaker gives a host.

    Args:
        root: Of the tree.
        hyperparameters: As they are given.
        names: All hosts.
        name: This one.
        channels: By name, how each is distributed; its files lie below `input/data`, or come there later.
    """
    config = root / "input" / "config"
    config.mkdir(parents=True, exist_ok=True)
    given = {
        channel: {"TrainingInputMode": "File", "S3DistributionType": how} for channel, how in (channels or {}).items()
    }
    (config / "hyperparameters.json").write_text(json.dumps(dict(hyperparameters)))
    (config / "inputdataconfig.json").write_text(json.dumps(given))
    (config / "resourceconfig.json").write_text(json.dumps({"current_host": name, "hosts": list(names)}))
    (config / "checkpointconfig.json").write_text(json.dumps({"LocalPath": "/opt/ml/checkpoints"}))
    for channel in given:
        (root / "input" / "data" / channel).mkdir(parents=True, exist_ok=True)
    return root


def _content(file: IO[bytes]) -> str:
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")
