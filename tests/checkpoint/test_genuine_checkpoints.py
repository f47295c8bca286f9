"""With a key of the job a checkpoint is genuine or refused, and one that is forged never gives way to an older one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.support.forged_checkpoints import seal_anew
from trainbox.checkpoint.manifest import (
    MANIFEST,
    UPLOADED,
    UPLOADING,
    Manifest,
    NotGenuineError,
    encode_info,
    is_inside,
    open_sealed,
    read_sealed,
    require_genuine,
    seal,
)
from trainbox.checkpoint.store import Checkpoint, Checkpoints, Rejected, examine

KEY, OTHER, THIRD = (bytes([number]) * 32 for number in (1, 2, 3))


def save(directory: Path, step: int, *keys: bytes) -> Path:
    with Checkpoints(directory, keys=keys).writing(step, info={"loss": 0.5}) as path:
        (path / "model.bin").write_bytes(b"weights %d" % step)
        (path / "parts").mkdir()
        (path / "parts" / "one").write_bytes(b"part")
    return directory / f"step-{step:08d}"


def test_what_a_key_has_sealed_is_found_with_it_and_without_any(tmp_path: Path) -> None:
    path = save(tmp_path, 10, KEY)
    for keys in ((KEY,), (OTHER, KEY), ()):
        found = Checkpoints(tmp_path, keys=keys).find().chosen
        assert found is not None
        assert (found.path, found.step, found.info) == (path, 10, {"loss": 0.5})


def test_the_first_of_several_keys_seals_so_that_keys_can_be_changed(tmp_path: Path) -> None:
    save(tmp_path, 10, KEY)
    save(tmp_path, 20, OTHER, KEY)
    assert Checkpoints(tmp_path, keys=(OTHER, KEY)).latest() is not None
    shutil.rmtree(tmp_path / "step-00000010")
    assert Checkpoints(tmp_path, keys=(OTHER,)).latest() is not None
    with pytest.raises(NotGenuineError, match="was made with none of its keys"):
        Checkpoints(tmp_path, keys=(KEY,)).latest()


def forge_file(path: Path) -> None:
    (path / "model.bin").write_bytes(b"forged")
    seal_anew(path)


def forge_info(path: Path) -> None:
    record = json.loads((path / MANIFEST).read_text())
    manifest = open_sealed(read_sealed(path))
    fresh = json.loads(seal(Manifest(manifest.step, encode_info(10, {"loss": 0.0}), manifest.files)))
    (path / MANIFEST).write_text(json.dumps({**fresh, "hmac": record["hmac"]}, separators=(",", ":")))


def seal_with_another_key(path: Path) -> None:
    (path / MANIFEST).write_bytes(seal(open_sealed(read_sealed(path)), [OTHER]))


def add_a_file(path: Path) -> None:
    (path / "parts" / "two").write_bytes(b"forged")


def add_a_link(path: Path) -> None:
    (path / "parts" / "two").symlink_to("one")


def take_the_seal_away(path: Path) -> None:
    (path / MANIFEST).write_bytes(seal(open_sealed(read_sealed(path))))


def garble_the_seal(path: Path) -> None:
    record = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**record, "hmac": "é\u0000"}, separators=(",", ":")))


FORGERIES: dict[str, tuple[Callable[[Path], None], str]] = {
    "other content": (forge_file, "the seal of TRAINBOX_CHECKPOINT_KEY is missing"),
    "other info under the old seal": (forge_info, "was made with none of its keys"),
    "another key": (seal_with_another_key, "was made with none of its keys"),
    "one more file": (add_a_file, f"'parts/two' is not in its {MANIFEST}"),
    "one more link": (add_a_link, f"'parts/two' is not in its {MANIFEST}"),
    "no seal": (take_the_seal_away, "is missing"),
    "a seal that is none": (garble_the_seal, "was made with none of its keys"),
}


@pytest.mark.parametrize(("forge", "why"), FORGERIES.values(), ids=FORGERIES)
def test_a_forged_checkpoint_ends_the_job_though_an_older_one_is_genuine(
    forge: Callable[[Path], None], why: str, tmp_path: Path
) -> None:
    save(tmp_path, 10, KEY)
    forge(save(tmp_path, 20, KEY))
    with pytest.raises(NotGenuineError) as refused:
        Checkpoints(tmp_path, keys=(KEY,)).latest()
    assert refused.value.message.startswith(f"the checkpoint {tmp_path}/step-00000020 is whole, but not genuine: ")
    assert why in refused.value.message
    assert refused.value.exit_code == 8
    assert "remove it to resume from the one before" in refused.value.hint
    shutil.rmtree(tmp_path / "step-00000020")
    found = Checkpoints(tmp_path, keys=(KEY,)).latest()
    assert found is not None
    assert found.step == 10


def test_a_damaged_checkpoint_still_gives_way_to_the_one_before(tmp_path: Path) -> None:
    save(tmp_path, 10, KEY)
    damaged = save(tmp_path, 20)  # not sealed either: but nobody asks who wrote what is not whole
    (damaged / "model.bin").write_bytes(b"WEIGHTS 20")
    search = Checkpoints(tmp_path, keys=(KEY,)).find()
    assert search.chosen is not None
    assert search.chosen.step == 10
    assert [one.reason for one in search.rejected] == [f"'model.bin' does not have the digest that {MANIFEST} names"]


def test_the_marks_of_sagemakers_agent_are_no_strangers(tmp_path: Path) -> None:
    path = save(tmp_path, 10, KEY)
    for name in ("model.bin", MANIFEST, "parts/one"):
        for mark in (UPLOADING, UPLOADED):
            (path / f"{name}{mark}").touch()
    assert isinstance(examine(path, keys=(KEY,)), Checkpoint)


def test_a_seal_of_one_checkpoint_is_none_of_another(tmp_path: Path) -> None:
    old, new = save(tmp_path, 10, KEY), save(tmp_path, 20, KEY)
    shutil.rmtree(new)
    old.rename(new)  # an old state under a new name
    assert isinstance(examine(new, keys=(KEY,)), Rejected)


def test_a_store_below_another_seals_as_that_does(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=5, keys=(KEY,)).below("algo-2").writing(1) as path:
        (path / "a").touch()
    below = Checkpoints(tmp_path, keep=5, keys=(KEY,)).below("algo-2")
    assert (below.directory, below.keep) == (tmp_path / "algo-2", 5)
    require_genuine(tmp_path, read_sealed(tmp_path / "algo-2" / "step-00000001"), (KEY,))


def test_checkpoints_of_every_origin_are_pruned_alike(tmp_path: Path) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20, OTHER)
    for step in (30, 40, 50):
        save(tmp_path, step, KEY)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-000000{step}" for step in (30, 40, 50)]


def test_without_a_key_a_manifest_is_as_it_was(tmp_path: Path) -> None:
    assert "hmac" not in json.loads((save(tmp_path, 10) / MANIFEST).read_text())
    sealed = json.loads((save(tmp_path, 20, KEY) / MANIFEST).read_text())
    assert len(bytes.fromhex(sealed.pop("hmac"))) == 32
    assert sorted(sealed) == ["format", "manifest", "sha256"]


def test_two_jobs_with_one_key_make_one_seal_of_one_manifest() -> None:
    manifest = Manifest(1, msgspec.Raw(b"{}"), {})
    assert seal(manifest, [KEY, OTHER]) == seal(manifest, [KEY])
    assert len({seal(manifest, [key]) for key in (KEY, OTHER, THIRD)}) == 3


@pytest.mark.parametrize(
    "name", ["../a", "/a", "a/../b", "a//b", ".", "", "a\0b", "a" * 256, "é" * 128, "/".join(["a" * 99] * 50), "\ud800"]
)
def test_a_name_that_leads_out_or_that_linux_does_not_take_is_not_inside(name: str) -> None:
    assert not is_inside(name)
    assert is_inside("a/b.bin")
    assert is_inside("..a/é" + "b" * 200)
