"""`train` as a process: signals, orphans, output, exit codes and the reason of a failure, with nothing faked."""

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import termios
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.addresses import free_port
from tests.support.cgroups import small_cgroup
from tests.support.trees import SECONDS, Run, Tree, is_alive
from tests.support.waiting import eventually
from trainbox.system.procfs import process_state

pytestmark = pytest.mark.process

_PID_NAMESPACE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
_FATAL_SIGNALS = (
    *("HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1"),
    *("SEGV", "USR2", "PIPE", "ALRM", "TERM", "XCPU", "SYS"),
)
_AS_USER = [_PID_NAMESPACE[0], "--user", "--map-root-user", *_PID_NAMESPACE[1:]]


def _works(command: list[str]) -> bool:
    try:
        return subprocess.run([*command, "true"], capture_output=True, timeout=300, check=False).returncode == 0
    except OSError:
        return False


def _namespace() -> list[str] | None:
    return next((command for command in (_PID_NAMESPACE, _AS_USER) if _works(command)), None)


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    with Tree(tmp_path / "ml") as built:
        yield built


@pytest.fixture(params=["a process", "PID 1"])
def prefix(request: pytest.FixtureRequest) -> list[str]:
    """What starts `train` so that it is an ordinary process, or the first of a container."""
    if request.param == "a process":
        return []
    namespace = _namespace()
    if namespace is None and "CI" not in os.environ:
        pytest.skip("this machine permits no PID namespace")
    assert namespace is not None, "CI must be able to make a PID namespace"
    return namespace


def supervisor_of(process: "subprocess.Popen[bytes]", prefix: list[str]) -> int:
    """The process id of `train` itself: below `unshare` it is the only child."""
    if not prefix:
        return process.pid
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    eventually(lambda: children.read_text().strip() != "", "unshare to fork")
    return int(children.read_text())


def is_stopped(pid_file: Path) -> bool:
    """Whether the process that a file names, once it is there, is frozen."""
    pid = pid_file.read_text().strip() if pid_file.exists() else ""
    return bool(pid) and process_state(int(pid)) == "T"


def until_full(reader: int) -> None:
    """Wait until a pipe of whom nobody reads holds all but the rest of a line."""
    size = fcntl.fcntl(reader, fcntl.F_GETPIPE_SZ)

    def waits() -> int:
        return int.from_bytes(fcntl.ioctl(reader, termios.FIONREAD, bytes(4)), sys.byteorder)

    eventually(lambda: waits() > size - 8192, "the pipe to be full")


def has_pending(pid: int, number: int) -> bool:
    """Whether a signal has been sent to a process and not been delivered yet: SigPnd and ShdPnd of proc(5)."""
    fields = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    return bool((int(fields["SigPnd"], 16) | int(fields["ShdPnd"], 16)) >> (number - 1) & 1)


def shell(tree: Tree, script: str) -> Tree:
    """A shell script as the program: it starts faster than Python."""
    return tree.program("#!/bin/sh\n" + textwrap.dedent(script), "run.sh", mode=0o755)


def run_shell(tree: Tree, script: str, **env: str) -> Run:
    return shell(tree, script).run(SAGEMAKER_PROGRAM="run.sh", **env)


# -- exit codes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_the_exit_code_of_the_script_is_that_of_the_job(tree: Tree, code: int) -> None:
    run = run_shell(tree, f"echo words >&2; exit {code}")
    assert run.code == code
    assert run.failure == (None if code == 0 else f"words\nat the script (exit code {code})")
    assert tree.leftovers() == []


@pytest.fixture
def hangup_ends() -> Iterator[None]:
    """Under `nohup` it is ignored here, and would be in every script."""
    former = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, former)


@pytest.mark.usefixtures("hangup_ends")
@pytest.mark.parametrize("name", _FATAL_SIGNALS)
def test_a_signal_that_kills_the_script_is_128_plus_its_number(tree: Tree, name: str) -> None:
    run = run_shell(tree, f"ulimit -c 0\necho epoch 3 >&2\nkill -s {name} $$")
    assert run.code == 128 + getattr(signal, f"SIG{name}")
    assert run.failure is not None
    assert run.failure.startswith(
        f"killed by SIG{name}; its last output: epoch 3\nat the script (exit code {run.code})"
    )


def test_a_crash_names_the_line_of_the_thread_that_crashed(tree: Tree) -> None:
    tree.program(
        "import os, threading\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "def native():\n    os.abort()\nnative()\n"
    )
    run = tree.run()
    assert run.code == 134
    assert run.failure == (
        "killed by SIGABRT; its last output: Fatal Python error: Aborted\nat train.py:4 in native (exit code 134)"
    )


