"""Code is unpacked whole or not at all, and nothing in an archive reaches outside of it."""

import contextlib
import io
import os
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainbox.contract.job import Job, read_job
from trainbox.errors import ProgramError
from trainbox.supervisor.program.archive import extract
from trainbox.supervisor.program.choice import CodeSource
from trainbox.supervisor.program.source import fetch

Member = tuple[tarfile.TarInfo, bytes]


def member(
    name: str, content: bytes = b"", *, kind: bytes = tarfile.REGTYPE, mode: int = 0o644, link: str = ""
) -> Member:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.mode, info.linkname = len(content), kind, mode, link
    return info, content


def archive(path: Path, *members: Member, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]  # the mode is a parameter here
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


GOOD = (member("train.py", b"print(1)\n"), member("src", kind=tarfile.DIRTYPE), member("src/run.sh", b"x", mode=0o755))
UNSAFE = {
    "a parent directory": (member("../x.py", b"x"), "lies outside of it"),
    "a parent directory within": (member("src/../../x.py", b"x"), "lies outside of it"),
    "an absolute name": (member("/tmp/x.py", b"x"), "lies outside of it"),
    "a symbolic link": (member("x.py", kind=tarfile.SYMTYPE, link="/etc/passwd"), "is a link"),
    "a hard link": (member("x.py", kind=tarfile.LNKTYPE, link="train.py"), "is a link"),
    "a FIFO": (member("x.py", kind=tarfile.FIFOTYPE), "is a device"),
    "a character device": (member("x.py", kind=tarfile.CHRTYPE), "is a device"),
    "a block device": (member("x.py", kind=tarfile.BLKTYPE), "is a device"),
}


def job(tmp_path: Path) -> Job:
    return read_job(tmp_path / "ml", {})


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def silent(text: str) -> None:
    raise AssertionError(f"nothing was to be said, but: {text}")


@pytest.mark.parametrize(
    ("suffix", "mode"), [("tar.gz", "w:gz"), ("tar", "w"), ("tar.bz2", "w:bz2"), ("tar.xz", "w:xz")]
)
def test_an_archive_takes_the_place_of_what_lies_there(tmp_path: Path, suffix: str, mode: str) -> None:
    path = archive(tmp_path / f"source.{suffix}", *GOOD, mode=mode)
    code = tmp_path / "ml/code"
    code.mkdir(parents=True)
    (code / "stale.py").touch()
    assert fetch(CodeSource("archive", str(path)), job(tmp_path), silent) == code
    assert contents(code) == {"train.py": b"print(1)\n", "src/run.sh": b"x"}
    assert os.access(code / "src/run.sh", os.X_OK)
    assert not (code / "train.py").stat().st_mode & 0o111
    assert [path.name for path in code.parent.iterdir()] == ["code"]


@pytest.mark.parametrize(("bad", "message"), UNSAFE.values(), ids=UNSAFE.keys())
def test_an_unsafe_member_refuses_the_archive_and_changes_nothing(tmp_path: Path, bad: Member, message: str) -> None:
    path = archive(tmp_path / "source.tar.gz", *GOOD, bad)
    code = tmp_path / "ml/code"
    code.mkdir(parents=True)
    (code / "old.py").write_bytes(b"old")
    with pytest.raises(ProgramError, match=message) as raised:
        fetch(CodeSource("archive", str(path)), job(tmp_path), silent)
    assert bad[0].name.lstrip("/") in raised.value.message
    assert contents(code.parent) == {"code/old.py": b"old"}
    assert [path.name for path in code.parent.iterdir()] == ["code"]


def packed(mode: str) -> bytes:
    with io.BytesIO() as buffer:
        with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]  # as above
            for info, content in (*GOOD, member("data.bin", bytes(range(256)) * 2)):
                tar.addfile(info, io.BytesIO(content))
        return buffer.getvalue()


