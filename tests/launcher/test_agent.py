"""How long the agent of a host waits for its ranks and for other hosts, by a clock that the test moves."""

import signal
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

pytest.importorskip("torch")

from torch.distributed.elastic.agent.server.api import WorkerSpec

from trainbox.contract.cluster import progress
from trainbox.contract.cluster.progress import RankProgress, StepPhase
from trainbox.contract.failures.diagnosis import Diagnosis
from trainbox.contract.job import read_job
from trainbox.diagnostics.verdict import Verdict
from trainbox.launcher.agent import RESTART_GRACE_SECONDS, Agent
from trainbox.launcher.attribution import AttemptReport
from trainbox.launcher.coordination import LOST_SECONDS, HostsLost, JobEndedElsewhere
from trainbox.launcher.ranks.processes import RankProcess

GRACE = 100.0
HOSTS = ("a", "b")


class Ranks:
    """Two ranks of this host, which end when the test says so; waiting for them moves the clock."""

    def __init__(self, host: "Host") -> None:
        self.host = host
        self.all = {0: RankProcess(), 1: RankProcess()}
        self.lost = None
        self.stop_signal = 0
        self.stop_at = float("inf")
        self.ended_after: float | None = None

    @property
    def alive(self) -> list[int]:
        return [local for local, rank in self.all.items() if rank.code is None]

    def stop(self, number: int) -> None:
        if not self.stop_signal:
            self.stop_signal, self.stop_at = number, self.host.now

    def ask(self, _number: int) -> None: ...

    def turn(self, seconds: float) -> None:
        self.host.now += seconds

    def end(self, _grace: float) -> None:
        for local in self.alive:
            self.all[local].code, self.all[local].asked = -signal.SIGKILL, {signal.SIGKILL}
        self.ended_after = self.host.now - self.host.began


class Store:
    """What this host and the other one have said."""

    def __init__(self, host: "Host", *, is_first: bool) -> None:
        self.hosts, self.host, self.is_first = HOSTS, HOSTS[not is_first], is_first
        self._host = host
        self.places: set[str] = set()
        self.ended: Verdict | None = None
        self.said: Verdict | None = None
        self.came: list[AttemptReport] = []
        self.is_silent = False

    def any_at(self, place: str) -> bool:
        return place in self.places

    def arrive(self, place: str) -> None:
        self.places.add(place)

    def silent(self) -> tuple[str, ...]:
        return ("b",) if self.is_silent else ()

    def reports(self) -> list[AttemptReport]:
        return self.came

    def publish_verdict(self, verdict: Verdict) -> None:
        self.said = verdict

    def verdict(self) -> Verdict | None:
        return self.said


class Host:
    """An agent on a clock."""

    def __init__(self, directory: Path, *, is_first: bool = True) -> None:
        self.now = self.began = 1000.0
        found = read_job(directory / "ml", {"TRAINBOX_GRACE_SECONDS": str(GRACE)})
        job = msgspec.structs.replace(found, hosts=HOSTS, current_host=HOSTS[not is_first])
        handler: Any = None
        spec = WorkerSpec(role="rank", local_world_size=2, rdzv_handler=handler, entrypoint="rank")
        self.ranks = cast("Any", Ranks(self))
        self.store = cast("Any", Store(self, is_first=is_first))
        self.agent = Agent(
            spec,
            job,
            self.ranks,
            self.store,
            scratch=directory,
            note=lambda _text: None,
            env={},
            clock=lambda: self.now,
            sleep=self._sleep,
        )
        file = directory / "progress"
        progress.create(file, 2)
        self.slots = [RankProgress(file, local) for local in range(2)]
        self.agent.detector.begin({0: 0, 1: 1}, file)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds

    @property
    def waited(self) -> float:
        return self.now - self.began


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_ranks_that_survive_a_failure_have_a_moment_to_leave(host: Host) -> None:
    host.slots[1].mark(7, StepPhase.COMPUTE)
    host.agent._end_ranks()
    assert host.ranks.ended_after == pytest.approx(RESTART_GRACE_SECONDS, abs=0.2)


