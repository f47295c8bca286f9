"""The last thing `trainbox run` shows: how the job ended, its metrics, where its results are, how to go on."""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from trainbox.cli.screen.pens import Pen
from trainbox.contract.credentials.secrets import redact, redact_arguments
from trainbox.contract.text import six_digits, visible
from trainbox.local.given import Origin, escaped
from trainbox.local.inputs.hosts import Hosts
from trainbox.local.inputs.source import as_flags
from trainbox.local.request import RunRequest
from trainbox.local.results.record import Curve, JobRecord

_BARS = "▁▂▃▄▅▆▇█"
_PLAIN_BARS = "_.-=*#"
_WIDEST_CURVE = 30
_NARROWEST_CURVE = 8
_COLOURS = {"Completed": "green", "Stopped": "yellow", "Failed": "red"}
#: Metrics whose better direction their name tells; a log says nothing about it.
_HIGHER = frozenset({"auc", "aucpr", "acc", "accuracy", "f1", "precision", "recall", "map", "ndcg", "pre", "r2"})
_LOWER = frozenset(
    {
        *("loss", "logloss", "mlogloss", "error", "merror", "rmse", "rmsle", "mse", "mae", "mape", "mphe"),
        *("nloglik", "perplexity"),
    }
)


def summarise(
    request: RunRequest,
    record: JobRecord,
    *,
    checkpoints: int,
    pen: Pen,
    pictures: Sequence[Path] = (),
    is_told: bool = False,
) -> str:
    """The summary as text.

    Args:
        request: What was asked for.
        record: What became of it.
        checkpoints: How many entries the checkpoints' directory has.
        pen: Draws where it will be shown: the width, the colours and the characters of that place count.
        pictures: Those that it has left.
        is_told: Whether the reason of a failure is what the job's own lines ended with, just above.
    """
    facts = [("model", _model(request, record)), *_clashes(record)]
    if checkpoints:
        facts.append(("checkpoints", f"{request.out / 'checkpoints'} ({_count(checkpoints, 'entry', 'entries')})"))
    if pictures:
        facts.append(("pictures", ", ".join(map(str, pictures))))
    facts.append(("logs", ", ".join(str(request.out / host.log) for host in record.hosts) or "none"))
    if record.metrics:
        steps = [step for curve in record.metrics.values() for step in (curve.steps[0], curve.steps[-1])]
        facts.append(("steps", f"{min(steps)} to {max(steps)}"))
    phases = record.seconds
    facts.append(("seconds", f"prepare {phases.prepare:.2f}, train {phases.train:.2f}, collect {phases.collect:.2f}"))
    if checkpoints:
        facts.append(("resume", shlex.join(resume_command(request))))
    if request.isolation.image is None:
        facts.append(("docker", shlex.join(docker_command(request))))
    elif not request.in_image:  # what only the image has cannot run beside it
        facts.append(("process", shlex.join(process_command(request))))
    width = max(len(name) for name, _ in facts)
    # No cells of a table: a path or a command is one line however narrow the terminal, to be copied from there.
    lines = [f"{name:<{width}}  {visible(text)}" for name, text in facts]
    above = (*_ending(record, pen, is_told=is_told), *_metrics(record, pen))
    return "".join(f"{line}\n" for line in ("", *above, "", *lines))


def _ending(record: JobRecord, pen: Pen, *, is_told: bool) -> Iterable[str]:
    status = (
        record.status if record.secondary_status == record.status else f"{record.status} ({record.secondary_status})"
    )
    attempt = f", attempt {record.attempt}" if record.attempt > 1 else ""
    shown = pen.styled(status, f"bold {_COLOURS[record.status]}")
    why = " (FAILED, above, says why)" if is_told else ""
    yield f"{record.job_name}: {shown}, exit code {record.exit_code}{attempt}{why}"
    if record.failure_reason and not is_told:
        # It quotes the script, whose colours shall not run on into what follows.
        yield from (pen.quoted(f"  {line}") for line in record.failure_reason.split("\n"))
    if len(record.hosts) > 1 or record.status == "Stopped":
        yield "  " + ", ".join(f"{host.name} left with {host.exit_code}" for host in record.hosts)


def _metrics(record: JobRecord, pen: Pen) -> Iterable[str]:
    if record.metrics or record.final:
        yield ""
    if record.metrics:
        heads = ("metric", "first", "last", "best", "step", "")
        rows = [
            (name, six_digits(curve.values[0]), six_digits(curve.values[-1]), *_best(name, curve))
            for name, curve in record.metrics.items()
        ]
        # The curves are what gives way on a narrow terminal, before words are wrapped.
        left = pen.width - pen.width_of(heads[:-1], rows) - 2
        bars = _BARS if pen.encoding.startswith("utf") else _PLAIN_BARS
        curves = [
            sparkline(curve, min(left, _WIDEST_CURVE), bars) if left >= _NARROWEST_CURVE else ""
            for curve in record.metrics.values()
        ]
        yield from pen.table(heads, [(*row, curve) for row, curve in zip(rows, curves, strict=True)])
    for name, value in record.final.items():
        yield f"selected: {name} = {six_digits(value)}"


