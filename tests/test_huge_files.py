"""A file of any size in the place of a manifest is an invalid checkpoint: the older is used, and one line says why."""

from pathlib import Path

import pytest

from trainbox.checkpoint.manifest import (
    LARGEST_MANIFEST_BYTES,
    MANIFEST,
    FileRecord,
    Manifest,
    encode_info,
    read_manifest,
    seal,
)
from trainbox.checkpoint.store import Checkpoint, Checkpoints
from trainbox.errors import CheckpointError


@pytest.fixture
def two(tmp_path: Path) -> Checkpoints:
    store = Checkpoints(tmp_path)
    for step in (1, 2):
        with store.writing(step) as path:
            (path / "model.bin").write_bytes(b"x" * step)
    return store


@pytest.mark.parametrize("size", [60 * 2**30, 2**40, LARGEST_MANIFEST_BYTES + 1])
def test_a_huge_manifest_gives_way_to_the_older_checkpoint(
    two: Checkpoints, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    manifest = two.directory / "step-00000002" / MANIFEST
    with manifest.open("r+b") as file:
        file.truncate(size)  # sparse: it takes no space
    capsys.readouterr()
    found = two.latest()
    assert found is not None
    assert found.step == 1
    rejected, resumed = capsys.readouterr().err.splitlines()
    assert rejected == (
        f"trainbox: rejected the checkpoint {manifest.parent}: {MANIFEST} has {size:,} bytes;"
        f" at most {LARGEST_MANIFEST_BYTES:,} are read"
    )
    assert "resuming from step 1" in resumed


def test_a_huge_file_that_the_manifest_knows_smaller_is_not_read(two: Checkpoints) -> None:
    with (two.directory / "step-00000002/model.bin").open("r+b") as file:
        file.truncate(60 * 2**30)
    search = two.find()
    assert search.chosen is not None
    assert search.chosen.step == 1
    assert [verdict.reason for verdict in search.rejected] == ["'model.bin' has 64,424,509,440 bytes, not 2"]


def test_saving_goes_on_beside_a_huge_manifest(two: Checkpoints) -> None:
    with (two.directory / "step-00000002" / MANIFEST).open("r+b") as file:
        file.truncate(60 * 2**30)
    assert two.latest() is not None
    with two.writing(3) as path:
        (path / "model.bin").write_bytes(b"xxx")
    found = two.find().chosen
    assert isinstance(found, Checkpoint)
    assert found.step == 3


def test_what_could_not_be_read_back_is_not_written() -> None:
    text = "x" * (LARGEST_MANIFEST_BYTES // 2)
    with pytest.raises(CheckpointError, match=r"step 3 take 67,\d+,\d+ bytes; at most 67,108,864") as raised:
        seal(Manifest(3, encode_info(3, {"a": text, "b": text}), {}))
    assert raised.value.hint == "write large things to a file of the checkpoint"


def test_a_manifest_of_a_hundred_thousand_files_is_read(tmp_path: Path) -> None:
    files = {f"part-{number:06d}.bin": FileRecord(1, f"{number:064x}") for number in range(100_000)}
    (tmp_path / MANIFEST).write_bytes(seal(Manifest(1, encode_info(1, {}), files)))
    assert len(read_manifest(tmp_path).files) == 100_000


@pytest.mark.parametrize("info", [b"[" * 100_000, b'{"a":' * 100_000, b"9" * 100_000, b'{"a": 1e999999}'])
def test_hostile_info_is_a_reason_and_no_end_of_the_search(two: Checkpoints, info: bytes) -> None:
    (two.directory / "step-00000002" / MANIFEST).write_bytes(info)
    search = two.find()
    assert search.chosen is not None
    assert search.chosen.step == 1
    assert len(search.rejected) == 1
