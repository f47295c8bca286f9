"""Which program runs, how it is started, and what is said when it cannot be."""

import os
import sys
from pathlib import Path

import pytest

from trainbox.contract.job import read_job
from trainbox.errors import ProgramError
from trainbox.supervisor.program import executable
from trainbox.supervisor.program.choice import Choice, CodeSource, choose, find_bundled, resolve
from trainbox.supervisor.requirements import builds_in_code

PACKAGE_TOML = "[build-system]\nrequires = []\n"


def write(directory: Path, *names: str, content: str = "", mode: int = 0o644) -> None:
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(mode)


def chosen(tmp_path: Path, **env: str) -> Choice:
    return choose(read_job(tmp_path, {"SAGEMAKER_PROGRAM": "train.py", **env}))


def command(directory: Path, name: str) -> tuple[str, ...]:
    return resolve(Choice(name, CodeSource("place", str(directory))), directory).command


def install(directory: Path, name: str) -> tuple[str, ...]:
    return resolve(Choice(name, CodeSource("place", str(directory))), directory).install


# -- where the code comes from -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "source"),
    [
        ("s3://bucket/key/sourcedir.tar.gz", CodeSource("s3", "s3://bucket/key/sourcedir.tar.gz")),
        ("/mnt/source.tar.gz", CodeSource("archive", "/mnt/source.tar.gz")),
        ("/mnt/source.tar", CodeSource("archive", "/mnt/source.tar")),
        ("file:///mnt/source.tgz", CodeSource("archive", "/mnt/source.tgz")),
        ("/mnt/source", CodeSource("directory", "/mnt/source")),
        ("file:///mnt/source", CodeSource("directory", "/mnt/source")),
        ("/opt/ml/code", CodeSource("place", "{root}/code")),
        ("file:///opt/ml/code", CodeSource("place", "{root}/code")),
        ("/opt/ml/input/data/code/sourcedir.tar.gz", CodeSource("archive", "{root}/input/data/code/sourcedir.tar.gz")),
        ("", CodeSource("place", "{root}/code")),
    ],
)
def test_a_submit_directory_says_where_the_code_comes_from(tmp_path: Path, location: str, source: CodeSource) -> None:
    found = chosen(tmp_path, SAGEMAKER_SUBMIT_DIRECTORY=location).source
    assert found == CodeSource(source.kind, source.location.format(root=tmp_path))


def test_a_channel_named_code_is_the_source_unless_the_request_names_another(tmp_path: Path) -> None:
    write(tmp_path, "input/config/inputdataconfig.json", content='{"code": {"TrainingInputMode": "File"}}')
    assert chosen(tmp_path).source == CodeSource("directory", str(tmp_path / "input/data/code"))
    assert chosen(tmp_path, SAGEMAKER_SUBMIT_DIRECTORY="/mnt/source").source.location == "/mnt/source"


def test_the_hyperparameters_win_over_the_environment(tmp_path: Path) -> None:
    content = '{"sagemaker_program": "\\"mine.py\\"", "sagemaker_submit_directory": "s3://b/k.tar.gz"}'
    write(tmp_path, "input/config/hyperparameters.json", content=content)
    choice = chosen(tmp_path, SAGEMAKER_SUBMIT_DIRECTORY="/left/over")
    assert choice == Choice("mine.py", CodeSource("s3", "s3://b/k.tar.gz"))


@pytest.mark.parametrize("left_over", [{"SAGEMAKER_PROGRAM": "train.py"}, {"TRAINBOX_MODULE": "pkg.train"}, {}])
def test_a_bundled_script_that_the_job_names_runs_whatever_the_image_has_left_over(
    tmp_path: Path, left_over: dict[str, str]
) -> None:
    write(tmp_path, "input/config/hyperparameters.json", content='{"trainbox_script": "xgboost"}')
    job = read_job(tmp_path, left_over)
    assert choose(job).name == "xgboost_train.py"
    said = [note for note in job.notes if "has no effect" in note]
    assert len(said) == (1 if "SAGEMAKER_PROGRAM" in left_over else 0)
    write(
        tmp_path,
        "input/config/hyperparameters.json",
        content='{"trainbox_script": "xgboost", "sagemaker_program": "train.py"}',
    )
    assert choose(read_job(tmp_path, left_over and {"SAGEMAKER_PROGRAM": "other.py"})).name == "train.py"


