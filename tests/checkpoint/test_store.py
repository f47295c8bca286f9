"""The store keeps its word under corruption, kills at any moment, full disks and several writers at once."""

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from trainbox.checkpoint.manifest import (
    MANIFEST,
    UPLOADED,
    UPLOADING,
    FileRecord,
    Manifest,
    seal,
    write_manifest,
)
from trainbox.checkpoint.store import Checkpoint, Checkpoints, Rejected, examine
from trainbox.errors import CheckpointError

FILES = {"model.bin": bytes(range(256)) * 8, "optimizer/rank-00000.bin": b"momentum", "empty": b""}


def save(store: Checkpoints, step: int, files: dict[str, bytes] | None = None, **info: object) -> None:
    with store.writing(step, info=info) as path:
        for name, content in (files or FILES).items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def steps(directory: Path) -> list[str]:
    return [name for name in names(directory) if name.startswith("step-")]


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def reason(path: Path) -> str:
    verdict = examine(path)
    assert isinstance(verdict, Rejected), f"{path} was taken for valid"
    return verdict.reason


@pytest.fixture
def two(tmp_path: Path) -> Checkpoints:
    """Step 10 and step 20, both valid, of different content."""
    store = Checkpoints(tmp_path / "checkpoints")
    save(store, 10, {"model.bin": b"ten" * 100, "optimizer/rank-00000.bin": b"ten"}, loss=0.5)
    save(store, 20, {"model.bin": b"two" * 100, "optimizer/rank-00000.bin": b"two", "empty": b""}, loss=0.25)
    return store


# --- what is written is what is found -----------------------------------------------------------------------------


def test_a_checkpoint_comes_back_with_its_step_info_and_files(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path / "not" / "there" / "yet")
    save(store, 20, loss=0.1, history=[1, 2.5, None], nested={"deep": True})
    found = store.find().chosen
    assert found is not None
    assert (found.step, found.path.name) == (20, "step-00000020")
    assert found.info == {"loss": 0.1, "history": [1, 2.5, None], "nested": {"deep": True}}
    assert found.size == sum(map(len, FILES.values()))
    assert contents(found.path) == FILES


def test_the_manifest_is_plain_json_that_names_every_file(two: Checkpoints) -> None:
    manifest = json.loads((two.directory / "step-00000020" / MANIFEST).read_text())
    assert manifest["format"] == 1
    assert manifest["manifest"]["files"]["model.bin"]["size"] == 300
    assert list(manifest["manifest"]["files"]) == ["empty", "model.bin", "optimizer/rank-00000.bin"]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**130), 2**130)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(info=st.dictionaries(st.text(), json_values, max_size=4), step=st.integers(0, 10**12))
def test_any_json_info_comes_back_equal(tmp_path: Path, info: dict[str, object], step: int) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as name:
        store = Checkpoints(Path(name))
        with store.writing(step, info=info) as path:
            (path / "model").write_bytes(b"m")
        found = store.find().chosen
    assert found is not None
    assert (found.step, found.info) == (step, info)


def test_info_is_taken_down_before_the_block_runs(tmp_path: Path) -> None:
    store, info = Checkpoints(tmp_path), {"epoch": 1}
    with store.writing(1, info=info) as path:
        info["epoch"] = 2
        (path / "model").write_bytes(b"m")
    found = store.find().chosen
    assert found is not None
    assert found.info == {"epoch": 1}


@pytest.mark.parametrize("info", [{"weights": object()}, {"big": 10**5000}, {"text": "\ud800"}, {("a", "b"): 1}])
def test_info_that_json_cannot_say_is_refused_before_anything_is_written(
    tmp_path: Path, info: dict[str, object]
) -> None:
    with (
        pytest.raises(CheckpointError, match=r"info of the checkpoint of step 3"),
        Checkpoints(tmp_path).writing(3, info=info),
    ):
        pytest.fail("the block must not run")
    assert names(tmp_path) == []


def test_a_negative_step_and_keeping_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="step -1 is negative"), Checkpoints(tmp_path).writing(-1):
        pytest.fail("the block must not run")
    with pytest.raises(CheckpointError, match="keep=0"):
        Checkpoints(tmp_path, keep=0)


def test_steps_are_ordered_as_numbers_whatever_their_digits(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path, keep=9)
    for step in (99_999_999, 100_000_000, 9):
        save(store, step)
    found = store.find().chosen
    assert found is not None
    assert found.step == 100_000_000


