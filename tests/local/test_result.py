"""Merging, packing and recording what the hosts of a job left."""

import errno
import os
import signal
import tarfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainbox.contract.failures.ending import ending, stop_in
from trainbox.errors import RunError
from trainbox.local.backends.hosts import Ended, HostEnd
from trainbox.local.metrics.curves import Curves, joined
from trainbox.local.results.archive import archive
from trainbox.local.results.collect import merge
from trainbox.local.results.folder import claimed, keep_earlier_logs, logs_of_last, remove
from trainbox.local.results.record import Curve, JobRecord, read_record, write_record
from trainbox.local.run_events.job_end import LONGEST_REASON, JobEnd, conclude, failure_reason
from trainbox.log_lines import PREFIX

RECORD = JobRecord(job_name="job", attempt=1, started="2026-11-05T10:00:00+00:00", script="train.py")


def write(directory: Path, **files: str) -> Path:
    for name, content in files.items():
        path = directory / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return directory


def names(directory: Path) -> dict[str, str]:
    return {str(p.relative_to(directory)): p.read_text() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_the_directories_of_all_hosts_become_one(tmp_path: Path) -> None:
    one, two = write(tmp_path / "1", a="a", d__x="x"), write(tmp_path / "2", b="b", d__y="y")
    assert merge([("algo-1", one), ("algo-2", two)], tmp_path / "model") == ()
    assert names(tmp_path / "model") == {"a": "a", "b": "b", "d/x": "x", "d/y": "y"}


def test_what_hosts_wrote_alike_is_kept_once(tmp_path: Path) -> None:
    hosts = [(f"algo-{n}", write(tmp_path / str(n), model="same")) for n in (1, 2, 3)]
    assert merge(hosts, tmp_path / "model") == ()
    assert names(tmp_path / "model") == {"model": "same"}


def test_a_clash_loses_nothing_and_is_told(tmp_path: Path) -> None:
    hosts = [(f"algo-{n}", write(tmp_path / str(n), d__model=f"of {n}")) for n in (1, 2, 3)]
    (clash,) = merge(hosts, tmp_path / "model")
    assert (clash.path, clash.kept, clash.others) == ("d/model", "algo-1", ("d/model.algo-2", "d/model.algo-3"))
    assert names(tmp_path / "model") == {"d/model": "of 1", "d/model.algo-2": "of 2", "d/model.algo-3": "of 3"}


def test_a_file_against_a_directory_is_a_clash_too(tmp_path: Path) -> None:
    hosts = [("algo-1", write(tmp_path / "1", d="file")), ("algo-2", write(tmp_path / "2", d__x="x"))]
    (clash,) = merge(hosts, tmp_path / "model")
    assert clash.others == ("d.algo-2",)
    assert names(tmp_path / "model") == {"d": "file", "d.algo-2/x": "x"}


def test_the_name_of_a_clash_takes_no_other_files_name(tmp_path: Path) -> None:
    one = tmp_path / "1"
    one.mkdir()
    (one / "m").write_text("1")
    (one / "m.algo-2").write_text("in the way")
    merge([("algo-1", one), ("algo-2", write(tmp_path / "2", m="2"))], tmp_path / "model")
    assert names(tmp_path / "model") == {"m": "1", "m.algo-2": "in the way", "m.algo-2-2": "2"}


def test_equal_models_have_equal_archives(tmp_path: Path) -> None:
    digests = []
    for n in (1, 2):
        model = write(tmp_path / str(n), b="b", a="a", d__x="x")
        os.utime(model / "a", (n * 1000, n * 1000))
        (model / "b").chmod(0o600 if n == 1 else 0o664)
        record, left_out = archive(model, tmp_path / f"{n}.tar.gz")
        assert record is not None
        assert record.files == 3
        assert left_out == ()
        digests.append((tmp_path / f"{n}.tar.gz").read_bytes())
    assert digests[0] == digests[1]


def test_an_archive_unpacks_to_what_was_packed(tmp_path: Path) -> None:
    model = write(tmp_path / "model", a="a", d__x="x" * 10000)
    (model / "run").write_text("#!")
    (model / "run").chmod(0o755)
    (model / "link").symlink_to("a")
    os.link(model / "a", model / "zz-hard")
    os.mkfifo(model / "fifo")
    _, left_out = archive(model, tmp_path / "m.tar.gz")
    assert left_out == (str(model / "fifo"),)
    with tarfile.open(tmp_path / "m.tar.gz") as tar:
        assert not any(member.islnk() for member in tar.getmembers())
        tar.extractall(tmp_path / "back", filter="data")
    assert names(tmp_path / "back") == {"a": "a", "d/x": "x" * 10000, "link": "a", "run": "#!", "zz-hard": "a"}
    assert os.access(tmp_path / "back" / "run", os.X_OK)


def test_an_empty_model_leaves_no_archive(tmp_path: Path) -> None:
    (tmp_path / "model" / "empty").mkdir(parents=True)
    assert archive(tmp_path / "model", tmp_path / "m.tar.gz") == (None, ())
    assert not (tmp_path / "m.tar.gz").exists()


def test_a_full_disk_leaves_the_archive_of_before_and_no_half_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write(tmp_path / "model", a="a")
    (tmp_path / "m.tar.gz").write_bytes(b"before")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"m\.tar\.gz cannot be written: No space left on device"):
        archive(model, tmp_path / "m.tar.gz")
    assert names(tmp_path) == {"m.tar.gz": "before", "model/a": "a"}


