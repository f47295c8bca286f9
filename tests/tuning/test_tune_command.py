"""What `trainbox tune` makes of its command line and of what the script declares, and what it refuses."""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from trainbox.cli.tune import add_arguments
from trainbox.cli.tune_command import read_tuning_command
from trainbox.errors import RunError, TrainboxError
from trainbox.local import request as request_module
from trainbox.local.backends.isolation import Isolation
from trainbox.local.local_options import MachineShare
from trainbox.tuning.records import TrialRecord, TuningRecord
from trainbox.tuning.search_space import (
    CategoricalRange,
    ContinuousRange,
    IntegerRange,
    Objective,
    ParameterRange,
    Resource,
)
from trainbox.tuning.tuning_file import read_tuning, write_tuning
from trainbox.tuning.tuning_plan import TuningPlan, divide, divide_machine, first_trial, trial_job

DECLARED = """
from typing import Annotated, Literal
import msgspec
import trainbox

class Params(msgspec.Struct, frozen=True, kw_only=True):
    lr: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.1
    depth: Annotated[int, msgspec.Meta(ge=1, le=12)] = 3
    optimizer: Literal["adam", "sgd"] = "adam"
    rounds: Annotated[int, msgspec.Meta(ge=1)] = 10
    seed: Annotated[int, msgspec.Meta(ge=0, lt=100)] = 0
    warm: bool = False

LOSS = trainbox.Metric("validation:loss", "minimize")
AUC = trainbox.Metric("validation:auc", "maximize")
SPEED = trainbox.Metric("train:speed", "maximize")

if __name__ == "__main__":
    trainbox.hyperparameters(Params)
"""
FOREIGN = """
import argparse
import importlib
if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--n-estimators", type=int)
    parser.add_argument("--max-depth", type=int)
    print(parser.parse_args())
"""
METRIC = ("--metric", "Test AUC=Test AUC: ([0-9.]+)")


@pytest.fixture(autouse=True)
def _no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_module, "find_isolation", lambda: Isolation(kind="root", at_opt_ml=True))
    monkeypatch.setattr(request_module, "find_free_port", lambda: 23456)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    for name, script in (("mine", DECLARED), ("seed", FOREIGN)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.py").write_text(script)
    return tmp_path


def plan(here: Path, *arguments: str, env: Mapping[str, str] | None = None) -> TuningPlan:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return read_tuning_command(parser.parse_args(arguments), env=env or {}, cwd=here)


def mine(here: Path, *arguments: str) -> TuningPlan:
    return plan(here, "mine/train.py", *arguments)


def ranges(here: Path, *arguments: str) -> tuple[ParameterRange, ...]:
    return mine(here, *arguments).settings.ranges


# -- ranges ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr=0.01:0.3:log", ContinuousRange("lr", 0.01, 0.3, "Logarithmic")),
        ("lr=1e-4:0.1", ContinuousRange("lr", 0.0001, 0.1)),
        ("lr=0.5:0.99:reverse-log", ContinuousRange("lr", 0.5, 0.99, "ReverseLogarithmic")),
        # Declared as a float: whole numbers are two of its values, not all.
        ("lr=0.5:1", ContinuousRange("lr", 0.5, 1.0)),
        ("depth=3:10", IntegerRange("depth", 3, 10)),
        ("rounds=10:1000:log", IntegerRange("rounds", 10, 1000, "Logarithmic")),
        ("depth=2:4:linear", IntegerRange("depth", 2, 4, "Linear")),
        ("depth", IntegerRange("depth", 1, 12)),
        ("lr", ContinuousRange("lr", 0.0001, 1.0)),
    ],
)
def test_a_range_is_read_as_the_script_declares_the_hyperparameter(
    here: Path, text: str, expected: ParameterRange
) -> None:
    assert ranges(here, "--range", text) == (expected,)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("optimizer=adam,sgd", ("adam", "sgd")),
        ('optimizer=["sgd", "adam"]', ("sgd", "adam")),
        ("depth=3,5,7", ("3", "5", "7")),
        ("warm=true,false", ("true", "false")),
    ],
)
def test_a_choice_is_a_list(here: Path, text: str, values: tuple[str, ...]) -> None:
    assert ranges(here, "--choice", text) == (CategoricalRange(text.partition("=")[0], values),)


def test_a_choice_of_a_foreign_script_may_have_commas_as_json(here: Path) -> None:
    found = plan(here, "seed/train.py", "--choice", 'max-depth=["3,4", 5, null]', *METRIC)
    assert found.settings.ranges == (CategoricalRange("max-depth", ("3,4", "5", "null")),)


