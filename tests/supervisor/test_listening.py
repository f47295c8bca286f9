"""Every TCP socket that a job listens on, for every kind of job: each is known by name, with its address.

What listens on every address can be reached by all that the network lets through: only what a library opens so, and
leaves no choice, may do it.
"""

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, Self

import msgspec
import pytest

pytest.importorskip("torch")

from tests.support.addresses import addresses, free_port
from tests.support.listening import Listener, Listening
from tests.support.trees import Run, Tree
from tests.support.waiting import eventually

pytestmark = pytest.mark.cluster

EVERY = ("0.0.0.0", "::")
HERE = "127.0.0.1"

#: They stay as long as the test looks.
WAIT = """
import os, time
def wait():
    while not os.path.exists(os.environ["TRAINBOX_ROOT"] + "/go"): time.sleep(0.01)
"""
OWN_SCRIPT = f"""{WAIT}
import torch, torch.distributed as dist
dist.init_process_group("gloo")
wait()
dist.barrier()
dist.destroy_process_group()
"""
SESSION = f"""{WAIT}
from trainbox.torch import session
with session() as run: wait()
"""
ROWS = "".join(f"{number % 2},{number},{number % 7}\n" for number in range(200))


class Socket(msgspec.Struct, frozen=True):
    """What may listen: whose it is, on which address and at which port."""

    program: str
    #: `first`: of the first host, 127.0.0.1 if there is no other; `own`: of any host of the job.
    address: Literal["first", "own", "loopback", "every"]
    #: MASTER_PORT, the one next to it, or any that is free.
    port: Literal["job", "next", "free"] = "free"
    #: Open for a moment: nobody may be looking just then.
    brief: bool = False


class Kind(msgspec.Struct, frozen=True):
    """One kind of job."""

    sockets: Mapping[str, Socket]
    hosts: int = 1
    processes: int = 1
    program: str = ""
    asked: Mapping[str, str] = {}
    env: Mapping[str, str] = {}


TORCHRUN = {"trainbox_launcher": "torchrun"}
PLAIN = {"trainbox_launcher": "plain"}
FOREST = {"trainbox_script": "random_forest", "n-estimators": "4", "max-depth": "3", "n-jobs": "1"}
XGBOOST = {"trainbox_script": "xgboost", "objective": "binary:logistic", "num_round": "200", "nthread": "1"}
CHECKED = {"TRAINBOX_PREFLIGHT": "fast", "TRAINBOX_PEER_TIMEOUT_SECONDS": "60"}

GLOO = Socket("rank", "loopback")
GLOO_OF_SCRIPT = Socket("script", "loopback")
#: torch's `env://` has no choice of an address. A session, and the launcher torchrun, have.
TORCHS_OWN = "store of rank 0, opened by torch for a script of one's own under the launcher plain"
#: `BindHost` of XGBoost's collective takes every address; it has no option for another.
XGBOOSTS_OWN = "XGBoost's worker"
COLLECTIVE = {
    "communicator": Socket("script", "first", "job"),
    "XGBoost's tracker": Socket("tracker", "first"),
    XGBOOSTS_OWN: Socket("script", "every"),
}
CHECKS = {
    "connections of other hosts": Socket("health ranks", "own", brief=True),
    "store of a group of hosts": Socket("health ranks", "own", brief=True),
    "gloo": Socket("health ranks", "loopback", brief=True),
}

KINDS = {
    "torchrun on one host": Kind(
        {"stores of agents and ranks": Socket("agent", "first"), "gloo": GLOO},
        processes=2,
        program=OWN_SCRIPT,
        asked=TORCHRUN,
    ),
    "torchrun on two hosts": Kind(
        {
            "store of the agents": Socket("agent", "first", "job"),
            "store of the ranks": Socket("agent", "first"),
            "gloo": GLOO,
        },
        hosts=2,
        program=OWN_SCRIPT,
        asked=TORCHRUN,
    ),
    "session under plain on one host": Kind(
        {"store of rank 0": Socket("script", "first", "job"), "gloo": GLOO_OF_SCRIPT},
        processes=2,
        program=SESSION,
        asked=PLAIN,
    ),
    "session under plain on two hosts": Kind(
        {"store of rank 0": Socket("script", "first", "job"), "gloo": GLOO_OF_SCRIPT},
        hosts=2,
        program=SESSION,
        asked=PLAIN,
    ),
    "own script under plain": Kind(
        {TORCHS_OWN: Socket("script", "every", "job"), "gloo": GLOO_OF_SCRIPT},
        processes=2,
        program=OWN_SCRIPT,
        asked=PLAIN,
    ),
    "XGBoost on two hosts": Kind(COLLECTIVE, hosts=2, asked=XGBOOST),
    "XGBoost in two processes": Kind(
        {**COLLECTIVE, "communicator": Socket("script", "first", "job", brief=True)}, processes=2, asked=XGBOOST
    ),
    "forest on two hosts": Kind({"communicator": Socket("script", "first", "job")}, hosts=2, asked=FOREST),
    "XGBoost on one host": Kind({}, asked=XGBOOST),
    "forest on one host": Kind({}, asked=FOREST),
    "any script": Kind({}, program="print('done')", env={"TRAINBOX_PREFLIGHT": "fast"}),
    "checks of two hosts": Kind(
        {
            **CHECKS,
            "hub": Socket("health", "first", "next"),
            "port of the job, tried": Socket("health", "first", "job", brief=True),
        },
        hosts=2,
        processes=2,
        program="print('done')",
        env=CHECKED,
    ),
    "checks of one host": Kind(CHECKS, processes=2, program="print('done')", env=CHECKED),
}
#: Those that show nothing that another kind does not show, too.
LONG = {
    "torchrun on one host",
    "own script under plain",
    "forest on two hosts",
    "session under plain on one host",
    "session under plain on two hosts",
    "XGBoost in two processes",
    "XGBoost on one host",
    "forest on one host",
    "checks of one host",
}


