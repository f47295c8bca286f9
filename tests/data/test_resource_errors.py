"""Too little memory, threads or files is said as what it is, and never blamed on sound data."""

import errno
import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pytest

from tests.support.writers import write
from trainbox.data import estimate_bytes, read_blocks, read_table
from trainbox.data.resource_errors import find_exhausted
from trainbox.errors import DataError, ResourceError
from trainbox.system.cgroup import describe_limits

CSV, SVM = {"a.csv": "1,2,3\n0,4,5\n"}, {"a.svm": "1 1:2\n0 2:4\n"}
SHORTAGES = {
    "Python's memory": (MemoryError(), "memory"),
    "Arrow's memory": (pa.ArrowMemoryError("malloc of size 64 failed"), "memory"),
    "memory of a system call": (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory"),
    "memory within Parquet": (OSError("Unknown error: std::bad_alloc"), "memory"),
    "Python's threads": (RuntimeError("can't start new thread"), "threads"),
    "Arrow's threads": (
        pa.ArrowException("Unknown error: Failed to launch worker thread: Resource temporarily unavailable"),
        "threads",
    ),
    "processes": (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "threads"),
    "files of this process": (OSError(errno.EMFILE, "Too many open files"), "open files"),
    "files of the machine": (OSError(errno.ENFILE, "Too many open files in system"), "open files"),
}
OTHERS = {
    "a cell that quotes such words": pa.ArrowInvalid("CSV conversion error to float: invalid value 'bad_alloc'"),
    "a file that is not there": FileNotFoundError(errno.ENOENT, "No such file or directory", "bad_alloc"),
    "a torn file": OSError("Truncated compressed stream"),
    "an error of the data": DataError("train/bad_alloc.csv: no row"),
    "an error of the program": RuntimeError("generator raised StopIteration"),
}


@pytest.mark.parametrize(("error", "lacking"), SHORTAGES.values(), ids=SHORTAGES.keys())
def test_what_is_lacking_is_told(error: Exception, lacking: str) -> None:
    assert find_exhausted(error) == lacking


@pytest.mark.parametrize("error", OTHERS.values(), ids=OTHERS.keys())
def test_any_other_error_is_no_shortage(error: Exception) -> None:
    assert find_exhausted(error) is None


@pytest.mark.parametrize("files", [CSV, SVM], ids=["CSV", "libsvm"])
@pytest.mark.parametrize(("error", "lacking"), SHORTAGES.values(), ids=SHORTAGES.keys())
def test_a_parser_that_lacks_something_blames_no_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], error: Exception, lacking: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(pyarrow.csv, "read_csv", fail)
    channel = write(tmp_path, files)
    uses: list[Callable[[Path], object]] = [read_table, lambda path: list(read_blocks(path)), estimate_bytes]
    for use in uses:
        with pytest.raises(ResourceError, match=r"^train.*: (not enough memory|no thread|too many files)") as raised:
            use(channel)
        assert raised.value.hint
        assert str(error).partition("\n")[0] in raised.value.message
        assert describe_limits({"memory"} if lacking == "memory" else ()) in raised.value.message


