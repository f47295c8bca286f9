"""The files of a model: read whole, or refused with what to do."""

from pathlib import Path

from trainbox.errors import DataError
from trainbox.files import permission_hint, read_below

_MOST_BYTES = 2**40
_DAMAGED_HINT = "copy the model again, or unpack its model.tar.gz again"


def read_model_file(model_dir: Path, name: str, most: int = _MOST_BYTES) -> bytes:
    """Return the content of a file of a model.

    Args:
        model_dir: What `model.tar.gz` was unpacked to; it may be somebody else's.
        name: The file, relative to it.
        most: The rest of a longer file is left out.

    Raises:
        DataError: It cannot be read, or is empty.
    """
    try:
        content = read_below(model_dir, name, most)
    except OSError as error:
        raise unreadable(model_dir / name, error) from error
    if not content:
        raise DataError(f"{model_dir / name} is empty", hint=_DAMAGED_HINT)
    return content


def unreadable(path: Path, error: OSError) -> DataError:
    """Return the error for a file of a model that cannot be read: which, why, and what to do.

    Args:
        path: The file, or a directory.
        error: Why.
    """
    return DataError(f"{path} cannot be read: {error.strerror}", hint=permission_hint(error) or _DAMAGED_HINT)