def test_a_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    write_record(RECORD, tmp_path)
    assert read_record(tmp_path) == RECORD
    assert read_record(tmp_path / "none") is None
    assert [path.name for path in tmp_path.iterdir()] == ["job.json"]


_POINTS = st.lists(st.tuples(st.integers(0, 10**18 - 1), st.floats(allow_nan=False, allow_infinity=False)))


@given(st.dictionaries(st.text(), _POINTS))
def test_every_number_survives_the_record(points: dict[str, list[tuple[int, float]]]) -> None:
    curves = {name: Curve(tuple(s for s, _ in each), tuple(v for _, v in each)) for name, each in points.items()}
    assert msgspec.json.decode(msgspec.json.encode(curves), type=dict[str, Curve]) == curves


def test_two_runs_never_share_a_directory(tmp_path: Path) -> None:
    at_work = pytest.raises(RunError, match="another trainbox run is at work")
    with claimed(tmp_path / "out", None), at_work, claimed(tmp_path / "out", None):
        pytest.fail("both have it")
    with claimed(tmp_path / "out", None):
        pass


def test_a_directory_that_was_used_meanwhile_is_not_taken(tmp_path: Path) -> None:
    write_record(RECORD, tmp_path)
    with pytest.raises(RunError, match="has just used"), claimed(tmp_path, None):
        pytest.fail("it is another's")


def test_logs_of_earlier_attempts_are_kept(tmp_path: Path) -> None:
    write(tmp_path / "logs", **{"algo-1.log": "second", "algo-1.attempt-1.log": "first"})
    keep_earlier_logs(tmp_path, 3)
    assert names(tmp_path / "logs") == {"algo-1.attempt-1.log": "first", "algo-1.attempt-2.log": "second"}


def test_the_logs_of_the_last_attempt_are_found_by_either_name(tmp_path: Path) -> None:
    """A kill may come when some were renamed, and before the record of the next attempt is written."""
    logs = write(tmp_path / "logs", **{"algo-1.attempt-1.log": "", "algo-1.attempt-2.log": "", "algo-2.log": ""})
    assert logs_of_last(tmp_path, 2) == {"algo-1": logs / "algo-1.attempt-2.log", "algo-2": logs / "algo-2.log"}


def test_a_tree_that_its_script_locked_is_removed(tmp_path: Path) -> None:
    locked = write(tmp_path / "tree", d__x="x") / "d"
    locked.chmod(0o500)
    remove(tmp_path / "tree")
    remove(tmp_path / "tree")
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_a_restart_repeats_counts_once() -> None:
    curves = Curves()
    for step, value in [(0, 5), (1, 4), (2, 3), (3, 2), (2, 30), (3, 20), (4, 10)]:  # ranks restarted from step 1
        curves.feed("algo-1", f"[metrics] step={step} loss={value}\n".encode())
    curves.feed("algo-1", b"[metrics] step=2 other=1\n")
    assert curves.all() == {"loss": Curve((0, 1, 2, 3, 4), (5, 4, 30, 20, 10)), "other": Curve((2,), (1,))}


