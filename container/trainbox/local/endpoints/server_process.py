"""An endpoint as a process of this machine: started, and ended with all that it started."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

from trainbox.errors import RunError
from trainbox.local.endpoints.server_plan import LOOPBACK, ServerPlan

#: As SageMaker: SIGKILL follows SIGTERM after 30 s.
STOP_SECONDS = 30


def find_port(asked: int = 0) -> int:
    """Return a port of loopback that nobody listens at.

    Args:
        asked: The port; 0 is any.

    Raises:
        RunError: Somebody listens there, or it is no port.
    """
    try:
        with socket.create_server((LOOPBACK, asked)) as probe:
            return int(probe.getsockname()[1])
    except (OSError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no port"
        raise RunError(f"port {asked} cannot be used: {why}", hint="--port 0 takes any that is free") from error


class ServerProcess:
    """A server that is a process; its log goes to stderr.

    Raises:
        RunError: It cannot be started.
    """

    def __init__(self, plan: ServerPlan) -> None:
        try:
            self._process = subprocess.Popen(
                plan.argv,
                env=dict(plan.environment),
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),
                # Ctrl-C on the terminal reaches trainbox alone, which then says SIGTERM as SageMaker does.
                start_new_session=True,
            )
        except OSError as error:
            raise RunError(f"the endpoint cannot be started: {error.strerror}") from error

    def ending(self) -> str:
        """Return how it ended; empty while it runs."""
        code = self._process.poll()
        if code is None:
            return ""
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def end(self) -> None:
        """Send SIGTERM, and SIGKILL to what runs after 30 s."""
        self._process.terminate()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        finally:  # after a second Ctrl-C, too
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@contextlib.contextmanager
def serving_process(plan: ServerPlan) -> Iterator[ServerProcess]:
    """Run the program while entered.

    Raises:
        RunError: It cannot be started.
    """
    server = ServerProcess(plan)
    try:
        yield server
    finally:
        server.end()
