"""`trainbox run --docker` as a person runs it: real containers, networks and signals, and nothing left of them."""

import csv
import datetime as dt
import hashlib
import io
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.containers import IMAGE
from tests.support.runs import COMMAND, in_log, record
from tests.support.waiting import LIMIT, eventually
from trainbox.errors import RunError
from trainbox.local.backends.confinement import Confinement
from trainbox.local.backends.docker import run_containers
from trainbox.local.backends.engine import find_image
from trainbox.local.backends.hosts import Ended, HostEnd, StopReason
from trainbox.local.backends.isolation import in_containers
from trainbox.local.interrupts import Interrupts
from trainbox.local.opt_ml import prepare
from trainbox.local.plan import RunPlan, plan_run
from trainbox.local.request import RunRequest
from trainbox.local.source import survey

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("nothing_left")]
#: The ids of containers and of networks.
Left = Callable[[], tuple[list[str], list[str]]]
#: Not the default image of `--docker`: tools/ci/check-image names another.
IN_DOCKER = f"--docker={IMAGE}"
#: Saves when it is asked to stop, and goes on from there.
DRILL = """
import os, time, trainbox
saved = trainbox.current_job().checkpoints_dir / "step"
start = int(saved.read_text()) if saved.exists() else 0
print("begins at", start, flush=True)
while start == 0 and not trainbox.stop_requested():
    time.sleep(0.02)
saved.write_text(str(start + 7))
(trainbox.model_dir() / "model").write_text(str(start + 7))
"""
OWN = "import trainbox\n\nif __name__ == '__main__':\n    trainbox.save('m', 'of the image')\n"
CONFINED = Confinement(network="bridge", user=f"{os.geteuid()}:{os.getegid()}")
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("now at work", flush=True)
time.sleep(77)
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    for name in ("src", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "data" / "a.csv").write_text("1,2\n")
    return tmp_path


@pytest.fixture
def mine(engine: Any, tmp_path: Path) -> Left:
    """The containers and networks of this test's jobs: other jobs may be running on this engine."""

    def find() -> tuple[list[str], list[str]]:
        def ours(found: list[dict[str, Any]]) -> list[str]:
            return [each["Id"] for each in found if (each["Labels"] or {}).get("trainbox.out", "").startswith(place)]

        return ours(engine.containers(all=True)), ours(engine.networks())

    place = str(tmp_path)
    return find


@pytest.fixture
def nothing_left(engine: Any, mine: Left) -> Iterator[None]:
    """Each test, however it ends, leaves no container and no network."""
    yield
    left = mine()
    for name in left[0]:
        engine.remove_container(name, force=True, v=True)
    for name in left[1]:
        engine.remove_network(name)
    assert left == ([], [])


@pytest.fixture
def made_image(engine: Any) -> Iterator[Callable[..., str]]:
    """Makes an image like ours with changes to its configuration."""
    made: list[str] = []

    def make(**configuration: object) -> str:
        container = engine.create_container(IMAGE, ["true"])
        try:
            made.append(str(engine.commit(container, conf=configuration)["Id"]))
        finally:
            engine.remove_container(container)
        return made[-1]

    yield make
    for image in made:
        engine.remove_image(image, force=True)


