"""tools/base-image: the base that was asked for, or an error; never another one in its place."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.image import ecr

ROOT = Path(__file__).parents[2]
#: Nothing listens there.
ABSENT = "127.0.0.1:1/python:3.12@sha256:" + "0" * 64


def base_image(**variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in {"CI", "BASE_IMAGE"}}
    return subprocess.run(
        [ROOT / "tools/base-image"], env={**kept, **variables}, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.process
@pytest.mark.parametrize("name", ["python:3.12-slim-bookworm", "python:3.12@sha256:12", "trainbox-base:debian-12"])
def test_under_ci_a_base_without_its_digest_is_refused(name: str) -> None:
    answer = base_image(CI="true", BASE_IMAGE=name)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert f"under CI the base image must be named by its digest: found '{name}'" in answer.stderr
    assert "hint: BASE_IMAGE=NAME:TAG@sha256:DIGEST" in answer.stderr


@pytest.mark.docker
@pytest.mark.representative
@pytest.mark.parametrize("ci", [{}, {"CI": "true"}], ids=["here", "ci"])
def test_a_base_that_cannot_be_pulled_is_an_error_and_nothing_is_taken_in_its_place(
    engine: Any, ci: dict[str, str]
) -> None:
    assert engine
    answer = base_image(BASE_IMAGE=ABSENT, **ci)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert f"cannot pull {ABSENT}" in answer.stderr
    assert "hint: without a registry: BASE_IMAGE=fallback make image" in answer.stderr


@pytest.mark.docker
@pytest.mark.registry
def test_a_base_named_by_its_digest_is_pulled_and_taken(account: ecr.Account, engine: Any) -> None:
    ecr.log_in(account)
    name = f"{account.registry}/python:3.12"

    def docker(*arguments: str, given: str = "") -> None:
        subprocess.run(["docker", *arguments], input=given, text=True, env=account.env, capture_output=True, check=True)

    docker("build", "--tag", name, "-", given="FROM scratch\nLABEL what=base\n")
    docker("push", name)
    (pushed,) = engine.inspect_image(name)["RepoDigests"]
    wanted = f"{name}@{pushed.partition('@')[2]}"
    docker("rmi", "--force", name, pushed)
    for _ in ("pulled", "here"):
        answer = base_image(CI="true", BASE_IMAGE=wanted, DOCKER_CONFIG=str(account.docker))
        assert (answer.returncode, answer.stdout) == (0, f"{wanted}\n"), answer.stderr
