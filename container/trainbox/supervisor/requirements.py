"""Install what a program asks for, once per host and before any of its processes starts."""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from trainbox.contract.job import Job
from trainbox.contract.setting_values import PIP_RULES, Installs
from trainbox.diagnostics.cause import find_cause
from trainbox.errors import RequirementsError, Stopped
from trainbox.log_lines import emit
from trainbox.supervisor.outcome import Exit, Outcome
from trainbox.supervisor.plan import install_plan
from trainbox.supervisor.program.choice import Program, find_module_requirements, find_requirements
from trainbox.supervisor.supervise import supervise

#: In the prefix of an interpreter: `trainbox run` has installed what the program asks for, once for all hosts.
OVERLAY_MARKER = "trainbox-overlay.json"
#: Below the tree of the job: what pip installs where the image cannot be written.
_PACKAGES = "packages"
_PIP_ERROR = re.compile(r"^[ \t]*(?:ERROR|error): (.+)$", re.MULTILINE)
_MOST_ERRORS = 4
_EDITABLE = re.compile(r"^(?:-e|--editable)[ =]*")
_HINT = "pip's own lines are in the log; with network isolation there is no index: use the image"
#: Pip's names for what has failed, which stand before or behind what says why.
_SAY_NOTHING = ("subprocess-exited", "metadata-generation", "failed-wheel", "Failed b", "Could not build", "legacy-")
_BUILD_FAILED = "error: subprocess-exited-with-error"
_UNBUILT = re.compile(r"^[ \t]*+(?:ERROR|error): Failed building (?:wheel|editable) for (\S++)", re.MULTILINE)
_BEGUN = re.compile(r"^(?:Collecting|Processing|Obtaining) (\S++)", re.MULTILINE)
_COMPILER_ERROR = re.compile(r"[^\s:]++(?::\d++)++: (?:fatal )?error: |(?:\S*/)?ld: cannot find |CMake Error")
_BUILD_HINT = (
    "the log holds all that its build said. Name a version that has a wheel for this Python, or install what the build"
    " needs in the Dockerfile (apt-get install -y build-essential python3-dev)"
)


def install(program: Program, job: Job, env: Mapping[str, str]) -> Mapping[str, str]:
    """Run pip where the program asks for something.

    Returns:
        What of the environment is different from now on, for the script to find it.

    Raises:
        RequirementsError: Pip failed; the message holds its own words.
        Stopped: A signal ended it.
    """
    if not program.install:
        return {}
    if Path(sys.prefix, OVERLAY_MARKER).is_file():
        emit(f"{' '.join(program.install)} is installed in {sys.prefix}")
        return {}
    wanted = allowed(program.install, job.settings.installs)
    if not wanted:
        emit(f"trainbox_requirements=off: {' '.join(program.install)} is not installed")
        return {}
    site = next(iter(_sites()), "")
    added: dict[str, str] = {}
    python = sys.executable
    where = ""
    if site and not env.get("PIP_TARGET") and not os.access(site, os.W_OK):
        place, added = _make_place(job.layout.root / _PACKAGES, env)
        where = f" into {place}: {site} cannot be written"
        python = str(place / "bin" / "python")
    emit(f"installing {' '.join(wanted)}{where}")
    argv = arguments(wanted, job.settings.pip_cache_dir)
    hang_seconds = job.settings.hang_seconds
    run_pip(argv, wanted, program.directory, env={**env, **added}, hang_seconds=hang_seconds, python=python)
    return added


def builds_in_code(program: Program, job: Job) -> bool:
    """Whether pip will build in the program's own directory: it is a package, or a requirement is a part of it."""
    if job.settings.installs == "off" or Path(sys.prefix, OVERLAY_MARKER).is_file():
        return False
    listed = program.directory / "requirements.txt"
    lines = listed.read_text(encoding="utf-8", errors="replace").splitlines() if listed.is_file() else []
    return "." in program.install or any(map(_is_local, lines))


def _is_local(line: str) -> bool:
    """Whether a line of requirements.txt is the path of a directory, as `./lib` or `-e .`."""
    named = _EDITABLE.sub("", line.strip())
    return named.startswith(".") or ("/" in named and ":" not in named and not named.startswith(("#", "-")))


def find_install(script: str, directory: Path, *, is_module: bool, installs: Installs) -> tuple[str, ...]:
    """What pip is to install for a program of a source, before it is anywhere a job."""
    found = find_module_requirements(directory) if is_module else find_requirements(script, directory)
    return allowed(found, installs)


def allowed(install: tuple[str, ...], installs: Installs) -> tuple[str, ...]:
    """Pure: what pip is to install and by which rule; empty where it shall not run."""
    return () if installs == "off" or not install else (*PIP_RULES[installs], *install)


def _make_place(tree: Path, env: Mapping[str, str]) -> tuple[Path, dict[str, str]]:
    try:
        place = _choose_place(tree)
        return place, make_environment(place, _sites(), env)
    except OSError as error:
        raise RequirementsError(
            f"an environment in {tree} cannot be made: {error.strerror or error}",
            hint="pip needs a place to install to: mount the job's tree writable, or install it in the image",
        ) from error


