"""Measure the image beside sagemaker-training and Amazon's SDKs, all in one run on this machine (`make bench-image`).

    python -m tools.bench_image [--starts 15] [--jobs 5] [--rebuilds 5]

Three figures: what `train` adds to the start of a script in a container, a trivial job in a container from the shell's
point of view, and how long an edited training script takes into the image. All are run in turn, and of each figure the
median counts. The exit code says whether all went well, not how fast. The SDKs are measured where `make venv-sdk` has
made their environments.

sagemaker-training is installed into a copy of our own image, where its `train` takes the place of ours: both start the
same script on the same Python with the same frameworks.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tools.bench import OURS, REPOSITORY, BrokenError, emit, verdict

IMAGE = "trainbox:cpu"
INCUMBENT = "trainbox-bench:sagemaker-training"
REBUILT = "trainbox-bench:rebuilt"
CACHE = REPOSITORY / ".cache"

#: Of what sagemaker-training adds in the same run.
TARGET_START_SHARE = 0.25
TARGET_JOB_S = 2.0
TARGET_REBUILD_S = 5.0
BASE_LABEL = "org.opencontainers.image.base.name"

FIRST_LINE = "import time; print('began', time.monotonic_ns(), flush=True)\n"
RESOURCES = {"current_host": "algo-1", "hosts": ["algo-1"], "network_interface_name": "eth0"}


class Start(NamedTuple):
    """One way to start a script in a container."""

    name: str
    image: str
    command: tuple[str, ...]


PLAIN = Start("python train.py", IMAGE, ("python", "/opt/ml/code/train.py"))
TRAINBOX = Start("trainbox", IMAGE, ("train",))
PLAIN_INCUMBENT = Start("python train.py, its image", INCUMBENT, ("python", "/opt/ml/code/train.py"))
INCUMBENT_TRAIN = Start("sagemaker-training", INCUMBENT, ("train",))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure the image beside sagemaker-training and the SageMaker SDKs.")
    parser.add_argument("--starts", type=int, default=15, help="containers for start-up (15)")
    parser.add_argument("--jobs", type=int, default=5, help="jobs for each tool (5)")
    parser.add_argument("--rebuilds", type=int, default=5, help="builds after an edit (5)")
    options = parser.parse_args(argv)
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=CACHE) as name:
        try:
            with incumbent_image():
                bench_start(Path(name), options.starts)
            bench_job(Path(name), options.jobs)
            bench_rebuild(Path(name), options.rebuilds)
        except BrokenError as fault:
            print(f"bench-image: {fault}", file=sys.stderr)
            return 1
    return 0


def run(*command: str | Path, cwd: Path = REPOSITORY, env: Mapping[str, str] | None = None) -> str:
    """What a command prints.

    Raises:
        BrokenError: It failed.
    """
    done = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=600
    )
    if done.returncode:
        raise BrokenError(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


# -- start-up ---------------------------------------------------------------------------------------------------------


@contextmanager
def incumbent_image() -> Iterator[None]:
    """Our image with sagemaker-training installed over it, for a while."""
    wheels = CACHE / "wheelhouse-toolkit"
    run("tools/image/wheelhouse", "toolkit", "cpu", wheels)
    container = f"trainbox-bench-{os.getpid()}"
    found = ("--no-index", "--find-links", "/wheels", "--find-links", "/wheels/built")
    install = ("pip", "install", "--quiet", *found, "sagemaker-training==5.1.4")
    try:
        run("docker", "run", "--name", container, "--volume", f"{wheels}:/wheels:ro", IMAGE, *install)
        run("docker", "commit", "--change", 'CMD ["train"]', container, INCUMBENT)
        run("docker", "rm", container)
        yield
    finally:
        for leftover in (("rm", "--force", container), ("rmi", "--force", INCUMBENT)):
            subprocess.run(("docker", *leftover), capture_output=True, check=False)


def bench_start(scratch: Path, runs: int) -> None:
    """From `docker run` to the first line of the script."""
    starts = (PLAIN, TRAINBOX, PLAIN_INCUMBENT, INCUMBENT_TRAIN)
    for start in starts:
        start_once(start, scratch)
    seen: dict[Start, list[float]] = {start: [] for start in starts}
    for _ in range(runs):
        for start in starts:
            seen[start].append(start_once(start, scratch))
    middle = {start: median(seen[start]) for start in starts}
    # Of each round, so that what else the machine does hits both: a container takes longer than what is measured.
    beyond = {
        start: median(each - plain for each, plain in zip(seen[start], seen[bare], strict=True))
        for start, bare in ((TRAINBOX, PLAIN), (INCUMBENT_TRAIN, PLAIN_INCUMBENT))
    }
    emit(f"`docker run` to the script's first line (median of {runs})")
    for start in starts:
        shown = f"{beyond[start]:8.0f} ms beyond plain" if start in beyond else ""
        emit(f"  {start.name:32}{middle[start]:8.0f} ms {shown}")
    share = beyond[TRAINBOX] / beyond[INCUMBENT_TRAIN]
    reached = verdict(reached=share <= TARGET_START_SHARE)
    emit(f"  target: at most {TARGET_START_SHARE:.0%} of sagemaker-training's: {reached} ({share:.0%})\n")


def start_once(start: Start, scratch: Path) -> float:
    """Milliseconds to the first line."""
    root = scratch / "ml"
    shutil.rmtree(root, ignore_errors=True)
    for directory in ("input/config", "input/data", "model", "output/data", "code"):
        (root / directory).mkdir(parents=True)
    config = {"hyperparameters": {"sagemaker_program": "train.py"}, "inputdataconfig": {}, "resourceconfig": RESOURCES}
    for name, value in config.items():
        (root / "input" / "config" / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    (root / "code" / "train.py").write_text(FIRST_LINE, encoding="utf-8")
    options = ("--rm", "--hostname", "algo-1", "--volume", f"{root}:/opt/ml")
    before = time.monotonic_ns()
    # A container shares the clock of its host: https://man7.org/linux/man-pages/man7/time_namespaces.7.html
    said = run("docker", "run", *options, start.image, *start.command)
    began = next((line.split()[1] for line in said.splitlines() if line.startswith("began ")), None)
    if began is None:
        raise BrokenError(f"{start.name}: the script did not run: {said}")
    return (int(began) - before) / 1e6


# -- a job ------------------------------------------------------------------------------------------------------------


def bench_job(scratch: Path, runs: int) -> None:
    """A trivial job in one container, the whole process as a person waits for it."""
    source = scratch / "src"
    source.mkdir()
    (source / "train.py").write_text("print('trained')\n", encoding="utf-8")
    tools: dict[str, Callable[[Path], None]] = {"trainbox run --docker": run_ours}
    for version, by_sdk in (("v2", run_v2), ("v3", run_v3)):
        if (REPOSITORY / f".venv-sdk-{version}" / ".ready").exists():
            tools[f"SageMaker SDK {version}, local mode"] = by_sdk
        else:
            emit(f"SageMaker SDK {version} is not measured: make venv-sdk")
    for one in tools.values():
        _seconds(one, scratch)
    seen: dict[str, list[float]] = {name: [] for name in tools}
    for _ in range(runs):
        for name, one in tools.items():
            seen[name].append(_seconds(one, scratch))
    ours = median(seen["trainbox run --docker"])
    emit(f"A job of one line in a container, the whole process (median of {runs})")
    for name, seconds in seen.items():
        ratio = "" if median(seconds) == ours else f"{median(seconds) / ours:8.1f} times as long"
        emit(f"  {name:32}{median(seconds):8.2f} s  {ratio}")
    emit(f"  target: at most {TARGET_JOB_S:.1f} s: {verdict(reached=ours <= TARGET_JOB_S)}\n")


def _seconds(run_one: Callable[[Path], None], scratch: Path) -> float:
    work = Path(tempfile.mkdtemp(dir=scratch))
    before = time.monotonic()
    run_one(work)
    seconds = time.monotonic() - before
    # The SDKs leave their containers.
    label = "com.docker.compose.project.working_dir"
    listed = run(
        "docker", "ps", "--all", "--filter", f"label={label}", "--format", f'{{{{.ID}}}} {{{{.Label "{label}"}}}}'
    )
    for container, _, directory in (line.partition(" ") for line in listed.splitlines()):
        if Path(directory).is_relative_to(work):
            run("docker", "rm", "--volumes", container)
    return seconds


def run_ours(work: Path) -> None:
    """A job by this project's own command."""
    command = (OURS / "trainbox", "run", work.parent / "src" / "train.py", "--docker", IMAGE, "--out", work / "result")
    said = run(*command)
    _require_trained("trainbox run --docker", said)


