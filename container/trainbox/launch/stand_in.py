"""Modules that are not loaded before somebody needs them, for a first import of others that only mention them."""

import sys
from types import ModuleType

TYPE_CHECKING = False  # `typing` is not loaded for a name
if TYPE_CHECKING:
    from typing import Any


class StandIn(ModuleType):
    """A module of which little is asked for while others are imported; whoever asks for more gets the module.

    Its submodules cannot be imported meanwhile: to Python it is no package.
    """

    def __init__(self, name: str, **known: object) -> None:
        super().__init__(name)
        vars(self).update(known)

    def __getattr__(self, name: str) -> object:
        if name == "__path__":  # of packages, which `from … import …` asks every module for
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return _find(self.__name__, name)


class Later:
    """What a module has under a name, a function say; the module is imported when this is called or looked at."""

    def __init__(self, module: str, name: str) -> None:
        self._place = module, name

    def __call__(self, *given: object, **named: object) -> "Any":  # noqa: ANN401, D102 - whatever the function returns
        return _find(*self._place)(*given, **named)

    def __getattr__(self, name: str) -> object:
        return getattr(_find(*self._place), name)


def _find(module: str, name: str) -> "Any":  # noqa: ANN401 - whatever is there
    from importlib import import_module  # noqa: PLC0415 - only then

    return getattr(import_module(module), name)
