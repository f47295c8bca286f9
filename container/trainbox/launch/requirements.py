"""Install what a program asks for, once per host and before any of its processes starts."""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainbox.contract.cause import find_cause
from trainbox.contract.job import Job
from trainbox.errors import RequirementsError, Stopped
from trainbox.launch.outcome import Outcome
from trainbox.launch.plan import install_plan
from trainbox.launch.program import Program
from trainbox.launch.supervise import supervise
from trainbox.say import say

#: In the prefix of an interpreter: `trainbox run` has installed what the program asks for, once for all hosts.
OVERLAY_MARKER = "trainbox-overlay.json"
_PIP_ERROR = re.compile(r"^[ \t]*(?:ERROR|error): (.+)$", re.MULTILINE)
_MOST_ERRORS = 4


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
        said = _words(outcome, directory)
        raise RequirementsError(
            f"pip could not install {' '.join(install)} in {directory}: {said}",
            hint="pip's own lines are in the log; with network isolation there is no index: use the image",
        )


def arguments(install: Sequence[str], cache: Path | None = None) -> tuple[str, ...]:
    """The arguments of pip; its cache lies in the warm pool's directory where there is one, for the next job."""
    return (
        "install",
        "--disable-pip-version-check",
        "--no-input",
        *(("--cache-dir", str(cache / "pip")) if cache else ()),
        *install,
    )


def _words(outcome: Outcome, directory: Path) -> str:
    """What pip says is wrong, after what a build said to pip; the last words where that is nothing."""
    failure = outcome.first_failure
    if failure is None:
        return ""
    if failure.hung:
        return f"it {failure.hung}"
    cause = find_cause(failure.stderr, directory)
    raised = [cause.text.partition("\n")[0]] if cause and cause.exception else []
    errors = raised + _PIP_ERROR.findall(failure.stderr)[:_MOST_ERRORS]
    return "; ".join(errors) or (cause.text if cause else f"exit code {outcome.code}")
