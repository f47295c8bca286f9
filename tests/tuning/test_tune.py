"""`trainbox tune` as a person starts it: what it prints, how signals and kills end it, and a disk that fills."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.gpu_hosts import needs_mounts, with_devices
from tests.support.runs import record
from tests.support.terminals import run_on_terminal
from tests.support.trees import wheel
from tests.support.waiting import LIMIT, eventually
from trainbox.supervisor.requirements import OVERLAY_MARKER
from trainbox.tuning.tuning_file import read_tuning

pytestmark = pytest.mark.process

COMMAND = (sys.executable, "-m", "trainbox", "tune", "src/train.py", "--out", "out")
METRIC = ("--metric", "score=score=([0-9.]+)")
GRID = ("--choice", "depth=1,2,3", "--strategy", "grid", *METRIC)
#: Ends at once, but for a depth of 2 and more, which wait for a file; what it has done before is in a checkpoint.
SCRIPT = """
import os, signal, sys, time
from pathlib import Path
depth, here = sys.argv[-1], Path({here!r})
root = Path(os.environ["SM_MODEL_DIR"]).parent
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
saved = root / "checkpoints" / "saved"
print("begins", "anew" if not saved.exists() else "where it was", flush=True)
print(f"score={{depth}}.5", flush=True)
while depth != "1" and not stopped and not (here / "go").exists():
    time.sleep(0.01)
saved.touch()
Path(os.environ["SM_MODEL_DIR"], "model").write_text(depth)
"""
#: Ten epochs, each kept in a checkpoint that is written whole.
EPOCHS = """
import os, sys, time
from pathlib import Path
depth, checkpoints = sys.argv[-1], Path(os.environ["SM_MODEL_DIR"]).parent / "checkpoints"
done = len(list(checkpoints.glob("epoch-*")))
for epoch in range(done, 10):
    (checkpoints / f"epoch-{epoch}").touch()
    print(f"epoch {epoch} of {depth}", flush=True)
    time.sleep(0.05)
print(f"score={depth}")
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "train.py").write_text(SCRIPT.format(here=str(tmp_path)))
    return tmp_path


