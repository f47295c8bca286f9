"""What the two programs `train` do with the same job, where they differ: both sides are pinned.

The day one of these fails because sagemaker-training has become better, its row in `docs/differences.md` goes.
"""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from tests.support.gpu_hosts import needs_mounts, with_devices
from tests.support.secret_service import KEY, PASSWORD, serving
from tests.support.sides import INCUMBENT_BIN, require_incumbent
from tests.support.trees import wheel
from tests.support.waiting import eventually
from trainbox.local.backends import namespace

pytestmark = pytest.mark.incumbent

TRAINBOX: tuple[str, ...] = (sys.executable, "-m", "trainbox.supervisor")
INCUMBENT: tuple[str, ...] = (str(INCUMBENT_BIN / "train"),)
#: What the toolkits of the framework images do (aws/sagemaker-pytorch-training-toolkit, `training.py`): only then does
#: sagemaker-training read the script's output.
FRAMEWORK = """\
from sagemaker_training import entry_point, environment

def main():
    env = environment.Environment()
    entry_point.run(env.module_dir, env.user_entry_point, env.to_cmd_args(), env.to_env_vars(), capture_error=True)
"""


class Ran(msgspec.Struct, frozen=True):
    """How a job ended."""

    code: int
    stdout: str
    stderr: str
    #: The failure file; empty where there is none.
    failure: str
    root: Path


@pytest.fixture(autouse=True)
def _installed() -> None:
    require_incumbent()


def write_tree(root: Path, code: Mapping[str, str], hyperparameters: Mapping[str, str]) -> None:
    """A job on one host whose name resolves: sagemaker-training looks it up."""
    config = root / "input" / "config"
    for directory in (config, root / "model", root / "output" / "data", root / "code"):
        directory.mkdir(parents=True)
    given = {"sagemaker_program": "train.py", **hyperparameters}
    (config / "hyperparameters.json").write_text(json.dumps(given), encoding="utf-8")
    (config / "inputdataconfig.json").write_text("{}", encoding="utf-8")
    resources = {"current_host": "localhost", "hosts": ["localhost"]}
    (config / "resourceconfig.json").write_text(json.dumps(resources), encoding="utf-8")
    for name, text in code.items():
        (root / "code" / name).write_text(text, encoding="utf-8")


