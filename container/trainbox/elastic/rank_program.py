"""What a forked rank does: become what a Python started for the script would be, run the script, say why it failed."""

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
from trainbox.elastic import preload
from trainbox.errors import TrainboxError

#: Where torch elastic wants an error to be written; its decorator `record` does it, too.
ERROR_FILE_VARIABLE = "TORCHELASTIC_ERROR_FILE"
#: Asks a rank for the stacks of all its threads; a real-time signal that nothing else uses (Lightning takes SIGUSR1).
STACKS_SIGNAL = signal.SIGRTMAX - 1
#: Names the file that the stacks go to.
STACKS_FILE_VARIABLE = "TRAINBOX_STACKS_FILE"


def run(variables: Mapping[str, str], command: Sequence[str]) -> int:
    """Run a script as the main program of this process.

    Args:
        variables: Those of this rank that the environment does not have yet.
        command: What would stand behind `python`: a script or `-m` and a module, then its arguments.

    Returns:
        0; an exception ends the process as Python would, with its traceback and 1, or with its own exit code.

    Raises:
        SystemExit: The script has failed, or has asked for it.
    """
    env = {**read_environment(), **variables}
    _settle(env)
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
    """What a process of its own would have of its own."""
    directory = str(Path.cwd())
    path = env.get("PYTHONPATH", "")
    add_to_environment({**env, "PYTHONPATH": ":".join(filter(None, [directory, path]))})
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    faulthandler.enable()
    # Open for as long as the process lives: the dump is written by a signal handler in C.
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
    sys.path[:0] = dict.fromkeys([str(script.parent), str(Path.cwd())])  # the second stands in PYTHONPATH
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
    """Compiles the script anew each time and leaves no compiled file behind, as Python does with a main program."""

    def path_stats(self, path: str) -> Mapping[str, object]:
        raise OSError(path)


def _record(error: BaseException, file: Path) -> None:
    """Write the error as torch elastic's own handler does, and beside it what tells causes from consequences."""
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
    with contextlib.suppress(OSError):  # the traceback on stderr says it as well
        file.write_bytes(msgspec.json.encode(data))


def _own_part(error: BaseException) -> TracebackType | None:
    """The traceback without the frames of this module and of Python's import system that stand before the script's."""
    trace = error.__traceback__
    while trace is not None and _is_ours(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return trace


def _is_ours(file: str) -> bool:
    return file == __file__ or file.startswith(("<frozen importlib", "<frozen runpy"))


def _show(error: BaseException) -> None:
    """Through the hook: a script, or trainbox in it, may have set its own; it may end the process with another code."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    sys.excepthook(type(error), error, _own_part(error))