@pytest.mark.parametrize("name", ["xgboost_train", "xgboost_train.py", "xgboost"])
def test_a_bundled_script_has_three_names(name: str) -> None:
    assert find_bundled(name).name == "xgboost_train.py"


def test_an_unknown_bundled_script_is_answered_with_those_there_are() -> None:
    with pytest.raises(ProgramError, match="did you mean 'xgboost_train'") as raised:
        find_bundled("xgbost_train")
    assert "xgboost_train" in raised.value.hint


def test_no_program_at_all_lists_the_choices(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="names no program") as raised:
        chosen(tmp_path, SAGEMAKER_PROGRAM="")
    assert "sagemaker_program" in raised.value.hint
    assert "xgboost_train" in raised.value.hint


# -- how it is started -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "started"),
    [
        ("train.py", (sys.executable, "train.py")),
        ("src/train.py", (sys.executable, "src/train.py")),
        ("./src/../train.py", (sys.executable, "train.py")),
        ("two words.py", (sys.executable, "two words.py")),
        ("-c.py", (sys.executable, "./-c.py")),
        ("$(touch x).py", (sys.executable, "$(touch x).py")),
        ("run.sh", ("/bin/sh", "./run.sh")),
        ("-x.sh", ("/bin/sh", "./-x.sh")),
    ],
)
def test_each_name_becomes_an_argument_list(tmp_path: Path, name: str, started: tuple[str, ...]) -> None:
    write(tmp_path, "train.py", "src/train.py", "two words.py", "-c.py", "$(touch x).py", "run.sh", "-x.sh")
    assert command(tmp_path, name) == started


@pytest.mark.parametrize("mode", [0o644, 0o755])
@pytest.mark.parametrize("name", ["run.sh", "program", "-p"])
def test_a_program_with_a_first_line_for_the_kernel_is_executed_and_made_executable(
    tmp_path: Path, name: str, mode: int
) -> None:
    write(tmp_path, name, content="#!/bin/sh\n", mode=mode)
    assert command(tmp_path, name) == (f"./{name}",)
    assert os.access(tmp_path / name, os.X_OK)


@pytest.mark.parametrize(
    ("first", "started"),
    [
        ("#!/bin/sh", ("/bin/sh", "./program")),
        ("#! /bin/sh -e -u ", ("/bin/sh", "-e -u", "./program")),
        ("#!/usr/bin/env python3", ("/usr/bin/env", "python3", "./program")),
        ("#!/usr/bin/env -S python3 -u", ("/usr/bin/env", "-S python3 -u", "./program")),
    ],
)
def test_what_cannot_be_made_executable_is_started_as_the_kernel_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, started: tuple[str, ...]
) -> None:
    write(tmp_path, "program", content=f"{first}\n")
    monkeypatch.setattr(executable, "_make_executable", lambda _path: "Read-only file system")
    assert command(tmp_path, "program") == started
    (tmp_path / "program").write_bytes(b"\x7fELF")
    with pytest.raises(ProgramError, match=r"cannot be made so: Read-only file system") as raised:
        command(tmp_path, "program")
    assert raised.value.hint == "chmod +x program"


def test_a_binary_is_executed(tmp_path: Path) -> None:
    (tmp_path / "program").write_bytes(b"\x7fELF\x02\x01\x01\x00#!\r\n")
    assert command(tmp_path, "program") == ("./program",)