def start(
    here: Path, script: str, *arguments: str, prefix: Sequence[str] = (), **options: Any
) -> "subprocess.Popen[str]":
    (here / "src" / "train.py").write_text(script)
    argv = [*prefix, *COMMAND, "src/train.py", *arguments]
    return subprocess.Popen(argv, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", **options)


def finish(process: "subprocess.Popen[str]", code: int) -> tuple[str, str]:
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == code, out + err
    assert "Traceback" not in err, err
    return out, err


def run(here: Path, script: str, *arguments: str, code: int = 0, **options: Any) -> tuple[str, str]:
    docker = [] if "--docker" in arguments else [IN_DOCKER]
    return finish(start(here, script, *docker, *arguments, "--out", "out", **options), code)


@pytest.mark.representative
def test_a_job_leaves_the_same_result_as_in_processes(here: Path) -> None:
    script = """
import os, socket, sys
print(socket.gethostname(), sys.argv[1:], os.environ["MINE"], os.environ["TRAINING_JOB_NAME"], "HERE" in os.environ)
for path in ("/opt/ml/input/data/train/a.csv", "/opt/ml/input/data/train/new", "/opt/ml/input/data/one/a.csv"):
    try:
        open(path, "a")
    except OSError as error:
        print(error.strerror)
print("shm", os.statvfs("/dev/shm").f_frsize * os.statvfs("/dev/shm").f_blocks > 1 << 30)
print("[metrics] step=1 validation:auc=0.5")
open("/opt/ml/model/m", "w").write("model")
open("/opt/ml/output/data/o", "w").write("output")
open("/opt/ml/checkpoints/c", "w").write("checkpoint")
"""
    channels = ["--channel", "train=data", "--channel", "one=data/a.csv"]
    # A colon would end a path in `docker run -v`.
    (here / "data").rename(here / "da:ta")
    (here / "data").symlink_to("da:ta")
    arguments = [*channels, "--hp", "eta=0.1", "--env", "MINE=yes", "--job-name", "my-job"]
    out, err = run(here, script, *arguments, env={**os.environ, "HERE": "1"})
    log = (here / "out" / "logs" / "algo-1.log").read_text()
    assert "algo-1 ['--eta', '0.1'] yes my-job False\n" in log
    assert "Read-only file system\n" * 3 in log
    assert "shm True\n" in log
    assert log in out
    assert sorted(path.name for path in (here / "out").iterdir()) == [
        *("checkpoints", "job.json", "logs", "model", "model.tar.gz", "output")
    ]
    assert (here / "out" / "checkpoints" / "c").read_text() == "checkpoint"
    with tarfile.open(here / "out" / "model.tar.gz") as tar:
        assert tar.getnames() == ["m"]
    found = record(here / "out")
    assert (found["status"], found["exit_code"]) == ("Completed", 0)
    assert found["hosts"] == [{"name": "algo-1", "exit_code": 0, "log": "logs/algo-1.log"}]
    assert found["metrics"]["validation:auc"] == {"steps": [1], "values": [0.5]}
    assert f"each host is a container of {IMAGE}" in err
    assert re.search("\\nprocess +trainbox run ", out)
    assert "docker run" not in out


def test_the_bundled_xgboost_trains(here: Path) -> None:
    with (here / "data" / "a.csv").open("w") as file:
        csv.writer(file).writerows([[n % 2, n % 2 + n % 5 / 10, n % 7] for n in range(200)])
    hyperparameters = [f"--hp={pair}" for pair in ("objective=binary:logistic", "num_round=3", "eval_metric=auc")]
    channels = ["--channel=train=data", "--channel=validation=data"]
    process = subprocess.run(
        [*COMMAND, "xgboost", IN_DOCKER, *channels, *hyperparameters, "--out", "out"],
        cwd=here, capture_output=True, text=True, check=False, timeout=LIMIT,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout + process.stderr
    assert record(here / "out")["metrics"]["validation:auc"]["values"][-1] == 1.0
    assert (here / "out" / "model.tar.gz").exists()


def test_a_script_that_only_the_image_has_is_found_and_runs(here: Path, engine: Any) -> None:
    """As the page about algorithms of one's own makes such an image: COPY nearest_mean.py /opt/train_scripts/."""
    name = "trainbox-test:own-script"
    container = engine.create_container(IMAGE, ["true"])
    try:
        engine.put_archive(container, "/opt/train_scripts", _packed({"own_algorithm.py": OWN.encode()}))
        engine.put_archive(container, "/opt", _packed({"program/fit.py": OWN.encode()}))
        engine.commit(container, repository="trainbox-test", tag="own-script")
    finally:
        engine.remove_container(container)
    try:
        command = [*COMMAND, "own-algorithm", "--docker", name, "--out", "out"]
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False, timeout=LIMIT)
        assert done.returncode == 0, done.stdout + done.stderr
        assert (here / "out" / "model" / "m").read_text() == "of the image"
        assert "\nprocess " not in done.stdout
        command = [*COMMAND, "/opt/program/fit.py", "--docker", name, "--out", "by-path"]
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False, timeout=LIMIT)
        assert done.returncode == 0, done.stdout + done.stderr
        assert (here / "by-path" / "model" / "m").read_text() == "of the image"
        command = [*COMMAND, "own_algoritm", "--docker", name, "--out", "refused"]
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False, timeout=LIMIT)
        assert done.returncode == 10
        assert "did you mean 'own_algorithm'" in done.stderr
        assert f"those of {name} are own_algorithm, pytorch_train" in done.stderr
    finally:
        engine.remove_image(name, force=True)


