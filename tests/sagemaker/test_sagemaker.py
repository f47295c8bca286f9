"""`trainbox.sagemaker` without the SDK, and its driver as the process that it is in a container."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trainbox.contract.settings import SETTINGS
from trainbox.errors import TrainboxError
from trainbox.sagemaker import Trainbox

DRIVER = Path(__file__).parents[2] / "container" / "trainbox" / "sagemaker" / "driver" / "trainbox_driver.py"
SUPERVISOR = """\
#!/usr/bin/env python3
# from trainbox.supervisor.train import main
import json, os
print(json.dumps({"pid": os.getpid(), "variables": dict(os.environ)}))
"""


class Container:
    """The tree that SDK v3 mounts, and the PATH of an image."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "ml"
        self.drivers = self.root / "input" / "data" / "sm_drivers"
        self.driver = self.drivers / "distributed_drivers" / DRIVER.name
        self.programs = directory / "bin"
        for path in (self.driver.parent, self.root / "input" / "config", self.root / "output", self.programs):
            path.mkdir(parents=True)
        self.driver.write_bytes(DRIVER.read_bytes())
        self.write("input/config/resourceconfig.json", {"hosts": ["algo-2", "algo-1"], "current_host": "algo-2"})
        self.source(entry_script="train.py")
        self.distributed()
        self.install(SUPERVISOR)

    def write(self, name: str, value: object) -> None:
        (self.root / name).write_text(json.dumps(value))

    def source(self, **given: object) -> None:
        self.write("input/data/sm_drivers/sourcecode.json", {"source_dir": "src", "requirements": None, **given})

    def distributed(self, **given: object) -> None:
        self.write("input/data/sm_drivers/distributed.json", {"grace_seconds": None, "arguments": "json", **given})

    def install(self, supervisor: str) -> None:
        (self.programs / "train").write_text(supervisor)
        (self.programs / "train").chmod(0o755)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command or (sys.executable, "-I", str(self.driver)),
            env={"PATH": f"{self.programs}:/usr/bin:/bin", "SM_DISTRIBUTED_CONFIG": "cut off"},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    @property
    def failure(self) -> str:
        return (self.root / "output" / "failure").read_text()


@pytest.fixture
def container(tmp_path: Path) -> Container:
    return Container(tmp_path)


def given(answer: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert answer.returncode == 0, answer.stderr
    value: dict[str, Any] = json.loads(answer.stdout)
    return value


def test_without_the_sdk_the_error_names_what_to_install() -> None:
    with pytest.raises(TrainboxError, match="needs version 3 of the SageMaker SDK") as caught:
        Trainbox(processes_per_host=2)
    assert "pip install 'sagemaker-train" in caught.value.hint


@pytest.mark.process
def test_the_driver_becomes_the_supervisor_with_the_settings_given(container: Container) -> None:
    container.distributed(processes_per_host=4, launcher="plain", grace_seconds=7.5, start="'; exec something; : '")
    variables = given(container.run())["variables"]
    assert variables.pop("PATH").startswith(str(container.programs))
    assert {name: value for name, value in variables.items() if name.startswith(("SM_", "SAGE", "TRAIN", "PROC"))} == {
        "SAGEMAKER_PROGRAM": "train.py",
        "PROCESSES_PER_HOST": "4",
        "TRAINBOX_ARGUMENTS": "json",
        "TRAINBOX_LAUNCHER": "plain",
        "TRAINBOX_GRACE_SECONDS": "7.5",
        "SM_HOST_COUNT": "2",
        "SM_CURRENT_HOST_RANK": "1",
    }


@pytest.mark.process
def test_the_hosts_get_the_key_of_their_job_or_that_of_the_request(container: Container) -> None:
    assert "TRAINBOX_PEER_KEY" not in given(container.run())["variables"]
    container.distributed(peer_key="ab" * 32)
    assert given(container.run())["variables"]["TRAINBOX_PEER_KEY"] == "ab" * 32
    asked = ("env", f"TRAINBOX_PEER_KEY={'cd' * 32}", sys.executable, "-I", str(container.driver))
    assert given(container.run(*asked))["variables"]["TRAINBOX_PEER_KEY"] == "cd" * 32


@pytest.mark.process
def test_the_lines_for_the_sdks_script_turn_its_shell_into_the_supervisor(container: Container) -> None:
    """As where an SDK has come to escape its values: then the shell gets as far as to these lines."""
    lines = str(vars(Trainbox)["driver_script"].fget(None)).replace("/opt/ml", str(container.root))
    script = container.root / "sm_train.sh"
    script.write_text(
        "\n#!/bin/bash\nset -e\ntrap 'exit 99' ERR\n"
        f"echo $$ > {container.root}/pid\nSM_PYTHON_CMD=$(command -v python3)\n"
        f'$SM_PYTHON_CMD {container.driver.parent}/{lines}\n\necho "Training Container Execution Completed"\n'
    )
    answer = container.run("/bin/bash", "-c", f"chmod +x {script} && {script}")
    assert given(answer)["pid"] == int((container.root / "pid").read_text())


@pytest.mark.process
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"entry_script": "train.py", "command": "python train.py"}, "SourceCode(command=...) and Trainbox()"),
        ({"entry_script": None}, "names no entry_script"),
        ({"entry_script": "train.py", "requirements": "reqs/gpu.txt"}, "requirements='reqs/gpu.txt'"),
    ],
    ids=["command", "no script", "requirements"],
)
@pytest.mark.parametrize("option", [(), ("--check",)], ids=["start", "check"])
def test_what_cannot_be_done_is_the_reason_of_the_failure(
    container: Container, source: dict[str, object], said: str, option: tuple[str, ...]
) -> None:
    container.source(**source)
    answer = container.run(sys.executable, "-I", str(container.driver), *option)
    assert answer.returncode == 2
    assert container.failure.startswith("ClientError: ")
    assert said in container.failure
    assert container.failure in answer.stderr


@pytest.mark.process
def test_an_image_without_trainbox_says_so(container: Container) -> None:
    (container.programs / "train").unlink()
    assert container.run().returncode == 2
    assert "this image has no trainbox" in container.failure


@pytest.mark.process
def test_the_train_of_another_toolkit_is_not_taken_for_ours(container: Container) -> None:
    container.install("#!/usr/bin/env python3\nfrom sagemaker_training.cli.train import main\n")
    assert container.run().returncode == 2
    assert f"{container.programs / 'train'} is not the `train` of trainbox" in container.failure


def test_the_driver_passes_on_what_the_supervisor_reads() -> None:
    fields = set(Trainbox.__annotations__)
    named = dict(re.findall(r'^    "(\w+)": "(\w+)",$', DRIVER.read_text(), re.MULTILINE))
    assert set(named) == fields
    assert {variable.lower() for variable in named.values()} <= set(SETTINGS)


@pytest.mark.process
def test_the_driver_needs_no_package_and_no_new_python() -> None:
    text = DRIVER.read_text()
    code = f"import ast; ast.parse({text!r}, feature_version=(3, 8))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, env=dict(os.environ))
    imported = {line.split()[1].partition(".")[0] for line in text.splitlines() if line.startswith(("import", "from"))}
    assert imported <= sys.stdlib_module_names
