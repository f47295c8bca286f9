"""Install what a program asks for, once per host and before any of its processes starts."""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainbox.contract.cause import find_cause
from trainbox.contract.job import Job
from trainbox.errors import RequirementsError, Stopped
from trainbox.launch.outcome import Exit, Outcome
from trainbox.launch.plan import install_plan
from trainbox.launch.program import Program
from trainbox.launch.supervise import supervise
from trainbox.say import say

#: In the prefix of an interpreter: `trainbox run` has installed what the program asks for, once for all hosts.
OVERLAY_MARKER = "trainbox-overlay.json"
_PIP_ERROR = re.compile(r"^[ \t]*(?:ERROR|error): (.+)$", re.MULTILINE)
_MOST_ERRORS = 4
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


def install(program: Program, job: Job, env: Mapping[str, str]) -> None:
    """Run pip where the program asks for something.

    Raises:
        RequirementsError: Pip failed; the message holds its own words.
        Stopped: A signal ended it.
    """
    if not program.install:
        return
    if Path(sys.prefix, OVERLAY_MARKER).is_file():
        say(f"{' '.join(program.install)} is installed in {sys.prefix}")
        return
    say(f"installing {' '.join(program.install)}")
    argv = arguments(program.install, job.settings.pip_cache_dir)
    run_pip(argv, program.install, program.directory, env=env, hang_seconds=job.settings.hang_seconds)


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
