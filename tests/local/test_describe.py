"""The verbs `trainbox describe` and `trainbox metrics`: what a script declares, read without running it."""

import argparse
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from trainbox.cli import describe
from trainbox.cli import metrics as show_metrics
from trainbox.errors import HyperparameterError, MetricError, ProgramError, RunError
from trainbox.local.scripts import script_module
from trainbox.metrics import Metric

SCRIPT = '''
from __future__ import annotations

import sys
from typing import Annotated, Literal

import msgspec
import neighbour

from trainbox.metrics import Metric

print("said while it is imported", sys.argv)


class Params(msgspec.Struct, frozen=True, kw_only=True):
    num_round: Annotated[int, msgspec.Meta(ge=1, description="boosting rounds")]
    eta: Annotated[float, msgspec.Meta(gt=0, le=1)] = neighbour.ETA
    eval_metric: tuple[Literal["auc", "logloss"], ...] = ("auc",)


def metrics(params: Params) -> list[Metric]:
    """What this job logs."""
    return [Metric(f"validation:{name}", "maximize") for name in params.eval_metric]


if __name__ == "__main__":
    raise SystemExit("the script was run")
'''

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, request: pytest.FixtureRequest) -> Write:
    """Write a script under a name of its own, because a module loaded twice in one process stays."""

    def write_script(text: str, name: str = "train") -> Path:
        (tmp_path / "neighbour.py").write_text("ETA = 0.25\n")
        unique = re.sub(r"\W", "_", request.node.name)
        path = tmp_path / f"{name}_{unique}.py"
        path.write_text(text)
        return path

    return write_script


@pytest.fixture(autouse=True)
def forget_modules() -> object:
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name == "neighbour" or name.startswith("trainbox_script_"):
            del sys.modules[name]


def call(verb: ModuleType, *argv: object) -> int:
    parser = argparse.ArgumentParser(exit_on_error=False)
    verb.add_arguments(parser)
    code: int = verb.run(parser.parse_args([str(argument) for argument in argv]))
    return code


def test_describe_prints_an_aligned_table(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(SCRIPT)
    assert call(describe, path) == 0
    out, err = capsys.readouterr()
    assert out == (
        "NAME         TYPE   DEFAULT     RANGE                     DESCRIPTION\n"
        "num_round    int    (required)  >= 1                      boosting rounds\n"
        "eta          float  0.25        > 0 and <= 1\n"
        'eval_metric  list   ["auc"]     each one of auc, logloss\n'
    )
    assert err == f"said while it is imported ['{path}']\n"


def test_describe_prints_a_json_schema_and_nothing_else(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(describe, write(SCRIPT), "--json") == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["required"] == ["num_round"]
    assert schema["properties"]["eta"]["default"] == 0.25


def test_describing_a_script_leaves_the_path_and_the_arguments_as_they_were(write: Write) -> None:
    before = sys.path[:], sys.argv[:]
    script_module.load_script(write(SCRIPT))
    with pytest.raises(RunError):
        script_module.load_script(write("raise ValueError('no')", name="broken"))
    assert (sys.path, sys.argv) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "import no_such_module_here",
            "cannot be imported: ModuleNotFoundError: No module named 'no_such_module_here'",
        ),
        ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
        ("def broken(:", "cannot be imported: SyntaxError: invalid syntax"),
        ("raise SystemExit(3)", "ended with code 3 while it was imported"),
        ("import argparse; argparse.ArgumentParser().parse_args(['--x'])", "it has no Params"),
        ("", "declares no hyperparameters: it has no Params"),
        ("Params = {'eta': 0.1}", "is neither a msgspec.Struct nor a dataclass"),
        ("class Params: pass", "is neither a msgspec.Struct nor a dataclass"),
    ],
)
def test_a_script_that_cannot_be_described_is_an_error_that_says_why(write: Write, text: str, message: str) -> None:
    with pytest.raises(RunError, match=re.escape(message)) as caught:
        call(describe, write(text))
    assert caught.value.hint


