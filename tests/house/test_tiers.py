"""A fast test that does more than it may fails, whatever becomes of the error; what tests share keeps its promises."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.addresses import addresses, free_port
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
TESTS = """
import contextlib, os, socket, subprocess, threading, time
import pytest

def process(): subprocess.run(["true"])
def fork():
    if not os.fork(): os._exit(0)
def spawn(): os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
def shell(): os.system("true")
def bind():
    with socket.socket() as one: one.bind(("127.0.0.1", 0))
def connect():
    with socket.socket() as one: one.connect_ex(("127.0.0.1", 9))
def sleep(): time.sleep(0.02)
def swallowed():
    with contextlib.suppress(BaseException): subprocess.run(["true"])
def in_a_thread():
    thread = threading.Thread(target=swallowed)
    thread.start()
    thread.join()

TOO_MUCH = [process, fork, spawn, shell, bind, connect, sleep, swallowed, in_a_thread]

@pytest.mark.parametrize("act", TOO_MUCH)
def test_too_much(act): act()

@pytest.fixture
def by_a_fixture(): process()

def test_of_a_fixture(by_a_fixture): pass

@pytest.mark.process
@pytest.mark.parametrize("act", TOO_MUCH)
def test_marked(act): act()

def test_allowed(tmp_path):
    time.sleep(0.001)
    for one in socket.socketpair(): one.close()
    with socket.socket(socket.AF_UNIX) as one: one.bind(str(tmp_path / "socket"))
    threading.Event().wait(0.001)
    with contextlib.suppress(FileNotFoundError):  # what matplotlib asks on a machine that it is new on
        subprocess.run(["fc-list", "--help"], check=False)

@pytest.mark.docker
def test_of_a_kind(): sleep()
"""


def run(path: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-c", "pyproject.toml", str(path)]
    return subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.process
def test_a_fast_test_that_starts_a_process_or_uses_the_network_or_sleeps_fails(tmp_path: Path) -> None:
    path = tmp_path / "test_planted.py"
    path.write_text(TESTS)
    said = run(path).stdout
    failed = {line.split("::")[1].split(" ")[0] for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))}
    names = ("process", "fork", "spawn", "shell", "bind", "connect", "sleep", "swallowed", "in_a_thread")
    assert failed == {*(f"test_too_much[{name}]" for name in names), "test_of_a_fixture"}, said
    words = re.findall(r"a fast test may not (\w+) .*: mark it @pytest.mark.process", said)
    assert {*words} == {"start", "use", "sleep"}
    assert "11 passed" in said
    chosen = run(path, "-m", "system").stdout
    assert "1 passed" in chosen


@pytest.mark.process
def test_a_test_of_two_tiers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "test_planted.py"
    path.write_text("import pytest\n@pytest.mark.fast\n@pytest.mark.process\ndef test_it(): pass\n")
    ended = run(path)
    assert ended.returncode == pytest.ExitCode.USAGE_ERROR
    assert "test_it is marked as of two tiers: fast, process" in ended.stderr


def test_what_never_comes_is_named_with_what_was_said_last() -> None:
    with pytest.raises(AssertionError, match=r"waited 0 s, and still not: the moon:\nhalf a cheese"):
        eventually(lambda: False, "the moon", logs=lambda: "half a cheese", limit=0)


def test_nobody_waits_for_what_has_ended() -> None:
    with pytest.raises(AssertionError, match="whoever was to bring it about has ended, and still not: the moon"):
        eventually(lambda: None, "the moon", ended=lambda: True)
    assert eventually(lambda: "there", "what has come at the end", ended=lambda: True) == "there"


@pytest.mark.process
def test_another_process_of_tests_has_other_addresses_and_ports() -> None:
    """Though both are gw0 of a run of their own."""
    ours = addresses(3)
    assert len({*ours, *addresses(3)}) == 6
    code = "from tests.support.addresses import addresses, free_port; print(*addresses(3), free_port())"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    *theirs, port = said.split()
    assert {address.split(".")[1] for address in theirs}.isdisjoint(address.split(".")[1] for address in ours)
    own = {free_port() for _ in range(20)}
    assert len(own) == 20
    assert int(port) not in own
    assert all(20000 <= one < 29400 for one in (*own, int(port)))
    with socket.create_server(("127.0.0.1", own.pop())):
        assert free_port() not in own
