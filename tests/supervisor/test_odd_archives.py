"""Archives that are damaged, or made to harm: an error that names the member, and nothing outside of the directory."""

import contextlib
import gzip
import io
import itertools
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainbox.contract.job import read_job
from trainbox.errors import ProgramError
from trainbox.supervisor.program.archive import extract
from trainbox.supervisor.program.choice import Choice, CodeSource, resolve
from trainbox.supervisor.program.source import fetch
from trainbox.system.cgroup import ARCHIVE_DEPTH, ARCHIVE_MEMBERS, ARCHIVE_NAME_BYTES

BLOCK = 512


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, *, raw_size: bytes = b"") -> bytes:
    """A header by hand, for what tarfile does not write."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, 0 if raw_size else size
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT)[-BLOCK:])
    if raw_size:
        block[124:136] = raw_size
    return checked(block)


def checked(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(content: bytes) -> bytes:
    return content + b"\0" * (-len(content) % BLOCK)


def member(name: str, content: bytes = b"x") -> bytes:
    return header(name, len(content)) + padded(content)


def pax(records: Mapping[str, str | bytes], kind: bytes = tarfile.XHDTYPE) -> bytes:
    content = b"".join(record(key.encode(), v if isinstance(v, bytes) else v.encode()) for key, v in records.items())
    return header("pax", len(content), kind) + padded(content)


def record(key: bytes, value: bytes) -> bytes:
    rest = b" " + key + b"=" + value + b"\n"
    length = next(n for n in itertools.count(len(rest)) if n == len(rest) + len(str(n)))
    return str(length).encode() + rest


def base256(number: int) -> bytes:
    """A number as GNU tar writes those that octal digits cannot hold."""
    return (number | 0x80 << 88 if number >= 0 else 256**12 + number).to_bytes(12, "big")


END = b"\0" * 2 * BLOCK
GOOD = member("train.py", b"print(1)\n")
ODD: dict[str, tuple[bytes, str]] = {
    "a NUL in a name": (pax({"path": "a\0b"}) + member("x"), "has a NUL in its name"),
    "a name of 256 bytes": (pax({"path": "n" * 256}) + member("x"), "too long or too deep"),
    "a name of many bytes": (pax({"path": "ü" * 200}) + member("x"), "too long or too deep"),
    "a path of 4,000 bytes": (pax({"path": "/".join(["n" * 250] * 16)}) + member("x"), "too long or too deep"),
    "a deep path": (pax({"path": "d/" * 1500 + "x"}) + member("x"), "too long or too deep"),
    "a deep directory": (pax({"path": "d/" * 1500}) + header("x", kind=tarfile.DIRTYPE), "too long or too deep"),
    "a parent within a pax record": (pax({"path": "../x"}) + member("x"), "lies outside of it"),
    "a size that is no number": (pax({"size": "many"}) + member("x"), ""),
    "a negative size": (pax({"size": "-1536"}) + member("x"), "declares -1,536 bytes"),
    "a negative size in a header": (header("x", raw_size=base256(-BLOCK)), "declares -512 bytes"),
    "a size beyond 64 bits": (header("x", raw_size=base256(2**70)), "holds more than 10,737,418,240 bytes"),
    "a size beyond the archive": (header("x", raw_size=base256(2**40)), "holds more than 10,737,418,240 bytes"),
    "a size beyond the archive in a record": (pax({"size": str(2**62)}) + member("x"), "holds more than"),
    "a size beyond a shorter archive": (header("x", raw_size=base256(2**30)), "cannot be unpacked"),
    "a huge header of a header": (header("x", 2**33 - 1, tarfile.XHDTYPE), "declares 8,589,934,591 bytes"),
    "a huge long name": (header("x", 2**31, tarfile.GNUTYPE_LONGNAME), "declares 2,147,483,648 bytes"),
    "a negative header of a header": (header("x", kind=tarfile.XHDTYPE, raw_size=base256(-BLOCK)), "declares -512"),
    "records that do not end": (header("pax", 9, tarfile.XHDTYPE) + padded(b"999 path="), ""),
    "records without a length": (header("pax", 9, tarfile.XHDTYPE) + padded(b"xx path=y"), ""),
    "records of length 0": (header("pax", 9, tarfile.XHDTYPE) + padded(b"0 path=y\n"), ""),
    "headers of headers without end": (pax({"a": "b"}) * 3000 + member("x"), "cannot be unpacked"),
    "a sparse file": (header("x", kind=tarfile.GNUTYPE_SPARSE), "is a sparse file"),
    "a sparse file of 8 EiB": (
        pax({"GNU.sparse.size": str(2**63), "GNU.sparse.numblocks": "0", "GNU.sparse.map": "0,1"}) + member("x"),
        "is a sparse file",
    ),
    "a sparse file with a map that is none": (
        pax({"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"}) + member("x", b"9\nx"),
        "cannot be unpacked",
    ),
    "a damaged header in the middle": (header("x")[:100] + b"?" + header("x")[101:] + member("y"), "header is damaged"),
    "half a header": (header("x")[:200], "header is damaged"),
    "a file in the place of a folder": (member("a") + member("a/b"), "cannot be unpacked"),
    "a folder in the place of a file": (header("a", kind=tarfile.DIRTYPE) + member("a"), "cannot be unpacked"),
    "no name": (member(""), "cannot be unpacked"),
}


def unpack(content: bytes, scratch: Path) -> Path:
    archive, target = scratch / "a.tar.gz", scratch / "in/it"
    archive.write_bytes(content)
    target.mkdir(parents=True)
    extract(archive, target, shown="a.tar.gz")
    return target


def names(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


@pytest.mark.parametrize("packed", [bytes, lambda content: gzip.compress(content, 1)], ids=["plain", "gzip"])
@pytest.mark.parametrize(("odd", "message"), ODD.values(), ids=ODD.keys())
def test_an_odd_archive_is_refused_with_the_reason(
    tmp_path: Path, odd: bytes, message: str, packed: Callable[[bytes], bytes]
) -> None:
    closed = odd if message == "header is damaged" and len(odd) < BLOCK else odd + END
    if not message:  # tarfile itself makes the best of it
        with contextlib.suppress(ProgramError):
            unpack(packed(GOOD + closed), tmp_path)
    else:
        with pytest.raises(ProgramError, match=rf"^the archive a\.tar\.gz .*{message}") as raised:
            unpack(packed(GOOD + closed), tmp_path)
        assert raised.value.hint or "lies outside" in raised.value.message
        assert len(raised.value.message) < 600
    assert {name.split("/")[0] for name in names(tmp_path)} == {"a.tar.gz", "in"}


@pytest.mark.parametrize("length", [1, 9, 10, 17, 18, 40, -9, -8, -4, -1])
def test_a_compressed_archive_that_is_cut_off_is_refused(tmp_path: Path, length: int) -> None:
    whole = gzip.compress(GOOD + member("data.bin", bytes(range(256)) * 8) + END)
    with pytest.raises(ProgramError, match="cannot be unpacked"):
        unpack(whole[:length], tmp_path)


def test_nothing_is_left_of_an_archive_that_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(GOOD + ODD["a deep path"][0] + END)
    with pytest.raises(ProgramError, match="too deep"):
        fetch(CodeSource("archive", str(path)), read_job(tmp_path / "ml", {}), print)
    assert names(tmp_path / "ml") == []


def build(parts: list[tuple[str, bytes, bytes]]) -> bytes:
    with io.BytesIO() as buffer:
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name, content, kind in parts:
                info = tarfile.TarInfo(name)
                info.type, info.size, info.linkname = kind, len(content), "../../outside"
                tar.addfile(info, io.BytesIO(content))
        return buffer.getvalue()


_NAMES = st.sampled_from(["a", "a/b", "../x", "/x", "ü" * 120, "d/" * 60, "x" * 300, "a\udcff", ".", "a//b", "c/../d"])
_KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.GNUTYPE_SPARSE])
_PARTS = st.lists(st.tuples(_NAMES, st.binary(max_size=700), _KINDS), min_size=1, max_size=5)
_CHANGES = st.lists(st.tuples(st.integers(0, 6000), st.binary(min_size=1, max_size=12)), max_size=6)


@given(_PARTS, _CHANGES, st.booleans(), st.booleans())
@settings(max_examples=300)
def test_a_changed_archive_is_unpacked_or_refused(
    parts: list[tuple[str, bytes, bytes]], changes: list[tuple[int, bytes]], mended: bool, zipped: bool
) -> None:
    content = bytearray(build([(n, b"" if k != tarfile.REGTYPE else c, k) for n, c, k in parts]))
    for place, change in changes:
        place %= len(content)  # noqa: PLW2901
        content[place : place + len(change)] = change
    if mended:  # so that tarfile believes the headers that were changed
        for start in range(0, len(content) - BLOCK, BLOCK):
            if content[start + 257 : start + 262] == b"ustar":
                content[start : start + BLOCK] = checked(content[start : start + BLOCK])
    with tempfile.TemporaryDirectory() as scratch:
        with contextlib.suppress(ProgramError):  # anything else fails the test
            unpack(gzip.compress(content, 1) if zipped else bytes(content), Path(scratch))
        assert {name.split("/")[0] for name in names(Path(scratch))} <= {"a.tar.gz", "in"}
        assert set(os.listdir(Path(scratch, "in"))) == {"it"}  # noqa: PTH208
        assert not any(path.is_symlink() for path in Path(scratch).rglob("*"))


# ---- limits: each of them, and one beyond ----

LIMIT_BYTES = 100_000


def within(content: bytes, scratch: Path) -> Path:
    archive, target = scratch / "a.tar.gz", scratch / "it"
    archive.write_bytes(gzip.compress(content, 1))
    target.mkdir()
    extract(archive, target, shown="a.tar.gz", most_bytes=LIMIT_BYTES)
    return target


@pytest.mark.parametrize("beyond", [0, 1])
def test_an_archive_holds_so_many_bytes(tmp_path: Path, beyond: int) -> None:
    size = LIMIT_BYTES - len(GOOD) - BLOCK + beyond
    content = GOOD + member("data", b"x" * size) + END
    if beyond:
        with pytest.raises(ProgramError, match=r"is refused: it holds more than 100,000 bytes") as raised:
            within(content, tmp_path)
        assert "trainbox_source_bytes" in raised.value.hint
        assert names(tmp_path / "it") == []
    else:
        assert (within(content, tmp_path) / "data").stat().st_size == size


def test_headers_count_too(tmp_path: Path) -> None:
    """Long names and records alone would fill the memory."""
    with pytest.raises(ProgramError, match="holds more than 100,000 bytes"):
        within(b"".join(pax({"comment": "x" * 9000}) + member(f"f{n}") for n in range(12)) + END, tmp_path)


def test_what_lies_behind_the_last_member_counts_too(tmp_path: Path) -> None:
    """389 kB of zeros, compressed, are 400 MB."""
    with pytest.raises(ProgramError, match="holds more than 100,000 bytes"):
        within(GOOD + END + b"\0" * 4_000_000, tmp_path)


@pytest.mark.parametrize("beyond", [0, 1])
def test_an_archive_has_so_many_members(tmp_path: Path, beyond: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainbox.supervisor.program.archive.ARCHIVE_MEMBERS", 20)  # the real one takes seconds
    content = b"".join(member(f"f{n}") for n in range(20 + beyond)) + END
    if beyond:
        with pytest.raises(ProgramError, match="is refused: it has more than 20 members"):
            unpack(content, tmp_path)
    else:
        assert len(names(unpack(content, tmp_path))) == 20


def test_an_archive_has_no_more_than_a_hundred_thousand_members() -> None:
    assert ARCHIVE_MEMBERS == 100_000


@pytest.mark.parametrize("beyond", [0, 1])
@pytest.mark.parametrize("what", ["depth", "name", "path"])
def test_a_name_is_so_deep_and_so_long(tmp_path: Path, what: str, beyond: int) -> None:
    name = {
        "depth": "/".join(["d"] * (ARCHIVE_DEPTH + beyond)),
        "name": "n" * (ARCHIVE_NAME_BYTES + beyond),
        # The slashes are not counted.
        "path": "/".join(["n" * 192] * 16) if not beyond else "/".join([*["n" * 192] * 15, "n" * 193]),
    }[what]
    content = pax({"path": name}) + member("x") + END
    if beyond:
        with pytest.raises(ProgramError, match="too long or too deep"):
            unpack(content, tmp_path)
    else:
        assert (unpack(content, tmp_path) / name).is_file()


# ---- the same of directories, and of the program within ----


@pytest.mark.process
def test_a_deep_directory_of_code_is_copied_or_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    here = os.open(source, os.O_RDONLY)
    try:
        for _ in range(1200):  # deeper than Python calls
            os.mkdir("d", dir_fd=here)
            below = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
    finally:
        os.close(here)
    try:
        with pytest.raises(ProgramError, match="cannot be put in"):
            fetch(CodeSource("directory", str(source)), read_job(tmp_path / "ml", {}), print)
        assert resolve(Choice("train.py", CodeSource("place", "x")), good(tmp_path)).name == "train.py"
    finally:
        subprocess.run(["rm", "-rf", str(source), str(tmp_path / "ml")], check=True)  # which can, unlike Python


def good(tmp_path: Path) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "code/train.py").touch()
    return tmp_path / "code"


@pytest.mark.parametrize("name", ["x" * 256 + ".py", "a/" * 3000 + "x.sh", "loop"], ids=["long", "deep", "loop"])
def test_a_program_that_cannot_be_looked_up_is_said(tmp_path: Path, name: str) -> None:
    directory = good(tmp_path)
    (directory / "loop").symlink_to("loop")
    with pytest.raises(ProgramError, match=r"cannot be looked up|there is no program") as raised:
        resolve(Choice(name, CodeSource("place", "x")), directory)
    assert len(raised.value.message) < 600
    assert raised.value.hint


@pytest.mark.parametrize("kind", ["archive", "directory"])
def test_a_source_with_too_long_a_name_is_said(tmp_path: Path, kind: str) -> None:
    source = CodeSource("archive" if kind == "archive" else "directory", "/" + "x" * 5000)
    with pytest.raises(ProgramError, match="File name too long") as raised:
        fetch(source, read_job(tmp_path / "ml", {}), print)
    assert len(raised.value.message) < 600