def test_a_step_saved_again_gets_a_name_of_its_own_and_wins(two: Checkpoints) -> None:
    save(two, 20, {"model.bin": b"again"})
    save(two, 20, {"model.bin": b"third"})
    found = two.find().chosen
    assert found is not None
    assert (found.path.name, contents(found.path)) == ("step-00000020.3", {"model.bin": b"third"})
    assert steps(two.directory) == ["step-00000020", "step-00000020.2", "step-00000020.3"]


# --- what is said -------------------------------------------------------------------------------------------------


def test_latest_says_that_it_starts_fresh(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Checkpoints(tmp_path / "absent").latest() is None
    assert capsys.readouterr().err == f"trainbox: no checkpoint in {tmp_path / 'absent'}: starting fresh\n"
    assert names(tmp_path) == []


def test_latest_says_from_where_it_resumes_and_what_it_rejected(
    two: Checkpoints, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = two.directory / "step-00000020"
    (newest / "model.bin").write_bytes(b"short")
    found = two.latest()
    assert found is not None
    assert found.step == 10
    assert capsys.readouterr().err.splitlines() == [
        f"trainbox: rejected the checkpoint {newest}: 'model.bin' has 5 bytes, not 300",
        f"trainbox: resuming from step 10 ({two.directory / 'step-00000010'})",
    ]


def test_latest_says_that_none_of_those_found_is_valid(two: Checkpoints, capsys: pytest.CaptureFixture[str]) -> None:
    for path in two.directory.iterdir():
        (path / MANIFEST).unlink()
    assert two.latest() is None
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"trainbox: no valid checkpoint in {two.directory} (2 rejected): starting fresh"
    )


def test_find_neither_says_nor_changes_anything(two: Checkpoints, capfd: pytest.CaptureFixture[str]) -> None:
    (two.directory / "step-00000020" / MANIFEST).write_text("{")
    (two.directory / ".tmp-step-00000030-0").mkdir()
    before = {path: path.stat().st_mtime_ns for path in two.directory.rglob("*")}
    search = two.find()
    assert search.chosen is not None
    assert (search.chosen.step, [verdict.path.name for verdict in search.rejected]) == (10, ["step-00000020"])
    assert {path: path.stat().st_mtime_ns for path in two.directory.rglob("*")} == before
    assert capfd.readouterr() == ("", "")


# --- corruption: never loaded, always named, the one before is taken ----------------------------------------------


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def rewrite(path: Path, name: str = "model.bin", info: bytes = b"{}") -> None:
    """A manifest with other content and a correct digest of its own: what a defect or an attacker could write."""
    record = FileRecord(0, hashlib.sha256(b"").hexdigest())
    (path / MANIFEST).write_bytes(seal(Manifest(20, msgspec.Raw(info), {name: record})))


def linked_file(path: Path) -> None:
    shutil.move(path / "model.bin", path.parent.parent / "model.bin")
    (path / "model.bin").symlink_to(path.parent.parent / "model.bin")


def linked_directory(path: Path) -> None:
    shutil.move(path / "optimizer", path.parent.parent / "optimizer")
    (path / "optimizer").symlink_to(path.parent.parent / "optimizer")


def linked_manifest(path: Path) -> None:
    shutil.move(path / MANIFEST, path.parent.parent / MANIFEST)
    (path / MANIFEST).symlink_to(path.parent.parent / MANIFEST)


def linked_checkpoint(path: Path) -> None:
    shutil.move(path, path.parent.parent / path.name)
    path.symlink_to(path.parent.parent / path.name)


def pipe_instead(path: Path) -> None:
    (path / "model.bin").unlink()
    os.mkfifo(path / "model.bin")


def other_format(path: Path) -> None:
    sealed = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({"format": 2, "something": "else", "manifest": sealed["manifest"]}))


