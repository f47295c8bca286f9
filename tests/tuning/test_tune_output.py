"""`trainbox tune` from its command line to its report, and to the code of the same search on SageMaker."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.aws_calls import check_call, find_calls
from tests.support.html_reader import read_html

pytestmark = pytest.mark.process

SCRIPT = """\
import argparse

parser = argparse.ArgumentParser()
parser.add_argument("--rate", type=float)
parser.add_argument("--n-trees", type=int)
parser.add_argument("--token")
args = parser.parse_args()
for step in range(3):
    print("Test AUC:", 1 - abs(args.rate - 0.3) - 1 / (args.n_trees + step))
"""
DECLARING = """\
import msgspec

import trainbox


class Params(msgspec.Struct, frozen=True):
    rate: float = 0.1


LOSS = trainbox.Metric("validation:loss", "minimize")
AUC = trainbox.Metric("validation:auc", "maximize")

if __name__ == "__main__":
    trainbox.hyperparameters(Params)
"""
COMMAND = (
    *("tune", "train.py", "--range", "rate=0.01:1:log", "--range", "n-trees=1:9", "--trials", "3"),
    *("--metric", "Test AUC=Test AUC: ([0-9.]+)", "--goal", "maximize", "--out", "search"),
)


def tune(directory: Path, *more: str) -> subprocess.CompletedProcess[str]:
    (directory / "train.py").write_text(SCRIPT)
    return subprocess.run(
        [str(Path(sys.executable).with_name("trainbox")), *COMMAND, *more],
        cwd=directory,
        env={**os.environ, "SECRET_OF_MINE": "hunter2-hunter2"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_search_ends_with_a_report_and_prints_itself_for_sagemaker(tmp_path: Path) -> None:
    done = tune(tmp_path)
    assert done.returncode == 0, done.stderr
    report = tmp_path / "search" / "report.html"
    assert f"report  {report}" in done.stdout
    page = report.read_text()
    assert re.search(r'newPlot\(\s*"curves"', page)
    reader = read_html(page)
    assert sum(tag == "tr" for tag, _ in reader.tags) == 4
    assert "3 of 3 (3 completed)" in reader.texts
    # The search of that name was run: to print it is no second one.
    printed = tune(tmp_path, "--print", "boto3")
    assert printed.returncode == 0, printed.stderr
    (call,) = find_calls(printed.stdout)
    assert check_call(call) == []
    assert (tmp_path / "search" / "tuning.json").exists()


@pytest.mark.parametrize("form", ["v2", "v3", "boto3"])
def test_what_is_printed_is_the_search_without_its_secrets_and_nothing_runs(tmp_path: Path, form: str) -> None:
    printed = tune(tmp_path, "--print", form, "--hp-env", "token=SECRET_OF_MINE", "--early-stop", "--parallel", "2")
    assert printed.returncode == 0, printed.stderr
    compile(printed.stdout, form, "exec")
    for text in ("Test AUC: ([0-9.]+)", "n-trees", "Logarithmic", "Auto", "{{resolve:secretsmanager:YOUR-SECRET}}"):
        assert text in printed.stdout
    assert "hunter2" not in printed.stdout + printed.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.py"]


def test_a_search_that_learned_names_its_parents(tmp_path: Path) -> None:
    first = tune(tmp_path)
    assert first.returncode == 0, first.stderr
    printed = tune(tmp_path, "--warm-start", "search", "--job-name", "second", "--print", "v3")
    assert printed.returncode == 0, printed.stderr
    assert 'ParentHyperParameterTuningJob(hyper_parameter_tuning_job_name="search")' in printed.stdout
    assert 'base_tuning_job_name="second"' in printed.stdout


def test_processes_of_a_trial_are_a_setting_and_no_hyperparameter_of_the_script(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(DECLARING)
    words = ["tune", "own.py", "--processes", "2", "--hosts", "3", "--range", "rate=0.01:1:log", "--print", "boto3"]
    done = subprocess.run(
        [str(Path(sys.executable).with_name("trainbox")), *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (call,) = find_calls(done.stdout)
    assert check_call(call) == []
    definition = call.parameters["TrainingJobDefinition"]
    assert definition["StaticHyperParameters"]["processes_per_host"] == "2"
    assert definition["ResourceConfig"]["InstanceCount"] == 3
    assert definition["AlgorithmSpecification"]["MetricDefinitions"][0]["Name"] == "validation:auc"
    assert "trainbox tune: tuning 'validation:auc'" in done.stderr  # a choice made for the user