def _best(name: str, curve: Curve) -> tuple[str, str]:
    words = set(re.split(r"[^a-z0-9]+", re.split(r"[:/]", name)[-1].lower()))
    if words & _HIGHER:
        best, goal = max(curve.values), "highest"
    elif words & _LOWER:
        best, goal = min(curve.values), "lowest"
    else:
        return f"{six_digits(min(curve.values))} to {six_digits(max(curve.values))}", ""
    return f"{six_digits(best)} ({goal})", str(curve.steps[curve.values.index(best)])


def sparkline(curve: Curve, columns: int = _WIDEST_CURVE, bars: str = _BARS) -> str:
    """A curve in one line of text; a long one shows the last value of each stretch."""
    values = curve.values
    columns = min(len(values), columns)
    shown = [values[(column + 1) * len(values) // columns - 1] for column in range(columns)]
    low, high = min(shown) / 2, max(shown) / 2  # halves: the span of the largest floats is beyond float
    span = high - low
    return "".join(bars[round((value / 2 - low) / span * (len(bars) - 1)) if span else 0] for value in shown)


def _model(request: RunRequest, record: JobRecord) -> str:
    if record.model is None:
        return "none: the script left nothing in its model directory"
    size = record.model.bytes
    shown = f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"  # noqa: PLR2004 - where 0.1 MB begins
    earlier = f", of attempt {record.result}" if record.result not in (None, record.attempt) else ""
    return f"{request.out / record.model.archive} ({_count(record.model.files, 'file', 'files')}, {shown}){earlier}"


def _clashes(record: JobRecord) -> list[tuple[str, str]]:
    return [
        ("CLASH", f"hosts wrote different {clash.path}: {clash.kept}'s kept, also {', '.join(clash.others)}")
        for clash in record.clashes
    ]


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def resume_command(request: RunRequest) -> list[str]:
    """The next attempt of this job."""
    return _again(request, "--resume")


def overwrite_command(request: RunRequest) -> list[str]:
    """The same job anew, in the place of this one."""
    return _again(request, "--overwrite")


def _again(request: RunRequest, how: str) -> list[str]:
    docker = ["--docker", request.isolation.image.name] if request.isolation.image else []
    docker += request.isolation.confinement.flags if request.isolation.confinement else ()
    return [*_command(request), *docker, "--out", str(request.out), how, *_raw_arguments(request)]


def process_command(request: RunRequest) -> list[str]:
    """The same job in processes, where a debugger reaches it; its result comes to lie beside this one."""
    return [*_command(request), "--out", f"{request.out}-process", *_raw_arguments(request)]


def docker_command(request: RunRequest) -> list[str]:
    """The same job in a container; its result comes to lie beside this one."""
    return [*_command(request), "--docker", "--out", f"{request.out}-docker", *_raw_arguments(request)]


def _command(request: RunRequest) -> list[str]:
    """`trainbox run` with the same job: secrets by where they come from, and those that the command had redacted."""
    source = None if request.source is None else request.source.directory
    script = request.script if source is None else str(source / request.script)
    words = ["trainbox", "run", *([script] if request.module is None else ["-m", request.module])]
    if source is not None and ("/" in request.script or request.module is not None):
        words += ["--source-dir", str(source)]
    words += _flags("--channel", as_flags(request.channels))
    hyperparameters, variables = redact(request.hyperparameters, request.hide), redact(request.env, request.hide)
    words += _given("--hp", "--hp-env", hyperparameters, request.hyperparameter_origins)
    words += _given("--env", "--env", variables, request.env_origins)
    if request.hosts > 1 or request.groups:
        words += ["--hosts", Hosts(request.hosts, request.groups).text]
    if request.processes is not None:
        words += ["--processes", str(request.processes)]
    if request.preflight != "off":
        words += ["--preflight", request.preflight]
    return [*words, "--job-name", request.job_name]


def _given(flag: str, of_shell: str, values: Mapping[str, object], origins: Mapping[str, Origin]) -> Iterable[str]:
    for name, value in values.items():
        origin = origins.get(name)
        if origin is None:
            yield from (flag, f"{name}={escaped(str(value))}")
        elif origin.file is not None:
            yield from (flag, f"{name}=@{origin.file}")
        else:
            yield from (of_shell, name if origin.variable == name else f"{name}={origin.variable}")


def _raw_arguments(request: RunRequest) -> list[str]:
    return ["--", *redact_arguments(request.raw_arguments)] if request.raw_arguments else []


def _flags(flag: str, values: Mapping[str, object]) -> Sequence[str]:
    return [word for name, value in values.items() for word in (flag, f"{name}={value}")]