def test_limits_of_a_container_are_named(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("0::/\n")
    for name, text in (("memory.max", "536870912\n"), ("memory.current", "535822336\n"), ("pids.max", "64\n")):
        (tmp_path / name).write_text(text)
    text = describe_limits({"memory", "threads"}, root=tmp_path, membership=tmp_path / "cgroup")
    assert "memory of the container 512 MiB (511 in use)" in text
    assert "processes and threads of the container (pids.max) 64" in text
    assert "open files" not in text


def test_a_container_without_limits_names_none(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("0::/\n")
    (tmp_path / "memory.max").write_text("max\n")
    text = describe_limits({"memory"}, root=tmp_path, membership=tmp_path / "cgroup")
    assert "container" not in text


# ---- under limits of the kernel ----

_READ = """
import os, resource, sys
from pathlib import Path
import pyarrow.csv, pyarrow.parquet
from trainbox.data import read_table
from trainbox.data.formats.recordio_wire import record_class
record_class()
kind, number = sys.argv[1], int(sys.argv[2])
if kind == "threads":
    if os.getuid() == 0:  # whom this limit does not hold
        os.setgid(54321)
        os.setuid(54321)
    resource.setrlimit(resource.RLIMIT_NPROC, (number, number))
else:
    (used,) = (int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, (used * 1024 + number * 2**20,) * 2)
try:
    print(len(read_table(Path("train")).labels))
except Exception as error:
    print(type(error).__name__, error)
"""


def read_under(limit: str, number: int, directory: Path) -> subprocess.CompletedProcess[str]:
    directory.chmod(0o755)
    return subprocess.run(
        [sys.executable, "-c", _READ, limit, str(number)],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@functools.cache
def large(kind: str) -> dict[str, bytes]:
    """60,000 rows of 11 columns."""
    import gzip  # noqa: PLC0415

    import numpy as np  # noqa: PLC0415
    from pyarrow import parquet  # noqa: PLC0415

    rows = np.arange(660_000, dtype=np.float32).reshape(-1, 11)
    text = "".join(",".join(map(str, row)) + "\n" for row in rows.tolist()).encode()
    if kind == "CSV":
        return {"a.csv": text}
    if kind == "gzip":
        return {"a.csv.gz": gzip.compress(text, 1)}
    if kind == "libsvm":
        lines = (" ".join(f"{i}:{value}" for i, value in enumerate(row)) for row in rows.tolist())
        return {"a.svm": "".join(f"1 {line}\n" for line in lines).encode()}
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table({str(i): rows[:, i] for i in range(11)}), sink)
    return {"a.parquet": sink.getvalue().to_pybytes()}


@pytest.mark.process
@pytest.mark.parametrize("kind", ["CSV", "gzip", "libsvm", "Parquet"])
def test_a_user_without_threads_is_told_so(tmp_path: Path, kind: str) -> None:
    write(tmp_path, large(kind))
    answer = read_under("threads", 1, tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("ResourceError train/a."), answer.stdout
    assert "no thread could be started" in answer.stdout
    assert "processes and threads of this user (RLIMIT_NPROC) 1" in answer.stdout
    assert "hint: raise the limit" in answer.stdout


@pytest.mark.process
@pytest.mark.parametrize(
    "kind", [*(pytest.param(kind, marks=pytest.mark.long) for kind in ("CSV", "gzip", "libsvm")), "Parquet"]
)
def test_a_process_without_memory_is_told_so_and_ends(tmp_path: Path, kind: str) -> None:
    write(tmp_path, large(kind))
    answers = [read_under("memory", mib, tmp_path) for mib in (1, 16, 44)]
    for answer in answers:
        # C++ itself gives up at some limits; what it says has a hint.
        assert answer.returncode in {0, -6, 127}, answer.stderr
        if answer.returncode == 0:
            assert answer.stdout.startswith(("ResourceError train/a.", "60000")), answer.stdout
    assert "address space (RLIMIT_AS)" in answers[0].stdout


@pytest.mark.process
def test_a_process_with_too_many_files_is_told_so(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from trainbox.data import read_table\n"
        "import os; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)); kept = []\n"
        "try:\n    while True: kept.append(os.open('/', os.O_RDONLY))\n"
        "except OSError: pass\n"
        "try: read_table(Path('train'))\nexcept Exception as error: print(type(error).__name__, error)\n"
    )
    write(tmp_path, CSV)
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("ResourceError"), answer.stdout
    assert "too many files are open" in answer.stdout
    assert "open files (RLIMIT_NOFILE) 64" in answer.stdout


# ---- names that are not UTF-8 ----


def test_a_bad_cell_in_a_file_whose_name_is_not_utf8_is_named(tmp_path: Path) -> None:
    directory = write(tmp_path, CSV)
    (directory / os.fsdecode(b"b\xff.csv")).write_text("1,2,3\n0,x,5\n")
    with pytest.raises(DataError, match=r"train/b\\udcff\.csv:2: column 2") as raised:
        read_table(directory)
    raised.value.message.encode()


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000])
def test_a_channel_whose_path_is_too_long_is_said(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="cannot be listed: File name too long") as raised:
        read_table(tmp_path / name)
    assert len(raised.value.message) < 300


def test_folders_deeper_than_anybody_means_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {f"{'d/' * 150}a.csv": "1,2,3\n"})
    with pytest.raises(DataError, match="more than 100 folders within each other"):
        read_table(tmp_path / "train")
    assert len(read_table(write(tmp_path, {f"{'d/' * 90}a.csv": "1,2,3\n"}, "other")).labels) == 1
