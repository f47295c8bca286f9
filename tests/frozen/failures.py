"""Kinds of failure, and the text of the failure file that each leaves."""

import json
import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from tests.frozen.recorded import as_json
from tests.support.trees import Tree
from trainbox.contract.failures.diagnosis import Diagnosis
from trainbox.contract.failures.failure import compose, write_failure
from trainbox.contract.job import Job, read_job
from trainbox.diagnostics.cause import Cause
from trainbox.diagnostics.finding import Finding, blame
from trainbox.diagnostics.verdict import RankFailure, Verdict
from trainbox.supervisor.failure_reason import diagnose
from trainbox.supervisor.outcome import Exit, Outcome

_CODE = Path("/opt/ml/code")
_TRACEBACK = """\
loading
Traceback (most recent call last):
  File "/opt/ml/code/train.py", line 14, in <module>
    main()
  File "/opt/ml/code/train.py", line 9, in main
    fit(rows)
  File "/usr/lib/python3.11/site-packages/library/fit.py", line 77, in fit
    raise {error}
{error}
"""
_XID = Finding(
    check="xid",
    host="algo-1",
    device="gpu3",
    status="fail",
    value="79 (GPU has fallen off the bus)",
    limit=None,
    kind="hardware",
    hint="replace the node",
)
_HEAT = msgspec.structs.replace(_XID, check="temperature", status="warn", value=91, limit=90, hint="it is slower")


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """How a plan ended, and what the agents said."""

    exits: tuple[Exit, ...]
    stopped_by: int = 0
    killed_after_grace: bool = False
    memory_kills: int = 0
    memory_limit: int | None = None
    findings: tuple[Finding, ...] = ()
    verdict: Verdict | None = None
    hosts: tuple[str, ...] = ("algo-1",)
    hyperparameters: Mapping[str, str] = {}
    channels: tuple[str, ...] = ("train",)
    #: What the script has written as its failure file.
    own: str = ""


def ended(code: int = 1, stderr: str = "", stdout: str = "", *, name: str = "script") -> Exit:
    """One process; -n is signal n."""
    return Exit(name, code if code >= 0 else 128 - code, max(0, -code), stderr=stderr, stdout=stdout)


def raised(error: str) -> str:
    """What Python writes."""
    return _TRACEBACK.format(error=error)


def _rank(**more: object) -> RankFailure:
    cause = Cause("ValueError: the loss is NaN", "train.py:9 in step", "ValueError")
    first = RankFailure(rank=3, host="algo-2", code=1, signal=0, cause=cause, family=("ValueError",), step=40)
    return msgspec.structs.replace(first, **more)


def _agreed(host: str, **more: object) -> Diagnosis:
    found = Diagnosis("script", "rank 3 failed", 1, host=host, rank=3)
    return msgspec.structs.replace(found, **more)


_GAVE_UP = "trainbox.errors.PeerError: algo-2 has given up: {}\n  hint: the log of algo-2 says why"
_NCCL = "NCCL_DEBUG=INFO says more"
_TWO = ("algo-1", "algo-2")
_AGENT = ended(1, name="agent")

