"""What a script leaves to harm whoever looks at it, on this machine: links, FIFOs, set-user-ID files, deep trees."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.support.runs import COMMAND, record
from tests.support.terminals import run_on_terminal
from tests.support.waiting import LIMIT

pytestmark = pytest.mark.process

KEY = "KEY-OF-THE-HOST-4711"
_FAILS = "; sys.exit(3)"
#: Each leaves something else in place of a failure file, and fails.
ATTACKS = {
    "a link": "os.symlink('{secret}', output / 'failure')",
    "a link in the middle": "shutil.rmtree(output); os.symlink('{elsewhere}', output)",
    "a FIFO": "os.mkfifo(output / 'failure')",
    "a directory": "os.mkdir(output / 'failure')",
}
HEAD = """
import os, shutil, signal, sys
from pathlib import Path
output = Path(os.environ["SM_MODEL_DIR"]).parent / "output"
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    (tmp_path / "elsewhere").mkdir()
    for path in (tmp_path / "secret", tmp_path / "elsewhere" / "failure"):
        path.write_text(KEY)
        path.chmod(0o600)
    return tmp_path


def run(here: Path, script: str, *arguments: str, code: int = 0) -> "subprocess.CompletedProcess[str]":
    (here / "src" / "train.py").write_text(HEAD + script)
    argv = [*COMMAND, "src/train.py", "--out", "out", *arguments]
    done = subprocess.run(argv, cwd=here, capture_output=True, text=True, check=False, timeout=LIMIT, umask=0o022)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_what_stands_in_place_of_a_failure_file_is_not_read(here: Path, attack: str) -> None:
    """Its supervisor, which may do no more than the script, is killed: `trainbox run` itself comes upon it."""
    act = attack.format(secret=here / "secret", elsewhere=here / "elsewhere")
    done = run(here, f"{act}; os.kill(os.getppid(), signal.SIGKILL); signal.pause()", code=137)
    assert KEY not in done.stdout + done.stderr + (here / "out" / "job.json").read_text()
    assert record(here / "out")["status"] == "Failed"
    assert record(here / "out")["failure_reason"]
    assert (here / "secret").read_text() == (here / "elsewhere" / "failure").read_text() == KEY


@pytest.mark.parametrize("attack", ["a link", "a FIFO"])
def test_a_supervisor_writes_the_reason_in_its_place(here: Path, attack: str) -> None:
    done = run(here, ATTACKS[attack].format(secret=here / "secret") + "; sys.exit('the real reason')", code=1)
    assert record(here / "out")["failure_reason"].startswith("AlgorithmError: the real reason")
    assert KEY not in done.stdout + done.stderr
    assert (here / "secret").read_text() == KEY


def test_nothing_a_job_leaves_runs_as_its_owner(here: Path) -> None:
    script = """
for name in ("model/suid", "output/data/sgid", "checkpoints/suid"):
    path = output.parent / name
    path.touch()
    path.chmod(0o6755)
"""
    run(here, script)
    for name in ("model/suid", "output/data/sgid", "checkpoints/suid"):
        assert stat.S_IMODE((here / "out" / name).stat().st_mode) == 0o755
    again = "path = output.parent / 'checkpoints' / 'again'; path.touch(0o755); path.chmod(0o4755)"
    run(here, again + _FAILS, "--resume", code=3)
    assert stat.S_IMODE((here / "out" / "checkpoints" / "again").stat().st_mode) == 0o755


def test_a_model_nested_deeper_than_python_calls_is_collected(here: Path) -> None:
    script = """
os.chdir(os.environ["SM_MODEL_DIR"])
for _ in range(1200):
    os.mkdir("d")
    os.chdir("d")
Path("file").touch()
"""
    try:
        run(here, script)
        assert record(here / "out")["status"] == "Completed"
        assert record(here / "out")["model"]["files"] == 1
        assert not (here / "out" / ".trainbox").exists()
    finally:
        subprocess.run(["rm", "-rf", str(here / "out")], check=True)  # which can, unlike Python


def test_a_result_is_for_its_user_alone_and_the_scripts_files_are_as_the_shell_has_them(here: Path) -> None:
    script = """
(output.parent / "model" / "m").write_text("model")
(output / "data" / "o").write_text("output")
(output.parent / "checkpoints" / "c").write_text("checkpoint")
Path("{outside}").write_text("for all")
mask = os.umask(0)
print(f"umask {{mask:o}}")
"""
    done = run(here, script.format(outside=here / "shared"), "--hp", "api_token=topsecret")
    out = here / "out"
    assert "umask 22\n" in done.stdout
    assert stat.S_IMODE((here / "shared").stat().st_mode) == 0o644
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    modes = {str(path.relative_to(out)): stat.S_IMODE(path.stat().st_mode) for path in out.rglob("*")}
    written_by_us = {name: mode for name, mode in modes.items() if name.endswith((".json", ".log", ".gz"))}
    assert written_by_us == dict.fromkeys(("job.json", "logs/algo-1.log", "model.tar.gz"), 0o600)
    ours = ("checkpoints", "logs", "model", "output")
    assert {name: modes[name] for name in ours} == dict.fromkeys(ours, 0o700)


def test_what_the_tree_holds_while_the_job_runs_is_for_its_user_alone(here: Path) -> None:
    script = """
tree = output.parent
for path in (tree / "input/config/hyperparameters.json", tree / "input/config", tree / "model", tree):
    print("mode", oct(path.stat().st_mode & 0o777), path.name)
"""
    done = run(here, script, "--hp", "api_token=topsecret")
    found = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("mode ")]
    assert found == ["0o600", "0o700", "0o700", "0o700"]


def test_a_terminal_obeys_neither_a_script_nor_its_reason(here: Path) -> None:
    """On a pipe and in the log the bytes are exact."""
    title = "\\x1b]0;pwned\\x07"
    say = f"print('said {title} and \\x1b[32mgreen\\x1b[0m')\n(output / 'failure').write_text('why {title}')\n"
    (here / "src" / "train.py").write_text(f"{HEAD}{say}sys.exit(1)\n")
    argv = [*COMMAND, "src/train.py", "--out"]
    piped = subprocess.run([*argv, "piped"], cwd=here, capture_output=True, check=False, timeout=LIMIT)
    assert b"said \x1b]0;pwned\x07 and" in piped.stdout
    assert b"pwned" in piped.stderr + piped.stdout
    env = {**os.environ, "TERM": "xterm", "NO_COLOR": ""}
    code, shown = run_on_terminal([*argv, "out"], directory=here, environment=env)
    assert code == 1
    assert b"said \\x1b]0;pwned\\x07 and \x1b[32mgreen" in shown
    assert b"FAILED: why \\x1b]0;pwned\\x07" in shown
    assert b"\x1b]" not in shown
    assert b"\x07" not in shown
    assert b"said \x1b]0;pwned\x07 and" in (here / "out" / "logs" / "algo-1.log").read_bytes()
