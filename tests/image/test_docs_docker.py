"""The commands of docs/debug-in-docker.md and those with docker of docs/your-own-algorithm.md, one after the other."""

import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.docker
DOCS = Path(__file__).parents[2] / "docs"
SCRIPT = """\
import os
import time
from pathlib import Path

rows = [line.split(",") for path in Path("/opt/ml/input/data/train").iterdir() for line in path.open()]
while os.environ.get("EPOCHS") == "forever":
    print("still here", flush=True)
    time.sleep(0.2)
print(sum(float(row[2]) for row in rows))
"""
#: What a person would type where a terminal is.
TYPED = {
    "trainbox:cpu bash": "ls /opt/ml/input/config || true\n",
    "-it trainbox:cpu python": "print('python is here')\n",
    "-m pdb": "p row\nquit\n",
}
#: These run the script on a line that is too short for it.
FAILS = re.compile(r"trainbox run|docker run --rm --(memory|user|network|volume).* trainbox:cpu$")
#: What others say.
SAYS = {
    "--volumes-from": "hyperparameters.json",
    "-it trainbox:cpu python": "python is here",
    "-m pdb": "['1', '2\\n']",
    "cat ml/output/failure": "IndexError: list index out of range",
    "docker logs": "(most recent call first)",
    "df -h /dev/shm": "1.0G",
    "trainbox:cpu --version": "trainbox ",
    "trainbox:cpu describe": "num_round",
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("1,2\n")
    return tmp_path


@pytest.fixture
def mark(engine: Any) -> Iterator[str]:
    """What stands in for the names of the page, so that two runs of this test do not meet; nothing is left of it."""
    name = f"doc-{uuid.uuid4().hex[:8]}"
    yield name
    left = [*engine.containers(all=True, filters={"label": f"trainbox.job={name}"})]
    left += engine.containers(all=True, filters={"name": name})
    for each in left:
        engine.remove_container(each["Id"], force=True, v=True)
    for each in engine.networks(filters={"label": f"trainbox.job={name}"}):
        engine.remove_network(each["Id"])


def blocks(page: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def commands(page: str) -> Iterator[str]:
    for block in blocks(page, "console"):
        yield from (line[2:] for line in block.splitlines() if line.startswith("$ "))


def matching(table: Mapping[str, str], command: str) -> list[str]:
    return [value for part, value in table.items() if part in command]


def shell(command: str, directory: Path, typed: str = "") -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", "-c", command],
        cwd=directory,
        env=env,
        input=typed,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_debug_in_docker(image: str, directory: Path, mark: str) -> None:
    done = 0
    for command in commands("debug-in-docker.md"):
        real = re.sub(r"\b(broken|hangs)\b", mark, command).replace("trainbox:cpu", image).replace(" -it ", " -i ")
        if "docker exec" in real:
            _wait_for_log(mark, "still here")
        if "docker logs" in real:
            subprocess.run(["docker", "wait", mark], check=True, capture_output=True, timeout=300)
        answer = shell(real, directory, "".join(matching(TYPED, command)))
        said = answer.stdout + answer.stderr
        assert answer.returncode == (1 if FAILS.match(command) else 0), (command, said)
        assert all(text in said for text in matching(SAYS, command)), (command, said)
        done += 1
    assert done >= 18
    assert not subprocess.run(
        ["docker", "ps", "--all", "--quiet", "--filter", f"label=trainbox.job={mark}"], capture_output=True, check=True
    ).stdout


def test_a_script_of_ones_own_becomes_an_image(image: str, engine: Any, directory: Path, mark: str) -> None:
    page = "your-own-algorithm.md"
    (dockerfile,), (script, *_) = blocks(page, "dockerfile"), blocks(page, "python")
    (directory / "Dockerfile").write_text(dockerfile.replace("trainbox:cpu", image))
    (directory / "nearest_mean.py").write_text(script)
    for channel in ("train", "validation"):
        (directory / "data" / channel).mkdir()
        rows = [f"{int(x > 0)},{x},{x * x / 10}\n" for x in (-3.0, -2.0, -1.0, 1.0, 2.0, 3.0)]
        (directory / "data" / channel / "part-0.csv").write_text("".join(rows))
    with_docker = [command for command in commands(page) if "docker" in command]
    assert len(with_docker) == 4
    try:
        for command in with_docker:
            answer = shell(command.replace("nearest-mean", mark), directory)
            assert answer.returncode == 0, (command, answer.stdout, answer.stderr)
    finally:
        engine.remove_image(mark, force=True)
    for out in ("from-image", "in-image"):
        assert (directory / out / "model" / "means.json").stat().st_size > 0


def _wait_for_log(container: str, text: str) -> None:
    with subprocess.Popen(["docker", "logs", "--follow", container], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any(text in line for line in process.stdout), f"{text!r} did not come"
        process.kill()
