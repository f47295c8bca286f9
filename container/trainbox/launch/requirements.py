"""Install what a program asks for, once per host and before any of its processes starts."""

import re
from collections.abc import Mapping
from pathlib import Path

from trainbox.contract.cause import find_cause
from trainbox.contract.job import Job
from trainbox.errors import RequirementsError, Stopped
from trainbox.launch.outcome import Outcome
from trainbox.launch.plan import install_plan
from trainbox.launch.program import Program
from trainbox.launch.supervise import supervise
from trainbox.say import say

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
    say(f"installing {' '.join(program.install)}")
    hang = job.settings.hang_seconds
    planned = install_plan(arguments(program, job), program.directory, env=env, grace_seconds=0.0, hang_seconds=hang)
    outcome = supervise(planned)
    if outcome.stopped_by:
        raise Stopped("stopped by a signal while pip was installing")
    if outcome.code:
        said = _words(outcome, program.directory)
        raise RequirementsError(
            f"pip could not install {' '.join(program.install)} in {program.directory}: {said}",
            hint="pip's own lines are in the log; with network isolation there is no index: use the image",
        )


def arguments(program: Program, job: Job) -> tuple[str, ...]:
    """The arguments of pip; its cache lies in the warm pool's directory where there is one, for the next job."""
    cache = job.settings.pip_cache_dir
    return (
        "install",
        "--disable-pip-version-check",
        "--no-input",
        *(("--cache-dir", str(cache / "pip")) if cache else ()),
        *program.install,
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