def move_away(path: Path, other: Path) -> None:
    shutil.rmtree(path)
    other.rename(path)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (lambda p: flip(p / "model.bin", 777), "'model.bin' does not have the digest that"),
    "a truncated file": (lambda p: os.truncate(p / "model.bin", 299), "'model.bin' has 299 bytes, not 300"),
    "a file cut to nothing": (lambda p: os.truncate(p / "model.bin", 0), "'model.bin' has 0 bytes, not 300"),
    "a longer file": (lambda p: os.truncate(p / "model.bin", 301), "'model.bin' has 301 bytes, not 300"),
    "a missing file": (lambda p: (p / "model.bin").unlink(), "'model.bin' is missing"),
    "a missing directory": (lambda p: shutil.rmtree(p / "optimizer"), "'optimizer/rank-00000.bin' is missing"),
    "no manifest": (lambda p: (p / MANIFEST).unlink(), f"it has no {MANIFEST}: its write did not finish"),
    "an empty manifest": (lambda p: os.truncate(p / MANIFEST, 0), f"{MANIFEST} cannot be read: "),
    "a manifest not of UTF-8": (lambda p: (p / MANIFEST).write_bytes(b'{"format":1,"\xff":1}'), "cannot be read: "),
    "a manifest of another shape": (lambda p: (p / MANIFEST).write_text('{"format":1}'), "cannot be read: "),
    "a manifest nested without end": (lambda p: (p / MANIFEST).write_text("[" * 10**6), "cannot be read: "),
    "an unknown format": (other_format, f"{MANIFEST} has format 2; this version of trainbox reads 1"),
    "the manifest of another step": (
        lambda p: shutil.copy(p.parent / "step-00000010" / MANIFEST, p / MANIFEST),
        f"{MANIFEST} is that of step 10",
    ),
    "a whole other step under this name": (
        lambda p: move_away(p, p.parent / "step-00000010"),
        f"{MANIFEST} is that of step 10",
    ),
    "files of another step": (
        lambda p: shutil.copy(p.parent / "step-00000010" / "model.bin", p / "model.bin"),
        "'model.bin' does not have the digest that",
    ),
    "a parent path": (lambda p: rewrite(p, "../step-00000010/x"), "which is no path inside the checkpoint"),
    "an absolute path": (lambda p: rewrite(p, "/etc/passwd"), "which is no path inside the checkpoint"),
    "an empty name": (lambda p: rewrite(p, ""), "which is no path inside the checkpoint"),
    "info that is no object": (lambda p: rewrite(p, "empty", b"[1]"), "info is of type list, not a dict"),
    "a NUL in a name": (lambda p: rewrite(p, "model\0.bin"), "which is no path inside the checkpoint"),
    "a name too long": (lambda p: rewrite(p, "x" * 300), "which is no path inside the checkpoint"),
    "the directory itself": (lambda p: rewrite(p, "optimizer"), "is not a plain file inside the checkpoint"),
    "a link to a file": (linked_file, "'model.bin' is not a plain file inside the checkpoint"),
    "a link to a directory": (linked_directory, "'optimizer/rank-00000.bin' is not a plain file inside"),
    "a link to the manifest": (linked_manifest, f"'{MANIFEST}' is not a plain file inside the checkpoint"),
    "a link to a checkpoint": (linked_checkpoint, "it is not a directory"),
    "a pipe that would block": (pipe_instead, "'model.bin' is not a plain file inside the checkpoint"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_rejected_with_its_reason(two: Checkpoints, damage: str) -> None:
    act, expected = DAMAGE[damage]
    newest = two.directory / "step-00000020"
    spare = shutil.copytree(two.directory / "step-00000010", two.directory.parent / "spare")
    act(newest)
    if not (two.directory / "step-00000010").exists():
        spare.rename(two.directory / "step-00000010")
    assert expected in reason(newest)
    chosen = two.find().chosen
    assert chosen is not None
    assert (chosen.step, contents(chosen.path)["model.bin"]) == (10, b"ten" * 100)


@pytest.mark.parametrize("suffix", ["", UPLOADING, UPLOADED])
def test_a_file_that_the_manifest_does_not_name_is_no_fault(two: Checkpoints, suffix: str) -> None:
    (two.directory / "step-00000020" / f"extra{suffix}").write_bytes(b"left by an upload agent or a person")
    chosen = two.find().chosen
    assert chosen is not None
    assert chosen.step == 20


def test_a_manifest_torn_at_any_byte_is_rejected(two: Checkpoints) -> None:
    manifest = two.directory / "step-00000020" / MANIFEST
    whole = manifest.read_bytes().rstrip()
    for length in range(len(whole)):
        manifest.write_bytes(whole[:length])
        assert "cannot be read" in reason(manifest.parent)
    manifest.write_bytes(whole)
    assert isinstance(examine(manifest.parent), Checkpoint)


def test_every_single_flipped_bit_of_a_manifest_is_rejected(tmp_path: Path) -> None:
    # The shortest that has everything a manifest can have.
    save(Checkpoints(tmp_path), 1, {"a": b"b"}, c=0.5)
    manifest = tmp_path / "step-00000001" / MANIFEST
    whole = manifest.read_bytes().rstrip()
    for bit in range(len(whole) * 8):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        manifest.write_bytes(flipped)
        assert isinstance(examine(manifest.parent, digests=False), Rejected), f"bit {bit} of {whole!r}"
    manifest.write_bytes(whole)
    assert isinstance(examine(manifest.parent), Checkpoint)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_byte_changed_in_any_file_is_rejected(two: Checkpoints, data: st.DataObject) -> None:
    checkpoint = two.directory / "step-00000020"
    path = data.draw(st.sampled_from(sorted(p for p in checkpoint.rglob("*") if p.is_file() and p.stat().st_size)))
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole.rstrip()) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != whole[at]))
    path.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
    try:
        assert isinstance(examine(checkpoint), Rejected)
    finally:
        path.write_bytes(whole)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.binary(max_size=80) | json_values.map(msgspec.json.encode))
