"""`trainbox run` as a person runs it: real processes, files, signals and the real supervisor."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.support.runs import COMMAND, in_log, record
from tests.support.secret_service import PASSWORD, serving
from tests.support.terminals import run_on_terminal
from tests.support.waiting import LIMIT, eventually
from trainbox import cli
from trainbox.cli import run as run_verb
from trainbox.local.backends import namespace

pytestmark = pytest.mark.process

needs_mounts = pytest.mark.skipif(
    os.geteuid() != 0 or bool(namespace.probe("root")), reason="needs root and private mounts"
)
needs_user_namespaces = pytest.mark.skipif(
    subprocess.run(["unshare", "-U", "true"], check=False, capture_output=True).returncode != 0,
    reason="user namespaces are not allowed here",
)
#: Runs until SIGTERM, then saves; resumes from what it saved.
DRILL = """
import os, signal, sys, time
from pathlib import Path
checkpoints = Path(os.environ["SM_MODEL_DIR"]).parent / "checkpoints"
saved = checkpoints / "step"
start = int(saved.read_text()) if saved.exists() else 0
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
for step in range(start, start + 3):
    print(f"[metrics] step={step} loss={10 - step}", flush=True)
print("now at work", flush=True)
while not stopped and start == 0:
    time.sleep(0.02)
saved.write_text(str(step))
Path(os.environ["SM_MODEL_DIR"], "model").write_text(str(step))
"""
FORGED = "trainbox: exit code 0 after 1.0 s, stopped by SIGTERM; model: 0 file(s), 0 bytes"
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, 1); time.sleep(77)  # {mark}"])
print("now at work", flush=True)
time.sleep(77)  # {mark}
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("1,2\n")
    return tmp_path


@pytest.fixture
def no_process_left(tmp_path: Path) -> Callable[[], None]:
    """Checks that no process of this test's job runs any more."""

    def check() -> None:
        assert _processes_marked(str(tmp_path)) == []

    return check


