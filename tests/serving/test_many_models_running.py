"""An endpoint of many models while it runs: loads among requests, workers and loaders that die, memory, the end."""

import http.client
import itertools
import os
import re
import signal
import socket
import threading
from collections import Counter
from pathlib import Path
from typing import Self

import pytest

from tests.serving.test_many_models import ONE, TWO, grown, place, predicted
from tests.serving.test_serve_models import ROWS, as_csv
from tests.serving.test_serve_process import exchange
from tests.support.many_models import ManyModels, read, write_code
from tests.support.servers import Answered
from tests.support.waiting import LIMIT, eventually
from trainbox.system.procfs import read_stat

pytestmark = pytest.mark.process

MIB = 2**20


def memory(pids: list[int], kind: str = "Pss") -> int:
    """What processes take together, bytes that they share counted once."""
    found = "".join(Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids)
    return sum(int(kib) * 1024 for kib in re.findall(rf"^{kind}:\s+(\d+) kB", found, re.MULTILINE))


def descriptors(pid: int) -> int:
    """How many a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def server_connection(server: ManyModels) -> socket.socket:
    """A connection for bytes."""
    return socket.create_connection(("127.0.0.1", server.port), LIMIT)


class Clients:
    """Clients that ask models without a pause, each over one connection that stays open.

    Args:
        server: Which has them.
        names: The models, one client for each.
        body: What they are asked.
    """

    def __init__(self, server: ManyModels, names: list[str], body: bytes) -> None:
        self._server, self._body = server, body
        self._ends = threading.Event()
        self.answers: Counter[tuple[str, int, bytes]] = Counter()
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._ask, args=(name,)) for name in names]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join(LIMIT)

    @property
    def count(self) -> int:
        """How many requests were answered."""
        return sum(self.answers.values())

    def go_on(self, count: int) -> None:
        """Wait until so many more have been answered."""
        reached = self.count + count
        self._server.until(lambda: self.count > reached or self.failures, "requests go on")

    def _ask(self, name: str) -> None:
        connection = self._server.connect()
        try:
            while not self._ends.is_set():
                connection.request("POST", f"/models/{name}/invoke", self._body, {"content-type": "text/csv"})
                answered = Answered(connection.getresponse())
                self.answers[name, answered.status, answered.body] += 1
                if answered.headers.get("connection") == "close":
                    return
        except (OSError, http.client.HTTPException) as error:
            self.failures.append(repr(error))
        finally:
            connection.close()


def test_loads_and_unloads_lose_no_request_of_connections_that_stay_open(tmp_path: Path) -> None:
    booster = grown(5)
    for name in ("a", "b", "c"):
        place(tmp_path, name, booster)
    with ManyModels(tmp_path, TWO) as server:
        assert [server.load(name).status for name in ("a", "b")] == [200, 200]
        with Clients(server, ["a", "a", "b", "b"], as_csv(ROWS[:3])) as clients:
            for _ in range(10):
                assert server.load("c").status == 200
                assert server.invoke_model("c", as_csv(ROWS[:1])).status == 200
                assert server.unload("c").status == 200
                assert server.invoke_model("c", as_csv(ROWS[:1])).status == 404
                clients.go_on(20)
        assert not clients.failures, server.log
        (right,) = {answer for _, _, answer in clients.answers}
        assert {status for _, status, _ in clients.answers} == {200}
        assert list(map(float, right.split())) == predicted(booster, ROWS[:3])
        server.until(lambda: len(server.workers) == 2, "the workers before have ended")
        assert "another takes its place" not in server.log


def test_loads_that_meet_are_all_answered(tmp_path: Path) -> None:
    names = [f"m{number}" for number in range(8)]
    for name in names:
        write_code(tmp_path, name)
    with ManyModels(tmp_path, TWO) as server:
        answers: list[tuple[str, int]] = []
        threads = [
            threading.Thread(target=lambda name=name: answers.append((name, server.load(name).status)))
            for name in (*names, *names)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
        assert Counter(answers) == Counter(itertools.product(names, (200, 409)))
        assert server.names == names
        assert [server.invoke_model(name, b"").body.split()[1].decode() for name in names] == names


def test_requests_of_one_packet_are_answered_in_their_order_across_a_change(tmp_path: Path) -> None:
    """The second and third lie unread when the workers are replaced."""
    for name in ("a", "b"):
        write_code(tmp_path, name)
    with ManyModels(tmp_path, ONE) as server:
        assert [server.load(name).status for name in ("a", "b")] == [200, 200]
        ask = b"POST /models/a/invoke HTTP/1.1\r\nhost: h\r\n%bcontent-length: 0\r\n\r\n"
        requests = [b"DELETE /models/b HTTP/1.1\r\nhost: h\r\n\r\n", ask % b"", ask % b"connection: close\r\n"]
        answered = exchange(server, b"".join(requests))
        assert re.findall(rb"HTTP/1.1 (\d+) ", answered) == [b"200"] * 3
        assert server.names == ["a"]


def test_a_body_that_comes_after_its_answer_is_no_request_across_a_change(tmp_path: Path) -> None:
    write_code(tmp_path, "a")
    with ManyModels(tmp_path, ONE) as server, server_connection(server) as late:
        late.sendall(b"POST /models/a/b/c HTTP/1.1\r\nhost: h\r\ncontent-length: 30\r\n\r\n")
        assert late.recv(2**16).startswith(b"HTTP/1.1 404 ")
        assert server.load("a").status == 200
        late.sendall(b"DELETE /models/a HTTP/1.1\r\n\r\n".ljust(30))
        late.sendall(b"GET /ping HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
        answered = b"".join(iter(lambda: late.recv(2**16), b""))
        assert re.findall(rb"HTTP/1.1 (\d+) ", answered) == [b"200"], answered
        assert server.names == ["a"]


def test_a_request_in_progress_is_answered_though_its_model_is_unloaded(tmp_path: Path) -> None:
    write_code(tmp_path, "slow")
    with ManyModels(tmp_path, ONE) as server:
        assert server.load("slow").status == 200
        answered: list[Answered] = []
        bodies = [b"sleep 3".ljust(20_000), b"stream 60"]  # long enough to leave the event loop alone
        threads = [
            threading.Thread(target=lambda body=b: answered.append(server.invoke_model("slow", body))) for b in bodies
        ]
        for thread in threads:
            thread.start()
        server.until(lambda: len(server.workers) == 1, "one worker")
        server.until(lambda: b"trainbox_requests_in_flight 2" in server.ask("/metrics").body, "both are in progress")
        assert server.unload("slow").status == 200
        assert not answered
        assert server.invoke_model("slow", b"").status == 404
        for thread in threads:
            thread.join(LIMIT)
        assert [each.status for each in answered] == [200, 200]
        assert answered[1].body.endswith(b"part 59")
        server.until(lambda: len(server.workers) == 1, "the worker before has ended")


def test_the_end_of_the_supervisor_is_that_of_a_worker_that_retires(tmp_path: Path) -> None:
    write_code(tmp_path, "slow")
    with ManyModels(tmp_path, ONE) as server, server_connection(server) as asking:
        assert server.load("slow").status == 200
        server.until(lambda: len(server.workers) == 1, "the worker before has ended")
        asking.sendall(b"POST /models/slow/invoke HTTP/1.1\r\nhost: h\r\ncontent-length: 12\r\n\r\nstream 60000")
        assert asking.recv(2**16).startswith(b"HTTP/1.1 200 ")
        assert server.unload("slow").status == 200
        everybody = server.everybody
        assert len(everybody) == 3  # the loader, and both workers
        server.process.kill()
        server.process.wait()
        eventually(lambda: all(read_stat(pid).has_ended for pid in everybody), "all have ended")


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV"])
def test_a_worker_that_dies_comes_back_with_all_models(tmp_path: Path, name: str) -> None:
    for model in ("a", "b"):
        write_code(tmp_path, model)
    with ManyModels(tmp_path, ONE) as server:
        assert [server.load(model).status for model in ("a", "b")] == [200, 200]
        server.until(lambda: len(server.workers) == 1, "the worker before has ended")
        before = server.workers
        with pytest.raises(ConnectionError):
            server.invoke_model("a", f"die {name}".encode())
        answers = [server.invoke_model(model, b"") for model in ("a", "b")]
        assert [each.body.split()[1] for each in answers] == [b"a", b"b"]
        assert server.workers not in ([], before)
        server.until(lambda: f"killed by {name}; another takes its place" in server.log, "the log names the signal")
        assert server.names == ["a", "b"]


def test_a_loader_that_dies_loads_the_models_again_without_the_one_it_died_of(tmp_path: Path) -> None:
    write_code(tmp_path, "good")
    # Its trial is a child of the loader, and goes well.
    deadly = "import os\ndef model_fn(_):\n    os.getppid() in {0} or os.kill(os.getpid(), 9)\n"
    with ManyModels(tmp_path, ONE) as server:
        assert server.load("good").status == 200
        write_code(tmp_path, "deadly", deadly.format({server.loader}))
        assert server.load("deadly").status == 503
        server.until(lambda: server.log.count("trainbox: serving on port") == 2, "it serves again")
        assert "model 'deadly' is not loaded again: the loader ended while it loaded it" in server.log
        assert server.names == ["good"]
        assert server.invoke_model("good", b"").body.endswith(b" good")
        (tmp_path / "models" / "good" / "model" / "code" / "inference.py").unlink()
        os.kill(server.loader, signal.SIGKILL)
        server.until(lambda: server.log.count("trainbox: serving on port") == 3, "it serves again")
        assert re.search("model 'good' is not loaded again: .* has no model to serve", server.log)
        assert server.names == []


def test_a_stop_answers_all_that_has_come_and_ends_a_load_that_hangs(tmp_path: Path) -> None:
    write_code(tmp_path, "m")
    write_code(tmp_path, "hangs", "import time\ntime.sleep(600)\ndef model_fn(_): pass\n")
    with ManyModels(tmp_path, TWO) as server:
        assert server.load("m").status == 200
        server.until(lambda: len(server.workers) == 2, "the workers before have ended")
        loading: list[Answered] = []
        thread = threading.Thread(target=lambda: loading.append(server.load("hangs")))
        with Clients(server, ["m"] * 8, b"") as clients:
            clients.go_on(50)
            thread.start()
            server.until(lambda: len(server.workers) == 3, "the trial runs")
            os.kill(server.process.pid, signal.SIGTERM)
            assert server.wait() == 0
        thread.join(LIMIT)
        assert not clients.failures, server.log
        assert {status for _, status, _ in clients.answers} == {200}
        assert [(each.status, read(each)["message"]) for each in loading] == [(503, "the server is stopping")]


def test_a_worker_that_stands_still_is_replaced_and_holds_up_no_load_for_ever(tmp_path: Path) -> None:
    for model in ("a", "b"):
        write_code(tmp_path, model)
    with ManyModels(tmp_path, {**TWO, "SAGEMAKER_MODEL_SERVER_TIMEOUT": "3"}) as server:
        assert server.load("a").status == 200
        server.until(lambda: len(server.workers) == 2, "the workers before have ended")
        stopped = server.workers[0]
        os.kill(stopped, signal.SIGSTOP)
        assert server.load("b").status == 200
        assert read_stat(stopped).has_ended
        assert [server.invoke_model("b", b"").status for _ in range(4)] == [200] * 4


# ---- memory ----


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.long)])
def test_hundreds_of_models_share_the_workers_and_the_memory(tmp_path: Path, count: int) -> None:
    """Each of them has 117 KB on disk."""
    booster = grown(100)
    names = [f"m{number}" for number in range(count)]
    for name in names:
        place(tmp_path, name, booster)
    right = predicted(booster, ROWS[:1])
    with ManyModels(tmp_path, TWO) as server:
        assert server.load(names[0]).status == 200
        server.until(lambda: len(server.workers) == 2, "the workers before have ended")
        first = memory(server.everybody)
        assert {server.load(name).status for name in names[1:]} == {200}
        for name in (*names, *names):
            assert list(map(float, server.invoke_model(name, as_csv(ROWS[:1])).body.split())) == right
        server.until(lambda: len(server.workers) == 2, "the workers before have ended")
        assert len(server.everybody) == 3  # no process for each of them
        everything = memory([server.process.pid, *server.everybody])
        assert everything < 1500 * MIB
        assert (everything - first) / count < 4 * MIB


@pytest.mark.long
def test_models_that_come_and_go_leave_nothing_behind(tmp_path: Path) -> None:
    booster = grown(100)
    place(tmp_path, "kept", booster)
    place(tmp_path, "a", booster)
    write_code(
        tmp_path,
        "b",
        "import os\nDATA = []\nDATA.append(DATA)\ndef model_fn(_): return [bytes(2**22), DATA]\n"
        "def transform_fn(*_): return ''\n",
    )
    with ManyModels(tmp_path, ONE) as server:
        assert server.load("kept").status == 200

        def churn(rounds: int) -> int:
            for _, name in itertools.product(range(rounds), ("a", "b")):
                assert server.load(name).status == 200
                assert server.invoke_model(name, as_csv(ROWS[:1])).status == 200
                assert server.unload(name).status == 200
            server.until(lambda: len(server.workers) == 1, "the workers before have ended")
            return memory(server.everybody, "Pss_Anon")  # files of libraries are shared with strangers, too

        before = churn(17)
        before_open = [descriptors(pid) for pid in (server.loader, server.process.pid)]
        assert churn(34) - before < 6 * MIB
        assert [descriptors(pid) for pid in (server.loader, server.process.pid)] == before_open