FAILURES: dict[str, Failure] = {
    "exception": Failure(exits=(ended(stderr=raised("ValueError: found 3 columns, expected 4")),)),
    "exception-on-two-hosts-of-one-rank": Failure(
        exits=(ended(stderr=raised("RuntimeError: no"), name="rank 1"), ended(-15, name="rank 0")), hosts=_TWO
    ),
    "exception-on-stdout": Failure(exits=(ended(stdout=raised("OSError: [Errno 28] No space left on device")),)),
    "module-not-found": Failure(exits=(ended(stderr=raised("ModuleNotFoundError: No module named 'example'")),)),
    "channel-missing": Failure(exits=(ended(stderr=raised("KeyError: 'SM_CHANNEL_VALIDATION'")),)),
    "error-of-trainbox": Failure(
        exits=(ended(7, stderr=raised("trainbox.errors.DataError: channel train: row 2 has 3 values, row 1 has 4")),)
    ),
    "exit-3-and-silent": Failure(exits=(ended(3),)),
    "exit-3-with-last-words": Failure(exits=(ended(3, stderr="one\ntwo\nthree\nError: cannot open rows.csv\n"),)),
    "command-not-found": Failure(exits=(ended(127, stderr="./run.sh: line 2: rscript: command not found\n"),)),
    "killed": Failure(exits=(ended(-9, stderr="step 7\n"),)),
    "segmentation-fault": Failure(
        exits=(
            ended(
                -11,
                stderr="Fatal Python error: Segmentation fault\n\nCurrent thread 0x00007f (most recent call first):\n"
                '  File "/opt/ml/code/train.py", line 5 in crash\n  File "/opt/ml/code/train.py", line 8 in <module>\n',
            ),
        )
    ),
    "out-of-memory": Failure(exits=(ended(-9),), memory_kills=1, memory_limit=2_147_483_648),
    "worker-out-of-memory": Failure(
        exits=(ended(stderr=raised("RuntimeError: DataLoader worker (pid 7) is killed by signal: Killed")),),
        memory_kills=1,
    ),
    "gpu-out-of-memory": Failure(exits=(ended(stderr=raised("torch.OutOfMemoryError: CUDA out of memory")),)),
    "stopped-unhandled": Failure(exits=(ended(-15),), stopped_by=signal.SIGTERM),
    "stopped-and-killed-after-the-grace": Failure(
        exits=(ended(-9),), stopped_by=signal.SIGTERM, killed_after_grace=True
    ),
    "stopped-with-a-code": Failure(exits=(ended(143),), stopped_by=signal.SIGTERM),
    "secret-in-the-exception": Failure(
        exits=(ended(stderr=raised("ConnectionError: https://user:not-a-real-password@host refused")),),
        hyperparameters={"db_password": "not-a-real-password"},
    ),
    "long-message": Failure(exits=(ended(stderr=raised("ValueError: " + "too long, " * 200)),)),
    "written-by-the-script": Failure(exits=(ended(stderr=raised("ValueError: mine")),), own="what the script says"),
    "gpu-reported-beside-an-exception": Failure(
        exits=(ended(stderr=raised("RuntimeError: CUDA error")),), findings=(_XID, _HEAT), own="what the script says"
    ),
    "gpu-warned-beside-an-exception": Failure(
        exits=(ended(stderr=raised("RuntimeError: CUDA error")),), findings=(_HEAT,)
    ),
    "rank-of-this-host": Failure(
        exits=(_AGENT,), hosts=_TWO, verdict=Verdict(_agreed("algo-1"), _rank(host="algo-1"), restarts=3)
    ),
    "rank-of-another-host": Failure(
        exits=(ended(5, name="agent"),), hosts=_TWO, verdict=Verdict(_agreed("algo-2"), _rank())
    ),
    "rank-that-hung": Failure(
        exits=(_AGENT,),
        hosts=_TWO,
        verdict=Verdict(
            _agreed("algo-1", kind="hang", cause="rank 3 (algo-1) hangs: no step for 30 s", hint=_NCCL),
            _rank(host="algo-1", cause=None, family=(), signal=9, code=137, hung="no step for 30 s"),
        ),
    ),
    "host-that-is-lost": Failure(
        exits=(ended(5, name="agent"),),
        hosts=_TWO,
        verdict=Verdict(Diagnosis("peer", "nothing heard for 30 s", 5, host="algo-2"), lost=("algo-2",)),
    ),
    "peer-that-gave-up": Failure(
        exits=(ended(7, stderr=raised(_GAVE_UP.format("train/b.csv:1: no number"))),), hosts=_TWO
    ),
    "peer-that-was-interrupted": Failure(
        exits=(ended(130, stderr=raised(_GAVE_UP.format("KeyboardInterrupt: "))),), hosts=_TWO
    ),
    "hardware-of-a-rank": Failure(
        exits=(_AGENT,),
        hosts=_TWO,
        verdict=Verdict(blame([_XID], followed=_agreed("algo-1")), _rank(host="algo-1")),
    ),
}


def failure_of(case: Failure, root: Path) -> str:
    """Exit code and failure file, as JSON with a line of text for each of its lines."""
    job = _job(case, root)
    outcome = Outcome(
        exits=case.exits,
        stopped_by=case.stopped_by,
        killed_after_grace=case.killed_after_grace,
        memory_kills=case.memory_kills,
        memory_limit=case.memory_limit,
        leftovers=0,
        seconds=1.0,
        findings=case.findings,
    )
    found = diagnose(outcome, job, _CODE, case.verdict)
    file = job.layout.failure_file
    if case.own:
        file.parent.mkdir(parents=True)
        file.write_text(case.own)
    # As `train` does it: what hardware has done goes before what a script says.
    write_failure(file, compose(found, job.secrets), before=found.kind == "hardware")
    return _as_text(found.exit_code, file.read_text(encoding="utf-8"), root)


