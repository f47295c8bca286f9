"""`serve` as a process: its port, its workers and its log; requests by the standard library."""

import functools
import http.client
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.support.addresses import free_port
from tests.support.forks import FOREIGN
from tests.support.waiting import LIMIT, eventually
from trainbox.system.procfs import read_stat, read_stats

_FAKE = Path(__file__).with_name("fake_loader.py")
_SERVE = "import sys; from trainbox.supervisor.serve import main; sys.exit(main())"
_SERVE_FAKE = "import sys; from trainbox.supervisor.serve import main; sys.exit(main((sys.argv.pop(),)))"


def _has_ended(pid: int) -> bool:
    return read_stat(pid).has_ended


class Answered:
    """An answer: its status, its headers by their names in lower case, and its body."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()


class ServeProcess:
    """A server that runs until the block ends.

    Args:
        root: Of the tree: the model lies in `model`.
        variables: Beside those that every server of a test has.
        obedient: How many seconds the obedient model of `fake_loader` loads; None serves what lies in `model`.
        prefix: What runs it: a command that becomes the server by exec.
    """

    def __init__(
        self,
        root: Path,
        variables: Mapping[str, str] = {},
        *,
        obedient: float | None = 0.0,
        prefix: Sequence[str] = (),
    ) -> None:
        self.port = free_port()
        self._log = root / "serve.log"
        (root / "model").mkdir(parents=True, exist_ok=True)
        if obedient is not None:
            (root / "model" / "obedient").write_text(str(obedient))
        given = {
            "TRAINBOX_ROOT": str(root),
            "TRAINBOX_BIND_ADDRESS": "127.0.0.1",
            "SAGEMAKER_BIND_TO_PORT": str(self.port),
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        program = (_SERVE,) if obedient is None else (_SERVE_FAKE, str(_FAKE))
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-P", "-c", *program],
                env={**kept, **given, **variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End it, and what it leaves."""
        workers = self.everybody
        self.process.kill()
        self.process.wait()
        for pid in workers:
            eventually(functools.partial(_has_ended, pid), f"{pid} ends with its supervisor", logs=lambda: self.log)

    @property
    def log(self) -> str:
        """What it has written so far."""
        return self._log.read_text(errors="replace")

    def connect(self) -> http.client.HTTPConnection:
        """A connection of its own."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)

    def ask(self, path: str, body: bytes | None = None, headers: Mapping[str, str] = {}) -> Answered:
        """One request over a connection of its own; with a body it is a POST."""
        connection = self.connect()
        try:
            connection.request("GET" if body is None else "POST", path, body, dict(headers))
            return Answered(connection.getresponse())
        finally:
            connection.close()

    def invoke(self, body: bytes, headers: Mapping[str, str] = {}) -> Answered:
        """Likewise to /invocations."""
        return self.ask("/invocations", body, headers)

    def until_ready(self) -> Self:
        """Wait until it answers."""
        self.until(lambda: "trainbox: serving on port" in self.log, "the server is ready")
        return self

    def until(self, predicate: Callable[[], object], what: str) -> None:
        """Wait for something while it runs."""
        eventually(predicate, what, logs=lambda: self.log, ended=lambda: self.process.poll() is not None)

    @property
    def loader(self) -> int:
        """The process id of the loader."""
        return next(pid for pid, stat in read_stats() if stat.parent == self.process.pid and not stat.has_ended)

    @property
    def workers(self) -> list[int]:
        """Those of its workers that live."""
        loaders = {pid for pid, stat in read_stats() if stat.parent == self.process.pid}
        return sorted(pid for pid, stat in read_stats() if stat.parent in loaders and not stat.has_ended)

    @property
    def everybody(self) -> list[int]:
        """All processes that it has started."""
        loaders = {pid for pid, stat in read_stats() if stat.parent == self.process.pid}
        return [pid for pid, stat in read_stats() if pid in loaders or stat.parent in loaders]

    def stop(self) -> int:
        """Ask it to leave; its exit code."""
        os.kill(self.process.pid, signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Its exit code once it has ended."""
        return self.process.wait(LIMIT)