def test_the_exception_of_the_script_is_kept_as_the_cause(write: Write) -> None:
    with pytest.raises(RunError) as caught:
        script_module.load_script(write("1 / 0"))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_metric_nobody_could_read_keeps_its_own_error(write: Write) -> None:
    with pytest.raises(MetricError, match="metric name 'a b' cannot be logged"):
        script_module.load_script(write("from trainbox.metrics import Metric\nBAD = Metric('a b', 'maximize')"))


def test_only_python_scripts_that_exist_are_loaded(tmp_path: Path) -> None:
    shell = tmp_path / "train.sh"
    shell.write_text("exit 0\n")
    with pytest.raises(RunError, match=r"train\.sh' is not a Python script"):
        call(describe, shell)
    with pytest.raises(RunError, match=r"there is no script '\./no_such\.py'"):
        call(describe, "./no_such.py")
    with pytest.raises(ProgramError):
        call(describe, "no_such_bundled_script")


def test_a_bundled_script_is_found_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def find(name: str) -> Path:
        return tmp_path / f"{name}_train.py"

    monkeypatch.setattr(script_module, "find_bundled", find)
    assert script_module.find_script("xgboost") == tmp_path / "xgboost_train.py"


def test_metrics_prints_the_definitions_and_nothing_else(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(SCRIPT)
    assert call(show_metrics, path, "--hp", "num-round=3", "--hp", "eval_metric=auc,logloss") == 0
    assert json.loads(capsys.readouterr().out) == [
        {"Name": name, "Regex": Metric(name, "maximize").regex} for name in ("validation:auc", "validation:logloss")
    ]


def test_the_hyperparameters_that_metrics_depend_on_are_checked(write: Write) -> None:
    path = write(SCRIPT)
    with pytest.raises(HyperparameterError, match=f"'num_rond' is not known to {path.name}"):
        call(show_metrics, path, "--hp", "num_rond=3")
    with pytest.raises(argparse.ArgumentError, match="'num_round' is not of the form KEY=VALUE"):
        call(show_metrics, path, "--hp", "num_round")


def test_metrics_can_be_asked_for_without_what_has_no_default(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(show_metrics, write(SCRIPT)) == 0
    assert json.loads(capsys.readouterr().out)


def test_metrics_at_the_top_level_of_a_script_are_found_once_and_in_order(write: Write) -> None:
    module = script_module.load_script(
        write(
            "from trainbox.metrics import Metric\n"
            "LOSS = Metric('loss', 'minimize')\n"
            "_HIDDEN = Metric('hidden', 'minimize')\n"
            "METRICS = (LOSS, Metric('auc', 'maximize'))\n"
            "MORE = [Metric('f1', 'maximize')]\n"
            "NUMBERS = (1, 2)\n"
            "MIXED = (LOSS, 1)\n"
            "EMPTY = ()\n"
        )
    )
    assert [metric.name for metric in script_module.find_metrics(module, {})] == ["loss", "hidden", "auc", "f1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "declares no metrics"),
        ("def metrics(params): return []", "declares no hyperparameters: it has no Params"),
        (
            "import msgspec\nclass Params(msgspec.Struct): pass\ndef metrics(params): return ['auc']",
            "returned ['auc'], expected a list of Metric",
        ),
    ],
)
def test_a_script_without_usable_metrics_is_an_error_that_says_why(write: Write, text: str, message: str) -> None:
    with pytest.raises(RunError, match=re.escape(message)):
        call(show_metrics, write(text))


def test_an_imported_module_called_metrics_is_no_declaration(write: Write) -> None:
    module = script_module.load_script(write("from trainbox import metrics\nAUC = metrics.Metric('auc', 'maximize')\n"))
    assert script_module.find_metrics(module, {}) == (Metric("auc", "maximize"),)


LOG = (
    b"starting \xff\n"
    b"[metrics] step=0 validation:auc=0.5\n"
    b"[metrics] step=1 validation:auc=0.7512345678 train:auc=1.0\n"
    b"[metrics] step=2\tvalidation:auc=0.9\n"
    b"[metrics] final validation:auc=0.625\n"
)


def test_check_says_what_each_regex_finds(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "job.log"
    log.write_bytes(LOG)
    assert call(show_metrics, write(SCRIPT), "--hp", "num_round=3", "--check", log) == 0
    assert capsys.readouterr().out == (
        "METRIC          GOAL      FOUND  FIRST  LAST   BEST\n"
        "validation:auc  maximize  3      0.5    0.625  0.751235\n"
        "logged but not declared: train:auc (with the job's own --hp there may be more)\n"
        "lines that look like metric lines but are read by no regex: 1\n"
        "  line 4: [metrics] step=2\\tvalidation:auc=0.9\n"
    )


def test_check_exits_1_if_a_metric_is_found_nowhere(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(LOG.decode(errors="replace")))
    argv = (write(SCRIPT), "--hp", "num_round=3", "--hp", "eval_metric=auc,logloss", "--check", "-")
    assert call(show_metrics, *argv) == 1
    assert "validation:logloss  maximize  none\n" in capsys.readouterr().out


def test_a_log_that_cannot_be_read_is_an_error_that_names_it(write: Write, tmp_path: Path) -> None:
    path = write("from trainbox.metrics import Metric\nAUC = Metric('auc', 'maximize')\n")
    with pytest.raises(RunError, match=r"the log '.*no\.log' cannot be read: No such file or directory"):
        call(show_metrics, path, "--check", tmp_path / "no.log")
    with pytest.raises(RunError, match="cannot be read: Is a directory"):
        call(show_metrics, path, "--check", tmp_path)


@pytest.mark.parametrize("columns", ["", "60", "4000"])
def test_in_a_pipe_a_table_is_as_wide_as_columns_or_else_as_its_cells(
    write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    long = "one [bold]of[/bold] many :smile: words " * 20
    text = (
        "import msgspec\nfrom typing import Annotated\nclass Params(msgspec.Struct):\n"
        f"    eta: Annotated[float, msgspec.Meta(description={long!r})] = 0.5\n"
    )
    assert call(describe, write(text)) == 0
    lines = capsys.readouterr().out.splitlines()
    if columns == "60":
        assert max(map(len, lines)) <= 60
        assert " ".join(" ".join(lines).split()) == f"NAME TYPE DEFAULT DESCRIPTION eta float 0.5 {long.strip()}"
    else:
        assert lines == ["NAME  TYPE   DEFAULT  DESCRIPTION", f"eta   float  0.5      {long.strip()}"]


QUIET_SCRIPT = """
import msgspec
from trainbox.metrics import Metric
AUC = Metric("auc", "maximize")
class Params(msgspec.Struct):
    num_round: int = 3
"""
WITHOUT_RICH = "import sys; sys.modules['rich'] = None; from trainbox.cli import main; sys.exit(main())"


@pytest.mark.process
def test_every_verb_works_without_rich(write: Write, tmp_path: Path) -> None:
    script, log = write(QUIET_SCRIPT), tmp_path / "log"
    log.write_text("[metrics] step=1 auc=0.5\n")
    for arguments, said in (
        (("describe", script), "num_round  int   3\n"),
        (("metrics", script, "--check", log), "auc     maximize  1      0.5    0.5   0.5\n"),
        (("run", script, "--out", tmp_path / "out"), "Completed, exit code 0\n"),
        (("describe", script, "--json"), '"num_round"'),
        (("run", script, "--out", tmp_path / "none", "--dry-run"), "which starts:"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_RICH, *arguments], capture_output=True, text=True, check=False, timeout=300
        )
        assert (done.returncode, "rich" in done.stderr) == (0, False), done.stderr
        assert said in done.stdout


@pytest.mark.process
def test_reading_a_job_and_logging_do_not_load_the_typed_route() -> None:
    script = (
        "import sys, trainbox.contract.job, trainbox.contract.hyperparameters, trainbox.metrics\n"
        "sys.exit('trainbox.contract.params' in sys.modules or 'trainbox.contract.params.values' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=300).returncode == 0
