"""The image under the local mode of SageMaker's SDK v3: its own drivers, no source code, and `trainbox.sagemaker`."""

import contextlib
import fcntl
import json
import re
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import docker
import msgspec
import pytest

from tests.support.waiting import eventually

pytestmark = [pytest.mark.docker, pytest.mark.sdk]

HERE = Path(__file__).with_name("v3")
REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "container"
PAGE = REPOSITORY / "docs" / "sagemaker-sdk.md"
SECONDS = 300
#: One text that a shell, and whoever pastes it into a shell's quotes, would take apart.
HOSTILE = 'it\'s "quoted" ä 学習 $(touch /opt/ml/model/ran) `touch /opt/ml/model/ran`; touch /opt/ml/model/ran # \\'


class Training(msgspec.Struct, frozen=True):
    """A call of `ModelTrainer(…).train()`, in a process of its own."""

    process: subprocess.Popen[str]
    root: Path

    def end(self) -> "Result":
        """Wait for its end."""
        log, _ = self.process.communicate(timeout=SECONDS)
        assert self.process.returncode == 0, log
        return Result(log, json.loads((self.root / "result.json").read_text()).get("error", ""), self.root)


class Result(msgspec.Struct, frozen=True):
    """What came of it."""

    log: str
    error: str
    root: Path

    @property
    def model(self) -> dict[str, str]:
        """The files of the model directory, which all hosts share."""
        files = (path for path in (self.root / "model").rglob("*") if path.is_file())
        return {str(path.relative_to(self.root / "model")): path.read_text(errors="replace") for path in files}

    @property
    def failure(self) -> str:
        """The failure file of the first host."""
        return (self.root / "algo-1" / "output" / "failure").read_text()

    def dump(self, host: str = "algo-1") -> dict[str, Any]:
        """What `v3/dump.py` has written there."""
        assert not self.error, self.log
        value: dict[str, Any] = json.loads(self.model[f"{host}.json"])
        return value


Train = Callable[..., Training]


