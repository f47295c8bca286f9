"""The variables by which the processes of a job find each other, named as torchrun names them, parsed once."""

from collections.abc import Mapping

from trainbox.errors import ContractError

#: Where the processes of a job meet on the first host unless `MASTER_PORT` says otherwise: torchrun's default for its
#: rendezvous. Below 32768, where Linux gives ports to clients.
DEFAULT_PORT = 29400
LAST_PORT = 65535


def read_port(env: Mapping[str, str]) -> int:
    """Return the port of `MASTER_PORT`, or the default where it is not set.

    Raises:
        ContractError: The value is not a port.
    """
    text = env.get("MASTER_PORT", "")
    if not text:
        return DEFAULT_PORT
    port = _whole_number(text)
    if port is None or not 0 < port <= LAST_PORT:
        raise ContractError(
            f"the variable MASTER_PORT: found {text!r}, expected a number from 1 to {LAST_PORT}",
            hint=f"name a port that is free on the first host, or leave it out for {DEFAULT_PORT}",
        )
    return port


def _whole_number(text: str) -> int | None:
    """Return a number written in plain digits; None for any other text."""
    try:
        return int(text) if text.isascii() and text.isdecimal() else None
    except ValueError:  # more digits than Python converts
        return None