def test_a_script_without_declarations_has_integers_where_both_ends_are_written_so(here: Path) -> None:
    found = plan(here, "seed/train.py", "--range", "n-estimators=50:300", "--range", "max-depth=1.0:2.5", *METRIC)
    assert found.settings.ranges == (IntegerRange("n-estimators", 50, 300), ContinuousRange("max-depth", 1.0, 2.5))


def test_without_ranges_all_numbers_are_tuned_whose_bounds_the_script_declares(here: Path) -> None:
    found = mine(here)
    assert found.settings.ranges == (ContinuousRange("lr", 0.0001, 1.0), IntegerRange("depth", 1, 12))
    assert found.notes[0] == "tuning what the script declares both bounds of: lr, depth"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--range", "lr=0.3:0.01"), "--range lr=0.3:0.01: the low end is above the high end"),
        (("--range", "depth=3:3"), "--range depth=3:3: there is one value"),
        (("--range", "lr=0:0.3:log"), "--range lr=0.0:0.3:log: a logarithmic scale needs a low end above 0"),
        (("--range", "lr=0.5:1:reverse-log"), "a reverse logarithmic scale needs 0 <= LOW and HIGH < 1"),
        (("--range", "lr=0.1:nan"), "--range lr: 'nan' is not finite"),
        (("--range", "lr=0.1:much"), "--range lr: 'much' is not a number"),
        (("--range", "lr=0.1"), "--range 'lr=0.1': expected NAME=LOW:HIGH or NAME=LOW:HIGH:SCALE"),
        (("--range", "lr=0.1:0.2:loq"), "--range lr: unknown scale 'loq' - did you mean 'log'?"),
        (("--range", "=0.1:0.2"), "--range : train.py does not take it"),
        (("--range", "dept=1:2"), "--range dept: train.py does not take it - did you mean 'depth'?"),
        (("--range", "rounds"), "--range rounds: the script declares no bounds for it"),
        (("--range", "depth=1.5:3"), "--range depth=1.5:3: the script takes whole numbers"),
        (("--range", "lr=0.5:2"), "--range lr: train.py does not take 2.0, it takes float > 0 and <= 1"),
        (("--range", "depth=0:20"), "--range depth: train.py does not take 0, 20, it takes int >= 1 and <= 12"),
        (("--choice", "optimizer=adam,x"), "--choice optimizer: train.py does not take x, it takes one of adam, sgd"),
        (("--choice", "optimizer=adam"), "--choice optimizer=adam: one value is no choice"),
        (("--choice", "optimizer=sgd,sgd"), "--choice optimizer: the value 'sgd' is given twice"),
        (("--choice", "optimizer"), "--choice 'optimizer': expected NAME=VALUE,VALUE"),
        (("--choice", "optimizer=[1,"), "is not a JSON list"),
        (("--range", "lr=0.1:1", "--range", "lr=0.1:0.2"), "lr is given twice"),
        (("--range", "lr=0.1:1", "--hp", "lr=0.2"), "--hp lr: it is tuned, too"),
        (("--range", "lr=0.1:1", "--trials", "0"), "--trials 0: expected 1 to 1000"),
        (("--range", "lr=0.1:1", "--parallel", "0"), "--parallel 0: expected 1 to 1000"),
        (("--choice", "depth=1,2,3", "--choice", "optimizer=adam,sgd", "--strategy", "grid", "--trials", "5"),
         "the grid has 6 points, more than --trials 5"),
        (("--range", "depth=1:3", "--strategy", "grid"), "--strategy grid: depth is a range"),
        (("--range", "lr", "--strategy", "hyperband", "--early-stop"), "--early-stop: Hyperband stops trials itself"),
        (("--range", "lr", "--resource", "1:9"), "--resource is a setting of Hyperband"),
        (("--range", "lr", "--strategy", "hyperband", "--resource", "9:1"), "--resource '9:1': expected"),
        (("--range", "lr", "--job-name", "a" * 33), "32 at most"),
        (("--range", "lr", "--resume"), "--resume: which tuning job?"),
        (("--range", "lr", "--resume", "--overwrite", "--out", "o"), "only one of them can be done"),
        (("--range", "lr", "--warm-start", "nowhere"), "there is no tuning.json"),
        (("--range", "lr", "--max-run", "0"), "--max-run"),
    ],
)  # fmt: skip
def test_a_search_that_cannot_be_is_refused_by_name(here: Path, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(TrainboxError) as raised:
        mine(here, *arguments)
    assert message in str(raised.value)
    assert not (here / "trainbox-out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_estimators=50:300", "train.py has no argument --n_estimators - did you mean '--n-estimators'?"),
        ("lr=0.1:0.2", "train.py has no argument --lr"),
        ("n=1:3", "train.py has no argument -n"),
    ],
)
def test_a_name_that_the_argument_parser_of_a_script_does_not_take_is_refused(
    here: Path, text: str, message: str
) -> None:
    with pytest.raises(RunError) as raised:
        plan(here, "seed/train.py", "--range", text, *METRIC)
    assert message in raised.value.message
    assert raised.value.hint == "its arguments are --max-depth, --n-estimators"


