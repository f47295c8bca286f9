"""A GPU that goes bad while a job trains: real jobs, whose ranks die as NVML, recorded, reports why."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.addresses import free_port
from tests.support.gpu_hosts import SCRIPT, GpuHost, found, needs_mounts
from tests.support.trees import Run
from tests.support.waiting import eventually

pytest.importorskip("torch")
pytestmark = [pytest.mark.process, needs_mounts]

#: Ranks that say how far they are, as a session does; one may do something at a step.
RANK = (
    SCRIPT
    + """
import signal, sys
import torch
import torch.distributed as dist
from pathlib import Path
from trainbox.contract.cluster.progress import PROGRESS_VARIABLE, RankProgress, StepPhase

scratch = Path(os.environ[PROGRESS_VARIABLE]).parent
rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
progress = RankProgress(Path(os.environ[PROGRESS_VARIABLE]), int(os.environ["LOCAL_RANK"]))
progress.mark(0, StepPhase.START)
dist.init_process_group("gloo")
for step in range(1, 11):
    progress.mark(step - 1, StepPhase.COMPUTE)
    if (rank, attempt, step) == (1, 0, 6):
        READY(scratch)
        WHAT
    dist.all_reduce(torch.ones(1))
    progress.mark(step, StepPhase.DATA)
