"""What `trainbox run` refuses before it does anything, and what it makes of the rest."""

import argparse
import datetime as dt
from collections.abc import Mapping
from pathlib import Path

import pytest

from trainbox.errors import RunError, TrainboxError
from trainbox.workbench import request as request_module
from trainbox.workbench.isolation import Isolation
from trainbox.workbench.record import JobRecord, write_record
from trainbox.workbench.request import RunRequest, read_request
from trainbox.workbench.run import add_arguments

NOW = dt.datetime(2026, 11, 5, 10, 15, 0, tzinfo=dt.UTC)


@pytest.fixture(autouse=True)
def _no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_module, "find_isolation", lambda: Isolation(kind="root", at_opt_ml=True))
    monkeypatch.setattr(request_module, "find_free_port", lambda: 23456)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "train.py").write_text("print(1)\n")
    (tmp_path / "data").mkdir()
    return tmp_path


def ask(here: Path, *arguments: str, env: Mapping[str, str] | None = None) -> RunRequest:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return read_request(parser.parse_args(list(arguments)), env=env or {}, cwd=here, now=NOW)


def test_a_script_brings_its_directory_as_source(here: Path) -> None:
    (here / "src" / "model.py").write_text("")
    (here / "src" / ".git").mkdir()
    (here / "src" / ".git" / "HEAD").write_text("")
    found = ask(here, "src/train.py")
    assert found.script == "train.py"
    assert found.source is not None
    assert found.source.directory == here / "src"
    assert found.source.files == ("model.py", "train.py")


def test_jobs_that_run_here_at_once_do_not_meet(here: Path) -> None:
    assert ask(here, "src/train.py").master_port == 23456
    assert ask(here, "src/train.py", "--env", "MASTER_PORT=4711").master_port is None


def test_a_source_directory_may_lie_above_the_script(here: Path) -> None:
    by_path = ask(here, "src/train.py", "--source-dir", ".")
    assert by_path.script == "src/train.py"
    assert ask(here, "train.py", "--source-dir", "src").script == "train.py"


def test_the_result_is_no_part_of_the_source(here: Path) -> None:
    (here / "src" / "result").mkdir()
    write_record(JobRecord(job_name="j", attempt=1, started="", script=""), here / "src" / "result")
    found = ask(here, "src/train.py", "--out", "src/result", "--resume")
    assert found.source is not None
    assert found.source.files == ("train.py",)


def test_a_job_gets_a_name_that_sagemaker_takes(here: Path) -> None:
    (here / "src" / "my_own__train.py").write_text("")
    found = ask(here, "src/my_own__train.py")
    assert found.job_name == "my-own-train-20261105-101500"
    assert found.out == here / "trainbox-out" / "my-own-train-20261105-101500"


def test_the_name_of_a_resumed_job_stays(here: Path) -> None:
    (here / "Result_1").mkdir()
    write_record(JobRecord(job_name="first", attempt=1, started="", script=""), here / "Result_1")
    assert ask(here, "src/train.py", "--out", "Result_1", "--resume").job_name == "first"


def test_values_keep_every_character_behind_the_first_equals_sign(here: Path) -> None:
    found = ask(here, "src/train.py", "--hp", "a=b=c $(x) 'é\n", "--hp", "empty=", "--env", "A=x=y")
    assert found.hyperparameters == {"a": "b=c $(x) 'é\n", "empty": ""}
    assert found.env == {"A": "x=y"}