@pytest.mark.representative
def test_hosts_know_each_other_and_one_that_fails_fails_the_job(here: Path) -> None:
    script = """
import os, socket, sys, time
host = os.environ["SM_CURRENT_HOST"]
print(host == socket.gethostname(), len({socket.gethostbyname(name) for name in ("algo-1", "algo-2")}))
open("/opt/ml/model/m", "w").write(host)
open("/opt/ml/checkpoints/" + host, "w")
if host == "algo-2":
    while not os.path.exists("/opt/ml/checkpoints/algo-1"):
        time.sleep(0.02)
    sys.exit("the disk is on fire")
time.sleep(60)
"""
    out, err = run(here, script, "--hosts", "2", code=1)
    found = record(here / "out")
    assert found["failure_reason"].startswith("AlgorithmError: the disk is on fire")
    assert [(host["name"], host["exit_code"]) for host in found["hosts"]] == [("algo-1", 143), ("algo-2", 1)]
    assert found["clashes"] == [{"path": "m", "kept": "algo-1", "others": ["m.algo-2"]}]
    assert "algo-2 has failed: SIGTERM to algo-1" in err
    for host in ("algo-1", "algo-2"):
        assert f"{host} | True 2\n" in out


def test_a_host_that_ends_at_once_can_still_be_looked_up(here: Path) -> None:
    script = "import socket\nprint([socket.gethostbyname(f'algo-{n}') for n in (1, 2, 3)])"
    out, _ = run(here, script, "--hosts", "3")
    (line,) = {line.partition(" | ")[2] for line in out.splitlines() if " | [" in line}
    assert line.count(".") == 9


def test_a_stop_and_a_resume_are_two_attempts_of_one_job(here: Path) -> None:
    run(here, DRILL, "--stop-after", "1.5")
    first = record(here / "out")
    assert (first["status"], first["secondary_status"], first["exit_code"]) == ("Stopped", "Stopped", 0)
    assert (here / "out" / "checkpoints" / "step").read_text() == "7"
    out, err = run(here, DRILL, "--resume")
    assert "attempt 2 of" in err
    assert "begins at 7" in out
    found = record(here / "out")
    assert (found["status"], found["attempt"]) == ("Completed", 2)
    assert (here / "out" / "model" / "model").read_text() == "14"


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_leaves_nothing_even_of_what_ignores_it(here: Path, times: int) -> None:
    # One Ctrl-C waits out the supervisor's grace; the second does not wait.
    grace = f"TRAINBOX_GRACE_SECONDS={0.5 if times == 1 else 100}"
    process = start(here, STUBBORN, IN_DOCKER, "--hosts", "2", "--env", grace, "--out", "out")
    for host in ("algo-1", "algo-2"):
        eventually(in_log(here / "out", "now at work", host), "the script at work")
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    _, err = finish(process, 130)
    assert ("Ctrl-C again: SIGKILL to" in err) == (times == 2)
    found = record(here / "out")
    assert (found["status"], found["exit_code"]) == ("Stopped", 130)
    assert {host["exit_code"] for host in found["hosts"]} == {137}