@pytest.mark.parametrize(
    "change",
    [
        ("parser.parse_args()", "parser.parse_known_args()"),
        ("print(", "more(parser)\n    print("),
        ('"--max-depth"', '"--" + "max"'),
        ("ArgumentParser()", "ArgumentParser(parents=[other])"),
    ],
)
def test_a_parser_that_the_source_does_not_show_whole_takes_any_name(here: Path, change: tuple[str, str]) -> None:
    (here / "seed" / "train.py").write_text(FOREIGN.replace(*change))
    assert plan(here, "seed/train.py", "--range", "other=1:3", *METRIC).settings.ranges == (
        IntegerRange("other", 1, 3),
    )


def test_a_bundled_script_is_asked_for_its_hyperparameters_too(here: Path) -> None:
    with pytest.raises(RunError, match="xgboost does not take it - did you mean 'max_depth'"):
        plan(here, "xgboost", "--hp", "num_round=3", "--range", "max_dept=3:5")
    with pytest.raises(RunError, match="nothing is tuned"):
        plan(here, "xgboost", "--hp", "num_round=3")


# -- the objective -----------------------------------------------------------------------------------------------------


def objective(here: Path, *arguments: str) -> tuple[str, str]:
    found = mine(here, "--range", "lr", *arguments).settings.objective
    return found.name, found.goal


def test_the_objective_is_the_last_metric_of_validation_that_the_script_declares(here: Path) -> None:
    assert objective(here) == ("validation:auc", "Maximize")
    assert "tuning 'validation:auc', the last metric of validation" in mine(here, "--range", "lr").notes[-1]
    assert objective(here, "--objective", "validation:loss") == ("validation:loss", "Minimize")
    assert objective(here, "--objective", "validation:loss", "--goal", "maximize") == ("validation:loss", "Maximize")


def test_the_metrics_of_xgboost_depend_on_its_hyperparameters(here: Path) -> None:
    given = ("--hp", "num_round=3", "--range", "eta=0.1:0.5", "--hp", "objective=binary:logistic")
    found = plan(here, "xgboost", *given, "--hp", "eval_metric=logloss,auc").settings.objective
    assert (found.name, found.goal) == ("validation:auc", "Maximize")
    found = plan(here, "xgboost", *given, "--hp", "eval_metric=auc,logloss").settings.objective
    assert (found.name, found.goal) == ("validation:logloss", "Minimize")


def test_a_foreign_script_needs_a_regex_only(here: Path) -> None:
    found = plan(here, "seed/train.py", "--range", "n-estimators=50:300", *METRIC)
    assert found.settings.objective == Objective("Test AUC", "Maximize", "Test AUC: ([0-9.]+)")
    assert [(each.name, each.regex) for each in found.spec.algorithm_specification.metric_definitions] == [
        ("Test AUC", "Test AUC: ([0-9.]+)")
    ]