class Job:
    """Hosts on this machine that are going to run."""

    def __init__(self, directory: Path, kind: Kind) -> None:
        self.kind = kind
        self.hosts = addresses(kind.hosts) if kind.hosts > 1 else ["localhost"]
        self.port = free_port()
        self._stack = ExitStack()
        self._trees = [self._stack.enter_context(Tree(directory / host / "ml")) for host in self.hosts]
        self._started: list[subprocess.Popen[bytes]] = []
        for tree, host in zip(self._trees, self.hosts, strict=True):
            tree.hosts(*self.hosts, current=host).channel("train", {"a.csv": ROWS})
            tree.hyperparameters_from({**kind.asked, "processes_per_host": str(kind.processes)})
            if kind.program:
                tree.program(kind.program)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self) -> int:
        """The next host; its process id."""
        env = {"MASTER_PORT": str(self.port), **self.kind.env}
        if not self.kind.program:
            env["SAGEMAKER_PROGRAM"] = ""
        process = self._trees[len(self._started)].start(env)
        self._started.append(process)
        return process.pid

    def release(self) -> None:
        """Let the programs end that wait."""
        for tree in self._trees:
            (tree.root / "go").touch()

    def has_ended(self) -> bool:
        """Whether one of the hosts has."""
        return any(process.poll() is not None for process in self._started)

    def finish(self) -> list[Run]:
        """Wait for all."""
        return [tree.finish(process) for tree, process in zip(self._trees, self._started, strict=True)]

    def names(self, found: Listener) -> set[str]:
        """The sockets that this one may be."""
        first = HERE if len(self.hosts) == 1 else self.hosts[0]
        may_be = {
            "first": found.address == first,
            "own": found.address in {first, *self.hosts},
            "loopback": found.address == HERE,
            "every": found.address in EVERY,
            "job": found.port == self.port,
            "next": found.port == self.port + 1,
            "free": found.port not in {self.port, self.port + 1},
        }
        return {
            name
            for name, socket in self.kind.sockets.items()
            if socket.program == found.program and may_be[socket.address] and may_be[socket.port]
        }


def parameters() -> Iterator[object]:
    for name in KINDS:
        yield pytest.param(name, id=name, marks=pytest.mark.long if name in LONG else ())


@pytest.mark.parametrize("name", list(parameters()))
def test_every_socket_that_a_job_listens_on_is_known(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    with Job(tmp_path, kind) as job, Listening() as listening:
        listening.follow(job.start())
        for _ in job.hosts[1:]:  # what is open until all have come is seen
            eventually(lambda: bool(listening.found) or job.has_ended(), "a socket of the first host")
            listening.follow(job.start())
        wanted = {name for name, socket in kind.sockets.items() if not socket.brief}
        eventually(
            lambda: wanted <= set().union(*map(job.names, listening.found)) or job.has_ended(), f"{wanted} to be seen"
        )
        job.release()
        runs = job.finish()
    assert [run.code for run in runs] == [0] * kind.hosts, "\n".join(run.log for run in runs)
    named = {found: job.names(found) for found in listening.found}
    assert [found for found, names in named.items() if not names] == [], f"unknown sockets of {name}"
    assert wanted <= set().union(*named.values())


@pytest.mark.representative
def test_only_what_a_library_opens_listens_on_every_address() -> None:
    found = {name for kind in KINDS.values() for name, socket in kind.sockets.items() if socket.address == "every"}
    assert found == {TORCHS_OWN, XGBOOSTS_OWN}
