"""An endpoint as a process of this machine: started, waited for, and ended with all that it started."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from trainbox.errors import RunError
from trainbox.local.endpoints.endpoint import Endpoint
from trainbox.local.endpoints.server_plan import LOOPBACK, ServerPlan

#: As SageMaker: SIGKILL follows SIGTERM after 30 s.
STOP_SECONDS = 30.0
_TICK_SECONDS = 0.05
_PING_SECONDS = 2.0
_OK = 200


def find_port() -> int:
    """Return a port of loopback that nobody listens at."""
    with socket.create_server((LOOPBACK, 0)) as probe:
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(plan: ServerPlan) -> Iterator["subprocess.Popen[bytes]"]:
    """Run the program while entered; its log goes to stderr. Afterwards it is asked to leave, and killed after 30 s.

    Raises:
        RunError: It cannot be started.
    """
    try:
        process = subprocess.Popen(
            plan.argv,
            env=dict(plan.environment),
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            # Ctrl-C on the terminal reaches trainbox alone, which then says SIGTERM as SageMaker does.
            start_new_session=True,
        )
    except OSError as error:
        raise RunError(f"the endpoint cannot be started: {error.strerror}") from error
    try:
        yield process
    finally:
        _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:  # after a second Ctrl-C, too
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def await_ready(process: "subprocess.Popen[bytes]", plan: ServerPlan, *, is_stopped: Callable[[], bool]) -> bool:
    """Wait until the endpoint answers `/ping` with 200.

    Returns:
        Whether it does; False after a stop.

    Raises:
        RunError: It ended before.
    """
    endpoint = Endpoint(plan.url, _PING_SECONDS)
    with contextlib.closing(endpoint):
        while not is_stopped():
            code = process.poll()
            if code is not None:
                raise ended(code)
            with contextlib.suppress(RunError):
                if endpoint.get("/ping").status == _OK:
                    return True
            time.sleep(_TICK_SECONDS)
    return False


def await_end(process: "subprocess.Popen[bytes]", *, is_stopped: Callable[[], bool]) -> None:
    """Wait until a stop is asked for.

    Raises:
        RunError: The endpoint ended by itself.
    """
    while not is_stopped():
        with contextlib.suppress(subprocess.TimeoutExpired):
            raise ended(process.wait(_TICK_SECONDS))


def ended(code: int) -> RunError:
    """Return the error for an endpoint that ended by itself."""
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return RunError(f"the endpoint {how}", hint="its log above says why")
