"""Warn a script that sets a variable too late: ranks start with torch imported, which has read its variables.

A script may set `TORCH_LOGS` or `OMP_NUM_THREADS` before `import torch`, as documentation tells it to. In a rank that
import does nothing. The values at the start are kept in a variable of ours, and compared when the script imports torch
and when its session begins.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

import msgspec

from trainbox.contract.job import add_to_environment
from trainbox.log_lines import emit

#: The values of the variables below when the script began, as JSON; not set where nothing was imported before it.
PRELOADED_VARIABLE = "TRAINBOX_PRELOADED"
_PREFIXES = ("TORCH_", "PYTORCH_", "OMP_", "MKL_", "KMP_")
#: Read when a process group is made.
_READ_LATER = ("TORCH_NCCL_", "TORCH_FR_", "TORCH_GLOO_")


def remember(env: Mapping[str, str]) -> dict[str, str]:
    """Pure: return the variable that keeps the values to compare with."""
    return {PRELOADED_VARIABLE: msgspec.json.encode(_relevant(env)).decode()}


def changed(env: Mapping[str, str]) -> tuple[str, ...]:
    """Pure: return the variables that have changed since libraries were imported."""
    if PRELOADED_VARIABLE not in env:
        return ()
    before, now = msgspec.json.decode(env[PRELOADED_VARIABLE], type=dict[str, str]), _relevant(env)
    return tuple(sorted(name for name in {*before, *now} if before.get(name) != now.get(name)))


def warn(env: Mapping[str, str]) -> None:
    """Warn on rank 0, once for each change, of variables that were set too late."""
    names = changed(env)
    if not names:
        return
    add_to_environment(remember(env))
    if env.get("RANK", "0") == "0":
        were = "was" if len(names) == 1 else "were"
        emit(
            f"WARNING: {', '.join(names)} {were} changed by the script, but torch was imported before it and does not"
            " read this again: set it for the job (trainbox run --env NAME=VALUE), or start ranks without imports"
            " (trainbox_preload=off)"
        )


def _relevant(env: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value for name, value in env.items() if name.startswith(_PREFIXES) and not name.startswith(_READ_LATER)
    }


class FirstImport(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Hides an imported module until the script imports it, and then calls a function.

    This saves no time. Without it a script that opens no session would not be warned.

    Args:
        module: The module.
        then: Called when the script imports it.
    """

    def __init__(self, module: ModuleType, then: Callable[[], None]) -> None:
        self._module, self._spec, self._then = module, module.__spec__, then
        del sys.modules[module.__name__]
        sys.meta_path.insert(0, self)

    def find_spec(
        self, name: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find the hidden module: the method that Python calls on each finder.

        Libraries also call it to know whether there is such a module: it stays hidden.
        """
        if name != self._module.__name__:
            return None
        origin = self._spec.origin if self._spec else None
        spec = importlib.machinery.ModuleSpec(name, self, origin=origin)
        spec.submodule_search_locations = self._spec.submodule_search_locations if self._spec else None
        return spec

    def create_module(self, _spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Return the hidden module."""
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        """Give out the module without running it again, once."""
        module.__spec__ = self._spec
        sys.meta_path.remove(self)
        self._then()
