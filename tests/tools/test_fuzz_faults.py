"""The pure parts of `make fuzz-faults`: what a seed draws, which process is which, what a story is found guilty of."""

from pathlib import Path

import msgspec
import pytest

from tools.fuzz_faults import checkpoints, report
from tools.fuzz_faults.jobs import seconds_allowed
from tools.fuzz_faults.judge import Finding, judge, ranks_hit, wrong_with
from tools.fuzz_faults.plan import JOBS, Event, Fault, Job, Mark, draw, kinds_of
from tools.fuzz_faults.procs import Known, Process, find, kinds, place
from tools.fuzz_faults.report import Result
from tools.fuzz_faults.story import Attempt, HostFailure, Story, read_failure
from tools.fuzz_faults.strike import Hit

EVENTS = [draw(seed, number) for seed in (1, 2) for number in range(400)]
WHOLE, OTHER = "a" * 64, "b" * 64


def attempt(*, hits: tuple[Hit, ...] = (), **more: object) -> Attempt:
    values = {
        "exit_code": 0,
        "status": "Completed",
        "reason": "",
        "said": "",
        "seconds": 5.0,
        "allowed": 100.0,
        "resumed": {"algo-1": ()},
        "restarted": (),
        "checkpoints": {"checkpoints": 20},
        "digest": WHOLE,
        "has_archive": True,
    }
    return Attempt(hits=hits, **{**values, **more})  # type: ignore[arg-type]


def failed(reason: str, fault: Fault, **more: object) -> Attempt:
    hit = Hit(fault, 7, {"checkpoints": 20})
    return attempt(hits=(hit,), exit_code=1, status="Failed", reason=reason, digest="", has_archive=False, **more)


def story(*attempts: Attempt, job: Job = JOBS[0], again: bool = False, left: tuple[str, ...] = ()) -> Story:
    faults = tuple(hit.fault for one in attempts for hit in one.hits)
    event = Event(1, 0, job, Mark("step"), faults, again)
    return Story(event=event, attempts=attempts, left_in_memory=left, seconds=9.0)


def found(one: Story) -> list[str]:
    return [finding.what for finding in judge(one, WHOLE)]


KILL = Fault("kill", "rank", 1, 0)
GOOD_REASON = "AlgorithmError: rank 0 was killed by SIGKILL\nat the script (exit code 137, rank 0), exit code: 137"


# ---- what is drawn ----


def test_an_event_depends_on_its_seed_and_number_alone() -> None:
    assert [draw(1, number) for number in range(400)] == EVENTS[:400]
    assert EVENTS[0] != EVENTS[400]


def test_every_kind_of_process_is_hit_in_every_way_and_in_every_algorithm() -> None:
    hit = {(fault.blow, fault.kind) for event in EVENTS for fault in event.faults}
    assert {kind for _, kind in hit} == {kind for job in JOBS for kind in kinds_of(job)}
    assert {("kill", kind) for _, kind in hit if kind != "disk"} <= hit
    assert {("freeze", kind) for _, kind in hit if kind != "disk"} <= hit
    assert {event.job for event in EVENTS} == set(JOBS)
    assert {event.mark.sign for event in EVENTS} == {"start", "process", "step", "checkpoint", "saving"}
    assert any(event.again and event.twice for event in EVENTS)
    assert any(len(event.faults) > 1 for event in EVENTS)


def test_what_is_hit_is_part_of_the_job() -> None:
    for event in EVENTS:
        for fault in event.faults:
            assert fault.kind in kinds_of(event.job), event
            assert 1 <= fault.host <= event.job.hosts, event
            assert 0 <= fault.rank < event.job.ranks, event
        assert len({(fault.kind, fault.host, fault.rank) for fault in event.faults}) == len(event.faults), event


# ---- which process is which ----


def processes(*rows: tuple[int, int, str]) -> dict[int, Process]:
    return {pid: Process(pid, parent, pid, "S", tuple(line.split())) for pid, parent, line in rows}


def test_ranks_agents_and_fork_servers_are_told_apart_by_their_parents() -> None:
    agent = "python -P -m trainbox.launcher 2 /dev/shm/trainbox-3 train.py"
    all_of_them = processes(
        (2, 1, "python trainbox run pytorch"),
        (3, 2, "python -P -m trainbox.supervisor"),
        (4, 3, agent),
        (5, 4, agent),
        (6, 5, agent),
        (7, 5, agent),
        (8, 7, agent),
        (9, 6, "python -P -m trainbox.torch.checkpoints.writer checkpoints 3"),
    )
    known = place(all_of_them, kinds(all_of_them, 2, {3: 1}), {3: 1})
    assert known == [
        Known(2, "run"),
        Known(3, "supervisor", 1),
        Known(4, "agent", 1),
        Known(5, "fork server", 1),
        Known(6, "rank", 1, 0),
        Known(7, "rank", 1, 1),
        Known(9, "writer", 1),
    ]
    assert find(known, Fault("kill", "rank", 1, 1), ranks=2) == Known(7, "rank", 1, 1)
    assert find(known, Fault("kill", "rank", 1, 1), ranks=4) is None


