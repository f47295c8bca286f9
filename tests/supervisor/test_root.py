"""Supervisor and script agree on the tree, whatever of it a container started by hand has: no model is lost."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from trainbox.system.procfs import read_start
from trainbox.toolkit import _begin

#: Saves a model, and says where it takes its tree to be.
SCRIPT = """
import trainbox
trainbox.save("model.bin", b"here")
print("root", trainbox.current_job().layout.root)
"""
_FOREIGN = ("SAGEMAKER_", "TRAINBOX_", "SM_", "AWS_", "PYTHON", "PIP_", "TRAINING_JOB_")
_NAMESPACES = (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"])
TRAIN = (sys.executable, "-P", "-m", "trainbox.supervisor")
#: Another user, who may read Python wherever that lies.
OTHER_USER = (
    *("setpriv", "--reuid=1234", "--regid=1234", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)


def in_container(
    here: Path, setup: str, env: Mapping[str, str], command: Sequence[str] = TRAIN
) -> "subprocess.CompletedProcess[str]":
    """Run a command where nothing is below `/opt` but what `setup`, a shell script, puts there, and list all models."""
    if str(Path(sys.prefix).resolve()).startswith("/opt/"):
        pytest.skip("this Python lies below /opt")
    script = f"""
        mount -t tmpfs none /opt
        cd "$HERE"
        {setup}
        code=0
        "$@" || code=$?
        find /opt "$HERE" -name model.bin
        exit $code
    """
    namespace = next(
        (each for each in _NAMESPACES if not subprocess.run([*each, "true"], check=False).returncode), None
    )
    if namespace is None:
        assert "CI" not in os.environ, "CI must be able to make a mount namespace"
        pytest.skip("this machine permits no mount namespace")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    return subprocess.run(
        [*namespace, "sh", "-euc", textwrap.dedent(script), "sh", *command],
        env={**kept, "HERE": str(here), "TMPDIR": str(here / "tmp"), **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture
def here(tmp_path: Path) -> Path:
    for name in ("src", "lib", "tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o777)
    (tmp_path / "src" / "train.py").write_text(SCRIPT)
    (tmp_path / "lib" / "mine.py").write_text(SCRIPT)
    return tmp_path


CODE = "mkdir -p /opt/ml/code; cp src/train.py /opt/ml/code"
READ_ONLY = "mkdir -p /opt/ml/code; mount --bind src /opt/ml/code; mount -o remount,ro,bind /opt/ml/code"
WAYS: Mapping[str, tuple[str, Mapping[str, str], Sequence[str], str]] = {
    "the code alone": (CODE, {"SAGEMAKER_PROGRAM": "train.py"}, TRAIN, "/opt/ml"),
    "nothing below opt": ("", {"SAGEMAKER_PROGRAM": "train.py", "SAGEMAKER_SUBMIT_DIRECTORY": "src"}, TRAIN, "/opt/ml"),
    "a read-only code directory": (READ_ONLY, {"SAGEMAKER_PROGRAM": "train.py"}, TRAIN, "/opt/ml"),
    "a source beside a read-only code directory": (
        READ_ONLY,
        {"SAGEMAKER_PROGRAM": "train.py", "SAGEMAKER_SUBMIT_DIRECTORY": "src"},
        TRAIN,
        "/opt/ml",
    ),
    "a module of the code": (CODE, {"TRAINBOX_MODULE": "train"}, TRAIN, "/opt/ml"),
    "an installed module": ("", {"TRAINBOX_MODULE": "mine", "PYTHONPATH": "lib"}, TRAIN, "/opt/ml"),
    "another root": (
        "mkdir -p /opt/other/code; cp src/train.py /opt/other/code",
        {"SAGEMAKER_PROGRAM": "train.py", "TRAINBOX_ROOT": "/opt/other"},
        TRAIN,
        "/opt/other",
    ),
    "a relative root": (
        "mkdir -p /opt/x/code; cp src/train.py /opt/x/code; cd /opt",
        {"SAGEMAKER_PROGRAM": "train.py", "TRAINBOX_ROOT": "x"},
        TRAIN,
        "/opt/x",
    ),
    "a pod whose command is the script": ("mkdir -p /opt/ml/model", {}, (sys.executable, "src/train.py"), "/opt/ml"),
    "a pod whose command is a module": (
        "mkdir -p /opt/ml/model; cd src",
        {},
        (sys.executable, "-m", "train"),
        "/opt/ml",
    ),
    "another user": (
        f"{CODE}; mkdir -p /opt/ml/model; chown 1234:1234 /opt/ml/model",
        {"SAGEMAKER_PROGRAM": "train.py"},
        (*OTHER_USER, *TRAIN),
        "/opt/ml",
    ),
}


@pytest.mark.process
@pytest.mark.parametrize("way", WAYS)
def test_the_model_lies_where_the_supervisor_looks_for_it(here: Path, way: str) -> None:
    setup, env, command, root = WAYS[way]
    if command[0] == "setpriv" and os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    absolute = {name: str(here / value) if (here / value).is_dir() else value for name, value in env.items()}
    done = in_container(here, setup, absolute, command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"root {root}", f"{root}/model/model.bin"], done.stdout + done.stderr


@pytest.mark.process
def test_what_the_script_starts_without_its_environment_finds_the_tree_too(here: Path) -> None:
    launcher = "import subprocess, sys\nsubprocess.run([sys.executable, '-I', '{}'], env={{}}, check=True)\n"
    (here / "src" / "launch.py").write_text(launcher.format(here / "src" / "train.py"))
    env = {"SAGEMAKER_PROGRAM": "launch.py", "SAGEMAKER_SUBMIT_DIRECTORY": str(here / "src")}
    done = in_container(here, "", env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["root /opt/ml", "/opt/ml/model/model.bin"]


@pytest.mark.process
def test_a_root_that_an_image_has_left_over_does_not_take_the_model_from_sagemaker(here: Path) -> None:
    request = "mkdir -p /opt/ml/input/config /opt/ml/output; echo '{}' >/opt/ml/input/config/hyperparameters.json"
    hosts = """echo '{"hosts": ["algo-1"], "current_host": "algo-1"}' >/opt/ml/input/config/resourceconfig.json"""
    code = "mkdir -p /opt/other/code; cp src/train.py /opt/other/code"
    command = ["sh", "-c", '"$@"; code=$?; cat /opt/ml/output/failure; exit $code', "sh", *TRAIN]
    env = {"TRAINBOX_ROOT": "/opt/other", "SAGEMAKER_PROGRAM": "train.py"}
    here_too = in_container(here, f"{request}; {hosts}; {code}", env, command)
    assert "/opt/other/model/model.bin" in here_too.stdout, "elsewhere a person may do so"
    done = in_container(here, f"{request}; {hosts}; {code}", {**env, "TRAINING_JOB_ARN": "arn:aws:x"}, command)
    assert done.returncode == 2, done.stderr
    assert done.stdout.startswith("ClientError: TRAINBOX_ROOT is /opt/other, and SageMaker's request is in /opt/ml/")
    assert "model.bin" not in done.stdout


@pytest.mark.process
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_model_that_has_no_place_is_said_at_the_start_and_fails_the_job(here: Path) -> None:
    done = in_container(here, CODE, {"SAGEMAKER_PROGRAM": "train.py"}, (*OTHER_USER, *TRAIN))
    assert done.returncode == 1, done.stderr
    assert "WARNING: /opt/ml/model cannot be written by user 1234" in done.stderr
    assert "PermissionError" in done.stderr
    assert "model.bin" not in done.stdout


@pytest.mark.process
@pytest.mark.parametrize("mode", [0o644, 0o755])
def test_a_script_of_a_read_only_directory_is_started_by_the_interpreter_of_its_first_line(
    here: Path, mode: int
) -> None:
    program = here / "src" / "program"
    program.write_text('#!/bin/sh -u\necho "ran $0 $@"; echo here > /opt/ml/model/model.bin\n')
    program.chmod(mode)
    done = in_container(here, READ_ONLY, {"SAGEMAKER_PROGRAM": "program"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["ran ./program ", "/opt/ml/model/model.bin"]
    assert program.stat().st_mode & 0o777 == mode


def test_the_processes_of_a_run_by_hand_agree_when_it_began() -> None:
    """By that their common tree is named; two of them may look at the clock in different seconds."""
    assert _begin({}) == read_start(os.getpid())
    assert _begin({"TORCHELASTIC_RUN_ID": "none"}) == read_start(os.getppid())
    assert read_start(os.getpid()) is not None
    assert read_start(2**22) is None