def _processes_marked(text: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if text.encode() in (path / "environ").read_bytes():
                found.append((path / "cmdline").read_bytes().decode(errors="replace"))
    return found


def environment(here: Path, **more: str) -> dict[str, str]:
    """Every process of the job inherits the mark by which `no_process_left` knows it."""
    return {**os.environ, "MARK": str(here), **more}


def run(
    here: Path, script: str, *arguments: str, code: int = 0, env: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    (here / "src" / "train.py").write_text(script)
    argv = [*COMMAND, "src/train.py", *arguments]
    done = subprocess.run(
        argv,
        cwd=here,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        timeout=LIMIT,
        env=environment(here, **(env or {})),
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_a_job_leaves_its_whole_result(here: Path, no_process_left: Callable[[], None]) -> None:
    script = """
import os, sys
from pathlib import Path
print("out"); print("err", file=sys.stderr)
print(sys.argv[1:], os.environ["TRAINING_JOB_NAME"], os.environ["MINE"])
for step in range(3):
    print(f"[metrics] step={step} train:auc={0.5 + step / 10} validation:auc={0.25 * step}")
print("[metrics] final validation:auc=0.5")
print(sorted(os.listdir(os.environ["SM_CHANNEL_TRAIN"])), os.listdir(os.environ["SM_CHANNEL_ONE_FILE"]))
Path(os.environ["SM_MODEL_DIR"], "m").write_text("model")
Path(os.environ["SM_OUTPUT_DATA_DIR"], "o").write_text("output")
"""
    channels = ["--channel", "train=data", "--channel", "one-file=data/a.csv"]
    done = run(here, script, *channels, "--hp", "eta=0.1", "--env", "MINE=yes", "--out", "out", "--job-name", "my-job")
    out = here / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        *("checkpoints", "job.json", "logs", "model", "model.tar.gz", "output")
    ]
    assert (out / "model" / "m").read_text() == "model"
    assert (out / "output" / "data" / "o").read_text() == "output"
    with tarfile.open(out / "model.tar.gz") as tar:
        assert tar.getnames() == ["m"]
    log = (out / "logs" / "algo-1.log").read_text()
    assert "['--eta', '0.1'] my-job yes\n" in log
    assert "['a.csv'] ['a.csv']\n" in log
    assert log in done.stdout
    found = record(out)
    assert (found["status"], found["secondary_status"], found["exit_code"]) == ("Completed", "Completed", 0)
    assert found["metrics"]["train:auc"] == {"steps": [0, 1, 2], "values": [0.5, 0.6, 0.7]}
    assert found["final"] == {"validation:auc": 0.5}
    assert found["hosts"] == [{"name": "algo-1", "exit_code": 0, "log": "logs/algo-1.log"}]
    assert found["channels"] == {"one-file": str(here / "data" / "a.csv"), "train": str(here / "data")}
    assert all(found["seconds"][phase] >= 0 for phase in ("prepare", "train", "collect"))
    assert "my-job: Completed, exit code 0" in done.stdout
    assert " --docker --out " in done.stdout
    no_process_left()


@needs_mounts
def test_hard_coded_paths_work_and_inputs_cannot_be_written(here: Path) -> None:
    script = """
import json, socket
print(json.load(open("/opt/ml/input/config/hyperparameters.json"))["eta"] == "0.1")
print(open("/opt/ml/input/data/train/a.csv").read().strip())
print([socket.gethostbyname(host) for host in ("algo-1", "algo-2")])
for path in ("/opt/ml/input/data/train/a.csv", "/opt/ml/input/data/train/new"):
    try:
        open(path, "a")
    except OSError as error:
        print(error.strerror)
import os
open("/opt/ml/model/" + os.environ["SM_CURRENT_HOST"], "w")
open("/opt/ml/checkpoints/" + os.environ["SM_CURRENT_HOST"], "w")
"""
    before = sorted(Path("/opt/ml").iterdir()) if Path("/opt/ml").is_dir() else []
    run(here, script, "--channel", "train=data", "--hp", "eta=0.1", "--hosts", "2", "--out", "out")
    lines = (here / "out" / "logs" / "algo-2.log").read_text()
    said = "True\n1,2\n['127.0.0.1', '127.0.0.1']\nRead-only file system\nRead-only file system\n"
    assert said in lines
    for name in ("model", "checkpoints"):
        assert sorted(path.name for path in (here / "out" / name).iterdir()) == ["algo-1", "algo-2"]
    assert (here / "data" / "a.csv").read_text() == "1,2\n"
    assert sorted(Path("/opt/ml").iterdir()) == before


@needs_user_namespaces
def test_where_no_mount_is_allowed_a_root_stands_in_and_is_said(here: Path) -> None:
    script = """
import os
from pathlib import Path
root = Path(os.environ["TRAINBOX_ROOT"])
print((root / "input/data/train/a.csv").read_text())
(root / "model" / os.environ["SM_CURRENT_HOST"]).write_text("")
(root / "checkpoints" / os.environ["SM_CURRENT_HOST"]).write_text("")
"""
    (here / "src" / "train.py").write_text(script)
    # In a user namespace that maps nobody this process has no rights but those to its own files.
    argv = ["unshare", "-U", *COMMAND, "src/train.py", "--hosts", "2", "--channel", "train=data", "--out", "out"]
    done = subprocess.run(
        argv, cwd=here, capture_output=True, text=True, check=False, timeout=LIMIT, env=environment(here)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "TRAINBOX_ROOT is used" in done.stderr
    for name in ("model", "checkpoints"):
        assert sorted(path.name for path in (here / "out" / name).iterdir()) == ["127.0.0.1", "127.0.0.2"]


@needs_user_namespaces
def test_an_unprivileged_user_gets_private_mounts_too(here: Path) -> None:
    script = """
import os
from pathlib import Path
try:
    Path(os.environ["SM_CHANNEL_TRAIN"], "new").write_text("")
except OSError as error:
    print("refused:", error.strerror, os.getuid())
Path(os.environ["SM_MODEL_DIR"], "m").write_text("")
"""
    (here / "src" / "train.py").write_text(script)
    ids = ["--map-user=1000", "--map-group=1000"]
    argv = ["unshare", "-U", *ids, *COMMAND, "src/train.py", "--channel", "train=data", "--out", "out"]
    done = subprocess.run(
        argv, cwd=here, capture_output=True, text=True, check=False, timeout=LIMIT, env=environment(here)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "refused: Read-only file system 1000" in done.stdout
    assert (here / "out" / "model" / "m").exists()


def test_one_host_that_fails_fails_the_job_and_stops_the_rest(here: Path, no_process_left: Callable[[], None]) -> None:
    script = """
import os, sys, time
from pathlib import Path
host = os.environ["SM_CURRENT_HOST"]
Path(os.environ["SM_MODEL_DIR"], "m").write_text(host)
written = Path(os.environ["SM_MODEL_DIR"]).parent / "checkpoints" / "written"
if host != os.environ["SM_HOSTS"].strip('[]"').split('","')[-1]:
    written.touch()
else:
    while not written.exists():
        time.sleep(0.02)
    Path(os.environ["SM_MODEL_DIR"]).parent.joinpath("output", "failure").write_text("the disk is on fire")
    sys.exit(7)
time.sleep(3600)
"""
    done = run(here, script, "--hosts", "2", "--out", "out", code=7)
    found = record(here / "out")
    assert (found["status"], found["exit_code"]) == ("Failed", 7)
    assert found["failure_reason"] == "AlgorithmError: the disk is on fire, exit code: 7"
    codes = {host["name"]: host["exit_code"] for host in found["hosts"]}
    first, second = sorted(codes)
    assert (codes[first], codes[second]) == (143, 7)
    assert f"{second} has failed: SIGTERM to {first}" in done.stderr
    assert (here / "out" / "output" / "failure").read_text() == "the disk is on fire"
    assert found["clashes"] == [{"path": "m", "kept": first, "others": [f"m.{second}"]}]
    assert "error: hosts wrote different m" in done.stderr
    assert "AlgorithmError: the disk is on fire, exit code: 7" in done.stdout
    no_process_left()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "import os, time; os.kill(os.getppid(), 9); time.sleep(1000)",
            "the supervisor of algo-1 was killed by SIGKILL",
        ),
        (
            "import os, shutil, sys; shutil.rmtree('../output'); open('../output', 'w').close(); sys.exit(137)",
            "algo-1 left no failure file: its last words are in {out}/logs/algo-1.log",
        ),
    ],
    ids=["killed", "could not write"],
)
def test_a_host_that_can_say_nothing_of_its_end_is_spoken_for(
    here: Path, script: str, reason: str, no_process_left: Callable[[], None]
) -> None:
    run(here, script, "--out", "out", code=137)
    said = record(here / "out")["failure_reason"]
    assert said == f"AlgorithmError: {reason.format(out=here / 'out')}, exit code: 137"
    no_process_left()


@pytest.mark.parametrize("is_sent", [True, False])
def test_a_job_that_somebody_else_stops_is_not_completed(here: Path, is_sent: bool) -> None:
    """As a person with `kill`, or a machine that goes down; a line of the script that looks like it is none."""
    stop = "os.kill(os.getppid(), 15); time.sleep(1000)" if is_sent else ""
    script = f"import os, signal, sys, time; signal.signal(15, lambda *_: sys.exit()); print({FORGED!r}); {stop}"
    done = run(here, script, "--out", "out")
    assert record(here / "out")["status"] == ("Stopped" if is_sent else "Completed")
    said = "algo-1 was stopped by SIGTERM, which trainbox run did not send: the job is stopped"
    assert (said in done.stderr) is is_sent


def test_a_stop_and_a_resume_are_two_attempts_of_one_job(here: Path, no_process_left: Callable[[], None]) -> None:
    out = here / "out"
    run(here, DRILL, "--stop-after", "2", "--out", "out", "--job-name", "drill")
    first = record(out)
    assert (first["status"], first["secondary_status"], first["attempt"]) == ("Stopped", "Stopped", 1)
    assert (out / "model" / "model").read_text() == "2"
    log = (out / "logs" / "algo-1.log").read_bytes()
    refused = run(here, DRILL, "--out", "out", code=10)
    assert "--resume starts its next attempt" in refused.stderr
    assert record(out) == first
    done = run(here, DRILL, "--resume", "--out", "out")
    second = record(out)
    assert (second["status"], second["attempt"], second["job_name"]) == ("Completed", 2, "drill")
    assert second["metrics"]["loss"] == {"steps": [0, 1, 2, 3, 4], "values": [10, 9, 8, 7, 6]}
    assert [(each["attempt"], each["status"]) for each in second["earlier_attempts"]] == [(1, "Stopped")]
    assert (out / "logs" / "algo-1.attempt-1.log").read_bytes() == log
    assert (out / "model" / "model").read_text() == "4"
    assert "attempt 2 of drill" in done.stderr
    no_process_left()


def test_a_script_that_dies_of_the_stop_is_told_by_the_exit_code(here: Path) -> None:
    run(here, "import time\ntime.sleep(60)", "--max-run", "0.4", "--out", "out", code=143)
    found = record(here / "out")
    assert (found["status"], found["secondary_status"]) == ("Stopped", "MaxRuntimeExceeded")
    assert found["failure_reason"] is None


def test_resume_with_nothing_to_resume_says_that_it_starts_afresh(here: Path) -> None:
    done = run(here, "print(1)", "--resume", "--out", "out")
    assert "there is nothing to resume" in done.stderr
    assert record(here / "out")["attempt"] == 1


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_stops_everything_even_what_ignores_it(
    here: Path, times: int, no_process_left: Callable[[], None]
) -> None:
    (here / "src" / "train.py").write_text(STUBBORN.replace("{mark}", here.name))
    # One Ctrl-C waits out the supervisor's grace; the second does not wait.
    grace = "0.5" if times == 1 else "100"
    argv = [*COMMAND, "src/train.py", "--hosts", "2", "--env", f"TRAINBOX_GRACE_SECONDS={grace}", "--out", "out"]
    process = subprocess.Popen(
        argv, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(here)
    )
    hosts = ("algo-1", "algo-2") if namespace_is_allowed() else ("127.0.0.1", "127.0.0.2")
    for host in hosts:
        eventually(in_log(here / "out", "now at work", host), "the script at work")
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 130, out + err
    assert "SIGTERM to" in err
    assert ("SIGKILL to" in err) == (times == 2)
    found = record(here / "out")
    assert (found["status"], found["exit_code"]) == ("Stopped", 130)
    assert {host["exit_code"] for host in found["hosts"]} == {137}
    no_process_left()


def namespace_is_allowed() -> bool:
    return not namespace.probe("root" if os.geteuid() == 0 else "user")


def test_a_process_that_leaves_its_session_does_not_outlive_the_job(
    here: Path, no_process_left: Callable[[], None]
) -> None:
    script = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], start_new_session=True)
