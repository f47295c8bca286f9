"""The program `serve`: contract, port, plan, supervise, exit code."""

import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

from trainbox.contract.credentials.secrets import hidden_values
from trainbox.contract.failures.diagnosis import diagnose_defect, diagnose_error
from trainbox.contract.failures.failure import compose
from trainbox.contract.hosting import Hosting, describe_ignored, read_hosting
from trainbox.contract.job import read_environment
from trainbox.contract.settings import require_known
from trainbox.contract.text import short
from trainbox.errors import PREFIX, ProgramError, ResourceError, TrainboxError
from trainbox.log_lines import emit
from trainbox.supervisor.endpoint.dispatcher import Dispatcher
from trainbox.supervisor.endpoint.plan import PROGRAM, Capacity, plan_loader
from trainbox.supervisor.outcome import Outcome
from trainbox.supervisor.supervise import supervise
from trainbox.system.cgroup import read_cpus
from trainbox.system.loader_protocol import make_links
from trainbox.system.machine import read_machine
from trainbox.system.memory import read_memory
from trainbox.system.worker_page import PageField, make_page

_BACKLOG = 2048
#: Each connection is an open file of its worker, and the usual limit is 1,024.
_OPEN_FILES = 65536
#: Of the extra `serving`.
_HTTP = ("uvicorn", "httptools", "uvloop")
_USAGE = """\
usage: serve

Answers for the model at /opt/ml/model (or below TRAINBOX_ROOT) as SageMaker expects it: GET /ping, POST /invocations.
It takes no arguments: SageMaker passes everything in the environment.

examples:
  docker run --rm -p 8080:8080 -v $PWD/model:/opt/ml/model:ro IMAGE serve
  TRAINBOX_ROOT=$PWD/ml SAGEMAKER_BIND_TO_PORT=8081 serve
"""


def main(program: tuple[str, ...] = PROGRAM) -> int:
    """Serve the model of this container until a signal asks for the end.

    Args:
        program: The loader, as Python runs it.

    Returns:
        0 after a stop, else the exit code of the `TrainboxError` that kept it from serving, or of the loader.
    """
    arguments = sys.argv[1:]
    if arguments in (["-h"], ["--help"]):
        sys.stdout.write(_USAGE)
        return 0
    # SageMaker's own argument arrives here where the image has `serve` as its ENTRYPOINT.
    if arguments not in ([], ["serve"]):
        found = " ".join(map(short, arguments))
        sys.stderr.write(f"{PREFIX}serve takes no arguments, and was given {found}\n{_USAGE}")
        return 2
    for number in (signal.SIGTERM, signal.SIGINT):  # PID 1 would not even notice them; `supervise` has its own handlers
        signal.signal(number, _leave)
    env = read_environment()
    hidden = hidden_values(env)
    try:
        return _serve(env, program)
    except TrainboxError as error:
        diagnosis = diagnose_error(error)
    except Exception as error:  # noqa: BLE001 - the one place where a defect of trainbox becomes an exit code
        import traceback  # noqa: PLC0415 - four milliseconds that no server should pay for

        emit(traceback.format_exc(), hidden=hidden)
        diagnosis = diagnose_defect(error)
    emit(f"FAILED: {compose(diagnosis, hidden)}")
    return diagnosis.exit_code


def _leave(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


def _serve(env: Mapping[str, str], program: tuple[str, ...]) -> int:
    require_known((), env)
    hosting = read_hosting(env)
    for line in describe_ignored(env):
        emit(line)
    _require_http()
    _allow_connections()
    listener = _listen(hosting)
    page = make_page()
    link, inherited = make_links()
    dispatcher = Dispatcher(hosting, listener, link, page, _read_capacity())
    descriptors: tuple[int, ...] = (inherited.fileno(), page.descriptor)
    if hosting.is_multi_model:
        descriptors = (*descriptors, os.memfd_create("trainbox-models"))
    plan = plan_loader(
        hosting, env, program=program, descriptors=descriptors, is_ready=lambda _pid: bool(page.header[PageField.OPEN])
    )
    outcome = supervise(
        plan, clock=time.monotonic, poller=lambda: dispatcher, ignore_stops=True, on_change=dispatcher.note
    )
    return _report(outcome, Path(plan.children[0].directory), hidden_values(env))


def _require_http() -> None:
    """Refuse to start without what speaks HTTP: each worker would fail with a traceback."""
    missing = [name for name in _HTTP if find_spec(name) is None]
    if missing:
        raise ProgramError(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed, and serve needs it for HTTP",
            hint="pip install 'trainbox[serving]'",
        )


def _allow_connections() -> None:
    """Raise the limit of open files as far as it may be, for this process and those that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _listen(hosting: Hosting) -> socket.socket:
    """Bind the port at once: from here on nobody is turned away by the kernel."""
    try:
        listener = socket.create_server((hosting.address, hosting.port), backlog=_BACKLOG)
    except OSError as error:
        raise ResourceError(
            f"port {hosting.port} of {hosting.address} cannot be bound: {error.strerror}",
            hint="end what listens there, or set SAGEMAKER_BIND_TO_PORT to another port",
        ) from error
    # After the bind, which must fail where another server is: for workers that have to listen themselves.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return listener


def _read_capacity() -> Capacity:
    return Capacity(
        cpus=read_cpus(),
        gpus=read_machine().gpus,
        memory_bytes=read_memory().limit_bytes,
        has_shared_memory=Path("/dev/shm").is_dir(),  # noqa: S108 - nothing is made there
    )


def _report(outcome: Outcome, directory: Path, hidden: tuple[str, ...]) -> int:
    """Say how it ended; the exit code."""
    if outcome.stopped_by:
        how = " and had to be killed" if outcome.killed_after_grace else ""
        emit(f"stopped by {signal.Signals(outcome.stopped_by).name}{how} after {outcome.seconds:.1f} s")
        return 0
    failure = outcome.first_failure
    if failure is None:
        emit("FAILED: the loader has left, and nobody had asked it to")
        return 1
    from trainbox.supervisor import failure_reason as reason  # noqa: PLC0415 - it knows tracebacks by many expressions

    found = reason.explain_exit(
        failure, directory, memory_kills=outcome.memory_kills, memory_limit=outcome.memory_limit
    )
    emit(f"FAILED: {compose(found, hidden)}")
    return outcome.code


if __name__ == "__main__":
    sys.exit(main())
