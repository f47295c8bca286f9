"""The key by which the processes of a job prove to each other that they belong to it: `TRAINBOX_PEER_KEY`."""

import binascii
import re
from collections.abc import Mapping

import msgspec

from trainbox.errors import ContractError

PEER_KEY_VARIABLE = "TRAINBOX_PEER_KEY"
PEER_KEY_BYTES = 32
#: For every error that comes of different keys.
SAME_KEY_HINT = f"{PEER_KEY_VARIABLE} must be the same on all hosts: set it once, in the request's Environment"

_HEXADECIMAL = re.compile(r"[0-9A-Fa-f]{64}")
_URL_SAFE = str.maketrans("-_", "+/")


class PeerKey(msgspec.Struct, frozen=True):
    """The key; it does not show itself."""

    secret: bytes

    def __repr__(self) -> str:
        """Return the same text for every key: plans and jobs are printed."""
        return "PeerKey(***)"

    @property
    def text(self) -> str:
        """The key as the variable holds it."""
        return self.secret.hex()


def read_peer_key(env: Mapping[str, str]) -> PeerKey | None:
    """Return the key of the job; None where the variable is not set, or empty.

    Raises:
        ContractError: The value is not a key. The message does not show it.
    """
    text = env.get(PEER_KEY_VARIABLE, "").strip()
    if not text:
        return None
    secret = bytes.fromhex(text) if _HEXADECIMAL.fullmatch(text) else _decode_base64(text)
    if len(secret) != PEER_KEY_BYTES:
        raise ContractError(
            f"the variable {PEER_KEY_VARIABLE}: found {len(text)} characters (not shown: it is a secret), expected"
            f" {PEER_KEY_BYTES} random bytes as 64 hexadecimal digits or in base64",
            hint="`openssl rand -hex 32` prints such a key",
        )
    return PeerKey(secret)


def without_peer_key(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for a process that does not have to prove anything."""
    return {name: value for name, value in env.items() if name != PEER_KEY_VARIABLE}


def _decode_base64(text: str) -> bytes:
    """Return the bytes, of both alphabets; nothing where it is no base64."""
    try:
        return binascii.a2b_base64(text.translate(_URL_SAFE), strict_mode=True)
    except ValueError:  # binascii.Error is one, too
        return b""