"""
    run(here, script, "--out", "out")
    no_process_left()


def test_a_run_that_is_killed_leaves_no_process_and_can_be_resumed(
    here: Path, no_process_left: Callable[[], None]
) -> None:
    (here / "src" / "train.py").write_text(DRILL)
    with (here / "printed").open("wb") as printed:
        process = subprocess.Popen(
            [*COMMAND, "src/train.py", "--out", "out"], cwd=here, stdout=printed, stderr=printed, env=environment(here)
        )
        eventually(in_log(here / "out", "now at work"), "the script at work")
        process.kill()
        process.wait()
    eventually(lambda: _processes_marked(str(here)) == [], "the end of every process of the job")
    no_process_left()
    assert record(here / "out")["status"] == "InProgress"
    run(here, DRILL, "--out", "out", "--resume")
    found = record(here / "out")
    assert (found["attempt"], found["earlier_attempts"][0]["status"]) == (2, "InProgress")


def test_a_dry_run_shows_everything_and_writes_nothing(here: Path) -> None:
    script = "#!/usr/bin/env python3\nprint('never')\n"
    before = sorted(here.rglob("*"))
    done = run(
        here,
        script,
        *("--channel", "train=data", "--hosts", "2", "--processes", "2", "--out", "out", "--dry-run"),
        *("--hp", "eta=0.1", "--hp", "api_token=topsecret", "--env", "DB_PASSWORD=hunter2-2"),
    )
    assert sorted({*here.rglob("*")} - {here / "src" / "train.py"}) == before
    for text in (
        '"eta": "0.1"',
        "resourceconfig.json",
        "trainbox.supervisor",
        "train.py --api_token",
        "WORLD_SIZE=4",
    ):
        assert text in done.stdout
    assert "never" not in done.stdout
    assert "topsecret" not in done.stdout
    assert "hunter2-2" not in done.stdout


def test_what_a_review_found_in_the_open_is_in_nothing_of_ours(here: Path) -> None:
    script = """
