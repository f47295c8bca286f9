"""`python -m trainbox.health --watch`: prints what the GPUs report, and tells it to whoever else runs the job."""

import contextlib
import os
import signal
from pathlib import Path

from trainbox.contract.lookout import Post
from trainbox.health import report
from trainbox.health.nvml import NvmlMissing, open_gpus
from trainbox.health.watch import Watch
from trainbox.say import say


def accompany(host: str, directory: Path | None) -> int:
    """Watch until SIGTERM or SIGINT, then look once more and leave. Ends at once where there is nothing to watch.

    Args:
        host: The name of this one.
        directory: Where the supervisor and the agent of the job look for what is found; None without a job.

    Returns:
        0.
    """
    stops: list[int] = []
    last: list[int] = []  # those that the coming answer is the last for
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: stops.append(number))
    parent = os.getppid()
    with contextlib.ExitStack() as stack:
        # First: whoever asks from now on is answered, once NVML is there.
        post = stack.enter_context(Post(directory)) if directory else None
        try:
            watch = Watch(host, open_gpus())
        except NvmlMissing as missing:
            say(f"health: nothing to watch: {missing}")
            return 0

        def is_asked() -> bool:
            last.extend(stops)
            return bool(last) or (post is not None and post.is_asked())

        for turn in watch.turns(is_asked=is_asked):
            report.print_lines(turn.findings)
            if post:
                for finding in turn.findings:
                    post.tell(finding)
                if turn.answers:
                    post.answer()
            if (last and turn.answers) or os.getppid() != parent:
                break
    return 0
