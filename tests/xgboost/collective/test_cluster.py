"""XGBoost's collective among processes: one model, sums of one's own, and who is named when a member is lost."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import xgboost as xgb

from tests.support.parties import PORT, Ended, Party
from tests.support.trees import is_alive
from tests.support.waiting import eventually
from trainbox.comm import Communicator, Members, join
from trainbox.errors import PeerError, TrainingError
from trainbox.xgboost.collective import group as cluster
from trainbox.xgboost.collective.group import collective, naming_lost_members
from trainbox.xgboost.collective.tracker_process import Tracker

#: XGBoost without what it does not need here, which would take members five times as long to start.
ALONE = """
import sys
sys.modules.update({"sklearn": None, "pandas": None})
"""
HEAD = f"""
{ALONE}
import hashlib, warnings
import numpy as np, xgboost as xgb
from trainbox.xgboost.collective.group import collective
warnings.simplefilter("ignore")
def say(**values): print(json.dumps(values), flush=True)
def rows(count, seed):
    features = np.random.default_rng(seed).normal(size=(count, 5)).astype(np.float32)
    return features, (features[:, 0] > 0).astype(np.float32)
PARAMS = dict(objective="binary:logistic", nthread=1, max_depth=3, subsample=0.7)
"""

TRAINS = """
table = rows(SIZES[communicator.rank][0], communicator.rank)
held_out = rows(SIZES[communicator.rank][1], communicator.rank + 10)
communicator.gather(len(table[1]), int)
with collective(communicator) as group:
    train = xgb.QuantileDMatrix(*table)
    validation = xgb.QuantileDMatrix(*held_out, ref=train)
    booster = xgb.Booster(PARAMS, [train, validation])
    for step in range(8):
        booster.update(train, step)
    line = booster.eval_set([(train, "train"), (validation, "validation")])
    say(
        place=(group.rank, group.size),
        model=hashlib.sha256(booster.save_raw("ubj")).hexdigest(),
        line=line,
        total=group.total(np.array([[1.5, communicator.rank], [0.1, 0.7]])).tolist(),
        together=group.concatenate(np.arange(communicator.rank, dtype=np.float32)).tolist(),
        bits=group.concatenate(np.array([-0.0, np.nan])[communicator.rank :]).tobytes().hex(),
        nothing=group.concatenate(np.array([])).tolist(),
        any=(group.any(communicator.rank == 2), group.any(False)),
    )
say(after=xgb.collective.get_world_size())
"""

#: Until something happens to one of them.
ON_AND_ON = """
table = rows(2000, communicator.rank)
communicator.gather(len(table[1]), int)
with collective(communicator) as group:
    train = xgb.QuantileDMatrix(*table)
    booster = xgb.Booster(PARAMS, [train])
    for step in range(10**9):
        booster.update(train, step)
        if step == 5: ready()
        if step == 9 and communicator.members.name == RAISING: raise ValueError("the rows are wrong\\nand so on")
"""


def answers(ended: dict[str, Ended]) -> list[dict[str, object]]:
    """What each member has said, once all have left well."""
    assert {name: (one.code, one.stderr) for name, one in ended.items()} == dict.fromkeys(ended, (0, ""))
    said = []
    for one in ended.values():
        lines = [json.loads(line) for line in one.stdout.splitlines() if line.startswith("{")]
        said.append({name: value for line in lines for name, value in line.items()})
    return said


@pytest.mark.process
def test_members_train_one_model_though_their_leader_is_late_and_strangers_call() -> None:
    """The incumbent's tracker is aborted where one comes late."""
    sizes = "SIZES = [(400, 100), (300, 70), (500, 90)]"
    with Party(3, TRAINS, head=HEAD + sizes) as party:
        party.start("algo-2")
        time.sleep(3)
        party.start("algo-1")
        call(party.address, b"GET / HTTP/1.0\r\n\r\n")
        party.start("algo-3")  # the leader listens until all have come
        said = answers(party.finish(*party.names))
    assert [one["place"] for one in said] == [[rank, 3] for rank in range(3)]
    for one in said:
        for name in ("model", "line", "total", "together", "bits"):
            assert one[name] == said[0][name], name
        assert np.allclose(np.array(one["total"]), [[4.5, 3], [0.3, 2.1]], rtol=1e-15)
        assert one["together"] == [0, 0, 1]
        assert one["bits"] == np.array([-0.0, np.nan, np.nan]).tobytes().hex()
        assert one["nothing"] == []
        assert one["any"] == [True, False]
        assert one["after"] == 1


def call(address: str, content: bytes) -> None:
    """As soon as somebody listens there."""

    def connect() -> socket.socket | None:
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection((address, PORT), timeout=300)
        return None

    with eventually(connect, f"somebody who listens at {address}") as connection:
        connection.sendall(content)


@pytest.mark.process
def test_a_member_without_rows_to_learn_from_and_one_without_rows_to_validate_on_take_part() -> None:
    sizes = "SIZES = [(400, 100), (0, 70), (500, 0)]"
    with Party(3, TRAINS, head=HEAD + sizes) as party:
        said = answers(party.start().finish())
    assert {one["model"] for one in said} == {said[0]["model"]}
    assert {one["line"] for one in said} == {said[0]["line"]}
    assert "validation-logloss:0." in str(said[0]["line"])


@pytest.mark.process
def test_ranks_are_those_of_the_communicator_beyond_ten_members() -> None:
    """Hosts are sorted as text: algo-1, algo-10, algo-11, algo-2."""
    body = "with collective(communicator) as group: say(place=(group.rank, xgb.collective.get_rank()))"
    with Party(11, body, head=HEAD) as party:
        said = answers(party.start().finish())
    assert [one["place"] for one in said] == [[rank, rank] for rank in range(11)]