# -- signals -----------------------------------------------------------------------------------------------------------

_COUNTS_SIGNALS = """
    import os, signal, time
    got = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: got.append(int(number)))
    role = "grandchild" if os.fork() == 0 else "child"
    open(f"{role}.ready", "w").close()
    while not got and not (role == "grandchild" and os.path.exists("two were sent")):
        time.sleep(0.01)
    open(f"{role}.asked", "w").close()
    while not os.path.exists("two were sent"):
        time.sleep(0.01)
    os.write(1, f"{role} got {got}\\n".encode())
    if role == "child":
        os.wait()
    os._exit(0)
"""


@pytest.mark.parametrize(
    ("number", "asked"), [(signal.SIGTERM, ["child"]), (signal.SIGINT, ["child", "grandchild"])], ids=["TERM", "INT"]
)
def test_a_stop_is_passed_on_once_and_ctrl_c_to_all_of_the_process_group(
    tree: Tree, prefix: list[str], number: int, asked: list[str]
) -> None:
    tree.program(textwrap.dedent(_COUNTS_SIGNALS))
    process = tree.start(prefix=prefix)
    for role in ("child", "grandchild"):
        eventually((tree.code / f"{role}.ready").exists, role)
    pid = supervisor_of(process, prefix)
    os.kill(pid, number)
    for role in asked:
        eventually((tree.code / f"{role}.asked").exists, f"the signal to reach the {role}")
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: not has_pending(pid, signal.SIGTERM), "the supervisor to take the second")
    (tree.code / "two were sent").touch()
    run = tree.finish(process)
    got = {role: [int(number)] * (role in asked) for role in ("child", "grandchild")}
    assert sorted(run.stdout.decode().splitlines()) == [f"{role} got {numbers}" for role, numbers in got.items()]
    assert run.code == 0
    assert run.failure is None
    assert f"stopped by {signal.Signals(number).name}" in run.log


def test_a_script_that_ignores_sigterm_is_killed_when_the_grace_is_over(tree: Tree, prefix: list[str]) -> None:
    shell(tree, "trap '' TERM\n: > ready\nwhile :; do sleep 0.05; done")
    process = tree.start({"SAGEMAKER_PROGRAM": "run.sh", "TRAINBOX_GRACE_SECONDS": "0.5"}, prefix=prefix)
    eventually((tree.code / "ready").exists, "the script")
    os.kill(supervisor_of(process, prefix), signal.SIGTERM)
    run = tree.finish(process)
    assert run.code == 137
    assert run.failure is not None
    assert run.failure.startswith("stopped: the script did not leave in time after SIGTERM and was killed\n")
    assert "hint: ask trainbox.stop_requested()" in run.failure


def test_a_script_that_does_not_handle_sigterm_ends_the_job_with_143(tree: Tree) -> None:
    shell(tree, ": > ready\nexec sleep 1000")
    process = tree.start({"SAGEMAKER_PROGRAM": "run.sh"})
    eventually((tree.code / "ready").exists, "the script")
    process.terminate()
    run = tree.finish(process)
    assert run.code == 143
    assert run.failure is not None
    assert re.match(
        r"stopped: SIGTERM ended the script [\d.]+ s after its start: it had no handler for it, or not yet\n",
        run.failure,
    )


def test_a_script_that_was_frozen_hears_the_stop_and_can_save(tree: Tree) -> None:
    shell(tree, "trap 'echo saved; exit 0' TERM\necho $$ > pid\nkill -STOP $$\nwhile :; do sleep 0.05; done")
    process = tree.start({"SAGEMAKER_PROGRAM": "run.sh"})
    eventually(lambda: is_stopped(tree.code / "pid"), "the script to be frozen")
    process.terminate()
    run = tree.finish(process)
    assert run.code == 0, run.log
    assert run.stdout == b"saved\n"


@pytest.mark.parametrize("processes", [1, 2])
def test_a_script_that_stays_frozen_is_ended_and_named(tree: Tree, processes: int) -> None:
    shell(tree, 'sleep 1000 &\n[ "${RANK:-1}" = 0 ] || kill -STOP $$\nwait')
    env = {"TRAINBOX_HANG_SECONDS": "0.5", "PROCESSES_PER_HOST": str(processes), "MASTER_PORT": str(free_port())}
    run = tree.finish(tree.start({"SAGEMAKER_PROGRAM": "run.sh", **env}))
    assert run.code == 137, run.log
    who = "the script" if processes == 1 else "the script of rank 1"
    assert re.match(rf"{who} was stopped \(SIGSTOP\) for [\d.]+ s and was ended\n", str(run.failure)), run.failure
    assert "hint: find what sent it SIGSTOP" in str(run.failure)


