#!python -IS
"""What SageMaker starts in the container: the supervisor, whose bytecode lies in one file.

Without `site`, which reads every .pth file, and needs nothing of a user's. In a container that has just been started
nothing of its file system is cached: to look for sixty modules takes as long as to run them. `pack_start.py` has put
them together. One whose source is another by now, or is gone, is imported as ever: its time and size tell
(as they do Python: https://docs.python.org/3/reference/import.html#cached-bytecode-invalidation).
"""

import _signal  # type: ignore[import-not-found]
import marshal
import os
import sys
from _frozen_importlib import ModuleSpec

TYPE_CHECKING = False  # `typing` itself is among the sixty
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType
    from typing import Any

VENV = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SITE = f"{VENV}/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
PACKED = f"{VENV}/lib/trainbox-start"


class Packed:
    """Finds and loads the modules of `PACKED`."""

    def __init__(self) -> None:
        with open(PACKED, "rb") as file:
            content = memoryview(file.read())
        end = 8 + int.from_bytes(content[:8], "big")
        version, modules = marshal.loads(content[8:end])
        #: Of each: where its source is, its time and size, whether it is a package, and where its code is.
        self._modules = modules if version == sys.hexversion else {}
        self._code = content[end:]

    def find_spec(self, name: str, _path: "Sequence[str] | None", _target: object = None) -> ModuleSpec | None:
        """What `import` asks for."""
        if name not in self._modules:
            return None
        source, time, size, is_package, _, _ = self._modules[name]
        try:
            status = os.stat(source)
        except OSError:
            return None
        if (int(status.st_mtime), status.st_size) != (time, size):
            return None
        loader: Any = self  # by its methods
        spec = ModuleSpec(name, loader, origin=source, is_package=is_package)
        spec.has_location = True
        if is_package:
            spec.submodule_search_locations = [os.path.dirname(source)]
        return spec

    def create_module(self, _spec: ModuleSpec) -> "ModuleType | None":
        """The usual kind."""
        return None

    def exec_module(self, module: "ModuleType") -> None:
        """Run its code."""
        *_, begin, end = self._modules[module.__name__]
        exec(marshal.loads(self._code[begin:end]), module.__dict__)


if __name__ == "__main__":
    # Before anything else: PID 1 would not even notice them. `trainbox.launch.train` takes them.
    _signal.pthread_sigmask(_signal.SIG_BLOCK, (_signal.SIGTERM, _signal.SIGINT))
    sys.path.append(SITE)
    sys.meta_path.insert(0, Packed())
    from trainbox.launch.__main__ import main

    sys.exit(main())
