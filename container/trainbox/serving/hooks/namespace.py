"""What keeps the code of several models of one process apart: each has its own modules and its own search path.

Two models may both bring an `inference.py` that imports a `preprocess.py`. While the code of one runs, `sys.modules`
and `sys.path` have what is its own; before and after it they have nothing of it. One model answers at a time, in
whichever thread. What a model leaves running, in a thread of its own, must have imported what it needs.
"""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType


class Namespace:
    """The modules and the search path of the code of a model; empty at first."""

    def __init__(self) -> None:
        self._modules: dict[str, ModuleType] = {}
        self._paths: list[str] = []

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Have the modules of the model inside the block; what it adds to the path or imports from there is its own."""
        outside = list(sys.path)
        hidden = {name: sys.modules[name] for name in self._modules if name in sys.modules}
        sys.path[:0] = self._paths
        sys.modules.update(self._modules)
        if not self._paths:
            importlib.invalidate_caches()  # files may have come since a directory was looked at
        count = len(sys.modules)
        try:
            yield
        finally:
            added = [path for path in sys.path if path not in outside]
            if added != self._paths or len(sys.modules) != count:
                self._paths = added
                self._keep_new()
            sys.path[:] = outside
            for name in self._modules:
                sys.modules.pop(name, None)
            sys.modules.update(hidden)

    def _keep_new(self) -> None:
        """Note which modules come from the model's own directories."""
        for name, module in tuple(sys.modules.items()):
            origin = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
            if isinstance(origin, str) and any(Path(origin).is_relative_to(path) for path in self._paths):
                self._modules[name] = module