def test_a_second_ctrl_c_kills_at_once(tree: Tree, prefix: list[str]) -> None:
    """The grace is an hour: nothing but the second ends it."""
    shell(tree, "trap ': > asked' INT\n: > ready\nwhile :; do sleep 0.05; done")
    process = tree.start({"SAGEMAKER_PROGRAM": "run.sh", "TRAINBOX_GRACE_SECONDS": "3600"}, prefix=prefix)
    eventually((tree.code / "ready").exists, "the script")
    pid = supervisor_of(process, prefix)
    os.kill(pid, signal.SIGINT)
    eventually((tree.code / "asked").exists, "the first Ctrl-C to arrive")
    assert process.poll() is None
    os.kill(pid, signal.SIGINT)
    assert tree.finish(process).code == 137


def test_stops_reach_the_script_also_while_nobody_reads_our_output(tree: Tree) -> None:
    shell(tree, "trap ': > asked' INT\nyes &\necho $$ > pid.part; mv pid.part pid\nwhile :; do sleep 0.05; done")
    process = tree.start({"SAGEMAKER_PROGRAM": "run.sh"})
    eventually((tree.code / "pid").exists, "the script")
    script = int((tree.code / "pid").read_text())
    assert process.stdout is not None
    until_full(process.stdout.fileno())
    process.send_signal(signal.SIGINT)
    eventually((tree.code / "asked").exists, "the first Ctrl-C to arrive")
    process.send_signal(signal.SIGINT)
    eventually(lambda: not is_alive(script), "the second Ctrl-C to kill")
    assert tree.finish(process).code == 137


def test_sigterm_while_peers_are_awaited_ends_the_job_with_143(tree: Tree, prefix: list[str]) -> None:
    tree.program("").hosts("algo-1.invalid", "algo-2.invalid")
    process = tree.start(prefix=prefix, stderr=subprocess.STDOUT)
    pid = supervisor_of(process, prefix)
    # The file that is reserved for the failure says that the handler is installed.
    eventually((tree.output / ".failure.part").exists, "train to begin")
    os.kill(pid, signal.SIGTERM)
    run = tree.finish(process)
    assert run.code == 143
    assert run.failure == "ClientError: stopped by SIGTERM before the script was started"
    assert tree.leftovers() == []


#: Moments from the exec of `train` to the start of the script, as parts of that time.
_MOMENTS = (0.0, 0.05, 0.15, 0.3, 0.5, 0.7, 0.9, 1.1)
_BEFORE = "ClientError: stopped by SIGTERM before the script was started"


