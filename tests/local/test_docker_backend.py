"""What the container backend decides by itself, without an engine."""

import builtins
import datetime as dt
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainbox.cli.screen.summary import process_command, resume_command
from trainbox.errors import RunError
from trainbox.local.backends.confinement import Confinement
from trainbox.local.backends.docker import _reason, _relay
from trainbox.local.backends.docker_resources import mounts_of
from trainbox.local.backends.engine import Image, find_image
from trainbox.local.backends.isolation import in_containers
from trainbox.local.inputs.source import ChannelSource
from trainbox.local.plan import Mount, RunPlan, plan_run
from trainbox.local.request import RunRequest

OUT = Path("/results/job")


def plan(image: Image) -> RunPlan:
    request = RunRequest(
        script="xgboost_train",
        channels={"a": ChannelSource(Path("/data/a.csv"), is_file=True), "train": ChannelSource(Path("/da:ta"))},
        env={"MINE": "1"},
        inherited={"PATH": "/bin", "SM_HPS": "old"},
        hosts=2,
        job_name="job",
        out=OUT,
        isolation=in_containers(image, Confinement(network="internal", user="1:1")),
        started=dt.datetime(2026, 11, 5, tzinfo=dt.UTC),
    )
    return plan_run(request)


def test_a_container_inherits_nothing_and_finds_its_own_interface() -> None:
    planned = plan(Image("image:1"))
    host = planned.hosts[1]
    assert (host.name, host.argv, planned.removed) == ("algo-2", ("train",), ())
    assert host.environment == {"TRAINING_JOB_NAME": "job", "MINE": "1", "TRAINBOX_PREFLIGHT": "off"}
    assert '"network_interface_name": "eth0"' in host.files["input/config/resourceconfig.json"]
    assert Path("/etc/hosts") not in {mount.target for mount in host.mounts}
    assert Mount(OUT / ".trainbox" / "algo-2", Path("/opt/ml")) in host.mounts


@pytest.mark.process
def test_what_is_mounted_into_a_tree_is_mounted_below_opt_ml() -> None:
    pytest.importorskip("docker")
    found = {each["Target"]: (each["Source"], each["ReadOnly"]) for each in mounts_of(plan(Image("i")).hosts[0])}
    assert found == {
        "/opt/ml": (str(OUT / ".trainbox" / "algo-1"), False),
        "/opt/ml/checkpoints": (str(OUT / "checkpoints"), False),
        "/opt/ml/input/data/a/a.csv": ("/data/a.csv", True),
        "/opt/ml/input/data/train": ("/da:ta", True),
    }


def test_the_commands_to_go_on_name_the_image_or_none() -> None:
    request = plan(Image("image:1")).request
    resume = resume_command(request)
    assert resume[resume.index("--docker") + 1] == "image:1"
    assert "--docker" not in process_command(request)


def test_half_of_the_memory_may_be_shared_and_choices_are_said() -> None:
    image = Image("image:1", memory=8_000_000_000, gpus=True, emulated="arm64")
    assert image.shm_bytes == 4_000_000_000
    for part in ("image:1", "4.0 GB", "all GPUs", "for arm64 and so emulated"):
        assert part in image.sentence


@pytest.mark.parametrize(
    ("state", "code", "reason"),
    [
        ({}, 137, "removed from outside"),
        ({"OOMKilled": True}, 137, "out of memory"),
        ({"OOMKilled": False}, 137, "killed from outside"),
        # The script left, and its supervisor says why.
        ({"OOMKilled": True}, 1, ""),
        ({"OOMKilled": False}, 0, ""),
    ],
)
def test_the_engine_is_asked_why_only_where_nobody_else_can_say(state: dict[str, Any], code: int, reason: str) -> None:
    found = _reason(state, code)
    assert reason in found
    assert bool(found) == bool(reason)


def relayed(frames: list[tuple[bytes | None, bytes | None]]) -> bytes:
    reader, writer = os.pipe()
    spoken, silent = threading.Event(), threading.Event()
    _relay(frames, writer, spoken, silent)
    assert spoken.is_set()
    assert silent.is_set()
    with os.fdopen(reader, "rb") as pipe:
        return pipe.read()


@given(
    lines=st.lists(st.tuples(st.booleans(), st.binary(max_size=20)), max_size=10),
    sizes=st.lists(st.integers(1, 30), min_size=1),
)
def test_lines_of_two_streams_stay_whole_wherever_the_engine_cuts_them(
    lines: list[tuple[bool, bytes]], sizes: list[int]
) -> None:
    # An empty line may also end what the other stream has left open: none here.
    texts: dict[bool, bytes] = {False: b"", True: b""}
    for is_error, line in lines:
        texts[is_error] += b"x" + line.replace(b"\n", b" ") + b"\n"
    frames: list[tuple[bytes | None, bytes | None]] = []
    rest, turn = dict(texts), 0
    while any(rest.values()):
        is_error = bool(turn % 2) if all(rest.values()) else bool(rest[True])
        size = sizes[turn % len(sizes)]
        piece, rest[is_error] = rest[is_error][:size], rest[is_error][size:]
        frames.append((None, piece) if is_error else (piece, None))
        turn += 1
    found = relayed(frames)
    assert sorted(found.splitlines(keepends=True)) == sorted(b"".join(texts.values()).splitlines(keepends=True))


def test_a_line_left_open_is_ended_by_the_other_stream() -> None:
    frames: list[tuple[bytes | None, bytes | None]] = [(b"50%\r99%", None), (None, b"\nlast words\n"), (b"end", None)]
    assert relayed(frames) == b"50%\r99%\nlast words\nend"


def test_without_the_package_docker_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **options: Any) -> object:
        if name.partition(".")[0] == "docker":
            raise ModuleNotFoundError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(RunError) as raised:
        find_image("image:1", {})
    assert str(raised.value).endswith("pip install 'trainbox[local]'")
    assert "\n" not in str(raised.value)