def test_the_processes_of_a_tree_job_are_those_of_their_host() -> None:
    all_of_them = processes(
        (2, 1, "python trainbox run xgboost"),
        (3, 2, "python -P -S /x/trainbox/local/backends/namespace.py {} -m trainbox.supervisor"),
        (4, 2, "python -P -m trainbox.supervisor"),
        (5, 3, "python xgboost_train.py --num_round 5"),
        (6, 4, "python xgboost_train.py --num_round 5"),
        (9, 5, "python -P /x/trainbox/xgboost/collective/tracker.py 127.0.0.1 2 300"),
        (10, 5, "python xgboost_train.py --num_round 5"),
    )
    hosts = {3: 1, 4: 2}
    known = place(all_of_them, kinds(all_of_them, 2, hosts), hosts)
    assert [(one.pid, one.kind, one.host) for one in known[1:]] == [
        (3, "supervisor", 1),
        (4, "supervisor", 2),
        (5, "script", 1),
        (6, "script", 2),
        (9, "tracker", 1),
    ]


def test_a_host_that_has_lost_trainbox_run_is_still_known() -> None:
    all_of_them = processes((3, 1, "python -P -m trainbox.supervisor"), (5, 3, "python xgboost_train.py"))
    known = place(all_of_them, kinds(all_of_them, 2, {3: 2}), {3: 2})
    assert [(one.kind, one.host) for one in known] == [("supervisor", 2), ("script", 2)]


# ---- what is found ----


def test_a_job_that_comes_back_to_the_same_model_is_innocent() -> None:
    assert found(story(failed(GOOD_REASON, KILL), attempt())) == []
    assert found(story(attempt(hits=(Hit(KILL, 7, {"checkpoints": 20}),), restarted=(0,)))) == []


def test_another_model_is_a_wrong_result() -> None:
    assert found(story(failed(GOOD_REASON, KILL), attempt(digest=OTHER))) == ["wrong result"]


def test_a_job_that_never_completes_is_found() -> None:
    again = attempt(status="Failed", exit_code=1, reason=GOOD_REASON, digest="")
    assert set(found(story(failed(GOOD_REASON, KILL), again))) == {"no recovery"}


def test_a_checkpoint_that_is_gone_or_not_used_is_a_lost_result() -> None:
    gone = failed(GOOD_REASON, KILL, checkpoints={"checkpoints": 10})
    assert found(story(gone, attempt())) == ["lost result"]
    older = attempt(resumed={"algo-1": (10,), "algo-2": (20,)})
    (finding,) = judge(story(failed(GOOD_REASON, KILL), older), WHOLE)
    assert finding == Finding("lost result", "algo-1 resumes from step 10, and there was one of step 20")


def test_the_model_of_an_earlier_attempt_must_stay() -> None:
    assert found(story(attempt(), failed(GOOD_REASON, KILL), attempt(), again=True)) == ["lost result"]
    kept = msgspec.structs.replace(failed(GOOD_REASON, KILL), digest=WHOLE, has_archive=True)
    assert found(story(attempt(), kept, attempt(), again=True)) == []


def test_what_runs_on_or_stays_is_found() -> None:
    assert found(story(failed(GOOD_REASON, KILL, hung=("python",)), attempt(), left=("/dev/shm/a",))) == ["hang"]
    assert found(story(failed(GOOD_REASON, KILL, orphans=("S python",)), attempt())) == ["orphan"]
    assert found(story(attempt(), left=("/dev/shm/trainbox-1-a",))) == ["left behind"]


def test_a_job_that_trains_on_without_trainbox_run_is_found() -> None:
    lone = failed("", Fault("kill", "run"), went_on=True)
    lone = msgspec.structs.replace(lone, exit_code=137, status="InProgress")
    assert found(story(lone, attempt())) == ["orphan"]


def test_a_traceback_of_trainbox_run_is_no_reason_and_one_of_a_script_may_be() -> None:
    said = 'Traceback (most recent call last):\n  File "/x/{}", line 3, in main\nOSError: x\n'
    of_script, own = (said.format(place) for place in ("train_scripts/xgboost_train.py", "trainbox/cli.py"))
    hit = (Hit(Fault("file size", "run"), 7, {}),)
    assert found(story(attempt(hits=hit, status="InProgress", exit_code=1, said=of_script), attempt())) == []
    assert found(story(attempt(hits=hit, status="InProgress", exit_code=1, said=own), attempt())) == ["false reason"]


def test_what_any_host_says_is_judged() -> None:
    other = HostFailure("ClientError: stopped by SIGTERM before the script was started")
    assert found(story(failed(GOOD_REASON, KILL, failures={"algo-2": other}), attempt())) == ["false reason"]
    early = HostFailure(other.text, had_started=False)
    assert found(story(failed(GOOD_REASON, KILL, failures={"algo-2": early}), attempt())) == []


