"""The fork server alone, without torch: a rank hears every signal from the moment at which it is known."""

import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

#: Each rank is asked to stop as soon as the agent can: at once on the message that it runs.
SCRIPT = """
import os, signal, socket, sys, time
import msgspec
from trainbox.launcher.ranks.forkserver import RankEnded, Event, StartRank, fork_server

RANKS = 200
made = fork_server(lambda: None)
if isinstance(made, StartRank):
    time.sleep(1000)
codes = []
while len(codes) < RANKS:
    socket.send_fds(made.channel, [msgspec.json.encode(StartRank(len(codes), {}))], (1, 2))
    event = None
    while not isinstance(event, RankEnded):
        event = msgspec.json.decode(made.channel.recv(65536), type=Event)
        if not isinstance(event, RankEnded):
            os.kill(event.pid, signal.SIGTERM)
    codes.append(event.code)
print("codes", sorted(set(codes)), len(codes))
made.kill()
print("server", made.wait())
"""


def test_a_stop_that_meets_a_rank_in_the_moment_of_its_start_is_not_lost() -> None:
    """Until it is back at the default action a rank ignores it, as the server does: it would run on for ever."""
    answer = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=300, env={}
    )
    assert re.fullmatch(r"codes \[-15\] 200\nserver -9\n", answer.stdout), answer.stdout + answer.stderr
