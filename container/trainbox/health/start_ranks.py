"""Where the program of the ranks begins: it loads torch quickly, for a cluster waits meanwhile, and runs `ranks`.

Of the time that torch takes to import a third goes into the shapes of results without numbers ("meta" tensors), which
compilers ask for and collectives do not.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

#: `torch/__init__.py` (as of 2.13) imports them for what they register, and takes nothing from them.
_NOT_NEEDED = ("torch._meta_registrations", "torch.distributed._meta_registrations")


@contextmanager
def without_metas() -> Iterator[None]:
    """A block in which torch may be imported for the first time, and lacks the shapes of meta tensors for good."""
    sys.modules.update({name: ModuleType(name) for name in _NOT_NEEDED})
    try:
        yield
    finally:
        for name in _NOT_NEEDED:
            del sys.modules[name]


def main() -> int:
    """Run `trainbox.health.ranks` to its end, with the same arguments.

    Returns:
        Its exit code.
    """
    gc.disable()  # of what is imported nothing is garbage
    with without_metas():
        from trainbox.health import ranks  # noqa: PLC0415 - the order is the point
    gc.freeze()  # nor in the processes forked from here, which would copy every page that is looked at
    gc.enable()
    return ranks.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
