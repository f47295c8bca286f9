"""Whatever a script writes last, its reason is found in time that grows with its length and no faster."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from trainbox.contract.credentials.secrets import is_secret, secrets_of_urls, without_secrets
from trainbox.contract.params.values import _NUMBER as PARAM_NUMBER  # the expression is what is tested
from trainbox.diagnostics.cause import Cause, find_cause
from trainbox.diagnostics.hints import find_hint
from trainbox.diagnostics.verdict import RankFailure
from trainbox.health.host import _TORCH_CUDA as TORCH_CUDA  # as above
from trainbox.launcher.attribution import is_consequence
from trainbox.metrics import Metric, check, parse_line
from trainbox.supervisor.outcome import Exit, Outcome
from trainbox.supervisor.program.choice import _BUILD_TABLE as BUILD_TABLE  # as above
from trainbox.supervisor.requirements import _PIP_ERROR as PIP_ERROR  # as above
from trainbox.supervisor.requirements import _words  # as above

CODE = Path("/opt/ml/code")
MIB = 2**20
HEADER = "Traceback (most recent call last):"
#: Of a processor, in seconds: what a neighbour or the clock may add to anything.
MOMENT = 0.05
FRAME = '  File "/opt/ml/code/train.py", line 3, in main'

# What is repeated, in one line or in many.
PIECES = {
    "punctuation": "!?-",
    "NULs": "\0",
    "colour": "\x1b[",
    "colour with a number": "\x1b[31",
    "blanks": " ",
    "tabs and blanks": "\t ",
    "words with a colon": "a:",
    "words with a colon and a blank": "a: ",
    "punctuation with a colon and a blank": "-: ",
    "colons": ":",
    "an error word": "error",
    "vertical bars": "|",
    "vertical bars and blanks": "| ",
    "a border": "+-",
    "a border and blanks": "+ ",
    "a numbered border": "+ 1 -",
    "digits": "7",
    "letters": "x",
    "the head of a traceback": HEADER,
    "the head of a group": f"+ Exception Group {HEADER}",
    "a member of a group": f"| {HEADER}",
    "a frame": FRAME,
    "a frame without end": '  File "',
    "an ignored exception": f"Exception ignored in: {HEADER}",
    "a fatal error": "Fatal Python error: ",
    "a syntax error": "SyntaxError: ",
    "a metric line": "[metrics] step=1 a=1",
    "metrics": " loss=1.0",
    "a name of a metric": " loss=",
    "words of a lost connection": "connection ",
    "words of a lost connection, half of them": "connect timed ",
    "URLs": "://a:b",
    "URLs of long passwords": "://a:" + "b" * 50,
    "parameters of URLs": "?token=a",
    "the words of a chain": "The above exception was the direct cause of the following exception:",
    "a quoted traceback": f'"""\n\nThe above exception was the direct cause of the following exception:\n\n{HEADER}',
    "a traceback within a message": f"Original {HEADER}",
    "the end of a worker": "DataLoader worker (pid(s) 1, 2) exited unexpectedly",
    "the end of a worker, half of it": "DataLoader worker (pid(s) 1, ",
    "a missing library": "lib.so: cannot open shared object file",
    "a missing module": "No module named 'a.b",
    "a symbol": "undefined symbol: _ZN3c10",
    "lines of a compiler": "a.c:1:2: error: ",
    "a warning": "a.py:1: UserWarning: ",
    "a warning, half of it": ":1: User",
    "a failed build": "ERROR: Failed building wheel for x",
    "half a surrogate pair": "\udcff",
}


