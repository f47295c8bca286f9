"""The page that workers share: what one writes another reads, and what a new process forgets."""

import pytest

from trainbox.system.worker_page import MOST_WORKERS, PageField, WorkerField, WorkerPage, make_page


@pytest.fixture
def page() -> WorkerPage:
    return make_page()


def test_what_is_written_into_a_slot_is_read_through_another_mapping(page: WorkerPage) -> None:
    page.header[PageField.SLOTS] = 2
    page.slot(1).words[WorkerField.ROWS] = 2**40
    seen = [slot.words[WorkerField.ROWS] for slot in WorkerPage(page.descriptor).slots()]
    assert seen == [0, 2**40]


def test_a_new_process_keeps_the_counters_of_its_number_and_nothing_else(page: WorkerPage) -> None:
    slot = page.slot(MOST_WORKERS - 1)
    slot.words[WorkerField.ANSWERS_2XX] = 5
    slot.words[WorkerField.READY] = slot.words[WorkerField.IN_FLIGHT] = 1
    slot.leave_words("é" * 5000)
    assert set(slot.last_words) == {"é"}
    slot.begin()
    assert (slot.words[WorkerField.ANSWERS_2XX], slot.words[WorkerField.READY]) == (5, 0)
    assert (slot.words[WorkerField.IN_FLIGHT], slot.last_words) == (0, "")