@contextlib.contextmanager
def sigterm_held_back() -> Iterator[None]:
    """What is started meanwhile begins with SIGTERM blocked, as below `env --block-signal=TERM`."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def start_up_seconds(tree: Tree, prefix: list[str]) -> float:
    """From the exec of `train` to the first line of its script."""
    began = time.monotonic()
    process = tree.start({"SAGEMAKER_PROGRAM": "run.sh"}, prefix=prefix)
    eventually((tree.code / "ready").exists, "the script")
    taken = time.monotonic() - began
    os.kill(supervisor_of(process, prefix), signal.SIGTERM)
    tree.finish(process)
    return taken


def test_a_stop_that_was_held_back_at_the_start_is_never_lost_whenever_it_comes(
    tmp_path: Path, prefix: list[str]
) -> None:
    """Whoever starts `train` with SIGTERM blocked loses none, not even PID 1 while its interpreter starts."""
    taken = start_up_seconds(shell(Tree(tmp_path / "measured"), ": > ready\nexec sleep 1000"), prefix)
    came = set()
    for number, part in enumerate(_MOMENTS):
        with Tree(tmp_path / str(number)) as tree:
            shell(tree, "exec sleep 1000")
            with sigterm_held_back():
                process = tree.start({"SAGEMAKER_PROGRAM": "run.sh"}, prefix=prefix)
            pid = supervisor_of(process, prefix)
            time.sleep(part * taken)
            os.kill(pid, signal.SIGTERM)
            run = tree.finish(process)
        assert run.code == 143
        assert run.failure is not None
        came.add(run.failure.splitlines()[0])
    assert _BEFORE in came
    assert all(reason.startswith("stopped: SIGTERM ended the script") for reason in came - {_BEFORE})


def test_a_stop_at_the_start_ends_the_job_with_a_reason_or_before_anything_of_ours_has_run(tmp_path: Path) -> None:
    """What comes before the interpreter runs our first line has its default action: that is documented."""
    taken = start_up_seconds(shell(Tree(tmp_path / "measured"), ": > ready\nexec sleep 1000"), [])
    for number, part in enumerate(_MOMENTS):
        with Tree(tmp_path / str(number)) as tree:
            shell(tree, "exec sleep 1000")
            # Python says what it has imported, at once.
            process = tree.start({"SAGEMAKER_PROGRAM": "run.sh", "PYTHONPROFILEIMPORTTIME": "1"})
            time.sleep(part * taken)
            process.terminate()
            run = tree.finish(process)
        if run.code == -signal.SIGTERM:
            assert "trainbox.contract" not in run.log, run.log
            assert run.failure is None
        else:
            assert run.code == 143
            assert run.failure is not None


def test_too_many_processes_for_the_limit_of_open_files_are_an_error_with_a_hint(tree: Tree) -> None:
    shell(tree, "exec sleep 1000")
    env = {"SAGEMAKER_PROGRAM": "run.sh", "PROCESSES_PER_HOST": "40", "MASTER_PORT": str(free_port())}
    run = tree.finish(tree.start(env, prefix=["prlimit", "--nofile=64"]))
    assert run.code == 3, run.log
    assert re.match(r"ClientError: '\./run\.sh' cannot be started in .*Too many open files", str(run.failure)), (
        run.failure
    )
    assert "hint: fewer processes_per_host" in str(run.failure)


# -- processes left behind ---------------------------------------------------------------------------------------------

_LEAVES_CHILDREN = """
    sleep 1000 & echo $! > plain.pid
    setsid sh -c 'echo $$ > daemon.pid; exec sleep 1000' &
    while ! [ -s plain.pid ] || ! [ -s daemon.pid ]; do sleep 0.01; done
    echo done
"""


def test_no_process_survives_the_job(tree: Tree, prefix: list[str]) -> None:
    run = shell(tree, _LEAVES_CHILDREN).run(prefix=prefix, SAGEMAKER_PROGRAM="run.sh")
    assert run.code == 0
    assert run.stdout == b"done\n"
    assert "trainbox: ended 2 process(es) that the script had left behind\n" in run.log
    if not prefix:  # their numbers are those of the namespace else, which is gone with PID 1
        for name in ("plain", "daemon"):
            assert not is_alive(int((tree.code / f"{name}.pid").read_text())), name


_CHAIN = """
    import os, signal
    held = os.open("held", os.O_WRONLY)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for _ in range(3):
        if os.fork() == 0:
            os.closerange(0, 3)
            while True:
                {step}
                if os.fork():
                    os._exit(0)
"""


@pytest.mark.parametrize(
    "step",
    ["pass", "os.setsid()", "os.fork() and os._exit(0); os.setsid()"],
    ids=["forks", "changes its session", "forks twice and changes its session"],
)
def test_a_chain_of_forks_does_not_outrun_the_end_of_the_job(tree: Tree, prefix: list[str], step: str) -> None:
    """Three that fork and end, again and again: each process lives for less than a look at /proc takes."""
    tree.program(textwrap.dedent(_CHAIN.format(step=step)))
    os.mkfifo(tree.code / "held")
    reader = os.open(tree.code / "held", os.O_RDONLY | os.O_NONBLOCK)
    try:
        run = tree.run(prefix=prefix)
        assert run.code == 0
        assert "that the script had left behind\n" in run.log
        assert "cannot be ended" not in run.log
        # No process has it open any more; else there would be nothing to read yet, which is an error.
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)


def test_orphans_are_reaped_while_the_script_runs(tree: Tree, prefix: list[str]) -> None:
    tree.program(
        textwrap.dedent("""
        import os, pathlib, time
        for _ in range(20):
            if os.fork() == 0:
                if os.fork() == 0:
                    while not os.path.exists("seen"):
                        time.sleep(0.01)
                os._exit(0)
            os.wait()
        def children_of_the_supervisor():
            found = []
            for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
                try:
                    state, parent = path.read_bytes().rpartition(b")")[2].split()[:2]
                except OSError:
                    continue
                if int(parent) == os.getppid() and int(path.parent.name) != os.getpid():
                    found.append(state)
            return found
        while len(children_of_the_supervisor()) < 20:
            time.sleep(0.02)
        open("seen", "w").close()
        while left := children_of_the_supervisor():
            time.sleep(0.02)
        print(left)
        """)
    )
    run = tree.run(prefix=prefix)
    assert run.stdout == b"[]\n", run.log


def test_a_process_that_was_there_before_us_is_left_alone(tree: Tree) -> None:
    """An entry point that starts a service and then becomes `train`: it is not the script's child."""
    tree.program("")
    before = 'sleep 1000 >/dev/null 2>&1 & echo $! > "$TRAINBOX_ROOT/service.pid"; exec "$@"'
    run = tree.run(prefix=["sh", "-c", before, "sh"])
    service = int((tree.root / "service.pid").read_text())
    try:
        assert run.code == 0
        assert is_alive(service)
        assert "left behind" not in run.log
    finally:
        os.kill(service, signal.SIGKILL)


