"""What a person sees: the hosts' lines, the live line, the summary, the dry run."""

import contextlib
import datetime as dt
import io
import os
import pty
import re
import select
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainbox.cli.screen.drawing import RichPen
from trainbox.cli.screen.live import Live, Screen
from trainbox.cli.screen.pens import ANY_WIDTH, Pen, find_pen
from trainbox.cli.screen.plain import PlainPen
from trainbox.cli.screen.remaining import Remaining
from trainbox.cli.screen.summary import docker_command, resume_command, sparkline, summarise
from trainbox.local.backends.isolation import Isolation
from trainbox.local.inputs.source import ChannelSource
from trainbox.local.metrics.curves import Curves
from trainbox.local.request import RunRequest
from trainbox.local.results.record import Clash, Curve, HostRecord, JobRecord, ModelRecord
from trainbox.local.source import Source

REQUEST = RunRequest(
    script="train.py",
    source=Source(Path("/my src"), ("train.py",), 10),
    channels={"train": ChannelSource(Path("/data/a.csv"), is_file=True)},
    hyperparameters={"note": "it's; $(x)", "api_token": "topsecret"},
    env={"DB_PASSWORD": "hunter2"},
    hosts=2,
    job_name="job",
    out=Path("/results/job"),
    isolation=Isolation(),
    started=dt.datetime(2026, 11, 5, tzinfo=dt.UTC),
)
RECORD = JobRecord(
    job_name="job",
    status="Completed",
    secondary_status="Completed",
    exit_code=0,
    attempt=1,
    started="",
    script="train.py",
    hosts=(HostRecord("algo-1", 0, "logs/algo-1.log"),),
    model=ModelRecord("model.tar.gz", 1_234_567, 2),
    metrics={
        "validation:auc": Curve((0, 1, 2), (0.5, 0.9, 0.8)),
        "train:logloss": Curve((0, 1, 2), (3.0, 1.0, 2.0)),
        "x": Curve((0, 1, 2), (3.0, 1.0, 2.0)),
    },
    final={"validation:auc": 0.9},
)


class Pipe:
    """A pipe to write into, and what came out of it."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def screen(self) -> Screen:
        return Screen(self.writer)

    def read(self) -> bytes:
        os.set_blocking(self.reader, False)
        try:
            return os.read(self.reader, 1 << 20)
        except BlockingIOError:
            return b""


class Terminal(io.TextIOWrapper):
    """Says that it is a terminal."""

    def isatty(self) -> bool:
        return True


class Shown(Screen):
    """A pipe that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def place(
    width: int = 0, *, encoding: str = "utf-8", pen: Callable[[TextIO, int], Pen] = RichPen, terminal: bool = True
) -> Pen:
    """Where a summary is shown: a pipe, or a terminal so many columns wide."""
    kind = Terminal if width and terminal else io.TextIOWrapper
    return pen(kind(io.BytesIO(), encoding=encoding, errors="replace"), width or ANY_WIDTH)


def live(
    out: Pipe | Screen,
    notes: Pipe,
    hosts: tuple[str, ...] = ("algo-1",),
    *,
    curves: Curves,
    terminal: int = 0,
    pen: Callable[[TextIO, int], Pen] = RichPen,
    remaining: Remaining | None = None,
) -> Live:
    """A live display on a pipe; `terminal` is the width of the terminal that it takes it for."""
    screen = (Shown if terminal else Screen)(out.descriptor if isinstance(out, Screen) else out.writer)
    drawing = pen(cast("TextIO", screen), terminal or ANY_WIDTH)
    return Live(hosts, curves, out=screen, notes=notes.screen(), pen=drawing, remaining=remaining)


