"""Values of the command line that come from files and from the shell: what is read, and what a command shows again."""

import argparse
import datetime as dt
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from trainbox.cli.run import add_arguments
from trainbox.cli.run_command import read_command
from trainbox.cli.screen.summary import docker_command, resume_command
from trainbox.errors import RunError
from trainbox.local import request as request_module
from trainbox.local.backends.isolation import Isolation
from trainbox.local.given import Origin, read_hyperparameters, read_variables
from trainbox.local.opt_ml import prepare
from trainbox.local.plan import plan_run
from trainbox.local.request import RunRequest, read_request

SECRET = "of-the-file-1234"
SHELL = {"DB_TOKEN": "of-the-shell-1234", "endpoint": "internal-endpoint", "EMPTY": ""}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(request_module, "find_isolation", lambda: Isolation(kind="root", at_opt_ml=True))
    monkeypatch.setattr(request_module, "find_free_port", lambda: 23456)
    (tmp_path / "train.py").write_text("print(1)\n")
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    return tmp_path


def ask(here: Path, *arguments: str, env: Mapping[str, str] = SHELL) -> RunRequest:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    now = dt.datetime(2026, 11, 5, tzinfo=dt.UTC)
    return read_request(*read_command(parser.parse_args(["train.py", *arguments]), env=env, cwd=here), now=now)


def test_a_file_and_a_variable_give_hyperparameters(here: Path) -> None:
    found = read_hyperparameters(
        ["a=@secret", "b=@@literal", "c=plain", "d=x@y"], ["endpoint", "token=DB_TOKEN"], SHELL, here
    )
    assert found.values == {
        "a": SECRET,
        "b": "@literal",
        "c": "plain",
        "d": "x@y",
        "endpoint": "internal-endpoint",
        "token": "of-the-shell-1234",
    }
    assert found.origins == {
        "a": Origin(file=here / "secret"),
        "endpoint": Origin(variable="endpoint"),
        "token": Origin(variable="DB_TOKEN"),
    }


def test_a_file_and_the_shell_give_variables(here: Path) -> None:
    found = read_variables(["A=@secret", "DB_TOKEN", "C=plain"], SHELL, here)
    assert found.values == {"A": SECRET, "C": "plain", "DB_TOKEN": "of-the-shell-1234"}
    assert found.origins == {"A": Origin(file=here / "secret"), "DB_TOKEN": Origin(variable="DB_TOKEN")}


@pytest.mark.parametrize(
    ("content", "value"),
    [(b"a\n", "a"), (b"a", "a"), (b"a\r\n", "a"), (b"a\n\n", "a\n"), (b" a ", " a "), ("é".encode(), "é")],
)
def test_only_the_end_of_the_last_line_is_left_out(here: Path, content: bytes, value: str) -> None:
    (here / "secret").write_bytes(content)
    assert read_hyperparameters(["a=@secret"], [], {}, here).values == {"a": value}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "secret cannot be read: No such file or directory"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"a\xff", "byte 1 of"),
        (b"a\0b", "has a NUL"),
        (b"x" * 70_000, "has more than 65536 bytes"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_and_not_quoted(here: Path, content: bytes | None, message: str) -> None:
    if content is None:
        (here / "secret").unlink()
    else:
        (here / "secret").write_bytes(content)
    with pytest.raises(RunError, match=message) as caught:
        ask(here, "--hp", "a=@secret")
    assert str(here / "secret") in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hp-env", "ABSENT"], "--hp-env ABSENT: this shell has no such variable"),
        (["--hp-env", "a=EMPTY"], "--hp-env EMPTY: this shell has no such variable, or it is empty"),
        (["--hp-env", "a=hunter-2$"], "--hp-env …: this shell has no such variable"),
        (["--env", "hunter-2$"], "--env …: this shell has no such variable"),
        (["--hp", "endpoint=x", "--hp-env", "endpoint"], "--hp-env endpoint: given twice"),
        (["--env", "DB_TOKEN", "--env", "DB_TOKEN=x"], "--env DB_TOKEN: given twice"),
        (["--hp", "trainbox_hide=a,,b"], "trainbox_hide: found 'a,,b'"),
    ],
)
def test_what_is_not_there_is_said(here: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(RunError) as caught:
        ask(here, *arguments)
    assert message in str(caught.value)
    assert "hunter" not in str(caught.value)


REFERENCES = ("--hp", "a=@secret", "--hp-env", "endpoint", "--hp-env", "token=DB_TOKEN", "--env", "DB_TOKEN")
MORE = ("--env", "E=@secret", "--hp", "b=@@literal", "--hp", "c={{resolve:ssm:/a}}")


def test_what_is_not_in_the_command_is_secret_whatever_its_name(here: Path) -> None:
    found = ask(here, *REFERENCES, *MORE, "--hp", "trainbox_hide=b")
    assert found.hide == ("b", "a", "endpoint", "token", "E", "DB_TOKEN")
    assert {SECRET, "of-the-shell-1234", "internal-endpoint", "@literal"} <= set(found.secrets)
    (host,) = plan_run(found).hosts
    hyperparameters = json.loads(host.files["input/config/hyperparameters.json"])
    assert hyperparameters["a"] == SECRET
    assert json.loads(hyperparameters["trainbox_hide"]) == list(found.hide)
    assert host.environment["E"] == SECRET


def test_commands_to_go_on_say_where_secrets_are_and_no_value(here: Path) -> None:
    found = ask(here, *REFERENCES, *MORE)
    resume, docker = resume_command(found), docker_command(found)
    for command in (resume, docker):
        words = {word for part in command for word in part.split("=")}
        assert not {SECRET, "of-the-shell-1234", "internal-endpoint"} & words
        assert "***" not in " ".join(command)
        assert "b=@@literal" in command
        assert "c={{resolve:ssm:/a}}" in command
    again = ask(here, *resume[resume.index("--hp") : resume.index("--job-name")])
    assert (again.hyperparameters, again.env) == (found.hyperparameters, found.env)
    assert (again.hyperparameter_origins, again.env_origins) == (found.hyperparameter_origins, found.env_origins)


def test_the_file_that_may_hold_secrets_is_for_its_owner_alone(here: Path) -> None:
    plan = plan_run(ask(here, *REFERENCES, "--out", "out"))
    plan.request.out.mkdir()
    prepare(plan)
    file = plan.hosts[0].tree / "input/config/hyperparameters.json"
    assert SECRET in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