def test_two_jobs_at_once_never_meet(here: Path) -> None:
    script = """
import os, socket, time
host = os.environ["SM_CURRENT_HOST"]
print("first", socket.gethostbyname("algo-1"), flush=True)
while not os.path.exists("/opt/ml/checkpoints/go"):
    time.sleep(0.02)
"""
    outs = [here / name / "same-name" for name in ("one", "two")]
    arguments = [IN_DOCKER, "--hosts", "2", "--job-name", "same-name"]
    jobs = [start(here, script, *arguments, "--out", str(out)) for out in outs]
    for out in outs:
        for host in ("algo-1", "algo-2"):
            eventually(in_log(out, "first ", host), "the script at work")
    for out in outs:
        (out / "checkpoints" / "go").touch()
    seen = []
    for job, out in zip(jobs, outs, strict=True):
        finish(job, 0)
        logs = [(out / "logs" / f"{host}.log").read_text() for host in ("algo-1", "algo-2")]
        seen.append({line for log in logs for line in log.splitlines() if line.startswith("first ")})
    assert [len(each) for each in seen] == [1, 1]
    assert seen[0] != seen[1]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(("conditions", "user"), [((), 1234), (("--as-sagemaker",), 0)], ids=["confined", "as root"])
def test_files_belong_to_the_caller_also_after_a_failure(engine: Any, conditions: tuple[str, ...], user: int) -> None:
    assert engine
    script = """
import os, pathlib
os.umask(0o077)
for name in ("model/d/m", "checkpoints/d/c", "output/data/o"):
    path = pathlib.Path("/opt/ml", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(os.getuid()))
pathlib.Path("/opt/ml/model/link").symlink_to("/etc/passwd")
raise SystemExit(3)
"""
    group = Path("/var/run/docker.sock").stat().st_gid
    # pytest's own directories are for root alone.
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        (here / "src").mkdir()
        (here / "src" / "train.py").write_text(script)
        os.chown(here, 1234, 1234)
        # Of root it keeps that it may read Python, wherever that lies.
        become = ["setpriv", "--reuid=1234", "--regid=1234", "--inh-caps=+dac_read_search"]
        become.append("--ambient-caps=+dac_read_search")
        env = {**os.environ, "HOME": name}
        _, err = run(here, script, *conditions, code=3, env=env, prefix=[*become, f"--groups={group}"])
        assert "error: " not in err
        assert {path.lstat().st_uid for path in (here / "out").rglob("*")} == {1234}
        assert (here / "out" / "model" / "d" / "m").read_text() == str(user)
        assert (here / "out" / "checkpoints" / "d" / "c").exists()
        refused = run_refused(here, env=env, prefix=[*become, "--clear-groups"])
        assert "no permission to talk to the Docker engine" in refused
    assert Path("/etc/passwd").stat().st_uid == 0


def run_refused(here: Path, *arguments: str, prefix: Sequence[str] = (), **options: Any) -> str:
    """What is wrong before anything is started: a message with a hint, and nothing written."""
    if not (here / "src" / "train.py").exists():
        (here / "src" / "train.py").write_text("print(1)")
    docker = [] if "--docker" in arguments else ["--docker"]
    argv = [*prefix, *COMMAND, "src/train.py", *docker, *arguments, "--out", "refused"]
    done: subprocess.CompletedProcess[str] = subprocess.run(
        argv, cwd=here, capture_output=True, text=True, check=False, timeout=LIMIT, **options
    )
    assert done.returncode == 10, done.stdout + done.stderr
    assert done.stderr.startswith("trainbox: ")
    assert "\n  hint: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (here / "refused").exists()
    return done.stderr