from os import environ as e
raise SystemExit(f"cannot reach {e['SM_HP_DB_URL']} with {e['GITHUB_PAT']}, {e['SM_HP_CRED']}")
"""
    given = ("--hp", "DB_URL=postgres://u:PGPW-33@h/d", "--env", "GITHUB_PAT=github-pat-7", "--hp", "cred=cred-8888")
    index = ("--env", "SOME_INDEX=https://h/simple?token=tok-9999", "--", "--pwd", "x7x7")
    done = run(here, script, *given, "--out", "out", *index, code=1)
    failure = (here / "out/output/failure").read_text()
    assert "cannot reach postgres://u:***@h/d with ***, ***" in failure
    assert "--hp 'DB_URL=postgres://u:***@h/d'" in done.stdout
    theirs = [line for line in done.stdout.splitlines() if line.startswith("cannot reach")]
    assert len(theirs) == 1, "the script's own line, as it was written"
    ours = done.stdout.replace(theirs[0], "") + done.stderr + failure + (here / "out/job.json").read_text()
    for secret in ("PGPW-33", "github-pat-7", "cred-8888", "tok-9999", "x7x7"):
        assert secret not in ours


def test_an_innocent_text_is_whole(here: Path) -> None:
    script = "raise ValueError(\"failed at step 100: column 'date' has 1001 values\")"
    run(here, script, "--hp", "num_keys=100", "--hp", "sort_key=date", "--hp", "api_key=1", "--out", "out", code=1)
    reason = "ValueError: failed at step 100: column 'date' has 1001 values"
    assert reason in (here / "out/output/failure").read_text()
    assert reason in record(here / "out")["failure_reason"]


def test_secrets_are_in_nothing_that_trainbox_run_writes(here: Path) -> None:
    script = "import os\nraise SystemExit('the token is ' + os.environ['SM_HP_API_TOKEN'])"
    arguments = ["--hp", "api_token=topsecret", "--hp", "copy=topsecret", "--env", "DB_PASSWORD=hunter2-2"]
    done = run(here, script, *arguments, "--out", "out", code=1)
    ours = (here / "out" / "job.json").read_text() + done.stderr + done.stdout[done.stdout.rindex("\n\nout: ") :]
    assert "topsecret" not in ours
    assert "hunter2-2" not in ours
    found = record(here / "out")
    assert found["hyperparameters"] == {"api_token": "***", "copy": "***"}
    assert found["environment"] == {"DB_PASSWORD": "***"}


def test_logs_are_the_exact_bytes(here: Path) -> None:
    script = r"""
