"""Waiting for peers: bounded, not silent, and it names whom it waits for."""

import threading

import pytest

from trainbox.errors import PeerError, Stopped
from trainbox.system import name_resolution as peers
from trainbox.system.name_resolution import resolves, wait_for_peers


class Clock:
    """Time that passes only while somebody sleeps, or looks up a name."""

    def __init__(self) -> None:
        self.now = 1000.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def wait(known_after: dict[str, float], *, timeout: float = 120.0, lookup: float = 0.0) -> tuple[list[str], float]:
    """Wait for hosts that become known after so many seconds; the lines that were said, and how long it took."""
    clock = Clock()
    said: list[str] = []
    started = clock.now

    def is_known(host: str) -> bool:
        clock.sleep(lookup)
        return clock.now - started >= known_after[host]

    hosts = list(known_after)
    try:
        wait_for_peers(
            hosts, timeout=timeout, emit=said.append, is_known=is_known, clock=lambda: clock.now, sleep=clock.sleep
        )
    except PeerError as error:
        said.append(error.message)
    return said, clock.now - started


def test_known_hosts_are_not_waited_for() -> None:
    assert wait({"algo-1": 0, "algo-2": 0}) == ([], 0)


def test_every_ten_seconds_a_line_says_whom_it_waits_for() -> None:
    said, seconds = wait({"algo-1": 0, "algo-2": 25, "algo-3": 12})
    assert said == [
        "waiting for the address of algo-2, algo-3 (10 of 120 s)",
        "waiting for the address of algo-2 (20 of 120 s)",
    ]
    assert seconds == 25


def test_after_the_timeout_the_error_names_the_missing_hosts() -> None:
    said, seconds = wait({"algo-1": 0, "algo-2": 1e9, "algo-3": 3})
    assert said[-1] == "after 120 s these hosts still have no address: algo-2"
    assert len(said) == 12
    assert seconds == 120


@pytest.mark.parametrize("stop", [7.0, 3600.0])
def test_a_stop_of_this_process_is_no_time_that_the_others_had(stop: float) -> None:
    """After it was stopped for longer than the timeout the names are there, a little later."""
    clock = Clock()
    said: list[str] = []
    pauses = iter([0.5, 0.5 + stop])
    started = clock.now
    wait_for_peers(
        ["algo-1"],
        timeout=6,
        emit=said.append,
        is_known=lambda _: clock.now - started >= stop + 1.5,
        clock=lambda: clock.now,
        sleep=lambda _: clock.sleep(next(pauses, 0.5)),
    )
    # A look-up may take five seconds: no more than the rest shows.
    assert f"this process did not run for {stop - 5:.1f} s" in said[0]
    assert clock.now - started == stop + 1.5


def test_a_name_server_that_is_dead_does_not_multiply_the_wait() -> None:
    said, seconds = wait({f"algo-{number}": 1e9 for number in range(100)}, lookup=5.0)
    assert seconds <= 130
    assert len(said) == 12
    assert said[0].startswith("waiting for the address of algo-0, algo-1, algo-2, algo-3, algo-4 and 95 more (10 of")


@pytest.mark.parametrize(("host", "known"), [("localhost", True), ("x" * 70, False), ("a..b", False), ("", False)])
def test_a_name_without_an_address_is_no_crash(host: str, known: bool) -> None:
    assert resolves(host) == known


def test_a_look_up_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()
    monkeypatch.setattr(peers, "_LOOKUP_SECONDS", 0.05)
    monkeypatch.setattr(peers, "_look_up", lambda _host: answer.wait(10))
    assert not resolves("algo-1")
    answer.set()


def test_a_stop_ends_the_wait() -> None:
    def check_stop() -> None:
        raise Stopped("stopped")

    with pytest.raises(Stopped):
        wait_for_peers(["algo-1"], timeout=60, emit=print, check_stop=check_stop, is_known=lambda _host: False)
