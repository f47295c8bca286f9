"""The process backend with stand-ins for the supervisor: deadlines, first failures, logs that cannot be written."""

import datetime as dt
import os
import re
import signal
import sys
from pathlib import Path

import msgspec
import pytest

from tests.support.waiting import eventually
from trainbox.errors import RunError
from trainbox.local.backends.hosts import Ended, HostEnd, StopReason
from trainbox.local.backends.isolation import Isolation
from trainbox.local.backends.process import run_hosts
from trainbox.local.interrupts import Interrupts
from trainbox.local.plan import RunPlan, plan_run
from trainbox.local.request import RunRequest
from trainbox.system.procfs import process_state
from trainbox.system.subreaper import children

pytestmark = pytest.mark.process

#: Ignores SIGTERM, and tells when it does.
STUBBORN = "trap '' TERM; echo ready; while :; do sleep 0.05; done"


class Notes:
    """A listener that only remembers."""

    def __init__(self) -> None:
        self.text: dict[str, bytes] = {}
        self.said: list[str] = []

    def output(self, host: str, data: bytes) -> None:
        self.text[host] = self.text.get(host, b"") + data

    def note(self, text: str) -> None:
        self.said.append(text)

    def started(self, host: str) -> None:
        pass

    def stopping(self, reason: StopReason) -> None:
        pass

    def tick(self) -> None:
        pass


#: A host begins with the signals of a stop held back, as `train` expects it, and lets them through.
_UNBLOCKS = (
    "import os, signal, sys\n"
    "signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})\n"
    "os.execv('/bin/sh', ['/bin/sh', '-c', sys.argv[1]])"
)


def plan(
    out: Path, *scripts: str, leave: float = 120.0, max_run: float | None = None, **hyperparameters: str
) -> RunPlan:
    request = RunRequest(
        script="x",
        hyperparameters=hyperparameters,
        inherited={"PATH": "/usr/bin:/bin"},
        hosts=len(scripts),
        job_name="job",
        out=out,
        max_run=max_run,
        isolation=Isolation(can_name_hosts=True),
        started=dt.datetime(2026, 11, 5, tzinfo=dt.UTC),
    )
    planned = plan_run(request)
    (out / "logs").mkdir()
    hosts = [
        msgspec.structs.replace(host, argv=(sys.executable, "-ISc", _UNBLOCKS, script))
        for host, script in zip(planned.hosts, scripts, strict=True)
    ]
    return msgspec.structs.replace(planned, hosts=tuple(hosts), seconds_to_leave=leave)


def run(planned: RunPlan, notes: Notes | None = None) -> Ended:
    with Interrupts() as interrupts:
        return run_hosts(planned, notes or Notes(), interrupts)


def test_what_ignores_sigterm_is_killed_when_its_time_is_over(tmp_path: Path) -> None:
    notes, before = Notes(), children()
    planned = plan(tmp_path, "", leave=0.3, max_run=0.3)
    # It never lets SIGTERM through, also not while it starts.
    deaf = msgspec.structs.replace(planned.hosts[0], argv=(sys.executable, "-ISc", "import time; time.sleep(600)"))
    ended = run(msgspec.structs.replace(planned, hosts=(deaf,)), notes)
    assert ended == Ended((HostEnd("algo-1", 137),), stop="max-run", killed=True)
    assert notes.said[:2] == [
        "--max-run 0.3 is over: SIGTERM to algo-1, SIGKILL in 0.3 s",
        "still there 0.3 s after SIGTERM: SIGKILL to algo-1",
    ]
    assert children() == before


def test_the_first_failure_is_the_jobs_even_if_others_end_worse_later(tmp_path: Path) -> None:
    failing = f"while ! grep -q ready {tmp_path}/logs/algo-1.log; do sleep 0.02; done; exit 7"
    ended = run(plan(tmp_path, "trap 'exit 9' TERM; echo ready; while :; do sleep 0.02; done", failing))
    assert ended == Ended((HostEnd("algo-1", 9), HostEnd("algo-2", 7)), stop="failure", failed="algo-2")


def test_all_hosts_are_waited_for(tmp_path: Path) -> None:
    ended = run(plan(tmp_path, "echo first", "sleep 0.5; echo second"))
    assert ended == Ended((HostEnd("algo-1", 0), HostEnd("algo-2", 0)))
    assert (tmp_path / "logs" / "algo-2.log").read_text() == "second\n"