@pytest.mark.process
def test_one_that_is_slow_is_not_lost() -> None:
    """The others are in a call of the library meanwhile, for longer than the limit, and show that they live."""
    body = """
with collective(communicator) as group:
    time.sleep(4.5 * (communicator.rank == 1))
    say(total=group.total(np.ones(1)).tolist())
"""
    with Party(3, body, head=HEAD, limit=3) as party:
        said = answers(party.start().finish())
    assert [one["total"] for one in said] == [[3.0]] * 3


# -- one is lost -----------------------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.parametrize("victim", [pytest.param("algo-1", marks=pytest.mark.long), "algo-2"])
def test_one_that_is_killed_while_all_train_is_named_by_the_others(victim: str) -> None:
    with Party(3, ON_AND_ON, head=HEAD + "RAISING = None") as party:
        party.start().until_ready()
        party.signal(signal.SIGKILL, victim)
        ended = party.finish(*{*party.names} - {victim})
    for one in ended.values():
        assert one.code == 5, one.stderr
        assert one.error == f"trainbox.errors.PeerError: {victim} is lost: the connection was closed"


@pytest.mark.process
@pytest.mark.parametrize("victim", [pytest.param("algo-1", marks=pytest.mark.long), "algo-2"])
def test_one_that_freezes_while_all_train_is_named_by_the_others_and_ends_when_it_wakes_up(victim: str) -> None:
    with Party(3, ON_AND_ON, head=HEAD + "RAISING = None", limit=2) as party:
        party.start().until_ready()
        party.signal(signal.SIGSTOP, victim)
        ended = party.finish(*{*party.names} - {victim})
        party.signal(signal.SIGCONT, victim)
        woken = party.finish(victim)[victim]
    for one in ended.values():
        assert one.code == 5, one.stderr
        assert one.error == f"trainbox.errors.PeerError: {victim} is lost: no heartbeat for 2 s"
    assert woken.code == 5, woken.stderr
    assert f"PeerError: this process ({victim}) was declared lost by the others: " in woken.stderr


@pytest.mark.process
@pytest.mark.parametrize("victim", [pytest.param("algo-1", marks=pytest.mark.long), "algo-2"])
def test_one_that_fails_is_named_by_the_others_with_what_it_says(victim: str) -> None:
    with Party(3, ON_AND_ON, head=HEAD + f"RAISING = {victim!r}") as party:
        ended = party.start().finish()
    failed = ended.pop(victim)
    assert failed.code == 1
    assert failed.stderr.endswith("ValueError: the rows are wrong\nand so on\n")
    for one in ended.values():
        assert one.code == failed.code, one.stderr
        words = "has given up: ValueError: the rows are wrong and so on"
        assert one.error == f"trainbox.errors.PeerError: {victim} {words}"


def test_what_xgboost_raises_is_let_through_where_nobody_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_REPORT_SECONDS", 0.0)
    with (
        alone() as communicator,
        pytest.raises(xgb.core.XGBoostError, match="wrong parameter"),
        naming_lost_members(communicator),
    ):
        raise xgb.core.XGBoostError("wrong parameter")


def test_what_xgboost_raises_is_the_loss_where_somebody_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> None:
        raise PeerError("algo-2 is lost")

    with alone() as communicator:
        monkeypatch.setattr(communicator, "lost", lambda *, seconds: f"within {seconds} s")
        monkeypatch.setattr(communicator, "check", lost)
        with pytest.raises(PeerError, match="algo-2 is lost"), naming_lost_members(communicator):
            raise xgb.core.XGBoostError("whatever")


# -- alone, and the tracker ------------------------------------------------------------------------------------------


@contextmanager
def alone() -> Iterator[Communicator]:
    """The communicator of one member."""
    with join(Members(("algo-1",), "algo-1", "127.0.0.1"), timeout=0, limit=0, port=0) as communicator:
        yield communicator


def test_one_member_alone_has_the_same_calls_and_no_collective() -> None:
    with alone() as communicator, collective(communicator) as group:
        assert (group.rank, group.size) == (0, 1)
        assert not xgb.collective.is_distributed()
        given = np.array([1.5, 2.5])
        for answer in (group.total(given), group.concatenate(given)):
            assert answer.tolist() == [1.5, 2.5]
            assert answer is not given
        assert (group.any(True), group.any(False)) == (True, False)


@pytest.mark.process
def test_the_tracker_lives_as_long_as_its_leader_and_a_sigterm_for_the_script_does_not_end_it() -> None:
    with Tracker("localhost", 2, 10) as tracker:
        assert tracker.arguments["dmlc_tracker_uri"] == "127.0.0.1"
        os.kill(tracker.pid, signal.SIGTERM)
        time.sleep(0.1)
        assert is_alive(tracker.pid)
        assert os.getpgid(tracker.pid) != os.getpgid(os.getpid())
    assert not is_alive(tracker.pid)


@pytest.mark.process
def test_the_tracker_of_a_leader_that_is_killed_ends_by_itself() -> None:
    code = """
import time
from trainbox.xgboost.collective.tracker_process import Tracker
tracker = Tracker("127.0.0.1", 2, 10)
print(tracker.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", ALONE + code], stdout=subprocess.PIPE) as leader:
        assert leader.stdout is not None
        tracker = int(leader.stdout.readline())
        leader.kill()
    assert is_alive(tracker)  # the others still tell it that they leave
    eventually(lambda: not is_alive(tracker), "the end of the tracker")


@pytest.mark.process
def test_a_tracker_that_does_not_start_says_why() -> None:
    with pytest.raises(TrainingError, match=r"XGBoost's tracker does not start: .*"):
        Tracker("192.0.2.1", 2, 10)  # an address that no machine has (RFC 5737)