def grows_no_faster(work: Callable[[str], object], piece: str, size: int = MIB // 8) -> None:
    """Do the work for a quarter of the text, and for all of it: four times as much, not sixteen times."""
    short, long = (piece * (length // len(piece)) for length in (size // 4, size))
    whole = processor_time(work, long)
    if whole <= MOMENT:
        return  # whatever a quarter takes, all of it is within the limit below
    # The least of several: the collector of garbage, or a neighbour on the processor, may come into any of them.
    quarter = min(processor_time(work, short) for _ in range(2))
    limit = 9 * quarter + MOMENT
    for _ in range(3):
        whole = min(whole, processor_time(work, long)) if whole > limit else whole
    assert whole <= limit, f"{quarter:.3f} s for a quarter, more than {limit:.3f} s for all"


def processor_time(work: Callable[[str], object], text: str) -> float:
    start = time.process_time()
    work(text)
    return time.process_time() - start


def failed(text: str) -> Outcome:
    exits = (Exit("pip", 1, 0, stderr=text, stdout=text, hung=""),)
    return Outcome(exits, 0, False, 0, None, 0, 1.0)


def failure(text: str) -> RankFailure:
    return RankFailure(0, "algo-1", code=1, signal=0, cause=Cause(text), family=("builtins.RuntimeError",))


@pytest.mark.parametrize("piece", PIECES.values(), ids=PIECES.keys())
def test_the_reason_is_found_in_linear_time_in_one_line_of_anything(piece: str) -> None:
    grows_no_faster(lambda text: find_cause(text, CODE), piece, MIB)
    grows_no_faster(lambda text: find_cause(f"{text}x", CODE), piece)
    grows_no_faster(lambda text: find_cause(f"{HEADER}\n{FRAME}\n{text}\nend", CODE), piece)
    grows_no_faster(lambda text: find_cause(f"{FRAME}{text}\nValueError: {text}", CODE), piece)


@pytest.mark.parametrize("piece", PIECES.values(), ids=PIECES.keys())
def test_the_reason_is_found_in_linear_time_in_many_lines_of_anything(piece: str) -> None:
    grows_no_faster(lambda text: find_cause(text, CODE), f"{piece}\n", MIB // 16)
    grows_no_faster(lambda text: find_cause(f"+ Exception Group {HEADER}\n{text}", CODE), f"{piece}\n", MIB // 16)
    grows_no_faster(lambda text: find_cause(f"{HEADER}\n{text}", CODE), f"{piece}\n", MIB // 16)


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_empty_lines_are_passed_over_in_linear_time(end: str) -> None:
    grows_no_faster(lambda text: find_cause(text, CODE), end)
    grows_no_faster(lambda text: find_cause(f"{FRAME}\n{text}end", CODE), end)


@pytest.mark.parametrize("piece", [*PIECES.values(), "\n", "cuda\n", "A", "Ab"])
def test_what_else_looks_at_output_takes_linear_time(piece: str) -> None:
    metric = Metric("loss", "minimize")
    grows_no_faster(PIP_ERROR.findall, piece)
    grows_no_faster(lambda text: _words(failed(text), CODE), piece)
    for kind in ("ModuleNotFoundError", "OSError"):
        grows_no_faster(lambda text: find_hint(Cause(text, exception=kind), []), piece)  # noqa: B023 - called at once
    grows_no_faster(BUILD_TABLE.search, piece)
    grows_no_faster(TORCH_CUDA.search, piece)
    grows_no_faster(PARAM_NUMBER.fullmatch, piece)
    grows_no_faster(is_secret, piece)
    grows_no_faster(lambda text: list(secrets_of_urls(text)), piece)
    grows_no_faster(lambda text: without_secrets(text, ("hunter2", "!?-", "\0\0")), piece)
    grows_no_faster(lambda text: parse_line(f"[metrics] step=1 {text}"), piece)
    grows_no_faster(lambda text: check([metric], [f"[metrics] step=1 {text}"]), piece)
    grows_no_faster(lambda text: find_hint(Cause(text), ["train"]), piece)
    grows_no_faster(lambda text: is_consequence(failure(text)), piece)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("error: no rows", True),
        ("Error in fit(x) : rows differ", True),
        ("  ** FATAL ** no rows", True),
        ("main.c:3:1: error: no rows", True),
        ("--> main.c:3: error: no rows", True),
        ("[-] :: panic: no rows", True),
        (">>> : error", True),
        ("thread 'main': panicked", False),
        ("it is an error", False),
        ("errors: 3", False),
        ("a: b: error", False),
        (": error", True),
    ],
)
def test_a_line_with_an_error_is_told_from_others(line: str, found: bool) -> None:
    before = re.compile(r"^\W*(?:\S+:\s+)?(?:error|fatal|panic|exception)\b", re.IGNORECASE)
    assert bool(before.match(line)) == found  # the expression of before, which took the square of the length
    cause = find_cause(f"loading\n{line}\nend", CODE)
    assert cause is not None
    assert cause.text.startswith(line.strip()) == found


@pytest.mark.parametrize(
    ("cause", "hint"),
    [
        (Cause("RuntimeError: can't start new thread", exception="RuntimeError"), "raise the limit"),
        (Cause("what():  Resource temporarily unavailable"), "raise the limit"),
        (Cause("BlockingIOError: [Errno 11] Resource temporarily unavailable", exception="BlockingIOError"), ""),
        (Cause("what():  std::bad_alloc"), "a larger one"),
        (Cause("ValueOrDie called on an error: Out of memory: malloc of size 1048576 failed"), "a larger one"),
        (Cause("cannot allocate memory for thread-local data: ABORT"), "a larger one"),
        (Cause("pyarrow.lib.ArrowMemoryError: x", exception="pyarrow.lib.ArrowMemoryError"), "a larger one"),
        (Cause("trainbox.errors.ResourceError: bad_alloc", exception="trainbox.errors.ResourceError"), ""),
    ],
)
def test_what_is_lacking_has_a_hint(cause: Cause, hint: str) -> None:
    found = find_hint(cause, [])
    assert hint in found
    assert bool(found) == bool(hint)