def test_curves_hold_what_was_logged() -> None:
    curves = Curves()
    for host, line in [
        ("algo-1", b"[metrics] step=0 train:auc=0.5 loss=2\n"),
        ("algo-2", b"[metrics] step=0 train:auc=0.1 other=1\n"),
        ("algo-1", b"no metrics here\n"),
        ("algo-1", b"[metrics] step=1 train:auc=0.75 loss=not-a-number\n"),
        ("algo-1", b"\xff[metrics] final train:auc=0.75\n"),
    ]:
        curves.feed(host, line)
    assert curves.all() == {
        "train:auc": Curve((0, 1), (0.5, 0.75)),
        "loss": Curve((0,), (2.0,)),
        "other": Curve((0,), (1.0,)),
    }
    assert curves.final == {"train:auc": 0.75}
    assert curves.last_step == 1


def test_an_attempt_goes_on_where_it_resumed() -> None:
    earlier = {"a": Curve((0, 1, 2, 3), (0.0, 0.1, 0.2, 0.3)), "gone": Curve((0,), (9.0,))}
    later = {"a": Curve((2, 3, 4), (1.2, 1.3, 1.4)), "new": Curve((2,), (5.0,))}
    assert joined(earlier, later) == {
        "a": Curve((0, 1, 2, 3, 4), (0.0, 0.1, 1.2, 1.3, 1.4)),
        "gone": Curve((0,), (9.0,)),
        "new": Curve((2,), (5.0,)),
    }


@pytest.mark.parametrize(
    ("ended", "interrupt", "expected"),
    [
        (Ended((HostEnd("a", 0), HostEnd("b", 0))), None, JobEnd("Completed", "Completed", 0)),
        (
            Ended((HostEnd("a", 143), HostEnd("b", 7)), stop="failure", failed="b"),
            None,
            JobEnd("Failed", "Failed", 7, "AlgorithmError: why, exit code: 7"),
        ),
        (Ended((HostEnd("a", 0),), stop="stop-after"), None, JobEnd("Stopped", "Stopped", 0)),
        (Ended((HostEnd("a", 0), HostEnd("b", 143)), stop="stop-after"), None, JobEnd("Stopped", "Stopped", 143)),
        (Ended((HostEnd("a", 0),), stop="max-run"), None, JobEnd("Stopped", "MaxRuntimeExceeded", 0)),
        (Ended((HostEnd("a", 0),), stop="interrupt"), 130, JobEnd("Stopped", "Stopped", 130)),
        (Ended((), stop="interrupt"), 130, JobEnd("Stopped", "Stopped", 130)),
    ],
)
def test_an_end_is_named_as_sagemaker_names_it(ended: Ended, interrupt: int | None, expected: JobEnd) -> None:
    assert conclude(ended, "why\n", interrupt_exit_code=interrupt) == expected


def test_a_job_that_somebody_else_has_stopped_is_stopped_unless_it_has_failed() -> None:
    ended = Ended((HostEnd("a", 0), HostEnd("b", 0)))
    assert conclude(ended, "", was_stopped=True) == JobEnd("Stopped", "Stopped", 0)
    failed = Ended((HostEnd("a", 0), HostEnd("b", 7)), failed="b")
    assert conclude(failed, "why", was_stopped=True).status == "Failed"


@given(
    st.integers(0, 255),
    st.floats(0, 1e9),
    st.sampled_from([0, signal.SIGTERM, signal.SIGINT]),
    st.integers(0),
    st.integers(0),
)
def test_what_a_host_says_of_its_stop_can_be_read_back(
    code: int, seconds: float, number: int, files: int, size: int
) -> None:
    line = f"{PREFIX}{ending(code, seconds, number, files=files, size=size)}\n".encode()
    forged = f"{PREFIX}{ending(0, 1.0, signal.SIGTERM, files=0, size=0)}\n".encode()
    expected = signal.Signals(number).name if number else ""
    assert stop_in(b"half a line" + b"\n" + forged + line + b"trainbox: WARNING: the model is empty\n") == expected
    assert stop_in(b"says " + forged) == stop_in(b"") == ""


@given(st.text(), st.integers(0, 255))
def test_a_failure_reason_fits_and_keeps_the_exit_code(failure: str, code: int) -> None:
    reason = failure_reason(failure, code)
    assert len(reason) <= LONGEST_REASON
    assert reason.startswith("AlgorithmError: ")
    assert reason.endswith(f", exit code: {code}")


def test_bytes_of_an_archive_do_not_depend_on_the_place(tmp_path: Path) -> None:
    for place in ("here", "a/much/longer/place"):
        archive(write(tmp_path / place / "model", a="a"), tmp_path / place / "m.tar.gz")
    one, two = (tmp_path / place / "m.tar.gz" for place in ("here", "a/much/longer/place"))
    assert one.read_bytes() == two.read_bytes()
