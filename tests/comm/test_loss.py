"""Members as processes, and what the others do when one dies, freezes or wakes up again."""

import signal
import time
from pathlib import Path

import pytest

from tests.support.cluster import busy
from tests.support.parties import Party
from tests.support.trees import Tree
from tests.support.waiting import eventually

pytestmark = pytest.mark.cluster

#: The last member is in a long call of its own, as in a library; the others wait for each other.
BUSY_AND_WAITING = """
communicator.gather(communicator.rank, int)
ready()
time.sleep(1000 * (communicator.rank == 2))
while True:
    communicator.gather(communicator.rank, int)
    time.sleep(0.01)
"""


@pytest.mark.representative
@pytest.mark.parametrize("victim", ["algo-1", "algo-2"])
def test_one_that_is_killed_is_named_by_all_also_by_one_that_is_busy_for_longer_than_the_test(victim: str) -> None:
    with Party(3, BUSY_AND_WAITING) as party:
        party.start().until_ready()
        party.signal(signal.SIGKILL, victim)
        ended = party.finish(*{*party.names} - {victim})
    for one in ended.values():
        assert one.code == 5
        assert one.error == f"trainbox.errors.PeerError: {victim} is lost: the connection was closed"
    assert "\ntrainbox: at " in ended["algo-3"].stderr, "where the main thread was when the process was ended"


@pytest.mark.representative
@pytest.mark.parametrize("victim", ["algo-1", "algo-2"])
def test_one_that_is_frozen_is_named_after_the_limit_and_ends_when_it_wakes_up(victim: str) -> None:
    with Party(3, BUSY_AND_WAITING, limit=2) as party:
        party.start().until_ready()
        party.signal(signal.SIGSTOP, victim)
        ended = party.finish(*{*party.names} - {victim})
        party.signal(signal.SIGCONT, victim)
        woken = party.finish(victim)[victim]
    for one in ended.values():
        assert one.code == 5
        assert f"PeerError: {victim} is lost: no heartbeat for 2 s\n" in one.stderr
    assert woken.code == 5
    assert f"PeerError: this process ({victim}) was declared lost by the others: no heartbeat for 2 s" in woken.stderr


#: All go on until a file is there that all of them have seen.
TOGETHER = """
communicator.gather(communicator.rank, int)
ready()
while not all(communicator.gather(os.path.exists(FILE), bool)):
    time.sleep(0.01)
"""


@pytest.mark.parametrize("first", ["algo-1", "algo-2"])
def test_members_that_were_all_frozen_and_wake_up_one_after_the_other_go_on(first: str, tmp_path: Path) -> None:
    """As the containers of a paused engine. The first to wake up has heard nothing for longer than the limit."""
    with Party(3, TOGETHER.replace("FILE", repr(str(tmp_path / "end"))), limit=4) as party:
        party.start().until_ready()
        for name in party.names:
            party.signal(signal.SIGSTOP, name)
        time.sleep(5)
        party.signal(signal.SIGCONT, first)
        eventually(lambda: "this process did not run for" in party.stderr(first), "the first to notice")
        for name in party.names:
            party.signal(signal.SIGCONT, name)
        (tmp_path / "end").touch()
        ended = party.finish()
    assert {name: one.code for name, one in ended.items()} == dict.fromkeys(party.names, 0), ended


#: In each round all tell each other something, hand something in and get something; some are late.
ROUNDS = """
import random
chance = random.Random(communicator.rank)
ready()
for number in range(COUNT):
    time.sleep(chance.choice([0, 0, 0.001, 0.01]))
    assert communicator.gather(number, int) == [number] * 3
    given = communicator.send_to_first(b"x" * number)
    assert given is None or list(map(len, given)) == [number] * 3
    content, root = str(number).encode(), number % 3
    assert communicator.share(content if communicator.rank == root else None, root) == content
print("all rounds", flush=True)
"""


@pytest.mark.parametrize("count", [50, pytest.param(1000, marks=pytest.mark.long)])
def test_rounds_of_healthy_members_that_are_stopped_for_a_moment_raise_no_alarm(count: int) -> None:
    """With a short limit, on a machine whose processors are busy."""
    with Party(3, ROUNDS.replace("COUNT", str(count)), limit=4) as party, busy(2):
        party.start().until_ready()
        for name in party.names:
            party.signal(signal.SIGSTOP, name)
            time.sleep(0.3)
            party.signal(signal.SIGCONT, name)
        ended = party.finish()
    assert {name: (one.code, "all rounds" in one.stdout) for name, one in ended.items()} == dict.fromkeys(
        party.names, (0, True)
    ), ended


#: One gives up; another is in a long call of its own, and is ended from beside its main thread.
GIVING_UP = """
communicator.gather(communicator.rank, int)
ready()
if communicator.rank == 1: FAIL
time.sleep(1000 * (communicator.rank == 2))
communicator.gather(communicator.rank, int)
"""


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("from trainbox.errors import ResourceError; raise ResourceError('no memory')", 13),
        ("raise ValueError('x')", 1),
        ("sys.exit(21)", 21),
    ],
)
def test_all_leave_with_the_exit_code_of_the_one_that_gives_up(how: str, code: int) -> None:
    with Party(3, GIVING_UP.replace("FAIL", how)) as party:
        ended = party.start().finish()
    assert {name: one.code for name, one in ended.items()} == dict.fromkeys(party.names, code), ended


SCRIPT = """
import os, signal, time
import trainbox.toolkit
from trainbox.comm import find_members, join

def main():
    job = trainbox.current_job()
    members = find_members(job, trainbox.toolkit.current_ranks())
    with join(members, timeout=30, limit=20, port=job.port) as communicator:
        communicator.gather(members.name, str)
        open(os.path.join(os.environ["MEET"], members.name), "w").close()
        if communicator.rank == 1:
            while len(os.listdir(os.environ["MEET"])) < 3:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        if communicator.rank == 2:
            time.sleep(1000)  # as in a call of a library that lasts
        communicator.gather(members.name, str)

main()
"""


@pytest.mark.representative
def test_the_failure_of_each_host_names_the_lost_one(tmp_path: Path) -> None:
    """Through the supervisor, whether the main thread raises or the process is ended from beside it."""
    with Party(3, "") as place:
        address = place.address.rpartition(".")[0]
    hosts = [f"{address}.{number}" for number in (1, 2, 3)]
    trees = [Tree(tmp_path / host).hosts(*hosts, current=host).program(SCRIPT) for host in hosts]
    (tmp_path / "meet").mkdir()
    started = [tree.start({"MASTER_PORT": "29473", "MEET": str(tmp_path / "meet")}) for tree in trees]
    runs = [tree.finish(process) for tree, process in zip(trees, started, strict=True)]
    assert [run.code for run in runs] == [5, 137, 5]
    lost = f"AlgorithmError: PeerError: {hosts[1]} is lost: the connection was closed"
    for run, line in ((runs[0], 18), (runs[2], 17)):
        assert run.failure is not None
        first, *rest = run.failure.splitlines()
        assert first == lost
        assert f"train.py:{line} in main (exit code 5, " in "".join(rest)
        assert f"the log of {hosts[1]} says why" in "".join(rest)
