"""Measure trainbox beside sagemaker-training 5.1.4, both in one run on this machine (`make bench`).

    python tools/bench.py               start-up, memory and throughput: some minutes
    python tools/bench.py --install     what an installation brings instead; downloads sagemaker-training

The two are run in turn, and of each figure the median counts. The exit code says whether all went well, not how fast.

sagemaker-training handles a script's output in two ways, and both are measured. Its own `train` hands its stdout to
the script: nothing is relayed, and nothing known when the script fails. The toolkits of the framework images
(aws/sagemaker-pytorch-training-toolkit, `training.py`) have it read the output: that is the relay to compare with.
"""

import argparse
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

REPOSITORY = Path(__file__).parents[1]
INCUMBENT = REPOSITORY / ".venv-incumbent" / "bin"
OURS = Path(sys.executable).parent
BLOCK_BYTES = 64 * 1024

#: Processor time of a job beyond that of its script, and as a share of sagemaker-training's in the same run.
TARGET_START_MS = 80.0
TARGET_START_SHARE = 0.25
TARGET_MEMORY_MB = 20.0
TARGET_RATIO = 5.0
TARGET_PACKAGES = 1

START_SCRIPT = """\
import time; print(time.monotonic_ns(), flush=True)
import os
while not os.path.exists("go"): time.sleep(0.005)
"""
BEGIN = "import time; open('began', 'w').write(str(time.monotonic_ns()))\n"
PRINT_SCRIPT = (
    BEGIN
    + """\
for step in range(LINES):
    print(f"[metrics] step={step} train:loss={1 / (step + 1)!r} validation:loss={2 / (step + 1)!r}")
"""
)
BLOCK_SCRIPT = (
    """\
import os
data = memoryview(open("lines", "rb").read())
"""
    + BEGIN
    + f"""\
for start in range(0, len(data), {BLOCK_BYTES}):
    rest = data[start : start + {BLOCK_BYTES}]
    while rest:
        rest = rest[os.write(1, rest) :]
"""
)
FRAMEWORK = """\
from sagemaker_training import entry_point, environment

def main():
    env = environment.Environment()
    entry_point.run(env.module_dir, env.user_entry_point, env.to_cmd_args(), env.to_env_vars(), capture_error=True)
"""


class Side(NamedTuple):
    """One way to run a script."""

    name: str
    command: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()


PLAIN = Side("python train.py", (str(OURS / "python"), "train.py"))
PLAIN_INCUMBENT = Side("python train.py, its venv", (str(INCUMBENT / "python"), "train.py"))
TRAINBOX = Side("trainbox", (str(OURS / "train"),))
INCUMBENT_TRAIN = Side("sagemaker-training", (str(INCUMBENT / "train"),))
INCUMBENT_RELAY = Side(
    "sagemaker-training, relaying",
    (str(INCUMBENT / "train"),),
    (("SAGEMAKER_TRAINING_MODULE", "framework:main"),),
)


class Case(NamedTuple):
    """One way a script writes many lines."""

    name: str
    script: str
    #: What its output goes to: `file` or `pipe`.
    sink: str
    env: Mapping[str, str] = {}


class Start(NamedTuple):
    """One run of a script that does nothing."""

    #: From the command to the script's first line.
    ms: float
    #: The most that the supervisor had resident by then.
    memory_mb: float
    #: Processor time of the whole job, the script's included.
    cpu_ms: float


class Relayed(NamedTuple):
    """One run of a script that writes many lines."""

    seconds: float
    memory_mb: float
    output: bytes


