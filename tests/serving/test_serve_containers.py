"""`serve` in containers of all kinds: little memory, any user, nothing to write to; and stops at any moment."""

import os
import re
import signal
import socket
from pathlib import Path

import pytest

from tests.support.cgroups import small_cgroup
from tests.support.gpu_hosts import needs_mounts, with_devices
from tests.support.servers import ServeProcess
from tests.support.waiting import LIMIT
from trainbox.system.procfs import read_stat

pytestmark = pytest.mark.process

ONE = {"SAGEMAKER_MODEL_SERVER_WORKERS": "1"}
MIB = 2**20
#: Everything is read-only, /dev has no shm, and a user without a name, who may read Python wherever that lies, runs it.
_CONFINED = """
mount -t tmpfs tmpfs "$1"
for node in null zero random urandom; do touch "$1/$node"; mount --bind "/dev/$node" "$1/$node"; done
mount --rbind "$1" /dev
mount --make-rprivate /
for place in / /tmp; do mountpoint -q $place && mount -o remount,bind,ro $place; done
shift
exec setpriv --reuid=1234 --regid=1234 --clear-groups --inh-caps=+dac_read_search --ambient-caps=+dac_read_search "$@"
"""


def confined(directory: Path) -> list[str]:
    directory.mkdir()
    return ["unshare", "-m", "sh", "-ec", _CONFINED, "sh", str(directory)]


# ---- memory ----


def test_a_worker_killed_for_memory_is_named_and_loses_its_own_request_alone(tmp_path: Path) -> None:
    with small_cgroup(256) as prefix, ServeProcess(tmp_path, ONE, prefix=prefix) as server:
        before = server.until_ready().workers
        with pytest.raises(ConnectionError):
            server.invoke(b"fill %d" % (400 * MIB))
        assert server.invoke(b"").status == 200
        assert re.search(
            r"worker 1 \(exit code 137\): out of memory: the kernel killed .* \(limit 256 MiB\)", server.log
        )
        server.until(lambda: len(server.workers) == 1 and server.workers != before, "another takes its place")
        assert server.stop() == 0


def test_memory_that_the_system_refuses_is_an_answer(tmp_path: Path) -> None:
    limited = ["sh", "-c", 'ulimit -v 4000000 && exec "$@"', "sh"]
    with ServeProcess(tmp_path, ONE, prefix=limited) as server:
        before = server.until_ready().workers
        failed = server.invoke(b"fill %d" % (8_000 * MIB))
        assert failed.status == 500
        assert b"MemoryError" in failed.body
        assert server.invoke(b"").status == 200
        assert server.workers == before


# ---- rights ----


@needs_mounts
def test_it_writes_nothing_and_needs_neither_a_name_nor_shared_memory(tmp_path: Path) -> None:
    with ServeProcess(tmp_path, prefix=confined(tmp_path / "dev")) as server:
        server.until_ready()
        assert "trainbox: 1 worker(s): there is no /dev/shm: taken for a serverless endpoint\n" in server.log
        (worker,) = server.workers
        status = Path(f"/proc/{worker}/status").read_text()
        assert "Uid:\t1234\t1234\t1234\t1234" in status
        assert re.search(r"^\S+ / \S+ ro\b", Path(f"/proc/{worker}/mounts").read_text(), re.MULTILINE)
        assert server.invoke(b"").body == str(worker).encode()
        os.kill(worker, signal.SIGKILL)
        assert server.invoke(b"").status == 200
        assert server.stop() == 0
        assert "Read-only" not in server.log
        assert "Permission" not in server.log


# ---- GPUs ----

_OF_GPU = """
import os

def model_fn(model_dir, context):
    return os.environ["CUDA_VISIBLE_DEVICES"], context.system_properties["gpu_id"]

def transform_fn(model, body, content_type, accept, context):
    return f"{os.getpid()} {model} {context.system_properties['gpu_id']}"
"""


@needs_mounts
@pytest.mark.parametrize(
    ("variables", "seen"),
    [
        ({}, ["0", "1"]),
        ({"CUDA_VISIBLE_DEVICES": "a,b", "SAGEMAKER_MODEL_SERVER_WORKERS": "3"}, ["a", "a", "b"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, ["", ""]),
    ],
)
def test_each_worker_loads_the_model_on_a_gpu_of_its_own(
    tmp_path: Path, variables: dict[str, str], seen: list[str]
) -> None:
    (tmp_path / "model" / "code").mkdir(parents=True)
    (tmp_path / "model" / "code" / "inference.py").write_text(_OF_GPU)
    with ServeProcess(tmp_path, variables, obedient=None, prefix=with_devices(tmp_path / "dev", 2)) as server:
        server.until_ready()
        assert server.log.count("each worker loads the model for itself: there is a GPU") == 1
        answers = {server.invoke(b"").body.decode() for _ in range(3 * len(seen))}
        assert sorted(answer.split(" ", 1)[1] for answer in answers) == [f"('{name}', 0) 0" for name in seen]


# ---- stops ----


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_while_the_model_loads_ends_all_at_once(tmp_path: Path, number: int) -> None:
    with ServeProcess(tmp_path, ONE, obedient=600.0) as server:
        server.until(lambda: "loading " in server.log, "the model is being loaded")
        loader = server.loader
        os.kill(server.process.pid, number)
        assert server.wait() == 0
        assert read_stat(loader).has_ended
        assert "trainbox: stopped by SIG" in server.log
        assert "had to be killed" not in server.log
        assert "another takes its place" not in server.log
        assert "Traceback" not in server.log


def test_a_stop_while_no_worker_is_ready_ends_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "workers-take-long").touch()
    with ServeProcess(tmp_path, ONE) as server:
        server.until(lambda: "trainbox: 1 worker(s)" in server.log, "a worker answers the sample rows")
        server.until(lambda: server.workers, "it is there")
        (worker,) = server.workers
        early = server.ask("/ping")
        assert early.status == 503
        assert b"0 of 1 workers have answered its sample rows" in early.body
        assert server.stop() == 0
        assert read_stat(worker).has_ended
        assert "had to be killed" not in server.log