print("ended", rank, attempt, flush=True)
progress.mark(10, StepPhase.DONE)
dist.barrier()
dist.destroy_process_group()
"""
)
DIE = "os.kill(os.getpid(), signal.SIGKILL)"
XID_79 = 'report(event=[1, "nvmlEventTypeXidCriticalError", 79])'
DIED = "what followed: rank 1 was killed by SIGKILL after step 5"
LOST = 'nvmlDeviceGetHandleByIndex={"error": 15}'
REPLACE = "hint: repair or replace the node; SageMaker does it after the job has failed"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[GpuHost]:
    with GpuHost(tmp_path) as built:
        built.tree.hosts("localhost").hyperparameters(processes_per_host=2, trainbox_launcher="torchrun")
        yield built


def run(host: GpuHost, what: str, **env: str) -> Run:
    host.tree.program(RANK.replace("READY", "await_watch").replace("WHAT", what))
    return host.run(**env)


def restarts(run: Run) -> list[str]:
    return re.findall(r"trainbox: restart \d of 3: (.*)", run.log)


#: What NVML comes to report, and what is said of it.
XID = (XID_79, "nvml.xid: Xid 79: the GPU has fallen off the bus (limit: none)")
REMAP = ("report(1, nvmlDeviceGetRemappedRows=[0, 1, 0, 1])", "nvml.row_remap_failed: yes (limit: no)")
RECOVERY = (
    'report(1, nvmlDeviceGetFieldValues={"NVML_FI_DEV_GET_GPU_RECOVERY_ACTION": 1})',
    "nvml.recovery_action: GPU reset (limit: none)",
)


@pytest.mark.long
def test_a_rank_that_died_of_its_gpu_ends_the_job_as_hardware(host: GpuHost) -> None:
    report, check = REMAP
    ended = run(host, f"{report}; {DIE}")
    assert ended.code == 78, ended.log
    assert ended.failure == (
        f"HARDWARE localhost gpu1 {check}\n{DIED}\nat the script (exit code 137, rank 1)\n{REPLACE}"
    )
    assert restarts(ended) == []
    assert ("gpu1", "fail") in {finding[:2] for finding in found(ended)}


@pytest.mark.long
def test_a_rank_that_hangs_on_a_bad_gpu_is_no_restart_either(host: GpuHost) -> None:
    host.tree.hyperparameters(processes_per_host=2, trainbox_launcher="torchrun", trainbox_hang_seconds=1)
    ended = run(host, f"{XID_79}; os.kill(os.getpid(), signal.SIGSTOP)")
    assert ended.code == 78, ended.log
    first, followed, *_ = str(ended.failure).splitlines()
    assert first == "HARDWARE localhost gpu1 nvml.xid: Xid 79: the GPU has fallen off the bus (limit: none)"
    assert re.fullmatch(
        r"what followed: rank 1 made no progress for .* after step 5 \(its process is stopped\)", followed
    )
    assert restarts(ended) == []


@pytest.mark.long
def test_what_a_program_did_to_its_gpu_does_not_stop_a_restart_and_is_a_hint_of_that_attempt_alone(
    host: GpuHost,
) -> None:
    again = 'report(event=[1, "nvmlEventTypeXidCriticalError", 31]) if attempt == 0 else None'
    twice = RANK.replace("(rank, attempt, step) == (1, 0, 6)", "rank == 1 and attempt < 2 and step == 6")
    host.tree.program(twice.replace("READY", "await_watch").replace("WHAT", f"{again}; {DIE}"))
    ended = host.run()
    assert ended.code == 0, ended.log
    assert sorted(re.findall("ended . .", ended.stdout.decode())) == ["ended 0 2", "ended 1 2"]
    died = "rank 1 was killed by SIGKILL after step 5"
    why = "GPU memory page fault, most often the program's own: look for an illegal address in its log"
    assert restarts(ended) == [f"{died}; localhost gpu1 reported Xid 31: {why}", died]


@pytest.mark.long
@pytest.mark.parametrize(
    ("report", "said"),
    [
        pytest.param(
            'report(nvmlEventSetWait={"hang": True}); await_silence(scratch)',
            "the watch over the GPUs could not be asked: no answer within 2 s",
            id="events hang",
        ),
        pytest.param(
            'report(0, nvmlDeviceGetRemappedRows={"hang": True})',
            "could not be asked: no answer within 2 s",
            id="a reading hangs",
        ),
        pytest.param(
            'report(nvmlEventSetWait={"crash": "planted"}); await_end(scratch)',
            "the watch over the GPUs has ended with exit code 1: the job goes on without it",
            id="crash",
        ),
    ],
)
def test_a_watch_that_fails_does_the_job_no_harm(host: GpuHost, report: str, said: str) -> None:
    ended = run(host, f"{report}; {DIE}")
    assert ended.code == 0, ended.log
    assert restarts(ended) == ["rank 1 was killed by SIGKILL after step 5"]
    assert said in ended.log
    assert "had left behind" not in ended.log


@pytest.mark.long
def test_the_other_hosts_end_as_hardware_and_name_the_one_that_is_bad(tmp_path: Path) -> None:
    names = ("127.0.0.1", "127.0.0.2")
    with GpuHost(tmp_path / "one", gpus=1) as one, GpuHost(tmp_path / "two", gpus=1) as two:
        for each, name in zip((one, two), names, strict=True):
            each.tree.hosts(*names, current=name).hyperparameters(processes_per_host=1, trainbox_launcher="torchrun")
            each.tree.program(
                RANK.replace("WHAT", f"{XID_79.replace('[1', '[0')}; {DIE}").replace("READY", "await_watch")
            )
        port = str(free_port())
        started = [each.start(MASTER_PORT=port) for each in (one, two)]
        ended = [each.tree.finish(process) for each, process in zip((one, two), started, strict=True)]
    assert [run.code for run in ended] == [78, 78], ended[0].log + ended[1].log
    for run_ in ended:
        assert run_.failure == (
            "HARDWARE 127.0.0.2 gpu0 nvml.xid: Xid 79: the GPU has fallen off the bus (limit: none)\n"
            f"{DIED}\nat the script (exit code 137, rank 1, 127.0.0.2)\n{REPLACE}"
        )
        assert restarts(run_) == []


# -- the plain launcher ------------------------------------------------------------------------------------------------


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[GpuHost]:
    with GpuHost(tmp_path) as built:
        yield built


@pytest.mark.parametrize(("report", "check"), [XID, REMAP, RECOVERY], ids=["xid", "remap", "recovery action"])
def test_a_script_that_fails_beside_a_bad_gpu_fails_as_hardware(plain: GpuHost, report: str, check: str) -> None:
    plain.tree.program(
        f"{SCRIPT}await_watch()\n{report}\ndef main():\n    raise ValueError('no such kernel')\nmain()\n"
    )
    ended = plain.run()
    assert ended.code == 78, ended.log
    assert str(ended.failure).splitlines()[:2] == [
        f"HARDWARE algo-1 gpu1 {check}",
        "what followed: ValueError: no such kernel",
    ]
    assert re.search(r"\nat train.py:\d+ in main \(exit code 1\)\nhint: repair or replace the node", str(ended.failure))


def test_a_fault_that_no_script_fails_of_is_logged_only(plain: GpuHost) -> None:
    plain.tree.program(f"{SCRIPT}await_watch()\n{XID_79}\ntime.sleep(1)\n")
    ended = plain.run()
    assert (ended.code, ended.failure) == (0, None), ended.log
    assert found(ended) == [("gpu1", "fail", "Xid 79: the GPU has fallen off the bus")]


def test_what_was_bad_before_the_job_is_not_why_a_script_failed(plain: GpuHost) -> None:
    before = plain.recording.read_text()
    plain.recording.write_text(before.replace('"nvmlDeviceGetTotalEccErrors": 0', '"nvmlDeviceGetTotalEccErrors": 3'))
    plain.tree.program(f"{SCRIPT}await_watch()\nraise ValueError('no such kernel')\n")
    ended = plain.run()
    assert ended.code == 1, ended.log
    assert str(ended.failure).startswith("ValueError: no such kernel")
    assert found(ended) == []


def test_a_driver_that_reports_no_events_any_more_is_still_asked(plain: GpuHost) -> None:
    """A lost GPU does that: nvmlEventSetWait fails for all."""
    lost = f'report(nvmlEventSetWait={{"error": 15}})\nreport(1, {LOST})\n'
    plain.tree.program(f"{SCRIPT}await_watch()\n{lost}raise ValueError('no such kernel')\n")
    ended = plain.run()
    assert ended.code == 78, ended.log
    assert str(ended.failure).startswith("HARDWARE algo-1 gpu1 nvml.answers: ")
    assert "GPU events are no longer available; GPUs are still read every 10 s: GPU is lost" in ended.log


def test_without_nvidia_ml_py_the_watch_says_so_and_leaves(plain: GpuHost, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/pynvml.py").write_text("raise ModuleNotFoundError(\"No module named 'pynvml'\")\n")
    scratch = 'next(pathlib.Path("/dev/shm").glob(f"trainbox-scratch-{os.getppid()}-*"))'
    plain.tree.program(f"{SCRIPT}await_end({scratch})\nraise ValueError('no such kernel')\n")
    ended = plain.run(PYTHONPATH=str(tmp_path / "site"))
    assert ended.code == 1, ended.log
    assert str(ended.failure).startswith("ValueError: no such kernel")
    assert re.findall("trainbox: health: (.*)", ended.log) == ["nothing to watch: No module named 'pynvml'"]
    assert "the watch over the GPUs" not in ended.log


def test_what_the_script_says_of_a_bad_gpu_stands_behind_the_words_that_rules_match(plain: GpuHost) -> None:
    words = "(pathlib.Path(os.environ['TRAINBOX_ROOT']) / 'output/failure').write_text('loss is not finite')"
    plain.tree.program(f"{SCRIPT}import os\nawait_watch()\n{XID_79}\n{words}\nsys.exit(1)\n")
    ended = plain.run()
    assert ended.code == 78, ended.log
    assert str(ended.failure).startswith("HARDWARE algo-1 gpu1 nvml.xid: Xid 79: ")
    assert str(ended.failure).endswith("\nthe script: loss is not finite")


def test_a_script_that_does_not_fail_is_not_held_up_by_a_watch_that_hangs(plain: GpuHost) -> None:
    hang = "report(nvmlEventSetWait={'hang': True})"
    plain.tree.program(f"{SCRIPT}await_watch()\n{hang}\ntime.sleep(1)\n")
    ended = plain.run()
    assert ended.code == 0
    seconds = re.search(r"exit code 0 after ([\d.]+) s", ended.log)
    assert seconds
    assert "had left behind" not in ended.log


def test_a_stop_reaches_the_script_and_leaves_the_watch_until_its_end(plain: GpuHost) -> None:
    """What happens to a GPU in the grace is still seen."""
    plain.tree.program(
        f"{SCRIPT}import signal, sys\n"
        f"def stop(*_):\n    time.sleep(1)\n    {XID_79}\n    await_watch()\n    sys.exit(3)\n"
        "signal.signal(signal.SIGTERM, stop)\nawait_watch()\npathlib.Path('ready').touch()\ntime.sleep(60)\n"
    )
    process = plain.start()
    eventually((plain.tree.code / "ready").exists, "the script")
    os.kill(process.pid, signal.SIGTERM)
    ended = plain.tree.finish(process)
    assert ended.code == 78, ended.log
    assert found(ended) == [("gpu1", "fail", "Xid 79: the GPU has fallen off the bus")]


def test_without_a_gpu_nothing_watches(plain: GpuHost) -> None:
    plain.tree.program(
        "import os, pathlib\nprint(*pathlib.Path('/dev/shm').glob(f'trainbox-scratch-{os.getppid()}-*'))\n"
    )
    plain.prefix = []
    ended = plain.run()
    assert (ended.code, ended.stdout) == (0, b"\n")