@example(b'{"format":1,"sha256":"","manifest":' + b"[" * 100_000)
@example(b'{"format":1.0,"sha256":"","manifest":{}}')
def test_no_manifest_whatever_crashes_the_search(two: Checkpoints, text: bytes) -> None:
    (two.directory / "step-00000020" / MANIFEST).write_bytes(text)
    search = two.find()
    assert search.chosen is not None
    assert search.chosen.step == 10


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    name=st.text(max_size=30)
    | st.lists(st.sampled_from(["..", ".", "", "a", "model.bin", "optimizer", "secret"]), max_size=5).map("/".join)
)
@example("../../secret")
def test_no_name_in_a_manifest_leads_outside(two: Checkpoints, name: str) -> None:
    secret = two.directory.parent / "secret"
    secret.write_bytes(b"")
    rewrite(two.directory / "step-00000020", name)
    assert isinstance(examine(two.directory / "step-00000020"), Rejected)


# --- a write that does not end well leaves nothing ----------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [ValueError("the script's own"), FileNotFoundError(2, "No such file"), KeyboardInterrupt()]
)
def test_an_exception_in_the_block_goes_on_and_nothing_remains(two: Checkpoints, error: BaseException) -> None:
    def fail_half_way() -> None:
        with two.writing(30) as path:
            (path / "model.bin").write_bytes(b"half")
            raise error

    before = names(two.directory)
    with pytest.raises(type(error)) as raised:
        fail_half_way()
    assert raised.value is error
    assert names(two.directory) == before


def a_link(path: Path) -> None:
    (path / "model").symlink_to("elsewhere")


def a_pipe(path: Path) -> None:
    os.mkfifo(path / "model")


def own_manifest(path: Path) -> None:
    (path / MANIFEST).write_text("{}")


def undecodable(path: Path) -> None:
    Path(os.fsdecode(os.fsencode(path) + b"/\xff")).write_bytes(b"m")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda _: None, "nothing was written into the checkpoint of step 30"),
        (a_link, "neither a plain file nor a directory"),
        (a_pipe, "neither a plain file nor a directory"),
        (own_manifest, f"must not bring a {MANIFEST} of its own"),
        (undecodable, "a name that is not UTF-8"),
    ],
)
def test_what_cannot_be_vouched_for_is_refused(two: Checkpoints, write: Callable[[Path], None], message: str) -> None:
    before = names(two.directory)
    with pytest.raises(CheckpointError, match=message), two.writing(30) as path:
        write(path)
    assert names(two.directory) == before


def test_marks_of_the_upload_agent_do_not_get_into_the_manifest(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path)
    save(store, 1, {"model.bin": b"m", f"model.bin{UPLOADING}": b"", "later.sagemaker-ignore": b"x"})
    (tmp_path / "step-00000001" / f"model.bin{UPLOADING}").unlink()
    found = store.find().chosen
    assert found is not None
    assert found.size == 1


def test_a_checkpoint_is_readable_by_whoever_may_read_the_directory(two: Checkpoints) -> None:
    plain = two.directory / "plain"
    plain.mkdir()
    assert (two.directory / "step-00000020").stat().st_mode == plain.stat().st_mode


