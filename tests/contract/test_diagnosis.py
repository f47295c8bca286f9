"""Why a job failed, as one value: what becomes one, and how it is seen from another host. All pure."""

import inspect

import msgspec
import pytest

from trainbox import errors
from trainbox.contract.failures.diagnosis import DiagnosedError, Diagnosis, diagnose_defect, diagnose_error, kind_of
from trainbox.contract.failures.failure import compose
from trainbox.errors import CheckpointError, DataError, PeerError, Stopped, TrainboxError

TREE = [one for one in vars(errors).values() if inspect.isclass(one) and issubclass(one, TrainboxError)]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (DataError("no rows", hint="add some"), Diagnosis("client", "ClientError: no rows", 7, hint="add some")),
        (CheckpointError("full"), Diagnosis("algorithm", "AlgorithmError: full", 8)),
        (PeerError("gone"), Diagnosis("peer", "AlgorithmError: gone", 5)),
        (Stopped("before the script"), Diagnosis("stopped", "ClientError: before the script", 143)),
    ],
)
def test_an_error_of_ours_says_whose_affair_it_is_what_to_do_and_the_exit_code(
    error: TrainboxError, expected: Diagnosis
) -> None:
    assert diagnose_error(error) == expected


@pytest.mark.parametrize("error", TREE)
def test_every_error_of_the_tree_has_a_kind(error: type[TrainboxError]) -> None:
    assert kind_of(error)


def test_a_diagnosis_that_is_raised_arrives_as_it_is() -> None:
    known = Diagnosis("hardware", "HARDWARE b gpu3 nvml.xid: 79", 78, hint="replace it", host="b", device="gpu3")
    assert diagnose_error(DiagnosedError(known)) is known


def test_anything_else_is_a_defect_of_ours() -> None:
    found = diagnose_defect(KeyError("x"))
    assert (found.kind, found.exit_code) == ("internal", 70)
    assert compose(found) == "AlgorithmError: KeyError: 'x'\nhint: a defect of trainbox: please report it"


def test_what_failed_on_one_host_is_the_failure_of_a_peer_on_the_others() -> None:
    found = Diagnosis("signal", "rank 3 was killed by SIGKILL", 137, host="b", rank=3)
    assert found.seen_from("b") is found
    there = found.seen_from("a")
    assert there == msgspec.structs.replace(found, kind="peer")
    assert there.seen_from("b").kind == "peer", "who has been told of it cannot say it in place of its host"


@pytest.mark.parametrize(
    "found",
    [
        Diagnosis("hardware", "HARDWARE b gpu3 nvml.xid: 79", 78, host="b"),
        Diagnosis("stopped", "stopped by SIGTERM", 143, host="b"),
        Diagnosis("peer", "the ranks were ended", 5),
    ],
)
def test_what_ends_the_job_as_a_whole_is_the_same_on_all_hosts(found: Diagnosis) -> None:
    assert found.seen_from("a") is found


def test_a_diagnosis_is_json_between_processes() -> None:
    found = Diagnosis("script", "ValueError: x", 1, where="train.py:3", hint="y", host="a", rank=0, device="gpu0")
    assert msgspec.json.decode(msgspec.json.encode(found), type=Diagnosis) == found