def run_v2(work: Path) -> None:
    """The same job by `Estimator` of SDK v2."""
    job = {
        "image_uri": IMAGE,
        "instance_count": 1,
        "source_dir": str(work.parent / "src"),
        "entry_point": "train.py",
        "output_path": f"file://{work}",
        "channels": {"train": f"file://{work.parent / 'src'}"},
        "container_root": str(work),
    }
    _run_sdk("v2", work, job)


def run_v3(work: Path) -> None:
    """The same job by `ModelTrainer` of SDK v3."""
    job = {
        "image": IMAGE,
        "hosts": 1,
        "root": str(work),
        "source": {"source_dir": str(work.parent / "src"), "entry_script": "train.py"},
        "distributed": None,
        "channels": {"train": str(work.parent / "src")},
        "hyperparameters": {},
        "environment": {},
    }
    _run_sdk("v3", work, job)


def _run_sdk(version: str, work: Path, job: Mapping[str, object]) -> None:
    """Through the driver that the tests use, without an account, telemetry or network."""
    compose = Path(run("tools/compose").strip())
    for name in ("home", "scratch"):
        (work / name).mkdir()
    config = work / "home" / "sagemaker.yaml"
    config.write_text(
        'SchemaVersion: "1.0"\n'
        "SageMaker: {PythonSDK: {Modules: {TelemetryOptOut: true, Session: {DefaultS3Bucket: no-bucket}}}}\n",
        encoding="utf-8",
    )
    (work / "job.json").write_text(json.dumps(job), encoding="utf-8")
    env = {
        "PATH": f"{compose / 'bin'}:{os.environ['PATH']}",
        "DOCKER_CONFIG": str(compose),
        "HOME": str(work / "home"),
        "TMPDIR": str(work / "scratch"),
        "PYTHONPATH": str(REPOSITORY / "container"),
        "AWS_ACCESS_KEY_ID": "dummy",
        "AWS_SECRET_ACCESS_KEY": "dummy",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "SAGEMAKER_USER_CONFIG_OVERRIDE": str(config),
    }
    driver = REPOSITORY / "tests" / "sdk" / version / "driver.py"
    python = REPOSITORY / f".venv-sdk-{version}" / "bin" / "python"
    said = run(python, driver, work / "job.json", work / "result.json", cwd=work, env=env)
    answer = json.loads((work / "result.json").read_text(encoding="utf-8"))
    if "error" in answer:
        raise BrokenError(f"SDK {version}: {answer['error']}\n{said[-2000:]}")
    _require_trained(f"SDK {version}", said)


