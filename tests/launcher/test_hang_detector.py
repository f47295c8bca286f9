"""Hang detection and fault injection by a clock that the test moves: pauses of the host, ranks that say nothing."""

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

pytest.importorskip("torch")

from trainbox.contract.cluster import progress
from trainbox.contract.cluster.progress import RankProgress, StepPhase
from trainbox.contract.cluster.ranks import Ranks
from trainbox.contract.fault_injection import read_drills
from trainbox.contract.job import read_job
from trainbox.launcher.fault_injection import FaultInjector
from trainbox.launcher.hang_detector import HangDetector
from trainbox.log_lines import emit

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
        self.slots = [RankProgress(file, local) for local in range(2)]
        coordination: Any = SimpleNamespace(host="here", hosts=("here",))
        ranks: Any = SimpleNamespace(alive=[0, 1], all={local: SimpleNamespace(pid=local) for local in range(2)})
        self.detector = HangDetector(
            read_job(directory / "ml", {}),
            coordination,
            ranks,
            self.notes.append,
            clock=lambda: self.now,
            state=self.states.__getitem__,
        )
        self.detector.begin({0: 0, 1: 1}, file)

    def hanging_after(self, seconds: float) -> float | None:
        """The first moment, in seconds from now on, at which a rank is found to hang; looks are a second apart."""
        for second in range(int(seconds) + 1):
            if self.detector.find_hanging() is not None:
                return float(second)
            self.now += 1.0
        return None


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def train(host: Host, *steps: int, phase: StepPhase = StepPhase.COMPUTE) -> None:
    for slot, step in zip(host.slots, steps, strict=True):
        slot.mark(step, phase)


def test_a_rank_that_makes_no_step_hangs_after_the_limit_and_is_named(host: Host) -> None:
    train(host, 7, 7)
    assert host.hanging_after(10) is None
    host.slots[0].mark(8, StepPhase.COMPUTE)
    found = host.hanging_after(100)
    assert found is not None
    assert found + 10 + 1 == pytest.approx(STEP, abs=2)
    alarm = host.detector.find_hanging()
    assert alarm is not None
    assert (alarm.host, alarm.hanging) == ("here", 1)
    assert alarm.why.startswith("made no progress for 3")


def test_a_host_that_was_paused_does_not_take_its_ranks_for_hanging(host: Host) -> None:
    train(host, 7, 7)
    assert host.hanging_after(5) is None
    host.now += 3600.0  # docker pause
    assert host.detector.find_hanging() is None
    assert host.hanging_after(STEP - 10) is None
    assert host.hanging_after(20) is not None, "from then on they have the same limit as ever"


@pytest.mark.parametrize("phase", [StepPhase.JOIN, StepPhase.START, StepPhase.CHECKPOINT, StepPhase.DONE])
def test_a_rank_whose_process_is_stopped_hangs_after_the_limit_of_a_step_whatever_it_is_at(
    host: Host, phase: StepPhase
) -> None:
    train(host, 0, 0, phase=phase)
    host.states[1] = "T"
    found = host.hanging_after(2 * START)
    assert found == pytest.approx(STEP, abs=2)
    alarm = host.detector.find_hanging()
    assert alarm is not None
    assert alarm.hanging == 1
    assert alarm.why.endswith("(its process is stopped)")


def test_of_ranks_that_say_nothing_only_one_that_is_stopped_is_found(host: Host) -> None:
    """A script that is not ours may take as long as it likes."""
    assert host.hanging_after(3 * START) is None
    host.states[0] = "T"
    assert host.hanging_after(2 * STEP) == pytest.approx(STEP, abs=2)
    alarm = host.detector.find_hanging()
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
    host.detector.limits = msgspec.structs.replace(host.detector.limits, step=0.0)
    train(host, 7, 7)
    host.states[1] = "T"
    assert host.hanging_after(3 * START) is None


# -- drills -----------------------------------------------------------------------------------------------------------


class Drilled(Host):
    """The same with drills, and with what is sent to ranks."""

    def __init__(self, directory: Path, drills: str) -> None:
        super().__init__(directory)
        self.sent: list[tuple[int, int]] = []
        ranks: Any = self.detector.processes
        ranks.send = lambda local, number: self.sent.append((local, int(number)))
        self.faults = FaultInjector(read_drills(drills), ranks, self.detector.step, self.notes.append)
        self.faults.begin({0: 0, 1: 1})


def test_a_drill_comes_when_its_rank_has_finished_so_many_steps(tmp_path: Path) -> None:
    host = Drilled(tmp_path, "kill 1@3")
    for step in range(3):
        train(host, 9, step)
        host.faults.inject()
    assert host.sent == []
    train(host, 9, 3)
    host.faults.inject()
    host.faults.inject()
    assert host.sent == [(1, signal.SIGKILL)]
    assert host.faults.missed() == ()


def test_a_drill_after_no_step_comes_before_the_first(tmp_path: Path) -> None:
    host = Drilled(tmp_path, "kill 0@0")
    train(host, 0, 0, phase=StepPhase.JOIN)
    host.faults.inject()
    assert host.sent == [], "it does not know yet where it resumes"
    train(host, 0, 0, phase=StepPhase.START)
    host.faults.inject()
    assert host.sent == [(0, signal.SIGKILL)]


def test_a_rank_meets_one_fault_in_an_attempt_and_the_next_in_the_next(tmp_path: Path) -> None:
    host = Drilled(tmp_path, "freeze 0@3, kill 0@3, kill 0@2")
    assert host.faults.due(0) == 2
    train(host, 5, 5)
    for _ in range(3):
        host.faults.inject()
    assert host.sent == [(0, signal.SIGKILL)]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        assert host.faults.due(0) == 3
        host.faults.begin({0: 0, 1: 1})
        host.faults.inject()
        assert host.sent[-1] == (0, number)
    assert host.faults.due(0) is None


def test_what_did_not_happen_is_told_with_how_far_its_rank_came(tmp_path: Path) -> None:
    host = Drilled(tmp_path, "kill 0@30, kill 1@3, freeze 7@1")
    host.slots[0].mark(16, StepPhase.DONE)
    assert host.faults.missed() == (
        "'kill 0@30': rank 0 finished 16 steps in all",
        "'kill 1@3': rank 1 reported no step (a session of trainbox.torch does)",
    )


def test_a_rank_waits_for_its_fault_after_the_step_of_it_and_once(tmp_path: Path) -> None:
    file = tmp_path / "slots"
    progress.create(file, 1)
    variables = {progress.PROGRESS_VARIABLE: str(file), progress.PAUSE_VARIABLE: "3"}
    slot = progress.open_progress(variables, Ranks(), emit)
    assert slot is not None
    waits: list[int] = []
    slot._pause = lambda: waits.append(progress.read(file)[0].step)  # type: ignore[method-assign]
    slot.mark(7, StepPhase.JOIN)
    for step in range(6):
        slot.mark(step, StepPhase.DATA)
        slot.mark(step, StepPhase.COMPUTE)
    assert waits == [3]


def test_rank_0_of_a_job_says_in_a_line_what_it_lacks_without_an_agent(capsys: pytest.CaptureFixture[str]) -> None:
    assert progress.open_progress({}, Ranks(), emit) is None
    assert progress.open_progress({"SM_HOSTS": "[]"}, Ranks(rank=1, world_size=2), emit) is None
    assert capsys.readouterr().err == ""
    assert progress.open_progress({"SM_HOSTS": "[]"}, Ranks(), emit) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert "no restart in place, no detection of ranks that hang or are slow, no drills" in line
