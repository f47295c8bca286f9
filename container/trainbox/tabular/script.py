"""What the sessions of the algorithms share: partial imports, an early stop, log lines under the name of the script."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from trainbox import toolkit
from trainbox.errors import Stopped


@contextmanager
def without(*packages: str) -> Iterator[None]:
    """Make packages impossible to import inside the block; afterwards everything is as before.

    A library that is imported for the first time inside the block lacks the parts that need these packages, until the
    process ends. So this is for the entry of a program, not for modules that others import.

    >>> with without("xmlrpc"):
    ...     import xmlrpc
    Traceback (most recent call last):
    ModuleNotFoundError: import of xmlrpc halted; None in sys.modules
    """
    before: dict[str, ModuleType | None] = {name: sys.modules[name] for name in packages if name in sys.modules}
    sys.modules.update(dict.fromkeys(packages))  # type: ignore[arg-type]  # as Python forbids an import
    try:
        yield
    finally:
        for name in packages:
            del sys.modules[name]
        sys.modules.update(before)  # type: ignore[arg-type]


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Catch SIGTERM from here on; a stop before there is anything to save ends the block, and is not an error.

    Slow work that has nothing to save, such as importing a library or reading rows, belongs inside the block.

    Raises:
        Stopped: Another host was stopped, and this one was not.
    """
    toolkit.stop_requested()
    try:
        yield
    except Stopped as stop:
        if not toolkit.stop_requested():
            raise
        log_line(f"{stop.message}: there is nothing to save; a resumed job starts from its last checkpoint")


def log_line(text: str) -> None:
    """Write a line to stderr, prefixed with the name of the script."""
    program = Path(sys.argv[0])
    name = program.parent.name if program.stem == "__main__" else program.stem
    print(f"{name}: {text}", file=sys.stderr, flush=True)