@contextmanager
def started(command: tuple[str, ...], root: Path, env: Mapping[str, str]) -> Iterator["subprocess.Popen[str]"]:
    variable = "TRAINBOX_ROOT" if command == TRAINBOX else "SAGEMAKER_BASE_DIR"
    process = subprocess.Popen(
        command,
        env={"PATH": os.environ["PATH"], "HOME": str(root), **env, variable: str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that what it leaves behind can be ended
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def ended(process: "subprocess.Popen[str]", root: Path) -> Ran:
    stdout, stderr = process.communicate(timeout=300)
    failure = root / "output" / "failure"
    text = failure.read_text(encoding="utf-8") if failure.exists() else ""
    return Ran(process.returncode, stdout, stderr, text, root)


def run_both(
    tmp_path: Path,
    script: str = "",
    *,
    hyperparameters: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
    files: Mapping[str, str] | None = None,
) -> tuple[Ran, Ran]:
    """Run the same job by trainbox and by sagemaker-training; `files` are written into its tree beside the rest."""
    ran = []
    for name, command in (("trainbox", TRAINBOX), ("incumbent", INCUMBENT)):
        root = tmp_path / name
        write_tree(root, {"train.py": script} if script else {}, hyperparameters or {})
        for path, text in (files or {}).items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text, encoding="utf-8")
        with started(command, root, env or {}) as process:
            ran.append(ended(process, root))
    ours, theirs = ran
    return ours, theirs


def test_the_exit_code_of_the_script_is_the_jobs(tmp_path: Path) -> None:
    ours, theirs = run_both(tmp_path, "raise SystemExit(7)")
    assert ours.code == 7
    assert theirs.code == 1


def test_processes_of_one_host_share_its_processors(tmp_path: Path) -> None:
    say = "import os; print(os.environ.get('OMP_NUM_THREADS'))"
    asked = {"processes_per_host": "2", "trainbox_preflight": "off"}
    ours, theirs = run_both(tmp_path, say, hyperparameters=asked, env={"MASTER_PORT": "29471"})
    assert ours.stdout.split() == 2 * [str(max(1, len(os.sched_getaffinity(0)) // 2))]
    assert theirs.stdout.split() == ["None"]  # it knows no such hyperparameter: one process


def test_a_host_counts_the_processors_that_it_may_use(tmp_path: Path) -> None:
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(usable)})
    try:
        ours, theirs = run_both(tmp_path, "import os; print(os.environ['SM_NUM_CPUS'])")
    finally:
        os.sched_setaffinity(0, usable)
    assert ours.stdout.split() == ["1"]
    assert theirs.stdout.split() == [str(os.cpu_count())]


@needs_mounts
def test_a_host_counts_the_gpus_that_cuda_shows(tmp_path: Path) -> None:
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\nprintf 'GPU 0: a\\nGPU 1: b\\nGPU 2: c\\n'\n")
    tool.chmod(0o755)
    env = {"CUDA_VISIBLE_DEVICES": "2,0", "TRAINBOX_PREFLIGHT": "off", "PATH": f"{tool.parent}:{os.environ['PATH']}"}
    ran = []
    for name, command in (("trainbox", TRAINBOX), ("incumbent", INCUMBENT)):
        root = tmp_path / name
        write_tree(root, {"train.py": "import os; print(os.environ['SM_NUM_GPUS'])"}, {})
        with started(
            (*with_devices(tmp_path / f"dev-{name}", 3), *command), root, {**env, "TRAINBOX_ROOT": str(root)}
        ) as process:
            ran.append(ended(process, root))
    assert [one.stdout.split() for one in ran] == [["2"], ["3"]], ran


def test_the_failure_file_holds_the_exception(tmp_path: Path) -> None:
    ours, theirs = run_both(tmp_path, "raise ValueError('the real reason')")
    assert "ValueError: the real reason" in ours.failure.splitlines()[0]
    assert 'ErrorMessage ""' in theirs.failure
    assert "the real reason" not in theirs.failure


SAVES_WHEN_TOLD = """\
import pathlib, signal, sys, time

def save(*_):
    pathlib.Path("saved").touch()
    sys.exit()

signal.signal(signal.SIGTERM, save)
pathlib.Path("ready").touch()
time.sleep(60)
"""


@pytest.mark.representative
@pytest.mark.parametrize(("command", "code", "saved"), [(TRAINBOX, 0, True), (INCUMBENT, -signal.SIGTERM, False)])
def test_sigterm_reaches_the_script(tmp_path: Path, command: tuple[str, ...], code: int, saved: bool) -> None:
    write_tree(tmp_path / "tree", {"train.py": SAVES_WHEN_TOLD}, {})
    directory = tmp_path / "tree" / "code"
    with started(command, tmp_path / "tree", {}) as process:
        eventually((directory / "ready").exists, "the script")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=300) == code
        # Nobody waits for the incumbent's script: it would have saved by now if the signal had reached it.
        time.sleep(0.3)
        assert (directory / "saved").exists() == saved


@pytest.mark.parametrize(("variable", "code"), [("", 0), ("SLURM_JOB_ID", 143), ("KUBERNETES_SERVICE_HOST", 143)])
def test_a_job_that_was_stopped_does_not_pass_for_one_that_is_done_where_the_exit_code_counts(
    tmp_path: Path, variable: str, code: int
) -> None:
    write_tree(tmp_path / "tree", {"train.py": SAVES_WHEN_TOLD}, {})
    with started(TRAINBOX, tmp_path / "tree", {variable: "1"} if variable else {}) as process:
        eventually((tmp_path / "tree" / "code" / "ready").exists, "the script")
        process.send_signal(signal.SIGTERM)
        ours = ended(process, tmp_path / "tree")
    assert (ours.code, ours.failure) == (code, "")


def test_the_address_of_a_host_that_nobody_dials_is_not_waited_for(tmp_path: Path) -> None:
    """The incumbent would look for it for a quarter of an hour."""
    resources = json.dumps({"current_host": "localhost", "hosts": ["localhost", "unknown.invalid"]})
    for name, command in (("trainbox", TRAINBOX), ("incumbent", INCUMBENT)):
        root = tmp_path / name
        write_tree(root, {"train.py": "print('ran')"}, {})
        (root / "input/config/resourceconfig.json").write_text(resources, encoding="utf-8")
        env = {"TRAINBOX_PREFLIGHT": "off"}
        with started(command, root, env) as process:
            if command == TRAINBOX:
                assert ended(process, root).stdout == "ran\n"
            else:
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(5)


def test_a_line_printed_in_parts_stays_one_line(tmp_path: Path) -> None:
    script = "import time\nprint('loss:', end=' ', flush=True)\ntime.sleep(0.3)\nprint(0.5)\nprint('  indented')\n"
    ours, theirs = run_both(
        tmp_path,
        script,
        files={"framework/framework.py": FRAMEWORK},
        env={"SAGEMAKER_TRAINING_MODULE": "framework:main", "PYTHONPATH": str(tmp_path / "incumbent" / "framework")},
    )
    assert ours.stdout == "loss: 0.5\n  indented\n"
    assert theirs.stdout == "loss:\n0.5\n  indented\n"


def test_a_submitted_source_wins_over_what_lies_in_the_code_directory(tmp_path: Path) -> None:
    submitted = tmp_path / "source"
    submitted.mkdir()
    (submitted / "train.py").write_text("print('submitted')\n", encoding="utf-8")
    ours, theirs = run_both(
        tmp_path, "print('left over')\n", hyperparameters={"sagemaker_submit_directory": str(submitted)}
    )
    assert ours.stdout == "submitted\n"
    assert theirs.stdout == "left over\n"


def test_the_variable_sagemaker_submit_directory_counts(tmp_path: Path) -> None:
    submitted = tmp_path / "source"
    submitted.mkdir()
    (submitted / "train.py").write_text("print('submitted')\n", encoding="utf-8")
    ours, theirs = run_both(tmp_path, env={"SAGEMAKER_SUBMIT_DIRECTORY": str(submitted)})
    assert (ours.code, ours.stdout) == (0, "submitted\n")
    assert (theirs.code, theirs.stdout) == (1, "")


def test_the_log_holds_no_password(tmp_path: Path) -> None:
    ours, theirs = run_both(tmp_path, "pass", hyperparameters={"db_password": "hunter2-hunter2"})
    assert ours.code == theirs.code == 0
    assert "hunter2" not in ours.stdout + ours.stderr
    assert (theirs.stdout + theirs.stderr).count("hunter2") >= 5


def test_a_reference_to_a_secret_is_resolved(tmp_path: Path) -> None:
    reference, variable = "{{resolve:secretsmanager:db:SecretString:password}}", "{{resolve:ssm-secure:/team/key}}"
    script = "import os, sys; print(sys.argv[2], os.environ['SM_HP_PASSWORD'], os.environ['MY_KEY'])"
    with serving() as service:
        env = {**service.env, "MY_KEY": variable}
        ours, theirs = run_both(tmp_path, script, hyperparameters={"password": reference}, env=env)
    assert ours.stdout == f"{PASSWORD} {PASSWORD} {KEY}\n"
    assert PASSWORD not in ours.stderr
    assert theirs.stdout == f"{reference} {reference} {variable}\n"


def test_the_key_of_the_job_does_not_reach_a_script_that_has_no_use_for_it(tmp_path: Path) -> None:
    key = "ab" * 32
    script = "import os; print(os.environ.get('TRAINBOX_PEER_KEY'))"
    ours, theirs = run_both(tmp_path, script, env={"TRAINBOX_PEER_KEY": key})
    assert ours.code == theirs.code == 0
    assert ours.stdout == "None\n"
    assert key not in ours.stderr
    assert theirs.stdout.splitlines()[-1] == key


def test_a_framework_module_is_not_run(tmp_path: Path) -> None:
    ours, theirs = run_both(
        tmp_path,
        "print('the script')",
        files={"framework/framework.py": "def main():\n    print('the framework')\n"},
        env={"SAGEMAKER_TRAINING_MODULE": "framework:main", "PYTHONPATH": str(tmp_path / "incumbent" / "framework")},
    )
    assert ours.stdout == "the script\n"
    assert theirs.stdout == "the framework\n"


def test_no_success_file_is_written(tmp_path: Path) -> None:
    ours, theirs = run_both(tmp_path, "pass")
    assert ours.code == theirs.code == 0
    assert not (ours.root / "output" / "success").exists()
    assert (theirs.root / "output" / "success").exists()


def test_a_setting_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    given = {"trainbox_luancher": "torchrun"}
    ours, theirs = run_both(tmp_path, "import sys; print(sys.argv[1:])", hyperparameters=given)
    assert ours.code == 2
    assert "did you mean 'trainbox_launcher'" in ours.failure
    assert theirs.code == 0
    assert "['--trainbox_luancher', 'torchrun']" in theirs.stdout


def test_a_key_of_checkpoints_that_is_none_is_refused(tmp_path: Path) -> None:
    script = "import os; print(os.environ['TRAINBOX_CHECKPOINT_KEY'])"
    ours, theirs = run_both(tmp_path, script, env={"TRAINBOX_CHECKPOINT_KEY": "correct-horse"})
    assert ours.code == 2
    assert "the variable TRAINBOX_CHECKPOINT_KEY: the key is not 32 bytes in hexadecimal" in ours.failure
    assert "correct-horse" not in ours.failure + ours.stdout + ours.stderr
    assert theirs.code == 0
    assert "correct-horse" in theirs.stdout


def test_a_malformed_file_is_refused_by_name(tmp_path: Path) -> None:
    ours, theirs = run_both(
        tmp_path, "pass", files={"input/config/resourceconfig.json": '{"current_host": "localhost"}'}
    )
    assert ours.code != 0
    assert "resourceconfig.json" in ours.failure
    assert "hosts" in ours.failure
    assert "Traceback" not in ours.failure
    assert theirs.code == 1
    assert "Traceback" in theirs.failure
    assert "resourceconfig.json" not in theirs.failure


def test_the_modules_of_the_images_are_not_there(tmp_path: Path) -> None:
    script = "from sagemaker_training import environment\nprint(environment.Environment().model_dir)\n"
    ours, theirs = run_both(tmp_path, script)
    assert theirs.code == 0, theirs.stderr
    assert ours.code == 1
    assert ours.failure.startswith("ModuleNotFoundError: No module named 'sagemaker_training'\nat train.py:1")
    assert "hint: sagemaker_training is only in AWS's own images; the SM_* variables hold" in ours.failure


def test_an_archive_of_source_has_limits(tmp_path: Path) -> None:
    archive = tmp_path / "source.tar.gz"
    (tmp_path / "train.py").write_text("print('ran')\n", encoding="utf-8")
    (tmp_path / "data").write_bytes(bytes(100_000))
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("train.py", "data"):
            tar.add(tmp_path / name, name)
    given = {"sagemaker_submit_directory": str(archive), "trainbox_source_bytes": "50000"}
    ours, theirs = run_both(tmp_path, hyperparameters=given)
    assert (ours.code, ours.stdout) == (3, "")
    assert "is refused: it holds more than 50,000 bytes" in ours.failure
    assert (theirs.code, theirs.stdout) == (0, "ran\n"), theirs.stderr


@pytest.mark.skipif(os.geteuid() != 0 or bool(namespace.probe("root")), reason="needs root and private mounts")
def test_requirements_are_installed_where_the_image_cannot_be_written(tmp_path: Path) -> None:
    read_only = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    ran = []
    for name, command, prefix in (
        ("trainbox", TRAINBOX, sys.prefix),
        ("incumbent", INCUMBENT, str(INCUMBENT_BIN.parent.resolve())),
    ):
        root = tmp_path / name
        file = "dependency-1.0-py3-none-any.whl"
        script = "import dependency; print(dependency.words)"
        write_tree(root, {"train.py": script, "requirements.txt": f"./{file}"}, {})
        (root / "code" / file).write_bytes(wheel("dependency", "words = 'installed'"))
        wrapped = ("unshare", "-m", "sh", "-c", read_only, prefix, *command)
        with started(wrapped, root, {"TRAINBOX_ROOT": str(root), "PIP_NO_INDEX": "1"}) as process:
            ran.append(ended(process, root))
    ours, theirs = ran
    assert (ours.code, ours.stdout.splitlines()[-1]) == (0, "installed"), ours.stderr
    assert theirs.code != 0
    assert "installed" not in theirs.stdout.splitlines()


def test_a_signed_request_goes_to_no_other_machine_without_tls(tmp_path: Path) -> None:
    """`.invalid` is nobody's: the incumbent tries to sign and send."""
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "of-the-test", "AWS_REGION": "eu-west-3"}
    env = {**keys, "AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1", "S3_ENDPOINT_URL": "http://s3.invalid"}
    ours, theirs = run_both(tmp_path, hyperparameters={"sagemaker_submit_directory": "s3://bucket/a.tar.gz"}, env=env)
    assert ours.code == 3
    assert ours.failure.startswith("ClientError: the S3 endpoint http://s3.invalid is refused: without TLS")
    assert theirs.code == 1
    assert "Could not connect to the endpoint URL" in theirs.failure + theirs.stderr
