"""Plan a tuning job: what was asked for, checked against the script, this machine, and what was done before."""

import datetime as dt
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from trainbox.contract.credentials.secrets import is_secret
from trainbox.contract.environment import GPU_VARIABLE
from trainbox.contract.hyperparameters import is_reserved
from trainbox.contract.job_spec import JobSpec
from trainbox.errors import RunError
from trainbox.local.inputs.source import as_flags
from trainbox.local.local_options import LocalOptions
from trainbox.local.plan import RunPlan
from trainbox.local.request import RESULTS
from trainbox.local.run_job import plan_job
from trainbox.system.machine import find_gpus
from trainbox.tuning.planning.declared import read_declared
from trainbox.tuning.planning.read_objective import choose_objective, read_metrics
from trainbox.tuning.planning.read_ranges import read_ranges
from trainbox.tuning.records import TuningRecord
from trainbox.tuning.search_space import (
    CategoricalRange,
    ParameterRange,
    Resource,
    SearchSettings,
    Strategy,
    count_points,
    is_within,
)
from trainbox.tuning.tuning_file import FILE_NAME, TRIAL, read_tuning
from trainbox.tuning.tuning_plan import TuningPlan, WarmStart, divide_machine

#: API HyperParameterTuningJobName.
_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,31}")
_DEFAULT_TRIALS = 10
#: API ResourceLimits: MaxNumberOfTrainingJobs.
_MOST_TRIALS = 1000


class TuningRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a command line says of a search, as text."""

    program: str
    name: str = ""
    out: Path | None = None
    ranges: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    objective: str | None = None
    goal: str | None = None
    metrics: tuple[str, ...] = ()
    trials: int | None = None
    parallel: int = 1
    strategy: Strategy = "Bayesian"
    early_stop: bool = False
    seed: int = 0
    #: `MIN:MAX` epochs, of Hyperband.
    resource: str | None = None
    warm_start: tuple[str, ...] = ()
    resume: bool = False
    overwrite: bool = False


def plan_tuning(request: TuningRequest, spec: JobSpec, options: LocalOptions) -> TuningPlan:
    """Plan a tuning job; nothing is written or started.

    Args:
        request: What the command line says of the search.
        spec: The job of each trial, without what is tuned.
        options: How trials run on this machine.

    Raises:
        TrainboxError: What was asked for cannot be done.
    """
    now, cwd = dt.datetime.now(dt.UTC), options.directory.absolute()
    _check_numbers(request)
    definitions = read_metrics(request.metrics)
    name, out = _place(request, spec, cwd, now)
    previous = _read_previous(out, request)
    algorithm = msgspec.structs.replace(spec.algorithm_specification, metric_definitions=definitions)
    spec = msgspec.structs.replace(spec, algorithm_specification=algorithm)
    job = _plan_first(name, out, spec, options)
    declared = read_declared(job, spec.hyper_parameters)
    ranges = read_ranges(request.ranges, request.choices, declared)
    if not ranges:
        why = f": {declared.problem}" if declared.problem else ""
        raise RunError(f"nothing is tuned{why}", hint="--range eta=0.01:0.3:log, --choice booster=gbtree,dart")
    _check_given_once(ranges, spec)
    chosen = choose_objective(request.objective, request.goal, definitions, declared)
    settings = SearchSettings(
        strategy=request.strategy,
        objective=chosen.objective,
        ranges=ranges,
        max_trials=_count_trials(request, ranges),
        max_parallel=request.parallel,
        seed=request.seed,
        early_stopping=request.early_stop,
        resource=_read_resource(request),
    )
    parents = [_read_parent(cwd / place) for place in request.warm_start]
    learned = tuple(each for parent in parents for each in _learn_from(parent, settings))
    gpus = find_gpus({**(options.env or {}), **spec.environment}.get(GPU_VARIABLE))
    kind = job.request.isolation.kind
    if kind in ("root", "user"):
        options = msgspec.structs.replace(options, private_mounts=kind)
    plan = TuningPlan(
        name=name if previous is None else previous.name,
        program=request.program,
        out=out,
        settings=settings,
        spec=spec,
        options=options,
        channels=as_flags(job.request.channels),
        hide=job.request.hide,
        previous=previous,
        overwrite=request.overwrite,
        warm_start=tuple(str(cwd / place) for place in request.warm_start),
        learned=learned,
        shares=divide_machine(_processors(), gpus, request.parallel),
        notes=_shared_gpus(gpus, request.parallel)
        + tuple(
            filter(None, [*_notes(request, settings, out, previous), chosen.note, *_learned_note(parents, learned)])
        ),
    )
    if previous is not None:
        _check_same(plan.record, previous)
    return plan


def _check_numbers(request: TuningRequest) -> None:
    if request.trials is not None and not 1 <= request.trials <= _MOST_TRIALS:
        raise RunError(f"--trials {request.trials}: expected 1 to {_MOST_TRIALS}")
    if not 1 <= request.parallel <= _MOST_TRIALS:
        raise RunError(f"--parallel {request.parallel}: expected 1 to {_MOST_TRIALS}")
    if request.strategy == "Hyperband" and request.early_stop:
        raise RunError("--early-stop: Hyperband stops trials itself", hint="leave it out, or take --strategy bayesian")
    if request.strategy != "Hyperband" and request.resource is not None:
        raise RunError("--resource is a setting of Hyperband", hint="leave it out, or add --strategy hyperband")
    if request.overwrite and request.resume:
        raise RunError("--overwrite and --resume: only one of them can be done", hint="--resume keeps the trials")


def _place(request: TuningRequest, spec: JobSpec, cwd: Path, now: dt.datetime) -> tuple[str, Path]:
    """The name of the tuning job, and its directory."""
    name = request.name
    if name and not _NAME.fullmatch(name):
        raise RunError(
            f"--job-name {name!r}: SageMaker takes letters, digits and dashes between them, 32 at most",
            hint="for example my-search-1",
        )
    if not name and request.out is not None and _NAME.fullmatch(request.out.name):
        name = request.out.name
    if request.resume and not name and request.out is None:
        raise RunError("--resume: which tuning job?", hint="give its directory as --out")
    if not name:
        module = spec.script.module if spec.script else ""
        stem = re.sub(r"[^a-zA-Z0-9]+", "-", module or Path(request.program).stem).strip("-")[:16].strip("-")
        name = f"{stem or 'tuning'}-{now:%y%m%d-%H%M%S}"
    return name, (cwd / (request.out or RESULTS / name).expanduser()).resolve()


def _read_previous(out: Path, request: TuningRequest) -> TuningRecord | None:
    found = read_tuning(out)
    if found is not None and not request.resume and not request.overwrite:
        raise RunError(
            f"{out} holds the tuning job {found.name!r} ({len(found.trials)} trials, {found.status})",
            hint="--resume goes on with it, --overwrite starts a new one in its place; another --out keeps both",
        )
    if found is None and out.is_dir() and any(not path.name.startswith(f".{FILE_NAME}") for path in out.iterdir()):
        raise RunError(f"{out} holds something else than a tuning job", hint="give another --out")
    return found if request.resume else None


def _plan_first(name: str, out: Path, spec: JobSpec, options: LocalOptions) -> RunPlan:
    """Plan the job of a trial, so that what is wrong with all of them is found before the first one."""
    spec = msgspec.structs.replace(spec, training_job_name=f"{name}-001")
    return plan_job(spec, msgspec.structs.replace(options, out=out / f"{TRIAL}001", resume=True, overwrite=False))


def _check_given_once(ranges: Sequence[ParameterRange], spec: JobSpec) -> None:
    given = {_alike(name): name for name in spec.hyper_parameters}
    for each in ranges:
        if _alike(each.name) in given:
            raise RunError(f"--hp {given[_alike(each.name)]}: it is tuned, too", hint="give its value or its range")
        if is_secret(each.name):
            raise RunError(f"{each.name} is a secret by its name: it cannot be tuned", hint="rename it in the script")
        if is_reserved(each.name):
            raise RunError(f"{each.name} is a setting of the container: it cannot be tuned")


def _alike(name: str) -> str:
    return name.replace("-", "_")


def _count_trials(request: TuningRequest, ranges: Sequence[ParameterRange]) -> int:
    trials, size = request.trials, count_points(ranges)
    if request.strategy != "Grid":
        return min(trials or _DEFAULT_TRIALS, size or _MOST_TRIALS)
    wrong = [each.name for each in ranges if not isinstance(each, CategoricalRange)]
    if wrong:
        raise RunError(
            f"--strategy grid: {wrong[0]} is a range, and a grid has choices alone",
            hint=f"--choice {wrong[0]}=VALUE,VALUE",
        )
    size = size or 0
    if trials is not None and size > trials:
        raise RunError(
            f"the grid has {size} points, more than --trials {trials}", hint=f"--trials {size}, or fewer choices"
        )
    if size > _MOST_TRIALS:
        raise RunError(f"the grid has {size} points; SageMaker takes {_MOST_TRIALS}", hint="give fewer choices")
    return size


def _read_resource(request: TuningRequest) -> Resource:
    if request.resource is None:
        return Resource()
    low, colon, high = request.resource.partition(":")
    if not (colon and low.isdecimal() and high.isdecimal() and 1 <= int(low) < int(high)):
        raise RunError(f"--resource {request.resource!r}: expected MIN:MAX epochs", hint="--resource 1:81")
    return Resource(int(low), int(high))


def _processors() -> Sequence[int]:
    return sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else ()


def _shared_gpus(gpus: Sequence[str], parallel: int) -> tuple[str, ...]:
    if not 0 < len(gpus) < parallel:
        return ()
    return (f"{parallel} parallel trials share {len(gpus)} GPU(s): with --parallel {len(gpus)} each has one alone",)


def _read_parent(place: Path) -> TuningRecord:
    found = read_tuning(place)
    if found is None:
        raise RunError(f"--warm-start {place}: there is no {FILE_NAME}", hint="give the --out of a tuning job")
    return found


def _learn_from(parent: TuningRecord, settings: SearchSettings) -> list[WarmStart]:
    """The trials of an earlier tuning job that are points of this search; what it did not tune had one value."""
    mine, its = settings.objective, parent.objective
    if (mine.name, mine.goal) != (its.name, its.goal):
        raise RunError(
            f"--warm-start: {parent.name} has the objective {its.name!r} ({its.goal}), not {mine.name!r} ({mine.goal})"
        )
    found = []
    for trial in parent.trials:
        values = {**parent.static, **trial.values}
        if trial.objective is not None and trial.status == "Completed" and is_within(values, settings.ranges):
            found.append(WarmStart({each.name: values[each.name] for each in settings.ranges}, trial.objective))
    return found


def _learned_note(parents: Sequence[TuningRecord], learned: Sequence[WarmStart]) -> list[str]:
    if not parents:
        return []
    count = sum(len(parent.trials) for parent in parents)
    return [f"warm start: {len(learned)} of {count} earlier trials completed within these ranges"]


def _notes(request: TuningRequest, settings: SearchSettings, out: Path, previous: TuningRecord | None) -> list[str]:
    notes = []
    if not (request.ranges or request.choices):
        notes.append(
            f"tuning what the script declares both bounds of: {', '.join(each.name for each in settings.ranges)}"
        )
    if request.trials is not None and settings.max_trials < request.trials:
        notes.append(f"the search space has {settings.max_trials} points: so many trials are run")
    if request.resume and previous is None:
        notes.append(f"there is nothing to resume in {out}: this is a new tuning job")
    return notes


def _check_same(mine: TuningRecord, previous: TuningRecord) -> None:
    """A tuning job that goes on is the same one; it may have more trials, and run more at a time."""
    for name, flag in (
        ("program", "the script"),
        ("objective", "the objective"),
        ("ranges", "the ranges"),
        ("static", "--hp"),
        ("channels", "--channel"),
        ("strategy", "--strategy"),
        ("seed", "--seed"),
        ("early_stopping", "--early-stop"),
        ("resource", "--resource"),
    ):
        now, before = _shown(getattr(mine, name)), _shown(getattr(previous, name))
        if now != before:
            raise RunError(
                f"--resume: {flag} of {previous.name} was {before}, not {now}",
                hint="give the command as it was; --warm-start DIR starts another search that learns from it",
            )


def _shown(value: object) -> str:
    return msgspec.json.encode(value).decode()
