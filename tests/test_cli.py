"""The command `trainbox`: its verbs are listed, each loads only its own room, and errors are lines and exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest

from trainbox.cli import VERBS, find_unknown

pytestmark = pytest.mark.process


def trainbox(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trainbox", *arguments], capture_output=True, text=True, check=False, timeout=300
    )


def test_help_lists_every_verb_with_its_summary() -> None:
    answer = trainbox("--help")
    assert answer.returncode == 0
    for name, (_, summary) in VERBS.items():
        assert name in answer.stdout
        assert summary[:40] in answer.stdout


def test_without_a_verb_it_shows_help_and_fails() -> None:
    answer = trainbox()
    assert answer.returncode == 2
    assert "describe" in answer.stdout


def test_an_unknown_verb_fails_with_the_choices() -> None:
    answer = trainbox("rnu", "xgboost")
    assert answer.returncode == 2
    assert answer.stderr == (
        "trainbox: there is no verb 'rnu' - did you mean 'run'?\n"
        "  hint: the verbs: run, tune, serve, invoke, transform, describe, metrics, health, completion, train; a"
        " script: trainbox run rnu\n"
    )


@pytest.mark.parametrize("arguments", [("xgboost", "--chanel", "train=x"), ("--chanel", "train=x", "xgboost")])
def test_an_unknown_flag_is_named_and_nothing_else(arguments: tuple[str, ...]) -> None:
    answer = trainbox("run", *arguments)
    assert answer.returncode == 2
    assert answer.stderr == (
        "trainbox: trainbox run has no flag --chanel - did you mean '--channel'?\n"
        "  hint: trainbox run --help lists them\n"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], ""),
        (["--version"], ""),
        (["-h"], ""),
        (["--verison"], "trainbox has no flag --verison - did you mean '--version'?"),
        (["run", "x.py", "--channel=train=--x", "--hp", "a=--b"], ""),
        (["run", "x.py", "--chan", "train=x"], ""),
        (["run", "x.py", "--chanel=train=x", "--hpp", "a=b"], "--chanel - did you mean '--channel'?\ntrainbox run has"),
        (["run", "x.py", "--nothing-like-it"], "trainbox run has no flag --nothing-like-it\n"),
        (["xgboost"], "there is no verb 'xgboost'\n"),
        (["halth"], "there is no verb 'halth' - did you mean 'health'?"),
    ],
)
def test_what_is_not_known_is_told_by_its_name(arguments: list[str], said: str) -> None:
    flags = ["-h", "--help", *(["--channel", "--hp", "--hosts"] if arguments[:1] == ["run"] else ["--version"])]
    found = find_unknown(arguments, flags)
    assert said in found
    assert bool(said) == bool(found)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "train"])
def test_each_verb_explains_its_arguments(verb: str) -> None:
    answer = trainbox(verb, "--help")
    assert answer.returncode == 0, answer.stderr
    assert f"trainbox {verb}" in answer.stdout


def test_an_error_is_a_line_and_its_own_exit_code(tmp_path: Path) -> None:
    answer = trainbox("describe", str(tmp_path / "nothing.py"))
    assert answer.returncode == 10
    assert "nothing.py" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_the_verb_train_is_the_program_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINBOX_ROOT", str(tmp_path))
    answer = trainbox("train")
    assert answer.returncode == 3
    assert "the job names no program to run" in (tmp_path / "output" / "failure").read_text()
