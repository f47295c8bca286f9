"""`run_job` in a program: in any thread, several at once, told by events, stopped from elsewhere."""

import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import msgspec
import pytest

from tests.support.runs import record
from tests.support.waiting import LIMIT, eventually
from trainbox.contract.job_request import from_request
from trainbox.contract.job_spec import AlgorithmSpecification, JobSpec, LocalScript, MetricDefinition
from trainbox.errors import RunError
from trainbox.local import request as request_module
from trainbox.local.backends.isolation import Isolation
from trainbox.local.local_options import LocalOptions
from trainbox.local.results.record import Curve
from trainbox.local.run_events.events import (
    Event,
    HostFinished,
    HostStarted,
    JobFinished,
    JobStarted,
    LinesWritten,
    MetricLogged,
    NoteGiven,
    StatusChanged,
    TimePassed,
)
from trainbox.local.run_job import run_job
from trainbox.local.stop_request import StopRequest
from trainbox.system.procfs import read_stat
from trainbox.system.subreaper import children

pytestmark = pytest.mark.process

#: Works until it is stopped, and saves what it has then.
STOPPABLE = """
import os, signal, time
from pathlib import Path
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
print("at work", flush=True)
while not stopped:
    time.sleep(0.02)
Path(os.environ["SM_MODEL_DIR"], "model").write_text("of a stopped job")
"""
#: Works until a file is there.
WAITING = """
import os, time
from pathlib import Path
print("at work", os.getpid(), os.getppid(), flush=True)
while not Path({go!r}).exists():
    time.sleep(0.02)
print("accuracy: 0.75;")
Path(os.environ["SM_MODEL_DIR"], "model").write_text("whole")
"""


