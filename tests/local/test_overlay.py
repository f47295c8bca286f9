"""What a local job's requirements are installed over: the environment that runs trainbox, never into it."""

import contextlib
import datetime as dt
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import textwrap
from importlib.metadata import version
from pathlib import Path

import msgspec
import pytest

import trainbox
from tests.support.runs import COMMAND, record
from tests.support.trees import wheel
from tests.support.waiting import LIMIT, eventually
from trainbox.local.backends import namespace
from trainbox.local.backends.confinement import Confinement
from trainbox.local.backends.engine import Image
from trainbox.local.backends.isolation import Isolation, in_containers
from trainbox.local.overlays.build_overlay import sweep
from trainbox.local.overlays.install import plan_build
from trainbox.local.overlays.overlay import Overlay, find_overlay, write_marker
from trainbox.local.plan import plan_run
from trainbox.local.request import RunRequest
from trainbox.local.source import survey
from trainbox.supervisor.requirements import OVERLAY_MARKER

NOW = dt.datetime(2026, 11, 29, 8, 30, tzinfo=dt.UTC)
#: Builds a wheel of one module without anything else; what it does first is the test's.
BACKEND = """\
import os, pathlib, shutil, subprocess, sys, sysconfig, time
sys.path.insert(0, os.getcwd())
def build_wheel(directory, config_settings=None, metadata_directory=None):
    {act}
    return "mine-1.0-py3-none-any.whl"
build_editable = build_wheel
"""
SAYS = "import {0}, sys; print('says', {0}.words, {0}.__file__, sys.prefix, flush=True)"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "src" / "wheels").mkdir(parents=True)
    return tmp_path


def write(here: Path, **files: str) -> None:
    for name, text in files.items():
        path = here / "src" / f"{name}.{'txt' if name == 'requirements' else 'py'}"
        path.write_text(textwrap.dedent(text))


def add_wheel(here: Path, name: str, number: str = "1.0", words: str = "installed") -> None:
    content = f"words = {words!r}\n__version__ = {number!r}\n"
    path = here / "src" / "wheels" / f"{name}-{number}-py3-none-any.whl"
    path.write_bytes(wheel(name, content, number))


def package(directory: Path, act: str, *, needs: str = "") -> None:
    """A package with a build backend of its own and a `setup.py`, which builds the wheel `mine`."""
    directory.mkdir(exist_ok=True)
    (directory / "setup.py").write_text("")
    (directory / "mine.bin").write_bytes(wheel("mine", "words = 'built'\n"))
    copies = f"{act}; shutil.copy('mine.bin', pathlib.Path(directory, 'mine-1.0-py3-none-any.whl'))"
    (directory / "backend.py").write_text(BACKEND.format(act=copies))
    (directory / "pyproject.toml").write_text(
        f"[build-system]\nrequires = [{needs}]\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
    )


