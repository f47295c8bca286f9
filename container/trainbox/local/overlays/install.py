"""Run the hosts of a job in its overlay, which a process in place of the first host builds where it is not ready."""

import sys

import msgspec

from trainbox.errors import RunError
from trainbox.local.backends import namespace
from trainbox.local.backends.hosts import Ended, HostListener
from trainbox.local.backends.process import run_hosts
from trainbox.local.overlays.overlay import PLACES_OF_PIP, Order, Overlay, in_use
from trainbox.local.plan import RunPlan
from trainbox.local.stop_request import StopRequest

#: It is removed between its build and its use only by hand, or by a clock that jumps.
_MOST_BUILDS = 3


def run_hosts_of(plan: RunPlan, listener: HostListener, stop_request: StopRequest) -> Ended:
    """Run all hosts in processes; of a job with requirements, once these are installed.

    Raises:
        RunError: A host cannot be started, its log cannot be written, or the overlay does not stay.
    """
    overlay = plan.overlay
    if overlay is None:
        return run_hosts(plan, listener, stop_request)
    try:
        overlay.lock.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(_MOST_BUILDS):
            with in_use(overlay) as ready:
                if ready:
                    return run_hosts(plan, listener, stop_request)
            ended = run_hosts(plan_build(plan, overlay), listener, stop_request)
            if ended.failed is not None or ended.stop is not None:
                return ended
    except OSError as error:
        raise RunError(
            f"{error.filename or overlay.lock} cannot be written: {error.strerror}",
            hint="XDG_CACHE_HOME=DIR names another cache directory",
        ) from error
    raise RunError(f"the environment {overlay.path} was removed while it was needed", hint="start the job again")


def plan_build(plan: RunPlan, overlay: Overlay) -> RunPlan:
    """Pure: what builds the overlay, with the output, the log and the failure file of the first host."""
    host = plan.hosts[0]
    order = Order(
        overlay=overlay,
        directory=host.tree / "code",
        failure_file=host.tree / "output" / "failure",
    )
    program = (sys.executable, "-P", "-m", "trainbox.local.overlays.build_overlay", order.encoded())
    return msgspec.structs.replace(
        plan,
        hosts=(
            msgspec.structs.replace(
                host,
                # It ends with `trainbox run`, however that ends.
                argv=program,
                namespace=namespace.spec("none", ()),
                environment=_environment(plan),
            ),
        ),
    )


def _environment(plan: RunPlan) -> dict[str, str]:
    """As the hosts' own; but pip installs into the environment whose Python runs it."""
    inherited = {name: value for name, value in plan.request.inherited.items() if name not in plan.removed}
    given = {**inherited, **plan.added}
    return {**{name: value for name, value in given.items() if name not in PLACES_OF_PIP}, "PIP_USER": "0"}
