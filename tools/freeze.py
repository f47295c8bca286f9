"""Record anew what `tests/frozen` compares with: `make freeze WHAT=plans`. The rule is in tests/frozen/recorded.py."""

import argparse
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.frozen import digests, fixtures, recorded, surface
from tests.frozen.dry_runs import DRY_RUNS, dry_run
from tests.frozen.failures import FAILING_RUNS, FAILURES, failure_of, failure_of_run
from tests.frozen.jobs import JOBS
from tests.frozen.plans import plan_of
from tests.frozen.trainings import TRAININGS, train


def main() -> None:
    """Record what is asked for; without a word everything but the fixtures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", metavar="WHAT", help=", ".join(RECORDERS))
    asked = parser.parse_args().what or [name for name in RECORDERS if name not in ONLY_WHEN_ASKED]
    if unknown := sorted(set(asked) - set(RECORDERS)):
        parser.error(f"{', '.join(unknown)}: expected one of {', '.join(RECORDERS)}")
    for name in asked:
        with tempfile.TemporaryDirectory() as directory:
            RECORDERS[name](Path(directory))
        print(f"recorded: {name}; read the diff, and commit it with a line in CHANGELOG.md")


def record_plans(directory: Path) -> None:
    """The plan of each job."""
    recorded.write_all("plans", {f"{name}.json": plan_of(job, directory / name) for name, job in JOBS.items()})


def record_dry_runs(directory: Path) -> None:
    """What `trainbox run … --dry-run` prints."""
    found = {f"{name}.txt": dry_run(case, directory / name) for name, case in DRY_RUNS.items()}
    recorded.write_all("dry-runs", found)


def record_failures(directory: Path) -> None:
    """The failure file of each outcome."""
    found = {f"{name}.json": failure_of(case, directory / name) for name, case in FAILURES.items()}
    recorded.write_all("failures", found)


def record_failing_runs(directory: Path) -> None:
    """The failure file of each run that fails."""
    found = {f"{name}.json": failure_of_run(case, directory / name) for name, case in FAILING_RUNS.items()}
    recorded.write_all("process-failures", found)


def record_help(directory: Path) -> None:
    """Each help text, and the Python that wrote it."""
    found = {name: surface.help_of(command, directory) for name, command in surface.commands().items()}
    recorded.write_all("help", {**found, "python": surface.PYTHON + "\n"})


def record_names(_directory: Path) -> None:
    """`trainbox.__all__`."""
    recorded.write("names.json", surface.public_names())


def record_digests(directory: Path) -> None:
    """What each seeded training leaves."""
    for name, job in TRAININGS.items():
        (directory / name).mkdir()
        whole = digests.digest_of(job, train(job, directory / name))
        recorded.write(digests.file_of(name, job), whole)
        if "checkpoint" in job.fixtures and fixtures.has_same_versions(name):
            (directory / f"{name}-resumed").mkdir()
            checkpoints = fixtures.FIXTURES / name / "checkpoints"
            done = train(job, directory / f"{name}-resumed", checkpoints=checkpoints)
            resumed = digests.digest_of(job, done)
            if digests.without_curves(resumed) != digests.without_curves(whole):
                recorded.write(digests.resumed_of(name, job), resumed)


def record_fixtures(directory: Path) -> None:
    """A checkpoint and a model of each algorithm: those that are there are replaced."""
    for name, job in TRAININGS.items():
        if job.fixtures:
            (directory / name).mkdir()
            fixtures.keep(name, job, train(job, directory / name))


RECORDERS: Mapping[str, Callable[[Path], None]] = {
    "plans": record_plans,
    "dry-runs": record_dry_runs,
    "failures": record_failures,
    "process-failures": record_failing_runs,
    "help": record_help,
    "names": record_names,
    "digests": record_digests,
    "fixtures": record_fixtures,
}
#: Later versions must read what earlier ones have written.
ONLY_WHEN_ASKED = ("fixtures",)

if __name__ == "__main__":
    main()
