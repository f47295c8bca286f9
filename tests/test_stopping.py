"""A real SIGTERM to a real process becomes a flag and a deadline."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.process

START = """
import os, signal, sys, threading, time
from trainbox.stopping import StopFlag, install
def ready():
    print("ready", flush=True)
def wait_for(condition):
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end, "waited 300 s in vain"
        time.sleep(0.005)
"""


@contextlib.contextmanager
def script(body: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-W", "error", "-c", START + body]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def run(body: str, *, signals: int = 0) -> tuple[int, list[str], str]:
    """Exit code, lines of stdout and stderr of a script that gets so many SIGTERMs, each after a line `ready`."""
    with script(body) as process:
        assert process.stdout is not None
        for _ in range(signals):
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=300)
        return process.returncode, out.splitlines(), err


def test_importing_changes_no_signal_handler() -> None:
    body = "print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)"
    assert run(body) == (0, ["True"], "")


def test_before_the_first_call_sigterm_ends_the_process() -> None:
    assert run("ready(); signal.pause()", signals=1)[0] == -signal.SIGTERM


def test_nothing_is_requested_until_sigterm_comes() -> None:
    assert run("flag = install(100); print(flag.requested, flag.seconds_left())") == (0, ["False None"], "")


def test_sigterm_sets_the_flag_and_the_script_ends_by_itself() -> None:
    code, out, err = run(
        """
flag = install(100)
ready()
wait_for(lambda: flag.requested)
first = flag.seconds_left()
time.sleep(0.05)
second = flag.seconds_left()
print(99 < first <= 100, 0.05 <= first - second < 5)
sys.exit(7)
""",
        signals=1,
    )
    assert (code, out, err) == (7, ["True True"], "")


def test_sigterm_while_the_interpreter_of_a_finished_script_ends_does_not_kill_it() -> None:
    body = """
class Module:
    def __del__(self, write=os.write, kill=os.kill, pid=os.getpid(), term=signal.SIGTERM):
        kill(pid, term)
        write(1, b"still here")
kept = Module()
sys.modules["kept"] = kept  # goes with the modules
install(100)
"""
    assert run(body) == (0, ["still here"], "")


def test_a_second_sigterm_neither_kills_nor_moves_the_deadline() -> None:
    code, out, err = run(
        """
flag = install(0.2)
ready()
wait_for(lambda: flag.requested)
time.sleep(0.1)
for _ in range(3):
    os.kill(os.getpid(), signal.SIGTERM)
print(flag.requested, flag.seconds_left() <= 0.1)
time.sleep(0.1)
print(flag.seconds_left())
""",
        signals=1,
    )
    assert (code, out, err) == (0, ["True True", "0.0"], "")


def test_a_signal_during_a_sleep_is_seen_right_after_it() -> None:
    assert run("flag = install(9); ready(); time.sleep(0.3); print(flag.requested)", signals=1)[1] == ["True"]


def test_installing_again_gives_the_same_flag_with_the_first_grace() -> None:
    body = """
flag = install(5)
os.kill(os.getpid(), signal.SIGTERM)
again = install(500)
print(again is flag, again.requested, again.seconds_left() <= 5)
"""
    assert run(body) == (0, ["True True True"], "")


def test_the_first_call_in_another_thread_is_a_clear_error() -> None:
    body = """
def first():
    try:
        install(100)
    except RuntimeError as error:
        print(error)
thread = threading.Thread(target=first)
thread.start()
thread.join()
print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
"""
    code, out, err = run(body)
    assert (code, out[1:], err) == (0, ["True"], "")
    assert "first called outside the main thread" in out[0]
    assert "call one of them once in the main thread before" in out[0]


def test_once_installed_other_threads_may_ask() -> None:
    body = """
flag = install(100)
ready()
wait_for(lambda: flag.requested)
thread = threading.Thread(target=lambda: print(install(100).requested, install(100).seconds_left() > 90))
thread.start()
thread.join()
"""
    assert run(body, signals=1) == (0, ["True True"], "")


def test_a_handler_of_somebody_else_is_replaced_and_named() -> None:
    body = """
def theirs(signum, frame):
    print("theirs was called")
signal.signal(signal.SIGTERM, theirs)
flag = install(100)
os.kill(os.getpid(), signal.SIGTERM)
print(flag.requested)
"""
    code, out, err = run(body)
    assert (code, out) == (0, ["True"])
    assert err.startswith("trainbox: SIGTERM now asks for a stop; it had <function theirs at ")


def test_an_ignored_sigterm_is_taken_over_and_said() -> None:
    code, out, err = run("signal.signal(signal.SIGTERM, signal.SIG_IGN); print(install(1).requested)")
    assert (code, out) == (0, ["False"])
    assert "it had <Handlers.SIG_IGN: 1> before" in err


@pytest.mark.parametrize("asked_before", [False, True])
def test_forked_workers_end_on_terminate_however_early_it_comes(asked_before: bool) -> None:
    body = f"""
import multiprocessing
fork = multiprocessing.get_context("fork")
flag = install(100)
if {asked_before}:
    os.kill(os.getpid(), signal.SIGTERM)
for _ in range(20):
    worker = fork.Process(target=time.sleep, args=(60,))
    worker.start()
    worker.terminate()
    worker.join(300)
    assert worker.exitcode == -signal.SIGTERM, worker.exitcode
for _ in range(5):
    with fork.Pool(2) as pool:  # leaving the block terminates and joins the workers
        assert pool.map(abs, [-1, -2]) == [1, 2]
print(flag.requested, signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""
    assert run(body) == (0, [f"{asked_before} set()"], "")


def test_a_signal_that_a_thread_has_blocked_stays_blocked_over_a_fork() -> None:
    body = """
install(100)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
if (child := os.fork()) == 0:
    os._exit(42 if signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ()) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""
    assert run(body) == (0, ["42 {<Signals.SIGTERM: 15>}"], "")


def test_a_forked_process_that_asks_has_a_flag_of_its_own() -> None:
    body = """
parent = install(100)
child = os.fork()
if child == 0:
    flag = install(50)
    if (grandchild := os.fork()) == 0:
        time.sleep(60)
    os.kill(grandchild, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]) == -signal.SIGTERM
    os.kill(os.getpid(), signal.SIGTERM)
    os._exit(42 if flag.requested and flag.seconds_left() <= 50 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), parent.requested)
"""
    assert run(body) == (0, ["42 False"], "")


def test_children_started_anew_have_the_default_action() -> None:
    body = """
import subprocess
install(100)
child = subprocess.Popen([sys.executable, "-c", "import signal; print('up', flush=True); signal.pause()"],
                         stdout=subprocess.PIPE)
child.stdout.readline()
child.terminate()
print(child.wait(300))
child.stdout.close()
"""
    assert run(body) == (0, ["-15"], "")
