"""What `trainbox run` needs of the machine: private mounts, the user's source, and no process left."""

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.waiting import eventually
from trainbox.errors import RunError
from trainbox.local.backends import isolation as isolation_module
from trainbox.local.backends import namespace
from trainbox.local.backends.descendants import Marks, end_orphans, mount_namespace, orphans_come_here
from trainbox.local.backends.isolation import Isolation, find_isolation
from trainbox.local.interrupts import Interrupts
from trainbox.local.source import copy_source, survey
from trainbox.system.subreaper import children

needs_mounts = pytest.mark.skipif(bool(namespace.probe("root")), reason=f"no mounts here: {namespace.probe('root')}")


def enter(spec: str, *command: str) -> "subprocess.CompletedProcess[str]":
    argv = namespace.started_in(spec, command)
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.process
@needs_mounts
def test_a_mount_is_private_and_what_is_read_only_cannot_be_written(tmp_path: Path) -> None:
    for name in ("source", "target", "open"):
        (tmp_path / name).mkdir()
    (tmp_path / "source" / "file").write_text("here")
    spec = namespace.spec(
        "root",
        [(tmp_path / "source", tmp_path / "target", True), (tmp_path / "source", tmp_path / "open", False)],
    )
    script = f"cat {tmp_path}/target/file; touch {tmp_path}/open/new && touch {tmp_path}/target/other"
    done = enter(spec, "/bin/sh", "-c", script)
    assert done.stdout == "here"
    assert "Read-only file system" in done.stderr
    assert done.returncode == 1
    assert list((tmp_path / "target").iterdir()) == []
    assert (tmp_path / "source" / "new").exists()
    assert not (tmp_path / "source" / "other").exists()


@pytest.mark.process
@needs_mounts
def test_a_mount_that_is_refused_says_which(tmp_path: Path) -> None:
    done = enter(namespace.spec("root", [(tmp_path / "none", tmp_path, False)]), "/bin/true")
    assert done.returncode == namespace.EXIT_CODE
    assert f"mount --rbind {tmp_path / 'none'} {tmp_path}: No such file" in done.stderr


@pytest.mark.process
def test_a_command_that_is_not_there_is_said() -> None:
    done = enter(namespace.spec("none", []), "/no/such/command")
    assert done.returncode == namespace.EXIT_CODE
    assert done.stderr.startswith("trainbox: [Errno 2]")


@pytest.mark.process
def test_without_mounts_the_command_runs_all_the_same() -> None:
    assert enter(namespace.spec("none", []), "/bin/sh", "-c", "pwd").stdout == "/\n"


#: What of a program its start decides.
TOLD = """
import json, os, sys
print(json.dumps([__name__, sys.argv, sys.path, sys.prefix, sys.flags.safe_path, sys.modules["__main__"].__file__]))
print(os.getcwd(), "namespace.py" in " ".join(sys.orig_argv), file=sys.stderr)
"""


@pytest.mark.process
def test_a_module_runs_in_the_interpreter_of_its_namespace_as_python_runs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "told.py").write_text(TOLD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = (sys.executable, "-P", "-m", "told", "-m", "--x", "")
    plain = subprocess.run(command, capture_output=True, text=True, check=True)
    done = enter(namespace.spec("none", []), *command)
    assert (done.stdout, done.stderr) == (plain.stdout, "/ True\n")


@pytest.mark.process
@needs_mounts
def test_a_module_finds_what_is_installed_in_its_namespace_and_nothing_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, said in (("before", "outside"), ("in_namespace", "inside")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "sitecustomize.py").write_text(f"print('{said}')")
    (tmp_path / "in_namespace" / "program.py").write_text("import sys; sys.exit(print('runs') or 7)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "before"))
    spec = namespace.spec("root", [(tmp_path / "in_namespace", tmp_path / "before", True)])
    done = enter(spec, sys.executable, "-P", "-m", "program")
    assert (done.stdout, done.returncode) == ("inside\nruns\n", 7)


@pytest.mark.process
def test_a_module_that_fails_says_so_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fails.py").write_text("raise FileNotFoundError(2, 'mine')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = enter(namespace.spec("none", []), sys.executable, "-P", "-m", "fails")
    assert done.returncode == 1
    assert done.stderr.endswith("FileNotFoundError: [Errno 2] mine\n")


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux")
@pytest.mark.parametrize(
    "command",
    [("/bin/sh", "-c", "echo ready; exec sleep 60"), (sys.executable, "-P", "-m", "ready")],
    ids=["command", "module"],
)
def test_a_host_is_told_to_stop_when_trainbox_run_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    (tmp_path / "ready.py").write_text("import time; print('ready', flush=True); time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen({namespace.started_in(namespace.spec('none', []), command)}, "
        "stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); print(child.pid, flush=True); time.sleep(60)"
    )
    with orphans_come_here():
        parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        parent.stdout.close()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "trainbox: {out}/job.json cannot be written: File too large\n  hint: free some space"),
        (["--dry-run"], "trainbox: the plan of algo-1 cannot be made: [Errno 2] No usable temporary directory"),
    ],
)
def test_where_nothing_can_be_written_one_line_says_so(tmp_path: Path, arguments: list[str], said: str) -> None:
    """Neither a temporary directory nor anything else: files may have 0 bytes, as on a full disk."""
    (tmp_path / "train.py").touch()
    words = ["train.py", "--out", str(tmp_path / "out"), *arguments]
    done = subprocess.run(
        ["prlimit", "--fsize=0", sys.executable, "-m", "trainbox", "run", *words],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == RunError.exit_code
    assert said.format(out=tmp_path / "out") in done.stderr
    assert "Traceback" not in done.stderr


def test_a_refusal_becomes_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation_module, "probe", lambda _kind: "unshare: Operation not permitted")
    found = find_isolation()
    assert found == Isolation(reason="no private mounts here (unshare: Operation not permitted)")
    assert "TRAINBOX_ROOT is used" in found.sentence
    assert "unshare: Operation not permitted" in found.sentence


