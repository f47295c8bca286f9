"""Keys that a variable gives: 32 bytes each, as hexadecimal digits or in base64."""

from collections.abc import Mapping

from trainbox.errors import ContractError

#: The first of its keys seals checkpoints, each of them verifies the seals of others.
CHECKPOINT_KEY = "TRAINBOX_CHECKPOINT_KEY"
KEY_BYTES = 32
_HEXADECIMAL = frozenset("0123456789abcdefABCDEF")
_URL_SAFE = str.maketrans("-_", "+/")


def read_checkpoint_keys(env: Mapping[str, str]) -> tuple[bytes, ...]:
    """Return the keys of this job's checkpoints, the one that seals first; none where the variable is empty.

    Raises:
        ContractError: One of them is not a key. The message does not repeat it.
    """
    given = env.get(CHECKPOINT_KEY, "").split(",")
    if given == [""]:
        return ()
    keys = [decode_key(text.strip()) for text in given]
    for number, key in enumerate(keys, start=1):
        if len(key) != KEY_BYTES:
            which = f"key {number} of {len(keys)}" if len(keys) > 1 else "the key"
            raise ContractError(
                f"the variable {CHECKPOINT_KEY}: {which} is not {KEY_BYTES} bytes in hexadecimal digits or base64",
                hint="make one with `openssl rand -hex 32`",
            )
    return tuple(keys)


def decode_key(text: str) -> bytes:
    """Return the bytes of a key; not `KEY_BYTES` of them where the text is neither form."""
    if len(text) == 2 * KEY_BYTES and set(text) <= _HEXADECIMAL:
        return bytes.fromhex(text)
    from base64 import b64decode  # noqa: PLC0415 - a millisecond that a job without keys needs not

    try:
        return b64decode(text.translate(_URL_SAFE).rstrip("=") + "=" * (-len(text.rstrip("=")) % 4), validate=True)
    except ValueError:
        return b""