def test_a_metric_line_of_trainbox_can_come_from_any_program(here: Path) -> None:
    found = plan(here, "seed/train.py", "--range", "max-depth=1:3", "--objective", "v:auc", "--goal", "minimize")
    assert (found.settings.objective.name, found.settings.objective.goal) == ("v:auc", "Minimize")
    assert "v:auc=" in found.settings.objective.regex


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--metric", "auc=auc: [0-9]+"), "--metric auc: its regular expression 'auc: [0-9]+' has no group"),
        (("--metric", "auc=auc: ([0-9]+"), "is malformed"),
        (("--metric", "auc"), "--metric 'auc': expected NAME=REGEX"),
        (("--metric", "a=a(.)", "--metric", "b=b(.)"), "--metric gives 2 metrics"),
        (("--metric", "a=a(.)", "--metric", "a=b(.)"), "--metric a: given twice"),
        (("--metric", "val loss=loss (.)"), "--metric val loss: is more of it better, or less?"),
        (
            ("--metric", "auc=a(.)", "--objective", "acu"),
            "--objective acu: there is no such metric - did you mean",
        ),
        (("--objective", "auc"), "--objective auc: train.py does not declare it"),
        ((), "what is tuned is not said; train.py declares no metrics"),
    ],
)
def test_an_objective_that_cannot_be_found_is_refused(here: Path, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(RunError) as raised:
        plan(here, "seed/train.py", "--range", "max-depth=1:3", *arguments)
    assert message in raised.value.message
    assert raised.value.hint


def test_a_script_that_cannot_be_imported_here_can_be_tuned_by_ranges_and_a_regex(here: Path) -> None:
    (here / "mine" / "train.py").write_text(f"import no_such_module\n{DECLARED}")
    with pytest.raises(RunError, match=r"what is tuned is not said: .*no_such_module"):
        mine(here, "--range", "lr=0.1:0.2")
    assert mine(here, "--range", "lr=0.1:0.2", *METRIC).settings.objective.name == "Test AUC"


# -- the job of a trial ------------------------------------------------------------------------------------------------


def test_a_trial_is_the_job_of_run_with_its_values(here: Path) -> None:
    found = mine(
        here, "--range", "lr", "--hp", "rounds=5", "--out", "search", "--max-run", "60", "--parallel", "2", "--fresh"
    )
    trial = first_trial(found, 7, {"lr": "0.25"}, "now")
    spec, options = trial_job(found, trial, 1, resume=False)
    assert spec.training_job_name == "search-007"
    assert spec.hyper_parameters == {"rounds": "5", "lr": "0.25", "_tuning_objective_metric": "validation:auc"}
    assert spec.stopping_condition.max_runtime_in_seconds == 60
    assert options.out == here / "search" / "trial-007"
    assert not options.owns_children
    assert not options.fresh, "the requirements that the first trial installs are those of all"
    assert trial_job(found, first_trial(found, 1, {"lr": "0.25"}, ""), 0, resume=False)[1].fresh
    assert (options.resume, options.overwrite) == (False, False)
    processors = sorted(os.sched_getaffinity(0))
    assert options.share == divide_machine(processors, (), 2)[1]


@pytest.mark.parametrize(
    ("whole", "parallel", "parts"),
    [
        ((0, 1, 2, 3), 2, ((0, 1), (2, 3))),
        ((0, 2, 5), 2, ((0, 2), (5,))),
        ((4, 5), 3, ((4,), (5,), (4,))),
        ((), 2, ((), ())),
    ],
)
def test_parts_are_alike(whole: tuple[int, ...], parallel: int, parts: tuple[tuple[int, ...], ...]) -> None:
    assert divide(whole, parallel) == parts


def test_each_parallel_trial_has_processors_and_gpus_of_its_own() -> None:
    assert divide_machine((0, 1, 2, 3), ("0", "1", "2"), 2) == (
        MachineShare((0, 1), ("0", "1")),
        MachineShare((2, 3), ("2",)),
    )
    assert divide_machine((0, 1), ("GPU-7f",), 2) == (MachineShare((0,), ("GPU-7f",)), MachineShare((1,), ("GPU-7f",)))
    assert divide_machine((0, 1), ("0", "1"), 1) == ()


def test_secrets_are_not_recorded(here: Path) -> None:
    (here / "token").write_text("hunter2hunter2")
    found = plan(
        here, "seed/train.py", "--range", "max-depth=1:3", *METRIC,
        "--hp", "api_key=s3cr3t-value", "--hp", "plain=@token", "--hp", "rounds=5",
    )  # fmt: skip
    assert found.record.static == {"rounds": "5"}


@pytest.mark.parametrize(
    ("name", "message"),
    [("api_key", "api_key is a secret by its name"), ("sagemaker_program", "is a setting of the container")],
)
def test_what_is_no_hyperparameter_is_not_tuned(here: Path, name: str, message: str) -> None:
    (here / "seed" / "train.py").write_text("print('score=1')\n")
    with pytest.raises(RunError, match=message):
        plan(here, "seed/train.py", "--choice", f"{name}=a,b", *METRIC)


def test_a_finite_space_has_no_more_trials_than_points(here: Path) -> None:
    found = mine(here, "--choice", "depth=1,2,3", "--trials", "20")
    assert found.settings.max_trials == 3
    assert "the search space has 3 points: so many trials are run" in found.notes
    assert mine(here, "--choice", "depth=1,2,3", "--strategy", "grid").settings.max_trials == 3


# -- earlier searches --------------------------------------------------------------------------------------------------


def earlier(directory: Path, found: TuningPlan, *trials: TrialRecord) -> None:
    directory.mkdir()
    record = found.record
    write_tuning(
        TuningRecord(**{**{name: getattr(record, name) for name in record.__struct_fields__}, "trials": trials}),
        directory,
    )


def trial(number: int, values: dict[str, str], objective: float | None = 0.5, status: str = "Completed") -> TrialRecord:
    return TrialRecord(number, f"t-{number}", f"trial-{number:03d}", values, status, objective)  # type: ignore[arg-type]


def test_a_warm_start_takes_the_completed_trials_within_the_ranges(here: Path) -> None:
    given = mine(here, "--range", "lr=0.1:1.0", "--hp", "depth=5")
    earlier(
        here / "one", given,
        trial(1, {"lr": "0.5"}), trial(2, {"lr": "0.05"}), trial(3, {"lr": "0.6"}, None, "Failed"),
        trial(4, {"lr": "0.7"}, 0.9, "Stopped"),
    )  # fmt: skip
    found = mine(here, "--range", "lr=0.1:0.9", "--range", "depth=1:9", "--warm-start", "one")
    # What was fixed then is a value of a range now.
    assert [(each.values, each.objective) for each in found.learned] == [({"lr": "0.5", "depth": "5"}, 0.5)]
    assert found.notes[-1] == "warm start: 1 of 4 earlier trials completed within these ranges"
    with pytest.raises(RunError, match="has the objective 'validation:auc'"):
        mine(here, "--range", "lr", "--objective", "validation:loss", "--warm-start", "one")


def test_a_search_goes_on_only_as_it_was(here: Path) -> None:
    given = mine(here, "--range", "lr=0.1:1.0", "--out", "one")
    earlier(here / "one", given, trial(1, {"lr": "0.5"}))
    same = ("--range", "lr=0.1:1.0", "--out", "one")
    with pytest.raises(RunError, match="holds the tuning job 'one'"):
        mine(here, *same)
    found = mine(here, *same, "--resume", "--trials", "40", "--parallel", "3")
    assert found.previous == read_tuning(here / "one")
    assert (found.settings.max_trials, found.settings.max_parallel) == (40, 3)
    assert mine(here, *same, "--overwrite").previous is None
    for changed in (
        ("--range", "lr=0.1:0.9"), ("--hp", "rounds=3"), ("--seed", "5"), ("--strategy", "random"), ("--early-stop",),
        ("--objective", "validation:loss"),
    ):  # fmt: skip
        others = ("--out", "one") if changed[0] == "--range" else same
        with pytest.raises(RunError, match=r"--resume: .* was .*, not "):
            mine(here, *others, *changed, "--resume")


def test_a_search_goes_on_only_with_the_channels_that_it_had(here: Path) -> None:
    for name in ("data", "other"):
        (here / name).mkdir()
        (here / name / "a.csv").touch()
    search = ("--range", "lr=0.1:1.0", "--out", "one")
    same = (*search, "--channel", "train=data")
    earlier(here / "one", mine(here, *same), trial(1, {"lr": "0.5"}))
    assert mine(here, *search, "--channel", f"train={here}/data", "--resume").previous == read_tuning(here / "one")
    for channels in (["train=other"], ["train=data", "validation=other"], []):
        flags = [word for channel in channels for word in ("--channel", channel)]
        with pytest.raises(RunError, match=r'--resume: --channel of one was \{"train":"\S+/data"\}, not \{'):
            mine(here, *search, *flags, "--resume")


@pytest.mark.parametrize("content", ["{", "[]", "{}", json.dumps({"version": 99})])
def test_a_record_that_is_none_is_named(here: Path, content: str) -> None:
    (here / "one").mkdir()
    (here / "one" / "tuning.json").write_text(content)
    with pytest.raises(RunError, match=r"tuning\.json is not the record of a tuning job"):
        mine(here, "--range", "lr", "--out", "one", "--resume")


def test_a_directory_with_something_else_is_refused(here: Path) -> None:
    with pytest.raises(RunError, match="holds something else than a tuning job"):
        mine(here, "--range", "lr", "--out", "seed")


def test_hyperband_has_a_resource(here: Path) -> None:
    found = mine(here, "--range", "lr", "--strategy", "hyperband", "--resource", "1:81")
    assert found.settings.resource == Resource(1, 81)


def test_without_optuna_a_search_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "trainbox.tuning.search.optuna_study", raising=False)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(RunError) as raised:
        importlib.import_module("trainbox.tuning.search.optuna_study")
    assert (raised.value.message, raised.value.hint) == (
        "a search needs the package 'optuna'",
        "pip install 'trainbox[tuning]'",
    )
