"""The scripts of tools/ci that are sourced: what they refuse before they touch a file, and that no token stays."""

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.process
ROOT = Path(__file__).parents[2]
#: Stands in for Python: does what a test says for a verb, and writes down the verbs.
PYTHON = """#!/bin/bash
verb=$3
[ "$2" = tools.ci.audit ] && verb=audit
echo "$verb" >>verbs
case $verb in
  login) echo '{"auths": {}}' >"$DOCKER_CONFIG/config.json" ;;
  push) echo sha256:pushed ;;
  inventory | release) echo "{}" ;;
esac
[ "$verb" != "$FAILING" ]
"""
STEPS = ["tested", "inventory", "audit", "push", "scan", "release"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("variant", "names", "login", "publish"):
        (tmp_path / "tools/ci").mkdir(parents=True, exist_ok=True)
        (tmp_path / "tools/ci" / name).write_text((ROOT / "tools/ci" / name).read_text())
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    (tmp_path / "tmp").mkdir()
    return tmp_path


def bash(directory: Path, script: str, **env: str) -> "subprocess.CompletedProcess[str]":
    known = {"PATH": os.environ["PATH"], "TMPDIR": str(directory / "tmp"), "IMAGE": "here/trainbox-candidate:tag"}
    return subprocess.run(
        ["bash", "-c", script],
        cwd=directory,
        env={**known, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def verbs(directory: Path) -> list[str]:
    path = directory / "verbs"
    return path.read_text().split() if path.exists() else []


@pytest.mark.parametrize("script", ["names", "publish"])
def test_a_variant_that_is_none_is_refused_before_a_file_is_touched(checkout: Path, script: str) -> None:
    (checkout / "reports").mkdir()
    victim = checkout / "victim.json"
    victim.write_text("kept")
    done = bash(checkout, f". tools/ci/{script}", VARIANT="x/../../victim")
    assert done.returncode == 1
    assert "VARIANT: found x/../../victim, expected cpu or gpu" in done.stderr
    assert victim.read_text() == "kept"
    assert verbs(checkout) == []


def test_what_is_released_was_tested_audited_pushed_as_a_candidate_and_scanned_in_this_order(checkout: Path) -> None:
    done = bash(checkout, ". tools/ci/publish && echo $IMAGE_DIGEST $IMAGE_URI")
    assert (done.returncode, done.stdout) == (0, "sha256:pushed here/trainbox@sha256:pushed\n"), done.stderr
    assert verbs(checkout) == STEPS
    assert (checkout / "reports/image-cpu.json").exists()


@pytest.mark.parametrize("failing", STEPS)
def test_after_a_step_that_fails_comes_no_other_and_nothing_says_there_is_an_image(
    checkout: Path, failing: str
) -> None:
    (checkout / "reports").mkdir()
    (checkout / "reports/image-cpu.json").write_text("of the build before")
    done = bash(checkout, '. tools/ci/publish; code=$?; echo "$code [$IMAGE_URI]"', FAILING=failing)
    assert done.stdout == "1 []\n"
    assert verbs(checkout) == STEPS[: STEPS.index(failing) + 1]
    assert not (checkout / "reports/image-cpu.json").exists()


def test_after_a_failed_build_nothing_is_pushed(checkout: Path) -> None:
    done = bash(checkout, ". tools/ci/publish", CODEBUILD_BUILD_SUCCEEDING="0")
    assert done.returncode == 1
    assert "the build has failed: nothing is pushed" in done.stderr
    assert verbs(checkout) == []


@pytest.mark.parametrize(
    "env", [{}, {"FAILING": "login"}, {"FAILING": "push"}, {"CODEBUILD_BUILD_SUCCEEDING": "0"}], ids=str
)
def test_the_token_lies_in_a_directory_of_its_own_which_is_gone_in_the_end(checkout: Path, env: dict[str, str]) -> None:
    script = '. tools/ci/login && stat --format %a "$DOCKER_CONFIG" && ls "$DOCKER_CONFIG" && . tools/ci/publish'
    done = bash(checkout, script, **env)
    assert done.stdout == ("" if env.get("FAILING") == "login" else "700\nconfig.json\n")
    assert list((checkout / "tmp").iterdir()) == []
