"""A server of this machine, whatever runs it: waited for until it answers, and until it ends."""

import contextlib
import time
from collections.abc import Callable
from typing import Protocol

from trainbox.errors import RunError
from trainbox.local.endpoints.endpoint import Endpoint

_TICK_SECONDS = 0.05
_PING_SECONDS = 2.0
_OK = 200


class Server(Protocol):
    """An endpoint that was started here."""

    def ending(self) -> str:
        """Return how it ended, in words; empty while it runs."""


def await_ready(server: Server, url: str, *, is_stopped: Callable[[], bool]) -> bool:
    """Wait until the endpoint answers `/ping` with 200.

    Returns:
        Whether it does; False after a stop.

    Raises:
        RunError: It ended before.
    """
    with contextlib.closing(Endpoint(url, _PING_SECONDS)) as endpoint:
        while not is_stopped():
            _check(server)
            with contextlib.suppress(RunError):
                if endpoint.get("/ping").status == _OK:
                    return True
            time.sleep(_TICK_SECONDS)
    return False


def await_end(server: Server, *, is_stopped: Callable[[], bool]) -> None:
    """Wait until a stop is asked for.

    Raises:
        RunError: The endpoint ended by itself.
    """
    while not is_stopped():
        _check(server)
        time.sleep(_TICK_SECONDS)


def _check(server: Server) -> None:
    if how := server.ending():
        raise RunError(f"the endpoint {how}", hint="its log above says why")
