"""What a container of `trainbox run --docker` may do, tried from within; and what it leaves to harm whoever looks."""

import os
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.containers import IMAGE
from tests.support.runs import COMMAND, in_log, record
from tests.support.trees import wheel
from tests.support.waiting import LIMIT, eventually

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("image")]
KEY = "KEY-OF-THE-HOST-4711"
IN_DOCKER = f"--docker={IMAGE}"
#: What the script finds of itself, a line for each.
LOOK = """
import os, socket, pathlib
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
print("ids", os.getuid(), os.getgid())
print("rights", status["CapEff"], status["CapBnd"], status["NoNewPrivs"])
print("interfaces", *sorted(os.listdir("/sys/class/net")))
print("name", socket.gethostbyname(socket.gethostname()))
for place in ("/", "/opt", "/usr/lib", "/tmp", "/var/tmp", "/dev/shm", "/opt/ml/model", os.path.expanduser("~")):
    try:
        pathlib.Path(place, "mine").write_text("x")
        print("written", place)
    except OSError as error:
        print("refused", place, error.strerror)
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    (tmp_path / "secret").write_text(KEY)
    (tmp_path / "secret").chmod(0o600)
    return tmp_path


def run(here: Path, script: str, *arguments: str, code: int = 0) -> "subprocess.CompletedProcess[str]":
    (here / "src" / "train.py").write_text(script)
    argv = [*COMMAND, "src/train.py", IN_DOCKER, "--out", "out", *arguments]
    done = subprocess.run(argv, cwd=here, capture_output=True, text=True, check=False, timeout=LIMIT)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@contextmanager
def listening() -> Iterator[int]:
    """A service of this machine, on all its addresses; its port."""
    with closing(socket.create_server(("0.0.0.0", 0))) as server:
        yield server.getsockname()[1]


def test_one_host_has_nothing_but_its_tree(here: Path) -> None:
    done = run(here, LOOK)
    assert "no capabilities" in done.stderr
    assert "no network (--network bridge" in done.stderr
    lines = done.stdout.splitlines()
    assert f"ids {os.geteuid()} {os.getegid()}" in lines
    assert f"rights {0:016x} {0:016x} 1" in lines
    assert "interfaces lo" in lines
    assert "name 127.0.0.1" in lines
    for place in ("/", "/opt", "/usr/lib"):
        assert f"refused {place} Read-only file system" in lines
    for place in ("/tmp", "/var/tmp", "/dev/shm", "/opt/ml/model"):
        assert f"written {place}" in lines
    assert record(here / "out")["status"] == "Completed"


def test_as_sagemaker_it_has_what_sagemaker_gives(here: Path) -> None:
    done = run(here, LOOK, "--as-sagemaker")
    lines = done.stdout.splitlines()
    assert "ids 0 0" in lines
    assert "rights 00000000a80425fb 00000000a80425fb 0" in lines
    assert "written /opt" in lines
    assert any(line.startswith("interfaces eth0") for line in lines)


TALKS = """
import os, socket, threading, time
host, others = os.environ["SM_CURRENT_HOST"], ("algo-1", "algo-2")
server = socket.create_server(("0.0.0.0", 4711))
def answer():
    while True:
        server.accept()[0].close()
threading.Thread(target=answer, daemon=True).start()
def reaches(address, port):
    try:
        socket.create_connection((address, port), timeout=2).close()
        return True
    except OSError:
        return False
while not all(reaches(other, 4711) for other in others):
    time.sleep(0.05)
print("met", flush=True)
mine = socket.gethostbyname(host)
gateway = mine.rsplit(".", 1)[0] + ".1"
print("gateway", reaches(gateway, PORT), "outside", reaches("192.0.2.1", 80), flush=True)
open("/opt/ml/checkpoints/" + host, "w")
while not all(os.path.exists("/opt/ml/checkpoints/" + other) for other in others):
    time.sleep(0.05)