def _require_trained(name: str, said: str) -> None:
    if "trained" not in said:
        raise BrokenError(f"{name}: the script did not run: {said[-2000:]}")


# -- a rebuild --------------------------------------------------------------------------------------------------------


def bench_rebuild(scratch: Path, runs: int) -> None:
    """`make image` after an edit of a training script, in a copy of this checkout, with the extras of the image."""
    label = '{{index .Config.Labels "trainbox.extras"}}'
    extras = run("docker", "image", "inspect", "--format", label, IMAGE).strip()
    checkout = scratch / "checkout"
    rules = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = [rule[1:].strip("/") for rule in rules if rule.startswith("!")]
    for name in (*allowed, "Dockerfile", ".dockerignore", "tools/base-image"):
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, checkout / name, copy_function=os.link)
        elif source.is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, checkout / name)
    base = run("docker", "image", "inspect", "--format", label.replace("trainbox.extras", BASE_LABEL), IMAGE).strip()
    env = {**os.environ, **({"BASE_IMAGE": "fallback"} if base.startswith("trainbox-base:") else {})}
    build = (checkout / "tools/image/build", extras, "cpu", REBUILT)
    script = checkout / "train_scripts" / "xgboost_train.py"
    text = script.read_bytes()
    seen = []
    try:
        run(*build, env=env)
        for edit in range(runs):
            script.unlink()  # it is a link to the one of this checkout
            script.write_bytes(text + b"# %d %d\n" % (edit, time.time_ns()))
            before = time.monotonic()
            run(*build, env=env)
            seen.append(time.monotonic() - before)
    finally:
        subprocess.run(("docker", "rmi", "--force", REBUILT), capture_output=True, check=False)
    reached = verdict(reached=median(seen) <= TARGET_REBUILD_S)
    emit(f"The image after an edit of a training script (median of {runs})")
    emit(f"  {'tools/image/build':32}{median(seen):8.2f} s")
    emit(f"  target: at most {TARGET_REBUILD_S:.1f} s: {reached}")


if __name__ == "__main__":
    sys.exit(main())
