"""Where `train` begins: it loads the supervisor quickly, for a cluster waits meanwhile, and runs it."""

import _datetime  # type: ignore[import-not-found]
import _signal  # type: ignore[import-not-found]  # `signal` itself would load `enum` first: too late
import gc
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

from trainbox.launch.stand_in import Later, StandIn

#: What msgspec takes from here Python has had since 3.11 (msgspec, `_utils.py`); where torch has brought it along it
#: loads `inspect` and `ast`: a fifth of the start.
_NOT_NEEDED = "typing_extensions"


def _stand_ins() -> dict[str, ModuleType]:
    """For what msgspec and pathlib import to offer what the supervisor never needs: two types, schemas, URIs, Windows.

    In a container that was just started nothing of its file system is cached: to find and load these and the extensions
    that belong to them takes a quarter of the start.
    """
    schemas = {name: Later("msgspec._json_schema", name) for name in ("schema", "schema_components")}
    dates = {name: value for name, value in vars(_datetime).items() if not name.startswith("_")}
    return {
        # Before Python 3.12 it has all of this once more in Python, and drops it: a millisecond and a half.
        "datetime": StandIn("datetime", **dates),
        "ntpath": StandIn("ntpath"),
        "uuid": StandIn("uuid", UUID=type("UUID", (), {}), SafeUUID=SimpleNamespace(unknown=None)),
        "decimal": StandIn("decimal", Decimal=type("Decimal", (), {})),
        "msgspec.inspect": StandIn("msgspec.inspect"),
        "msgspec._json_schema": StandIn("msgspec._json_schema", **schemas),
        "urllib.parse": StandIn("urllib.parse", quote_from_bytes=Later("urllib.parse", "quote_from_bytes")),
    }


def load() -> Callable[[], int]:
    """Import the supervisor; what comes back runs it. For a process of its own: its msgspec knows two types less."""
    placed: dict[str, ModuleType | None] = {_NOT_NEEDED: None, **_stand_ins()}  # an import of None fails
    placed = {name: module for name, module in placed.items() if name not in sys.modules}
    sys.modules.update(placed)  # type: ignore[arg-type]  # as Python forbids an import
    gc.disable()  # of what is imported nothing is garbage, and looking for it takes a tenth of the time
    try:
        from trainbox.launch.train import main as run  # noqa: PLC0415 - the order is the point
    finally:
        gc.enable()
        for name, module in placed.items():
            if sys.modules.get(name, module) is module:
                sys.modules.pop(name, None)
    return run


def hold_back_stops() -> None:
    """Keep SIGTERM and SIGINT pending until `trainbox.launch.train` has its handlers.

    By default they would end this process without a failure text, and PID 1 would not even notice them: what is blocked
    is never dropped (signal(7), and `sig_ignored` in Linux' kernel/signal.c). Whoever starts us may block them before:
    nothing is lost then, not even while the interpreter starts.
    """
    _signal.pthread_sigmask(_signal.SIG_BLOCK, (_signal.SIGTERM, _signal.SIGINT))


def main() -> int:
    """Run the job of this container to its end; see `trainbox.launch.train`.

    Returns:
        The exit code of the job.
    """
    hold_back_stops()
    return load()()


if __name__ == "__main__":
    # os._exit would lose buffered lines; sys.exit is enough since nothing here holds a thread.
    sys.exit(main())