@pytest.fixture
def _one_at_a_time() -> Iterator[None]:
    """The SDK gives all jobs the names `algo-1`, `algo-2` on one network: two at once would meet each other's hosts."""
    with (Path(tempfile.gettempdir()) / "trainbox-sdk-v3.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def train(
    _one_at_a_time: None,
    engine: Any,
    image: str,
    sdk_python: Mapping[str, Path],
    sdk_env: Mapping[str, str],
    tmp_path: Path,
) -> Iterator[Train]:
    """Start a job; what the SDK leaves on the engine is removed."""
    root = tmp_path / "root"
    root.mkdir()
    started: list[subprocess.Popen[str]] = []

    def start(**asked: object) -> Training:
        job = {
            "image": image,
            "hosts": 1,
            "root": str(root),
            "source": None,
            "distributed": None,
            "channels": {},
            "hyperparameters": {},
            "environment": {},
            **asked,
        }
        (root / "job.json").write_text(json.dumps(job))
        process = subprocess.Popen(
            [sdk_python["v3"], HERE / "driver.py", root / "job.json", root / "result.json"],
            env={**sdk_env, "PYTHONPATH": str(PACKAGE)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return Training(process, root)

    yield start
    for process in started:
        process.kill()
        process.communicate()
    for container in containers(engine, root):
        engine.remove_container(container, force=True)


def containers(engine: Any, root: Path) -> list[Any]:
    label = f"com.docker.compose.project.working_dir={root}"
    found: list[Any] = engine.containers(all=True, filters={"label": label})
    return found


def source(name: str) -> dict[str, str]:
    return {"source_dir": str(HERE), "entry_script": name}


def wait_for_script(engine: Any, training: Training) -> Any:
    """The container of a job's only host, once its script is at work."""

    def at_work() -> Any:
        for container in containers(engine, training.root):
            with contextlib.suppress(docker.errors.NotFound):  # removed meanwhile
                if b"from the first step" in engine.logs(container):
                    return container
        return None

    return eventually(
        at_work,
        "the script at work",
        logs=lambda: str(training.process.communicate(timeout=SECONDS)[0]),
        ended=lambda: training.process.poll() is not None,
    )


# -- the SDK's own ways ----------------------------------------------------------------------------------------------


def test_an_entry_script_runs_by_the_sdks_own_driver(train: Train) -> None:
    dump = train(source=source("dump.py"), hyperparameters={"n": 3, "on": True, "text": 'a "b" $(id)'}).end().dump()
    assert dump["arguments"] == ["--n", "3", "--on", "true", "--text", 'a "b" $(id)']
    assert dump["parent"] != 1


def test_torchrun_adds_up_over_two_hosts(train: Train) -> None:
    distributed = ["Torchrun", {"process_count_per_node": 1}]
    result = train(source=source("all_reduce.py"), hosts=2, distributed=distributed).end()
    assert not result.error, result.log
    assert result.model == {"rank-0-of-2": "algo-1 1", "rank-1-of-2": "algo-2 1"}


def test_exec_train_as_the_command_is_our_supervisor(train: Train) -> None:
    job = train(
        source={"source_dir": str(HERE), "command": "exec train"},
        environment={"SAGEMAKER_PROGRAM": "dump.py"},
        hyperparameters={"fail": 1},
    )
    result = job.end()
    assert result.error
    assert result.failure.startswith("ValueError: the loss is NaN at step 3")


def test_without_source_code_a_bundled_script_trains(train: Train, tmp_path: Path) -> None:
    for name in ("train", "validation"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part.csv").write_text("".join(f"{i % 2},{i % 2 + i / 99},{i}\n" for i in range(60)))
    result = train(
        channels={name: str(tmp_path / name) for name in ("train", "validation")},
        environment={"TRAINBOX_SCRIPT": "random_forest"},
        hyperparameters={"n-estimators": 5},
    ).end()
    assert not result.error, result.log
    assert "validation:accuracy=" in result.log
    assert {"model.skops", "trainbox/model.json"} <= set(result.model)


def test_without_source_code_a_script_in_the_channel_code_runs_on_two_hosts(train: Train) -> None:
    result = train(
        hosts=2,
        channels={"code": str(HERE), "my-data": str(HERE)},
        environment={"SAGEMAKER_PROGRAM": "dump.py", "TRAINBOX_ARGUMENTS": "json"},
        hyperparameters={"text": HOSTILE, "on": True},
    ).end()
    dump = result.dump("algo-1")
    assert dump["arguments"] == ["--text", HOSTILE, "--on", "true"]
    assert dump["variables"]["SM_CHANNEL_MY_DATA"] == "/opt/ml/input/data/my-data"
    assert dump["parent"] == 1
    assert "ran" not in result.model


# -- Trainbox() ------------------------------------------------------------------------------------------------------


def test_trainbox_hands_on_what_the_sdks_own_start_would_break(train: Train) -> None:
    result = train(
        source=source("dump.py"),
        distributed=["Trainbox", {}],
        channels={"my-data": str(HERE)},
        hyperparameters={"text": HOSTILE, "n": 3, "on": True, "list": [1, "it's"]},
    ).end()
    dump = result.dump()
    assert dump["arguments"] == ["--text", HOSTILE, "--n", "3", "--on", "true", "--list", '[1, "it\'s"]']
    assert dump["variables"]["SM_HP_TEXT"] == HOSTILE
    assert dump["variables"]["SM_CHANNEL_MY_DATA"] == "/opt/ml/input/data/my-data"
    assert (dump["variables"]["SM_HOST_COUNT"], dump["variables"]["SM_CURRENT_HOST_RANK"]) == ("1", "0")
    assert "SM_DISTRIBUTED_CONFIG" not in dump["variables"]
    assert dump["parent"] == 1
    assert list(result.model) == ["algo-1.json"], "the shell has run a part of a hyperparameter"


@pytest.mark.representative
def test_trainbox_passes_a_stop_on_and_the_checkpoint_is_saved(train: Train, engine: Any) -> None:
    training = train(source=source("dump.py"), distributed=["Trainbox", {}], hyperparameters={"until-stopped": "yes"})
    container = wait_for_script(engine, training)
    engine.stop(container, timeout=120)
    assert engine.inspect_container(container)["State"]["ExitCode"] == 0
    result = training.end()
    assert not result.error, result.log
    saved, _, step = result.model["checkpoint"].partition(" of ")
    assert saved == step != "0"


def test_trainbox_reports_the_exception_and_keeps_the_exit_code(train: Train) -> None:
    result = train(source=source("dump.py"), distributed=["Trainbox", {}], hyperparameters={"fail": 1}).end()
    assert result.error
    assert result.failure.startswith("ValueError: the loss is NaN at step 3")
    assert "Training Execution failed" not in result.failure


def test_trainbox_starts_two_processes_on_each_of_two_hosts(train: Train) -> None:
    distributed = ["Trainbox", {"processes_per_host": 2}]
    result = train(source=source("all_reduce.py"), hosts=2, distributed=distributed).end()
    assert not result.error, result.log
    assert result.model == {f"rank-{rank}-of-4": f"algo-{rank // 2 + 1} 6" for rank in range(4)}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"hyperparameters": {"text": "it's"}}, "unexpected EOF while looking for matching"),
        ({"channels": {"my-data": str(HERE)}}, "not a valid identifier"),
    ],
    ids=["quote", "dash"],
)
def test_without_trainbox_a_quote_or_a_dash_ends_the_job_before_its_script(
    train: Train, asked: dict[str, object], said: str
) -> None:
    """Once this fails, the SDK has mended what `Trainbox.model_dump` is for."""
    result = train(source=source("dump.py"), **asked).end()
    assert result.error
    assert said in result.log
    assert result.model == {}


