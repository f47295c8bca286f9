"""A file name that is not UTF-8 is shown escaped in every place where a message goes; nothing ends for its sake."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainbox.contract.failures.diagnosis import Diagnosis
from trainbox.contract.failures.failure import compose, write_failure
from trainbox.contract.text import printable

NAME = os.fsdecode(b"a\xff.csv")


def test_text_that_can_be_written_stays_as_it_is() -> None:
    assert printable("päth\n\x1b[0m🙂") == "päth\n\x1b[0m🙂"
    assert printable(NAME) == "a\\udcff.csv"
    assert printable("\ud800") == "\\ud800"


def test_the_failure_file_shows_the_name(tmp_path: Path) -> None:
    text = compose(Diagnosis("client", f"no row in {NAME}", 7, where=NAME, hint=NAME))
    assert write_failure(tmp_path / "failure", text)
    content = (tmp_path / "failure").read_bytes().decode()
    assert content == "no row in a\\udcff.csv\nat a\\udcff.csv\nhint: a\\udcff.csv"


def test_a_cause_of_such_names_alone_is_no_longer_than_any_other(tmp_path: Path) -> None:
    text = compose(Diagnosis("client", "\udcff" * 2000, 7, hint="x"))
    assert len(text) <= 980
    assert text.endswith("hint: x")
    assert write_failure(tmp_path / "failure", text)


@pytest.mark.process
def test_a_rank_says_its_own_error_and_not_one_of_the_name(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(f"raise ValueError({NAME!r})")
    run = (
        "from trainbox.launcher.ranks.program import ERROR_FILE_VARIABLE, STACKS_FILE_VARIABLE, run\n"
        "run({ERROR_FILE_VARIABLE: 'error.json', STACKS_FILE_VARIABLE: 'stacks'}, ['train.py'])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", run], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert answer.returncode == 1
    assert answer.stderr.rstrip().endswith("ValueError: a\\udcff.csv")
    assert "UnicodeEncodeError" not in answer.stderr
    told = json.loads((tmp_path / "error.json").read_text())
    assert told["message"]["message"] == "ValueError: a\\udcff.csv"
    assert "a\\udcff.csv" in told["message"]["extraInfo"]["py_callstack"]
