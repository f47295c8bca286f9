"""A failure beside a broken GPU is the GPU's: which finding, which rank, which code and which words. All pure."""

import signal
from pathlib import Path

import pytest

from trainbox.contract.failures.failure import compose
from trainbox.contract.job import Job, read_job
from trainbox.diagnostics.cause import Cause
from trainbox.diagnostics.finding import Finding, as_hint, blame, in_words
from trainbox.diagnostics.verdict import RankFailure, Verdict, read_verdict, write_verdict
from trainbox.launcher.attribution import diagnose as diagnose_rank
from trainbox.launcher.attribution import diagnose_lost, find_faults, find_victim
from trainbox.supervisor.failure_reason import diagnose
from trainbox.supervisor.outcome import Exit, Outcome

XID = Finding(
    "nvml.xid", "b", "gpu3", "fail", "Xid 79: the GPU has fallen off the bus", "none", "hardware", "replace it"
)
ECC = Finding("nvml.ecc_uncorrected", "b", "gpu3", "fail", 2, 0, "hardware", "replace it")
SOFT = Finding("nvml.xid", "b", "gpu1", "warn", "Xid 31: GPU memory page fault", "none", "transient", "look at the log")
BEGINS = (
    "HARDWARE b gpu3 nvml.xid: Xid 79: the GPU has fallen off the bus (limit: none); also b gpu3 nvml.ecc_uncorrected"
)


def rank(number: int, host: str, *, killed: int = 0, hung: str = "", time: float = 0.0, text: str = "") -> RankFailure:
    cause = Cause(text=text, where="train.py:14 in main", exception="RuntimeError") if text else None
    family = ("builtins.RuntimeError",) if text else ()
    code = 128 + killed if killed else 1
    return RankFailure(number, host, code, killed, cause, family, time, step=7, hung=hung)


PEER_GONE = rank(0, "a", text="Connection closed by peer", time=1.0)
DEAD = rank(9, "b", killed=signal.SIGABRT, time=2.0)
HUNG = rank(2, "a", killed=signal.SIGKILL, hung="made no progress for 30.0 s in COMPUTE after step 7", time=3.0)


def of_rank(failure: RankFailure, *hints: str) -> Verdict:
    return Verdict(diagnose_rank(failure, hints), failure)


def outcome(code: int = 1, *findings: Finding, said: str = "", stopped_by: int = 0) -> Outcome:
    exit_ = Exit("script", code, max(0, code - 128), stderr=said, stdout="")
    return Outcome((exit_,), stopped_by, False, 0, None, 0, 1.0, findings=findings)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    config = tmp_path / "input/config"
    config.mkdir(parents=True)
    (config / "resourceconfig.json").write_text('{"current_host": "a", "hosts": ["a", "b"]}')
    return read_job(tmp_path, {})


def test_what_is_hard_is_why_whichever_rank_failed_first() -> None:
    assert find_faults([SOFT, XID, ECC], PEER_GONE, stopping=False) == (XID, ECC)
    assert find_faults([SOFT], PEER_GONE, stopping=False) == ()
    assert find_faults([XID], None, stopping=False) == (XID,)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_who_ends_because_the_job_was_stopped_did_not_die_of_hardware(number: int) -> None:
    assert find_faults([XID], rank(0, "a", killed=number), stopping=True) == ()
    assert find_faults([XID], rank(0, "a", killed=signal.SIGSEGV), stopping=True) == (XID,)


def test_the_rank_that_died_of_it_is_one_of_its_host_if_there_is_one() -> None:
    assert find_victim([PEER_GONE, HUNG, DEAD], [XID]) is DEAD
    assert find_victim([PEER_GONE, HUNG], [XID]) is HUNG
    assert find_victim([], [XID]) is None


def test_it_is_said_in_words_that_rules_can_match() -> None:
    assert blame([XID, ECC]).cause == BEGINS
    assert in_words(ECC) == "2 (limit: 0)"
    assert as_hint(SOFT) == "b gpu1 reported Xid 31: GPU memory page fault, look at the log"


def test_all_hosts_say_the_same_and_leave_with_the_same_code(job: Job, tmp_path: Path) -> None:
    verdict = Verdict(blame([XID, ECC], followed=diagnose_rank(DEAD)), DEAD)
    write_verdict(tmp_path, verdict)
    assert read_verdict(tmp_path) == verdict
    found = diagnose(outcome(78), job, tmp_path, verdict)
    assert (found.kind, found.exit_code, found.host, found.device, found.rank) == ("hardware", 78, "b", "gpu3", 9)
    assert compose(found) == (
        f"{BEGINS}\nwhat followed: rank 9 was killed by SIGABRT after step 7\n"
        "at the script (exit code 134, rank 9, b)\nhint: replace it"
    )


def test_a_host_that_was_lost_beside_a_fault_is_what_followed(job: Job, tmp_path: Path) -> None:
    verdict = Verdict(blame([XID], followed=diagnose_lost(("b",))), lost=("b",))
    assert compose(diagnose(outcome(78), job, tmp_path, verdict)).splitlines()[1:] == [
        "what followed: lost host b: no sign of life from its agent",
        "hint: replace it",
    ]


def test_a_verdict_without_hardware_stands_whatever_this_host_has_found_since(job: Job, tmp_path: Path) -> None:
    found = diagnose(outcome(1, XID), job, tmp_path, of_rank(rank(0, "a", text="ValueError: x")))
    assert (found.exit_code, found.rank, found.cause) == (1, 0, "ValueError: x")


def test_hints_stand_behind_what_a_rank_said(job: Job, tmp_path: Path) -> None:
    verdict = of_rank(rank(0, "a", text="x"), "first", "second")
    assert diagnose(outcome(1), job, tmp_path, verdict).hint == "first; second"
    assert diagnose(outcome(137), job, tmp_path, of_rank(HUNG, "first")).hint.endswith("/hang; first")


def test_a_plain_script_that_failed_beside_a_fault_gets_it_first(job: Job, tmp_path: Path) -> None:
    failed = outcome(1, SOFT, XID, ECC, said="ValueError: no such kernel")
    found = diagnose(failed, job, tmp_path)
    assert found.exit_code == 78
    assert compose(found) == (
        f"{BEGINS}\nwhat followed: ValueError: no such kernel\nat the script (exit code 1, a)\nhint: replace it"
    )


def test_a_plain_script_beside_a_soft_finding_keeps_its_code_and_gets_a_hint(job: Job, tmp_path: Path) -> None:
    failed = outcome(1, SOFT, said="ValueError: no such kernel")
    found = diagnose(failed, job, tmp_path)
    assert (found.kind, found.exit_code, found.hint) == ("script", 1, as_hint(SOFT))


def test_a_plain_script_that_was_stopped_did_not_fail_of_hardware(job: Job, tmp_path: Path) -> None:
    assert diagnose(outcome(143, XID, stopped_by=signal.SIGTERM), job, tmp_path).exit_code == 143
    assert diagnose(outcome(3, XID, stopped_by=signal.SIGTERM), job, tmp_path).exit_code == 78