def _choose_place(tree: Path) -> Path:
    """Below the tree of the job, or among the temporary files where this user cannot write there."""
    with contextlib.suppress(OSError):
        tree.mkdir(parents=True, exist_ok=True)
    return tree if os.access(tree, os.W_OK) else Path(tempfile.mkdtemp(prefix="trainbox-")) / tree.name


def _sites() -> tuple[str, ...]:
    """Where packages are; without the module `site`, which the image's own start leaves out, as it does the prefix."""
    return tuple(path for path in sys.path if Path(path).name in {"site-packages", "dist-packages"})


def make_environment(place: Path, sites: Iterable[str], env: Mapping[str, str]) -> dict[str, str]:
    """A virtual environment that sees all that is installed below it, pip too.

    Args:
        place: Where.
        sites: The directories of packages below it.
        env: The environment of the job.

    Returns:
        What another interpreter needs in its environment to find what is installed there, and its commands, first.

    Raises:
        RequirementsError: There is no pip below it, and Python brings none.
        OSError: It cannot be written.
    """
    import venv  # noqa: PLC0415 - seldom, and five milliseconds
    from importlib.util import find_spec  # noqa: PLC0415 - likewise

    try:
        venv.EnvBuilder(symlinks=True, with_pip=find_spec("pip") is None).create(place)
        packages = next(place.glob("lib/python*/site-packages"))
        # Not the paths as lines of their own: of a directory that a line names no `.pth` file is read, and so no
        # package that is installed as editable would be found.
        adds = "".join(f"import site; site.addsitedir({path!a})\n" for path in sites)
        (packages / "trainbox-overlay.pth").write_text(adds, encoding="ascii")
    except subprocess.CalledProcessError as error:
        raise RequirementsError(
            f"pip is not installed in {sys.prefix}, and cannot be: 'python -m ensurepip' failed",
            hint="install pip there (uv pip install pip, apt-get install python3-pip)",
        ) from error
    return {
        "PATH": ":".join(filter(None, [str(place / "bin"), env.get("PATH", "")])),
        "PYTHONPATH": ":".join(filter(None, [str(packages), env.get("PYTHONPATH", "")])),
    }


def run_pip(
    argv: tuple[str, ...],
    install: Sequence[str],
    directory: Path,
    *,
    env: Mapping[str, str],
    hang_seconds: float = 0.0,
    python: str = sys.executable,
) -> None:
    """Run pip, supervised like any child.

    Args:
        argv: Its arguments.
        install: What of them says what to install, for messages.
        directory: Where it runs.
        env: Its environment.
        hang_seconds: It is ended once it has been stopped (SIGSTOP) for longer; 0 never looks.
        python: The interpreter whose environment gets it.

    Raises:
        RequirementsError: Pip failed; the message holds its own words.
        Stopped: A signal ended it.
    """
    planned = install_plan(argv, directory, env=env, grace_seconds=0.0, hang_seconds=hang_seconds, python=python)
    outcome = supervise(planned)
    if outcome.stopped_by:
        raise Stopped("stopped by a signal while pip was installing")
    if outcome.code:
        said, hint = _words(outcome, directory)
        raise RequirementsError(f"pip could not install {' '.join(install)} in {directory}: {said}", hint=hint)


def arguments(install: Sequence[str], cache: Path | None = None) -> tuple[str, ...]:
    """The arguments of pip; its cache lies in the warm pool's directory where there is one, for the next job."""
    return (
        "install",
        "--disable-pip-version-check",
        "--no-input",
        *(("--cache-dir", str(cache / "pip")) if cache else ()),
        *install,
    )


def _words(outcome: Outcome, directory: Path) -> tuple[str, str]:
    """What pip says is wrong, after what a build said to pip, and what to do; the last words where that is nothing."""
    failure = outcome.first_failure
    if failure is None:
        return "", _HINT
    if failure.hung:
        return f"it {failure.hung}", _HINT
    cause = find_cause(failure.stderr, directory)
    raised = [cause.text.partition("\n")[0]] if cause and cause.exception else []
    errors = _PIP_ERROR.findall(failure.stderr)
    if package := _find_unbuilt(failure):
        compiled = [line for line in map(str.strip, failure.stderr.splitlines()) if _COMPILER_ERROR.match(line)]
        of_build = [error for error in errors if not error.startswith(_SAY_NOTHING)]
        said = next(iter([*compiled, *raised, *of_build]), f"exit code {outcome.code}")
        return f"{package} does not build: {said}", _BUILD_HINT
    return "; ".join(raised + errors[:_MOST_ERRORS]) or (cause.text if cause else f"exit code {outcome.code}"), _HINT


def _find_unbuilt(failure: Exit) -> str:
    """The package whose build has failed; empty where something else is wrong."""
    if named := _UNBUILT.search(failure.stderr):
        return named[1]
    if _BUILD_FAILED not in failure.stderr:
        return ""
    begun = _BEGUN.findall(failure.stdout)
    return str(begun[-1]) if begun else "a package"
