"""`trainbox transform` and `trainbox invoke` against a real server: whole files come out, errors name their rows."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support.model_server import Reply, Request, echo_by_line, serving, sums
from tests.support.waiting import LIMIT, eventually

pytestmark = pytest.mark.process

WITH_PEAK = """
import pathlib, sys
from trainbox.cli import main
code = main()
print(pathlib.Path("/proc/self/status").read_text().partition("VmHWM:")[2].partition("\\n")[0])
sys.exit(code)
"""
LINES = ("--split", "Line", "--assemble", "Line")


def trainbox(*words: object, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "trainbox", *map(str, words)],
        input=stdin,
        capture_output=True,
        check=False,
        timeout=LIMIT,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def rows(count: int) -> str:
    return "".join(f"{number},{number % 7}\n" for number in range(count))


def expected(count: int) -> str:
    return "".join(f"{number + number % 7}\n" for number in range(count))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "in/day").mkdir(parents=True)
    (tmp_path / "in/a.csv").write_text(rows(1))
    (tmp_path / "in/day/b.csv").write_text(rows(1001).removesuffix("\n"))
    (tmp_path / "in/day/empty.csv").write_text("")
    return tmp_path


def test_as_many_rows_come_out_as_went_in_for_every_size_and_strategy(data: Path) -> None:
    parameters = {"MaxConcurrentTransforms": 4, "BatchStrategy": "MULTI_RECORD", "MaxPayloadInMB": 6}
    (data / "in/large.csv").write_text("7\n" + f"{5:01000}\n" * 2_000)
    with serving(parameters=parameters) as server:
        done = trainbox("transform", server.url, "--input", data / "in", "--output", data / "out", *LINES,
                        "--max-payload", 1)  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("MultiRecord, requests of at most 1 MB, 4 at the same time\n")
        assert f"{data}/in/day/b.csv -> {data}/out/day/b.csv.out: 1,001 rows\n" in done.stdout
        assert len(server.requests) == 1 + 1 + 2  # a file of 2 MB has two requests
        assert {request.content_type for request in server.requests} == {"text/csv"}
        assert (data / "out/day/b.csv.out").read_text() == expected(1001)
        assert (data / "out/a.csv.out").read_text() == "0\n"
        assert (data / "out/day/empty.csv.out").read_text() == ""
        assert (data / "out/large.csv.out").read_text() == "7\n" + "5\n" * 2_000
        done = trainbox("transform", server.url, "--input", data / "in/day", "--output", data / "single", *LINES,
                        "--strategy", "SingleRecord")  # fmt: skip
        assert done.returncode == 0
        assert (data / "single/b.csv.out").read_text() == expected(1001)


def test_an_id_is_kept_from_the_model_and_joined_with_its_answer(data: Path) -> None:
    with serving() as server:
        done = trainbox(
            "transform", server.url, "--input", data / "in/day/b.csv", "--output", data / "out", *LINES,
            "--input-filter", "$[1:]", "--join", "Input", "--output-filter", "$[0,-1]",
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert (data / "out/b.csv.out").read_text() == "".join(f"{number},{number % 7}\n" for number in range(1001))
    assert server.requests[0].accept == "text/csv"


def test_a_refused_row_is_named_its_file_is_left_out_and_the_others_are_written(data: Path) -> None:
    def answer(request: Request) -> Reply:
        lines = request.body.split(b"\n")
        if b"x,1" in lines:
            row = lines.index(b"x,1") + 1
            body = f'{{"error": "value \'x\' of column 1 is not a number", "row": {row}, "hint": "send numbers"}}'
            return Reply(body.encode(), 400, "application/json")
        return sums(request)

    (data / "in/bad.csv").write_text(rows(100_000) + "x,1\n" + rows(3))
    with serving(answer) as server:
        done = trainbox("transform", server.url, "--input", data / "in", "--output", data / "out", *LINES,
                        "--max-payload", 1, "--workers", 2)  # fmt: skip
    assert done.returncode == 7
    assert f"{data}/in/bad.csv: row 100,001: the endpoint answered 400: value 'x' of column 1 is not a" in done.stderr
    assert "hint: send numbers" in done.stderr
    assert "1 of 4 inputs failed" in done.stderr
    assert (data / "out/day/b.csv.out").read_text() == expected(1001)
    assert not list((data / "out").glob("*bad*"))


def test_an_answer_on_one_line_is_no_output(data: Path) -> None:
    with serving(lambda _: Reply(b'{"predictions": [1, 2]}', content_type="application/json")) as server:
        done = trainbox("transform", server.url, "--input", data / "in/day/b.csv", "--output", data / "out", *LINES)
    assert done.returncode == 7
    assert "rows 1 to 1,001: rows in and rows out differ: 1,001 in, 1 out" in done.stderr
    assert not list((data / "out").iterdir())


def test_a_server_that_fails_is_asked_again_up_to_three_times(data: Path) -> None:
    failing = 3

    def answer(request: Request) -> Reply:
        return Reply(b"busy", 503, "text/plain") if len(server.requests) <= failing else sums(request)

    with serving(answer) as server:
        argv = ("transform", server.url, "--input", data / "in/a.csv", "--output", data / "out", *LINES)
        assert trainbox(*argv).returncode == 0
        assert len(server.requests) == 4
        failing = 10
        done = trainbox(*argv)
        assert (done.returncode, len(server.requests)) == (7, 8)
    assert "row 1: the endpoint answered 503: busy" in done.stderr
    assert (data / "out/a.csv.out").read_text() == "0\n"  # of the first job


def test_inputs_whose_names_say_no_one_type_are_named(data: Path) -> None:
    for name, said in (("b.jsonl", "is application/jsonlines, and"), ("b", "has a name that says no content type")):
        (data / "in" / name).touch()
        done = trainbox("transform", "http://127.0.0.1:1", "--input", data / "in", "--output", data / "out", *LINES)
        assert done.returncode == 10
        assert f"the input {data}/in/{name} {said}" in done.stderr
        (data / "in" / name).unlink()


def test_an_endpoint_that_is_not_there_is_said_at_once(data: Path) -> None:
    with serving() as server:
        url = server.url
    done = trainbox("transform", url, "--input", data / "in", "--output", data / "out", *LINES)
    assert done.returncode == 10
    assert f"{url} does not answer: Connection refused" in done.stderr


def test_a_payload_limit_of_0_sends_an_input_in_one_chunked_request_and_reads_meanwhile(data: Path) -> None:
    line = f"1,{2:02000},3"
    (data / "in/day/long.csv").write_text(f"{line}\n" * 10_000)  # more than any buffer on the way
    argv = ("--input", data / "in/day/long.csv", "--max-payload", 0)
    with serving(echo_by_line) as server:
        done = trainbox("transform", server.url, *argv, "--output", data / "out", *LINES, "--join", "Input",
                        "--input-filter", "$[2]", "--output-filter", "$[0,-1]")  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert (data / "out/long.csv.out").read_text() == "1,3\n" * 10_000
        done = trainbox("transform", server.url, *argv, "--output", data / "raw")
        assert done.returncode == 0
        assert (data / "raw/long.csv.out").read_bytes() == (data / "in/day/long.csv").read_bytes()


def test_a_body_of_any_length_needs_no_memory(data: Path) -> None:
    peaks = []
    with serving(echo_by_line) as server:
        for count in (10, 20_000):
            (data / "long.csv").write_text(f"1,{2:02000},3\n" * count)
            argv = ["transform", server.url, "--input", data / "long.csv", "--max-payload", 0, "--output", data / "out"]
            argv += [*LINES, "--join", "Input", "--input-filter", "$[1:]", "--output-filter", "$[0,2]"]
            # The peak that the kernel hands to who waits is at least that of this process, which forked it.
            job = subprocess.run(
                [sys.executable, "-c", WITH_PEAK, *map(str, argv)],
                capture_output=True,
                text=True,
                check=True,
                timeout=LIMIT,
            )
            assert (data / "out/long.csv.out").read_text() == "1,3\n" * count
            peaks.append(int(job.stdout.split()[-2]))
    assert peaks[1] - peaks[0] < 10_000  # kB; the input has 40 MB


def test_a_filter_that_finds_nothing_in_a_stream_is_named(data: Path) -> None:
    (data / "in/a.csv").write_text("1,2\n1,2\n1\n")
    with serving(echo_by_line) as server:
        done = trainbox("transform", server.url, "--input", data / "in/a.csv", "--output", data / "out", *LINES,
                        "--max-payload", 0, "--input-filter", "$[1:]")  # fmt: skip
    assert done.returncode == 7
    assert "row 3: $[1:] asks for what 1 elements do not have" in done.stderr
    assert not list((data / "out").iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_end_from_outside_leaves_no_half_of_a_file(data: Path, number: signal.Signals) -> None:
    hold = threading.Event()

    def answer(request: Request) -> Reply:
        if len(server.requests) > 1:
            hold.wait(LIMIT)
        return sums(request)

    with serving(answer) as server:
        argv = ["transform", server.url, "--input", data / "in/day", "--output", data / "out", *LINES]
        argv += ["--strategy", "SingleRecord"]
        job = subprocess.Popen([sys.executable, "-m", "trainbox", *map(str, argv)], stderr=subprocess.PIPE)
        eventually(lambda: len(server.requests) > 1, "the second request")
        job.send_signal(number)
        _, said = job.communicate(timeout=LIMIT)
        hold.set()
    assert (job.returncode, said) == (130, b"")
    assert not list((data / "out").iterdir())


# ---- invoke ----


def test_invoke_prints_the_answer_of_a_file_and_of_stdin(data: Path) -> None:
    with serving() as server:
        done = trainbox("invoke", data / "in/a.csv", "--url", server.url, "--accept", "text/csv")
        assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
        done = trainbox("invoke", "-", "--url", f"{server.url}/invocations", stdin=b"1,2\n3,4\n")
        assert (done.returncode, done.stdout) == (0, "3\n7\n")
    assert [request.content_type for request in server.requests] == ["text/csv", "text/csv"]
    assert [request.accept for request in server.requests] == ["text/csv", ""]


def test_invoke_marks_the_cell_that_is_refused(data: Path) -> None:
    body = b'{"error": "value \'abc\' of column 2 (\'age\') is not a number", "row": 3, "column": 2, "name": "age"}'
    (data / "bad.csv").write_text('id,age,x\n1,2,"3"\n"a,b",abc,5\n')
    with serving(lambda _: Reply(body, 400, "application/json")) as server:
        done = trainbox("invoke", data / "bad.csv", "--url", server.url)
    assert (done.returncode, done.stdout) == (7, "")
    assert done.stderr.splitlines() == [
        "trainbox: the endpoint answered 400: value 'abc' of column 2 ('age') is not a number",
        '  row 3, column 2 (age): "a,b",abc,5',
        "                               ^^^",
    ]


def test_invoke_needs_a_content_type_and_an_endpoint(data: Path) -> None:
    (data / "rows.txt").write_text("1\n")
    done = trainbox("invoke", data / "rows.txt")
    assert done.returncode == 10
    assert "content type of" in done.stderr
    assert trainbox("invoke", data / "none.csv").returncode == 10
    assert trainbox("invoke", data / "in/a.csv", "--url", "ftp://x").returncode == 10