import sys
sys.stdout.buffer.write(b"\xff\x00 10%\r20%\r\n" + b"x" * 200_000 + b"\n\tno newline")
"""
    run(here, script, "--out", "out")
    assert b"\xff\x00 10%\r20%\r\n" + b"x" * 200_000 + b"\n\tno newline" in (here / "out/logs/algo-1.log").read_bytes()


def test_a_reader_that_leaves_does_not_end_the_job(here: Path) -> None:
    (here / "src" / "train.py").write_text("for n in range(20000): print(n, 'x' * 50)\n")
    argv = [*COMMAND, "src/train.py", "--out", "out"]
    process = subprocess.Popen(argv, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(here))
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(timeout=LIMIT) == 0
    assert said.count("nobody reads the output") <= 1
    assert b"\n19999 x" in (here / "out" / "logs" / "algo-1.log").read_bytes()
    assert record(here / "out")["status"] == "Completed"


@pytest.mark.parametrize("no_color", ["", "1"])
def test_on_a_terminal_there_is_one_live_line_and_colour_only_if_wanted(here: Path, no_color: str) -> None:
    (here / "src" / "train.py").write_text(
        "import time\nprint('hello')\nfor n in range(3):\n    print(f'[metrics] step={n} auc=0.{n}1234567')\n"
        "    time.sleep(0.2)\n"
    )
    env = environment(here, TERM="xterm", NO_COLOR=no_color)
    argv = [*COMMAND, "src/train.py", "--hp", "epochs=30", "--out", "out"]
    code, shown = run_on_terminal(argv, directory=here, environment=env)
    assert code == 0
    assert b"hello" in shown
    assert b"[metrics]" not in shown
    assert re.search(rb"step 2  ETA \d+:\d\d  auc 0\.212346", shown)
    assert (b"\x1b[1;32mCompleted" in shown) == (no_color == "")
    assert b"[metrics] step=2" in (here / "out" / "logs" / "algo-1.log").read_bytes()


def test_bad_input_is_an_error_with_a_hint_and_nothing_is_written(here: Path) -> None:
    done = run(here, "print(1)", "--channel", "train=nowhere", "--out", "out", code=10)
    assert "there is no" in done.stderr
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (here / "out").exists()


@needs_mounts
def test_a_full_disk_is_said_and_what_the_hosts_left_is_kept(here: Path) -> None:
    script = """
