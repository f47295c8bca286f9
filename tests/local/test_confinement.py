"""What the containers of `trainbox run --docker` may do: the least that the job needs, unless the command line says."""

import msgspec
import pytest

from trainbox.local.backends.confinement import Confinement, confine, environment, host_options
from trainbox.local.backends.engine import Image
from trainbox.local.backends.isolation import in_containers

PLAIN = {
    "hosts": 1,
    "outside": (),
    "network": None,
    "as_sagemaker": False,
    "user": (1234, 100),
    "groups": (100, 27, 998),
    "rootless": False,
}


def confined(**changes: object) -> Confinement:
    return confine(**{**PLAIN, **changes})  # type: ignore[arg-type]  # the arguments of a test


@pytest.mark.parametrize(
    ("changes", "network"),
    [
        ({}, "none"),
        ({"hosts": 2}, "internal"),
        ({"outside": ("-r requirements.txt",)}, "bridge"),
        ({"outside": ("the reference in --hp password",)}, "bridge"),
        ({"outside": ("-r requirements.txt",), "hosts": 3}, "bridge"),
        ({"outside": ("-r requirements.txt",), "network": "none"}, "none"),
        ({"network": "bridge"}, "bridge"),
        ({"network": "internal"}, "internal"),
        ({"as_sagemaker": True}, "bridge"),
        ({"as_sagemaker": True, "network": "none"}, "none"),
    ],
)
def test_the_network_is_the_narrowest_that_will_do(changes: dict[str, object], network: str) -> None:
    assert confined(**changes).network == network


def test_a_container_is_the_callers_and_may_nothing_else() -> None:
    found = confined()
    assert (found.user, found.groups) == ("1234:100", (27, 998))
    assert host_options(found, tmp_bytes=4096) == {
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "read_only": True,
        "tmpfs": dict.fromkeys(("/tmp", "/var/tmp"), "rw,exec,nosuid,nodev,mode=1777,size=4096"),
        "pids_limit": 16384,
        "group_add": ["27", "998"],
    }
    assert environment(found, {"A": "1", "HOME": "/opt/ml"}) == {"USER": "trainbox", "HOME": "/opt/ml", "A": "1"}
    assert found.interface == "lo"


def test_of_an_engine_that_is_a_users_root_is_that_user() -> None:
    found = confined(rootless=True)
    assert (found.user, found.groups) == ("0:0", ())
    assert host_options(found, tmp_bytes=0)["cap_drop"] == ["ALL"]


def test_as_sagemaker_nothing_is_taken_from_it() -> None:
    found = confined(as_sagemaker=True)
    assert (found.user, found.interface) == ("", "eth0")
    assert host_options(found, tmp_bytes=4096) == {}
    assert environment(found, {"A": "1"}) == {"A": "1"}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({}, ("user 1234:100, no capabilities, its own files read-only", "no network (--network bridge")),
        ({"hosts": 2}, ("a network of the job's hosts alone",)),
        ({"outside": ("-r requirements.txt",)}, ("a network, for -r requirements.txt (--as-sagemaker",)),
        ({"as_sagemaker": True}, ("root and its capabilities as on SageMaker, and a network",)),
    ],
)
def test_the_choice_is_said_and_how_to_make_another(changes: dict[str, object], parts: tuple[str, ...]) -> None:
    sentence = in_containers(Image("image:1", memory=8_000_000_000), confined(**changes)).sentence
    assert sentence.startswith("each host is a container of image:1, ")
    for part in parts:
        assert part in sentence


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({}, []),
        ({"outside": (".",), "hosts": 2}, []),
        ({"network": "bridge"}, ["--network", "bridge"]),
        ({"as_sagemaker": True}, ["--as-sagemaker"]),
    ],
)
def test_the_next_attempt_asks_for_the_same(changes: dict[str, object], flags: list[str]) -> None:
    assert confined(**changes).flags == flags


def test_the_same_request_is_confined_alike() -> None:
    assert msgspec.structs.asdict(confined()) == msgspec.structs.asdict(confined(groups=(998, 27)))
