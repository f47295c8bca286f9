"""Addresses and ports that no other test uses, of this process, of another worker or of another run on this machine.

A process of tests claims a block for as long as it lives: the kernel gives a socket's name to one process alone, and
takes it back whatever the process ends by. Worker gw3 begins to look at block 3.
"""

import functools
import itertools
import os
import socket

_BLOCKS = 250
_FIRST_PORT = 20000
_PORTS_OF_A_BLOCK = 36  # all of them end below 29400, which jobs meet at, and 32768, where the kernel chooses clients'
_NUMBERS = itertools.count()
_PORTS = itertools.count()


@functools.cache
def _block(pid: int) -> int:
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    for number in range(_BLOCKS):
        block = (int(worker) + number) % _BLOCKS
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0trainbox-tests-{block}")
        except OSError:
            claim.close()
            continue
        claim.detach()  # stays open for as long as the process lives
        return block
    raise AssertionError(f"process {pid} finds no block of addresses: {_BLOCKS} others are in use")


def addresses(count: int) -> list[str]:
    """Addresses of this machine, for the hosts of one job: no other test has had them lately."""
    number = next(_NUMBERS) % 250 + 1
    return [f"127.{_block(os.getpid()) + 1}.{number}.{place}" for place in range(1, count + 1)]


def free_port() -> int:
    """One that nobody listens at, and that nobody else will be given before it is used.

    For programs that must be told a port; a server of a test's own binds port 0 and says which it got.
    """
    block = _block(os.getpid())
    for _ in range(_PORTS_OF_A_BLOCK):
        port = _FIRST_PORT + block * _PORTS_OF_A_BLOCK + next(_PORTS) % _PORTS_OF_A_BLOCK
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise AssertionError(f"all ports of block {block} are in use")
