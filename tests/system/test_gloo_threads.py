"""A process that has used gloo ends well, though gloo's threads drop what they hold after everything else."""

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.support.addresses import free_port
from tests.support.forks import own_environment
from tests.support.timeline import Timeline
from tests.support.waiting import LIMIT
from trainbox.system.gloo_threads import are_at_rest, wait_for_threads

#: Gloo's threads have tensors to drop, for which the main thread gives them the GIL only when Python is ending.
END = """
import os, sys, time
from pathlib import Path
import torch, torch.distributed as dist

class Late:
    def __del__(self, sleep=time.sleep): sleep(0.3)

late = Late()

def end():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    while sum(name.read_text() == "pt_gloo_runloop\\n" for name in Path("/proc/self/task").glob("*/comm")) < 2:
        time.sleep(0.01)
    print("the end", flush=True)
    sys.setswitchinterval(100.0)
    for _ in range(20):
        dist.all_reduce(torch.ones(1), async_op=True)
"""
BARE = "end()"
SESSION = """
from trainbox.torch import session
with session(): pass
end()
"""
INTEGRATION = """
from trainbox.torch.integration import Integration
dist.init_process_group("gloo")
Integration(every_seconds=300.0, keep=1).begin(0, int(os.environ["RANK"]))
dist.barrier()
dist.destroy_process_group()
end()
"""
RANK_OF_THE_LAUNCHER = ("-m", "trainbox.launcher.ranks.program")

RESTING = (b"State:\tS (sleeping)", b"voluntary_ctxt_switches:\t7", b"nonvoluntary_ctxt_switches:\t1")
WOKEN = (RESTING[0], b"voluntary_ctxt_switches:\t8", RESTING[2])
RUNNABLE = (b"State:\tR (running)", *RESTING[1:])


def end(script: Path, *before: str, ranks: int = 1) -> list[tuple[int, str]]:
    """How the processes of a script have ended, and what they have written."""
    shared = {
        **own_environment(),
        "TRAINBOX_ROOT": str(script.parent),
        "TORCHELASTIC_ERROR_FILE": str(script.parent / "error.json"),
        "TRAINBOX_STACKS_FILE": str(script.parent / "stacks"),
    }
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    started = []
    with ExitStack() as stack:
        for rank in range(ranks):
            process = subprocess.Popen(
                [sys.executable, *before, script],
                env={**shared, **world, "LOCAL_WORLD_SIZE": str(ranks), "RANK": str(rank), "LOCAL_RANK": str(rank)},
                cwd=script.parent,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            started.append(stack.enter_context(process))
            stack.callback(process.kill)
        written = [process.communicate(timeout=LIMIT)[0] for process in started]
    return [(process.returncode, log) for process, log in zip(started, written, strict=True)]


@pytest.mark.process
@pytest.mark.parametrize(
    ("program", "before", "ranks"),
    [
        pytest.param(BARE, RANK_OF_THE_LAUNCHER, 1, id="a script of one's own as a rank of the launcher"),
        pytest.param(SESSION, (), 2, id="a session"),
        pytest.param(INTEGRATION, (), 2, id="the training of a library"),
    ],
)
def test_a_script_ends_with_0_though_threads_of_gloo_have_yet_to_drop_its_tensors(
    program: str, before: tuple[str, ...], ranks: int, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(END + program)
    for code, log in end(script, *before, ranks=ranks):
        assert "the end" in log
        assert code == 0, log


def test_threads_are_at_rest_that_have_slept_all_the_time_between_two_looks() -> None:
    assert are_at_rest({1: RESTING, 2: WOKEN}, {1: RESTING, 2: WOKEN})
    assert not are_at_rest({1: RESTING}, {1: WOKEN})
    assert not are_at_rest({1: RUNNABLE}, {1: RUNNABLE})
    assert not are_at_rest({1: RESTING}, {1: RESTING, 2: RESTING})
    # A kernel that counts no switches.
    assert are_at_rest({1: RESTING[:1]}, {1: RESTING[:1]})


def test_a_process_without_such_threads_does_not_wait() -> None:
    time = Timeline()
    wait_for_threads(dict, clock=time.clock, sleep=time.sleep)
    assert time.now == Timeline().now


def test_threads_that_are_busy_all_the_time_are_waited_for_no_longer_than_10_seconds() -> None:
    time = Timeline()
    wait_for_threads(lambda: {1: RUNNABLE}, clock=time.clock, sleep=time.sleep)
    assert time.now - Timeline().now == pytest.approx(10.0, abs=0.02)


def test_threads_are_looked_at_until_they_rest() -> None:
    time, looks = Timeline(), iter([RUNNABLE, RESTING, WOKEN, WOKEN])
    wait_for_threads(lambda: {1: next(looks)}, clock=time.clock, sleep=time.sleep)
    assert next(looks, None) is None
