"""Ranks that cannot reach each other: the reason says what is wrong with the host, besides what the library says."""

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.trees import Tree

pytestmark = pytest.mark.process

pytest.importorskip("torch")

GLOO = """
import torch.distributed as dist
dist.init_process_group("gloo")
dist.barrier()
"""
#: What ProcessGroupNCCL raises where no interface is found; this torch may have no NCCL.
NCCL = """
import os, torch.distributed as dist
dist.init_process_group("gloo")
if os.environ["RANK"] == "1":
    raise dist.DistBackendError("NCCL error in: NCCLUtils.cpp:77, unhandled system error, NCCL version 2.27.3")
dist.barrier()
"""


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    with Tree(tmp_path / "ml") as built:
        built.hosts("localhost").hyperparameters(
            processes_per_host=2, trainbox_launcher="torchrun", trainbox_max_restarts=1
        )
        yield built


def loopback() -> str:
    """The one interface that does not come and go while containers of other tests start and end."""
    return socket.if_nameindex()[0][1]


@pytest.mark.long
def test_an_interface_that_gloo_does_not_find_is_said_to_be_none_of_the_host(tree: Tree) -> None:
    run = tree.program(GLOO).run(GLOO_SOCKET_IFNAME="nosuch0")
    assert run.code == 1, run.log
    hint = re.search(r"\nhint: GLOO_SOCKET_IFNAME=nosuch0, and this host has (.+): leave it out: ", str(run.failure))
    assert hint is not None, run.failure
    assert loopback() in hint[1].split(", ")


@pytest.mark.long
def test_an_error_of_nccl_carries_what_the_facts_of_the_host_say(tree: Tree) -> None:
    run = tree.program(NCCL).run(NCCL_SOCKET_IFNAME="nosuch0", FI_PROVIDER="efa")
    assert run.code == 1, run.log
    first, *_, hints = str(run.failure).splitlines()
    assert first.startswith("torch.distributed.DistBackendError: NCCL error in: ")
    assert re.match(
        r"hint: 2 ranks on a host with \d+ GPU\(s\): .*; NCCL_SOCKET_IFNAME=nosuch0, and this host has .*;"
        r" FI_PROVIDER=efa, and this host has no EFA",
        hints,
    )
    assert re.search(r"restart 1 of 1: rank 1 failed: .*; 2 ranks on a host with", run.log)