def environment(here: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    ours = {"XDG_CACHE_HOME": str(here / "cache"), "PIP_NO_CACHE_DIR": "1", "PIP_CONFIG_FILE": os.devnull}
    return {**kept, **ours, **more}


def run(
    here: Path, *arguments: str, code: int = 0, out: str = "out", command: list[str] = COMMAND, **env: str
) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [*command, "src/train.py", "--out", out, *arguments],
        cwd=here,
        env=environment(here, **env),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def said(done: "subprocess.CompletedProcess[str]") -> list[str]:
    return re.findall(r"^(?:algo-\d \| )?says (.*)$", done.stdout, re.MULTILINE)


def overlays(here: Path) -> list[Path]:
    return sorted(path.parent for path in (here / "cache/trainbox/environments").glob(f"[!.]*/{OVERLAY_MARKER}"))


OFFLINE = "--no-index\n--find-links wheels\n"


@pytest.mark.process
def test_what_is_installed_is_used_and_only_what_is_missing_is_added(here: Path) -> None:
    add_wheel(here, "jobs_own")
    add_wheel(here, "msgspec", "99.0")
    write(here, requirements=f"{OFFLINE}jobs_own\nmsgspec\n")
    write(here, train="import jobs_own, msgspec; print('says', jobs_own.__file__, msgspec.__file__)")
    done = run(here, "--hosts", "2")
    (overlay,) = overlays(here)
    expected = f"{overlay}/lib/python3.{sys.version_info.minor}/site-packages/jobs_own.py {msgspec.__file__}"
    assert said(done) == [expected] * 2
    assert done.stdout.count("Successfully installed jobs_own-1.0") == 1
    assert "Successfully installed jobs_own-1.0" in (here / "out/logs/algo-1.log").read_text()
    left = subprocess.run([sys.executable, "-c", "import jobs_own"], check=False, capture_output=True)
    assert left.returncode == 1, "it is in the environment that runs trainbox"

    again = run(here, out="again")
    assert said(again) == [expected]
    assert "Successfully installed" not in again.stdout + again.stderr
    assert "is installed in" in again.stdout
    fresh = run(here, "--fresh", out="fresh")
    assert "Successfully installed jobs_own-1.0" in fresh.stdout
    assert len(overlays(here)) == 1, "the one that it replaces is gone"


@pytest.mark.process
def test_another_version_than_the_installed_one_shadows_it_for_the_job_alone(here: Path) -> None:
    before = version("mdurl")
    add_wheel(here, "mdurl", "99.0", words="shadow")
    write(here, requirements=f"{OFFLINE}mdurl==99.0\n")
    write(
        here, train=f"from importlib.metadata import version; print('says', version('mdurl'))\n{SAYS.format('mdurl')}"
    )
    done = run(here)
    assert said(done)[0] == "99.0"
    assert said(done)[1].startswith(f"shadow {overlays(here)[0]}/")
    now = subprocess.run(
        [sys.executable, "-c", "from importlib.metadata import version; print(version('mdurl'))"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert now.stdout.strip() == before


@pytest.mark.process
def test_the_commands_of_a_shell_script_are_those_of_the_overlay(here: Path) -> None:
    add_wheel(here, "jobs_own")
    write(here, requirements=f"{OFFLINE}jobs_own\n", probe=SAYS.format("jobs_own"))
    (here / "src" / "run.sh").write_text("python probe.py\n")
    done = subprocess.run(
        [*COMMAND, "src/run.sh", "--out", "out"],
        cwd=here,
        env=environment(here),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    assert said(done)[0].startswith("installed ")
    subprocess.run([overlays(here)[0] / "bin" / "pytest", "--version"], check=True, env=environment(here))


@pytest.mark.long
@pytest.mark.process
@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_a_package_with_code_in_c_is_built_once_and_not_in_the_source(here: Path) -> None:
    (here / "src" / "fast.c").write_text("int answer(void) { return 42; }\n")
    act = "subprocess.run(['cc', '-shared', '-o', sys.prefix + '/fast.so', 'fast.c'], check=True)"
    add_wheel(here, "needed")
    package(here / "src", act, needs="'needed'")
    write(here, requirements=f"{OFFLINE}")
    write(
        here,
        train="import ctypes, mine, sys; lib = ctypes.CDLL(sys.prefix + '/fast.so'); "
        "print('says', mine.words, lib.answer())",
    )
    before = sorted((here / "src").rglob("*"))
    links = str(here / "src" / "wheels")
    assert said(run(here, PIP_FIND_LINKS=links, PIP_NO_INDEX="1")) == ["built 42"]
    assert sorted((here / "src").rglob("*")) == before
    assert said(run(here, out="again", PIP_FIND_LINKS=links, PIP_NO_INDEX="1")) == ["built 42"]
    write(here, train="import mine; print('says', 'changed', mine.words)")
    assert said(run(here, out="third", PIP_FIND_LINKS=links, PIP_NO_INDEX="1")) == ["changed built"]
    assert len(overlays(here)) == 2


@pytest.mark.process
def test_an_editable_directory_stays_where_the_overlay_looks_for_it(here: Path) -> None:
    package(here / "src" / "lib", "pass")
    write(here, requirements="--no-index\n-e ./lib\n", train=SAYS.format("mine"))
    assert said(run(here))[0].startswith("built ")
    assert (overlays(here)[0] / "source" / "lib" / "setup.py").is_file()


@pytest.mark.long
@pytest.mark.process
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="the pip of newer Pythons has no such fault")
def test_the_pip_of_a_plain_environment_builds_a_package_that_needs_another(here: Path) -> None:
    """With `PIP_TARGET` pip 23.2 says "Cannot set --home and --prefix together" of what the build needs."""
    subprocess.run([sys.executable, "-m", "venv", here / "venv"], check=True)
    sites = next((here / "venv").glob("lib/python*/site-packages"))
    below = [path for path in sys.path if (path and Path(path, "trainbox").is_dir()) or path.endswith("site-packages")]
    (sites / "below.pth").write_text("\n".join(below))
    add_wheel(here, "needed")
    package(here / "src", "import needed", needs="'needed'")
    write(here, requirements=OFFLINE, train=SAYS.format("mine"))
    command = [str(here / "venv" / "bin" / "python"), "-m", "trainbox", "run"]
    done = run(here, command=command, PIP_FIND_LINKS=str(here / "src" / "wheels"), PIP_NO_INDEX="1")
    assert said(done)[0].startswith("built ")


@pytest.mark.process
def test_what_pip_cannot_find_fails_the_job_as_it_would_in_the_cloud(here: Path) -> None:
    write(here, requirements=f"{OFFLINE}-r more.txt\n", train="print('never')")
    done = run(here, code=4)
    reason = record(here / "out")["failure_reason"]
    assert "ClientError: pip could not install -r requirements.txt in" in reason
    assert "Could not open requirements file: [Errno 2] No such file or directory: " in reason
    assert record(here / "out")["status"] == "Failed"
    assert "ClientError: pip could not install" in (here / "out" / "output" / "failure").read_text()
    assert "never" not in done.stdout
    assert left(here) == []


def left(here: Path) -> list[str]:
    return [path.name for path in (here / "cache/trainbox/environments").iterdir() if path.suffix != ".lock"]


#: A build that says it has begun, and takes until a file appears.
SLOW = """pathlib.Path({0!r}, f'at-{{os.getpid()}}').touch()
    while not pathlib.Path({0!r}, 'go').exists(): time.sleep(0.02)
    pass"""


@pytest.fixture
def slow(here: Path) -> Path:
    package(here / "src" / "lib", SLOW.format(str(here)))
    write(here, requirements="--no-index\n./lib\n", train=SAYS.format("mine"))
    return here


def start(here: Path, out: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*COMMAND, "src/train.py", "--out", out],
        cwd=here,
        env=environment(here),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def building(here: Path, count: int = 1) -> bool:
    return len(list(here.glob("at-*"))) == count


@pytest.mark.long
@pytest.mark.process
def test_two_runs_at_once_install_once(slow: Path) -> None:
    with start(slow, "one") as one, start(slow, "two") as two:
        eventually(lambda: building(slow), "one that builds")
        waits = "another trainbox run is installing the same requirements: waiting for it"
        logs = [slow / name / "logs" / "algo-1.log" for name in ("one", "two")]
        eventually(lambda: any(log.exists() and waits in log.read_text() for log in logs), "one that waits")
        (slow / "go").touch()
        outputs = [process.communicate(timeout=LIMIT)[0] for process in (one, two)]
    assert [process.returncode for process in (one, two)] == [0, 0], outputs
    assert [output.count("says built") for output in outputs] == [1, 1]
    assert building(slow, 1)


def kill_all(here: Path) -> None:
    """Every process that has the test's cache directory in its environment, which none survives."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(here / "cache").encode() in (path / "environ").read_bytes():
                os.kill(int(path.name), signal.SIGKILL)


@pytest.mark.process
@pytest.mark.parametrize("which", [pytest.param("trainbox run", marks=pytest.mark.long), "everything"])
def test_what_was_killed_while_it_installed_is_never_taken_for_an_environment(slow: Path, which: str) -> None:
    with start(slow, "one") as killed:
        eventually(lambda: building(slow), "one that builds")
        killed.kill() if which == "trainbox run" else kill_all(slow)
        killed.communicate(timeout=LIMIT)
    assert overlays(slow) == []
    (slow / "go").touch()
    done = run(slow, out="two")
    assert said(done)[0].startswith("built ")
    assert building(slow, 2)
    assert len(left(slow)) == 2, "the link, and where it leads"


@pytest.mark.long
@pytest.mark.process
def test_where_no_pip_is_installed_that_of_python_is_used(here: Path) -> None:
    """As in an environment that uv has made."""
    below = here / "below"
    below.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith(("pip", "_distutils", "distutils")) and not entry.name.endswith(".pth"):
            (below / entry.name).symlink_to(entry)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", here / "venv"], check=True)
    sites = next((here / "venv").glob("lib/python*/site-packages"))
    (sites / "below.pth").write_text(f"{below}\n{Path(trainbox.__file__).parents[1]}\n")
    add_wheel(here, "jobs_own")
    write(here, requirements=f"{OFFLINE}jobs_own\n", train=SAYS.format("jobs_own"))
    python = str(here / "venv" / "bin" / "python")
    assert subprocess.run([python, "-m", "pip"], check=False, capture_output=True).returncode == 1
    done = run(here, command=[python, "-m", "trainbox", "run"])
    assert said(done)[0].startswith("installed ")


@pytest.mark.process
def test_a_stop_ends_the_installation(slow: Path) -> None:
    with start(slow, "one") as stopped:
        eventually(lambda: building(slow), "one that builds")
        stopped.send_signal(signal.SIGINT)
        output, _ = stopped.communicate(timeout=LIMIT)
    assert stopped.returncode == 130, output
    assert record(slow / "one")["status"] == "Stopped"
    assert left(slow) == []


@pytest.mark.process
def test_without_a_cache_directory_the_environment_is_the_jobs_own(here: Path) -> None:
    (here / "is-a-file").touch()
    add_wheel(here, "jobs_own")
    write(here, requirements=f"{OFFLINE}jobs_own\n", train=SAYS.format("jobs_own"))
    done = run(here, XDG_CACHE_HOME=str(here / "is-a-file"))
    assert said(done)[0].startswith("installed ")
    assert "cannot be written: for this job alone" in done.stdout


@pytest.mark.process
@pytest.mark.skipif(os.geteuid() != 0 or bool(namespace.probe("root")), reason="needs root and private mounts")
def test_a_full_disk_is_said_and_leaves_nothing(here: Path) -> None:
    add_wheel(here, "jobs_own", words="x" * 2**20)
    write(here, requirements=f"{OFFLINE}jobs_own\n", train="print('never')")
    (here / "cache").mkdir()
    mount = [
        "unshare",
        "-m",
        "sh",
        "-c",
        'mount -t tmpfs -o size=512k tmpfs cache; "$@"; code=$?; ls -A cache/*/*; exit $code',
        "-",
    ]
    done = run(here, code=4, command=[*mount, *COMMAND])
    assert "No space left on device" in record(here / "out")["failure_reason"]
    assert re.search(r"\n[0-9a-f]+-1\.lock\n$", done.stdout)
    assert "bin" not in done.stdout.splitlines()


@pytest.mark.process
def test_passwords_of_an_index_are_nowhere(here: Path) -> None:
    index = "http://me:hunter-2222@127.0.0.1:9/simple"
    write(here, requirements="--extra-index-url http://tok-3333@127.0.0.1:9/more\nabsent\n", train="")
    done = run(here, "--env", f"PIP_INDEX_URL={index}", code=4, PIP_RETRIES="0")
    kept = [path.read_text(errors="replace") for path in (here / "out").rglob("*") if path.is_file()]
    for text in (done.stdout, done.stderr, *kept, *map(str, (here / "cache").rglob("*"))):
        assert "hunter-2222" not in text
        assert "tok-3333" not in text


# -- which one -----------------------------------------------------------------------------------------------------


def request(here: Path, text: str = "a\n", *, hours: float = 0.0, env: dict[str, str] | None = None) -> RunRequest:
    write(here, requirements=text, train="")
    return RunRequest(
        script="train.py",
        source=survey(here / "src", leave_out=here / "out"),
        inherited={"XDG_CACHE_HOME": str(here / "cache"), "PATH": "/usr/bin", "PIP_TARGET": "elsewhere", **(env or {})},
        job_name="job",
        out=here / "out",
        isolation=Isolation(can_name_hosts=True),
        started=NOW + dt.timedelta(hours=hours),
    )


def found(asked: RunRequest, *, fresh: bool = False) -> Overlay:
    overlay = find_overlay(asked, fresh=fresh)
    assert overlay is not None
    return overlay


def make(overlay: Overlay, at: dt.datetime = NOW) -> None:
    place = overlay.path.with_name(f".{overlay.path.name}-made")
    (place / "bin").mkdir(parents=True)
    (place / "bin" / "python").touch()
    write_marker(place, at.timestamp())
    overlay.path.symlink_to(place.name)


@pytest.mark.parametrize(("text", "hours", "again"), [("a\n", 23, True), ("a\n", 25, False), ("a==1\n", 9999, True)])
def test_after_a_day_what_names_no_version_is_asked_for_again(here: Path, text: str, hours: float, again: bool) -> None:
    first = found(request(here, text))
    assert not first.is_found
    make(first)
    later = found(request(here, text, hours=hours))
    assert later.is_found == again
    assert later.path.name.rpartition("-")[2] == ("1" if again else "2")


@pytest.mark.parametrize(("cache", "home", "apart"), [("", "", True), ("relative", "", True), ("", "{}", False)])
def test_where_environments_are_kept(here: Path, cache: str, home: str, apart: bool) -> None:
    overlay = found(request(here, env={"XDG_CACHE_HOME": cache, "HOME": home.format(here)}))
    assert overlay.path.parent == (here / "out/.trainbox" if apart else here / ".cache/trainbox/environments")
    assert bool(overlay.why_apart) == apart


def test_a_fresh_one_is_another(here: Path) -> None:
    asked = request(here)
    make(found(asked))
    assert found(asked, fresh=True).path.name.endswith("-2")
    make(found(asked, fresh=True))
    assert found(asked).path.name.endswith("-2")


@pytest.mark.parametrize("harm", ["no marker", "a torn marker", "no Python", "a broken link"])
def test_what_is_not_whole_is_not_found(here: Path, harm: str) -> None:
    overlay = found(request(here))
    make(overlay)
    place = overlay.path.resolve()
    match harm:
        case "no marker":
            (place / OVERLAY_MARKER).unlink()
        case "a torn marker":
            (place / OVERLAY_MARKER).write_text('{"bui')
        case "no Python":
            (place / "bin" / "python").unlink()
        case _:
            shutil.rmtree(place)
    assert not found(request(here)).is_found


@pytest.mark.parametrize(
    "other",
    [
        {"PIP_INDEX_URL": "https://a"},
        {"PIP_INDEX_URL": "https://b"},
        {"PYTHONPATH": "/x"},
        {"PIP_CONFIG_FILE": "pip.conf"},
    ],
)
def test_other_settings_of_pip_are_another_environment(here: Path, other: dict[str, str]) -> None:
    (here / "pip.conf").write_text("[global]\nindex-url = https://c\n")
    env = {name: str(here / value) if value == "pip.conf" else value for name, value in other.items()}
    assert found(request(here)).path != found(request(here, env=env)).path
    assert found(request(here)).path == found(request(here, env={"PIP_CACHE_DIR": "/y", "HOME": str(here)})).path


def test_no_url_is_in_the_command_line_or_the_name(here: Path) -> None:
    index = "https://me:hunter-2222@example.org/simple"
    asked = request(here, f"--extra-index-url {index}\na\n", env={"PIP_INDEX_URL": index})
    overlay = found(asked)
    (host,) = plan_build(plan_run(asked, overlay), overlay).hosts
    assert "example" not in " ".join([str(overlay.path), *host.argv])
    assert host.environment["PIP_INDEX_URL"] == index
    assert "PIP_TARGET" not in host.environment


def test_hosts_run_with_its_python_and_its_commands(here: Path) -> None:
    asked = msgspec.structs.replace(request(here), hosts=2)
    overlay = found(asked)
    for host in plan_run(asked, overlay).hosts:
        assert host.argv[-4:] == (str(overlay.python), "-P", "-m", "trainbox.supervisor")
        assert host.environment["PATH"] == f"{overlay.path}/bin:/usr/bin"


def test_in_containers_pip_installs_as_in_the_cloud(here: Path) -> None:
    image = in_containers(Image("trainbox:cpu", memory=1), Confinement(network="bridge"))
    assert find_overlay(msgspec.structs.replace(request(here), isolation=image)) is None


def test_a_job_without_requirements_has_none(here: Path) -> None:
    asked = request(here)
    (here / "src" / "requirements.txt").unlink()
    assert find_overlay(asked) is None


def test_what_nobody_uses_any_more_is_removed(here: Path) -> None:
    current, old, used, recent = (found(request(here, f"a=={number}\n")) for number in range(4))
    for overlay in (old, used, recent):
        make(overlay)
    for overlay in (old, used):
        os.utime(overlay.path / OVERLAY_MARKER, (0, 0))
    half = current.path.with_name(f".{current.path.name}-half")
    half.mkdir()
    with used.lock.open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        sweep(current.path)
    assert [overlay.is_ready() for overlay in (old, used, recent)] == [False, True, True]
    assert not half.exists()
    assert not old.path.with_name(f".{old.path.name}-made").exists()
