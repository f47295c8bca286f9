"""Starts the ranks of a job by hand, as torchrun would: one process each, told by variables which one it is."""

import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.support.addresses import free_port
from tests.support.forks import RUN_SCRIPT, content, fork, own_environment
from tests.support.waiting import eventually


class Ranks:
    """The ranks of one attempt; leaving the block ends those that still run."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        root: Path,
        size: int = 2,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        # A pipe would fill up.
        self.logs = [tempfile.TemporaryFile() for _ in range(size)]  # noqa: SIM115 - closed in __exit__
        shared = {"TRAINBOX_ROOT": str(root), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        self._forks = []
        for rank, log in enumerate(self.logs):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
            told = {name: str(value) for name, value in place.items()}
            self._forks.append(
                fork(
                    RUN_SCRIPT,
                    argv=command,
                    environment={**own_environment(), **shared, **(environment or {}), **told},
                    directory=Path.cwd(),
                    stdout=log,
                    stderr=log,
                )
            )
        self.pids = [each.pid for each in self._forks]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._forks:
            each.end()
        for log in self.logs:
            log.close()

    def log(self, rank: int) -> str:
        """What a rank has written so far."""
        return content(self.logs[rank])

    def _all(self) -> str:
        return "\n".join(self.log(rank) for rank in range(len(self.pids)))

    def wait(self) -> list[int]:
        """Exit codes of all ranks."""
        codes = [each.wait() for each in self._forks]
        hanging = [rank for rank, code in enumerate(codes) if code is None]
        assert not hanging, f"ranks {hanging} do not end:\n{self._all()}"
        return [code for code in codes if code is not None]

    def until(self, ready: Callable[[], bool], what: str = "what the test waits for") -> None:
        """Wait until something is so."""
        eventually(ready, what, logs=self._all, ended=lambda: all(each.has_ended() for each in self._forks))

    def signal(self, number: signal.Signals, *ranks: int) -> None:
        """To the group of each rank, as a supervisor does."""
        for rank in ranks:
            self._forks[rank].signal(number)


def finish(command: Sequence[str | Path], *, root: Path, size: int = 2, **environment: str) -> list[str]:
    """Run all ranks to their good end; gives the log of each."""
    with Ranks(command, root=root, size=size, environment=environment) as ranks:
        codes = ranks.wait()
        logs = [ranks.log(rank) for rank in range(size)]
    assert codes == [0] * size, "\n".join(logs)
    return logs