def test_everything_is_on_the_disk_before_the_step_that_relies_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Checkpoints(tmp_path, keep=1)
    save(store, 1)
    order: list[str] = []
    fsync, rename, rmtree = os.fsync, Path.rename, shutil.rmtree

    def relative(path: str) -> str:
        return re.sub(r"\.tmp-step-00000002-[0-9a-f]{8}\.sagemaker-ignore", "aside", os.path.relpath(path, tmp_path))

    def record_fsync(descriptor: int) -> None:
        order.append(f"fsync {relative(str(Path(f'/proc/self/fd/{descriptor}').readlink()))}")
        fsync(descriptor)

    def record_rename(path: Path, target: Path) -> Path:
        order.append(f"rename to {relative(str(target))}")
        return rename(path, target)

    def record_rmtree(path: Path, *, ignore_errors: bool) -> None:
        order.append(f"remove {relative(str(path))}")
        rmtree(path, ignore_errors=ignore_errors)

    monkeypatch.setattr("trainbox.checkpoint.store.os.fsync", record_fsync)
    monkeypatch.setattr("trainbox.checkpoint.store.Path.rename", record_rename)
    monkeypatch.setattr("trainbox.checkpoint.directory.shutil.rmtree", record_rmtree)
    save(store, 2)
    assert order == [
        "fsync aside/empty",
        "fsync aside/model.bin",
        "fsync aside/optimizer/rank-00000.bin",
        "fsync aside",
        "fsync aside/optimizer",
        "rename to step-00000002",
        "fsync .",
        "fsync step-00000002/MANIFEST.json.sagemaker-ignore",
        "rename to step-00000002/MANIFEST.json",
        "fsync step-00000002",
        "remove step-00000001",
    ]


# --- keep the last k ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1, 2, 3, 7])
def test_the_last_k_stay(tmp_path: Path, keep: int) -> None:
    store = Checkpoints(tmp_path, keep=keep)
    for step in range(6):
        save(store, step)
        assert names(tmp_path) == [f"step-{kept:08d}" for kept in range(max(0, step - keep + 1), step + 1)]


def test_a_damaged_one_takes_no_place_and_is_cleared_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Checkpoints(tmp_path, keep=2)
    for step in (10, 20):
        save(store, step)
    os.truncate(tmp_path / "step-00000020" / "model.bin", 1)
    save(store, 30)
    assert steps(tmp_path) == ["step-00000010", "step-00000030"]
    assert f"trainbox: removing {tmp_path / 'step-00000020'}" in capsys.readouterr().err


def test_an_invalid_newer_one_does_not_cost_the_last_valid_one(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path, keep=1)
    for step in (10, 40):
        save(Checkpoints(tmp_path, keep=9), step)
    flip(tmp_path / "step-00000040" / "model.bin", 0)
    found = store.latest()
    assert found is not None
    assert found.step == 10
    save(store, 20)  # the rolled-back run goes on below the damaged step
    found = store.find().chosen
    assert found is not None
    assert found.step == 20
    save(store, 40)
    assert steps(tmp_path) == ["step-00000040.2"]


def test_one_that_latest_has_rejected_takes_no_place_though_its_sizes_are_right(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path, keep=2)
    for step in (10, 20):
        save(store, step)
    flip(tmp_path / "step-00000020" / "model.bin", 0)
    assert store.latest() is not None
    save(store, 20)
    assert steps(tmp_path) == ["step-00000010", "step-00000020.2"]