@pytest.mark.parametrize("stopped_by", ["this host", "the other host"])
def test_after_a_stop_a_rank_that_may_be_saving_has_four_fifths_of_the_grace(host: Host, stopped_by: str) -> None:
    host.slots[1].mark(7, StepPhase.CHECKPOINT)
    if stopped_by == "this host":
        host.ranks.stop(signal.SIGTERM)
    else:
        host.store.places.add("stopping")
    host.agent._end_ranks()
    assert host.ranks.ended_after == pytest.approx(0.8 * GRACE, abs=0.2)
    assert host.ranks.stop_signal == signal.SIGTERM
    assert "stopping" in host.store.places


def test_after_a_stop_ranks_that_have_yet_to_make_a_step_are_not_waited_for(host: Host) -> None:
    host.ranks.all[0].code = -signal.SIGTERM
    host.slots[1].mark(0, StepPhase.JOIN)
    host.ranks.stop(signal.SIGTERM)
    host.agent._end_ranks()
    assert host.ranks.ended_after == pytest.approx(RESTART_GRACE_SECONDS, abs=0.2)


@pytest.mark.parametrize(
    ("phase", "code", "stopped", "in_vain"),
    [
        (StepPhase.JOIN, 0, True, True),
        (StepPhase.START, 0, True, True),
        (StepPhase.CHECKPOINT, 0, True, False),
        (StepPhase.JOIN, None, True, False),
        (StepPhase.JOIN, 0, False, False),
    ],
)
def test_after_a_stop_ranks_with_nothing_to_save_do_not_wait_for_ranks_that_have_left(
    host: Host, phase: StepPhase, code: int | None, *, stopped: bool, in_vain: bool
) -> None:
    host.ranks.all[0].code = code
    for slot in host.slots:
        slot.mark(0, phase)
    if stopped:
        host.ranks.stop(signal.SIGTERM)
    assert (host.agent._stopped_in_vain() is not None) == in_vain


def test_a_report_is_waited_for_until_its_host_is_silent(host: Host) -> None:
    host.ranks.end(0.0)
    host.began = host.now
    host.store.came = [AttemptReport("a")]
    verdict = host.agent._decide()
    assert host.waited == pytest.approx(LOST_SECONDS + 5, abs=0.2)
    assert verdict.lost == ("b",)
    assert verdict.diagnosis.cause.startswith("lost host b: no sign of life from its agent")
    host.store.is_silent, host.began = True, host.now
    host.agent._decide()
    assert host.waited == 0.0


def test_after_a_stop_the_report_of_another_host_may_take_its_grace(host: Host) -> None:
    host.ranks.stop(signal.SIGTERM)
    host.slots[1].mark(7, StepPhase.CHECKPOINT)
    host.store.came = [AttemptReport("a", stopping=signal.SIGTERM)]
    verdict = host.agent._decide()
    assert host.waited == pytest.approx(0.8 * GRACE + LOST_SECONDS + 5, abs=0.2)
    assert (verdict.stopped, verdict.diagnosis.exit_code) == (signal.SIGTERM, 143), (
        "a host that is gone after a stop is not lost"
    )


def test_a_host_without_a_verdict_waits_longer_than_the_first_one_for_the_reports(tmp_path: Path) -> None:
    host = Host(tmp_path, is_first=False)
    with pytest.raises(HostsLost, match="a"):
        host.agent._await_verdict()
    assert host.waited > LOST_SECONDS + 5


@pytest.mark.parametrize("is_first", [True, False])
def test_a_job_that_another_host_has_ended_is_not_waited_for(tmp_path: Path, *, is_first: bool) -> None:
    host = Host(tmp_path, is_first=is_first)
    host.ranks.end(0.0)
    host.store.ended = Verdict(Diagnosis("algorithm", "the fork server was killed", 137, host="b"))
    with pytest.raises(JobEndedElsewhere) as ended:
        host.agent._decide() if is_first else host.agent._await_verdict()
    assert ended.value.verdict == host.store.ended
    assert host.waited == 0.0
