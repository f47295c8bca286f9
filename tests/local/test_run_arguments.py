"""`trainbox run` hands a program its arguments in the style that it reads, without a shell on the way."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

#: The module says how it was started, and Python what it was called with.
SCRIPT = "import json, sys; print('ARGUMENTS', json.dumps([__name__, __package__, *sys.argv[1:]]))\n"
HOSTILE = 'it\'s "so"; $(touch made) `touch made` \\ \n{a,b}'
TRAINBOX = str(Path(sys.executable).with_name("trainbox"))


def given(here: Path, *command: str) -> list[str]:
    answer = subprocess.run(
        [TRAINBOX, "run", *command], cwd=here, capture_output=True, text=True, check=False, timeout=300
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    log = (here / "result" / "logs" / "algo-1.log").read_text()
    (line,) = (line for line in log.splitlines() if line.startswith("ARGUMENTS "))
    assert not list(here.rglob("made"))
    found: list[str] = json.loads(line.removeprefix("ARGUMENTS "))
    return found


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("flags", ["--lr", "0.1", "--amp", "--note", HOSTILE]),
        ("equals", ["--lr=0.1", "--amp=True", "--off=False", f"--note={HOSTILE}"]),
        ("hydra", ["lr=0.1", "amp=true", "off=false", "note='" + HOSTILE.replace("'", "\\'") + "'"]),
    ],
)
def test_a_module_gets_hyperparameters_in_its_style_and_then_what_stands_behind_the_dashes(
    tmp_path: Path, style: str, expected: Sequence[str]
) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "train.py").write_text("from pkg import other\n" + SCRIPT)
    (tmp_path / "pkg" / "other.py").write_text("")
    pairs = ["lr=0.1", "amp=true", "off=false", f"note={HOSTILE}", f"trainbox_arguments={style}"]
    flags = [word for pair in pairs for word in ("--hp", pair)]
    raw = ["config/a.py", "--", "--hp", HOSTILE, ""]
    found = given(tmp_path, "-m", "pkg.train", "--out", "result", *flags, "--", *raw)
    assert found == ["__main__", "pkg", *expected, *raw]


def test_a_script_gets_what_stands_behind_the_dashes(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    assert given(tmp_path, "train.py", "--out", "result", "--", "-m", "x")[2:] == ["-m", "x"]


def test_the_plan_that_is_only_printed_names_the_module_and_hides_secrets(tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "train.py").write_text(SCRIPT)
    command = [TRAINBOX, "run", "-m", "pkg.train", "--dry-run", "--", "--api-token", "tok-1234", "a b"]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert answer.returncode == 0, answer.stderr
    assert "-m pkg.train --api-token *** 'a b'" in answer.stdout
    assert "tok-1234" not in answer.stdout
