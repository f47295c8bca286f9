"""A `trainbox run` or a supervisor that is killed leaves no job that runs on, and no directory for ever."""

import contextlib
import fcntl
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support.waiting import eventually
from trainbox.local.backends import namespace
from trainbox.system.shm_dir import make_scratch, remove_abandoned, scratch_directory, temporary_directory

COMMAND = [sys.executable, "-m", "trainbox", "run", "src/train.py", "--out", "out"]


def marked(mark: str) -> list[int]:
    """The processes that have a mark in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (path / "environ").read_bytes():
                found.append(int(path.name))
    return found


def is_unmarked(mark: str) -> bool:
    return not marked(mark)


def enter(stdin: int, tmp_path: Path) -> "subprocess.CompletedProcess[str]":
    argv = namespace.started_in(namespace.spec("none", []), ["/bin/touch", str(tmp_path / "ran")])
    return subprocess.run(argv, stdin=stdin, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.process
@pytest.mark.parametrize("is_alive", [True, False])
def test_a_host_whose_trainbox_run_died_before_it_could_ask_to_die_with_it_does_not_run(
    tmp_path: Path, is_alive: bool
) -> None:
    stdin, alive = os.pipe()
    if not is_alive:
        os.close(alive)
    done = enter(stdin, tmp_path)
    assert (tmp_path / "ran").exists() is is_alive
    assert done.returncode == (0 if is_alive else namespace.EXIT_CODE)
    assert done.stderr == ("" if is_alive else "trainbox: trainbox run has ended\n")
    os.close(stdin)
    if is_alive:
        os.close(alive)


@pytest.mark.process
def test_a_run_that_is_killed_as_soon_as_its_host_starts_leaves_no_job(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "train.py").write_text("import time\ntime.sleep(600)\n")
    for number in range(5):
        mark = f"{tmp_path}-{number}"
        with subprocess.Popen(
            [*COMMAND, f"--out=out-{number}"],
            cwd=tmp_path,
            env={**os.environ, "MARK": mark},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            eventually(partial(is_started, children), "a host")
            process.kill()
        eventually(partial(is_unmarked, mark), "the end of all its processes")


def is_started(children: Path) -> bool:
    """Whether a host is a process; before, there is a short one that tries what mounts are allowed."""
    for pid in children.read_text().split():
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"namespace.py" in command and b"trainbox.supervisor" in command:
                return True
    return False


#: On SIGTERM it waits for a file before it saves and leaves; a later attempt says what has been saved.
SLOW = """
import os, signal, sys, time
from pathlib import Path
here, checkpoints = Path(sys.argv[2]), Path(os.environ["SM_MODEL_DIR"]).parent / "checkpoints"
if (here / "go").exists():
    sys.exit(print("saved:", (checkpoints / "saved").exists()))
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
print("now at work", flush=True)
while not (stopped and (here / "go").exists()): time.sleep(0.005)
(checkpoints / "saved").touch()
"""


@pytest.mark.process
def test_an_attempt_waits_for_the_hosts_of_one_that_was_killed_to_save_and_leave(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "train.py").write_text(SLOW)
    command, log = [*COMMAND, "--hp", f"here={tmp_path}"], tmp_path / "out/logs/algo-1.log"
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        eventually(lambda: log.exists() and "now at work" in log.read_text(), "the script")
        first.kill()
    with subprocess.Popen(
        [*command, "--resume"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as second:
        assert second.stderr is not None
        while "hosts of attempt 1, which was killed, are still leaving" not in second.stderr.readline():
            assert second.poll() is None
        assert not log.exists()
        (tmp_path / "go").touch()
        said = second.communicate(timeout=300)[0]
    assert second.returncode == 0
    assert "saved: True" in said


# -- directories in memory -------------------------------------------------------------------------------------------

HOLDS = """
import sys, time
from pathlib import Path
from trainbox.system.shm_dir import make_scratch
make_scratch(Path(sys.argv[1]))
Path(sys.argv[1], "look").touch()
print("made", flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def held(path: Path, *prefix: str) -> Iterator[None]:
    """A directory of a supervisor that lives while this block is entered, and is then killed."""
    argv = [*prefix, sys.executable, "-c", HOLDS, str(path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "made\n"
        yield
        process.kill()


@pytest.mark.process
def test_the_directory_of_a_supervisor_that_was_killed_is_removed_by_the_next_one_and_not_before(
    tmp_path: Path,
) -> None:
    path = tmp_path / "trainbox-scratch-1-a"
    with held(path):
        remove_abandoned([tmp_path])
        assert (path / "look").exists()
    remove_abandoned([tmp_path])
    assert not path.exists()


KEEP_BLOCKS = """
import time
from trainbox.system.shm_dir import temporary_directory
with temporary_directory("trainbox-blocks-") as path:
    (path / "block").write_bytes(bytes(1000))
    print(path, flush=True)
    time.sleep(600)
"""


@pytest.mark.process
def test_blocks_on_the_disk_of_a_process_that_was_killed_are_removed_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    command, env = [sys.executable, "-c", KEEP_BLOCKS], {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        with temporary_directory("trainbox-blocks-"):
            assert (left / "block").exists()
        process.kill()
    with temporary_directory("trainbox-blocks-") as mine:
        assert list(tmp_path.iterdir()) == [mine]
    assert not list(tmp_path.iterdir())


needs_namespaces = pytest.mark.skipif(
    subprocess.run(["unshare", "-p", "-f", "true"], check=False, capture_output=True).returncode != 0,
    reason="needs process namespaces",
)


@pytest.mark.process
@needs_namespaces
def test_a_supervisor_of_another_process_namespace_is_known_to_live(tmp_path: Path) -> None:
    path = tmp_path / "trainbox-scratch-1-a"
    with held(path, "unshare", "-p", "-f", "--kill-child"):
        remove_abandoned([tmp_path])
        assert (path / "look").exists()

    def is_removed() -> bool:
        remove_abandoned([tmp_path])
        return not path.exists()

    eventually(is_removed, "its removal")


def test_only_what_is_ours_and_a_directory_is_removed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "kept").mkdir(parents=True)
    for name in ("trainbox-123-old", "mine", "trainbox-scratch-1-dead"):
        (tmp_path / name).mkdir()
    (tmp_path / "trainbox-scratch-2-file").write_text("")
    (tmp_path / "trainbox-scratch-3-link").symlink_to(other)
    remove_abandoned([tmp_path, tmp_path / "absent"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("mine", "other", "trainbox-123-old", "trainbox-scratch-2-file", "trainbox-scratch-3-link")
    ]
    assert (other / "kept").exists()


def test_a_directory_that_was_taken_for_abandoned_while_it_was_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trainbox-scratch-1-a"
    taken: list[bool] = []
    lock = fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        if not taken:
            taken.append(True)
            path.rmdir()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    make_scratch(path)
    assert path.is_dir()


def test_a_job_that_needs_no_directory_makes_none() -> None:
    with scratch_directory() as path:
        assert not path.exists()


@pytest.mark.process
@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="there is no memory to write to")
def test_trainbox_run_removes_what_was_left_by_those_it_started(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    path = Path(f"/dev/shm/trainbox-scratch-{os.getpid()}-{time.time_ns():x}")
    script = f"{HOLDS.partition('print')[0]}\nprint('there:', Path(sys.argv[1]).is_dir())\n"
    (tmp_path / "src" / "train.py").write_text(f"import sys\nsys.argv[1:] = [{str(path)!r}]\n{script}")
    subprocess.run(COMMAND, cwd=tmp_path, capture_output=True, check=True, timeout=300)
    assert "there: True" in (tmp_path / "out/logs/algo-1.log").read_text()
    assert not path.exists()