def test_leftovers_of_dead_writers_go_with_the_next_write_and_not_before(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path)
    save(store, 10)
    for name in (".tmp-step-00000011-dead.sagemaker-ignore", "step-00000012", "step-00000099"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_bytes(b"h")
    store.latest()
    assert len(names(tmp_path)) == 4
    save(store, 20)  # step 99 is newer: whoever reaches it clears it away
    assert names(tmp_path) == ["step-00000010", "step-00000020", "step-00000099"]


def test_what_others_keep_in_the_directory_is_left_alone(tmp_path: Path) -> None:
    for name in ("step-5", "best", ".tmp-mine", "step-00000001.bak"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000000").write_text("a file named like a checkpoint")
    (tmp_path / "step-00000001").symlink_to(tmp_path / "best")
    before = names(tmp_path)
    save(Checkpoints(tmp_path, keep=1), 7)
    assert names(tmp_path) == sorted([*before, "step-00000007"])


def test_a_checkpoint_being_uploaded_is_pruned_only_afterwards(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path, keep=1)
    save(store, 1)
    mark = tmp_path / "step-00000001" / "optimizer" / f"rank-00000.bin{UPLOADING}"
    mark.touch()
    save(store, 2)
    assert steps(tmp_path) == ["step-00000001", "step-00000002"]
    mark.with_name(f"rank-00000.bin{UPLOADED}").touch()
    save(store, 3)
    assert steps(tmp_path) == ["step-00000003"]


def test_pruning_takes_the_manifest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Checkpoints(tmp_path, keep=1)
    save(store, 1)
    monkeypatch.setattr(
        "trainbox.checkpoint.directory.shutil.rmtree", lambda *_, **__: None
    )  # killed right before the files
    save(store, 2)
    assert reason(tmp_path / "step-00000001") == f"it has no {MANIFEST}: its write did not finish"
    assert set(contents(tmp_path / "step-00000001")) == set(FILES)


def test_what_cannot_be_removed_does_not_stop_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Checkpoints(tmp_path, keep=1)
    save(store, 1)
    monkeypatch.setattr("trainbox.checkpoint.directory.shutil.rmtree", lambda *_, **__: None)
    save(store, 2)
    assert f"trainbox: cannot remove all of {tmp_path / 'step-00000001'}" in capsys.readouterr().err


# --- several writers ----------------------------------------------------------------------------------------------


@pytest.mark.process
def test_a_write_in_progress_elsewhere_is_not_a_leftover(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from trainbox.checkpoint.store import Checkpoints
with Checkpoints(Path(sys.argv[1])).writing(5) as path:
    (path / "model").write_bytes(b"slow")
    print("in the block", flush=True)
    sys.stdin.read()
"""
    with python(script, tmp_path, stdin=subprocess.PIPE) as slow:
        assert slow.stdout is not None
        assert slow.stdin is not None
        assert slow.stdout.readline() == b"in the block\n"
        save(Checkpoints(tmp_path), 10)
        save(Checkpoints(tmp_path), 20)
        slow.stdin.close()
        assert slow.wait(300) == 0
    assert steps(tmp_path) == ["step-00000005", "step-00000010", "step-00000020"]
    assert isinstance(examine(tmp_path / "step-00000005"), Checkpoint)


def test_a_new_directory_cleared_away_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock
    cleared: list[Path] = []

    def clear_away_first(descriptor: int, operation: int) -> None:
        if not cleared:
            cleared.append(Path(f"/proc/self/fd/{descriptor}").readlink())
            shutil.rmtree(cleared[0])
        flock(descriptor, operation)

    monkeypatch.setattr("trainbox.checkpoint.directory.fcntl.flock", clear_away_first)
    save(Checkpoints(tmp_path), 1)
    assert len(cleared) == 1
    assert names(tmp_path) == ["step-00000001"]


def test_a_write_is_not_taken_for_a_leftover_between_its_rename_and_its_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed, go_on = threading.Event(), threading.Event()
    real = write_manifest

    def wait_first(directory: Path, text: bytes) -> None:
        if directory.name == "step-00000005":
            renamed.set()
            assert go_on.wait(300)
        real(directory, text)

    monkeypatch.setattr("trainbox.checkpoint.store.write_manifest", wait_first)
    slow = threading.Thread(target=save, args=(Checkpoints(tmp_path), 5))
    slow.start()
    assert renamed.wait(300)
    save(Checkpoints(tmp_path), 10)
    go_on.set()
    slow.join(300)
    assert steps(tmp_path) == ["step-00000005", "step-00000010"]
    assert isinstance(examine(tmp_path / "step-00000005"), Checkpoint)


WRITER = """
import sys
from pathlib import Path
from trainbox.checkpoint.store import Checkpoints
directory, mark, first, count, keep = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
store = Checkpoints(directory, keep=keep)
for step in range(first, first + count):
    print("begin", step, flush=True)
    with store.writing(step, info={"writer": mark, "step": step}) as path:
        (path / "nested").mkdir()
        for name in ("model.bin", "nested/optimizer.bin"):
            (path / name).write_bytes(f"{mark} {step} {name};".encode() * 2000)
    print("done", step, flush=True)
"""


def check_content(found: Checkpoint) -> None:
    mark, step = found.info["writer"], found.step
    assert found.info["step"] == step
    assert contents(found.path) == {
        name: f"{mark} {step} {name};".encode() * 2000 for name in ("model.bin", "nested/optimizer.bin")
    }


@contextlib.contextmanager
def python(
    script: str, *arguments: object, stdin: int = subprocess.DEVNULL, before: list[str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a script; whatever happens, it is dead afterwards."""
    command = [*(before or []), sys.executable, "-c", script, *map(str, arguments)]
    with subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.process
def test_two_processes_write_the_same_steps_into_one_directory(tmp_path: Path) -> None:
    with python(WRITER, tmp_path, "one", 1, 30, 100) as one, python(WRITER, tmp_path, "two", 1, 30, 100) as two:
        results = [(process.communicate(timeout=300)[1], process.returncode) for process in (one, two)]
    assert results == [(b"", 0), (b"", 0)]
    found = [examine(path) for path in tmp_path.iterdir()]
    assert len(found) == 60
    written = set()
    for checkpoint in found:
        assert isinstance(checkpoint, Checkpoint), checkpoint
        check_content(checkpoint)
        written.add((checkpoint.info["writer"], checkpoint.step))
    assert written == {(mark, step) for mark in ("one", "two") for step in range(1, 31)}


@pytest.mark.process
def test_two_processes_that_prune_each_other_leave_the_last_valid_ones(tmp_path: Path) -> None:
    with python(WRITER, tmp_path, "one", 1, 40, 2) as one, python(WRITER, tmp_path, "two", 21, 40, 2) as two:
        codes = [(process.communicate(timeout=300), process.returncode)[1] for process in (one, two)]
    assert codes == [0, 0]
    search = Checkpoints(tmp_path).find()
    assert search.chosen is not None
    assert (search.chosen.step, search.rejected) == (60, ())
    check_content(search.chosen)
    assert not [name for name in names(tmp_path) if name.startswith(".tmp-")]


# --- killed at any moment -----------------------------------------------------------------------------------------


@pytest.mark.process
def test_after_a_kill_at_a_random_moment_the_last_completed_one_is_there(tmp_path: Path) -> None:
    first, torn = 1, 0
    for seed in range(20):
        moments = random.Random(seed)
        with python(WRITER, tmp_path, f"seed-{seed}", first, 1000, 2) as writer:
            assert writer.stdout is not None
            said = [writer.stdout.readline().decode().strip()]
            assert said == [f"begin {first}"]
            # At some moment of a write, as long as a write takes on this machine, now.
            began = time.monotonic()
            said += [writer.stdout.readline().decode().strip() for _ in range(2 * moments.randint(1, 3))]
            time.sleep(moments.random() * (time.monotonic() - began) / (len(said) // 2))
            writer.kill()
            said += writer.stdout.read().decode().splitlines()
            assert writer.wait() == -signal.SIGKILL
        begun = max(int(line.split()[1]) for line in said if line.startswith("begin "))
        done = max(int(line.split()[1]) for line in said if line.startswith("done "))
        found = Checkpoints(tmp_path).find().chosen
        assert found is not None, f"seed {seed}: step {done} was completed and is gone"
        assert found.step in {done, begun}, f"seed {seed}: {said[-2:]}, but found {found.path}"
        check_content(found)
        torn += found.step < begun
        first = found.step + 1
    assert torn, "no write was ever interrupted: the test has shown nothing"
    save(Checkpoints(tmp_path, keep=1), first)
    save(Checkpoints(tmp_path, keep=1), first + 1)
    assert names(tmp_path) == [f"step-{first + 1:08d}"]


# The interpreter tells an audit hook of each operation on files before it happens: kill there, one after the other.
KILLED_AT_EVERY_OPERATION = """
import os, shutil, signal, sys
from pathlib import Path
from trainbox.checkpoint.store import Checkpoint, Checkpoints, examine

base = Path(sys.argv[1])
keep = 2
events = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "os.listdir"}

def write(directory, step):
    with Checkpoints(directory, keep=keep).writing(step) as path:
        for name in ("a", "b"):
            (path / name).write_bytes(name.encode() * step)

def kill_at(count):
    left = [count]
    def hook(event, arguments):
        if event in events:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

for step in (1, 2):
    write(base / "before", step)
for count in range(1, 1000):
    directory = base / "now"
    shutil.copytree(base / "before", directory)
    child = os.fork()
    if child == 0:
        kill_at(count)
        write(directory, 3)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status == 0:
        print(count - 1)
        break
    assert os.WIFSIGNALED(status), status
    found = Checkpoints(directory).find().chosen
    assert found.step in (2, 3), (count, found)
    assert (found.path / "a").read_bytes() == b"a" * found.step
    valid = [path for path in directory.glob("step-*") if isinstance(examine(path), Checkpoint)]
    assert len(valid) >= keep, (count, valid)
    write(directory, 4)
    assert not list(directory.glob(".tmp-*")), count
    left = sorted(path.name for path in directory.iterdir())
    assert left == [found.path.name, "step-00000004"], (count, left)
    shutil.rmtree(directory)
"""


@pytest.mark.process
def test_killed_before_any_single_file_operation_of_a_write_nothing_is_lost(tmp_path: Path) -> None:
    with python(KILLED_AT_EVERY_OPERATION, tmp_path) as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err.decode()
    assert int(out) > 30, "the write has hardly been interrupted: the test has shown nothing"


# --- full, read-only, missing -------------------------------------------------------------------------------------

FULL_DISK = """
import json, os, resource, subprocess, sys
from pathlib import Path
from trainbox.checkpoint.store import Checkpoints
from trainbox.errors import CheckpointError

directory, how, where = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
if how == "tmpfs":
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", directory], check=True)
store = Checkpoints(directory)
for step in (1, 2):
    with store.writing(step, info={"step": step}) as path:
        (path / "model").write_bytes(b"m" * 200_000)
before = sorted(map(str, directory.rglob("*")))
if how == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (100 if where == "manifest" else 150_000, -1))
elif where == "manifest":
    import shutil
    free = shutil.disk_usage(directory).free
    # One page for the model; a directory and the manifest want more.
    (directory / "filler").write_bytes(b"f" * (free - 4096))
    before = sorted(map(str, directory.rglob("*")))
try:
    with store.writing(3, info={"step": 3}) as path:
        (path / "model").write_bytes(b"m" * (50 if where == "manifest" else 900_000))
except CheckpointError as error:
    message = str(error)
else:
    sys.exit("a full disk went unnoticed")
found = store.latest()
after = sorted(map(str, directory.rglob("*")))
print(json.dumps({"message": message, "step": found.step, "untouched": after == before}))
"""


@functools.cache
def private_mounts() -> list[str] | None:
    """What to put before a command so that it may mount; None where nobody but the administrator may."""
    for command in (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"]):
        with contextlib.suppress(FileNotFoundError):
            if (
                subprocess.run(
                    [*command, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False
                ).returncode
                == 0
            ):
                return command
    return None


@pytest.mark.process
@pytest.mark.parametrize("where", ["model", "manifest"])
@pytest.mark.parametrize("how", ["tmpfs", "limit"])
def test_a_full_disk_costs_this_checkpoint_and_no_other(tmp_path: Path, how: str, where: str) -> None:
    if how == "tmpfs" and private_mounts() is None:
        how = "limit"
    before = private_mounts() if how == "tmpfs" else None
    with python(FULL_DISK, tmp_path / "volume", how, where, before=before) as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err.decode()
    result = json.loads(out)
    assert (result["step"], result["untouched"]) == (2, True)
    assert "the checkpoint of step 3 cannot be written to" in result["message"]
    assert ("No space left on device" if how == "tmpfs" else "File too large") in result["message"]
    assert "bytes are free, the last complete checkpoint takes 200,000" in result["message"]
    assert "hint: keep fewer checkpoints (keep=3 now) or take a larger volume" in result["message"]


READ_ONLY = """
import os, sys
from pathlib import Path
from trainbox.checkpoint.store import Checkpoints
from trainbox.errors import CheckpointError
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)  # root may write everywhere
for directory in (Path(sys.argv[1]), Path(sys.argv[1]) / "below"):
    try:
        with Checkpoints(directory).writing(2) as path:
            sys.exit("the block must not run")
    except CheckpointError as error:
        print(error.message)
print(Checkpoints(Path(sys.argv[1])).find().chosen.step)
"""


@pytest.mark.process
def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    del tmp_path  # only its owner may enter it
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        save(Checkpoints(directory), 1)
        directory.chmod(0o555)
        with python(READ_ONLY, directory) as process:
            out, err = process.communicate(timeout=300)
        directory.chmod(0o755)
        assert process.returncode == 0, err.decode()
        assert out.decode().splitlines() == [
            f"the checkpoint of step 2 cannot be written to {directory}: Permission denied",
            f"the checkpoint of step 2 cannot be written to {directory / 'below'}: Permission denied",
            "1",
        ]


def test_a_file_in_the_place_of_the_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot be written to .*file: File exists"):
        save(Checkpoints(tmp_path / "file"), 1)
    with pytest.raises(CheckpointError, match="cannot be listed: Not a directory"):
        Checkpoints(tmp_path / "file").latest()


@pytest.mark.parametrize("call", ["os.fsync", "Path.rename"])
def test_an_error_of_the_disk_itself_leaves_nothing_half_written(
    two: Checkpoints, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    before = names(two.directory)
    monkeypatch.setattr(f"trainbox.checkpoint.store.{call}", fail)
    with pytest.raises(CheckpointError, match=r"step 30 cannot be written to .*: Input/output error"):
        save(two, 30)
    assert names(two.directory) == before


def test_where_nobody_can_lock_nothing_unfinished_is_removed(two: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("trainbox.checkpoint.directory.fcntl.flock", fail)
    for name in (".tmp-step-00000025-maybe-alive.sagemaker-ignore", "step-00000025"):
        (two.directory / name).mkdir()
        (two.directory / name / "half").write_bytes(b"h")
    two.keep = 1
    save(two, 30)
    assert names(two.directory) == [".tmp-step-00000025-maybe-alive.sagemaker-ignore", "step-00000025", "step-00000030"]
