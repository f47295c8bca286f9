"""How the agent of another host waits for the store of the first one."""

import pytest

pytest.importorskip("torch")

from torch._C._distributed_c10d import TCPStore

from tests.support.addresses import free_port
from trainbox.elastic.rendezvous import open_store
from trainbox.errors import PeerError

pytestmark = pytest.mark.process

HOSTS = ("127.0.0.1", "127.0.0.2")


def test_a_first_host_that_never_answers_is_named_with_where_and_why() -> None:
    port = int(free_port())
    with pytest.raises(
        PeerError, match=f"no agent answers at 127.0.0.1:{port} after 0 s: Connection refused"
    ) as raised:
        open_store(HOSTS, 1, port, timeout=0.2, check=lambda: None)
    assert raised.value.hint == "see the log of 127.0.0.1: it may have failed before its training began"


def test_a_first_host_that_comes_late_is_waited_for() -> None:
    port = int(free_port())
    stores: list[TCPStore] = []

    def check() -> None:
        checks.append(1)
        if len(checks) == 3:
            stores.append(open_store(HOSTS, 0, port, timeout=0, check=lambda: None))

    checks: list[int] = []
    client = open_store(HOSTS, 1, port, timeout=60, check=check)
    client.set("said", "here")
    assert stores[0].get("said") == b"here"


def test_a_wait_ends_where_its_caller_says_so() -> None:
    def check() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        open_store(HOSTS, 1, int(free_port()), timeout=60, check=check)