@pytest.mark.parametrize("marker", [{"setup.py": ""}, {"pyproject.toml": PACKAGE_TOML}])
@pytest.mark.parametrize(("name", "module"), [("train.py", "train"), ("src/train.py", "src.train")])
def test_a_package_is_installed_and_its_program_run_as_a_module(
    tmp_path: Path, marker: dict[str, str], name: str, module: str
) -> None:
    write(tmp_path, name)
    for file, content in marker.items():
        write(tmp_path, file, content=content)
    assert command(tmp_path, name) == (sys.executable, "-m", module)
    assert install(tmp_path, name) == (".",)
    write(tmp_path, "requirements.txt")
    assert install(tmp_path, name) == (".", "-r", "requirements.txt")


@pytest.mark.parametrize("name", ["my-train.py", "src/2.py", "two words.py"])
def test_a_name_that_no_module_can_have_is_run_as_a_script(tmp_path: Path, name: str) -> None:
    write(tmp_path, name, "setup.py")
    assert command(tmp_path, name) == (sys.executable, name)


def test_a_pyproject_that_only_configures_a_tool_makes_no_package(tmp_path: Path) -> None:
    write(tmp_path, "train.py")
    write(tmp_path, "pyproject.toml", content="[tool.ruff]\n# [project]\nline-length = 100\n[tool.project]\n")
    assert command(tmp_path, "train.py") == (sys.executable, "train.py")
    assert install(tmp_path, "train.py") == ()


@pytest.mark.parametrize("name", ["train.py", "run.sh"])
def test_requirements_are_installed_for_every_kind_of_program(tmp_path: Path, name: str) -> None:
    write(tmp_path, name, "requirements.txt")
    assert install(tmp_path, name) == ("-r", "requirements.txt")


def test_a_bundled_script_installs_nothing(tmp_path: Path) -> None:
    write(tmp_path, "x_train.py", "requirements.txt", "setup.py")
    program = resolve(Choice("x_train.py", CodeSource("place", str(tmp_path)), bundled=True), tmp_path)
    assert program.install == ()
    assert program.command == (sys.executable, "x_train.py")


# -- what cannot be started --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../x.py", "/etc/passwd", ".", "src/../..", "link.py"])
def test_a_program_outside_of_its_code_is_refused(tmp_path: Path, name: str) -> None:
    code = tmp_path / "code"
    write(code, "src/train.py")
    write(tmp_path, "x.py")
    (code / "link.py").symlink_to(tmp_path / "x.py")
    with pytest.raises(ProgramError, match="lies outside its code"):
        command(code, name)


def test_a_missing_program_is_answered_with_what_is_there(tmp_path: Path) -> None:
    write(tmp_path, "train.py", "src/model.py")
    with pytest.raises(ProgramError, match=r"no program 'trian\.py' in .* - did you mean 'train\.py'\?") as raised:
        command(tmp_path, "trian.py")
    assert raised.value.hint == "found there: src/model.py, train.py"


def test_an_empty_or_missing_directory_is_said(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "none"):
        with pytest.raises(ProgramError, match="no program") as raised:
            command(directory, "train.py")
        assert raised.value.hint == "found there: nothing"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("print('no first line')\n", "it is no Python or shell script, no ELF file, and has no '#!' line"),
        ("", "it is no Python or shell script"),
        ("#!/bin/sh\r\necho\r\n", "its first line ends as Windows ends lines"),
        ("#!/no/such/interpreter -x\n", "its first line asks for '/no/such/interpreter', which is not there"),
    ],
)
def test_what_the_kernel_would_refuse_is_said_clearly(tmp_path: Path, content: str, message: str) -> None:
    write(tmp_path, "program", content=content, mode=0o755)
    with pytest.raises(ProgramError) as raised:
        command(tmp_path, "program")
    assert message in raised.value.message
    assert raised.value.hint


# -- modules -----------------------------------------------------------------------------------------------------------


