"""Read how the hosts of a job ended: from the failure file, and from the last lines of the logs."""

import contextlib
from pathlib import Path

from trainbox.contract.credentials.secrets import without_secrets
from trainbox.contract.failures.ending import stop_in
from trainbox.contract.failures.failure import LARGEST_FAILURE_BYTES
from trainbox.files import read_below
from trainbox.local.backends.hosts import Ended
from trainbox.local.plan import RunPlan
from trainbox.local.results.folder import last_bytes
from trainbox.log_lines import as_lines


def stopped_by_others(ended: Ended, out: Path) -> dict[str, str]:
    """Return the hosts that a signal from elsewhere stopped, and its name, if this program stopped none."""
    if ended.stop is not None or ended.failed is not None:
        return {}
    logs = {host.name: out / "logs" / f"{host.name}.log" for host in ended.hosts}
    return {name: number for name, log in logs.items() if (number := stop_in(last_bytes(log)))}


def find_failure(plan: RunPlan, ended: Ended) -> str:
    """Return the failure file of the host that failed; without one, what is known about its end."""
    host = next((host for host in ended.hosts if host.name == ended.failed), None)
    if host is None:
        return ""
    left = f"{host.name} left no failure file: its last words are in {plan.request.out / 'logs' / host.name}.log"
    return _failure_file(plan, host.name).strip("\0 \n") or host.reason or left


def _failure_file(plan: RunPlan, host: str) -> str:
    trees = {each.name: each.tree for each in plan.hosts}
    said = b""
    with contextlib.suppress(OSError):  # none, or a link, a FIFO: the host's own log says how it ended
        said = read_below(trees[host], "output/failure", LARGEST_FAILURE_BYTES)
    return without_secrets(said.decode(errors="replace"), plan.request.secrets)


def is_told(plan: RunPlan, failure: str) -> bool:
    """Return whether the log of a single host ends with the reason of the failure, so that it was shown already."""
    if not failure or len(plan.hosts) > 1:
        return False
    log = last_bytes(plan.request.out / "logs" / f"{plan.hosts[0].name}.log").decode(errors="replace")
    return as_lines("FAILED: " + failure.partition("\n")[0]) in log
