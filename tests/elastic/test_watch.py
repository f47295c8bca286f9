"""The agent's eyes on its ranks, by a clock that the test moves: hangs, pauses of the host, ranks that say nothing."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

pytest.importorskip("torch")

from trainbox.contract.job import read_job
from trainbox.elastic import progress
from trainbox.elastic.progress import Progress, Section
from trainbox.elastic.watch import Watch

#: Of the settings by default.
STEP, START = 30.0, 1200.0


class Host:
    """Two ranks of one host, whose marks, states and clock a test makes."""

    def __init__(self, directory: Path) -> None:
        self.now = 1000.0
        self.states = {0: "S", 1: "S"}
        self.notes: list[str] = []
        file = directory / "progress"
        progress.create(file, 2)
        self.slots = [Progress(file, local) for local in range(2)]
        council: Any = SimpleNamespace(host="here", hosts=("here",))
        ranks: Any = SimpleNamespace(alive=[0, 1], all={local: SimpleNamespace(pid=local) for local in range(2)})
        self.watch = Watch(
            read_job(directory / "ml", {}),
            council,
            ranks,
            self.notes.append,
            clock=lambda: self.now,
            state=self.states.__getitem__,
        )
        self.watch.begin({0: 0, 1: 1}, file)

    def hanging_after(self, seconds: float) -> float | None:
        """The first moment, in seconds from now on, at which a rank is found to hang; looks are a second apart."""
        for second in range(int(seconds) + 1):
            if self.watch.find_hanging() is not None:
                return float(second)
            self.now += 1.0
        return None


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def train(host: Host, *steps: int, section: Section = Section.COMPUTE) -> None:
    for slot, step in zip(host.slots, steps, strict=True):
        slot.mark(step, section)


def test_a_rank_that_makes_no_step_hangs_after_the_limit_and_is_named(host: Host) -> None:
    train(host, 7, 7)
    assert host.hanging_after(10) is None
    host.slots[0].mark(8, Section.COMPUTE)
    found = host.hanging_after(100)
    assert found is not None
    assert found + 10 + 1 == pytest.approx(STEP, abs=2)
    alarm = host.watch.find_hanging()
    assert alarm is not None
    assert (alarm.host, alarm.hanging) == ("here", 1)
    assert alarm.why.startswith("made no progress for 3")


def test_a_host_that_was_paused_does_not_take_its_ranks_for_hanging(host: Host) -> None:
    train(host, 7, 7)
    assert host.hanging_after(5) is None
    host.now += 3600.0  # docker pause
    assert host.watch.find_hanging() is None
    assert host.hanging_after(STEP - 10) is None
    assert host.hanging_after(20) is not None, "from then on they have the same limit as ever"


@pytest.mark.parametrize("section", [Section.JOIN, Section.START, Section.CHECKPOINT, Section.DONE])
def test_a_rank_whose_process_is_stopped_hangs_after_the_limit_of_a_step_whatever_it_is_at(
    host: Host, section: Section
) -> None:
    train(host, 0, 0, section=section)
    host.states[1] = "T"
    found = host.hanging_after(2 * START)
    assert found == pytest.approx(STEP, abs=2)
    alarm = host.watch.find_hanging()
    assert alarm is not None
    assert alarm.hanging == 1
    assert alarm.why.endswith("(its process is stopped)")


def test_of_ranks_that_say_nothing_only_one_that_is_stopped_is_found(host: Host) -> None:
    """A script that is not ours may take as long as it likes."""
    assert host.hanging_after(3 * START) is None
    host.states[0] = "T"
    assert host.hanging_after(2 * STEP) == pytest.approx(STEP, abs=2)
    alarm = host.watch.find_hanging()
    assert alarm is not None
    assert alarm.hanging == 0


def test_a_process_that_is_stopped_for_moments_does_not_hang(host: Host) -> None:
    """As by a profiler, again and again."""
    train(host, 7, 7)
    for _ in range(10):
        host.states[1] = "T"
        assert host.hanging_after(STEP - 5) is None
        host.states[1] = "S"
        train(host, 7, 7)
        assert host.hanging_after(1) is None


def test_a_limit_of_0_never_looks(host: Host) -> None:
    host.watch.limits = msgspec.structs.replace(host.watch.limits, step=0.0)
    train(host, 7, 7)
    host.states[1] = "T"
    assert host.hanging_after(3 * START) is None
