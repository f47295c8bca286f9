"""Who is lost, when and for what reason: arithmetic, and heartbeats in a time that the test moves."""

import math
import random
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.timeline import STEP, Star
from trainbox.comm import heartbeat
from trainbox.comm.communicator import exit_code_of
from trainbox.comm.failure_detector import Due, FailureDetector
from trainbox.comm.framing import Heartbeat
from trainbox.errors import DataError, PeerError

NOW = 1000.0
NAMES = ("algo-1", "algo-2", "algo-3")


# -- one member's arithmetic -------------------------------------------------------------------------------------------


def detector(limit: float = 10.0, interval: float = 0.5) -> FailureDetector:
    one = FailureDetector(limit=limit, interval=interval)
    one.hear("algo-2", NOW)
    return one


def test_a_heartbeat_is_due_at_once_and_after_each_interval() -> None:
    one = detector()
    beats = [moment for moment in range(100) if one.turn(NOW + moment / 8, watching=True).beats]
    assert beats == list(range(0, 100, 4))


def test_it_looks_again_at_whatever_comes_first() -> None:
    assert detector(limit=10).turn(NOW, watching=True) == Due(beats=True, until=NOW + 0.5)
    assert detector(limit=0.25).turn(NOW, watching=True).until == NOW + 0.25
    assert detector(limit=0.25).turn(NOW, watching=False).until == NOW + 0.5
    assert detector().turn(NOW, watching=True, ends=[NOW + 0.125]).until == NOW + 0.125
    assert detector().turn(NOW, watching=True, ends=[NOW - 7]).until == NOW


def test_silence_up_to_the_limit_is_none_and_at_the_limit_it_is() -> None:
    one = detector(limit=10)
    assert one.silent(NOW + 9.999) == ()
    assert one.silent(NOW + 10) == ("algo-2",)
    one.hear("algo-2", NOW + 9)
    assert one.silent(NOW + 18.999) == ()
    one.forget("algo-2")
    assert one.silent(NOW + 1e9) == ()


def test_without_a_limit_nobody_is_ever_silent_for_too_long() -> None:
    one = detector(limit=math.inf)
    assert one.turn(NOW, watching=True).until == NOW + 0.5
    late = one.turn(NOW + 1e9, watching=True)
    assert (one.silent(NOW + 2e9), late.absent, one.absence(NOW + 1e9)) == ((), 0.0, 0.0)


@pytest.mark.parametrize(("gap", "credited"), [(0.0, 0.0), (0.375, 0.0), (0.5, 0.5), (3.0, 3.0), (1e6, 1e6)])
def test_the_time_in_which_this_one_did_not_run_is_nobodys_silence(gap: float, credited: float) -> None:
    one = detector(limit=10)
    due = one.turn(NOW, watching=True).until
    one.turn(due + gap, watching=True)
    assert one.silent(NOW + 10 + credited - 0.001) == ()
    assert one.silent(NOW + 10 + credited) == ("algo-2",)


def test_a_turn_that_comes_early_because_something_was_said_is_no_gap() -> None:
    one = detector(limit=10)
    for moment in range(79):
        assert one.turn(NOW + moment / 8, watching=True).absent == 0.0
    assert one.silent(NOW + 10) == ("algo-2",)


@pytest.mark.parametrize(("gap", "says", "is_absent"), [(4.0, False, False), (5.0, True, False), (10.0, True, True)])
def test_a_long_absence_is_said_and_one_as_long_as_the_limit_explains_what_breaks_next(
    gap: float, says: bool, is_absent: bool
) -> None:
    one = detector(limit=10)
    woken = one.turn(NOW, watching=True).until + gap
    assert one.turn(woken, watching=True).absent == (gap if says else 0.0)
    assert one.absence(woken + 9.999) == (gap if is_absent else 0.0)
    assert one.absence(woken + 10) == 0.0  # by then a healthy member would have been heard, or a lost one missed


@given(st.lists(st.floats(0, 30), max_size=30))
def test_whatever_the_gaps_a_member_has_its_limit_in_time_in_which_this_one_ran(pauses: list[float]) -> None:
    one = detector(limit=10, interval=0.5)
    now, ran = NOW, 0.0
    due = one.turn(now, watching=True).until
    for pause in pauses:
        ran += min(pause, due - now) if now + pause - due >= 0.5 else pause
        now += pause
        due = one.turn(now, watching=True).until
        assert (one.silent(now) == ("algo-2",)) == (ran >= 10 - 1e-6) or abs(ran - 10) < 1e-3