import os
from pathlib import Path
Path(os.environ["SM_MODEL_DIR"], "m").write_bytes(os.urandom(5_000_000))
"""
    (here / "src" / "train.py").write_text(script)
    (here / "small").mkdir()
    # A disk of 8 MB, of the test's own: the model fits, its archive beside it does not.
    inside = 'mount -t tmpfs -o size=8m none small; "$@"; code=$?; cat small/out/job.json; ls -A small/out; exit $code'
    argv = ["unshare", "-m", "/bin/sh", "-c", inside, "sh", *COMMAND, "src/train.py", "--out", "small/out"]
    done = subprocess.run(
        argv, cwd=here, capture_output=True, text=True, check=False, timeout=LIMIT, env=environment(here)
    )
    assert done.returncode == 10, done.stdout + done.stderr
    assert "model.tar.gz cannot be written: No space left on device" in done.stderr
    assert "the model itself is whole" in done.stderr
    assert '"status": "Completed"' in done.stdout
    assert '"model": null' in done.stdout
    assert ".model.tar.gz.tmp" not in done.stdout
    assert "Traceback" not in done.stderr


ONCE = """
import os, sys
from pathlib import Path
print("[metrics] step=1 loss=0.5")
if os.environ.get("MINE") == "fail": sys.exit("not this time")
Path(os.environ["SM_MODEL_DIR"], "model").write_text("good")
"""


def test_a_later_attempt_that_fails_costs_no_model(here: Path) -> None:
    run(here, ONCE, "--out", "out")
    done = run(here, ONCE, "--out", "out", "--resume", "--env", "MINE=fail", code=1)
    assert "attempt 2 (Failed) left no better model" in done.stderr
    assert "are still those of attempt 1; what attempt 2 left is in output.attempt-2" in done.stderr
    assert (here / "out" / "model" / "model").read_text() == "good"
    assert record(here / "out")["model"]["archive"] == "model.tar.gz"
    assert (here / "out" / "model.tar.gz").is_file()
    assert record(here / "out")["status"] == "Failed"


def test_metrics_of_an_attempt_that_was_killed_are_not_lost(here: Path) -> None:
    (here / "src" / "train.py").write_text(DRILL)
    argv = [*COMMAND, "src/train.py", "--out", "out"]
    with subprocess.Popen(argv, cwd=here, env=environment(here), stdout=subprocess.DEVNULL) as process:
        eventually(in_log(here / "out", "now at work"), "the script at work")
        process.kill()
    (here / "out" / "checkpoints" / "step").write_text("2")
    run(here, DRILL, "--out", "out", "--resume")
    assert record(here / "out")["metrics"]["loss"] == {"steps": [0, 1, 2, 3, 4], "values": [10.0, 9.0, 8.0, 7.0, 6.0]}


def test_a_secret_is_hidden_however_the_script_writes_it(here: Path) -> None:
    script = """
