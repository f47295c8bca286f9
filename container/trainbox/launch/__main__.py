"""Where `train` begins: it loads the supervisor quickly, for a cluster waits meanwhile, and runs it."""

import gc
import sys
from collections.abc import Callable

#: What msgspec takes from here Python has had since 3.11 (msgspec, `_utils.py`); where torch has brought it along it
#: loads `inspect` and `ast`: a fifth of the start.
_NOT_NEEDED = "typing_extensions"


def load() -> Callable[[], int]:
    """Import the supervisor; what comes back runs it."""
    hides = _NOT_NEEDED not in sys.modules
    if hides:
        sys.modules[_NOT_NEEDED] = None  # type: ignore[assignment] # an import of it fails
    gc.disable()  # of what is imported nothing is garbage, and looking for it takes a tenth of the time
    try:
        from trainbox.launch.train import main as run  # noqa: PLC0415 - the order is the point
    finally:
        gc.enable()
        if hides:
            del sys.modules[_NOT_NEEDED]
    return run


def main() -> int:
    """Run the job of this container to its end; see `trainbox.launch.train`.

    Returns:
        The exit code of the job.
    """
    return load()()


if __name__ == "__main__":
    # os._exit would lose buffered lines; sys.exit is enough since nothing here holds a thread.
    sys.exit(main())
