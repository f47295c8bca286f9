"""Settings of the container: an unknown one is an error, and so is one that cannot have an effect."""

import ast
import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from trainbox.contract.fault_injection import read_drills
from trainbox.contract.hosting import HOSTING_VARIABLES
from trainbox.contract.job import Job, read_job
from trainbox.contract.settings import SETTINGS, VARIABLES, is_ours
from trainbox.errors import ContractError

PACKAGE = Path(__file__).parents[2] / "container" / "trainbox"


def read(root: Path, hyperparameters: Mapping[str, object], **env: str) -> Job:
    config = root / "input/config"
    config.mkdir(parents=True, exist_ok=True)
    (config / "hyperparameters.json").write_text(json.dumps(hyperparameters))
    return read_job(root, env)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("trainbox_luancher", "trainbox_launcher"),
        ("trainbox_max_restart", "trainbox_max_restarts"),
        ("trainbox_drills", "trainbox_drill"),
        ("trainbox-launcher", "trainbox_launcher"),
        ("TRAINBOX_LAUNCHER", "trainbox_launcher"),
        ("Trainbox_Hang_Seconds", "trainbox_hang_seconds"),
        ("trainbox_processes_per_host", "processes_per_host"),
    ],
)
def test_a_hyperparameter_that_is_almost_a_setting_is_refused_with_the_one_that_is_meant(
    tmp_path: Path, name: str, meant: str
) -> None:
    with pytest.raises(ContractError) as raised:
        read(tmp_path, {name: "torchrun"})
    assert "hyperparameters.json" in raised.value.message
    assert f"{name!r}: there is no such setting - did you mean {meant!r}?" in raised.value.message


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("TRAINBOX_LUANCHER", "TRAINBOX_LAUNCHER"),
        ("TRAINBOX_DRILLS", "TRAINBOX_DRILL"),
        ("TRAINBOX_GRACE_SECOND", "TRAINBOX_GRACE_SECONDS"),
        ("trainbox_launcher", "TRAINBOX_LAUNCHER"),
        ("TRAINBOX_ROOTS", "TRAINBOX_ROOT"),
    ],
)
def test_a_variable_that_is_almost_a_setting_is_refused_with_the_one_that_is_meant(
    tmp_path: Path, name: str, meant: str
) -> None:
    with pytest.raises(ContractError) as raised:
        read(tmp_path, {}, **{name: "1"})
    assert raised.value.message == f"the variable {name}: there is no such setting - did you mean {meant!r}?"


def test_what_is_like_no_setting_is_refused_as_well(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="'trainbox_zzz': there is no such setting") as raised:
        read(tmp_path, {"trainbox_zzz": "1"})
    assert "did you mean" not in raised.value.message


def test_names_of_others_are_nobodys_mistake(tmp_path: Path) -> None:
    job = read(tmp_path, {"trainboxes": "2", "sagemaker_own": "1", "my_trainbox_x": "3"}, MY_TRAINBOX="1", TRAINBOX="2")
    assert set(job.hyperparameters) == {"trainboxes", "my_trainbox_x"}


@pytest.mark.parametrize("service", ["TRAINBOX", "TRAINBOX_ROOT", "TRAINBOX_HELPER_2"])
def test_what_kubernetes_says_of_a_service_is_no_setting(tmp_path: Path, service: str) -> None:
    """In each pod of its namespace, where a service is named trainbox or trainbox-…."""
    links = {
        f"{service}_SERVICE_HOST": "10.0.0.9",
        f"{service}_SERVICE_PORT": "8080",
        f"{service}_SERVICE_PORT_HTTP": "8080",
        f"{service}_PORT": "tcp://10.0.0.9:8080",
        f"{service}_PORT_8080_TCP": "tcp://10.0.0.9:8080",
        f"{service}_PORT_8080_TCP_PROTO": "tcp",
        f"{service}_PORT_8080_TCP_PORT": "8080",
        f"{service}_PORT_8080_TCP_ADDR": "10.0.0.9",
    }
    assert read(tmp_path, {}, **links).settings.given == frozenset()
    with pytest.raises(ContractError, match=f"{service}_PORT: there is no such setting"):
        read(tmp_path, {}, **{f"{service}_PORT": "8080"})
    with pytest.raises(ContractError, match=f"{service}_HANG: there is no such setting"):
        read(tmp_path, {}, **links, **{f"{service}_HANG": "8080"})


def test_every_variable_that_trainbox_knows_is_in_the_list(tmp_path: Path) -> None:
    known = {*(name.upper() for name in SETTINGS), *VARIABLES, *filter(is_ours, HOSTING_VARIABLES)}
    named = {
        name
        for path in PACKAGE.rglob("*.py")
        if "TRAINBOX_" in (text := path.read_text())  # to parse all files takes a second
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for name in re.findall(r"\bTRAINBOX_[A-Z_]*[A-Z]\b", node.value)
    }
    assert named <= known
    empty = dict.fromkeys(known, "")
    assert read(tmp_path, {}, **empty).settings.given == frozenset()


