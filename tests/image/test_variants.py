"""Images of other contents than `trainbox:cpu`, built from copies of this checkout: small ones, without a network."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.containers import base_of
from tools import lock as locks
from tools.image import requirements
from trainbox.cli import VERBS

ROOT = Path(__file__).parents[2]
#: What `.dockerignore` lets through, and what builds.
NEEDED = (".dockerignore", "Dockerfile", "LICENSE", "README.md", "pyproject.toml")
DIRECTORIES = ("container", "locks", "train_scripts", "tools/image")
EPOCH = 1_000_000_000
#: Of a checkout, extras, options of docker, `variant`, `epoch`, `certificates`: the image, and what the build said.
Build = Callable[..., tuple[str, str]]


def run(*command: str | Path, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env={**os.environ, **(env or {})}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def layers(image: str) -> list[str]:
    found: list[str] = json.loads(run("docker", "image", "inspect", "--format", "{{json .RootFS.Layers}}", image))
    return found


def labels(image: str) -> dict[str, str]:
    found: dict[str, str] = json.loads(run("docker", "image", "inspect", "--format", "{{json .Config.Labels}}", image))
    return found


def differences(*images: str) -> str:
    """The lines that only one of two images has in a list of all its own files: mode, size, time, digest."""
    look = "cd /opt && find . -printf '%p %y %m %s %T@ %l\\n'; find . -type f -exec sha256sum {} +"
    one, other = ({*run("docker", "run", "--rm", image, "bash", "-c", look).splitlines()} for image in images)
    return "\n".join(sorted(one ^ other)) or "the same files, packed in another way"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of this checkout that an image can be built from."""
    copy = tmp_path / "checkout"
    for name in DIRECTORIES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (*NEEDED, "tools/base-image"):
        shutil.copy2(ROOT / name, copy / name)
    return copy


@pytest.fixture
def build(engine: Any) -> Iterator[Build]:
    made = []

    def build_one(
        checkout: Path, extras: str, *options: str, variant: str = "cpu", epoch: str = "", certificates: str = ""
    ) -> tuple[str, str]:
        run(checkout / "tools/image/wheelhouse", extras, "cpu", checkout / "wheelhouse", env={"PYTHON": sys.executable})
        made.append(f"trainbox-test:{uuid.uuid4().hex}")
        given = (extras, variant, made[-1], "--progress", "plain", *options)
        env = {"SOURCE_DATE_EPOCH": epoch, "BASE_IMAGE": base_of(engine), "PIP_CERT": certificates}
        return made[-1], run(checkout / "tools/image/build", *given, env=env)

    yield build_one
    for name in made:
        engine.remove_image(name, force=True)


def test_what_the_variants_install_comes_from_pyproject_alone() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()

    def wanted(extras: str, variant: str) -> list[str]:
        found = requirements.requirements_of(f"trainbox[{extras}]", pyproject)
        return list(dict.fromkeys(locks.for_variant(each, variant) for each in found))

    assert [re.split(r"[<>=]", line)[0] for line in wanted("", "gpu")] == ["msgspec"]
    cpu, gpu = wanted("all", "cpu"), wanted("all", "gpu")
    assert any(line.startswith("xgboost-cpu>=") for line in cpu)
    assert not any(line.startswith("xgboost-cpu") for line in gpu)
    # The build with CUDA, on the machines that the other one is for.
    assert any(re.fullmatch(r"xgboost>=[\d.]+,<[\d.]+", line) for line in gpu)
    assert [line for line in gpu if "xgboost" not in line] == [line for line in cpu if "xgboost" not in line]


@pytest.mark.process
def test_make_builds_the_variant_that_is_asked_for() -> None:
    for asked, variant in (([], "cpu"), (["VARIANT=gpu"], "gpu")):
        said = run("make", "--dry-run", "--always-make", "--directory", ROOT, "image", "EXTRAS=torch", *asked)
        assert f'tools/image/wheelhouse "torch" "{variant}" wheelhouse\n' in said
        assert f'tools/image/build "torch" "{variant}"\n' in said


def test_the_entry_of_the_image_knows_every_verb() -> None:
    (verbs,) = re.findall(r"^  -\* \| (.*)\) exec", (ROOT / "tools/image/entry").read_text(), re.MULTILINE)
    assert set(verbs.split(" | ")) == set(VERBS)