@pytest.mark.parametrize(("said", "had_started"), [("", False), ("train: 20 rows\n", True)])
def test_the_failure_of_a_host_ends_its_log(said: str, had_started: bool) -> None:
    log = f"trainbox: job j; running python x.py in /x\n{said}trainbox: FAILED: AlgorithmError: x\ntrainbox: hint: y\n"
    assert read_failure(log) == HostFailure("AlgorithmError: x\nhint: y", had_started=had_started)
    assert read_failure("trainbox: exit code 0\n") is None


def test_a_wait_is_longer_under_load_and_where_a_supervisor_is_only_killed_late() -> None:
    event = Event(1, 0, Job("xgboost", 2), Mark("step"), (Fault("kill", "script"),))
    idle, busy = (seconds_allowed(event, 5.0, busy=busy) for busy in (0.0, 2.0))
    frozen = msgspec.structs.replace(event, faults=(Fault("freeze", "supervisor"),))
    assert idle < busy
    assert seconds_allowed(frozen, 5.0, busy=0.0) == idle + 120


def test_ranks_that_start_again_for_one_that_was_not_hit_are_found() -> None:
    other = attempt(hits=(Hit(KILL, 7, {}),), restarted=(1,))
    assert found(story(other)) == ["false reason"]


@pytest.mark.parametrize(
    ("reason", "fault", "wrong"),
    [
        (GOOD_REASON, KILL, ""),
        ("AlgorithmError: , exit code: 1", KILL, "no reason"),
        ("AlgorithmError: a defect of trainbox, exit code: 70", KILL, "says that trainbox is defective"),
        ("AlgorithmError: rank 3 hangs, exit code: 5", KILL, "names rank [3], and [0] was hit"),
        ("AlgorithmError: PEER algo-2: gone, exit code: 5", KILL, "names host [2], and [1] was hit"),
        ("AlgorithmError: gone\nat the script (exit code 5, algo-2), exit code: 5", KILL, ""),
        ("AlgorithmError: gone\nhint: the log of algo-2 says why, exit code: 5", KILL, ""),
        ("ClientError: train/part-0.csv: value is not a number", Fault("memory", "script"), "blames the data"),
        ("AlgorithmError: stopped by SIGTERM", Fault("stop", "supervisor"), ""),
        ("PeerError: algo-1 is lost", Fault("stop", "supervisor"), "does not say that it was stopped"),
        (
            "AlgorithmError: the tracker does not start",
            Fault("kill", "writer"),
            "names the tracker, and writer was hit",
        ),
        ("AlgorithmError: XGBoostError: x\nStack trace: 0x1", Fault("kill", "tracker"), "is a backtrace"),
        ("AlgorithmError: rank 3 of algo-2: disk full", Fault("full disk", "disk"), ""),
    ],
)
def test_a_reason_names_what_was_hit(reason: str, fault: Fault, wrong: str) -> None:
    assert list(wrong_with(reason, (fault,), Job("pytorch", 2, 2))) == ([wrong] if wrong else [])


def test_a_hit_on_a_host_is_one_on_all_its_ranks() -> None:
    job = Job("pytorch", 2, 2)
    assert ranks_hit((Fault("kill", "agent", 2),), job) == {2, 3}
    assert ranks_hit((Fault("kill", "rank", 2, 1),), job) == {3}
    assert ranks_hit((Fault("kill", "run"),), job) == {0, 1, 2, 3}


# ---- what is shown ----


def test_a_finding_comes_with_what_repeats_it() -> None:
    one = story(failed(GOOD_REASON, KILL), attempt(digest=OTHER))
    result = Result(one, judge(one, WHOLE), Path("logs"))
    assert "FOUND wrong result" in report.line(result)
    assert "make fuzz-faults SEED=1 ONLY=0 LOAD=2" in report.findings([result], 2)
    assert [line.split() for line in report.table([result]).splitlines()][1:] == [
        ["kill", "rank", "1", "0", "1"],
        ["all", "1", "0", "1"],
    ]


def test_checkpoints_are_found_for_all_hosts_and_for_each(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path, checkpoints.with_manifest(tmp_path)) == {}
    for name in ("step-00000010", "step-00000020.2", "algo-2/step-00000030", "step-00000040", ".tmp-step-00000050-a"):
        directory = tmp_path / "checkpoints" / name
        directory.mkdir(parents=True)
        if "40" not in name:
            (directory / "MANIFEST.json").write_text("{}")
    steps = checkpoints.newest(tmp_path, checkpoints.with_manifest(tmp_path))
    assert steps == {"checkpoints": 20, "checkpoints/algo-2": 30}
    assert [path.name for path in checkpoints.being_written(tmp_path)] == [".tmp-step-00000050-a"]
    assert checkpoints.valid(tmp_path) == set()
