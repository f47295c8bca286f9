"""The program of a rank: run the script as its main program, and write its error to a file.

It runs in a fork of the fork server, or as `python -m trainbox.launcher.ranks.program SCRIPT …` in a new interpreter.
"""

import contextlib
import faulthandler
import functools
import importlib.machinery
import importlib.util
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import msgspec

from trainbox.contract.job import add_to_environment, read_environment
from trainbox.contract.text import printable
from trainbox.errors import TrainboxError
from trainbox.launcher.ranks import preload
from trainbox.system import gloo_threads

#: Names the file for the error of a rank: torch elastic's variable, which its decorator `record` reads, too.
ERROR_FILE_VARIABLE = "TORCHELASTIC_ERROR_FILE"
#: Asks a rank for the stacks of all its threads; a real-time signal that nothing else uses (Lightning takes SIGUSR1).
STACKS_SIGNAL = signal.SIGRTMAX - 1
#: Names the file that the stacks go to.
STACKS_FILE_VARIABLE = "TRAINBOX_STACKS_FILE"


def run(variables: Mapping[str, str], command: Sequence[str]) -> int:
    """Run a script as the main program of this process.

    Args:
        variables: Variables of this rank that the environment does not have yet.
        command: The arguments of `python`: a script or `-m` and a module, then its arguments.

    Returns:
        0; an exception ends the process as Python would, with its traceback and 1, or with its own exit code.

    Raises:
        SystemExit: The script has failed, or has raised it.
    """
    env = {**read_environment(), **variables}
    _settle(env)
    gloo_threads.wait_at_exit()
    if "torch" in sys.modules:
        add_to_environment(preload.remember(env))
        preload.FirstImport(sys.modules["torch"], functools.partial(_warn, read_environment))
    try:
        _run_main(command)
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001 - what Python itself does with a main program
        _record(error, Path(env[ERROR_FILE_VARIABLE]))
        _show(error)
        raise SystemExit(error.exit_code if isinstance(error, TrainboxError) else 1) from None
    return 0


def _warn(read: Callable[[], Mapping[str, str]]) -> None:
    preload.warn(read())


def _settle(env: Mapping[str, str]) -> None:
    """Set up what a new interpreter would have: variables, random seeds, fault handlers."""
    directory = str(Path.cwd())
    path = env.get("PYTHONPATH", "")
    add_to_environment({**env, "PYTHONPATH": ":".join(filter(None, [directory, path]))})
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    faulthandler.enable()
    # Never closed: a signal handler in C writes the stacks.
    stacks = os.open(env[STACKS_FILE_VARIABLE], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    faulthandler.register(STACKS_SIGNAL, file=stacks, all_threads=True)


def _run_main(command: Sequence[str]) -> None:
    if command[0] == "-m":
        import runpy  # noqa: PLC0415 - scripts do not need it

        sys.argv = ["-m", *command[2:]]
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        return
    script = Path(command[0]).absolute()
    sys.argv = list(command)
    sys.path[:0] = dict.fromkeys([str(script.parent), str(Path.cwd())])  # the second is in PYTHONPATH
    # As `python script.py` does it: the module stays in sys.modules until the end, so that exit handlers, threads and
    # pickle find it; without a __spec__, so that spawned children of multiprocessing know it by its path.
    loader = _Script("__main__", str(script))
    spec = importlib.util.spec_from_file_location("__main__", script, loader=loader)
    assert spec is not None  # noqa: S101 - a loader was given
    main = importlib.util.module_from_spec(spec)
    main.__spec__ = None
    main.__dict__.pop("__cached__", None)
    sys.modules["__main__"] = main
    loader.exec_module(main)


class _Script(importlib.machinery.SourceFileLoader):
    """Loads the script without a compiled file, as Python does with a main program."""

    def path_stats(self, path: str) -> Mapping[str, object]:
        raise OSError(path)


def _record(error: BaseException, file: Path) -> None:
    """Write the error as torch elastic's own handler does, with its time and base classes for the attribution."""
    data = {
        "message": {
            "message": printable(f"{type(error).__name__}: {error}"),
            "extraInfo": {
                "py_callstack": printable("".join(traceback.format_exception(error.with_traceback(_own_part(error))))),
                "timestamp": str(int(time.time())),
            },
        },
        "trainbox": {"time": time.time(), "family": [f"{c.__module__}.{c.__qualname__}" for c in type(error).__mro__]},
    }
    with contextlib.suppress(OSError):  # the traceback is on stderr as well
        file.write_bytes(msgspec.json.encode(data))


def _own_part(error: BaseException) -> TracebackType | None:
    """Return the traceback without the frames of this module and of Python's import system before the script's."""
    trace = error.__traceback__
    while trace is not None and _is_ours(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return trace


def _is_ours(file: str) -> bool:
    return file == __file__ or file.startswith(("<frozen importlib", "<frozen runpy"))


def _show(error: BaseException) -> None:
    """Print the error through `sys.excepthook`: the script may have set its own, which may exit with another code."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    sys.excepthook(type(error), error, _own_part(error))


if __name__ == "__main__":
    sys.exit(run({}, sys.argv[1:]))