# -- output ------------------------------------------------------------------------------------------------------------


def test_output_arrives_byte_for_byte(tree: Tree) -> None:
    stdout = (
        b"\r 10%|#\r 20%|##\nnot UTF-8: \xff\xfe\x80\n\x00\x00 NUL\n\n  indented\t\n"
        + "naïve 🚂\n".encode()
        + b"no end"
    )
    tree.program(f"import os\nos.write(1, {stdout!r})\nos.write(2, b'\\xe9 bar\\r')\n")
    run = tree.run()
    assert run.stdout == stdout
    assert b"\n\xe9 bar\r\n" in run.stderr  # then comes our own line
    assert run.code == 0


def test_a_long_line_is_whole_though_another_thread_floods_stderr(tree: Tree) -> None:
    tree.program(
        textwrap.dedent("""
        import os, sys, threading
        def flood():
            while running:
                os.write(2, b"noise\\n" * 10)
        running = True
        thread = threading.Thread(target=flood)
        thread.start()
        sys.stdout.write("<" + "x" * 900_000 + ">\\n")
        sys.stdout.flush()
        running = False
        thread.join()
        """)
    )
    process = tree.start(stderr=subprocess.STDOUT)
    run = tree.finish(process)
    assert run.code == 0
    lines = [line for line in run.stdout.split(b"\n") if b"x" * 100 in line]
    assert lines == [b"<" + b"x" * 900_000 + b">"]


def test_100_mb_without_a_newline_pass_through_little_memory(tree: Tree) -> None:
    shell(tree, "head -c 100000000 /dev/zero; cat /proc/$PPID/status >&2")
    with (tree.root / "out").open("wb") as out:
        run = tree.finish(tree.start({"SAGEMAKER_PROGRAM": "run.sh"}, stdout=out.fileno()))
    assert (tree.root / "out").stat().st_size == 100_000_000
    (tree.root / "out").unlink()
    peak = next(line for line in run.log.splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) < 30_000, peak


def test_a_script_may_close_its_streams(tree: Tree) -> None:
    run = run_shell(tree, "echo before; exec >&-; echo after >&2; exec 2>&-; sleep 0.2; : > done; exit 3")
    assert run.code == 3
    assert run.stdout == b"before\n"
    assert run.failure == "after\nat the script (exit code 3)"
    assert (tree.code / "done").exists()


def test_the_job_goes_on_when_nobody_reads_our_stdout(tree: Tree) -> None:
    shell(tree, "yes | head -c 3000000; : > done; exit 7")
    process = tree.start({"SAGEMAKER_PROGRAM": "run.sh"})
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    run = tree.finish(process)
    assert run.code == 7
    assert (tree.code / "done").exists()
    assert "trainbox: output was lost: Broken pipe\n" in run.log


@pytest.mark.parametrize("code", [0, 7])
def test_the_exit_code_survives_the_loss_of_all_readers(tree: Tree, code: int) -> None:
    shell(tree, f"echo out; echo err >&2; printf open >&2; : > done; exit {code}")
    reader, writer = os.pipe()
    process = tree.start({"SAGEMAKER_PROGRAM": "run.sh"}, stdout=writer, stderr=writer)
    os.close(writer)
    os.close(reader)
    run = tree.finish(process)
    assert run.code == code
    assert (tree.code / "done").exists()
    assert (run.failure is None) == (code == 0)


