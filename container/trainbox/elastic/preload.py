"""Ranks start with torch imported, so it has read its variables: a script that sets one later is told so.

A script may set `TORCH_LOGS` or `OMP_NUM_THREADS` before `import torch`, as documentation tells it to. In a rank that
import does nothing any more. What such variables were is kept in a variable of ours, to be compared when the script
imports torch and when its session begins.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

import msgspec

from trainbox.contract.job import add_to_environment
from trainbox.say import say

#: What the variables below were when the script began, as JSON; not set where nothing was imported before it.
PRELOADED_VARIABLE = "TRAINBOX_PRELOADED"
_PREFIXES = ("TORCH_", "PYTORCH_", "OMP_", "MKL_", "KMP_")
#: Read when a process group is made.
_READ_LATER = ("TORCH_NCCL_", "TORCH_FR_", "TORCH_GLOO_")


def remember(env: Mapping[str, str]) -> dict[str, str]:
    """Pure: the variable that keeps what is to be compared."""
    return {PRELOADED_VARIABLE: msgspec.json.encode(_relevant(env)).decode()}


def changed(env: Mapping[str, str]) -> tuple[str, ...]:
    """Pure: the variables that are no longer what they were when libraries were imported."""
    if PRELOADED_VARIABLE not in env:
        return ()
    before, now = msgspec.json.decode(env[PRELOADED_VARIABLE], type=dict[str, str]), _relevant(env)
    return tuple(sorted(name for name in {*before, *now} if before.get(name) != now.get(name)))


def warn(env: Mapping[str, str]) -> None:
    """Say on rank 0, once for each change, which variables have come too late."""
    names = changed(env)
    if not names:
        return
    add_to_environment(remember(env))
    if env.get("RANK", "0") == "0":
        were = "was" if len(names) == 1 else "were"
        say(
            f"WARNING: {', '.join(names)} {were} changed by the script, but torch was imported before it and does not"
            " read this again: set it for the job (trainbox run --env NAME=VALUE), or start ranks without imports"
            " (trainbox_preload=off)"
        )


def _relevant(env: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value for name, value in env.items() if name.startswith(_PREFIXES) and not name.startswith(_READ_LATER)
    }


class FirstImport(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Hides a module that is imported already until somebody imports it, and then calls a function.

    Args:
        module: The module.
        then: Called before it is given out.
    """

    def __init__(self, module: ModuleType, then: Callable[[], None]) -> None:
        self._module, self._spec, self._then = module, module.__spec__, then
        del sys.modules[module.__name__]
        sys.meta_path.insert(0, self)

    def find_spec(
        self, name: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """As Python asks each finder; this one knows one name.

        Libraries ask only to know whether there is such a module: nothing is given out yet.
        """
        if name != self._module.__name__:
            return None
        origin = self._spec.origin if self._spec else None
        spec = importlib.machinery.ModuleSpec(name, self, origin=origin)
        spec.submodule_search_locations = self._spec.submodule_search_locations if self._spec else None
        return spec

    def create_module(self, _spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """The module that was hidden."""
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is run again: the module is given out, once."""
        module.__spec__ = self._spec
        sys.meta_path.remove(self)
        self._then()
