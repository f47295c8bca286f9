"""Public names of a package, and modules, that are imported on first use (PEP 562)."""

from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType


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


def lazy_module(name: str) -> ModuleType:
    """Return a stand-in for a module that imports it when one of its names is first used.

    For a library that takes long to import, in modules of which most programs never use it:

    >>> if TYPE_CHECKING:
    ...     import pyarrow as pa
    ... else:
    ...     pa = lazy_module("pyarrow")

    Args:
        name: Of the module; its submodules are imported in the same way.
    """
    return _LazyModule(name)


class _LazyModule(ModuleType):
    def __getattr__(self, name: str) -> object:
        module = import_module(self.__name__)
        found = getattr(module, name) if hasattr(module, name) else import_module(f"{self.__name__}.{name}")
        setattr(self, name, found)  # it is asked once
        return found