def test_a_host_that_closes_its_output_is_waited_for_all_the_same(tmp_path: Path) -> None:
    ended = run(plan(tmp_path, "exec >&- 2>&-; sleep 0.5; exit 3"))
    assert ended == Ended((HostEnd("algo-1", 3),), failed="algo-1")


def test_a_host_is_started_with_stops_held_back_until_it_can_say_that_it_was_stopped(tmp_path: Path) -> None:
    planned = plan(tmp_path, "")
    (host,) = planned.hosts
    looks = ("/bin/grep", "SigBlk", "/proc/self/status")
    run(msgspec.structs.replace(planned, hosts=(msgspec.structs.replace(host, argv=looks),)))
    blocked = int((tmp_path / "logs/algo-1.log").read_text().split()[1], 16)
    assert all(blocked >> (number - 1) & 1 for number in (signal.SIGTERM, signal.SIGINT))
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.parametrize(("number", "code"), [(9, 137), (11, 139), (15, 143)])
def test_a_signal_is_128_and_its_number(tmp_path: Path, number: int, code: int) -> None:
    why = f"the supervisor of algo-1 was killed by {signal.Signals(number).name}"
    assert run(plan(tmp_path, f"kill -{number} $$")).hosts == (HostEnd("algo-1", code, why),)


def test_a_supervisor_that_stays_frozen_is_ended_and_named(tmp_path: Path) -> None:
    ended = run(plan(tmp_path, "sleep 1000 & kill -STOP $$", "exec sleep 1000", trainbox_hang_seconds="0.5"))
    first, second = ended.hosts
    assert re.fullmatch(r"the supervisor of algo-1 was stopped \(SIGSTOP\) for [\d.]+ s and was ended", first.reason)
    assert (first.exit_code, ended.failed, ended.stop) == (137, "algo-1", "failure")
    assert second == HostEnd("algo-2", 143), "it was asked to leave, which says nothing of it"


def test_a_frozen_supervisor_hears_a_stop(tmp_path: Path) -> None:
    before = children()

    class Stops(Notes):
        """Asks for the end once the host is frozen."""

        def output(self, host: str, data: bytes) -> None:
            super().output(host, data)
            if b"ready" in data:
                eventually(lambda: any(process_state(pid) == "T" for pid in children() - before), "a frozen host")
                os.kill(os.getpid(), signal.SIGTERM)

    script = "trap 'echo heard; exit 0' TERM; echo ready; kill -STOP $$; while :; do sleep 0.05; done"
    ended = run(plan(tmp_path, script, trainbox_hang_seconds="0"), Stops())
    assert ended == Ended((HostEnd("algo-1", 0),), stop="interrupt")
    assert (tmp_path / "logs" / "algo-1.log").read_text() == "ready\nheard\n"


def test_output_is_kept_and_relayed_to_the_last_byte(tmp_path: Path) -> None:
    notes = Notes()
    run(plan(tmp_path, "head -c 1000000 /dev/zero; printf end >&2"), notes)
    assert notes.text["algo-1"] == b"\0" * 1_000_000 + b"end"
    assert (tmp_path / "logs" / "algo-1.log").read_bytes() == notes.text["algo-1"]


def test_a_log_that_cannot_be_written_stops_the_job(tmp_path: Path) -> None:
    planned = plan(tmp_path, "echo lost; sleep 60")
    (tmp_path / "logs" / "algo-1.log").symlink_to("/dev/full")
    notes, before = Notes(), children()
    with pytest.raises(RunError, match=r"logs/algo-1.log cannot be written: No space left on device"):
        run(planned, notes)
    assert notes.text["algo-1"] == b"lost\n"
    assert "disk full, log output stopped" in notes.said[0]
    assert children() == before


def test_a_host_that_cannot_be_started_takes_the_started_ones_with_it(tmp_path: Path) -> None:
    planned = plan(tmp_path, "sleep 60", "true")
    missing = msgspec.structs.replace(planned.hosts[1], argv=("/no/such/python", "-P", "-m", "any"))
    before = children()
    with pytest.raises(RunError, match="host algo-2 cannot be started"):
        run(msgspec.structs.replace(planned, hosts=(planned.hosts[0], missing)))
    assert children() == before


def test_what_a_killed_host_leaves_running_is_ended(tmp_path: Path) -> None:
    notes, before = Notes(), children()
    run(plan(tmp_path, "setsid sleep 60 & sleep 0.1; kill -9 $$"), notes)
    assert notes.said == ["1 process of the job outlived it: killed"]
    assert children() == before