class BrokenError(Exception):
    """Something broke: not slow, but wrong."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure trainbox beside sagemaker-training.")
    parser.add_argument("--starts", type=int, default=15, help="runs for start-up and memory (15)")
    parser.add_argument("--relays", type=int, default=3, help="runs for throughput (3)")
    parser.add_argument("--lines", type=int, default=1_000_000, help="metric lines of each (1000000)")
    parser.add_argument("--install", action="store_true", help="measure what an installation brings, and nothing else")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="trainbox-bench-") as name:
        try:
            if options.install:
                bench_install(Path(name))
            else:
                _require_incumbent()
                bench_start(Path(name), options.starts)
                bench_relay(Path(name), options.relays, options.lines)
        except BrokenError as fault:
            print(f"bench: {fault}", file=sys.stderr)
            return 1
    return 0


def _require_incumbent() -> None:
    if not (INCUMBENT / "train").exists():
        raise BrokenError("sagemaker-training is not installed in .venv-incumbent: run `make venv-incumbent`")


def emit(text: str) -> None:
    """Print a line now."""
    print(text, flush=True)


def verdict(*, reached: bool) -> str:
    """How a target fared."""
    return "reached" if reached else "NOT reached"


# -- a job ------------------------------------------------------------------------------------------------------------


def _write_tree(root: Path, script: str) -> Path:
    """A job on one host whose name resolves (sagemaker-training looks it up); returns its code directory."""
    shutil.rmtree(root, ignore_errors=True)
    for directory in ("input/config", "model", "output/data", "code"):
        (root / directory).mkdir(parents=True)
    config = {
        "hyperparameters": {"sagemaker_program": "train.py", "lr": "0.1", "epochs": "3"},
        "inputdataconfig": {},
        "resourceconfig": {"current_host": "localhost", "hosts": ["localhost"]},
    }
    for name, value in config.items():
        (root / "input" / "config" / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    (root / "code" / "train.py").write_text(script, encoding="utf-8")
    (root / "framework.py").write_text(FRAMEWORK, encoding="utf-8")
    return root / "code"


def _start(side: Side, root: Path, stdout: int, env: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    given = {"PATH": os.environ["PATH"], "HOME": str(root), **env, **dict(side.env)}
    trees = {"TRAINBOX_ROOT": str(root), "SAGEMAKER_BASE_DIR": str(root), "PYTHONPATH": str(root)}
    return subprocess.Popen(
        side.command, cwd=root / "code", env={**given, **trees}, stdout=stdout, stderr=subprocess.DEVNULL
    )


def _peak_mb(pid: int) -> float:
    """The most memory that a process has had resident by now; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)


# -- start-up and memory ----------------------------------------------------------------------------------------------


def bench_start(scratch: Path, runs: int) -> None:
    """From the command to the first line of the script, and the supervisor's memory while the script runs."""
    sides = (PLAIN, TRAINBOX, PLAIN_INCUMBENT, INCUMBENT_TRAIN)
    for side in sides:
        _start_once(side, scratch / "start")  # compiles what is not compiled yet, fills the caches
    seen: dict[Side, list[Start]] = {side: [] for side in sides}
    for _ in range(runs):
        for side in sides:
            seen[side].append(_start_once(side, scratch / "start"))
    start = {side: Start(*map(median, zip(*seen[side], strict=True))) for side in sides}
    memory = {side: start[side].memory_mb for side in sides}
    plain = {TRAINBOX: PLAIN, INCUMBENT_TRAIN: PLAIN_INCUMBENT}
    excess = {side: start[side].cpu_ms - start[bare].cpu_ms for side, bare in plain.items()}
    emit(f"Command start to the script's first line; processor time of the job; peak memory (median of {runs})")
    for side in sides:
        beyond = f" ({excess[side]:.0f} ms beyond plain) {memory[side]:8.1f} MB" if side in excess else ""
        emit(f"  {side.name:32}{start[side].ms:8.0f} ms {start[side].cpu_ms:8.0f} ms{beyond}")
    share = excess[TRAINBOX] / excess[INCUMBENT_TRAIN]
    reached = verdict(reached=excess[TRAINBOX] <= TARGET_START_MS and share <= TARGET_START_SHARE)
    emit(
        f"  target: processor time of at most {TARGET_START_MS:.0f} ms beyond plain, and {TARGET_START_SHARE:.0%} of"
        f" sagemaker-training's: {reached} ({share:.0%})"
    )
    emit(
        f"  target: at most {TARGET_MEMORY_MB:.0f} MB: {verdict(reached=memory[TRAINBOX] <= TARGET_MEMORY_MB)}"
        f" ({memory[INCUMBENT_TRAIN] / memory[TRAINBOX]:.1f} times less)\n"
    )