def test_a_single_file_is_a_channel_too(here: Path) -> None:
    (here / "data" / "a.csv").write_text("1")
    found = ask(here, "src/train.py", "--channel", "train=data/a.csv", "--channel", "a.b-c=data")
    assert list(found.channels) == ["a.b-c", "train"]
    assert found.channels["train"].is_file
    assert not found.channels["a.b-c"].is_file


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["src/train.py", "--hp", "eta"], "--hp 'eta': found no NAME=VALUE"),
        (["src/train.py", "--hp", "=1"], "--hp ''"),
        (["src/train.py", "--hp", "a=1", "--hp", "a=2"], "--hp a: given twice"),
        (["src/train.py", "--hp", "sagemaker_program=x"], "sets this one itself"),
        (["src/train.py", "--hp", "processes_per_host=1", "--processes", "2"], "sets this one itself"),
        (["src/train.py", "--hp", f"{'k' * 257}=1"], "257 characters"),
        (["src/train.py", "--hp", f"k={'v' * 2501}"], "refuses more than 2500"),
        (["src/train.py", *(f"--hp=k{n}=1" for n in range(99))], "99 hyperparameters, and 2 that say what to run"),
        (["src/train.py", "--env", "A-B=1"], "--env A-B"),
        (["src/train.py", "--env", f"A={'v' * 513}"], "refuses more than 512"),
        (["src/train.py", "--env", "TRAINBOX_ROOT=/x"], "sets or clears"),
        (["src/train.py", "--channel", "train=nowhere"], "there is no"),
        (["src/train.py", "--channel", "train="], "there is no"),
        (["src/train.py", "--channel", "train=data", "--channel", "train=data"], "given twice"),
        (["src/train.py", "--channel", "../x=data"], "SageMaker takes names"),
        (["src/train.py", "--channel", "..=data"], "SageMaker takes names"),
        (["src/train.py", *(f"--channel=c{n}=data" for n in range(21))], "21 channels"),
        (["src/train.py", "--hosts", "0"], "--hosts 0: expected 1 to 100"),
        (["src/train.py", "--processes", "0"], "--processes 0"),
        (["src/train.py", "--processes", "1025"], "--processes 1025: expected 1 to 1024"),
        (["src/train.py", "--max-run", "0"], "--max-run"),
        (["src/train.py", "--stop-after", "nan"], "--stop-after"),
        (["src/train.py", "--kill", "1"], "--kill: found '1', expected RANK@STEP"),
        (["src/train.py", "--freeze", "x@2"], "--freeze: found 'x@2', expected RANK@STEP"),
        (["src/train.py", "--env", "TRAINBOX_DRILL=kill 0@1"], "sets or clears"),
        (["src/train.py", "--job-name", "my_job"], "--job-name 'my_job'"),
        (["src/train.py", "--resume"], "which job?"),
        (["src/trian.py"], "did you mean 'train.py'"),
        (["src/train.py", "--source-dir", "none"], "there is no such directory"),
        (["trian.py", "--source-dir", "src"], "did you mean 'train.py'"),
        (["../outside.py", "--source-dir", "src"], "there is no script"),
        (["src"], "there is no script"),
        (["src/train.py", "--out", "src"], "holds something else"),
        (["src/train.py", "--out", "src/train.py"], "is no directory"),
        (["src/train.py", "--out", "src/train.py/below"], "is no directory"),
    ],
)
def test_bad_input_is_refused_by_name(here: Path, arguments: list[str], said: str) -> None:
    with pytest.raises(RunError) as caught:
        ask(here, *arguments)
    assert said in str(caught.value)
    assert sorted(path.name for path in here.iterdir()) == ["data", "src"]


def test_a_hundred_hyperparameters_are_the_limit_with_those_that_say_what_to_run(here: Path) -> None:
    assert len(ask(here, "src/train.py", *(f"--hp=k{n}=1" for n in range(98))).hyperparameters) == 98


def test_a_value_without_its_name_is_not_repeated_in_the_error(here: Path) -> None:
    with pytest.raises(RunError) as caught:
        ask(here, "src/train.py", "--hp", "=topsecret")
    assert "topsecret" not in str(caught.value)


def test_an_unknown_bundled_script_is_answered_with_the_choices(here: Path) -> None:
    with pytest.raises(TrainboxError) as caught:
        ask(here, "xgbost_train")
    assert "xgboost_train" in str(caught.value)


def test_a_bundled_script_needs_no_source(here: Path) -> None:
    found = ask(here, "xgboost")
    assert found.script == "xgboost_train"
    assert found.source is None


def test_a_finished_result_is_not_overwritten(here: Path) -> None:
    (here / "out").mkdir()
    write_record(JobRecord(job_name="first", status="Completed", attempt=1, started="", script=""), here / "out")
    with pytest.raises(RunError, match="holds the result of job 'first'"):
        ask(here, "src/train.py", "--out", "out")


def test_a_record_that_is_none_of_ours_is_refused(here: Path) -> None:
    (here / "out").mkdir()
    (here / "out" / "job.json").write_text("[1]")
    with pytest.raises(RunError, match="no record of a job"):
        ask(here, "src/train.py", "--out", "out", "--resume")
