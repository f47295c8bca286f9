"""What is counted of requests, and how Prometheus is told: the sums over all workers."""

import bisect
from collections.abc import Iterator

from trainbox.system.worker_page import SECONDS_CLASSES, PageField, Slot, WorkerField, WorkerPage

_NANOSECONDS = tuple(int(seconds * 1e9) for seconds in SECONDS_CLASSES)
_SERVER_ERROR, _CLIENT_ERROR = 500, 400
#: https://prometheus.io/docs/instrumenting/exposition_formats/
_GAUGES = {
    "trainbox_requests_in_flight": ("Requests that have come and are not answered.", WorkerField.IN_FLIGHT),
    "trainbox_connections": ("Open connections.", WorkerField.CONNECTIONS),
    "trainbox_workers_ready": ("Workers that answer.", WorkerField.READY),
    "trainbox_resident_memory_bytes": (
        "Memory of the workers; what they share counts for each.",
        WorkerField.RSS_BYTES,
    ),
}


class Counters:
    """The counters of a worker.

    Args:
        slot: Its part of the page.
    """

    def __init__(self, slot: Slot) -> None:
        self._words = slot.words

    def add(self, status: int, rows: int, nanoseconds: int) -> None:
        """Count an answer."""
        words = self._words
        if status < _CLIENT_ERROR:
            words[WorkerField.ANSWERS_2XX] += 1
        elif status < _SERVER_ERROR:
            words[WorkerField.ANSWERS_4XX] += 1
        else:
            words[WorkerField.ANSWERS_5XX] += 1
        words[WorkerField.ROWS] += rows
        words[WorkerField.NANOSECONDS] += nanoseconds
        words[WorkerField.HISTOGRAM + bisect.bisect_left(_NANOSECONDS, nanoseconds)] += 1


def metrics_text(page: WorkerPage) -> str:
    """Return what `/metrics` answers."""
    return "\n".join(_lines(page)) + "\n"


def _lines(page: WorkerPage) -> Iterator[str]:
    sums = [sum(column) for column in zip(*(slot.words for slot in page.slots()), strict=True)]
    yield from _head("trainbox_requests_total", "Requests that were answered, by the class of their status.", "counter")
    for code, word in (
        ("2xx", WorkerField.ANSWERS_2XX),
        ("4xx", WorkerField.ANSWERS_4XX),
        ("5xx", WorkerField.ANSWERS_5XX),
    ):
        yield f'trainbox_requests_total{{code="{code}"}} {sums[word]}'
    yield from _head("trainbox_rows_total", "Rows that were answered.", "counter")
    yield f"trainbox_rows_total {sums[WorkerField.ROWS]}"
    yield from _head("trainbox_worker_restarts_total", "Workers that were replaced.", "counter")
    yield f"trainbox_worker_restarts_total {page.header[PageField.RESTARTS]}"
    name = "trainbox_request_seconds"
    yield from _head(name, "From the head of a request to the end of its answer.", "histogram")
    count = 0
    for place, upper in enumerate((*SECONDS_CLASSES, "+Inf")):
        count += sums[WorkerField.HISTOGRAM + place]
        yield f'{name}_bucket{{le="{upper}"}} {count}'
    yield f"{name}_sum {sums[WorkerField.NANOSECONDS] / 1e9:.9g}"
    yield f"{name}_count {count}"
    for name, (about, word) in _GAUGES.items():
        yield from _head(name, about, "gauge")
        yield f"{name} {sums[word]}"


def _head(name: str, about: str, kind: str) -> Iterator[str]:
    yield f"# HELP {name} {about}"
    yield f"# TYPE {name} {kind}"