@pytest.mark.process
def test_a_variant_that_is_none_is_refused_before_anything_is_installed(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", ROOT / "tools/image/choose", "torch", "gpus", tmp_path / "chosen"],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "choose: VARIANT: found 'gpus', expected cpu or gpu\n"


@pytest.mark.docker
@pytest.mark.long
def test_two_builds_of_one_source_are_one_image(checkout: Path, build: Build, engine: Any) -> None:
    """Not the layers alone: the id too, which is what a signature or a deployment names."""
    first, _ = build(checkout, "", "--no-cache", epoch=str(EPOCH))
    time.sleep(1)  # the time that a build writes down has seconds
    second, _ = build(checkout, "", "--no-cache", epoch=str(EPOCH))
    assert engine.inspect_image(first)["Id"] == engine.inspect_image(second)["Id"], differences(first, second)


@pytest.mark.docker
def test_the_same_source_gives_the_same_layers_wherever_and_whenever_it_is_built(
    checkout: Path, build: Build, tmp_path: Path
) -> None:
    """And the core of an image for GPUs is that of one for CPUs; both are within the budget."""
    other = tmp_path / "elsewhere"
    shutil.copytree(checkout, other)
    for path in (*(other / "container").rglob("*"), *(other / "train_scripts").iterdir()):
        os.utime(path, (1, 1))
        path.chmod(0o700 if path.is_dir() else 0o600)
    # The cache compares contents without their times: what it keeps would prove nothing here.
    first, _ = build(checkout, "", "--no-cache", epoch=str(EPOCH))
    mark = uuid.uuid4().hex
    (tmp_path / "own.crt").write_text(mark)
    lent = str(tmp_path / "own.crt")
    second, said = build(other, "", "--no-cache", variant="gpu", epoch=str(EPOCH), certificates=lent)
    # Nor does it matter which certificates the build machine has: they are lent to the build, and in no layer.
    assert layers(first) == layers(second), differences(first, second)
    assert "mount=type=secret" in said
    assert mark not in run("docker", "history", "--no-trunc", second)
    assert labels(first)["org.opencontainers.image.created"] == "2001-09-09T01:46:40Z"
    assert [labels(image)["trainbox.variant"] for image in (first, second)] == ["cpu", "gpu"]
    look = f"find /opt ! -newermt @{EPOCH} -newermt @{EPOCH - 1} | wc -l; find /opt | wc -l; find /opt ! -perm -o=r"
    exact, every, *unreadable = run("docker", "run", "--rm", "--user", "1234", first, "bash", "-c", look).split()
    assert int(exact) == int(every) > 1000
    assert unreadable == []
    print(run(sys.executable, ROOT / "tools/image/sizes.py", first))
    # Compiled files are up to date: nothing is compiled at each start.
    load = "import trainbox.supervisor.train, trainbox.supervisor.__main__"
    verbose = run("docker", "run", "--rm", first, "python", "-v", "-c", load)
    assert "matches /opt/venv/lib" in verbose
    assert not re.findall(r"code object from '?(\S+\.py)\b", verbose)


@pytest.mark.docker
def test_an_edited_script_makes_the_last_small_layer_anew_and_nothing_else(checkout: Path, build: Build) -> None:
    before, _ = build(checkout, "")
    mark = uuid.uuid4().hex
    with (checkout / "train_scripts" / "xgboost_train.py").open("a") as file:
        file.write(f"# {mark}\n")
    began = time.monotonic()
    after, said = build(checkout, "")
    print(f"rebuilt in {time.monotonic() - began:.1f} s")
    assert layers(before)[:-1] == layers(after)[:-1]
    assert layers(before)[-1] != layers(after)[-1]
    history = run("docker", "history", "--human=false", "--format", "{{.Size}} {{.CreatedBy}}", after).splitlines()
    sizes = [int(line.split()[0]) for line in history if "/layer/scripts" in line]
    assert len(sizes) == 1
    assert sizes[0] < 1_000_000
    steps = dict(re.findall(r"^#(\d+) (\[[a-z]+ \d+/\d+\] (?:RUN|COPY).*)", said, re.MULTILINE))
    anew = {steps[number] for number in re.findall(r"^#(\d+) DONE", said, re.MULTILINE) if number in steps}
    assert len(anew) == 3, said
    assert all(step.startswith("[scripts") or "/layer/scripts" in step for step in anew), anew
    assert mark in run("docker", "run", "--rm", after, "tail", "-n", "1", "/opt/train_scripts/xgboost_train.py")
    # Nor do other words in pyproject.toml install anything anew.
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("# another word\n")
    last, said = build(checkout, "")
    assert layers(after) == layers(last)
    (installs,) = re.findall(r"^#(\d+) \[dependencies .*install dependencies", said, re.MULTILINE)
    assert f"#{installs} CACHED" in said


@pytest.mark.docker
def test_with_the_toolkit_scripts_can_import_it_and_train_is_still_ours(
    checkout: Path, build: Build, tmp_path: Path
) -> None:
    image, _ = build(checkout, "toolkit")
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "train.py").write_text(
        "from sagemaker_training import environment, logging_config\nprint('toolkit', environment.Environment)\n"
    )
    said = run(
        *("docker", "run", "--rm", "--env", "SAGEMAKER_PROGRAM=train.py", "--volume"),
        *(f"{tmp_path / 'job'}:/opt/ml/code:ro", image, "train"),
    )
    assert "toolkit <class 'sagemaker_training.environment.Environment'>" in said
    assert "trainbox: " in said
    found = run("docker", "run", "--rm", image, "bash", "-c", "cat $(command -v train); command -v gcc cc || echo none")
    assert "from trainbox.supervisor.__main__ import main" in found
    assert found.endswith("none\n")
    print(run(sys.executable, ROOT / "tools/image/sizes.py", image))