def test_an_engine_that_is_down_is_said(here: Path, tmp_path: Path) -> None:
    for place in (f"unix://{tmp_path}/nothing", "tcp://127.0.0.1:9"):
        assert "no Docker engine answers" in run_refused(here, env={**os.environ, "DOCKER_HOST": place})


def test_an_image_that_is_not_here_is_not_pulled(here: Path) -> None:
    said = run_refused(here, "--docker", "trainbox:not-here")
    assert "there is no image 'trainbox:not-here' here, and trainbox run pulls none" in said
    assert "docker pull trainbox:not-here" in said
    assert "invalid reference" in run_refused(here, "--docker", "Not::A:Name")


def test_an_image_for_another_architecture_is_said(engine: Any, here: Path) -> None:
    name = "trainbox-test:other-architecture"
    engine.load_image(_foreign_image(name, "arm64" if engine.version()["Arch"] != "arm64" else "amd64"))
    try:
        said = run_refused(here, "--docker", name)
    finally:
        engine.remove_image(name, force=True)
    assert f"the image {name} is for " in said
    assert "--platform linux/" in said


def _packed(files: Mapping[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for path, data in files.items():
            info = tarfile.TarInfo(path)
            info.size, info.mode = len(data), 0o755
            tar.addfile(info, io.BytesIO(data))
    return content.getvalue()


def _foreign_image(name: str, architecture: str) -> bytes:
    """An image whose only program no processor here can run, as `docker save` writes it."""

    # The head of an ELF file for a machine that does not exist.
    layer = _packed({"bin/true": b"\x7fELF\x02\x01\x01" + b"\xff" * 57})
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    return _packed(
        {
            "layer.tar": layer,
            "config.json": json.dumps(config).encode(),
            "manifest.json": json.dumps(manifest).encode(),
        }
    )


@pytest.mark.parametrize("entrypoint", [["/usr/bin/env", "--"], []])
def test_an_image_without_train_is_said(here: Path, made_image: Callable[..., str], entrypoint: list[str]) -> None:
    image = made_image(Env=["PATH=/usr/bin:/bin"], Entrypoint=entrypoint)
    _, err = run(here, "print(1)", "--docker", image, code=10)
    assert f"the image {image} has no program 'train' on its PATH" in err
    assert "hint: " in err
    found = record(here / "out")
    assert found["status"] == "Failed"
    assert found["failure_reason"].startswith("InternalServerError: ")


@pytest.mark.parametrize("how", ["killed", "removed"])
def test_a_container_that_is_ended_from_outside_is_said_and_secrets_stay_inside(
    here: Path, how: str, engine: Any, mine: Left
) -> None:
    arguments = ["--hp", "api_token=topsecret", "--env", "DB_PASSWORD=hunter2-2", "--env", "TRAINBOX_GRACE_SECONDS=0.5"]
    process = start(here, STUBBORN, IN_DOCKER, *arguments, "--hosts", "2", "--out", "out")
    for host in ("algo-1", "algo-2"):
        eventually(in_log(here / "out", "now at work", host), "the script at work")
    for name in mine()[0]:
        found = engine.inspect_container(name)
        assert "topsecret" not in json.dumps(found)
        assert "DB_PASSWORD=hunter2-2" in found["Config"].pop("Env")
        assert "hunter2-2" not in json.dumps(found)
        if found["Config"]["Hostname"] == "algo-1":
            engine.kill(name) if how == "killed" else engine.remove_container(name, force=True)
    _, err = finish(process, 137)
    reason = record(here / "out")["failure_reason"]
    # `docker rm -f` kills first: what is found depends on the moment.
    assert "the container was " in reason
    assert " from outside" in reason
    assert "exit code: 137" in reason
    assert "hunter2-2" not in err


def test_what_the_kernel_kills_for_memory_is_said_by_the_engine(
    here: Path, engine: Any, made_image: Callable[..., str], mine: Left
) -> None:
    """Where process 1 itself is killed, no supervisor can say why."""
    glutton = """
import os, time
print("now at work", flush=True)
while not os.path.exists("/opt/ml/checkpoints/go"):
    time.sleep(0.02)
eaten = [bytearray(1 << 20) for _ in range(1 << 12)]
"""
    image = made_image(Entrypoint=["python3", "-c", glutton])
    process = start(here, "", "--docker", image, "--out", "out")
    eventually(in_log(here / "out", "now at work"), "the script at work")
    (container,) = mine()[0]
    engine.update_container(container, mem_limit="64m", memswap_limit="64m")
    (here / "out" / "checkpoints" / "go").touch()
    finish(process, 137)
    assert record(here / "out")["failure_reason"].startswith("AlgorithmError: out of memory: the kernel killed")


def test_a_run_that_is_killed_can_be_resumed_and_its_containers_go(here: Path, mine: Left) -> None:
    process = start(here, DRILL, IN_DOCKER, "--out", "out")
    eventually(in_log(here / "out", "begins at 0"), "the script at work")
    process.kill()
    process.communicate()
    assert len(mine()[0]) == 1
    (here / "out" / "checkpoints" / "step").write_text("7")
    _, err = run(here, DRILL, "--resume")
    assert "of an attempt that was killed, and removed: 1 container\n" in err
    assert record(here / "out")["status"] == "Completed"


#: A way to the engine that can be cut.
PROXY = """
import socket, sys, threading
def pump(source, target):
    while data := source.recv(65536):
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(50)
print("ready", flush=True)
while True:
    person, engine = listener.accept()[0], socket.socket(socket.AF_UNIX)
    engine.connect("/var/run/docker.sock")
    for ends in ((person, engine), (engine, person)):
        threading.Thread(target=pump, args=ends, daemon=True).start()
"""


def test_an_engine_that_goes_away_is_said_with_what_is_left_and_how_to_remove_it(here: Path, mine: Left) -> None:
    with tempfile.TemporaryDirectory() as short:  # the path of a socket has at most 107 bytes
        place = f"{short}/engine"
        proxy = subprocess.Popen([sys.executable, "-c", PROXY, place], stdout=subprocess.PIPE, text=True)
        with proxy:
            assert proxy.stdout is not None
            assert proxy.stdout.readline() == "ready\n"
            env = {**os.environ, "DOCKER_HOST": f"unix://{place}"}
            process = start(here, STUBBORN, IN_DOCKER, "--out", "out", env=env)
            eventually(in_log(here / "out", "now at work"), "the script at work")
            proxy.kill()
        _, err = finish(process, 10)
    assert "no Docker engine answers" in err
    (line,) = (line for line in err.splitlines() if "to remove what is left: " in line)
    for command in line.partition("to remove what is left: ")[2].split("; "):
        subprocess.run(command.split(), check=True, capture_output=True)
    assert mine() == ([], [])


def test_keep_keeps_and_says_the_names(here: Path, engine: Any, mine: Left) -> None:
    _, err = run(here, "print('hello')", "--keep", "--network", "bridge")
    (container,), (network,) = mine()
    (line,) = (line for line in err.splitlines() if "kept: " in line)
    assert engine.inspect_container(container)["Name"].removeprefix("/") in line
    # What it needs is still there, too.
    engine.start(container)
    assert engine.wait(container)["StatusCode"] == 0
    for command in line.partition("to remove them: ")[2].split("; "):
        subprocess.run(command.split(), check=True, capture_output=True)
    assert mine() == ([], [])
    assert network


def test_a_dry_run_shows_what_a_container_is_given_and_makes_none(here: Path) -> None:
    out, _ = run(here, "print(1)", "--dry-run", "--channel", "train=data", "--hp", "eta=0.1")
    assert f"each host is a container of {IMAGE}" in out
    assert "/opt/ml/input/data/train  <- " in out
    assert "starts: train\n" in out
    assert "which starts: python3 train.py --eta 0.1" in out
    assert not (here / "out").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_is_said(here: Path) -> None:
    small = here / "out"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", small], check=False).returncode:
        pytest.skip("no mounts here")
    try:
        script = "import sys\nfor _ in range(200): print('x' * 50_000)"
        _, err = run(here, script, code=10)
        assert "disk full, log output stopped" in err
        assert "No space left on device" in err
    finally:
        subprocess.run(["umount", small], check=True)


class Notes:
    """A listener that only remembers."""

    def __init__(self) -> None:
        self.text = b""
        self.said: list[str] = []

    def output(self, _host: str, data: bytes) -> None:
        self.text += data

    def note(self, text: str) -> None:
        self.said.append(text)

    def started(self, host: str) -> None:
        pass

    def stopping(self, reason: StopReason) -> None:
        pass

    def tick(self) -> None:
        pass


def planned(here: Path, script: str) -> RunPlan:
    (here / "src" / "train.py").write_text(script)
    request = RunRequest(
        script="train.py",
        source=survey(here / "src", leave_out=here / "out"),
        inherited=dict(os.environ),
        job_name="job",
        out=here / "out",
        isolation=in_containers(find_image(IMAGE, os.environ), CONFINED),
        started=dt.datetime.now(dt.UTC),
    )
    (here / "out").mkdir()
    plan = plan_run(request)
    prepare(plan)
    return plan


def run_plan(plan: RunPlan, notes: Notes) -> Ended:
    image = plan.request.isolation.image
    assert image is not None
    with Interrupts() as interrupts:
        return run_containers(plan, image, CONFINED, notes, interrupts)


def test_a_name_that_is_taken_is_said_and_what_has_it_stays(
    here: Path, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = os.urandom(4).hex()
    monkeypatch.setattr(secrets, "token_hex", lambda _size: mark)
    plan, notes = planned(here, "print(1)"), Notes()
    engine.create_container(IMAGE, ["true"], name=f"trainbox-job-{mark}-algo-1")
    try:
        with pytest.raises(RunError, match="is already in use"):
            run_plan(plan, notes)
        assert engine.inspect_container(f"trainbox-job-{mark}-algo-1")
        assert not engine.networks(names=[f"trainbox-job-{mark}"])
    finally:
        engine.remove_container(f"trainbox-job-{mark}-algo-1")


def test_what_does_not_end_in_time_is_killed(here: Path) -> None:
    plan, notes = planned(here, STUBBORN), Notes()
    plan = msgspec.structs.replace(plan, seconds_to_leave=1.0)
    plan = msgspec.structs.replace(plan, request=msgspec.structs.replace(plan.request, max_run=1.0))
    assert run_plan(plan, notes) == Ended((HostEnd("algo-1", 137),), stop="max-run", killed=True)
    assert b"now at work" in notes.text


def test_logs_are_the_exact_bytes_and_lines_stay_whole(here: Path) -> None:
    script = r"""
import sys, threading
def write(stream, letter):
    for _ in range(20):
        stream.buffer.write(letter * 70_000 + b"\n")
        stream.flush()
other = threading.Thread(target=write, args=(sys.stderr, b"e"))
other.start()
write(sys.stdout, b"o")
other.join()
sys.stdout.buffer.write(b"\xff\x00 10%\r20%\r\n\tno newline")
"""
    plan, notes = planned(here, script), Notes()
    assert run_plan(plan, notes).hosts == (HostEnd("algo-1", 0),)
    log = (here / "out" / "logs" / "algo-1.log").read_bytes()
    assert log == notes.text
    for letter in (b"o", b"e"):
        assert log.split(b"\n").count(letter * 70_000) == 20
    assert b"\xff\x00 10%\r20%\r\n" in log
    assert b"\tno newline" in log
    assert [thread.name for thread in threading.enumerate() if "_relay" in thread.name] == []
