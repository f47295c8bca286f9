"""What the summary ends with: the pictures of a job, and a few things that a person may want to do next."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from trainbox.cli.screen.summary import overwrite_command, resume_command
from trainbox.contract.text import visible
from trainbox.local.request import RunRequest
from trainbox.local.results.record import FILE_NAME, JobRecord
from trainbox.local.results.result import OUTPUT

#: A script may write one in every step.
_MOST_PICTURES = 4


def find_pictures(out: Path) -> tuple[Path, ...]:
    """Return the pictures in `output/data`, a few of many."""
    return tuple(sorted((out / OUTPUT / "data").rglob("*.png"))[:_MOST_PICTURES])


def next_lines(request: RunRequest, record: JobRecord, pictures: Sequence[Path], *, checkpoints: int) -> str:
    """A few lines, each with something to do that can be copied from there.

    Args:
        request: What was asked for.
        record: What became of it.
        pictures: Those that the job has left.
        checkpoints: How many entries the checkpoints' directory has.
    """
    steps = [_look(request, record, pictures), _change(request), _again(request, record, checkpoints)]
    if record.status == "Completed" and record.model is not None and record.result == record.attempt:
        steps.insert(1, _predict(request))
    return "\n" + "".join(f"Next: {visible(step)}\n" for step in steps)


def _look(request: RunRequest, record: JobRecord, pictures: Sequence[Path]) -> str:
    if record.status == "Completed" and pictures:
        return f"look at the pictures: {' '.join(shlex.quote(str(picture)) for picture in pictures)}"
    logs = shlex.join(["less", *(str(request.out / host.log) for host in record.hosts)])
    return f"read what it said: {logs}"


def _predict(request: RunRequest) -> str:
    serve = shlex.join(["trainbox", "serve", str(request.out)])
    transform = shlex.join(["trainbox", "transform", str(request.out), "--input", "FILE", "--output", "DIR"])
    return f"predict with it: {serve}; for whole files: {transform}"


def _change(request: RunRequest) -> str:
    script = request.script if request.source is None else str(request.source.directory / request.script)
    if not request.in_image and (request.source is None or script.endswith(".py")):
        return f"see what can be changed with --hp: {shlex.join(['trainbox', 'describe', script])}"
    return f"read the record of it: {shlex.join(['less', str(request.out / FILE_NAME)])}"


def _again(request: RunRequest, record: JobRecord, checkpoints: int) -> str:
    if record.status != "Completed" and checkpoints:
        return f"go on from its checkpoints: {shlex.join(resume_command(request))}"
    return f"run it again here: {shlex.join(overwrite_command(request))}"