def _start_once(side: Side, root: Path) -> Start:
    code = _write_tree(root, START_SCRIPT)
    before = time.monotonic_ns()
    process = _start(side, root, subprocess.PIPE, {})
    assert process.stdout is not None  # noqa: S101 - it was asked for as a pipe
    with process.stdout as stdout:
        line = stdout.readline()
        memory = _peak_mb(process.pid)
        (code / "go").touch()
        stdout.read()
    _, status, used = os.wait4(process.pid, 0)  # with what it has waited for
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or not line.strip().isdigit():
        raise BrokenError(f"{side.name}: exit code {process.returncode}, first line {line!r}")
    return Start((int(line) - before) / 1e6, memory, (used.ru_utime + used.ru_stime) * 1e3)


# -- throughput -------------------------------------------------------------------------------------------------------


def bench_relay(scratch: Path, runs: int, lines: int) -> None:
    """Lines a second through each supervisor, and what became of them.

    Raises:
        BrokenError: A line did not come through trainbox as it was.
    """
    expected = b"".join(
        f"[metrics] step={step} train:loss={1 / (step + 1)!r} validation:loss={2 / (step + 1)!r}\n".encode()
        for step in range(lines)
    )
    printing = PRINT_SCRIPT.replace("LINES", str(lines))
    cases = (
        Case("print(), PYTHONUNBUFFERED as each sets it", printing, "file"),
        Case("print(), PYTHONUNBUFFERED as each sets it", printing, "pipe"),
        Case("print(), PYTHONUNBUFFERED=1 as many images set it", printing, "pipe", {"PYTHONUNBUFFERED": "1"}),
        Case("os.write() in blocks of 64 KiB, wherever lines end", BLOCK_SCRIPT, "file"),
        Case("os.write() in blocks of 64 KiB, wherever lines end", BLOCK_SCRIPT, "pipe"),
    )
    emit(f"Relaying {lines:,} metric lines, {len(expected) / 1e6:.0f} MB (median of {runs})")
    for case in cases:
        emit(f"  {case.name}, to a {case.sink}")
        _relay_case(scratch / "relay", case, expected, runs)


def _relay_case(root: Path, case: Case, expected: bytes, runs: int) -> None:
    sides = (PLAIN, TRAINBOX, INCUMBENT_RELAY, INCUMBENT_TRAIN)
    lines = expected.count(b"\n")
    seen: dict[Side, list[tuple[float, float, int, int]]] = {side: [] for side in sides}
    for _ in range(runs):
        for side in sides:
            code = _write_tree(root, case.script)
            (code / "lines").write_bytes(expected)
            ran = _relay_once(side, root, case)
            seen[side].append((lines / ran.seconds, ran.memory_mb, *_count_damage(ran.output, expected)))
    speed = {side: median(run[0] for run in seen[side]) for side in sides}
    for side in sides:
        _, memory, lost, others = (max(run[column] for run in seen[side]) for column in range(4))
        shown = f"{memory:6.1f} MB" if side is not PLAIN else " " * 9
        emit(f"    {side.name:30}{speed[side]:12,.0f} lines/s {shown}  lines lost or cut: {lost:,}; added: {others:,}")
        if side is TRAINBOX and (lost or others):
            raise BrokenError(f"trainbox: {lost} of {lines} lines did not come through as they were written")
    ratio = speed[TRAINBOX] / speed[INCUMBENT_RELAY]
    shown = f"{ratio:.1f} times its relay, {speed[TRAINBOX] / speed[PLAIN]:.0%} of the script's own speed"
    # A script that prints is slower than a relay: only the blocks measure the relay itself.
    if case.script is BLOCK_SCRIPT:
        shown += f"; target: {TARGET_RATIO:.0f} times: {verdict(reached=ratio >= TARGET_RATIO)}"
    else:
        shown += " (the script is the limit)"
    emit(f"    {shown}")


