"""What a worker notes of each request: counters for `/metrics`, and a line in the log."""

import os
import time

from trainbox.contract.hosting import Hosting
from trainbox.log_lines import emit
from trainbox.serving.counters import Counters
from trainbox.system.worker_page import PageField, WorkerField, WorkerPage

#: Lines of requests that went well, of all workers together.
_LOG_PER_SECOND = 100
_WARNING = 30
_FIRST_ERROR = 400


class RequestLog:
    """The requests of a worker.

    Args:
        hosting: The contract, read.
        page: What the workers share.
        number: Of this worker.
    """

    def __init__(self, hosting: Hosting, page: WorkerPage, number: int) -> None:
        slot = page.slot(number)
        self._log_level = hosting.log_level
        self._words = slot.words
        self._counters = Counters(slot)
        self._prefix = os.urandom(4).hex()
        self._requests = 0
        self._budget = _Budget(_LOG_PER_SECOND / max(1, page.header[PageField.WORKERS]))

    def begin(self) -> tuple[int, str]:
        """Note that a request has come.

        Returns:
            When, for `end`, and the id of the request.
        """
        began = time.monotonic_ns()
        self._requests += 1
        self._words[WorkerField.IN_FLIGHT] += 1
        self._words[WorkerField.LAST_REQUEST] = began
        return began, f"{self._prefix}-{self._requests:x}"

    def end(self, path: str, status: int, rows: int, began: int, told: str) -> None:
        """Note that it has been answered.

        Args:
            path: As the log has it.
            status: Of the answer.
            rows: How many were answered.
            began: When it came.
            told: What the line ends with.
        """
        ended = time.monotonic_ns()
        self._words[WorkerField.IN_FLIGHT] -= 1
        self._words[WorkerField.LAST_REQUEST] = ended
        self._counters.add(status, rows, ended - began)
        if status < _FIRST_ERROR and (self._log_level >= _WARNING or not self._budget.take(ended)):
            return
        counted = (" 1 row" if rows == 1 else f" {rows:,} rows") if rows else ""
        emit(f"POST {path} {status}{counted} {(ended - began) / 1e6:.2f} ms {told}")


class _Budget:
    """So many lines a second."""

    def __init__(self, per_second: float) -> None:
        self._per_second = max(1.0, per_second)
        self._left = self._per_second
        self._second = 0

    def take(self, now: int) -> bool:
        second = now // 1_000_000_000
        if second != self._second:
            self._second, self._left = second, self._per_second
        self._left -= 1
        return self._left >= 0