def test_a_non_blocking_pipe_loses_nothing(tree: Tree) -> None:
    shell(tree, "seq 200000; echo the end >&2; exit 1")
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    process = tree.start({"SAGEMAKER_PROGRAM": "run.sh"}, stdout=writer, stderr=writer)
    os.close(writer)
    until_full(reader)
    with os.fdopen(reader, "rb") as pipe:
        lines = pipe.read().decode().splitlines()
    assert process.wait(SECONDS) == 1
    assert [int(line) for line in lines if line.isdigit()] == list(range(1, 200_001))
    assert lines[-2:] == ["trainbox: FAILED: the end", "trainbox: at the script (exit code 1)"]


def test_two_processes_write_100_000_lines_each_and_none_is_cut(tree: Tree) -> None:
    tree.hyperparameters(processes_per_host=2)
    tree.program(
        textwrap.dedent("""
        import os, sys
        rank = os.environ["RANK"]
        sys.stdout.write("".join(f"rank={rank} step={step} loss=0.5\\n" for step in range(100_000)))
        sys.stdout.write(f"rank={rank} ends without a newline")
        """)
    )
    run = tree.run()
    assert run.code == 0
    lines = run.stdout.decode().splitlines()
    for rank in "01":
        own = [line for line in lines if line.startswith(f"rank={rank} ")]
        assert own[:-1] == [f"rank={rank} step={step} loss=0.5" for step in range(100_000)]
        assert own[-1] == f"rank={rank} ends without a newline"
    assert len(lines) == 200_002


# -- several processes -------------------------------------------------------------------------------------------------


def test_the_reason_is_that_of_the_rank_that_failed_first(tree: Tree) -> None:
    tree.hyperparameters(processes_per_host=3)
    tree.program(
        textwrap.dedent("""
        import os, pathlib, signal, sys, time
        rank = int(os.environ["RANK"])
        pathlib.Path(f"{rank}.ready").touch()
        if rank == 1:
            while not all(pathlib.Path(f"{other}.ready").exists() for other in range(3)):
                time.sleep(0.01)
            raise ValueError("rank 1 is the one")
        def leave(number, frame):
            raise RuntimeError("connection lost")
        signal.signal(signal.SIGTERM, leave)
        time.sleep(1000)  # longer than the test may take: only the supervisor's SIGTERM ends it
        """)
    )
    run = tree.run()
    assert run.code == 1
    assert run.failure == "ValueError: rank 1 is the one\nat train.py:8 (exit code 1, rank 1)"
    assert "trainbox: rank 1 failed with exit code 1: stopping the other processes of this host\n" in run.log


# -- memory ------------------------------------------------------------------------------------------------------------


def test_a_script_killed_for_memory_is_told_apart(tree: Tree) -> None:
    tree.program("blocks = []\nwhile True:\n    blocks.append(bytes(b'x' * 1_000_000))\n")
    with small_cgroup(64) as prefix:
        run = tree.run(prefix=prefix)
    assert run.code == 137, run.log
    assert run.failure is not None
    assert run.failure.startswith("out of memory: the kernel killed a process of this job (limit 64 MiB)\n")
    assert "hint: use an instance with more memory" in run.failure


def test_a_worker_killed_for_memory_is_named_beside_what_the_script_raised(tree: Tree) -> None:
    tree.program(
        textwrap.dedent("""
        import os
        pid = os.fork()
        if pid == 0:
            blocks = []
            while True:
                blocks.append(bytes(b"x" * 1_000_000))
        os.waitpid(pid, 0)
        raise RuntimeError("a worker is gone")
        """)
    )
    with small_cgroup(64) as prefix:
        run = tree.run(prefix=prefix)
    assert run.code == 1, run.log
    assert run.failure is not None
    assert run.failure.startswith("RuntimeError: a worker is gone\nat train.py:9 (exit code 1)\nhint: out of memory")


def test_a_kill_from_elsewhere_is_not_called_out_of_memory(tree: Tree) -> None:
    run = run_shell(tree, "kill -KILL $$")
    assert run.failure is not None
    assert run.failure.startswith("killed by SIGKILL\n")


# -- the failure file --------------------------------------------------------------------------------------------------


def test_the_failure_file_and_the_end_of_the_log_say_the_same(tree: Tree) -> None:
    tree.program("def load():\n    return {}['train']\n\nload()\n")
    run = tree.run()
    assert run.failure == "KeyError: 'train'\nat train.py:2 in load (exit code 1)"
    assert run.log.endswith("trainbox: FAILED: KeyError: 'train'\ntrainbox: at train.py:2 in load (exit code 1)\n")


