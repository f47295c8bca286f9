"""Imports what scripts of all tests need, once, then becomes each process that it is asked for, in milliseconds.

A program of its own: `forks.py` starts it, one for each process of tests, and asks it over a socket. An order has
three descriptors: where to tell the pid and, later, the exit code, and the stdout and stderr of the new process.
"""

import atexit
import gc
import json
import os
import random
import selectors
import socket
import sys
import threading
import types
from typing import Any

MESSAGE_BYTES = 1 << 17


def import_all() -> None:
    """Everything that takes long; no thread may start, as none would live on in a fork."""
    gc.disable()
    # It asks every module that there is for every ufunc of SciPy: before torch there are few. What it would import of
    # torch, our scripts keep from it, too.
    sys.modules["sklearn.externals.array_api_compat.torch"] = None  # type: ignore[assignment]
    import skops.io  # noqa: F401, PLC0415

    del sys.modules["sklearn.externals.array_api_compat.torch"]
    import torch._dynamo  # noqa: PLC0415
    import torch._inductor.compile_fx  # noqa: PLC0415
    import torch.distributed.checkpoint  # noqa: PLC0415
    import torch.distributed.fsdp  # noqa: PLC0415
    import torch.export.pt2_archive._package  # noqa: F401, PLC0415 - what torch.export comes to need
    import xgboost  # noqa: F401, PLC0415

    gc.collect()
    gc.freeze()
    gc.enable()


def serve(orders: socket.socket) -> tuple[dict[str, Any], int, int]:
    """Fork for each order and tell how each has ended; returns in a fork, with its order, stdout and stderr."""
    selector = selectors.DefaultSelector()
    selector.register(orders, selectors.EVENT_READ)
    answers: dict[int, tuple[int, int]] = {}  # by pidfd: the pid, and where to tell its code
    while True:
        for key, _ in selector.select():
            if key.fd in answers:
                selector.unregister(key.fd)
                pid, answer = answers.pop(key.fd)
                _tell(answer, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                os.close(answer)
                os.close(key.fd)
                continue
            message, descriptors, *_ = socket.recv_fds(orders, MESSAGE_BYTES, 3)
            if not message:
                os._exit(0)  # whoever asked has ended
            answer, stdout, stderr = descriptors
            pid = os.fork()
            if not pid:
                selector.close()
                orders.close()
                for descriptor in (answer, *answers, *(other for _, other in answers.values())):
                    os.close(descriptor)
                order: dict[str, Any] = json.loads(message)
                return order, stdout, stderr
            os.close(stdout)
            os.close(stderr)
            _tell(answer, pid)
            pidfd = os.pidfd_open(pid)
            answers[pidfd] = (pid, answer)
            selector.register(pidfd, selectors.EVENT_READ)


def become(order: dict[str, Any], stdout: int, stderr: int) -> dict[str, Any]:
    """A process like one that was started with these arguments; gives the globals of its program."""
    os.setsid()
    silence = os.open(os.devnull, os.O_RDONLY)
    for ours, number in ((silence, 0), (stdout, 1), (stderr, 2)):
        os.dup2(ours, number)
        os.close(ours)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["directory"])
    sys.argv = order["argv"]
    sys.path[0] = os.path.dirname(sys.argv[0])  # noqa: PTH120 - as Python does it
    # Nothing that a process of its own draws at random may be the same in two of them.
    random.seed()
    sys.modules["numpy"].random.seed()
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    return vars(main)


def finish() -> None:
    """End as Python does, but for taking apart a thousand modules, which takes longer than a test's own work."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _tell(answer: int, number: int) -> None:
    try:
        os.write(answer, f"{number}\n".encode())
    except BrokenPipeError:  # nobody wants to know any more
        return


if __name__ == "__main__":
    import_all()
    with socket.socket(fileno=int(sys.argv[1])) as its_door:
        its_order, its_stdout, its_stderr = serve(its_door)
    its_globals = become(its_order, its_stdout, its_stderr)
    exec(compile(its_order["code"], "<string>", "exec"), its_globals)
    finish()
