"""What a library costs beside its own work: packages that it loads only to offer more, and the search for garbage."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from trainbox.launch.stand_in import Later, StandIn


@contextmanager
def without(*packages: str) -> Iterator[None]:
    """In this block those packages cannot be imported; afterwards they can, or are there as before.

    For a program's own first import of a library that has optional parts, never for that of a library's user: what is
    imported in this block lacks those parts for good.

    >>> with without("xmlrpc"):
    ...     import xmlrpc
    Traceback (most recent call last):
    ModuleNotFoundError: import of xmlrpc halted; None in sys.modules
    """
    before: dict[str, ModuleType | None] = {name: sys.modules[name] for name in packages if name in sys.modules}
    sys.modules.update(dict.fromkeys(packages))  # type: ignore[arg-type]  # as Python forbids an import
    try:
        with staying():
            yield
    finally:
        for name in packages:
            del sys.modules[name]
        sys.modules.update(before)  # type: ignore[arg-type]


@contextmanager
def unlisted(package: Any, *names: str) -> Iterator[None]:  # noqa: ANN401 - a module, to whose names types see no way
    """In this block a package does not list some of its names, which it has all the same.

    A library that copies all that another lists (SciPy's array API does with NumPy's) does not load them.

    >>> import concurrent.futures
    >>> with unlisted(concurrent.futures, "ProcessPoolExecutor"):
    ...     "ProcessPoolExecutor" in dir(concurrent.futures)
    False
    """
    listed, shown = package.__all__, package.__dir__
    package.__all__ = [name for name in listed if name not in names]
    package.__dir__ = lambda: [name for name in shown() if name not in names]
    try:
        yield
    finally:
        package.__all__ = listed
        package.__dir__ = shown


@contextmanager
def put_off(module: str, *names: str) -> Iterator[None]:
    """In this block a module that is not loaded yet stays so: what is taken from it loads it when it is first used.

    For a library that mentions it for a few of its own functions.

    Args:
        module: Its name.
        names: What is taken from it by name, functions or objects; whoever asks for another gets the module.
    """
    stand_in = StandIn(module, **{name: Later(module, name) for name in names})
    if sys.modules.setdefault(module, stand_in) is not stand_in:
        yield
        return
    try:
        yield
    finally:
        if sys.modules.get(module) is stand_in:
            del sys.modules[module]


@contextmanager
def replaced(package: Any, name: str, value: object) -> Iterator[None]:  # noqa: ANN401 - as above
    """In this block a module has something else under a name."""
    before = getattr(package, name)
    setattr(package, name, value)
    try:
        yield
    finally:
        setattr(package, name, before)


@contextmanager
def staying() -> Iterator[None]:
    """A library is imported in this block: all that there is at its end stays, and is never looked through for garbage.

    For programs alone: the search takes a tenth of the time of an import, and a part of every picture drawn later.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
