"""The key by which the processes of a job prove to each other that they belong to it: `TRAINBOX_PEER_KEY`."""

from collections.abc import Mapping

import msgspec

from trainbox.contract.credentials.checkpoint_keys import KEY_BYTES, decode_key
from trainbox.errors import ContractError

PEER_KEY_VARIABLE = "TRAINBOX_PEER_KEY"
#: For every error that comes of different keys.
SAME_KEY_HINT = f"{PEER_KEY_VARIABLE} must be the same on all hosts: set it once, in the request's Environment"


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
    secret = decode_key(text)
    if len(secret) != KEY_BYTES:
        raise ContractError(
            f"the variable {PEER_KEY_VARIABLE}: found {len(text)} characters (not shown: it is a secret), expected"
            f" {KEY_BYTES} random bytes as 64 hexadecimal digits or in base64",
            hint="`openssl rand -hex 32` prints such a key",
        )
    return PeerKey(secret)


def as_handed_on(key: PeerKey | None) -> dict[str, str]:
    """Return the variable for a process that has to prove itself; nothing where the job has no key."""
    return {PEER_KEY_VARIABLE: key.text} if key else {}


def without_peer_key(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for a process that does not have to prove anything."""
    return {name: value for name, value in env.items() if name != PEER_KEY_VARIABLE}