def _relay_once(side: Side, root: Path, case: Case) -> Relayed:
    """One run; it ends when the supervisor has ended (file) or nothing more can come (pipe)."""
    target = root / "output.txt"
    if case.sink == "file":
        with target.open("wb") as file:
            process = _start(side, root, file.fileno(), case.env)
        memory = _wait(process)
        ended = time.monotonic_ns()
        output = target.read_bytes()
    else:
        process = _start(side, root, subprocess.PIPE, case.env)
        output, memory = _read_all(process)
        ended = time.monotonic_ns()
    if process.wait():
        raise BrokenError(f"{side.name}: exit code {process.returncode}")
    began = int((root / "code" / "began").read_text(encoding="ascii"))
    return Relayed((ended - began) / 1e9, memory, output)


def _wait(process: "subprocess.Popen[bytes]") -> float:
    """Wait for a process to end; its peak memory shortly before."""
    descriptor = os.pidfd_open(process.pid)
    memory = 0.0
    try:
        while not select.select([descriptor], [], [], 0.02)[0]:
            memory = max(memory, _peak_mb(process.pid))
    finally:
        os.close(descriptor)
    return memory


def _read_all(process: "subprocess.Popen[bytes]") -> tuple[bytes, float]:
    assert process.stdout is not None  # noqa: S101 - it was asked for as a pipe
    chunks, memory, looked = [], 0.0, 0.0
    with process.stdout as stdout:
        while chunk := os.read(stdout.fileno(), 1 << 20):
            chunks.append(chunk)
            if time.monotonic() > looked + 0.02:
                memory, looked = max(memory, _peak_mb(process.pid)), time.monotonic()
    return b"".join(chunks), memory


def _count_damage(output: bytes, expected: bytes) -> tuple[int, int]:
    """How many lines are not there as they were written, and how many are there that nobody wrote."""
    if output == expected:
        return 0, 0
    wanted = set(expected.splitlines())
    found = output.splitlines()
    return len(wanted) - len(wanted.intersection(found)), sum(1 for line in found if line not in wanted)


# -- installation -----------------------------------------------------------------------------------------------------


def bench_install(scratch: Path) -> None:
    """What each installation brings beside itself, its size, and whether a compiler had to run."""
    emit("A fresh virtual environment with")
    ours = _install(scratch / "ours", "trainbox", str(REPOSITORY))
    _install(scratch / "theirs", "sagemaker-training", "sagemaker-training==5.1.4")
    emit(f"  target: at most {TARGET_PACKAGES} package: {verdict(reached=ours <= TARGET_PACKAGES)}")


def _install(directory: Path, name: str, requirement: str) -> int:
    """Install and say what came; returns the number of packages beside the one asked for."""
    subprocess.run([sys.executable, "-m", "venv", directory], check=True)
    before = _site_packages(directory)
    size = _size_mb(before)
    python, report_file = directory / "bin" / "python", directory / "report.json"
    pip = (python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--report", report_file)
    began = time.monotonic()
    installed = subprocess.run([*pip, requirement], capture_output=True, text=True, check=False)
    if installed.returncode:
        raise BrokenError(f"{requirement} cannot be installed: {installed.stderr[-500:]}")
    seconds = time.monotonic() - began
    report = json.loads(report_file.read_text(encoding="utf-8"))
    others = [
        item["metadata"]["name"] for item in report["install"] if item["metadata"]["name"].replace("_", "-") != name
    ]
    compiled = sorted(_compiled_here(report, before))
    emit(
        f"  {name:20}{len(others):4} package(s) beside itself {_size_mb(before) - size:8.1f} MB {seconds:6.0f} s"
        f"  compiler: {'needed for ' + ', '.join(compiled) if compiled else 'not needed'}"
    )
    return len(others)


def _compiled_here(report: dict[str, list[dict[str, dict[str, str]]]], packages: Path) -> set[str]:
    """Packages that came as source and have machine code now."""
    found = set()
    for item in report["install"]:
        name, url = item["metadata"]["name"], item["download_info"]["url"]
        record = next(packages.glob(f"{name.replace('-', '_')}-*.dist-info/RECORD"), None)
        if not url.endswith(".whl") and record and ".so," in record.read_text(encoding="utf-8"):
            found.add(name)
    return found


def _site_packages(directory: Path) -> Path:
    return next((directory / "lib").glob("python*/site-packages"))


def _size_mb(directory: Path) -> float:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) / 1e6


if __name__ == "__main__":
    sys.exit(main())
