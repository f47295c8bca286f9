"""Pure: a plan as text, with what the supervisor of each host would start."""

import shlex
from collections.abc import Iterable, Mapping

from trainbox.contract.credentials.secrets import REDACTED, redact, without_secrets
from trainbox.contract.text import visible
from trainbox.local.plan import HYPERPARAMETERS, HostPlan, RunPlan, redacted_hyperparameters
from trainbox.local.preview import Preview


def describe(plan: RunPlan, previews: Mapping[str, Preview]) -> str:
    """The plan, printed; no value whose name says secret is in it.

    Args:
        plan: What would be done.
        previews: By host, what its supervisor would start.
    """
    request = plan.request
    count = len(plan.hosts)
    lines = [
        f"job {request.job_name}, attempt {plan.attempt}, {count} host{'s' if count > 1 else ''}",
        f"result in {request.out}",
        request.isolation.sentence,
        *plan.notes,
        *_limits(plan),
        *_overlay(plan),
        *(f"environment: {name}={value}" for name, value in redact(plan.added, request.hide).items()),
        *(f"environment: {name} is taken away" for name in plan.removed),
    ]
    for host in plan.hosts:
        lines += ["", f"host {host.name}", *_tree(plan, host), *_processes(plan, host, previews[host.name])]
    hidden = {*request.secrets}.union(*(each.secrets for each in previews.values()))
    return visible(without_secrets("\n".join(lines), sorted(hidden, key=len, reverse=True))) + "\n"


def _limits(plan: RunPlan) -> Iterable[str]:
    request = plan.request
    if request.stop_after is not None:
        yield f"SIGTERM after {request.stop_after:g} s, SIGKILL {plan.seconds_to_leave:g} s later: Stopped"
    if request.max_run is not None:
        yield f"SIGTERM after {request.max_run:g} s, SIGKILL {plan.seconds_to_leave:g} s later: MaxRuntimeExceeded"


def _overlay(plan: RunPlan) -> Iterable[str]:
    overlay = plan.overlay
    if overlay is not None:
        state = "built by an earlier run" if overlay.is_found else "built first"
        yield f"environment {overlay.path}, {state}: pip install {shlex.join(overlay.install)} over {overlay.parent}"


def _tree(plan: RunPlan, host: HostPlan) -> Iterable[str]:
    entries = dict.fromkeys(host.directories, "")
    files = {**host.files, HYPERPARAMETERS: redacted_hyperparameters(host, plan.request.hide)}
    entries |= {name: f"= {content}" for name, content in files.items()}
    shown = {f"input/data/{name}": share for name, share in host.shares.items() if not share.is_whole}
    entries |= {name: f"<- a copy of {directory}" for name, directory in host.copies.items()}
    entries |= {name: f"-> {target}" for name, target in host.links.items() if not _is_below(name, shown)}
    for mount in host.mounts:
        mode = " (read-only)" if mount.read_only else ""
        if mount.target.is_relative_to(host.tree):
            place = str(mount.target.relative_to(host.tree))
            entries[place] = f"<- {shown[place].sentence if place in shown else mount.source}{mode}"
    for place, share in shown.items():
        if share.stream is not None:
            entries[f"{place}_0"] = f"<- {share.sentence}"
        elif not host.mounts:
            entries[place] = f"-> {share.sentence}"
    source = plan.request.source
    if source is not None:
        entries["code"] = f"<- a copy of {source.directory} ({len(source.files)} files, {source.bytes / 1e3:.1f} kB)"
    for name, what in sorted(entries.items()):
        yield f"  {host.root}/{name}  {what}".rstrip()


def _is_below(place: str, shown: Mapping[str, object]) -> bool:
    return any(place.startswith(f"{each}/") for each in shown)


def _processes(plan: RunPlan, host: HostPlan, preview: Preview) -> Iterable[str]:
    yield f"  starts: {shlex.join(host.argv)}"
    if preview.install and plan.overlay is None:
        yield f"  which runs first: pip install {shlex.join(preview.install)}"
    hidden, of_host = preview.secrets, redact(host.environment, plan.request.hide)
    if preview.plan.preflight != "off":
        yield f"  which checks the health of the hosts first: {preview.plan.preflight}"
    for child in (*preview.plan.children, *preview.plan.sidecars):
        command = without_secrets(shlex.join(child.argv), hidden).replace(shlex.quote(REDACTED), REDACTED)
        yield f"  which starts: {command}"
        yield f"    in {child.directory}, with"
        for name, value in sorted(child.environment.items()):
            if of_host.get(name) != value:
                yield f"    {name}={without_secrets(value, hidden)}"