def test_the_failure_file_of_the_script_stays_as_it_is(tree: Tree) -> None:
    run = run_shell(tree, 'printf "my own words" > "$TRAINBOX_ROOT/output/failure"; exit 4')
    assert run.code == 4
    assert run.failure == "my own words"
    assert "was written by the script and stays as it is" in run.log
    assert tree.leftovers() == []


def test_the_failure_file_of_an_earlier_attempt_goes(tree: Tree) -> None:
    tree.write("output/failure", "an older attempt")
    run = run_shell(tree, "echo now >&2; exit 4")
    assert run.failure == "now\nat the script (exit code 4)"


def test_a_failure_file_of_an_earlier_job_is_not_called_the_scripts(tree: Tree) -> None:
    """A stop that has come by the time the supervisor starts: it has had no moment to remove anything."""
    tree.write("output/failure", "an older job").program("print('ran')")
    block = "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [15]); os.kill(os.getpid(), 15)"
    run = tree.run(prefix=[sys.executable, "-c", f"{block}; os.execv(sys.argv[1], sys.argv[1:])"])
    assert run.code == 143, run.log
    assert run.failure is not None
    assert "stopped by SIGTERM before the script was started" in run.failure
    assert "was written by the script" not in run.log


@pytest.mark.skipif(os.geteuid() != 0, reason="to mount a file takes root")
def test_a_failure_file_that_is_a_mount_loses_what_an_earlier_job_said(tree: Tree, tmp_path: Path) -> None:
    tree.write("output/failure", "").program("raise ValueError('now')")
    mounted = tmp_path / "failure"
    mounted.write_text("an older job")
    mount = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
    run = tree.run(prefix=["unshare", "-m", "sh", "-c", mount, "sh", str(mounted), str(tree.root / "output/failure")])
    assert run.code == 1, run.log
    assert mounted.read_text().startswith("ValueError: now\n")
    assert "was written by the script" not in run.log


def test_an_output_directory_that_cannot_be_written_is_said_and_changes_nothing(tree: Tree) -> None:
    tree.write("output", "a file where a directory belongs")
    run = run_shell(tree, "echo why >&2; exit 4")
    assert run.code == 4
    assert "output/failure cannot be written: " in run.log
    assert run.log.endswith("trainbox: FAILED: why\ntrainbox: at the script (exit code 4)\n")


def test_a_script_that_logs_in_another_encoding_has_a_reason_in_utf_8(tree: Tree) -> None:
    tree.program("# -*- coding: latin-1 -*-\nraise ValueError('Gr\xf6\xdfe')\n".encode("latin-1"))
    run = tree.run(PYTHONIOENCODING="latin-1")
    assert (
        run.failure == "ValueError: Gr\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}e\nat train.py:2 (exit code 1)"
    )
    assert b"ValueError: Gr\xf6\xdfe\n" in run.stderr


def test_success_without_a_model_is_a_loud_warning_and_with_one_it_is_not(tree: Tree) -> None:
    (tree.model / "empty/directories").mkdir(parents=True)
    assert "WARNING: " in run_shell(tree, "exit 0").log
    tree.write("model/model.bin", b"12345")
    run = run_shell(tree, "exit 0")
    assert "WARNING: " not in run.log
    assert "model: 1 file(s), 5 bytes" in run.log


def test_a_relative_root_is_the_same_place_for_the_script(tree: Tree) -> None:
    tree.program('import os\nprint(os.environ["TRAINBOX_ROOT"], os.environ["SM_MODEL_DIR"])\n')
    run = tree.run(TRAINBOX_ROOT=".")
    assert run.stdout.decode() == f"{tree.root} {tree.model}\n"


def test_the_argument_that_sagemaker_gives_an_entry_point_is_understood(tree: Tree) -> None:
    tree.program("print('ran')\n")
    command = [sys.executable, "-m", "trainbox.supervisor"]
    asked = subprocess.run(
        [*command, "train"], env=tree.environment({}), capture_output=True, timeout=SECONDS, check=False
    )
    assert asked.stdout == b"ran\n"
    wrong = subprocess.run(
        [*command, "serve"], env=tree.environment({}), capture_output=True, timeout=SECONDS, check=False
    )
    assert wrong.returncode == 2
    assert wrong.stderr.startswith(b"trainbox: train takes no arguments, and was given 'serve'\nusage: train")


