"""`python -IS -X no_debug_ranges pack_start.py LAYER`: puts the bytecode of all that `train` imports into one file.

Without the columns of errors (`no_debug_ranges`), which take a fifth of the time to read.

The same sources give the same bytes: the modules are compiled in the order of their names, and nothing is collected
meanwhile (https://github.com/python/cpython/issues/78274). See `train.py`, which reads it.
"""

import gc
import marshal
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path

_VENV = "/opt/venv"


def main(layer: str) -> None:
    """Import what `train` imports, and write it down."""
    site = f"{_VENV}/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    sys.path += [f"{layer}{site}", site]
    from trainbox.launch.__main__ import load  # noqa: PLC0415 - from the layer that has just been filled

    load()
    gc.disable()
    index: dict[str, tuple[str, int, int, bool, int, int]] = {}
    codes: list[bytes] = []
    for name, module in sorted(sys.modules.items()):
        loader = getattr(module, "__loader__", None)
        if not isinstance(loader, SourceFileLoader) or name == "__main__":
            continue
        path = loader.get_filename(name)
        source = path.removeprefix(layer)
        codes.append(marshal.dumps(loader.source_to_code(loader.get_data(path), source)))
        status, begin = Path(path).stat(), sum(map(len, codes[:-1]))
        is_package = loader.is_package(name)
        index[name] = (source, int(status.st_mtime), status.st_size, is_package, begin, begin + len(codes[-1]))
    # Version 2 has no references, which depend on what else has a string.
    head = marshal.dumps((sys.hexversion, index), 2)
    Path(f"{layer}{_VENV}/lib/trainbox-start").write_bytes(b"".join((len(head).to_bytes(8, "big"), head, *codes)))


if __name__ == "__main__":
    main(sys.argv[1])