def test_a_request_that_is_being_sent_when_a_stop_comes_is_answered(tmp_path: Path) -> None:
    with ServeProcess(tmp_path, ONE) as server:
        server.until_ready()
        with socket.create_connection(("127.0.0.1", server.port), LIMIT) as connection:
            connection.sendall(b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-length: 2000\r\n\r\n" + bytes(1000))
            server.until(lambda: b"requests_in_flight 1\n" in server.ask("/metrics").body, "it is being read")
            os.kill(server.process.pid, signal.SIGTERM)
            server.until(lambda: server.ask("/ping").status == 503, "the server says that it stops")
            connection.sendall(bytes(1000))
            answered = b"".join(iter(lambda: connection.recv(MIB), b""))
        assert answered.startswith(b"HTTP/1.1 200 ")
        assert b"connection: close" in answered
        assert server.wait() == 0


# ---- connections ----


def test_hundreds_of_connections_that_send_nothing_keep_nobody_waiting(tmp_path: Path) -> None:
    few = ["sh", "-c", 'ulimit -Sn 256 && exec "$@"', "sh"]
    with ServeProcess(tmp_path, ONE, prefix=few) as server:
        server.until_ready()
        slow = [socket.create_connection(("127.0.0.1", server.port), LIMIT) for _ in range(600)]
        try:
            for connection in slow[::2]:
                connection.sendall(b"POST /invocations HTTP/1.1\r\ncontent-le")
            assert [server.invoke(b"").status for _ in range(20)] == [200] * 20
            assert server.ask("/ping").status == 200
        finally:
            for connection in slow:
                connection.close()
        assert server.stop() == 0


def test_a_header_that_is_repeated_or_odd_ends_no_worker(tmp_path: Path) -> None:
    with ServeProcess(tmp_path, ONE) as server:
        before = server.until_ready().workers
        for lines in (
            b"content-length: 2\r\ncontent-length: 3\r\n",
            b"content-length: -1\r\n",
            b"content-length: 99999999999999999999999999\r\n",
            b"content-length: 1\r\ntransfer-encoding: chunked\r\n",
            b"transfer-encoding: gzip\r\n",
            b"content-type: \xff\xfe\r\ncontent-length: 0\r\n",
            b"x-amzn-sagemaker-custom-attributes: \xe9\r\ncontent-length: 0\r\n",
            b": empty\r\n",
            b"a b: c\r\n",
            b"content-type: a\r\n b\r\n",
        ):
            with socket.create_connection(("127.0.0.1", server.port), LIMIT) as connection:
                connection.sendall(b"POST /invocations HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + lines + b"\r\n")
                connection.shutdown(socket.SHUT_WR)
                answer = b"".join(iter(lambda: connection.recv(MIB), b""))
            assert not answer or re.match(rb"HTTP/1.1 (200|400|413) ", answer), (lines, answer)
        assert server.invoke(b"").status == 200
        assert server.workers == before
        assert "Traceback" not in server.log


# ---- asynchronous endpoints ----


def test_an_asynchronous_endpoint_takes_large_bodies_and_long_answers_where_it_is_told_to(tmp_path: Path) -> None:
    of_another = {"TS_MAX_REQUEST_SIZE": "1000000000", "SAGEMAKER_TS_BATCH_SIZE": ""}
    told = {**ONE, **of_another, "TRAINBOX_MAX_BODY_MB": "1024", "SAGEMAKER_MODEL_SERVER_TIMEOUT": "3600"}
    given = {
        "X-Amzn-SageMaker-Inference-Id": "job-7",
        "X-Amzn-SageMaker-Custom-Attributes": "trace=7",
        "Content-Type": "text/csv",
    }
    with ServeProcess(tmp_path, told) as server:
        server.until_ready()
        (worker,) = server.workers
        assert "trainbox: TS_MAX_REQUEST_SIZE has no effect: set TRAINBOX_MAX_BODY_MB\n" in server.log
        assert "SAGEMAKER_TS_BATCH_SIZE" not in server.log
        answered = server.invoke(b"sleep 1.5" + b" " * (64 * MIB), given)
        assert (answered.status, answered.body) == (200, str(worker).encode())
        assert answered.headers["x-amzn-sagemaker-custom-attributes"] == "trace=7"