def test_a_closed_stderr_costs_neither_the_exit_code_nor_the_failure_file(tree: Tree) -> None:
    tree.program("raise ValueError('seen all the same')")
    answer = tree.run(prefix=("sh", "-c", 'exec "$@" 2>&-', "sh"))
    assert answer.code == 1
    assert str(answer.failure).startswith("ValueError: seen all the same")


def test_what_the_script_wrote_as_its_failure_ends_the_log(tree: Tree) -> None:
    tree.program(f"open({str(tree.failure_file)!r}, 'w').write('no rows in train')\nraise SystemExit(3)")
    answer = tree.run()
    assert answer.code == 3
    assert answer.log.endswith("trainbox: FAILED: no rows in train\n")


def test_an_error_of_ours_that_a_script_lets_pass_keeps_its_code_and_its_wording(tree: Tree) -> None:
    tree.program("import trainbox\ntrainbox.channel('validation')")
    answer = tree.run()
    assert answer.code == 7
    assert str(answer.failure).startswith("ClientError: DataError: the job has no channel 'validation'")


def test_only_the_first_rank_that_fails_is_said_to_have_failed(tree: Tree) -> None:
    tree.program("import os, time\nif os.environ['RANK'] == '1': raise SystemExit(5)\ntime.sleep(60)")
    tree.hyperparameters(processes_per_host=3)
    answer = tree.run()
    assert answer.code == 5
    assert answer.log.count("stopping the other processes") == 1


def test_lines_of_both_streams_keep_the_order_in_which_they_came(tree: Tree) -> None:
    tree.program(
        "import sys\n"
        "with open('seen', 'rb', buffering=0) as seen:\n"
        "    for number in range(10):\n"
        "        print('line', number, file=(sys.stdout, sys.stderr)[number % 2], flush=True)\n"
        "        seen.read(1)\n"
    )
    os.mkfifo(tree.code / "seen")
    process = tree.start(stderr=subprocess.STDOUT)
    assert process.stdout is not None
    lines = (line for line in process.stdout if line.startswith(b"line"))
    with (tree.code / "seen").open("wb", buffering=0) as seen:
        for number in range(10):
            assert next(lines) == b"line %d\n" % number
            seen.write(b".")
    assert tree.finish(process).code == 0


def test_forked_workers_live_on_after_sigterm_so_that_the_script_can_finish_its_step(tree: Tree) -> None:
    tree.program(
        "import multiprocessing, time, trainbox\n"
        "trainbox.stop_requested()\n"
        "with multiprocessing.get_context('fork').Pool(2) as pool:\n"
        "    print('at work', flush=True)\n"
        "    while not trainbox.stop_requested():\n"
        "        time.sleep(0.01)\n"
        "    print('sum', sum(pool.map(abs, range(-10, 0))), flush=True)\n"
    )
    process = tree.start({"TRAINBOX_GRACE_SECONDS": "20"})
    assert process.stdout is not None
    assert process.stdout.readline() == b"at work\n"
    process.send_signal(signal.SIGTERM)
    done = tree.finish(process)
    assert (done.code, done.stdout) == (0, b"sum 55\n"), done.log


@pytest.mark.parametrize("ends", ["", "raise SystemExit(7)"])
def test_checkpoints_that_nobody_uploads_are_named(tree: Tree, ends: str) -> None:
    tree.program(f"import os; open(os.environ['SM_MODEL_DIR'] + '/../checkpoints/a', 'w'); {ends}")
    tree.write("checkpoints/.keep", "")
    warning = f"2 checkpoint file(s) in {tree.root}/checkpoints are not uploaded: the request has no CheckpointConfig"
    assert warning in tree.run(TRAINING_JOB_NAME="churn-001").log
    assert warning not in tree.run().log, "Kubernetes, or docker by hand, with a volume"
    tree.write("input/config/checkpointconfig.json", json.dumps({"LocalPath": f"{tree.root}/checkpoints"}))
    assert "not uploaded" not in tree.run(TRAINING_JOB_NAME="churn-001").log


@pytest.mark.process
@pytest.mark.parametrize(
    ("module", "argv"), [("trainbox.supervisor.__main__", ["train", "--help"]), ("trainbox.cli", ["trainbox", "run"])]
)
def test_what_a_program_loads_is_not_looked_through_for_garbage(module: str, argv: list[str]) -> None:
    code = (
        "import gc, importlib, sys\n"
        f"sys.argv = {argv}\n"
        f"importlib.import_module({module!r}).main()\n"
        "print(gc.get_freeze_count() > 10_000, len(gc.get_objects()) < 5_000, gc.isenabled())"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "True True True"
