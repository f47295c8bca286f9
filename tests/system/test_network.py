"""What in a host may keep NCCL or gloo from getting through, from its facts alone."""

import signal
from typing import Any

import msgspec
import pytest

from trainbox.diagnostics.cause import Cause
from trainbox.diagnostics.verdict import RankFailure
from trainbox.launcher.attribution import backend_of
from trainbox.system.network import RULES, SMALL_SHM_BYTES, Facts, chosen, find_hints, gather

SOUND = Facts(
    backend="nccl",
    hosts=2,
    ranks=8,
    gpus=8,
    interfaces=("docker0", "eth0", "eth1", "lo"),
    efa=False,
    shm_bytes=SMALL_SHM_BYTES,
    shm_free_bytes=SMALL_SHM_BYTES,
    memlock_bytes=8 * 2**20,
    variables={},
    versions={"a": {"torch": "2.8", "NCCL": "2.27.3"}, "b": {"torch": "2.8", "NCCL": "2.27.3"}},
)


def facts(**changes: Any) -> Facts:
    return msgspec.structs.replace(SOUND, **changes)


def nccl(value: str) -> Facts:
    return facts(variables={"NCCL_SOCKET_IFNAME": value})


def test_of_a_sound_host_nothing_is_said() -> None:
    assert find_hints(SOUND) == ()
    assert find_hints(facts(backend="gloo", ranks=2, gpus=0)) == ()


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"gpus": 4}, "8 ranks on a host with 4 GPU(s): NCCL takes no GPU twice: fewer processes_per_host"),
        (
            {"variables": {"NCCL_SOCKET_IFNAME": "ethwe"}},
            "NCCL_SOCKET_IFNAME=ethwe, and this host has docker0, eth0, eth1, lo: leave it out: ",
        ),
        ({"variables": {"NCCL_SOCKET_IFNAME": "lo"}}, "NCCL_SOCKET_IFNAME=lo on 2 hosts: it reaches no other host: "),
        (
            {"variables": {"FI_PROVIDER": "efa", "NCCL_NET": "AWS Libfabric"}},
            "FI_PROVIDER=efa, NCCL_NET=AWS Libfabric, and this host has no EFA or no libfabric: leave it out, ",
        ),
        ({"variables": {"NCCL_NET_PLUGIN": "libnccl-net-ofi.so"}}, "NCCL_NET_PLUGIN=libnccl-net-ofi.so, and this host"),
        (
            {"versions": {"a": {"NCCL": "2.27.3"}, "b": {"NCCL": "2.21.5"}, "c": {"NCCL": "2.27.3"}, "d": {}}},
            "NCCL 2.27.3 on a, 2.21.5 on b, none on d: give all hosts the same image, by its digest",
        ),
        ({"shm_free_bytes": 2**20}, "/dev/shm has 1 MiB left: something fills it: "),
        ({"shm_bytes": 64 * 2**20}, "/dev/shm has 64 MiB: with docker a larger --shm-size"),
        ({"shm_bytes": None, "shm_free_bytes": None}, "there is no /dev/shm: with docker a larger --shm-size"),
        ({"efa": True}, "an EFA, and processes may lock 8 MiB: with docker --ulimit memlock=-1"),
    ],
)
def test_each_fact_has_its_hint_and_no_other(changes: dict[str, Any], hint: str) -> None:
    (found,) = find_hints(facts(**changes))
    assert found.startswith(hint)


def test_what_is_asked_for_and_there_is_no_reason() -> None:
    there = facts(efa=True, memlock_bytes=None, variables={"FI_PROVIDER": "efa", "NCCL_SOCKET_IFNAME": "eth"})
    assert find_hints(there) == ()
    assert find_hints(msgspec.structs.replace(nccl("lo"), hosts=1)) == ()
    assert find_hints(msgspec.structs.replace(nccl("eth9"), interfaces=None)) == ()


def test_what_cannot_work_comes_before_what_may_be_too_little() -> None:
    found = find_hints(facts(gpus=1, shm_bytes=0, shm_free_bytes=0, variables={"NCCL_SOCKET_IFNAME": "ib0"}))
    assert [hint.split()[0] for hint in found] == ["8", "NCCL_SOCKET_IFNAME=ib0,", "/dev/shm", "/dev/shm"]
    assert len(found) < len(RULES)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("eth", ("eth0", "eth1")),
        ("eth1,docker", ("docker0", "eth1")),
        ("=eth", ()),
        ("=eth0,lo", ("eth0", "lo")),
        ("^docker", ("eth0", "eth1", "lo")),
        ("^docker,eth", ("lo",)),
        ("^=eth", ("docker0", "eth0", "eth1", "lo")),
    ],
)
def test_interfaces_are_named_as_nccl_reads_them(value: str, names: tuple[str, ...]) -> None:
    assert chosen(nccl(value)) == names


def test_gloo_takes_whole_names_and_only_what_concerns_it() -> None:
    named = facts(backend="gloo", gpus=0, shm_bytes=0, efa=True, variables={"GLOO_SOCKET_IFNAME": "eth"})
    (hint,) = find_hints(named)
    assert hint.startswith("GLOO_SOCKET_IFNAME=eth, and this host has docker0, eth0, eth1, lo: ")
    assert find_hints(msgspec.structs.replace(named, variables={"GLOO_SOCKET_IFNAME": "eth0"})) == ()


def test_the_facts_of_this_machine_can_be_read() -> None:
    env = {"NCCL_SOCKET_IFNAME": "eth0", "FI_PROVIDER": "efa", "HOME": "/root"}
    found = gather("nccl", hosts=2, ranks=3, env=env)
    assert (found.backend, found.hosts, found.ranks) == ("nccl", 2, 3)
    assert "lo" in (found.interfaces or ())
    assert found.variables == {"NCCL_SOCKET_IFNAME": "eth0", "FI_PROVIDER": "efa"}


def failed(*family: str, text: str = "", number: int = 0, hung: str = "") -> RankFailure:
    return RankFailure(
        rank=0, host="a", code=1, signal=number, cause=Cause(text=text) if text else None, family=family, hung=hung
    )


NCCL_CLASS = ("torch.distributed.DistBackendError", "torch.distributed.DistError", "builtins.RuntimeError")


@pytest.mark.parametrize(
    ("failure", "backend"),
    [
        (failed(*NCCL_CLASS, text="unhandled system error"), "nccl"),
        (failed(NCCL_CLASS[0]), "nccl"),  # all that a traceback shows
        (failed("builtins.RuntimeError", text="NCCL Error 2: unhandled system error"), "nccl"),
        (failed("builtins.RuntimeError", text="[enforce fail at /gloo/transport/tcp/device.cc:89]"), "gloo"),
        (failed(text="Process group watchdog thread terminated: NCCL error", number=signal.SIGABRT), "nccl"),
        (failed("builtins.RuntimeError", text="shape mismatch"), None),
        (failed("builtins.ValueError", text="nccl is no backend"), None),
        (failed(text="NCCL INFO", number=signal.SIGKILL), None),
        (failed(text="NCCL INFO", number=signal.SIGKILL, hung="made no progress"), None),
        (failed("builtins.RuntimeError"), None),
    ],
)
def test_whose_failure_it_is_shows_in_its_class_or_name(failure: RankFailure, backend: str | None) -> None:
    assert backend_of(failure) == backend
