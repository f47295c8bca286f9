"""`run_tuning`: trials are jobs, what becomes of them decides the search, and `tuning.json` tells all of it."""

import argparse
import os
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.support.runs import record
from tests.support.waiting import eventually
from trainbox.cli.tune import add_arguments
from trainbox.cli.tune_command import read_tuning_command
from trainbox.local.stop_request import StopRequest
from trainbox.system.subreaper import children
from trainbox.tuning.events import (
    NoteLogged,
    ObjectiveLogged,
    TickPassed,
    TrialEnded,
    TrialStarted,
    TrialStopping,
    TuningEnded,
    TuningEvent,
    TuningStarted,
)
from trainbox.tuning.records import TuningRecord
from trainbox.tuning.run_tuning import run_tuning
from trainbox.tuning.tuning_file import read_tuning

pytestmark = pytest.mark.process

#: One value, from its hyperparameters.
SCORE = """
import os, sys
from pathlib import Path
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
print(f"score={given['--depth']}.5", flush=True)
print("processors", sorted(os.sched_getaffinity(0)), os.environ["SM_NUM_CPUS"])
Path(os.environ["SM_MODEL_DIR"], "model").write_text(given["--depth"])
"""
METRIC = ("--metric", "score=score=([0-9.]+)")


class Heard:
    """A listener that remembers; `act` is called with each event."""

    def __init__(self, act: Callable[[TuningEvent], None] = lambda _: None) -> None:
        self.events: list[TuningEvent] = []
        self._act = act

    def on_event(self, event: TuningEvent) -> None:
        if not isinstance(event, TickPassed):
            self.events.append(event)
        self._act(event)

    @property
    def notes(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, NoteLogged)]


def tune(
    here: Path, script: str, *arguments: str, heard: Heard | None = None, stop: StopRequest | None = None
) -> TuningRecord:
    (here / "src").mkdir(exist_ok=True)
    (here / "src" / "train.py").write_text(script)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(["src/train.py", "--out", "out", *arguments])
    plan = read_tuning_command(args, env={**os.environ}, cwd=here)
    found = run_tuning(plan, heard or Heard(), stop or StopRequest())
    assert read_tuning(here / "out") == found
    return found


def log(here: Path, number: int) -> str:
    return (here / "out" / f"trial-{number:03d}" / "logs" / "algo-1.log").read_text()


def test_trials_are_jobs_whose_record_and_results_are_kept(tmp_path: Path) -> None:
    heard, before = Heard(), children(zombies=True)
    found = tune(tmp_path, SCORE, "--range", "depth=1:9", "--trials", "3", "--parallel", "2", *METRIC, heard=heard)
    assert (found.status, len(found.trials)) == ("Completed", 3)
    assert children(zombies=True) == before
    assert threading.active_count() == 1
    for trial in found.trials:
        assert (trial.status, trial.objective) == ("Completed", float(f"{trial.values['depth']}.5"))
        job = record(tmp_path / "out" / trial.out)
        assert job["job_name"] == trial.job_name == f"out-{trial.number:03d}"
        assert job["hyperparameters"]["depth"] == trial.values["depth"]
        assert (tmp_path / "out" / trial.out / "model" / "model").read_text() == trial.values["depth"]
        assert (tmp_path / "out" / trial.out / "model.tar.gz").is_file()
    assert found.best_trial is not None
    assert found.best_trial.objective == max(trial.objective or 0 for trial in found.trials)
    kinds = [type(event) for event in heard.events if not isinstance(event, NoteLogged)]
    assert (kinds[0], kinds[-1]) == (TuningStarted, TuningEnded)
    assert [kinds.count(kind) for kind in (TrialStarted, ObjectiveLogged, TrialEnded)] == [3, 3, 3]
    assert kinds[1:3] == [TrialStarted, TrialStarted], "two at a time"


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one processor alone")
def test_processors_are_divided_among_trials_that_run_at_the_same_time(tmp_path: Path) -> None:
    usable = os.sched_getaffinity(0)
    first = sorted(usable)[:2]
    os.sched_setaffinity(0, first)
    try:
        tune(tmp_path, SCORE, "--choice", "depth=1,2", "--strategy", "grid", "--parallel", "2", *METRIC)
    finally:
        os.sched_setaffinity(0, usable)
    logs = [log(tmp_path, number) for number in (1, 2)]
    assert [sum(f"processors [{one}] 1" in text for text in logs) for one in first] == [1, 1]