"""


def test_several_hosts_reach_each_other_and_neither_this_machine_nor_others(here: Path) -> None:
    with listening() as port:
        done = run(here, TALKS.replace("PORT", str(port)), "--hosts", "2")
    for host in ("algo-1", "algo-2"):
        assert f"{host} | met" in done.stdout
        assert f"{host} | gateway False outside False" in done.stdout


def test_a_bridge_that_was_asked_for_leads_to_this_machine(here: Path) -> None:
    """What the two tests above rely on: the same try gets through where it may."""
    with listening() as port:
        script = TALKS.replace("PORT", str(port)).replace('("algo-1", "algo-2")', '("algo-1",)')
        done = run(here, script, "--network", "bridge")
    assert "gateway True" in done.stdout


@pytest.mark.parametrize("conditions", [(), ("--as-sagemaker",)], ids=["confined", "as SageMaker"])
@pytest.mark.parametrize(
    "attack",
    [
        "os.symlink('{secret}', '/opt/ml/output/failure')",
        "shutil.rmtree('/opt/ml/output'); os.symlink('{secret_directory}', '/opt/ml/output')",
        "os.mkfifo('/opt/ml/output/failure')",
    ],
    ids=["link", "link in the middle", "FIFO"],
)
def test_what_stands_in_place_of_a_failure_file_is_not_read(
    here: Path, attack: str, conditions: tuple[str, ...], engine: Any
) -> None:
    """Its supervisor is killed, so that it cannot replace it."""
    (here / "secret.d").mkdir()
    (here / "secret.d" / "failure").write_text(KEY)
    act = attack.format(secret=here / "secret", secret_directory=here / "secret.d")
    script = f"import os, shutil, time\n{act}\nprint('done', flush=True)\ntime.sleep(600)\n"
    (here / "src" / "train.py").write_text(script)
    argv = [*COMMAND, "src/train.py", IN_DOCKER, "--out", "out", *conditions]
    process = subprocess.Popen(argv, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    eventually(in_log(here / "out", "done"), "the attack")
    engine.kill(container_of(engine, here)["Id"])
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 137, out + err
    assert KEY not in out + err + (here / "out" / "job.json").read_text()
    assert "killed from outside" in record(here / "out")["failure_reason"]


def test_no_program_of_a_container_runs_as_its_owner_here(here: Path) -> None:
    script = """
import pathlib, shutil
for place in ("model", "checkpoints", "output/data"):
    path = pathlib.Path("/opt/ml", place, "suid")
    shutil.copy("/bin/true", path)
    path.chmod(0o6755)
"""
    run(here, script, "--as-sagemaker")
    for place in ("model", "checkpoints", "output/data"):
        assert stat.S_IMODE((here / "out" / place / "suid").stat().st_mode) == 0o755
    assert stat.S_IMODE((here / "out").stat().st_mode) == 0o700


def container_of(engine: Any, here: Path) -> dict[str, Any]:
    found: list[dict[str, Any]] = engine.containers(filters={"label": f"trainbox.out={here / 'out'}"})
    return dict(engine.inspect_container(found[0]["Id"]))


@pytest.mark.parametrize("how", ["paused", "stopped"])
def test_a_container_that_stands_still_is_ended_and_named(here: Path, how: str, engine: Any) -> None:
    (here / "src" / "train.py").write_text("import time\nprint('at work', flush=True)\ntime.sleep(600)\n")
    argv = [*COMMAND, "src/train.py", IN_DOCKER, "--out", "out", "--hp", "trainbox_hang_seconds=2"]
    process = subprocess.Popen(argv, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    eventually(in_log(here / "out", "at work"), "the script at work")
    found = container_of(engine, here)
    engine.pause(found["Id"]) if how == "paused" else os.kill(found["State"]["Pid"], signal.SIGSTOP)
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 137, out + err
    reason = record(here / "out")["failure_reason"]
    what = "was paused" if how == "paused" else "was stopped (SIGSTOP)"
    assert f"the container of algo-1 {what} for " in reason
    assert "was ended" in reason


def test_requirements_go_into_the_tree_and_bring_a_network(here: Path) -> None:
    (here / "src" / "wheels").mkdir()
    content = wheel("dependency", "words = 'installed'\n")
    (here / "src" / "wheels" / "dependency-1.0-py3-none-any.whl").write_bytes(content)
    (here / "src" / "requirements.txt").write_text("--no-index\n--find-links wheels\ndependency\nmsgspec\n")
    done = run(here, "import dependency, msgspec\nprint(dependency.words, dependency.__file__, msgspec.__file__)")
    assert "a network, for -r requirements.txt" in done.stderr
    assert "installed /opt/ml/packages/lib/" in done.stdout
    assert "/opt/venv/" in done.stdout
    (here / "src" / "requirements.txt").unlink()


def test_two_ranks_meet_without_a_network(here: Path) -> None:
    script = """
import torch, torch.distributed as dist
from trainbox.torch import session
with session() as run:
    total = torch.ones(1)
    dist.all_reduce(total)
    print("sum", total.item(), flush=True)
"""
    done = run(here, script, "--processes", "2")
    assert done.stdout.count("sum 2.0") == 2


def test_a_fork_bomb_meets_a_limit(here: Path) -> None:
    script = """
from pathlib import Path
places = [Path("/sys/fs/cgroup/pids.max"), Path("/sys/fs/cgroup/pids/pids.max")]
print("most", *(place.read_text() for place in places if place.exists()))
"""
    assert "most 16384" in run(here, script).stdout
