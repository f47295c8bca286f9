"""Shell completion: made from the parsers, and tried in a real bash."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.waiting import LIMIT
from trainbox import cli
from trainbox.cli.completion import SHELLS, read_verb

SCRIPTS = ["pytorch", "random_forest", "xgboost"]


def script(shell: str) -> str:
    verbs = [read_verb(name, summary, parser) for name, (summary, parser) in cli._parsers().items()]
    return SHELLS[shell](verbs)


def test_every_verb_and_every_flag_is_in_the_script_of_each_shell() -> None:
    for shell in SHELLS:
        text = script(shell)
        for name, (_, parser) in cli._parsers().items():
            assert re.search(rf"\b{name}\b", text)
            for action in parser._actions:
                for flag in action.option_strings:
                    assert (flag if shell != "fish" else flag.lstrip("-")) in text, (shell, name, flag)


def complete(here: Path, *words: str) -> list[str]:
    """What bash offers for the last of some words, split as readline does it."""
    code = 'source ./completion; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _trainbox; printf "%s\\n" "${COMPREPLY[@]}"'
    argv = ["bash", "--norc", "--noprofile", "-c", code, "bash", "trainbox", *words]
    answer = subprocess.run(argv, cwd=here, capture_output=True, text=True, check=True, timeout=LIMIT)
    assert answer.stderr == ""
    return sorted(filter(None, answer.stdout.split("\n")))


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "completion").write_text(script("bash"))
    (tmp_path / "my script.py").touch()
    return tmp_path


@pytest.mark.process
def test_bash_completes_verbs_flags_choices_and_scripts(here: Path) -> None:
    assert complete(here, "") == sorted([*cli.VERBS, "--help", "--version"])
    assert complete(here, "de") == ["describe"]
    assert complete(here, "run", "--ch") == ["--channel"]
    assert {"--overwrite", "--resume", "--docker"} <= {*complete(here, "run", "train.py", "--")}
    assert complete(here, "run", "t.py", "--preflight", "") == ["fast", "full", "off"]
    assert complete(here, "run", "t.py", "--preflight", "=", "fu") == ["full"]
    assert complete(here, "run", "t.py", "--preflight", "=") == ["fast", "full", "off"]
    assert complete(here, "describe", "") == sorted([*SCRIPTS, "completion", "my script.py"])
    assert complete(here, "describe", "xg") == ["xgboost"]
    assert complete(here, "completion", "z") == ["zsh"]
    assert complete(here, "transform", "model", "--join", "") == ["Input", "None"]
    assert complete(here, "serve", "my") == []
    # For a path bash has its own way, where nothing is offered; so it has for what is the script's.
    assert complete(here, "run", "t.py", "--channel", "train", "=", "da") == []
    assert complete(here, "run", "t.py", "--out", "") == []
    assert complete(here, "run", "t.py", "--", "--ch") == []


@pytest.mark.process
def test_a_person_presses_tab(here: Path) -> None:
    (here / "data").mkdir()
    leader, follower = pty.openpty()
    env = {"PATH": os.environ["PATH"], "TERM": "dumb", "PS1": "$ ", "HOME": str(here), "INPUTRC": "/dev/null"}
    bash = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"],
        cwd=here,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=env,
        start_new_session=True,
    )
    os.close(follower)
    try:
        os.write(leader, b"source ./completion; trainbox() { printf '<%s>' \"$@\"; echo; }\n")
        os.write(leader, b"trainbox des\txgb\t\n")
        assert b"<describe><xgboost>" in read_until(leader, b"<xgboost>")
        os.write(leader, b"trainbox run my\t --overw\t --channel train=da\t\n")
        assert b"<run><my script.py><--overwrite><--channel><train=data/>" in read_until(leader, b"data/>")
    finally:
        bash.kill()
        bash.wait()
        os.close(leader)


def read_until(terminal: int, wanted: bytes) -> bytes:
    shown = b""
    while wanted not in shown and select.select([terminal], [], [], LIMIT)[0]:
        shown += os.read(terminal, 65536)
    return shown


@pytest.mark.process
def test_the_verb_prints_the_script(tmp_path: Path) -> None:
    for shell in SHELLS:
        argv = [sys.executable, "-m", "trainbox", "completion", shell]
        printed = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=LIMIT).stdout
        assert printed == script(shell)
        if shutil.which(shell):
            (tmp_path / shell).write_text(printed)
            subprocess.run([shell, "-n", tmp_path / shell], check=True, timeout=LIMIT)
