"""Why a process failed: the last traceback, the user's own line, and a hint where many people meet it."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.failing import stderr_of
from trainbox.diagnostics.cause import Cause, find_cause
from trainbox.diagnostics.hints import find_hint

CODE = Path("/opt/ml/code")
TRACEBACK = "Traceback (most recent call last):"


SCRIPTS = {
    "the last traceback wins over one that was handled": (
        """
        import logging
        try:
            {}["early"]
        except KeyError:
            logging.exception("handled: ignoring a KeyError")
        def main():
            raise ValueError("the real one")
        main()
        """,
        Cause("ValueError: the real one", "train.py:8 in main", "ValueError"),
    ),
    "of chained exceptions the last, which ended the script": (
        """
        try:
            int("x")
        except ValueError as error:
            raise RuntimeError("cannot start") from error
        """,
        Cause("RuntimeError: cannot start", "train.py:5", "RuntimeError"),
    ),
    "an exception raised while another was handled": (
        """
        try:
            int("x")
        except ValueError:
            {}["second"]
        """,
        Cause("KeyError: 'second'", "train.py:5", "KeyError"),
    ),
    "the user's own line, not that of the library it calls": (
        """
        import json
        def load(text):
            return json.loads(text)
        load("{")
        """,
        Cause(
            "json.decoder.JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
            "train.py:4 in load",
            "json.decoder.JSONDecodeError",
        ),
    ),
    "a syntax error in the script itself": (
        "x = (\n",
        Cause("SyntaxError: '(' was never closed", "train.py:1", "SyntaxError"),
    ),
    "an indentation error": (
        "if True:\nx = 1\n",
        Cause(
            "IndentationError: expected an indented block after 'if' statement on line 1",
            "train.py:2",
            "IndentationError",
        ),
    ),
    "a message of several lines": (
        'raise ValueError("one\\ntwo\\nthree")',
        Cause("ValueError: one\ntwo\nthree", "train.py:1", "ValueError"),
    ),
    "a deep recursion": (
        """
        def f():
            return f()
        f()
        """,
        Cause("RecursionError: maximum recursion depth exceeded", "train.py:3 in f", "RecursionError"),
    ),
    "an exception without a message": ("raise SystemError", Cause("SystemError", "train.py:1", "SystemError")),
    "an exception of the user's own, with a dotted name": (
        "class NoRows(Exception):\n    __module__ = 'my.data'\nraise NoRows('none left')",
        Cause("my.data.NoRows: none left", "train.py:3", "my.data.NoRows"),
    ),
    "an exception group: its members count": (
        """
        def fail():
            raise ValueError("one")
        errors = [KeyError("never raised")]
        try:
            fail()
        except ValueError as error:
            errors.insert(0, error)
        raise ExceptionGroup("many", errors)
        """,
        Cause(
            "ExceptionGroup: many (2 sub-exceptions): ValueError: one; KeyError: 'never raised'",
            "train.py:3 in fail",
            "ValueError",
        ),
    ),
    "a group in a group": (
        'raise ExceptionGroup("outer", [ExceptionGroup("inner", [ValueError("one")]), TypeError("two")])',
        Cause(
            "ExceptionGroup: outer (2 sub-exceptions): ExceptionGroup: inner (1 sub-exception); ValueError: one; "
            "TypeError: two",
            "train.py:1",
            "ExceptionGroup",
        ),
    ),
    "an exception that was only ignored at exit": (
        """
        class Leaves:
            def __del__(self):
                raise TypeError("nobody minds")
        kept = Leaves()
        raise ValueError("the real one")
        """,
        Cause("ValueError: the real one", "train.py:6", "ValueError"),
    ),
    "an open line of a progress bar before the traceback": (
        """
        import sys
        sys.stderr.write("  0%| | 0/9\\r 50%|#####     | 5/9 [00:01<00:01, 5.00it/s]")
        raise ValueError("behind the bar")
        """,
        Cause("ValueError: behind the bar", "train.py:4", "ValueError"),
    ),
    "a message with control characters": (
        'raise ValueError("a\\x00b\\x1b[31mred\\x1b[0m")',
        Cause("ValueError: a\ufffdbred", "train.py:1", "ValueError"),
    ),
    "what a script says last after a traceback it survived": (
        """
        import sys, traceback
        try:
            {}["early"]
        except KeyError:
            traceback.print_exc()
        for step in range(50):
            print("step", step, file=sys.stderr)
        sys.exit("no rows in channel train")
        """,
        Cause(
            "KeyError: 'early'\nand last: no rows in channel train",
            "train.py:4",
            "KeyError",
        ),
    ),
    "warnings below the message, as of joblib's resource tracker": (
        """
        import atexit, warnings
        atexit.register(lambda: warnings.warn("there appear to be 2 leaked objects"))
        raise ValueError("bad row\\nof two lines")
        """,
        Cause("ValueError: bad row\nof two lines", "train.py:4", "ValueError"),
    ),
    "the last words where there is no traceback": (
        'import sys; print("starting", file=sys.stderr); sys.exit("no rows\\n\\n")',
        Cause("no rows\nbefore it: starting"),
    ),
    "an error that is not the last line, as R and many shell scripts have it": (
        """
        import sys
        sys.exit("loading\\nError in fit(x) : rows differ\\nCalls: main -> fit\\nExecution halted")
        """,
        Cause("Error in fit(x) : rows differ\nCalls: main -> fit\nExecution halted"),
    ),
}


@pytest.mark.process
@pytest.mark.parametrize(("script", "cause"), SCRIPTS.values(), ids=SCRIPTS.keys())
def test_the_cause_is_found_in_what_python_says(tmp_path: Path, script: str, cause: Cause) -> None:
    log = stderr_of(tmp_path, script)
    assert find_cause(log, tmp_path) == cause
    assert find_cause(log.replace("\n", "\r\n"), tmp_path) == cause


@pytest.mark.process
@pytest.mark.parametrize("name", ["the last traceback wins over one that was handled", "a message of several lines"])
def test_a_rank_before_each_line_is_left_out(tmp_path: Path, name: str) -> None:
    script, cause = SCRIPTS[name]
    log = "".join(f"[rank0]: {line}\n" for line in stderr_of(tmp_path, script).splitlines())
    assert find_cause("step 1\n" + log, tmp_path) == cause


@pytest.mark.process
def test_a_syntax_error_in_an_imported_module_names_that_module(tmp_path: Path) -> None:
    log = stderr_of(tmp_path, "import other", other="def f(:\n    pass\n")
    assert find_cause(log, tmp_path) == Cause("SyntaxError: invalid syntax", "other.py:1", "SyntaxError")


@pytest.mark.process
def test_a_traceback_whose_head_is_lost_still_has_its_place(tmp_path: Path) -> None:
    log = stderr_of(
        tmp_path,
        """
        import sys
        sys.setrecursionlimit(3000)
        def even(n): return odd(n - 1)
        def odd(n): return even(n - 1)
        even(0)
        """,
    )
    assert len(log) > 100_000
    cause = find_cause(log[-65536:], tmp_path)
    assert cause is not None
    assert cause.text == "RecursionError: maximum recursion depth exceeded"
    assert cause.where.startswith("train.py:")


@pytest.mark.process
def test_a_crash_is_placed_in_the_thread_that_crashed(tmp_path: Path) -> None:
    log = stderr_of(
        tmp_path,
        """
        import os, threading
        def idle(): threading.Event().wait()
        threading.Thread(target=idle, daemon=True).start()
        def native(): os.abort()
        native()
        """,
        code=-6,
    )
    assert find_cause(log, tmp_path) == Cause("Fatal Python error: Aborted", "train.py:5 in native", "")


def test_lines_of_another_thread_between_the_frames_do_not_hide_the_message() -> None:
    log = (
        "Traceback (most recent call last):\n"
        '  File "/opt/ml/code/train.py", line 9, in <module>\n'
        "epoch 3: loss 0.5\n"
        "    main()\n"
        '  File "/opt/ml/code/train.py", line 7, in main\n'
        "    fail()\n"
        "ValueError: real\n"
    )
    assert find_cause(log, CODE) == Cause("ValueError: real", "train.py:7 in main", "ValueError")


def test_colours_are_left_out() -> None:
    log = (
        "\x1b[31mTraceback (most recent call last):\x1b[0m\n"
        '  File \x1b[35m"/opt/ml/code/train.py"\x1b[0m, line \x1b[35m7\x1b[0m, in \x1b[35mmain\x1b[0m\n'
        "\x1b[1;35mValueError\x1b[0m: real\n"
    )
    assert find_cause(log, CODE) == Cause("ValueError: real", "train.py:7 in main", "ValueError")


@pytest.mark.parametrize("log", ["", "\n\n \n", "\r\r"])
def test_a_log_without_words_has_no_cause(log: str) -> None:
    assert find_cause(log, CODE) is None


_PIECES = [*"aE: |+-\r\n\x00", '  File "/x/y.py", line 3, in f\n', "SyntaxError: x\n", "Fatal Python error: y\n"]


@given(st.lists(st.sampled_from(_PIECES)).map("".join) | st.text())
def test_no_log_is_too_strange_to_be_read(log: str) -> None:
    for text in (log, f"Traceback (most recent call last):\n{log}", f"  + Exception Group {TRACEBACK}\n  | {log}"):
        cause = find_cause(text, CODE)
        assert cause is None or cause.text


@pytest.mark.parametrize(
    ("cause", "hint"),
    [
        (Cause("KeyError: 'SM_CHANNEL_TEST'", exception="KeyError"), "its channels: train, validation"),
        (Cause(f"OSError: [Errno 28] {os.strerror(28)}: 'm'", exception="OSError"), "the disk is full"),
        (Cause("ModuleNotFoundError: No module named 'x'", exception="ModuleNotFoundError"), "requirements.txt"),
        (Cause("torch.AcceleratorError: CUDA error: out of memory", exception="torch.AcceleratorError"), "nvidia-smi"),
        (Cause("XGBoostError: std::bad_alloc: cudaErrorMemoryAllocation: out of memory"), "nvidia-smi"),
        (Cause("ValueError: x", exception="ValueError"), ""),
    ],
)
def test_what_many_people_meet_has_a_hint(cause: Cause, hint: str) -> None:
    found = find_hint(cause, ["train", "validation"])
    assert hint in found
    assert bool(found) == bool(hint)
