"""Workers that take over from others, as their supervisor sees them; no worker is a process here."""

from typing import Any

import pytest

from trainbox.supervisor.endpoint.worker_table import Worker, WorkerTable
from trainbox.system.loader_protocol import CONNECTION, RETIRE, RETIRING, ForkWorker
from trainbox.system.worker_page import MOST_WORKERS, PageField, WorkerField, make_page

pytestmark = pytest.mark.process  # the channels of workers are sockets


class Link:
    """Notes what the loader is told."""

    def __init__(self) -> None:
        self.forked: list[int] = []

    def send(self, message: Any, _descriptors: Any = ()) -> None:
        if isinstance(message, ForkWorker):
            self.forked.append(message.worker)


class Table(WorkerTable):
    """One whose workers are ready when a test says so."""

    def __init__(self) -> None:
        self.page, self.link, self.now = make_page(), Link(), 0.0
        super().__init__(self.page, self.link, 60.0, 60.0, lambda: self.now)  # type: ignore[arg-type]
        self.page.header[PageField.OPEN] = 1

    def make_ready(self, *workers: Worker) -> None:
        for worker in workers:
            worker.pid = 2**22 + worker.number  # of nobody
            worker.slot.words[WorkerField.READY] = 1


def test_successors_take_over_when_all_are_ready_and_are_told_of_once_nobody_else_is_given_requests() -> None:
    table = Table()
    table.begin(2)
    old = list(table.workers)
    table.make_ready(*old)
    table.replace_all()
    table.look(0)
    assert (table.link.forked, [worker.number for worker in table.successors]) == ([0, 1, 2, 3], [2, 3])
    table.make_ready(table.successors[0])
    assert (table.promote(), table.workers, table.is_replaced()) == ([], old, False)
    table.make_ready(table.successors[1])
    assert table.promote() == old == table.retiring
    assert {worker.number for worker in table.in_turn()} == {2, 3}
    table.look(0)
    for worker in old:
        assert worker.taken_from.recv(1) == RETIRE
    assert not table.is_replaced()
    for worker in old:
        worker.taken_from.send(RETIRING)
        assert list(worker.take_returned()) == []
    assert [table.is_replaced(), table.is_replaced()] == [True, False]
    for worker in old:
        table.note_retired(worker, 0)
    assert (table.retiring, table.page.header[PageField.SLOTS]) == ([], 4)
    table.replace_all()
    table.look(0)
    assert [worker.number for worker in table.successors] == [0, 1]
    assert list(table.end()) == []


def test_a_worker_that_has_died_has_no_requests_once_others_took_over() -> None:
    """Or a server that stops would wait for them."""
    table = Table()
    table.begin(2)
    dead, alive = table.workers
    table.make_ready(dead, alive)
    dead.slot.words[WorkerField.IN_FLIGHT] = 3
    table.note_end(dead, 9)
    table.replace_all()
    table.look(0)
    table.make_ready(*table.successors)
    assert table.promote() == [alive]
    assert sum(slot.words[WorkerField.IN_FLIGHT] for slot in table.page.slots()) == 0
    alive.taken_from.send(RETIRING)
    assert list(alive.take_returned()) == []
    assert table.is_replaced()
    assert list(table.end()) == []


def test_what_a_worker_that_stands_still_has_not_taken_goes_to_others_and_it_is_asked_again() -> None:
    table = Table()
    table.begin(1)
    (old,) = table.workers
    table.make_ready(old)
    table.replace_all()
    table.look(0)
    table.make_ready(*table.successors)
    table.promote()
    old.channel.send(CONNECTION)
    table.look(0)
    assert [old.is_retiring] == [True]
    old.is_fresh = False
    assert list(table.take_back()) == []  # no descriptor was with it; the request has come back, too
    assert [old.is_retiring] == [False]
    table.look(0)
    assert old.taken_from.recv(1) == RETIRE
    assert list(table.end()) == []


def test_where_all_slots_are_taken_successors_wait_for_those_that_retire() -> None:
    table = Table()
    table.begin(MOST_WORKERS // 2 + 1)
    table.replace_all()
    table.look(0)
    assert not table.successors
    assert not table.is_replaced()
    assert list(table.end()) == []
