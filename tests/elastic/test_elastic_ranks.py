"""What the agent does about ranks that do not end."""

import os
import select
import socket
import threading
from pathlib import Path

import msgspec
import pytest

from trainbox.elastic.forkserver import MESSAGE_BYTES, Started
from trainbox.elastic.ranks import Ranks, RankStuck, ServerLost
from trainbox.launch.relay import Sink


def test_a_rank_that_sigkill_does_not_end_is_named_and_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other end of the channel starts it, and never says that it has ended, as with a process in state D."""
    monkeypatch.setattr("trainbox.elastic.ranks._KILL_SECONDS", 0.3)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, Path(os.devnull).open("wb") as nowhere:
        ranks = Ranks(ours, (Sink(nowhere.fileno()), Sink(nowhere.fileno())))
        server = threading.Thread(target=_start_one, args=(theirs, 4711))
        server.start()
        ranks.start(0, {})
        server.join()
        with pytest.raises(RankStuck, match="does not end after SIGKILL: process 4711"):
            ranks.end(0.1)
        assert ranks.alive == []
        ranks.end(60.0)  # does not wait
        ranks.forget()


def test_a_fork_server_that_dies_before_it_reads_its_orders_is_lost_like_any_other() -> None:
    """As where its imports fail, or the kernel kills it meanwhile."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, Path(os.devnull).open("wb") as nowhere:
        ranks = Ranks(ours, (Sink(nowhere.fileno()), Sink(nowhere.fileno())))
        server = threading.Thread(target=_die_of_an_order, args=(theirs,))
        server.start()
        with pytest.raises(ServerLost, match="the process that forks the ranks has died"):
            ranks.start(0, {})
        server.join()
        ranks.forget()


def _die_of_an_order(channel: socket.socket) -> None:
    with channel:
        select.select([channel], [], [])


def _start_one(channel: socket.socket, pid: int) -> None:
    _, descriptors, _, _ = socket.recv_fds(channel, MESSAGE_BYTES, 2)
    for descriptor in descriptors:
        os.close(descriptor)
    channel.send(msgspec.json.encode(Started(0, pid)))