def test_a_missing_mountpoint_becomes_a_hint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(isolation_module, "probe", lambda _kind: "")
    monkeypatch.setattr(isolation_module, "OPT_ML", tmp_path / "ml")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = find_isolation()
    assert (found.kind, found.at_opt_ml) == ("user", False)
    assert f"sudo mkdir {tmp_path / 'ml'}" in found.sentence
    assert "inputs read-only" in found.sentence
    assert not (tmp_path / "ml").exists()
    (tmp_path / "ml").mkdir()
    assert find_isolation().at_opt_ml


@pytest.mark.process
def test_orphans_come_here_and_are_ended() -> None:
    before = children(zombies=True)
    with orphans_come_here():
        shell = "sleep 60 & (sleep 61 & sleep 62 &) ; exit 0"
        subprocess.run(["/bin/sh", "-c", shell], check=True, stdin=subprocess.DEVNULL)
        eventually(lambda: len(children() - before) == 3, "the orphans")
        assert end_orphans(but=before) == 3
    assert children(zombies=True) <= before


@pytest.mark.process
def test_the_processes_of_a_job_are_told_from_the_others_by_their_tree(tmp_path: Path) -> None:
    mark = Marks(trees=(tmp_path / "tree",))
    command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
    hosts = [tmp_path / "tree", tmp_path / "tree-2"]
    processes = [
        subprocess.Popen(
            command, env={"TRAINBOX_ROOT": str(host)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for host in hosts
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()  # until then it is a fork of this process, with its environment
    assert [mark.are_of(process.pid) for process in processes] == [True, False]
    assert mount_namespace(processes[0].pid) == "", "that of this process tells nothing"
    for process in processes:
        process.communicate("")
    assert not mark.are_of(processes[0].pid)


@pytest.mark.process
def test_orphans_are_adopted_until_the_last_job_of_a_program_has_ended() -> None:
    libc = ctypes.CDLL(None)

    def adopts() -> int:
        found = ctypes.c_int()
        libc.prctl(37, ctypes.byref(found))  # PR_GET_CHILD_SUBREAPER
        return found.value

    former = adopts()
    with orphans_come_here():
        with orphans_come_here():
            assert adopts()
        assert adopts(), "one of two jobs has ended"
    assert adopts() == former


def test_signals_are_counted_and_given_back() -> None:
    former = signal.getsignal(signal.SIGTERM)
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert (interrupts.count, interrupts.first) == (2, signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is former


def test_a_source_is_copied_with_its_modes_and_links_but_without_caches(tmp_path: Path) -> None:
    source, copy = tmp_path / "src", tmp_path / "copy"
    for name in (".git", "pkg", ".venv", "out"):
        (source / name).mkdir(parents=True)
    (source / ".venv" / "pyvenv.cfg").write_text("")
    for name in (".git/HEAD", "pkg/a.py", "out/big", "run.sh"):
        (source / name).write_text(name)
    (source / "run.sh").chmod(0o755)
    (tmp_path / "outside").write_text("outside")
    (source / "inside").symlink_to("pkg/a.py")
    (source / "dirlink").symlink_to("pkg")
    (source / "away").symlink_to("../outside")
    os.mkfifo(source / "fifo")
    found = survey(source, leave_out=source / "out")
    assert found.files == ("away", "dirlink", "inside", "pkg/a.py", "run.sh")
    copy_source(found, copy)
    assert os.access(copy / "run.sh", os.X_OK)
    assert (copy / "inside").readlink() == Path("pkg/a.py")
    assert (copy / "dirlink" / "a.py").read_text() == "pkg/a.py"
    assert (copy / "away").read_text() == "outside"


def test_data_beside_a_script_is_refused_instead_of_copied(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"x" * 1000)
    with pytest.raises(RunError, match="source directory"):
        survey(tmp_path, leave_out=tmp_path / "out", limit=999)
