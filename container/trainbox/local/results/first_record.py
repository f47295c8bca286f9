"""The record of an attempt as it begins, with all that the attempts before it are known to have logged."""

import os
from collections.abc import Collection, Mapping

from trainbox.contract.credentials.secrets import redact, without_secrets
from trainbox.files import open_regular
from trainbox.local.backends.hosts import Ended
from trainbox.local.inputs.source import as_flags
from trainbox.local.metrics.curves import Curves, joined
from trainbox.local.metrics.defined_metrics import DefinedMetrics, read_line
from trainbox.local.plan import RunPlan
from trainbox.local.request import RunRequest
from trainbox.local.results.folder import logs_of_last
from trainbox.local.results.record import Curve, HostRecord, JobRecord


def first_record(plan: RunPlan) -> JobRecord:
    """What is known of an attempt when it begins."""
    request, hidden = plan.request, plan.request.secrets
    earlier = request.previous
    return JobRecord(
        job_name=request.job_name,
        attempt=plan.attempt,
        started=request.started.isoformat(timespec="seconds"),
        script=request.script if request.source is None else str(request.source.directory / request.script),
        hyperparameters=_shown(request.hyperparameters, request.hide, hidden),
        environment=_shown(request.env, request.hide, hidden),
        channels=as_flags(request.channels),
        # If this attempt is killed, what was known before it stays known.
        metrics=_known_metrics(request, earlier) if earlier else {},
        result=earlier.result if earlier else None,
        model=earlier.model if earlier else None,
        earlier_attempts=(*earlier.earlier_attempts, earlier.as_attempt()) if earlier else (),
    )


def _known_metrics(request: RunRequest, earlier: JobRecord) -> dict[str, Curve]:
    """The metrics of all earlier attempts. If the last was killed, only its logs have what it logged."""
    if earlier.status != "InProgress":
        return dict(earlier.metrics)
    curves = Curves(next_steps_of(earlier))
    defined = DefinedMetrics(request.metric_definitions, lambda _: None)  # this attempt tells what is to be told
    for host, log in logs_of_last(request.out, earlier.attempt).items():
        with os.fdopen(open_regular(log), "rb") as lines:
            for line in lines:
                read_line(host, line, curves, defined)
    return joined(earlier.metrics, curves.all())


def next_steps_of(record: JobRecord) -> dict[str, int]:
    """Where the steps of metrics go on whose lines say none."""
    return {name: curve.steps[-1] + 1 for name, curve in record.metrics.items() if curve.steps}


def _shown(values: Mapping[str, str], hide: Collection[str], hidden: Collection[str]) -> dict[str, str]:
    return {name: without_secrets(str(value), hidden) for name, value in redact(values, hide).items()}


def host_records(ended: Ended) -> tuple[HostRecord, ...]:
    """How the hosts ended, and where their logs are."""
    return tuple(HostRecord(host.name, host.exit_code, f"logs/{host.name}.log") for host in ended.hosts)
