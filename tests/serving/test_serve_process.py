"""`serve` from its start to its end: real processes, connections and signals."""

import http.client
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from tests.support.servers import Answered, ServeProcess
from tests.support.waiting import LIMIT, eventually
from trainbox.system.procfs import read_stat

pytestmark = pytest.mark.process

TWO = {"SAGEMAKER_MODEL_SERVER_WORKERS": "2"}
ONE = {"SAGEMAKER_MODEL_SERVER_WORKERS": "1"}
MIB = 2**20


def exchange(server: ServeProcess, content: bytes) -> bytes:
    """Everything that comes back for some bytes, until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), LIMIT) as connection:
        connection.sendall(content)
        return b"".join(iter(lambda: connection.recv(MIB), b""))


def join_requests(tree: Path, *, joins: bool = True) -> None:
    """Have the obedient model answer together what comes together."""
    (tree / "model").mkdir(parents=True)
    if joins:
        (tree / "model" / "joins").touch()


# ---- start ----


def test_while_a_model_loads_connections_are_answered_with_the_reason(tmp_path: Path) -> None:
    with ServeProcess(tmp_path, TWO, obedient=1.0) as server:
        server.until(lambda: "loading " in server.log, "the model is being loaded")
        for path, body in (("/ping", None), ("/invocations", b"1,2" * MIB)):
            early = server.ask(path, body)
            assert (early.status, early.headers["content-type"]) == (503, "application/json")
            assert b"the model has been loading for " in early.body
        server.until_ready()
        assert server.ask("/ping").status == 200
        assert server.ask("/ping").body == b""
        assert server.invoke(b"").body.decode() in map(str, server.workers)
        assert "trainbox: 2 worker(s): SAGEMAKER_MODEL_SERVER_WORKERS\n" in server.log
        assert server.stop() == 0


def test_a_model_that_is_not_there_ends_the_server_with_the_reason(tmp_path: Path) -> None:
    with ServeProcess(tmp_path, obedient=None) as server:
        assert server.wait() == 7
        assert re.search(r"trainbox: FAILED: ClientError: .*/model", server.log)
        assert "Traceback" not in server.log
        assert "restart" not in server.log


def test_a_variable_that_is_malformed_ends_the_server_with_code_2(tmp_path: Path) -> None:
    with ServeProcess(tmp_path, {"SAGEMAKER_MODEL_SERVER_WORKERS": "many"}) as server:
        assert server.wait() == 2
        assert "FAILED: ClientError: SAGEMAKER_MODEL_SERVER_WORKERS='many' cannot be used" in server.log
        assert "hint: it is worker processes" in server.log


def test_without_what_speaks_http_the_server_says_what_to_install(tmp_path: Path) -> None:
    program = "import sys; sys.modules['uvloop'] = None; from trainbox.supervisor.serve import main; sys.exit(main())"
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TRAINBOX_ROOT": str(tmp_path), "SAGEMAKER_BIND_TO_PORT": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )
    assert ended.returncode == 3
    assert "FAILED: ClientError: uvloop is not installed, and serve needs it for HTTP" in ended.stderr
    assert "pip install 'trainbox[serving]'" in ended.stderr


def test_a_port_that_is_taken_ends_the_server_with_the_reason(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with ServeProcess(tmp_path, {"SAGEMAKER_BIND_TO_PORT": port}) as server:
            assert server.wait() == 13
            assert f"port {port} of 127.0.0.1 cannot be bound: Address already in use" in server.log


def test_workers_that_never_become_ready_are_named_and_end_the_server(tmp_path: Path) -> None:
    (tmp_path / "worker-breaks").touch()
    with ServeProcess(tmp_path, ONE) as server:
        assert server.wait() == 1
        assert "worker 1): RuntimeError: no " in server.log
        assert "; it has ended 3 times within 60 s\n" in server.log
        assert "FAILED: ended 4 times within " in server.log
        assert "the last time: RuntimeError: no " in server.log


# ---- workers ----


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV"])
def test_a_worker_that_dies_is_named_and_replaced_and_loses_its_own_request_alone(tmp_path: Path, name: str) -> None:
    with ServeProcess(tmp_path, ONE) as server:
        before = server.until_ready().workers
        with pytest.raises(ConnectionError):
            server.invoke(f"die {name}".encode())
        for _ in range(20):  # none is turned away, also while there is nobody
            answered = server.invoke(b"")
            assert answered.status == 200
        assert [int(answered.body)] == server.workers != before
        server.until(lambda: f"killed by {name}; another takes its place" in server.log, "the log names the signal")
        assert server.ask("/ping").status == 200


def test_an_exception_of_a_model_is_an_answer_with_its_place_and_the_id_of_the_log(tmp_path: Path) -> None:
    with ServeProcess(tmp_path, ONE) as server:
        before = server.until_ready().workers
        failed = server.invoke(b"raise")
        assert failed.status == 500
        assert re.search(rb"ZeroDivisionError: by nothing \(at fake_loader.py:\d+ in answer\)", failed.body)
        name = failed.headers["x-trainbox-request-id"]
        assert f'"id":"{name}"'.encode() in failed.body
        server.until(lambda: "POST /invocations 500 " in server.log and f"id={name}" in server.log, "a line")
        assert "Traceback (most recent call last)" in server.log
        assert server.workers == before


def test_the_text_of_an_exception_stays_in_the_log_where_values_may_be_personal(tmp_path: Path) -> None:
    with ServeProcess(tmp_path, {**ONE, "TRAINBOX_SERVE_DETAIL": "false"}) as server:
        failed = server.until_ready().invoke(b"raise")
        assert re.search(rb"ZeroDivisionError \(at fake_loader.py:\d+ in answer\)", failed.body)
        assert b"by nothing" not in failed.body
        server.until(lambda: "ZeroDivisionError: by nothing" in server.log, "the log has it")


@pytest.mark.parametrize("how", ["stopped", "never gives the interpreter's lock back", "sleeps"])
def test_a_worker_that_stands_still_is_named_and_replaced(tmp_path: Path, how: str) -> None:
    with ServeProcess(tmp_path, {**TWO, "SAGEMAKER_MODEL_SERVER_TIMEOUT": "2"}) as server:
        before = server.until_ready().workers
        if how == "stopped":
            os.kill(before[0], signal.SIGSTOP)
        else:
            with pytest.raises(ConnectionError):
                server.invoke(b"sleep 600" if how == "sleeps" else b"freeze 600")
        server.until(lambda: "(SAGEMAKER_MODEL_SERVER_TIMEOUT) and was killed" in server.log, "it is killed")
        server.until(lambda: len(server.workers) == 2 and server.workers != before, "another takes its place")
        assert [server.invoke(b"").status for _ in range(4)] == [200] * 4
        assert server.stop() == 0


def test_a_new_worker_that_never_becomes_ready_is_named_and_replaced(tmp_path: Path) -> None:
    with ServeProcess(tmp_path, {**ONE, "SAGEMAKER_STARTUP_TIMEOUT": "10"}) as server:
        (before,) = server.until_ready().workers
        (tmp_path / "workers-take-long").touch()
        os.kill(before, signal.SIGKILL)
        line = (
            r"worker 1 .* has not answered the sample rows of the model for \S+ s \(SAGEMAKER_STARTUP_TIMEOUT\) and was"
        )
        server.until(lambda: server.workers not in ([], [before]), "another is there")
        assert server.ask("/ping").status == 503
        (tmp_path / "workers-take-long").unlink()
        server.until(lambda: re.search(line, server.log), "it is killed")
        server.until(lambda: server.ask("/ping").status == 200, "another takes its place")
        assert server.stop() == 0


def test_while_a_worker_is_stopped_the_others_get_its_connections(tmp_path: Path) -> None:
    with ServeProcess(tmp_path, TWO) as server:
        stopped, other = server.until_ready().workers
        os.kill(stopped, signal.SIGSTOP)
        try:
            # Those that were given to it before its silence is noticed are taken back then.
            answers = [b""] * 24
            threads = [
                threading.Thread(target=lambda place=place: answers.__setitem__(place, server.invoke(b"").body))
                for place in range(len(answers))
            ]
            for thread in threads:
                thread.start()
            server.until(lambda: all(answers), "the other answers all")
            assert set(answers) == {str(other).encode()}
            assert read_stat(stopped).state == "T"
        finally:
            os.kill(stopped, signal.SIGCONT)
        for thread in threads:
            thread.join(LIMIT)


def test_the_end_of_the_supervisor_is_that_of_all(tmp_path: Path) -> None:
    with ServeProcess(tmp_path, TWO) as server:
        everybody = server.until_ready().everybody
        server.process.kill()
        server.process.wait()
        eventually(lambda: all(read_stat(pid).has_ended for pid in everybody), "all have ended")


def test_a_loader_that_dies_loads_the_model_anew(tmp_path: Path) -> None:
    with ServeProcess(tmp_path, TWO) as server:
        before = server.until_ready().loader
        os.kill(before, signal.SIGKILL)
        server.until(lambda: server.log.count("trainbox: serving on port") == 2, "it serves again")
        assert re.search("loader .exit code 137.: killed by SIGKILL; .*; restart 1 of 3 within ", server.log)
        assert server.invoke(b"").body.decode() in map(str, server.workers)


@pytest.mark.parametrize("connections", [4, 64])
def test_connections_that_stay_open_are_spread_evenly(tmp_path: Path, connections: int) -> None:
    with ServeProcess(tmp_path, {"SAGEMAKER_MODEL_SERVER_WORKERS": "4"}) as server:
        workers = server.until_ready().workers
        opened = [server.connect() for _ in range(connections)]
        counts: Counter[bytes] = Counter()
        for connection, _ in itertools.product(opened, range(3)):
            connection.request("POST", "/invocations", b"")
            counts[Answered(connection.getresponse()).body] += 1
        for connection in opened:
            connection.close()
        assert sorted(map(int, counts)) == workers
        assert min(counts.values()) > 0.15 * sum(counts.values())


def test_where_uvicorn_cannot_be_given_connections_each_worker_listens(tmp_path: Path) -> None:
    (tmp_path / "uvicorn-has-changed").touch()
    with ServeProcess(tmp_path, TWO) as server:
        workers = server.until_ready().workers
        assert server.log.count("cannot be given connections: each worker listens (SO_REUSEPORT)\n") == 1
        answers = {int(server.invoke(b"").body) for _ in range(64)}
        assert answers == set(workers)
        assert server.stop() == 0


# ---- requests ----


def test_what_a_route_is_not_made_for_is_told(tmp_path: Path) -> None:
    with ServeProcess(tmp_path, {**ONE, "SAGEMAKER_BATCH": "true"}) as server:
        server.until_ready()
        assert (server.ask("/").status, server.ask("/invocations").status) == (404, 405)
        assert server.ask("/ping", b"").headers["allow"] == "GET"
        parameters = server.ask("/execution-parameters")
        assert parameters.body == b'{"MaxConcurrentTransforms":1,"BatchStrategy":"MULTI_RECORD","MaxPayloadInMB":25}'
        echoed = server.invoke(b"", {"X-Amzn-SageMaker-Custom-Attributes": "trace=7"})
        assert echoed.headers["x-amzn-sagemaker-custom-attributes"] == "trace=7"
        assert server.invoke(b"stream 3").body == b"part 0\npart 1\npart 2\n"
        metrics = server.ask("/metrics").body.decode()
        assert 'trainbox_requests_total{code="2xx"} 2\n' in metrics
        assert "trainbox_rows_total 1\n" in metrics
        assert "/ping" not in server.log
        assert (
            len(re.findall(r"^trainbox: POST /invocations 200 1 row [0-9.]+ ms id=\w", server.log, re.MULTILINE)) == 1
        )


def test_a_stream_that_breaks_ends_without_its_last_chunk(tmp_path: Path) -> None:
    with ServeProcess(tmp_path, ONE) as server:
        before = server.until_ready().workers
        with pytest.raises(http.client.IncompleteRead) as caught:
            server.invoke(b"breaking")
        assert caught.value.partial == b"part\n"
        line = r"POST /invocations 500 [0-9.]+ ms id=\S+ ZeroDivisionError: after the first part\n"
        server.until(lambda: re.search(line, server.log), "the log says why")
        assert server.log.count("Traceback") == 1
        assert server.invoke(b"").status == 200
        assert server.workers == before


def test_a_stream_is_closed_when_its_client_leaves(tmp_path: Path) -> None:
    with ServeProcess(tmp_path, ONE) as server:
        server.until_ready()
        with socket.create_connection(("127.0.0.1", server.port), LIMIT) as connection:
            connection.sendall(b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-length: 7\r\n\r\nendless")
            assert b"part\n" in connection.recv(MIB)
        server.until(lambda: "the stream was closed" in server.log, "it is closed")
        server.until(lambda: re.search(r"POST /invocations 499 .* the client has gone\n", server.log), "a line")
        assert server.invoke(b"").status == 200


def test_a_body_that_is_too_long_is_refused_with_both_numbers_before_it_comes(tmp_path: Path) -> None:
    with ServeProcess(tmp_path, {**ONE, "TRAINBOX_MAX_BODY_MB": "1"}) as server:
        server.until_ready()
        head = b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-length: 1048577\r\nexpect: 100-continue\r\n\r\n"
        answer = exchange(server, head)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"the body has 1,048,577 bytes, and at most 1,048,576 (1 MB) are taken" in answer
        assert server.invoke(b"x" * (MIB + 1)).status == 413
        assert server.invoke(b"x" * MIB).status == 200
        connection = server.connect()
        connection.request("POST", "/invocations", iter([b"x" * MIB, b"y"]), encode_chunked=True)
        chunked = Answered(connection.getresponse())
        connection.close()
        assert chunked.status == 413
        assert b"1,048,577 bytes" in chunked.body


def test_who_sends_no_request_or_too_many_headers_is_let_go(tmp_path: Path) -> None:
    with ServeProcess(tmp_path, ONE) as server:
        server.until_ready()
        assert exchange(server, b"POST /invocations HTTP/1.1\r\nx: ") == b""  # after ten seconds
        flood = b"".join(b"name-%d: value\r\n" % number for number in range(10_000))
        assert exchange(server, b"GET /ping HTTP/1.1\r\n" + flood[: 100 * 1024]).startswith(b"HTTP/1.1 431 ")
        assert exchange(server, b"\x16\x03\x01 no HTTP\r\n\r\n").startswith(b"HTTP/1.1 400 ")
        assert server.invoke(b"").status == 200


def test_requests_beyond_what_may_wait_are_told_to_come_later(tmp_path: Path) -> None:
    with ServeProcess(tmp_path, ONE) as server:
        server.until_ready()
        server.invoke(b"sleep 0.1")  # from now on requests are answered beside the loop
        statuses: list[int] = []
        threads = [
            threading.Thread(target=lambda: statuses.append(server.invoke(b"sleep 0.02").status)) for _ in range(100)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
        assert set(statuses) <= {200, 503}
        assert statuses.count(200) >= 65
        assert server.ask("/ping").status == 200


# ---- the end ----


def drain(tree: Path, *, joins: bool) -> None:
    """Stop a server while sixteen connections are busy."""
    ends, failures, answers = threading.Event(), list[str](), Counter[int]()
    join_requests(tree, joins=joins)
    with ServeProcess(tree, TWO) as server:

        def send() -> None:
            connection = server.connect()
            while not ends.is_set():
                try:
                    connection.request("POST", "/invocations", b"sleep 0.001")
                    answers[Answered(connection.getresponse()).status] += 1
                except OSError as error:
                    failures.append(repr(error))
                    return
            connection.close()

        server.until_ready()
        threads = [threading.Thread(target=send) for _ in range(16)]
        for thread in threads:
            thread.start()
        server.until(lambda: answers[200] > 100, "all send")
        os.kill(server.process.pid, signal.SIGTERM)
        server.until(lambda: server.ask("/ping").status == 503, "the server says that it stops")
        before = answers[200]
        server.until(lambda: answers[200] > before + 200, "it answers all the same")
        ends.set()
        for thread in threads:
            thread.join(LIMIT)
        assert server.wait() == 0
    assert not failures
    assert set(answers) == {200}


def test_a_stop_loses_no_request_of_sixteen_busy_connections(tmp_path: Path) -> None:
    for trial in range(3):
        drain(tmp_path / str(trial), joins=trial % 2 == 0)


@pytest.mark.long
def test_a_stop_loses_no_request_in_twenty_trials(tmp_path: Path) -> None:
    for trial in range(20):
        drain(tmp_path / str(trial), joins=trial % 2 == 0)


def test_a_request_in_progress_is_answered_after_a_stop(tmp_path: Path) -> None:
    with ServeProcess(tmp_path, ONE) as server:
        server.until_ready().invoke(b"sleep 0.1")  # from now on requests are answered beside the loop
        connection = server.connect()
        connection.request("POST", "/invocations", b"sleep 2.5")
        server.until(lambda: b"trainbox_requests_in_flight 1\n" in server.ask("/metrics").body, "it is being answered")
        os.kill(server.process.pid, signal.SIGTERM)
        answered = Answered(connection.getresponse())
        assert (answered.status, answered.headers["connection"]) == (200, "close")
        assert server.wait() == 0
        assert "trainbox: stopped by SIGTERM after " in server.log
