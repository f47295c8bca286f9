"""What `trainbox run` refuses before it does anything, and what it makes of the rest."""

import argparse
import datetime as dt
import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from trainbox.cli.run import add_arguments
from trainbox.cli.run_command import read_command
from trainbox.cli.screen.dry_run import describe
from trainbox.cli.screen.summary import resume_command
from trainbox.errors import RunError, TrainboxError
from trainbox.local import request as request_module
from trainbox.local.backends import isolation as isolation_module
from trainbox.local.backends.engine import Image
from trainbox.local.backends.isolation import Isolation
from trainbox.local.plan import plan_run
from trainbox.local.preview import preview
from trainbox.local.request import RunRequest, read_request
from trainbox.local.results.record import JobRecord, write_record
from trainbox.local.scripts import find_program as find_program_module

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
    args = parser.parse_args(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    args.raw_arguments = arguments[arguments.index("--") + 1 :] if "--" in arguments else ()
    return read_request(*read_command(args, env=env or {}, cwd=here), now=NOW)


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
        (["src/train.py", "--kill", "1@2", "--kill", "1@2"], "the drill 'kill 1@2' is given twice"),
        (
            ["src/train.py", "--kill", "1@2", "--hp", "trainbox_drill=kill 0@1"],
            "--kill and --freeze and --hp trainbox_d",
        ),
        (["src/train.py", "--preflight", "fast", "--env", "TRAINBOX_PREFLIGHT=full"], "say the same setting"),
        (["src/train.py", "--processes", "2", "--env", "PROCESSES_PER_HOST=3"], "say the same setting"),
        (["src/train.py", "--hp", "trainbox_launcher=plain", "--env", "TRAINBOX_LAUNCHER=plain"], "the same setting"),
        (["src/train.py", "--hp", "trainbox_luancher=torchrun"], "--hp: key 'trainbox_luancher'"),
        (["src/train.py", "--hp", "trainbox_luancher=torchrun"], "did you mean 'trainbox_launcher'"),
        (["src/train.py", "--env", "TRAINBOX_LUANCHER=torchrun"], "did you mean 'TRAINBOX_LAUNCHER'"),
        (["src/train.py", "--hp", "trainbox_module=a"], "sets this one itself"),
        (["src/train.py", "--hp", "trainbox_raw_arguments=[]", "--", "x"], "sets this one itself"),
        (["src/train.py", "--", "x" * 2500], "the arguments behind -- have 2504 characters as JSON"),
        ([], "no script is named"),
        (["--docker", "src/train.py"], "'src/train.py' was taken for the name of an image, and no script is named"),
        (["--docker", "src/train.py"], "write the script before --docker: trainbox run src/train.py --docker"),
        (["--docker", "xgboost"], "trainbox run xgboost --docker"),
        (["--docker", "nowhere.py", "--channel", "train=data"], "trainbox run nowhere.py --docker"),
        (["--docker", "my-image:1"], "trainbox run SCRIPT_OR_NAME --docker my-image:1"),
        (["-m", "src.train", "src/train.py"], "trainbox run -m src.train -- src/train.py"),
        (["-m", "src/train.py"], "expected the name of a module"),
        (["-m", "scr.train"], "there is no module 'scr.train' in "),
        (["-m", "scr.train"], "did you mean 'src'"),
        (["-m", "train", "--source-dir", "none"], "there is no such directory"),
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


@pytest.fixture
def of_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine with one image, whose scripts are not ours."""
    images = {"my-image": ("nearest_mean", "my_own_train", "xgboost_train"), "not-ours": None}
    monkeypatch.setattr(find_program_module, "list_scripts", lambda name, _env: images[name])
    monkeypatch.setattr(isolation_module, "find_image", lambda name, _env: Image(name, memory=1))


@pytest.mark.usefixtures("of_image")
@pytest.mark.parametrize(
    ("given", "script"),
    [
        ("nearest_mean", "nearest_mean"),
        ("nearest-mean", "nearest_mean"),
        ("nearest_mean.py", "nearest_mean"),
        ("my-own", "my_own_train"),
    ],
)
def test_a_script_that_only_the_image_has_is_found_there(here: Path, given: str, script: str) -> None:
    found = ask(here, given, "--docker", "my-image", "--hosts", "2")
    assert (found.script, found.source, found.in_image) == (script, None, True)
    plan = plan_run(found)
    assert f'"trainbox_script": "{script}"' in plan.hosts[0].files["input/config/hyperparameters.json"]
    shown = describe(plan, {host.name: preview(host, None, found.script, in_image=True) for host in plan.hosts})
    assert f"which starts: python3 {script}.py" in shown
    # What is here comes first: the source is what a person is editing.
    (here / "nearest_mean.py").write_text("print(1)\n")
    assert ask(here, "nearest_mean.py", "--docker", "my-image").source is not None
    assert not ask(here, "xgboost", "--docker", "my-image").in_image


@pytest.mark.usefixtures("of_image")
def test_a_script_of_the_image_may_be_named_by_its_path_there(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find_program_module, "has_file", lambda _name, path, _env: path.name == "fit.py")
    found = ask(here, "/opt/program/fit.py", "--docker", "my-image")
    assert (found.source, found.in_image, found.job_name) == (None, True, "fit-20261105-101500")
    plan = plan_run(found)
    written = json.loads(plan.hosts[0].files["input/config/hyperparameters.json"])
    assert written == {"sagemaker_program": "fit.py", "sagemaker_submit_directory": "/opt/program"}
    shown = describe(plan, {"algo-1": preview(plan.hosts[0], None, found.script, in_image=True)})
    assert "which starts: python3 fit.py\n    in /opt/ml/code" in shown
    assert "/opt/program/fit.py" in resume_command(found)
    for given, said in (("/opt/program/no.py", "or in my-image"), ("/opt/ml/code/fit.py", "hidden by the job's own")):
        with pytest.raises(RunError, match=said):
            ask(here, given, "--docker", "my-image")


@pytest.mark.usefixtures("of_image")
def test_a_script_that_neither_this_machine_nor_the_image_has_is_answered_with_what_there_is(here: Path) -> None:
    with pytest.raises(RunError) as caught:
        ask(here, "nearst_mean", "--docker", "my-image")
    assert f"there is no script 'nearst_mean' in {here} or in my-image - did you mean 'nearest_mean'?" in str(
        caught.value
    )
    assert "those of my-image are my_own_train, nearest_mean, xgboost_train" in caught.value.hint
    with pytest.raises(RunError, match="the image not-ours says of none that it has"):
        ask(here, "nearest_mean", "--docker", "not-ours")


def test_a_script_in_the_place_of_an_image_is_said_though_another_is_named(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_image(name: str, _env: Mapping[str, str]) -> Image:
        raise RunError(f"there is no image {name!r} here", hint="docker pull")

    monkeypatch.setattr(isolation_module, "find_image", find_image)
    with pytest.raises(RunError, match=r"no image 'other\.py'") as caught:
        ask(here, "src/train.py", "--docker", "other.py")
    assert caught.value.hint == "--docker takes the name of an image: did you mean other.py --docker?"


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


def test_a_module_is_looked_for_as_python_does_it_here(here: Path) -> None:
    found = ask(here, "-m", "src.train")
    assert (found.module, found.script, found.job_name) == ("src.train", "src/train.py", "src-train-20261105-101500")
    assert found.source is not None
    assert found.source.directory == here
    there = ask(here, "-m", "train", "--source-dir", "src")
    assert (there.module, there.script) == ("train", "train.py")
    installed = ask(here, "-m", "json.tool")
    assert (installed.module, installed.script) == ("json.tool", "json.tool")


def test_arguments_behind_two_dashes_are_kept_as_they_are(here: Path) -> None:
    raw = ("--x", "a b", "$(id)", "--", "", "--hp", "'")
    found = ask(here, "src/train.py", "--hp", "lr=1", "--", *raw)
    assert (found.raw_arguments, found.hyperparameters) == (raw, {"lr": "1"})
    assert ask(here, "src/train.py", "--").raw_arguments == ()


def test_the_value_of_a_secret_argument_is_hidden(here: Path) -> None:
    assert {"tok-1234", "hunter22"} <= set(
        ask(here, "src/train.py", "--", "--api-token", "tok-1234", "db.password=hunter22").secrets
    )


def test_settings_of_the_shell_count_as_those_of_the_command_line_which_win(here: Path) -> None:
    shell = {"TRAINBOX_HANG_SECONDS": "5", "TRAINBOX_BACKEND": "gloo", "TRAINBOX_PREFLIGHT": "full", "HOME": "/h"}
    found = ask(here, "src/train.py", "--env", "TRAINBOX_BACKEND=nccl", env=shell)
    assert found.env == {"TRAINBOX_HANG_SECONDS": "5", "TRAINBOX_BACKEND": "nccl", "TRAINBOX_PREFLIGHT": "full"}
    chosen = ask(here, "src/train.py", "--preflight", "fast", env=shell)
    assert (chosen.preflight, "TRAINBOX_PREFLIGHT" in chosen.env) == ("fast", False)
    drilled = ask(here, "src/train.py", "--kill", "0@1", env={"TRAINBOX_DRILL": "freeze 0@2"})
    assert [str(drill) for drill in drilled.drills] == ["kill 0@1", "freeze 0@2"]
    own = ask(
        here, "src/train.py", env={"TRAINBOX_ROOT": "/x", "TRAINBOX_SCRIPT": "xgboost", "TRAINBOX_TEST_PATIENCE": "3"}
    )
    assert own.env == {}


def test_a_variable_of_the_shell_that_trainbox_does_not_know_is_refused(here: Path) -> None:
    with pytest.raises(TrainboxError, match="did you mean 'TRAINBOX_LAUNCHER'"):
        ask(here, "src/train.py", env={"TRAINBOX_LUANCHER": "torchrun"})


def test_within_a_job_the_variables_are_that_jobs(here: Path) -> None:
    outer = {"SM_HOSTS": '["algo-1"]', "TRAINBOX_HANG_SECONDS": "5", "TRAINBOX_OF_ANOTHER_VERSION": "1"}
    assert ask(here, "src/train.py", env=outer).env == {}


@pytest.mark.parametrize("flag", [["--as-sagemaker"], ["--network", "bridge"]])
def test_what_containers_may_do_needs_containers(here: Path, flag: list[str]) -> None:
    with pytest.raises(RunError, match="says what containers may do, and there are none"):
        ask(here, "src/train.py", *flag)


@pytest.fixture
def an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation_module, "find_image", lambda name, _env: Image(name, memory=1))


@pytest.mark.usefixtures("an_engine")
def test_several_hosts_without_a_network_are_refused(here: Path) -> None:
    with pytest.raises(RunError, match="--network none: 2 hosts must reach each other") as raised:
        ask(here, "src/train.py", "--docker", "--hosts", "2", "--network", "none")
    assert "--network internal" in raised.value.hint


@pytest.mark.usefixtures("an_engine")
@pytest.mark.parametrize(
    ("requirements", "arguments", "network"),
    [
        (False, [], "none"),
        (False, ["--hosts", "2"], "internal"),
        (True, [], "bridge"),
        (True, ["--hp", "trainbox_requirements=off"], "none"),
        (True, ["--env", "TRAINBOX_REQUIREMENTS=of"], "none"),
        (True, ["--hp", "trainbox_requirements=hashes"], "bridge"),
    ],
)
def test_requirements_bring_a_network(here: Path, requirements: bool, arguments: list[str], network: str) -> None:
    if requirements:
        (here / "src" / "requirements.txt").touch()
    found = ask(here, "src/train.py", "--docker", *arguments).isolation
    assert found.confinement is not None
    assert found.confinement.network == network
    assert found.confinement.user == f"{os.geteuid()}:{os.getegid()}"