class Heard:
    """A listener that remembers, and knows when a text has come."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.threads: set[int] = set()

    def on_event(self, event: Event) -> None:
        self.threads.add(threading.get_ident())
        if not isinstance(event, TimePassed):
            self.events.append(event)

    @property
    def text(self) -> str:
        return b"".join(event.data for event in self.events if isinstance(event, LinesWritten)).decode()

    def has(self, text: str) -> Callable[[], bool]:
        return lambda: text in self.text

    @property
    def phases(self) -> list[str]:
        return [event.secondary_status for event in self.events if isinstance(event, StatusChanged)]


def spec(here: Path, name: str, script: str, *metrics: MetricDefinition) -> JobSpec:
    (here / name).mkdir()
    (here / name / "train.py").write_text(script)
    return JobSpec(
        training_job_name=name,
        algorithm_specification=AlgorithmSpecification(metric_definitions=metrics),
        script=LocalScript(file="train.py", source_dir=f"file://{here / name}"),
    )


def options(here: Path, name: str) -> LocalOptions:
    return LocalOptions(env={**os.environ}, directory=here, out=here / f"{name}-result")


def started(told: Heard) -> list[str]:
    return [event.host for event in told.events if isinstance(event, HostStarted)]


def test_two_jobs_run_at_once_in_threads_and_one_of_them_is_stopped(tmp_path: Path) -> None:
    go = tmp_path / "go"
    told, whole = Heard(), Heard()
    stop = StopRequest()
    handler = signal.getsignal(signal.SIGTERM)
    before = children(zombies=True)
    accuracy = MetricDefinition(name="accuracy", regex="accuracy: ([0-9.]+);")
    waiting = spec(tmp_path, "whole", WAITING.format(go=str(go)), accuracy)
    stoppable = spec(tmp_path, "stopped", STOPPABLE)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(run_job, stoppable, told, stop, options(tmp_path, "stopped"))
        second = pool.submit(run_job, waiting, whole, None, options(tmp_path, "whole"))
        eventually(told.has("at work"), "the first job at work", ended=first.done)
        eventually(whole.has("at work"), "the second job at work", ended=second.done)
        assert signal.getsignal(signal.SIGTERM) is handler
        stop.ask()
        stopped = first.result(LIMIT)
        assert not second.done(), "the end of a job is not that of another"
        go.touch()
        completed = second.result(LIMIT)
    assert (stopped.status, stopped.secondary_status, stopped.exit_code) == ("Stopped", "Stopped", 0)
    assert stopped.model is not None
    assert (stopped.model / "model").read_text() == "of a stopped job"
    assert (completed.status, completed.exit_code, completed.failure_reason) == ("Completed", 0, None)
    assert completed.model_archive == tmp_path / "whole-result" / "model.tar.gz"
    assert completed.model_archive.is_file()
    assert completed.metrics == {"accuracy": Curve((0,), (0.75,))}
    assert record(tmp_path / "whole-result")["metrics"] == {"accuracy": {"steps": [0], "values": [0.75]}}
    assert children(zombies=True) == before
    assert told.phases == ["Starting", "Downloading", "Training", "Stopping", "Uploading", "Stopped"]
    assert whole.phases == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    for heard, outcome in ((told, stopped), (whole, completed)):
        hosts = ("algo-1",)
        assert heard.events[0] == JobStarted(outcome.job_name, 1, outcome.out, hosts)
        assert heard.events[-1] == JobFinished(outcome)
        kinds = [type(event) for event in heard.events]
        assert kinds.index(HostStarted) < kinds.index(LinesWritten) < kinds.index(HostFinished)
        assert LinesWritten not in kinds[kinds.index(HostFinished) :]
        assert (len(started(heard)), len(heard.threads)) == (1, 1)
    assert MetricLogged("algo-1", "accuracy", 0.75, 0) in whole.events
    assert stopped.out.stat().st_mode & 0o077 == 0, "a result is its user's alone"


def test_a_stop_before_the_start_ends_the_job_as_stopped_without_a_host(tmp_path: Path) -> None:
    told, stop = Heard(), StopRequest()
    stop.ask()
    outcome = run_job(spec(tmp_path, "job", "print('ran')"), told, stop, options(tmp_path, "job"))
    assert (outcome.status, outcome.secondary_status, outcome.exit_code) == ("Stopped", "Stopped", 0)
    assert started(told) == []
    assert told.phases == ["Starting", "Downloading", "Uploading", "Stopped"]
    assert (outcome.model, outcome.metrics) == (None, {})
    assert record(outcome.out)["status"] == "Stopped"


@pytest.mark.parametrize("isolation", ["found", "none"])
def test_a_command_may_make_the_drivers_of_sdk_v3_executable_but_only_their_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isolation: str
) -> None:
    if isolation == "none":
        monkeypatch.setattr(request_module, "find_isolation", lambda: Isolation(reason="no private mounts here"))
    (tmp_path / "drivers").mkdir()
    driver = tmp_path / "drivers" / "sm_train.sh"
    driver.write_text("#!/bin/sh\necho driven\n")
    driver.chmod(0o644)
    path = "${TRAINBOX_ROOT:-/opt/ml}/input/data/sm_drivers/sm_train.sh"
    algorithm = {
        "TrainingInputMode": "File",
        "ContainerEntrypoint": ["/bin/bash"],
        "ContainerArguments": ["-c", f"chmod +x {path} && {path}"],
    }
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"file://{tmp_path}/drivers"}}
    channels = [{"ChannelName": "sm_drivers", "DataSource": source}]
    request = {"TrainingJobName": "job", "AlgorithmSpecification": algorithm, "InputDataConfig": channels}
    told = Heard()
    outcome = run_job(from_request(request), told, options=options(tmp_path, "job"))
    assert (outcome.status, told.text) == ("Completed", "driven\n")
    assert driver.stat().st_mode & 0o777 == 0o644


def test_a_second_stop_kills_what_does_not_leave(tmp_path: Path) -> None:
    told, stop = Heard(), StopRequest()
    stubborn = "import signal, time\nsignal.signal(15, signal.SIG_IGN)\nprint('at work', flush=True)\ntime.sleep(600)\n"
    with ThreadPoolExecutor() as pool:
        job = pool.submit(run_job, spec(tmp_path, "job", stubborn), told, stop, options(tmp_path, "job"))
        eventually(told.has("at work"), "the job at work", ended=job.done)
        stop.ask()
        stop.ask()
        outcome = job.result(LIMIT)
    assert (outcome.status, outcome.exit_code) == ("Stopped", 137)


def test_a_job_that_fails_says_why_and_how(tmp_path: Path) -> None:
    told = Heard()
    script = "print('[metrics] step=1 loss=0.5')\nraise ValueError('no data')\n"
    outcome = run_job(spec(tmp_path, "job", script), told, options=options(tmp_path, "job"))
    assert (outcome.status, outcome.secondary_status, outcome.exit_code) == ("Failed", "Failed", 1)
    assert outcome.failure_reason is not None
    assert "ValueError: no data" in outcome.failure_reason
    assert outcome.failure_reason == record(outcome.out)["failure_reason"]
    assert outcome.output is not None
    assert "ValueError" in (outcome.output / "failure").read_text()
    assert outcome.metrics == {"loss": Curve((1,), (0.5,))}
    assert told.phases[-2:] == ["Uploading", "Failed"]
    assert HostFinished("algo-1", 1) in told.events


@pytest.mark.parametrize("place", ["archive", "channel"])
def test_the_source_is_an_archive_or_the_channel_code_as_the_sdks_send_it(tmp_path: Path, place: str) -> None:
    (tmp_path / "train.py").write_text("import helper\nprint('helped', helper.HELP)\n")
    (tmp_path / "helper.py").write_text("HELP = 7\n")
    (tmp_path / "code").mkdir()
    with tarfile.open(tmp_path / "code" / "sourcedir.tar.gz", "w:gz") as archive:
        for name in ("train.py", "helper.py"):
            archive.add(tmp_path / name, arcname=name)
    own = {"sagemaker_program": '"train.py"'}
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"file://{tmp_path}/code"}}
    if place == "archive":
        own["sagemaker_submit_directory"] = f'"file://{tmp_path}/code/sourcedir.tar.gz"'
    channels = [{"ChannelName": "code", "DataSource": source}] if place == "channel" else []
    request = {"TrainingJobName": "job", "HyperParameters": own, "InputDataConfig": channels}
    told = Heard()
    outcome = run_job(from_request(request), told, options=options(tmp_path, "job"))
    assert (outcome.status, "helped 7" in told.text) == ("Completed", True), told.text


def test_a_command_of_the_request_is_started_in_place_of_train_and_hears_a_stop(tmp_path: Path) -> None:
    told, stop = Heard(), StopRequest()
    shell = "trap 'echo \"stopped $0\"; exit 0' TERM; cat $1; while :; do sleep 0.02; done"
    algorithm = AlgorithmSpecification(
        container_entrypoint=("sh", "-c", shell),
        container_arguments=("named", str(tmp_path / "said")),
    )
    (tmp_path / "said").write_text("at work\n")
    job_spec = JobSpec(training_job_name="job", algorithm_specification=algorithm, hyper_parameters={"eta": "1"})
    with ThreadPoolExecutor() as pool:
        job = pool.submit(run_job, job_spec, told, stop, options(tmp_path, "job"))
        eventually(told.has("at work"), "the command at work", ended=job.done)
        stop.ask()
        outcome = job.result(LIMIT)
    assert (outcome.status, outcome.exit_code) == ("Stopped", 0)
    assert told.text == "at work\nstopped named\n"


def test_a_signal_while_an_earlier_result_is_taken_over_ends_the_job(tmp_path: Path) -> None:
    class Interrupted(StopRequest):
        """Ctrl-C comes as soon as signals are counted."""

        def listening(self) -> AbstractContextManager[object]:
            if not self.count:
                self.ask(signal.SIGINT)
            return nullcontext()

    job_spec = spec(tmp_path, "job", "print('ran')")
    first = run_job(job_spec, options=options(tmp_path, "job"))
    assert first.status == "Completed"
    told = Heard()
    again = msgspec.structs.replace(options(tmp_path, "job"), overwrite=True)
    outcome = run_job(job_spec, told, Interrupted(), again)
    assert (outcome.status, outcome.exit_code, started(told)) == ("Stopped", 130, [])


@pytest.mark.parametrize("isolation", ["found", "none"])
def test_what_a_killed_host_leaves_is_ended_and_nothing_else_of_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isolation: str
) -> None:
    if isolation == "none":
        monkeypatch.setattr(request_module, "find_isolation", lambda: Isolation(reason="no private mounts here"))
    go, told, whole = tmp_path / "go", Heard(), Heard()
    killed = spec(tmp_path, "killed", WAITING.format(go="/nowhere"))
    waiting = spec(tmp_path, "whole", WAITING.format(go=str(go)))
    with ThreadPoolExecutor() as pool:
        first = pool.submit(run_job, killed, told, None, options(tmp_path, "killed"))
        second = pool.submit(run_job, waiting, whole, None, options(tmp_path, "whole"))
        eventually(told.has("at work"), "the first job at work", ended=first.done)
        eventually(whole.has("at work"), "the second job at work", ended=second.done)
        own = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        script, supervisor = map(int, told.text.split("at work")[1].split()[:2])
        os.kill(supervisor, signal.SIGKILL)
        outcome = first.result(LIMIT)
        assert (outcome.status, outcome.exit_code) == ("Failed", 137)
        assert read_stat(script).has_ended
        assert own.poll() is None, "a child of the program is none of the job's"
        own.communicate(b"\n")
        go.touch()
        assert second.result(LIMIT).status == "Completed"


def test_a_listener_that_raises_ends_the_job_and_leaves_no_process(tmp_path: Path) -> None:
    class Raises(Heard):
        def on_event(self, event: Event) -> None:
            super().on_event(event)
            if b"at work" in getattr(event, "data", b""):
                raise LookupError("the listener")

    before = children(zombies=True)
    with pytest.raises(LookupError, match="the listener"):
        run_job(spec(tmp_path, "job", STOPPABLE), Raises(), options=options(tmp_path, "job"))
    assert children(zombies=True) == before
    left = record(tmp_path / "job-result")
    assert (left["status"], left["exit_code"]) == ("Failed", 70)
    assert left["failure_reason"] == "InternalServerError: LookupError in the program that ran the job, which ended it"


def test_ctrl_c_while_the_result_is_collected_keeps_what_the_hosts_left(tmp_path: Path) -> None:
    class Interrupts(Heard):
        """Ctrl-C comes while the model is packed, which leaves a FIFO out and says so."""

        def on_event(self, event: Event) -> None:
            super().on_event(event)
            if isinstance(event, NoteGiven) and "not in model.tar.gz" in event.text:
                raise KeyboardInterrupt

    told = Interrupts()
    script = (
        "import os\nos.mkfifo(os.environ['SM_MODEL_DIR'] + '/pipe')\nopen(os.environ['SM_MODEL_DIR'] + '/m', 'w')\n"
    )
    with pytest.raises(KeyboardInterrupt):
        run_job(spec(tmp_path, "job", script), told, options=options(tmp_path, "job"))
    out = tmp_path / "job-result"
    assert (record(out)["status"], record(out)["exit_code"]) == ("Completed", 130)
    left = out / ".trainbox"
    assert f"interrupted while collecting: what the hosts left is in {left}" in [
        event.text for event in told.events if isinstance(event, NoteGiven)
    ]
    assert list(left.rglob("m"))
    assert isinstance(told.events[-1], JobFinished)


def test_what_cannot_be_run_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    told = Heard()
    with pytest.raises(RunError, match="there is no script"):
        run_job(JobSpec(script=LocalScript(name="none")), told, options=options(tmp_path, "job"))
    assert told.events == []
    assert list(tmp_path.iterdir()) == []


def test_the_program_of_the_documentation_runs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "run-a-job-here.md").read_text()
    program = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[-1]
    request = re.findall(r"```json\n(.*?)```", page, re.DOTALL)[-1].replace("/home/me", str(tmp_path))
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "train.py").write_text("import sys\nprint('accuracy: 0.5', *sys.argv[1:])\n")
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train" / "a.csv").write_text("1,2\n")
    (tmp_path / "job.json").write_text(request)
    (tmp_path / "program.py").write_text(program)
    command = [sys.executable, "program.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "algo-2 accuracy: 0.5 --epochs 3" in done.stdout
    assert "accuracy = 0.5 at step 0" in done.stdout
    assert "Completed None {}" in done.stdout
    assert record(tmp_path / "trainbox-out" / "first-job")["metrics"]["accuracy"] == {"steps": [0], "values": [0.5]}
