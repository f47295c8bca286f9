"""The program that builds an overlay: one at a time, in a directory of its own, which gets its name when all is done.

`python -P -m trainbox.local.overlays.build_overlay ORDER`, started by `trainbox run` in place of a host. Killed at any
moment, it leaves only directories that nobody takes for an overlay, and the next build removes them.
"""

import fcntl
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import msgspec

from trainbox.contract.credentials.secrets import hidden_values
from trainbox.contract.failures.diagnosis import diagnose_error
from trainbox.contract.failures.failure import compose, write_failure
from trainbox.contract.job import read_environment
from trainbox.errors import RequirementsError, TrainboxError
from trainbox.local.overlays.overlay import Order, Overlay, write_marker
from trainbox.local.overlays.requirement_files import read_requirements
from trainbox.log_lines import emit
from trainbox.supervisor.requirements import OVERLAY_MARKER, arguments, make_environment, run_pip

#: An overlay that no job has used for so long is removed.
_SECONDS_OF_UNUSED = 30 * 24 * 3600.0
_SCRIPT = """\
#!/bin/sh
'''exec' "{python}" "$0" "$@"
' '''
import sys
from {module} import {name}
sys.exit({function}())
"""


def main() -> int:
    """Build the overlay unless it is there; the exit code is that of the error which prevents it."""
    # What starts a host leaves this to it.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
    order = msgspec.json.decode(sys.argv[1], type=Order, dec_hook=lambda kind, text: kind(text))
    environment = read_environment()
    try:
        _build_once(order, environment)
    except TrainboxError as error:
        requirements = read_requirements(order.overlay.install, order.directory, environment)
        text = compose(diagnose_error(error), (*requirements.credentials, *hidden_values(environment)))
        with suppress(OSError):
            write_failure(order.failure_file, text)
        emit(f"FAILED: {text}")
        return error.exit_code
    return 0


def _build_once(order: Order, environment: Mapping[str, str]) -> None:
    overlay = order.overlay
    try:
        overlay.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(overlay):
            if overlay.is_ready():
                emit(f"another trainbox run has installed the same in {overlay.path}")
                return
            sweep(overlay.path)
            _build(order, environment)
    except OSError as error:
        raise RequirementsError(
            f"the environment {overlay.path} cannot be built: {error.filename or ''}: {error.strerror or error}",
            hint="free some space, or name another cache directory with XDG_CACHE_HOME",
        ) from error


@contextmanager
def _locked(overlay: Overlay) -> Iterator[None]:
    with overlay.lock.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            emit("another trainbox run is installing the same requirements: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(order: Order, environment: Mapping[str, str]) -> None:
    overlay = order.overlay
    place = Path(tempfile.mkdtemp(prefix=f".{overlay.path.name}-", dir=overlay.path.parent))
    try:
        where = f" ({overlay.why_apart}: for this job alone)" if overlay.why_apart else ""
        emit(f"installing {' '.join(overlay.install)} over {overlay.parent} into {overlay.path}{where}")
        furnish(place, overlay)
        directory = place / "source" if overlay.is_local else order.directory
        if overlay.is_local:
            shutil.copytree(order.directory, directory, symlinks=True)
        python = str(place / "bin" / "python")
        run_pip(arguments(overlay.install), overlay.install, directory, env=environment, python=python)
        if overlay.is_local and not overlay.is_editable:
            shutil.rmtree(directory)
        write_marker(place, time.time())
        overlay.path.unlink(missing_ok=True)
        overlay.path.symlink_to(place.name)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def furnish(place: Path, overlay: Overlay) -> None:
    """A virtual environment over the one below it, with its settings of pip and its commands.

    Raises:
        RequirementsError: There is no pip below it, and Python brings none.
    """
    make_environment(place, overlay.sites, {})
    settings = Path(overlay.parent, "pip.conf")
    if settings.is_file():
        (place / "pip.conf").symlink_to(settings)
    for point in entry_points(group="console_scripts"):
        _write_command(place / "bin", point)


def _write_command(directory: Path, point: EntryPoint) -> None:
    """A command of a package below, run by this environment's Python: `torchrun` in a shell script must see both."""
    path = directory / point.name
    if "/" in point.name or path.exists() or not point.module or not point.attr:
        return
    function = point.attr
    text = _SCRIPT.format(
        python=directory / "python", module=point.module, name=function.partition(".")[0], function=function
    )
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def sweep(path: Path) -> None:
    """Remove what builds of `path` that were killed have left, what it replaces, and overlays that nobody uses.

    Its lock must be held.
    """
    for left in path.parent.glob(f".{path.name}-*"):
        shutil.rmtree(left, ignore_errors=True)
    key = path.name.rpartition("-")[0]
    for marker in path.parent.glob(f"*/{OVERLAY_MARKER}"):
        other = marker.parent
        if not other.is_symlink() or other == path:
            continue
        with suppress(OSError):
            unused = time.time() - marker.stat().st_mtime
            if other.name.startswith(f"{key}-") or unused > _SECONDS_OF_UNUSED:
                _remove_unused(other)


def _remove_unused(path: Path) -> None:
    with path.with_name(f"{path.name}.lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        place = path.resolve()
        path.unlink()  # first: from here on it is no overlay
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