def test_the_same_seed_and_one_trial_at_a_time_give_the_same_search(tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        given = ("--range", "depth=1:90", "--trials", "4", "--seed", "5", *METRIC)
        found.append([trial.values for trial in tune(tmp_path / name, SCORE, *given).trials])
    assert found[0] == found[1]


# -- trials that fail --------------------------------------------------------------------------------------------------


def test_a_trial_that_fails_is_one_with_a_reason_and_five_in_a_row_end_the_search(tmp_path: Path) -> None:
    script = "import sys\nsys.exit(f'no luck with {sys.argv[-1]}')"
    found = tune(tmp_path, script, "--range", "depth=1:90", "--trials", "20", *METRIC)
    assert (found.status, len(found.trials), found.best) == ("Failed", 5, None)
    assert found.failure_reason.startswith("5 trials in a row failed, the last one: AlgorithmError: no luck with ")
    assert all(trial.status == "Failed" and "no luck with" in trial.failure_reason for trial in found.trials)


def test_a_trial_that_succeeds_between_failures_lets_the_search_go_on(tmp_path: Path) -> None:
    depths = ",".join(map(str, range(1, 8)))
    script = SCORE.replace("print(", "if given['--depth'] != '4': sys.exit('no')\nprint(", 1)
    found = tune(tmp_path, script, "--choice", f"depth={depths}", "--strategy", "grid", *METRIC)
    assert [trial.status for trial in found.trials] == ["Failed"] * 3 + ["Completed"] + ["Failed"] * 3
    assert (found.status, found.best) == ("Completed", 4)


def test_a_metric_that_never_appears_is_told_after_the_first_trial(tmp_path: Path) -> None:
    script = "print('[metrics] step=1 loss=0.5')"
    found = tune(tmp_path, script, "--range", "depth=1:9", "--trials", "20", "--metric", "score=scoer=([0-9.]+)")
    assert (found.status, len(found.trials)) == ("Failed", 1)
    assert found.failure_reason == "trial 1 completed, and the objective 'score' is not in its log (it logged loss)"


def test_a_first_trial_whose_objective_is_not_a_number_is_not_the_end(tmp_path: Path) -> None:
    script = SCORE.replace("{given['--depth']}.5", "{'nan' if given['--depth'] == '1' else 2}")
    found = tune(tmp_path, script, "--choice", "depth=1,2", "--strategy", "grid", *METRIC)
    assert [trial.objective for trial in found.trials] == [None, 2.0]
    assert "the objective 'score' is not in its log" in found.trials[0].failure_reason
    assert (found.status, found.best) == ("Completed", 2)


def test_a_trial_that_hangs_is_ended_by_max_run_and_what_it_logged_counts(tmp_path: Path) -> None:
    script = SCORE.replace("Path(os", "import time\nwhile given['--depth'] == '2': time.sleep(0.05)\nPath(os")
    given = ("--choice", "depth=1,2", "--strategy", "grid", "--max-run", "15")
    found = tune(tmp_path, script, *given, *METRIC)
    assert [(trial.status, trial.objective) for trial in found.trials] == [("Completed", 1.5), ("Stopped", 2.5)]
    assert found.trials[1].failure_reason == "MaxRuntimeExceeded"
    assert not found.trials[1].is_interrupted
    assert found.best == 1, "the best one completed"


# -- early stopping ----------------------------------------------------------------------------------------------------

#: Logs a value for each epoch; a trial of quality 0 goes on until it is stopped.
EPOCHS = """
import os, signal, sys, time
from pathlib import Path
quality = int(sys.argv[-1])
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
for epoch in range(5):
    print(f"[metrics] step={epoch} acc={quality + epoch / 10}", flush=True)
while quality == 0 and not stopped:
    time.sleep(0.01)
Path(os.environ["SM_MODEL_DIR"], "model").write_text("stopped" if stopped else "whole")
"""
ACC = ("--objective", "acc", "--goal", "maximize")


def test_a_trial_that_falls_behind_is_stopped_by_sigterm(tmp_path: Path) -> None:
    heard = Heard()
    given = ("--choice", "quality=1,2,0", "--strategy", "grid", "--early-stop", *ACC)
    found = tune(tmp_path, EPOCHS, *given, heard=heard)
    last = found.trials[2]
    assert (last.status, last.is_stopped_early, last.is_interrupted, last.failure_reason) == (
        "Stopped",
        True,
        False,
        "",
    )
    assert last.objective == 0.4
    assert (tmp_path / "out" / last.out / "model" / "model").read_text() == "stopped"
    assert [event.number for event in heard.events if isinstance(event, TrialStopping)] == [3]
    assert (found.status, found.best) == ("Completed", 2)


def test_early_stopping_that_can_have_no_effect_is_told_once(tmp_path: Path) -> None:
    heard = Heard()
    tune(tmp_path, SCORE, "--choice", "depth=1,2", "--strategy", "grid", "--early-stop", *METRIC, heard=heard)
    told = "no trial can be stopped early: 'score' is logged once, not in each epoch"
    assert heard.notes.count(told) == 1


def test_hyperband_stops_trials_too(tmp_path: Path) -> None:
    script = EPOCHS.replace("quality == 0", "quality < 10")
    given = ("--choice", "quality=10,1", "--strategy", "hyperband", "--resource", "1:2", *ACC, "--seed", "1")
    found = tune(tmp_path, script, *given)
    assert {trial.values["quality"]: trial.is_stopped_early for trial in found.trials} == {"10": False, "1": True}


# -- the end of the tuning job, and what comes after it ----------------------------------------------------------------


def test_a_stop_ends_running_trials_and_the_search_goes_on_with_them_later(tmp_path: Path) -> None:
    script = SCORE.replace(
        "Path(os",
        "at = Path('/opt/ml/checkpoints/at') if Path('/opt/ml/input').exists() else Path(os.environ['TRAINBOX_ROOT'],"
        " 'checkpoints/at')\n"
        "seen = at.exists()\nat.touch()\nprint('resumed' if seen else 'new', flush=True)\n"
        "import time\nwhile not seen: time.sleep(0.02)\nPath(os",
    )
    stop = StopRequest()

    def act(event: TuningEvent) -> None:
        if isinstance(event, ObjectiveLogged):
            eventually(lambda: "new" in log(tmp_path, 1), "the checkpoint")
            stop.ask()

    given = ("--choice", "depth=1,2", "--strategy", "grid", *METRIC)
    found = tune(tmp_path, script, *given, heard=Heard(act), stop=stop)
    assert (found.status, len(found.trials)) == ("Stopped", 1)
    assert (found.trials[0].status, found.trials[0].is_interrupted) == ("Stopped", True)
    script = script.replace("while not seen", "while False")
    heard = Heard()
    found = tune(tmp_path, script, *given, "--resume", heard=heard)
    assert [(trial.status, trial.objective) for trial in found.trials] == [("Completed", 1.5), ("Completed", 2.5)]
    assert "resumed" in log(tmp_path, 1)
    starts = [(event.trial.number, event.is_resumed) for event in heard.events if isinstance(event, TrialStarted)]
    assert starts == [(1, True), (2, False)]


def test_a_trial_that_had_ended_before_its_end_was_recorded_is_not_run_again(tmp_path: Path) -> None:
    given = ("--choice", "depth=1,2", "--strategy", "grid", *METRIC)
    found = tune(tmp_path, SCORE, *given)
    # As after a kill between the end of the last job and the record of it.
    running = msgspec.structs.replace(found.trials[1], status="InProgress", objective=None, seconds=0.0)
    torn = msgspec.structs.replace(found, trials=(found.trials[0], running), status="InProgress", best=1)
    (tmp_path / "out" / "tuning.json").write_bytes(msgspec.json.encode(torn))
    heard = Heard()
    again = tune(tmp_path, SCORE, *given, "--resume", heard=heard)
    assert not [event for event in heard.events if isinstance(event, TrialStarted)]
    assert [trial.objective for trial in again.trials] == [1.5, 2.5]
    assert again.best == 2


def test_more_trials_are_added_by_resume_and_all_of_them_replaced_by_overwrite(tmp_path: Path) -> None:
    given = ("--range", "depth=1:90", *METRIC)
    first = tune(tmp_path, SCORE, *given, "--trials", "2")
    more = tune(tmp_path, SCORE, *given, "--trials", "3", "--resume")
    assert more.trials[:2] == first.trials
    assert len(more.trials) == 3
    new = tune(tmp_path, SCORE, *given, "--trials", "1", "--overwrite")
    assert len(new.trials) == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["trial-001", "tuning.json"]


def test_a_search_whose_result_lies_beside_the_script_does_not_copy_its_trials(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    given = ("--choice", "depth=1,2,3", "--strategy", "grid", "--parallel", "2", "--out", "src/out", *METRIC)
    script = SCORE + "\nprint('source', sorted(path.name for path in Path().iterdir()))"
    (tmp_path / "src" / "train.py").write_text(script)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    plan = read_tuning_command(parser.parse_args(["src/train.py", *given]), env={**os.environ}, cwd=tmp_path)
    run_tuning(plan, Heard(), StopRequest())
    for number in (1, 2, 3):
        text = (tmp_path / "src" / "out" / f"trial-{number:03d}" / "logs" / "algo-1.log").read_text()
        assert "source ['train.py']" in text
