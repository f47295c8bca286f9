"""The program `train`: keep stop signals pending, load the supervisor and run the job."""

import gc
import signal
import sys


def hold_back_stops() -> None:
    """Keep SIGTERM and SIGINT pending until `trainbox.supervisor.train` has its handlers.

    By default they would end this process without a failure text, and PID 1 would not even notice them: what is blocked
    is never dropped (signal(7), and `sig_ignored` in Linux' kernel/signal.c). A parent may block them before: then
    nothing is lost while the interpreter starts either.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))


def main() -> int:
    """Run the job of this container to its end; see `trainbox.supervisor.train`.

    Returns:
        The exit code of the job.
    """
    hold_back_stops()
    gc.disable()  # what is loaded stays: to look through it, now and at the end, would be a fifth of the start
    from trainbox.supervisor.train import main as run  # noqa: PLC0415 - a stop that comes while it loads stays pending

    gc.freeze()
    gc.enable()
    return run()


if __name__ == "__main__":
    # os._exit would lose buffered lines; sys.exit is enough since nothing here holds a thread.
    sys.exit(main())