# -- heartbeats --------------------------------------------------------------------------------------------------------


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What would have ended this process."""
    errors: list[str] = []
    monkeypatch.setattr(heartbeat, "end_process", lambda error, _thread: errors.append(error.message))
    return errors


@pytest.fixture
def star(ended: list[str]) -> Iterator[Star]:
    del ended
    three = Star(*NAMES, limit=10)
    three.run(2)
    yield three
    three.close()


def test_members_that_beat_are_never_lost(star: Star) -> None:
    star.run(100)
    assert star.found == {}


@pytest.mark.parametrize("victim", NAMES)
def test_a_frozen_member_is_named_by_all_others_when_the_limit_is_over_and_not_before(star: Star, victim: str) -> None:
    star.frozen.add(victim)
    star.run(10 - 0.5 - STEP)
    assert star.found == {}
    star.run(1)
    others = set(NAMES) - {victim}
    assert {one.message for one in star.found.values()} == {f"{victim} is lost: no heartbeat for 10 s"}
    assert star.found.keys() == others


@pytest.mark.parametrize("victim", NAMES)
@pytest.mark.parametrize("seconds", [10.5, 11.0, 60.0, 3600.0])
def test_one_that_wakes_up_after_it_was_given_up_says_that_it_was_itself(
    star: Star, victim: str, seconds: float, capsys: pytest.CaptureFixture[str]
) -> None:
    star.frozen.add(victim)
    star.run(seconds)
    star.frozen.clear()
    star.run(1)
    assert star.found[victim].message == (
        f"this process ({victim}) was declared lost by the others: no heartbeat for 10 s"
    )
    assert "this process did not run for" in capsys.readouterr().err


@pytest.mark.parametrize("limit", [1.0, 10.0, 30.0])
@pytest.mark.parametrize("victim", NAMES)
@pytest.mark.usefixtures("ended")
def test_a_frozen_member_is_named_within_half_a_second_after_the_limit(limit: float, victim: str) -> None:
    """The last heartbeat may have come just before: from the freeze on it is the limit at most, and two looks."""
    three = Star(*NAMES, limit=limit)
    three.run(5)
    frozen_at = three.elapsed
    three.frozen.add(victim)
    three.run(limit + 2)
    named = [one.after - frozen_at for one in three.found.values()]
    assert len(named) == 2
    assert limit - heartbeat.BEAT_SECONDS - STEP <= min(named)
    assert max(named) <= limit + heartbeat.BEAT_SECONDS
    three.close()


@pytest.mark.parametrize("victim", NAMES)
def test_a_dead_member_is_named_by_all_at_their_next_turns(star: Star, victim: str) -> None:
    before = star.elapsed
    star.die(victim)
    star.run(3 * STEP)
    assert len(star.found) == 2
    assert max(one.after - before for one in star.found.values()) <= 2 * STEP


def test_a_thousand_rounds_of_members_that_are_late_and_stopped_again_and_again_raise_no_alarm(star: Star) -> None:
    """Each round some of them stand still for up to nine tenths of the limit, one after the other or all at once."""
    chance = random.Random(7)
    for _ in range(1000):
        star.frozen = {name for name in NAMES if chance.random() < 0.4}
        star.run(chance.choice([STEP, 0.5, 1.0, 3.0, 9.0]))
        star.frozen = set()
        star.run(1.0)
    assert star.found == {}
    assert star.ended == set()


@pytest.mark.parametrize("seconds", [0.5, 3.0, 9.0])
def test_a_freeze_that_is_shorter_than_the_limit_is_none(star: Star, seconds: float) -> None:
    for victim in NAMES:
        star.frozen.add(victim)
        star.run(seconds)
        star.frozen.clear()
        star.run(2)
    assert star.found == {}


@pytest.mark.parametrize("first", NAMES)
@pytest.mark.parametrize("seconds", [11.0, 60.0, 3600.0])
def test_when_all_were_frozen_the_first_that_wakes_up_accuses_nobody(star: Star, first: str, seconds: float) -> None:
    """As a paused engine does it: all containers stand still, and come back one after the other."""
    star.frozen.update(NAMES)
    star.run(seconds)
    star.frozen.remove(first)
    star.run(5)
    star.frozen.clear()
    star.run(60)
    assert star.found == {}


def test_one_that_stays_frozen_when_the_others_wake_up_is_named_after_the_limit(star: Star) -> None:
    star.frozen.update(NAMES)
    star.run(60)
    star.frozen = {"algo-3"}
    star.run(8)
    assert star.found == {}
    star.run(3)
    assert star.found["algo-1"].message == "algo-3 is lost: no heartbeat for 10 s"
    assert star.found["algo-2"].message == "algo-3 is lost: no heartbeat for 10 s"


def test_one_that_was_away_for_longer_than_the_limit_does_not_blame_a_leader_that_is_gone_since(star: Star) -> None:
    """The word of the leader was lost with its network: the connection is at an end, and nothing says why."""
    star.frozen.add("algo-2")
    star.run(30)
    star.deafen("algo-2")
    star.die("algo-1")
    star.frozen = {"algo-3"}
    star.run(1)
    assert star.found["algo-2"].message == (
        "this process (algo-2) was declared lost by the others: it did not run for 30 s, and algo-1 has left meanwhile"
    )


def test_a_leader_that_dies_is_blamed_by_one_that_was_away_for_a_moment_only(star: Star) -> None:
    star.frozen.add("algo-2")
    star.run(3)
    star.frozen.clear()
    star.run(STEP)
    star.die("algo-1")
    star.run(1)
    assert star.found["algo-2"].message == "algo-1 is lost: the connection was closed"


def test_the_first_loss_counts_and_the_process_ends_a_second_after_it(star: Star, ended: list[str]) -> None:
    star.die("algo-2")
    star.run(STEP)
    assert star.found["algo-1"].message == "algo-2 is lost: the connection was closed"
    star.die("algo-3")
    star.run(1 - STEP)
    assert ended == []
    star.run(2 * STEP)
    assert ended == ["algo-2 is lost: the connection was closed"]


def test_one_that_leaves_by_itself_within_that_second_is_not_ended(star: Star, ended: list[str]) -> None:
    star.die("algo-2")
    star.run(1 - STEP)
    assert star.found.keys() == {"algo-1", "algo-3"}
    star.monitors["algo-1"].give_up("for that reason")
    star.die("algo-1")
    star.die("algo-3")
    star.run(10)
    assert ended == []


def end_after_report(star: Star, victim: str, **how: bool) -> float:
    """How long after a report the others are ended; one of them says meanwhile that it leaves by itself, if asked."""
    star.monitors[victim].give_up("no rows")
    star.run(2 * STEP)
    for name in set(NAMES) - {victim}:
        if how:
            star.monitors[name].give_up("no rows", **how)
    star.die(victim)
    before = star.now
    while len(star.ended) < 2:
        star.run(STEP)
    return star.now - before


def test_after_a_report_the_others_have_longer_to_raise_their_own_error(star: Star, ended: list[str]) -> None:
    """On a busy machine the main thread takes a while to come to the same error, which has the better text."""
    assert end_after_report(star, "algo-2") == pytest.approx(heartbeat.REPORT_LEAVE_SECONDS, abs=2 * STEP)
    assert ended == ["algo-2 has given up: no rows"] * 2


def test_one_that_removes_its_files_after_an_error_of_its_own_is_not_ended_meanwhile(star: Star) -> None:
    assert end_after_report(star, "algo-2", own=True) == pytest.approx(heartbeat.CLEANUP_SECONDS, abs=2 * STEP)


def test_one_that_leaves_for_the_loss_alone_gets_no_time_beyond_that(star: Star) -> None:
    assert end_after_report(star, "algo-2", own=False) == pytest.approx(heartbeat.REPORT_LEAVE_SECONDS, abs=2 * STEP)


def test_the_reason_of_one_that_gives_up_is_passed_on_to_all(star: Star) -> None:
    star.monitors["algo-3"].give_up("no rows")
    star.run(2 * STEP)
    assert {star.found[name].message for name in ("algo-1", "algo-2")} == {
        "algo-3 has given up: no rows",
    }


@pytest.mark.parametrize("victim", NAMES)
@pytest.mark.parametrize(("exit_code", "expected"), [(7, 7), (1, 1), (255, 255), (0, PeerError.exit_code)])
def test_all_others_leave_with_the_exit_code_of_the_one_that_gives_up(
    star: Star, victim: str, exit_code: int, expected: int
) -> None:
    star.monitors[victim].give_up("no rows", exit_code=exit_code)
    star.run(2 * STEP)
    assert {name: one.exit_code for name, one in star.found.items()} == dict.fromkeys({*NAMES} - {victim}, expected)


def test_of_one_that_vanishes_nobody_knows_the_exit_code(star: Star) -> None:
    star.die("algo-2")
    star.run(2 * STEP)
    assert {one.exit_code for one in star.found.values()} == {PeerError.exit_code}


@pytest.mark.parametrize("exit_code", [-1, 256, 2**63, 7.5, "7", None, True])
def test_what_is_no_exit_code_is_no_message_of_ours(exit_code: object) -> None:
    for message in (
        {"gave_up": "so", "exit_code": exit_code},
        {"lost": {"member": "a", "why": "b", "exit_code": exit_code}},
    ):
        with pytest.raises(msgspec.DecodeError):
            msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=Heartbeat)


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (DataError("no rows"), 7),
        (PeerError("algo-2 has given up", exit_code=13), 13),
        (ValueError("x"), 1),
        (SystemExit("x"), 1),
        (SystemExit(3), 3),
        (SystemExit(-1), 255),
        (SystemExit(None), 0),
        (KeyboardInterrupt(), 130),
    ],
)
def test_the_exit_code_of_an_error_is_that_with_which_python_ends(error: BaseException, exit_code: int) -> None:
    assert exit_code_of(error) == exit_code