def module(directory: Path, name: str) -> tuple[str, tuple[str, ...], str]:
    """How a module is started, what stands for its file, and what of it imports trainbox.torch."""
    found = resolve(Choice(name, CodeSource("place", str(directory)), is_module=True), directory)
    assert found.command[:2] == (sys.executable, "-m")
    return found.command[2], found.install, found.name


def test_a_module_of_the_code_is_run_as_python_runs_it(tmp_path: Path) -> None:
    write(tmp_path, "pkg/train.py", "tool/__main__.py", "src/lib/fit.py", "one.py")
    assert module(tmp_path, "pkg.train") == ("pkg.train", (), "pkg/train.py")
    assert module(tmp_path, "tool") == ("tool", (), "tool/__main__.py")
    assert module(tmp_path, "one") == ("one", (), "one.py")
    write(tmp_path, "pyproject.toml", content=PACKAGE_TOML)
    write(tmp_path, "requirements.txt")
    assert module(tmp_path, "lib.fit") == ("lib.fit", (".", "-r", "requirements.txt"), "src/lib/fit.py")


def test_a_module_that_is_installed_works_too_and_one_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "pkg/train.py")
    assert module(tmp_path, "json.tool") == ("json.tool", (), "json.tool")
    with pytest.raises(ProgramError, match=r"there is no module 'pgk\.train' in .* - did you mean 'pkg\.train'\?"):
        module(tmp_path, "pgk.train")
    with pytest.raises(ProgramError, match="there is no module"):  # too long for a file
        module(tmp_path, "b" * 300)


def test_the_setting_names_the_module(tmp_path: Path) -> None:
    content = '{"trainbox_module": "pkg.train", "sagemaker_submit_directory": "/mnt/source"}'
    write(tmp_path, "input/config/hyperparameters.json", content=content)
    assert choose(read_job(tmp_path, {})) == Choice("pkg.train", CodeSource("directory", "/mnt/source"), is_module=True)


def test_a_program_says_which_of_its_files_imports_the_session(tmp_path: Path) -> None:
    write(tmp_path, "pkg/__init__.py")
    write(tmp_path, "pkg/loop.py", content="from trainbox.torch import session\n")
    write(tmp_path, "train.py", "pkg/train.py", content="from pkg import loop\n")
    place = CodeSource("place", str(tmp_path))
    for choice in (Choice("train.py", place), Choice("pkg.train", place, is_module=True)):
        assert resolve(choice, tmp_path).session == "pkg/loop.py"
    write(tmp_path, "run.sh", content="#!/bin/sh\npython train.py\n")
    assert resolve(Choice("run.sh", place), tmp_path).session == ""


@pytest.mark.parametrize(
    ("line", "is_local"),
    [
        ("./lib", True),
        ("-e .", True),
        ("--editable=./lib[extra]", True),
        ("parts/lib", True),
        ("msgspec>=0.18", False),
        ("pip @ https://example.com/pip.whl", False),
        ("--find-links ../wheels", False),
        ("-r other/requirements.txt", False),
        ("# ./lib", False),
        ("", False),
    ],
)
def test_pip_builds_in_the_code_where_a_requirement_is_a_part_of_it(tmp_path: Path, line: str, is_local: bool) -> None:
    write(tmp_path, "train.py")
    write(tmp_path, "requirements.txt", content=f"msgspec\n{line}\n")
    program = resolve(Choice("train.py", CodeSource("place", str(tmp_path))), tmp_path)
    assert builds_in_code(program, read_job(tmp_path / "ml", {})) == is_local
    assert not builds_in_code(program, read_job(tmp_path / "ml", {"TRAINBOX_REQUIREMENTS": "off"}))
    write(tmp_path, "setup.py")
    package = resolve(Choice("train.py", CodeSource("place", str(tmp_path))), tmp_path)
    assert builds_in_code(package, read_job(tmp_path / "ml", {}))