def started(
    here: Path, *arguments: str, prefix: Sequence[str] = (), env: Mapping[str, str] = os.environ
) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*prefix, *COMMAND, *arguments],
        cwd=here,
        env={**env, "MARK": str(here)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def tune(
    here: Path, *arguments: str, prefix: Sequence[str] = (), env: Mapping[str, str] = os.environ
) -> tuple[int, str, str]:
    with started(here, *arguments, prefix=prefix, env=env) as process:
        out, err = process.communicate(timeout=LIMIT)
    return process.returncode, out, err


def statuses(here: Path) -> list[str]:
    found = read_tuning(here / "out")
    return [] if found is None else [trial.status for trial in found.trials]


def is_at_work(here: Path, number: int) -> bool:
    log = here / "out" / f"trial-{number:03d}" / "logs" / "algo-1.log"
    return log.exists() and "score=" in log.read_text()


def marked(here: Path) -> list[str]:
    """The processes of a tuning job, by their command."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"MARK={here}".encode() in (path / "environ").read_bytes().split(b"\0"):
                found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def test_it_prints_a_line_for_each_trial_and_at_the_end_a_table_the_best_and_what_to_do_next(here: Path) -> None:
    (here / "go").touch()
    code, out, err = tune(here, *GRID)
    assert code == 0, err
    assert "trainbox tune: out: grid search for depth: 3 trials, 1 at a time; maximize 'score'\n" in err
    assert "trainbox tune: trial 2 starts: depth=2\n" in err
    assert re.search(r"trainbox tune: trial 2: Completed, score 2\.5, \d+\.\d s, the best so far\n", err)
    lines = [line.split() for line in out.splitlines()]
    assert ["TRIAL", "depth", "score", "TIME", "STATUS"] in lines
    assert any(line[:4] == ["3", "*", "3", "3.5"] for line in lines)
    assert f"best    trial 3: score 3.5 with depth=3\njob     {here}/out/trial-003\n" in out
    assert f"Next: predict with the best: trainbox serve {here}/out/trial-003\n" in out
    assert record(here / "out" / "trial-003")["status"] == "Completed"


def test_on_a_terminal_a_table_of_running_trials_moves_and_the_lines_of_those_that_ended_stay(here: Path) -> None:
    (here / "src" / "train.py").write_text("import sys, time\nprint('score=1', flush=True)\ntime.sleep(0.6)\n")
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    code, shown = run_on_terminal([*COMMAND, *GRID, "--parallel", "2"], directory=here, environment=environment)
    text = shown.decode()
    assert code == 0, text
    assert "TRIAL" in text
    assert re.search(r"\d:\d\d  [12] of 3 trials  best 1 \(trial 1\)  ETA \d:\d\d", text)
    assert text.count("Completed, score 1") == 3


def test_a_signal_ends_the_trials_cleanly_and_shows_the_best_so_far(here: Path) -> None:
    with started(here, *GRID) as process:
        eventually(lambda: is_at_work(here, 2), "the second trial", ended=lambda: process.poll() is not None)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert statuses(here) == ["Completed", "Stopped"]
    assert "best    trial 1: score 1.5 with depth=1" in out
    assert f"Next: go on: the same command with --resume --out {here}/out" in out
    assert (here / "out" / "trial-002" / "model" / "model").read_text() == "2"
    assert not marked(here)


def test_a_second_signal_kills_trials_that_do_not_leave(here: Path) -> None:
    script = SCRIPT.format(here=str(here)).replace("lambda *_: stopped.append(1)", "signal.SIG_IGN")
    (here / "src" / "train.py").write_text(script)
    with started(here, *GRID) as process:
        eventually(lambda: is_at_work(here, 2), "the second trial", ended=lambda: process.poll() is not None)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        while "SIGTERM to algo-1" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=LIMIT)
    assert process.returncode == 128 + signal.SIGTERM
    assert statuses(here) == ["Completed", "Stopped"]
    assert not marked(here)


def test_a_kill_loses_no_finished_trial_leaves_no_process_and_running_trials_go_on(here: Path) -> None:
    with started(here, *GRID, "--parallel", "2") as process:
        eventually(lambda: is_at_work(here, 2), "the second trial", ended=lambda: process.poll() is not None)
        eventually(lambda: is_at_work(here, 3), "the third trial", ended=lambda: process.poll() is not None)
        before = json.loads((here / "out" / "tuning.json").read_text())["trials"][0]
        process.kill()
    eventually(lambda: not marked(here), "the end of all its processes", logs=lambda: "\n".join(marked(here)))
    assert statuses(here) == ["Completed", "InProgress", "InProgress"]
    (here / "go").touch()
    code, _, err = tune(here, *GRID, "--parallel", "2", "--resume")
    assert code == 0, err
    assert statuses(here) == ["Completed"] * 3
    assert json.loads((here / "out" / "tuning.json").read_text())["trials"][0] == before
    for number in (2, 3):
        assert f"trial {number} goes on" in err
        assert record(here / "out" / f"trial-{number:03d}")["attempt"] == 2
        assert "begins where it was" in (here / "out" / f"trial-{number:03d}" / "logs" / "algo-1.log").read_text()


def test_two_searches_do_not_share_a_directory(here: Path) -> None:
    with started(here, *GRID) as process:
        eventually(lambda: is_at_work(here, 2), "the second trial", ended=lambda: process.poll() is not None)
        code, _, err = tune(here, *GRID, "--resume")
        assert code == 10
        assert f"another trainbox tune is at work in {here}/out" in err
        (here / "go").touch()
        process.communicate(timeout=LIMIT)
    assert statuses(here) == ["Completed"] * 3


#: Mounts a small disk, nearly full; runs the command behind it, makes room, and runs the command again.
FULL_DISK = """
mkdir disk && mount -t tmpfs -o size=12m tmpfs disk && head -c 8000000 /dev/zero > disk/other || exit 1
"$@"; code=$?; cp disk/out/tuning.json full.json; rm disk/other
[ $code = 10 ] && "$@" --resume; code=$?; cp disk/out/tuning.json .; exit $code
"""


def test_a_disk_that_fills_ends_the_search_and_once_there_is_room_it_goes_on(here: Path) -> None:
    fills = "Path(os.environ['SM_MODEL_DIR'], 'big').write_bytes(os.urandom(3_000_000 if depth == '2' else 1000))\n"
    (here / "src" / "train.py").write_text(SCRIPT.format(here=str(here)) + fills)
    (here / "go").touch()
    unshare = ["unshare", *(["-r"] if os.geteuid() else []), "-m"]
    if subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    code, _, err = tune(here, *GRID, "--out", "disk/out", prefix=[*unshare, "sh", "-c", FULL_DISK, "sh"])
    assert code == 0, err
    assert "No space left on device" in err
    first = json.loads((here / "full.json").read_text())["trials"]
    last = json.loads((here / "tuning.json").read_text())["trials"]
    assert first[0] == last[0]
    assert [trial["status"] for trial in first] in (["Completed", "InProgress"], ["Completed", "Stopped"])
    assert [trial["status"] for trial in last] == ["Completed"] * 3
    assert not marked(here)


@needs_mounts
def test_gpus_are_divided_among_trials_that_run_at_the_same_time(here: Path, tmp_path: Path) -> None:
    script = "import os\nprint('score=1', 'gpus', os.environ['CUDA_VISIBLE_DEVICES'], os.environ['SM_NUM_GPUS'])\n"
    (here / "src" / "train.py").write_text(script)
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "3,1,0"}
    devices = with_devices(tmp_path / "dev", 4)
    code, _, err = tune(here, *GRID, "--parallel", "2", env=env, prefix=devices)
    assert code == 0, err
    logs = [(here / "out" / f"trial-{n:03d}" / "logs" / "algo-1.log").read_text() for n in (1, 2)]
    assert re.findall(r"gpus (\S+ \d)$", "\n".join(logs), re.MULTILINE) == ["3,1 2", "0 1"]
    code, out, err = tune(here, *GRID, "--parallel", "4", "--overwrite", "--dry-run", env=env, prefix=devices)
    assert code == 0, err
    assert "4 parallel trials share 3 GPU(s): with --parallel 3 each has one alone\n" in out


def test_a_dry_run_prints_the_search_and_its_first_job_and_does_nothing(here: Path) -> None:
    code, out, err = tune(here, *GRID, "--dry-run")
    assert code == 0, err
    assert "out: grid search for depth: 3 trials" in out
    assert "  depth: 1, 2, 3\n" in out
    assert "job out-001, attempt 1, 1 host" in out
    assert '"depth": "1"' in out
    assert not (here / "out").exists()


def test_raw_arguments_reach_every_trial(here: Path) -> None:
    (here / "src" / "train.py").write_text("import sys\nprint('score=1', sys.argv[1:])\n")
    code, _, err = tune(here, *GRID, "--", "--flag", "more")
    assert code == 0, err
    for number in (1, 2, 3):
        log = (here / "out" / f"trial-{number:03d}" / "logs" / "algo-1.log").read_text()
        assert f"score=1 ['--depth', '{number}', '--flag', 'more']" in log


def test_trials_share_the_environment_of_their_requirements(here: Path) -> None:
    (here / "src" / "wheels").mkdir()
    (here / "src" / "wheels" / "mine-1.0-py3-none-any.whl").write_bytes(wheel("mine", "words = 7\n"))
    (here / "src" / "requirements.txt").write_text("--no-index\n--find-links wheels\nmine\n")
    (here / "src" / "train.py").write_text("import mine\nprint(f'score={mine.words}')\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    env = {**kept, "XDG_CACHE_HOME": str(here / "cache"), "PIP_CONFIG_FILE": os.devnull}
    code, _, err = tune(here, *GRID, "--parallel", "2", env=env)
    assert code == 0, err
    assert statuses(here) == ["Completed"] * 3
    environments = here / "cache" / "trainbox" / "environments"
    assert len(list(environments.glob(f"[!.]*/{OVERLAY_MARKER}"))) == 1
    logs = [(here / "out" / f"trial-{n:03d}" / "logs" / "algo-1.log").read_text() for n in (1, 2, 3)]
    assert sum("Successfully installed mine" in log for log in logs) == 1


@pytest.mark.long
def test_kills_at_any_moment_lose_no_finished_trial(here: Path) -> None:
    moments = random.Random(1)
    (here / "src" / "train.py").write_text(EPOCHS)
    given = ("--range", "depth=1:900", "--trials", "8", "--parallel", "2", *METRIC, "--resume")
    kills, code = 0, -int(signal.SIGKILL)
    finished: dict[int, dict[str, Any]] = {}
    while code == -signal.SIGKILL:
        with started(here, *given) as process:
            try:
                process.communicate(timeout=moments.uniform(0.5, 3.5) + kills / 4)
            except subprocess.TimeoutExpired:
                kills += 1
            process.kill()
            process.communicate()
        code = process.returncode
        eventually(lambda: not marked(here), "the end of all its processes", logs=lambda: "\n".join(marked(here)))
        written = here / "out" / "tuning.json"
        trials = json.loads(written.read_text())["trials"] if written.exists() else []
        ended = {trial["number"]: trial for trial in trials if trial["status"] == "Completed"}
        assert {number: ended.get(number) for number in finished} == finished
        finished = ended
    assert code == 0
    assert kills > 1
    assert statuses(here) == ["Completed"] * 8
    for number, trial in finished.items():
        lines = [log.read_text() for log in (here / "out" / f"trial-{number:03d}" / "logs").glob("*.log")]
        # What a checkpoint has is not done again.
        assert sum(text.count("epoch 0 ") for text in lines) <= 1
        assert trial["objective"] == float(trial["values"]["depth"])
