"""Public names of a package that are imported on first use (PEP 562)."""

from collections.abc import Callable, Mapping
from importlib import import_module


def lazy_names(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package that imports a public name when it is first asked for.

    >>> __getattr__, __dir__ = lazy_names(__name__, {"Metric": "trainbox.metrics"})

    Args:
        package: Its name, for the error of an unknown attribute.
        modules: The full name of the module that defines each public name.
    """

    def load(name: str) -> object:
        if name not in modules:  # also a module of the package that was not imported
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(modules[name]), name)

    return load, lambda: sorted({*vars(import_module(package)), *modules})