def _job(case: Failure, root: Path) -> Job:
    config = root / "input/config"
    config.mkdir(parents=True)
    files: dict[str, object] = {
        "hyperparameters": case.hyperparameters,
        "resourceconfig": {"current_host": case.hosts[0], "hosts": case.hosts},
        "inputdataconfig": {name: {"TrainingInputMode": "File"} for name in case.channels},
    }
    for name, content in files.items():
        (config / f"{name}.json").write_text(json.dumps(content))
    return read_job(root, {"TRAINING_JOB_NAME": "frozen"})


def _as_text(code: int, failure: str | None, root: Path) -> str:
    text = failure or ""
    for here, name in ((str(root), "<root>"), (sys.executable, "<python>")):
        text = text.replace(here, name)
    # The line of a bundled script changes with every edit above it.
    text = re.sub(r"(_train\.py):\d+", r"\1:<line>", text)
    return as_json({"exit_code": code, "failure": text.split("\n")})


# -- of real runs ------------------------------------------------------------------------------------------------------


class FailingRun(msgspec.Struct, frozen=True, kw_only=True):
    """A tree and an environment with which `train` fails."""

    program: str = ""
    hyperparameters: Mapping[str, str] = {}
    files: Mapping[str, str] = {}
    env: Mapping[str, str] = {}


_XGBOOST = {"SAGEMAKER_PROGRAM": "", "TRAINBOX_SCRIPT": "xgboost"}

FAILING_RUNS: dict[str, FailingRun] = {
    "script-raises": FailingRun(program="def main():\n    raise ValueError('found nothing')\nmain()\n"),
    "script-exits-3": FailingRun(program="import sys\nprint('a last word', file=sys.stderr)\nsys.exit(3)\n"),
    "script-is-killed": FailingRun(program="import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n"),
    "script-writes-its-own": FailingRun(
        program="import os\nopen(os.environ['SM_OUTPUT_DIR'] + '/failure', 'w').write('mine')\nraise SystemExit(4)\n"
    ),
    "one-of-two-processes-raises": FailingRun(
        program="import os, time\nif os.environ['RANK'] == '1':\n    raise ValueError('of rank 1')\ntime.sleep(60)\n",
        hyperparameters={"processes_per_host": "2"},
    ),
    "shell-script-fails": FailingRun(
        files={"code/run.sh": "echo one >&2\nexit 5\n"}, env={"SAGEMAKER_PROGRAM": "run.sh"}
    ),
    "program-missing": FailingRun(program="", env={"SAGEMAKER_PROGRAM": "trian.py"}),
    "no-program": FailingRun(env={"SAGEMAKER_PROGRAM": ""}),
    "contract-is-no-json": FailingRun(files={"input/config/resourceconfig.json": '{"hosts": [}'}),
    "contract-of-another-type": FailingRun(
        files={"input/config/resourceconfig.json": '{"hosts": "algo-1", "current_host": "algo-1"}'}
    ),
    "bundled-hyperparameter-unknown": FailingRun(hyperparameters={"num_round": "3", "max_dept": "3"}, env=_XGBOOST),
    "bundled-hyperparameter-out-of-range": FailingRun(hyperparameters={"num_round": "0"}, env=_XGBOOST),
    "bundled-channel-missing": FailingRun(hyperparameters={"num_round": "3"}, env=_XGBOOST),
    "bundled-data-bad": FailingRun(
        hyperparameters={"num_round": "3"},
        files={
            "input/data/train/rows.csv": "1,2,3\n0,abc,4\n",
            "input/config/inputdataconfig.json": '{"train": {"TrainingInputMode": "File"}}',
        },
        env=_XGBOOST,
    ),
}


def failure_of_run(case: FailingRun, root: Path) -> str:
    """Run `train` in such a tree."""
    with Tree(root) as tree:
        tree.hyperparameters_from(case.hyperparameters)
        if case.program:
            tree.program(case.program)
        else:
            tree.write("code/train.py", "")
        for name, content in case.files.items():
            tree.write(name, content)
        run = tree.run(**case.env)
    return _as_text(run.code, run.failure, root)
