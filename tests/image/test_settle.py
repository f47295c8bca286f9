"""One source, one image id: the time of a build is not in it."""

import io
import json
import os
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tools.image import settle

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools" / "image" / "settle.py"
CREATED = "1980-01-01T00:00:00Z"
ABOUT = {
    "Id": "sha256:ab",
    "Created": "2026-11-29T14:55:31.123456789Z",
    "Architecture": "amd64",
    "Os": "linux",
    "Config": {"Cmd": ["train"], "Labels": {"trainbox.variant": "cpu"}},
    "RootFS": {"Type": "layers", "Layers": ["sha256:00", "sha256:11"]},
}
STEPS = [(100, "debootstrap"), (0, "ENV a"), (7, "COPY /layer/package / # buildkit")]


def test_two_builds_that_differ_in_their_times_become_the_same_bytes() -> None:
    first = settle.settled(ABOUT, STEPS, CREATED)
    later = {**dict(reversed(ABOUT.items())), "Id": "sha256:cd", "Created": "2026-11-30T01:02:03Z"}
    assert first == settle.settled(later, STEPS, CREATED)
    assert first != settle.settled({**ABOUT, "Config": {"Cmd": ["sh"]}}, STEPS, CREATED)
    config = json.loads(first)
    assert config["config"] == ABOUT["Config"]
    assert config["rootfs"] == {"type": "layers", "diff_ids": ["sha256:00", "sha256:11"]}
    assert {config["created"], *(step["created"] for step in config["history"])} == {CREATED}
    assert [step.get("empty_layer", False) for step in config["history"]] == [False, True, False]
    assert [step["created_by"] for step in config["history"]] == [command for _, command in STEPS]


def test_a_layer_of_no_bytes_is_not_taken_for_another() -> None:
    with pytest.raises(ValueError, match="1 steps made something, and there are 2 layers"):
        settle.settled(ABOUT, [(100, "debootstrap"), (0, "WORKDIR /"), (0, "ENV a")], CREATED)


def test_the_engine_is_given_the_config_alone() -> None:
    config = settle.settled(ABOUT, STEPS, CREATED)
    with tarfile.open(fileobj=io.BytesIO(settle.archive_of(config, "trainbox:cpu"))) as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    assert files["config.json"] == config
    assert set(files) == {"config.json", "manifest.json"}
    (manifest,) = json.loads(files["manifest.json"])
    assert manifest["RepoTags"] == ["trainbox:cpu"]
    assert len(manifest["Layers"]) == 2


@pytest.fixture
def base(engine: Any, image: str) -> Iterator[list[str]]:
    """The names of images to be made; they are removed in the end."""
    assert image
    names: list[str] = []
    yield names
    for name in names:
        engine.remove_image(name, force=True)


@pytest.mark.docker
@pytest.mark.representative
def test_two_builds_of_the_same_layers_have_one_id_once_they_are_settled(
    base: list[str], engine: Any, image: str
) -> None:
    def build() -> str:
        base.append(f"trainbox-test:{uuid.uuid4().hex}")
        dockerfile = f"FROM {image}\nLABEL what=settled\n"
        command = ["docker", "build", "--quiet", "--no-cache", "--tag", base[-1], "-"]
        subprocess.run(command, input=dockerfile.encode(), env={**os.environ, "DOCKER_BUILDKIT": "0"}, check=True)
        return base[-1]

    first, second = build(), build()
    before = [engine.inspect_image(name) for name in (first, second)]
    assert before[0]["Id"] != before[1]["Id"], "the times of the builds make the difference"
    for name in (first, second):
        subprocess.run([sys.executable, SCRIPT, name, "315532800"], check=True)
    after = [engine.inspect_image(name) for name in (first, second)]
    assert after[0]["Id"] == after[1]["Id"]
    assert after[0]["Created"] == "1980-01-01T00:00:00Z"
    assert after[0]["RootFS"] == before[0]["RootFS"]
    assert after[0]["Config"]["Labels"] == before[0]["Config"]["Labels"]
    answer = subprocess.run(
        ["docker", "run", "--rm", first, "trainbox", "--version"], capture_output=True, text=True, check=True
    )
    assert answer.stdout.startswith("trainbox ")
