"""Build one result from the files of all hosts, in the work directory: merge them and pack the model."""

import shlex
from collections.abc import Callable
from pathlib import Path

import msgspec

from trainbox.errors import RunError
from trainbox.local.plan import RunPlan
from trainbox.local.results.archive import archive
from trainbox.local.results.collect import merge
from trainbox.local.results.record import Clash, ModelRecord
from trainbox.local.results.result import ARCHIVE, BUILDING, MODEL, OUTPUT


class BuiltResult(msgspec.Struct, frozen=True):
    """A result that has not been moved to its place."""

    model: ModelRecord | None
    clashes: tuple[Clash, ...]
    #: Why there is no archive of the model.
    problem: RunError | None = None


def build_result(plan: RunPlan, failed: str | None, note: Callable[[str], None]) -> BuiltResult:
    """Merge the files of all hosts in the work directory, and pack the model.

    Args:
        plan: Of the job.
        failed: The host that failed first, if one did.
        note: Reports a note.

    Raises:
        RunError: It cannot be written.
    """
    building = plan.work / BUILDING
    try:
        building.mkdir()
    except OSError as error:
        raise RunError(f"{building} cannot be written: {error.strerror}") from error
    trees = [(host.name, host.tree) for host in plan.hosts]
    # The failure file of the host that failed first is the job's; the others get the names of their hosts.
    outputs = sorted(((name, tree / OUTPUT) for name, tree in trees), key=lambda each: each[0] != failed)
    clashes = tuple(clash for clash in merge(outputs, building / OUTPUT) if clash.path != "failure")
    clashes += tuple(merge([(name, tree / MODEL) for name, tree in trees], building / MODEL))
    for clash in clashes:
        note(
            f"error: hosts wrote different {clash.path}: that of {clash.kept} kept the name,"
            f" the others are {', '.join(clash.others)}"
        )
    try:
        model, left_out = archive(building / MODEL, building / ARCHIVE)
    except RunError as error:
        return BuiltResult(None, clashes, error)
    for path in left_out:
        note(f"{path} is no file, directory or link: not in {ARCHIVE}")
    return BuiltResult(model, clashes)


def no_archive(problem: RunError, out: Path, model: Path) -> RunError:
    """Return the error for a model that could not be packed.

    Args:
        problem: Why.
        out: The directory of the result.
        model: Where the model itself lies.
    """
    by_hand = shlex.join(["tar", "-czf", str(out / ARCHIVE), "-C", str(model), "."])
    error = RunError(problem.message, hint=f"the model itself is whole in {model}; free some space, then: {by_hand}")
    error.__cause__ = problem
    return error