def test_settings_of_the_request_are_told_from_those_by_default(tmp_path: Path) -> None:
    job = read(tmp_path, {"trainbox_hang_seconds": "30", "eta": "1"}, TRAINBOX_GRACE_SECONDS="7")
    assert job.settings.given == {"trainbox_hang_seconds", "trainbox_grace_seconds"}


@pytest.mark.parametrize(
    ("hyperparameters", "said"),
    [
        ({"trainbox_preflight_strict": "true", "trainbox_preflight": "off"}, "trainbox_preflight is off"),
        ({"trainbox_drill": "freeze 0@3", "trainbox_hang_seconds": "0"}, "'freeze 0@3' would last for ever"),
        ({"trainbox_module": "a.b", "sagemaker_program": "train.py"}, "only one of them can run"),
        ({"trainbox_module": "a-b"}, "found 'a-b', expected the name of a module"),
        ({"trainbox_module": "../b"}, "expected the name of a module"),
        ({"trainbox_module": "a.b\n"}, "expected the name of a module"),
        ({"trainbox_drill": "kill 1@20, kill 1@20"}, "found 'kill 1@20, kill 1@20'"),
        ({"trainbox_raw_arguments": "--x 1"}, "expected a JSON list of strings"),
        ({"trainbox_raw_arguments": '["--x", 1]'}, "expected a JSON list of strings"),
        ({"trainbox_raw_arguments": '{"x": "1"}'}, "expected a JSON list of strings"),
    ],
)
def test_settings_that_contradict_each_other_or_say_nothing_are_refused(
    tmp_path: Path, hyperparameters: Mapping[str, str], said: str
) -> None:
    with pytest.raises(ContractError) as raised:
        read(tmp_path, hyperparameters)
    assert said in raised.value.message


def test_a_bundled_script_that_does_not_run_is_said_to_have_no_effect(tmp_path: Path) -> None:
    job = read(tmp_path, {"sagemaker_program": "train.py", "trainbox_script": "xgboost"})
    assert any("trainbox_script=xgboost has no effect" in note for note in job.notes)


@pytest.mark.parametrize("program", ["pkg/train.py", '"pkg/train.py"', "pkg/train/__main__.py"])
def test_a_module_may_stand_beside_its_own_file(tmp_path: Path, program: str) -> None:
    settings = read(tmp_path, {"trainbox_module": "pkg.train", "sagemaker_program": program}).settings
    assert (settings.module, settings.program) == ("pkg.train", program.strip('"'))


def test_a_module_wins_over_a_program_that_is_left_over_in_the_image(tmp_path: Path) -> None:
    settings = read(tmp_path, {"trainbox_module": "pkg.train"}, SAGEMAKER_PROGRAM="other.py").settings
    assert (settings.module, settings.program) == ("pkg.train", "pkg/train.py")


HOSTILE = ["--x", "a b", "$(id)", ";", "'\"", "", "--", "é\n", "a=b", "-"]


@pytest.mark.parametrize("encode", [json.dumps, lambda value: json.dumps(json.dumps(value)), lambda value: value])
def test_raw_arguments_stand_behind_those_of_the_hyperparameters(tmp_path: Path, encode: object) -> None:
    assert callable(encode)
    job = read(tmp_path, {"lr": "0.1", "trainbox_raw_arguments": encode(HOSTILE)})
    assert job.argv == ("--lr", "0.1", *HOSTILE)
    assert read(tmp_path, {}, TRAINBOX_RAW_ARGUMENTS=json.dumps(HOSTILE)).argv == tuple(HOSTILE)


@pytest.mark.parametrize("text", ['["\\u0000"]', '["\\ud800"]', "[" * 100_000])
def test_raw_arguments_that_no_system_can_pass_on_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ContractError, match="TRAINBOX_RAW_ARGUMENTS: found something else, expected a JSON list"):
        read(tmp_path, {}, TRAINBOX_RAW_ARGUMENTS=text)


def test_a_secret_among_raw_arguments_is_hidden(tmp_path: Path) -> None:
    raw = ["--api_token", "tok-1234", "--db.password=hunter22", "+secret_key=s3cr3t-2", "--lr", "0.1"]
    assert {"tok-1234", "hunter22", "s3cr3t-2"} <= set(
        read(tmp_path, {"trainbox_raw_arguments": json.dumps(raw)}).secrets
    )


def test_drills_are_read_in_order() -> None:
    assert [str(drill) for drill in read_drills("kill 1@20,freeze 0@0")] == ["kill 1@20", "freeze 0@0"]
