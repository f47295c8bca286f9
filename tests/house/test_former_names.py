"""Names that scripts and images of the version before use still lead to the same things."""

import subprocess
import sys
from pathlib import Path

import pytest

import trainbox.channels
import trainbox.data
from tools.image import requirements

PYPROJECT = (Path(__file__).parents[2] / "pyproject.toml").read_text()


def test_the_former_name_of_the_data_room_has_the_same_functions() -> None:
    assert trainbox.channels.__all__ == trainbox.data.__all__
    for name in trainbox.data.__all__:
        assert getattr(trainbox.channels, name) is getattr(trainbox.data, name)


def test_the_former_name_of_the_extra_for_a_persons_machine_installs_the_same_packages() -> None:
    former, today = (requirements.requirements_of(f"trainbox[{extra}]", PYPROJECT) for extra in ("workbench", "local"))
    assert former == today


@pytest.mark.process
def test_the_supervisor_starts_by_its_former_name(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trainbox.launch"],
        env={"TRAINBOX_ROOT": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert (tmp_path / "output" / "failure").read_text().startswith("ClientError: ")