import os, sys
from pathlib import Path
Path(os.environ["SM_OUTPUT_DIR"], "failure").write_text("login failed for tok-FFFF, pass-GGGG")
sys.exit(1)
"""
    hps = ("--hp", 'api_token="tok-FFFF"', "--hp", 'db={"password": "pass-GGGG"}')
    done = run(here, script, *hps, "--out", "out", code=1)
    files = [(here / "out" / name).read_text() for name in ("job.json", "output/failure")]
    for text in (done.stdout, done.stderr, *files):
        assert "tok-FFFF" not in text
        assert "pass-GGGG" not in text
    assert record(here / "out")["failure_reason"].startswith("AlgorithmError: login failed for ***, ***")


def test_the_result_of_an_earlier_run_is_no_source(here: Path) -> None:
    run(here, ONCE, "--out", "src/result")
    run(here, "import os; print(sorted(os.listdir('.')))", "--out", "out")
    assert "['train.py']" in (here / "out" / "logs" / "algo-1.log").read_text()


def test_a_result_stands_where_its_summary_finds_no_memory(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def too_little(*_: object, **__: object) -> str:
        raise MemoryError

    (here / "src" / "train.py").write_text("print('trained')")
    monkeypatch.setattr(run_verb, "summarise", too_little)
    monkeypatch.setattr(sys, "argv", ["trainbox", "run", str(here / "src/train.py"), "--out", str(here / "out")])
    assert cli.main() == 0
    assert record(here / "out")["status"] == "Completed"
    said = capfd.readouterr().err.splitlines()[-1]
    assert said == f"trainbox run: the summary cannot be shown (MemoryError): the result is in {here / 'out'}"


def test_secrets_of_files_and_of_the_shell_reach_the_script_and_nothing_else(here: Path) -> None:
    script = """
import os, sys
from pathlib import Path
print("the script has", os.environ["SM_HP_ENDPOINT"] == "file-1234", os.environ["SM_HP_PLACE"] == "shell-1234")
everything = [Path("/proc", pid, "cmdline") for pid in os.listdir("/proc") if pid.isdigit() and int(pid) != os.getpid()]
for place in everything:
    try:
        assert b"file-1234" not in place.read_bytes() and b"shell-1234" not in place.read_bytes(), place.read_bytes()
    except OSError:
        pass
raise SystemExit(f"cannot reach {os.environ['SM_HP_ENDPOINT']} of {os.environ['SM_HP_PLACE']}, {os.environ['E']}")
"""
    (here / "endpoint").write_text("file-1234\n")
    references = ("--hp", "endpoint=@endpoint", "--hp-env", "place=OUR_PLACE", "--env", "E=@endpoint")
    done = run(here, script, *references, "--out", "out", code=1, env={"OUR_PLACE": "shell-1234"})
    assert "the script has True True" in done.stdout
    found = record(here / "out")
    assert found["failure_reason"].startswith("AlgorithmError: cannot reach *** of ***, ***"), found
    assert found["hyperparameters"] == {"endpoint": "***", "place": "***"}
    assert f"--hp endpoint=@{here / 'endpoint'} --hp-env place=OUR_PLACE" in done.stdout
    lines = [line for line in done.stdout.splitlines() if "cannot reach" not in line or line.startswith("trainbox: ")]
    files = [(here / "out" / name).read_text() for name in ("job.json", "output/failure")]
    for text in ("\n".join(lines), done.stderr, *files):
        assert "file-1234" not in text
        assert "shell-1234" not in text


def test_each_host_asks_for_the_secrets_that_the_request_refers_to(here: Path) -> None:
    reference = "{{resolve:secretsmanager:db:SecretString:password}}"
    script = f"import os\nassert os.environ['SM_HP_PASSWORD'] == {PASSWORD!r}\nprint('has it')"
    with serving() as service:
        arguments = ("--hp", f"password={reference}", "--hosts", "2", "--out", "out")
        done = run(here, script, *arguments, env=service.env)
    assert done.stdout.count("has it") == 2
    assert [asked["SecretId"] for _, asked, _ in service.asked] == ["db", "db"]
    assert record(here / "out")["hyperparameters"] == {"password": reference}
    planned = run(here, script, *arguments[:-1], "planned", "--dry-run")
    assert f"SM_HP_PASSWORD={reference}" in planned.stdout
    assert len(service.asked) == 2, "a plan asks for nothing"


def test_a_dry_run_shows_no_secret_however_short(here: Path) -> None:
    (here / "pin").write_text("4711")
    given = ("--hp", "pin=@pin", "--hp", "password=0815", "--hp", "url=postgres://me:x42@h/d", "--env", "P=@pin")
    done = run(here, "pass", *given, "--hp", "epochs=3", "--dry-run")
    assert "--epochs 3" in done.stdout
    assert "--pin ***" in done.stdout
    assert "postgres://me:***@h/d" in done.stdout
    for text in ("4711", "0815", "x42"):
        assert text not in done.stdout