def test_without_trainbox_a_stop_never_reaches_the_script(train: Train, engine: Any) -> None:
    """Once this fails, the SDK has mended what `Trainbox.driver_script` is for."""
    container = wait_for_script(engine, train(source=source("dump.py"), hyperparameters={"until-stopped": "yes"}))
    engine.kill(container, signal="SIGTERM")
    time.sleep(2)
    assert engine.inspect_container(container)["State"]["Running"]


# -- the class and the page ------------------------------------------------------------------------------------------


def test_what_the_supervisor_would_refuse_is_refused_where_the_job_is_described(sdk_python: Mapping[str, Path]) -> None:
    code = (
        "from trainbox.sagemaker import Trainbox\n"
        "Trainbox(processes_per_host=2, launcher='plain', arguments='toolkit', grace_seconds=0)\n"
        "wrong = [{'processes_per_host': 0}, {'processes_per_host': 'two'}, {'arguments': 'yaml'},\n"
        "         {'launcher': 'mpi'}, {'grace_seconds': -1}, {'peer_timeout_seconds': float('nan')},\n"
        "         {'process_per_host': 2}]\n"
        "for values in wrong:\n"
        "    try:\n"
        "        print(Trainbox(**values))\n"
        "    except ValueError as error:\n"
        "        assert next(iter(values)) in str(error), error\n"
    )
    environment = {"PYTHONPATH": str(PACKAGE)}
    answer = subprocess.run(
        [sdk_python["v3"], "-c", code], capture_output=True, text=True, check=False, timeout=SECONDS, env=environment
    )
    assert (answer.returncode, answer.stdout) == (0, ""), answer.stderr


@pytest.fixture
def page_directory(_one_at_a_time: None, image: str, engine: Any, tmp_path: Path) -> Iterator[Path]:
    """What the page says lies beside its code; what the SDKs leave on the engine is removed."""
    assert f'="{image}"' in PAGE.read_text()
    directory = tmp_path / "page"
    (directory / "src").mkdir(parents=True)
    (directory / "src" / "train.py").write_text(
        "import os, sys, trainbox\n"
        "names = os.listdir(trainbox.channel('train'))\n"
        "trainbox.save('given', f'{sys.argv[1:]} {names} {os.getppid()}')\n"
    )
    (directory / "data" / "train").mkdir(parents=True)
    (directory / "data" / "train" / "part.csv").write_text("1,2\n")
    yield directory
    for container in engine.containers(all=True, filters={"label": "com.docker.compose.project.working_dir"}):
        if str(container["Labels"]["com.docker.compose.project.working_dir"]).startswith(str(directory)):
            engine.remove_container(container, force=True)


@pytest.mark.parametrize(("number", "version"), [(0, "v2"), (1, "v3"), (2, "v3")], ids=["v2", "Trainbox", "no-source"])
def test_the_calls_of_the_page_train(
    number: int,
    version: str,
    page_directory: Path,
    sdk_python: Mapping[str, Path],
    sdk_env: Mapping[str, str],
) -> None:
    calls = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(calls) == 3
    answer = subprocess.run(
        [sdk_python[version], "-c", calls[number]],
        cwd=page_directory,
        env={**sdk_env, "PYTHONPATH": str(PACKAGE)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    (archive,) = page_directory.rglob("model.tar.gz")
    with tarfile.open(archive) as tar:
        given = tar.extractfile("given")
        assert given is not None
        assert given.read().decode() == """['--title', "it's a test"] ['part.csv'] 1"""