@given(st.sampled_from(["w:gz", "w:xz", "w:bz2", "w"]), st.integers(0, 600), st.integers(0, 255))
@settings(max_examples=150)
def test_a_damaged_archive_is_an_error_of_ours_and_never_a_crash(mode: str, place: int, flip: int) -> None:
    damaged = bytearray(packed(mode))
    if flip:
        damaged[place % len(damaged)] ^= flip
    else:
        del damaged[place:]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "a.tar.gz")
        path.write_bytes(damaged)
        with contextlib.suppress(ProgramError):  # anything else fails the test
            extract(path, Path(scratch), shown="a.tar.gz")


@pytest.mark.parametrize("content", [b"", b"this is no archive", b"PK\x03\x04 nor is a zip"])
def test_what_is_no_archive_is_said(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "source.tar.gz"
    path.write_bytes(content)
    with pytest.raises(ProgramError, match=r"the archive .*source\.tar\.gz cannot be unpacked"):
        fetch(CodeSource("archive", str(path)), job(tmp_path), silent)
    assert list((tmp_path / "ml").iterdir()) == []


def test_a_missing_archive_is_said(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match=r"there is no archive /none/source\.tar\.gz"):
        fetch(CodeSource("archive", "/none/source.tar.gz"), job(tmp_path), silent)


def test_a_directory_is_copied_and_the_original_stays(tmp_path: Path) -> None:
    (tmp_path / "source/src").mkdir(parents=True)
    (tmp_path / "source/src/train.py").write_bytes(b"x")
    code = fetch(CodeSource("directory", str(tmp_path / "source")), job(tmp_path), silent)
    assert contents(code) == contents(tmp_path / "source") == {"src/train.py": b"x"}


def test_a_directory_with_one_archive_is_that_archive(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    archive(tmp_path / "source/sourcedir.tar.gz", *GOOD)
    code = fetch(CodeSource("directory", str(tmp_path / "source")), job(tmp_path), silent)
    assert "train.py" in contents(code)


def test_a_directory_that_cannot_be_copied_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    os.mkfifo(tmp_path / "source/pipe")
    with pytest.raises(ProgramError, match="cannot be put in"):
        fetch(CodeSource("directory", str(tmp_path / "source")), job(tmp_path), silent)
    assert list((tmp_path / "ml").iterdir()) == []


def test_code_that_can_be_put_nowhere_says_what_to_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = job(tmp_path)
    here.layout.root.touch()  # no directory can be made below it
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(ProgramError, match="there is no place for the code") as raised:
        fetch(CodeSource("directory", str(tmp_path)), here, silent)
    assert "--tmpfs /tmp" in raised.value.hint


def test_a_missing_directory_is_said(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="the source /none is not a directory"):
        fetch(CodeSource("directory", "/none"), job(tmp_path), silent)


def test_a_code_directory_that_is_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/precious").touch()
    (tmp_path / "ml").mkdir()
    (tmp_path / "ml/code").symlink_to(tmp_path / "elsewhere")
    code = fetch(CodeSource("archive", str(archive(tmp_path / "a.tar.gz", *GOOD))), job(tmp_path), silent)
    assert not code.is_symlink()
    assert "train.py" in contents(code)
    assert (tmp_path / "elsewhere/precious").exists()


@pytest.mark.parametrize("uri", ["s3://", "s3://bucket", "s3://bucket/", "s3:///key"])
def test_an_s3_address_without_bucket_or_key_is_said(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ProgramError, match="expected s3://BUCKET/KEY"):
        fetch(CodeSource("s3", uri), job(tmp_path), silent)


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://minio:9000",
        "http://10.0.0.7",
        "http://169.254.169.254",
        "http://localhost.evil.example",
        "http://[fe80::1]",
    ],
)
def test_a_signed_request_goes_to_no_other_machine_without_tls(tmp_path: Path, endpoint: str) -> None:
    asked = read_job(tmp_path / "ml", {"S3_ENDPOINT_URL": endpoint})
    with pytest.raises(ProgramError, match=r"the S3 endpoint http://.* is refused: without TLS") as raised:
        fetch(CodeSource("s3", "s3://bucket/key.tar.gz"), asked, silent)
    assert "https://" in raised.value.hint