@pytest.fixture(autouse=True, scope="module")
def ordinary_terminal() -> Iterator[None]:
    """Whatever this machine's own terminal and CI variables are."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            patch.delenv(name, raising=False)
        patch.setenv("TERM", "xterm")
        yield


@pytest.fixture
def out() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    os.close(pipe.reader)
    os.close(pipe.writer)


@pytest.fixture
def notes() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    os.close(pipe.reader)
    os.close(pipe.writer)


def test_one_hosts_lines_go_through_unchanged(out: Pipe, notes: Pipe) -> None:
    shown = live(out, notes, curves=Curves())
    shown.output("algo-1", b"10%\r20%\r\n\xff\x00 half a [bold]line[/bold] :smile:\n")
    shown.output("algo-1", b"rest")
    assert out.read() == b"10%\r20%\r\n\xff\x00 half a [bold]line[/bold] :smile:\nrest"
    shown.tick()
    shown.close()
    shown.close()
    assert out.read() == b"\n"


def test_with_several_hosts_each_line_says_whose_it_is(out: Pipe, notes: Pipe) -> None:
    shown = live(out, notes, ("algo-1", "algo-2"), curves=Curves())
    shown.output("algo-1", b"one\n[metrics] step=3 auc=0.5\n")
    shown.output("algo-2", b"two without an end")
    shown.output("algo-1", b"three")
    shown.close()
    assert out.read() == (
        b"algo-1 | one\nalgo-1 | [metrics] step=3 auc=0.5\nalgo-2 | two without an end\nalgo-1 | three\n"
    )


def test_on_a_terminal_a_line_without_an_end_is_ended(out: Pipe, notes: Pipe) -> None:
    for pen in (PlainPen, RichPen):
        shown = live(out, notes, curves=Curves(), terminal=80, pen=pen)
        shown.output("algo-1", b"rest")
        shown.close()
        assert out.read().count(b"rest\n") == 1


def test_a_million_lines_take_no_longer_than_the_job_itself(notes: Pipe) -> None:
    chunk = b"".join(b"epoch 3 batch %d loss 0.123\n" % number for number in range(10_000))
    for terminal in (0, 80):
        shown = live(Screen(os.open(os.devnull, os.O_WRONLY)), notes, curves=Curves(), terminal=terminal)
        started = time.process_time()
        for _ in range(100):
            shown.output("algo-1", chunk)
            shown.tick()
        assert time.process_time() - started < 5


LINE = b"\r\x1b[2K"
HIDE, SHOW = b"\x1b[?25l", b"\x1b[?25h"


def test_on_a_terminal_metrics_are_one_line_below_all_others(out: Pipe, notes: Pipe) -> None:
    shown = live(out, notes, curves=Curves(), terminal=80)
    shown.output("algo-1", b"loading\r 50%\r100%\n[metrics] step=7 auc=0.123456789\n")
    assert out.read() == b"100%\n"
    shown.tick()
    assert out.read() == HIDE + b"0:00  step 7  auc 0.123457"
    shown.output("algo-1", b"\x1b[32m[b]saved[/b]\x1b[0m\t:smile: \xff\n")
    assert out.read() == LINE + "\x1b[32m[b]saved[/b]\x1b[0m\t:smile: \ufffd\n".encode() + b"0:00  step 7  auc 0.123457"
    shown.close()
    assert out.read().endswith(SHOW + b"\r\x1b[1A\x1b[2K")


def test_the_line_says_how_long_the_rest_takes(out: Pipe, notes: Pipe) -> None:
    moments = iter([0.0, 30.0, 40.0])
    shown = live(out, notes, curves=Curves(), terminal=80, remaining=Remaining(10, clock=lambda: next(moments)))
    shown.output("algo-1", b"[metrics] step=0 auc=0.5\n[metrics] step=2 auc=0.75\n")
    shown.tick()
    assert out.read() == HIDE + b"0:00  step 2  ETA 1:35  auc 0.75"  # 7 of 15 s each, 10 s after the last


def test_a_terminal_without_rich_gets_whole_lines_that_it_does_not_obey(out: Pipe, notes: Pipe) -> None:
    shown = live(out, notes, curves=Curves(), terminal=80, pen=PlainPen)
    shown.output("algo-1", b"loading\r 50%\r100%\n[metrics] step=7 auc=0.5\n\x1b]0;title\x07\n")
    shown.tick()
    shown.close()
    assert out.read() == b"100%\n[metrics] step=7 auc=0.5\n\\x1b]0;title\\x07\n"


def test_what_trainbox_run_says_takes_the_line_away_first(out: Pipe, notes: Pipe) -> None:
    shown = live(out, notes, ("algo-1", "algo-2"), curves=Curves(), terminal=80)
    shown.tick()
    assert out.read() == HIDE + b"0:00  2 hosts"
    shown.note("stopping [b]now[/b]")
    assert notes.read() == b"trainbox run: stopping [b]now[/b]\n"
    assert out.read().endswith(b"\r\x1b[1A\x1b[2K")
    shown.close()
    assert out.read() == b""


def test_the_live_line_never_takes_two_lines(out: Pipe, notes: Pipe) -> None:
    shown = live(out, notes, curves=Curves(), terminal=20)
    shown.output("algo-1", b"[metrics] step=7 validation:auc=0.5 train:auc=0.25\n")
    shown.tick()
    assert out.read() == HIDE + b"0:00  step 7  valida"


def test_a_reader_that_leaves_is_said_once_and_the_job_goes_on(notes: Pipe) -> None:
    for terminal in (0, 80):
        gone = Pipe()
        os.close(gone.reader)
        shown = live(gone, notes, curves=Curves(), terminal=terminal)
        for _ in range(3):
            shown.output("algo-1", b"line\n")
            shown.tick()
        shown.close()
        os.close(gone.writer)
        assert notes.read().count(b"nobody reads the output") == 1


@pytest.mark.process
def test_a_pipe_that_does_not_block_loses_nothing() -> None:
    pipe = Pipe()
    os.set_blocking(pipe.writer, False)
    child = os.fork()
    if child == 0:
        total = 0
        while total < 3_000_000 and (chunk := os.read(pipe.reader, 65536)):
            total += len(chunk)
            time.sleep(0.001)
        os._exit(0 if total == 3_000_000 else 1)
    screen = pipe.screen()
    screen.write(b"x" * 3_000_000)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not screen.lost
    os.close(pipe.reader)
    os.close(pipe.writer)


@pytest.mark.process
@pytest.mark.parametrize(("term", "colour"), [("dumb", "1"), ("xterm", "")])
def test_a_terminal_that_cannot_redraw_gets_plain_lines(tmp_path: Path, term: str, colour: str) -> None:
    """And one that can gets a line that moves, from the verb itself."""
    (tmp_path / "t.py").write_text("import time\nprint('[metrics] step=1 auc=0.5')\ntime.sleep(0.3)\n")
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "trainbox", "run", "t.py", "--out", "out"]
    env = os.environ | {"TERM": term} | ({"FORCE_COLOR": colour} if colour else {})
    process = subprocess.Popen(command, cwd=tmp_path, stdin=follower, stdout=follower, stderr=follower, env=env)
    os.close(follower)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
        while select.select([leader], [], [], 30)[0] and (chunk := os.read(leader, 65536)):
            shown += chunk
    os.close(leader)
    assert process.wait(timeout=300) == 0
    assert (b"[metrics] step=1" in shown) == (term == "dumb")
    assert (b"\x1b" in shown) == (term != "dumb")


@pytest.mark.parametrize("colour", ["NO_COLOR", "FORCE_COLOR"])
def test_a_pipe_gets_colours_only_if_they_are_forced(colour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(colour, "1")
    text = summarise(REQUEST, RECORD, checkpoints=0, pen=place())
    assert ("\x1b[1;32mCompleted\x1b[0m" in text) == (colour == "FORCE_COLOR")


def test_the_summary_says_how_it_ended_and_where_everything_is() -> None:
    text = summarise(REQUEST, RECORD, checkpoints=3, pen=place())
    assert text.startswith("\njob: Completed, exit code 0\n\n")
    assert "validation:auc  0.5    0.8   0.9 (highest)  1     ▁█▆\n" in text
    assert "train:logloss   3      2     1 (lowest)     1     █▁▅\n" in text.replace("▄", "▅")
    assert "x               3      2     1 to 3               █▁▅\n" in text.replace("▄", "▅")
    assert "selected: validation:auc = 0.9" in text
    assert "/results/job/model.tar.gz (2 files, 1.2 MB)" in text
    assert "/results/job/checkpoints (3 entries)" in text
    assert "steps        0 to 2\n" in text
    assert "\x1b" not in text


def test_without_rich_the_summary_has_the_same_words() -> None:
    for record in (RECORD, msgspec.structs.replace(RECORD, status="Failed", failure_reason="why\n\x1b[31mred")):
        plain, rich = (summarise(REQUEST, record, checkpoints=3, pen=place(pen=pen)) for pen in (PlainPen, RichPen))
        assert plain == rich


@pytest.mark.parametrize("pen", [PlainPen, RichPen])
def test_in_a_pipe_a_table_is_as_wide_as_columns_says(pen: Callable[[TextIO, int], Pen]) -> None:
    heads, rows = ("NAME", "TYPE", "DESCRIPTION"), [("eta", "float", "one of many words " * 20), ("n", "int", "")]
    wide, narrow = (place(width, pen=pen, terminal=False).table(heads, rows) for width in (0, 60))
    assert len(wide) == 3
    assert max(map(len, narrow)) <= 60
    assert "".join(narrow).replace(" ", "") == "".join(wide).replace(" ", "")


def test_a_pen_for_a_pipe_heeds_columns_and_one_for_a_terminal_its_size() -> None:
    pipe = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    widths = {"": ANY_WIDTH, "72": 72, "0": ANY_WIDTH, "wide": ANY_WIDTH, "-5": ANY_WIDTH, "\u0664\u0662": ANY_WIDTH}
    assert {columns: find_pen(pipe, {"COLUMNS": columns}).width for columns in widths} == widths
    assert find_pen(pipe, {}).width == ANY_WIDTH


def test_the_summary_of_a_failure_shows_the_reason() -> None:
    failed = msgspec.structs.replace(
        RECORD,
        status="Failed",
        secondary_status="Failed",
        exit_code=7,
        failure_reason="AlgorithmError: [red]no[/red] :smile:\n\x1b[31mat once, exit code: 7",
        model=None,
        clashes=(Clash("m", "algo-1", ("m.algo-2",)),),
        attempt=2,
    )
    text = summarise(REQUEST, failed, checkpoints=0, pen=place())
    assert "Failed, exit code 7, attempt 2\n  AlgorithmError: [red]no[/red] :smile:\n  at once, exit code: 7\n" in text
    assert "hosts wrote different m: algo-1's kept, also m.algo-2" in text
    assert "the script left nothing" in text
    assert "--resume" not in text
    assert "--resume" in summarise(REQUEST, failed, checkpoints=1, pen=place())
    told = summarise(REQUEST, failed, checkpoints=0, pen=place(), is_told=True)
    assert "Failed, exit code 7, attempt 2 (FAILED, above, says why)\n" in told
    assert "AlgorithmError" not in told
    coloured = summarise(REQUEST, failed, checkpoints=0, pen=place(200))
    assert "\x1b[1;31mFailed\x1b[0m, exit code 7" in coloured
    assert "\x1b[31mat once, exit code: 7\x1b[0m\n" in coloured


def test_a_job_without_metrics_or_checkpoints_says_less() -> None:
    text = summarise(REQUEST, msgspec.structs.replace(RECORD, metrics={}, final={}), checkpoints=0, pen=place())
    assert "first" not in text
    assert "steps" not in text
    assert "--resume" not in text


def test_bars_are_drawn_with_what_the_place_can_show() -> None:
    text = summarise(REQUEST, RECORD, checkpoints=0, pen=place(encoding="ascii"))
    assert text.isascii()
    assert "_#*" in text


@pytest.mark.parametrize("width", [20, 40, 80])
def test_on_a_narrow_terminal_the_table_fits_and_commands_stay_whole(width: int) -> None:
    curve = Curve(tuple(range(100)), tuple(float(number) for number in range(100)))
    record = msgspec.structs.replace(RECORD, metrics={"validation:auc": curve}, final={})
    request = msgspec.structs.replace(REQUEST, hyperparameters={"note": "[bold] :smile:\t" + "x" * 200})
    head, _, facts = summarise(request, record, checkpoints=1, pen=place(width)).partition("\nmodel ")
    assert max(map(len, head.splitlines()[3:])) <= width
    assert ("█" in head) == (width == 80)
    assert shlex.join(resume_command(request)) + "\n" in facts
    assert shlex.join(docker_command(request)) + "\n" in facts


#: Anything a script can name or say, but for control characters; all of one column's width.
WORDS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1).map(lambda text: f":smile:[b]{text}")


@given(rows=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5), width=st.sampled_from([0, 10, 80]))
def test_a_table_shows_every_character_of_its_cells(rows: list[tuple[str, str]], width: int) -> None:
    text = "".join(f"{line}\n" for line in place(width).table(("A", "B"), rows))
    if width:
        assert sorted(re.sub(r"\s", "", text)) == sorted("AB" + "".join("".join(row) for row in rows))
    else:
        assert [tuple(line.split()) for line in text.splitlines()] == [("A", "B"), *rows]
    assert not [line for line in text.splitlines() if line.endswith(" ")]


@pytest.mark.parametrize(
    ("values", "bars"),
    [
        ((1.0,), "▁"),
        ((1.0, 1.0, 1.0), "▁▁▁"),
        ((0.0, 1.0), "▁█"),
        (tuple(float(n) for n in range(1000)), None),
        ((-1e308, 1e308), None),
    ],
)
def test_a_sparkline_has_a_bar_for_each_stretch(values: tuple[float, ...], bars: str | None) -> None:
    line = sparkline(Curve(tuple(range(len(values))), values))
    assert len(line) == min(len(values), 30)
    assert bars is None or line == bars


def test_commands_to_go_on_are_whole_and_hold_no_secret() -> None:
    resume, docker = resume_command(REQUEST), docker_command(REQUEST)
    assert resume[:3] == docker[:3] == ["trainbox", "run", "/my src/train.py"]
    assert resume[-3:] == ["--out", "/results/job", "--resume"]
    assert docker[-3:] == ["--docker", "--out", "/results/job-docker"]
    for command in (resume, docker):
        assert command[command.index("--hp") + 1] == "note=it's; $(x)"
        assert "--hosts" in command
        assert shlex.split(shlex.join(command)) == command
        assert not {"topsecret", "hunter2"} & {word for part in command for word in part.split("=")}
        assert "api_token=***" in command
        assert "DB_PASSWORD=***" in command


def test_a_bundled_script_and_a_nested_one_are_named_as_they_were() -> None:
    bundled = msgspec.structs.replace(REQUEST, source=None, script="xgboost_train", channels={})
    assert resume_command(bundled)[2] == "xgboost_train"
    nested = msgspec.structs.replace(REQUEST, script="pkg/train.py")
    assert resume_command(nested)[2:5] == ["/my src/pkg/train.py", "--source-dir", "/my src"]


def test_the_commands_name_the_module_and_end_with_the_arguments_as_they_were_given() -> None:
    raw = ("--x", "a b", "--api-token", "tok-1234")
    source = Source(Path("/my src"), ("pkg/train.py",), 10)
    request = msgspec.structs.replace(
        REQUEST, script="pkg/train.py", module="pkg.train", raw_arguments=raw, source=source
    )
    for command in (resume_command(request), docker_command(request)):
        assert command[-5:] == ["--", "--x", "a b", "--api-token", "***"]
        start = command.index("-m")
        assert command[start : start + 4] == ["-m", "pkg.train", "--source-dir", "/my src"]
