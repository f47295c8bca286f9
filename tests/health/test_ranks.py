"""The program of the ranks: how it begins, and how a rank finds the first of its group."""

import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta

import pytest

pytest.importorskip("torch")

from trainbox.health import ranks

_LIMIT = timedelta(seconds=20)

#: What a rank needs of torch, and what is left out.
LEAN = """\
import sys
from datetime import timedelta
from trainbox.health.start_ranks import without_metas

with without_metas():
    import torch
    import torch.distributed as dist
assert not [name for name in sys.modules if name.endswith("_meta_registrations")], "they are there"
store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))
dist.init_process_group("gloo", store=store, rank=0, world_size=1)
numbers = (torch.arange(8) % 3).to(torch.float32)
dist.all_reduce(numbers)
assert numbers.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
assert int((numbers != numbers.flip(0)).sum()) == 6
import torch._meta_registrations
assert torch._meta_registrations.__file__, "whoever asks for them later gets the true ones"
"""


@pytest.mark.process
def test_torch_without_its_metas_sums_and_compares() -> None:
    done = subprocess.run([sys.executable, "-c", LEAN], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.process
def test_a_rank_that_comes_too_early_waits_until_the_first_one_listens() -> None:
    with socket.socket() as first:
        first.bind(("127.0.0.1", 0))
        timer = threading.Timer(0.3, first.listen)
        timer.start()
        began = time.monotonic()
        left = ranks.await_door("127.0.0.1", first.getsockname()[1], _LIMIT)
        waited = time.monotonic() - began
        timer.join()
    assert 0.2 < waited < 10
    assert abs(left.total_seconds() + waited - _LIMIT.total_seconds()) < 0.5


@pytest.mark.process
def test_where_nobody_ever_listens_a_moment_is_left_for_the_store_to_say_so() -> None:
    with socket.socket() as first:
        first.bind(("127.0.0.1", 0))
        left = ranks.await_door("127.0.0.1", first.getsockname()[1], timedelta(seconds=0.2))
    assert left.total_seconds() == 1.0


def test_a_name_that_does_not_resolve_is_left_to_the_store() -> None:
    began = time.monotonic()
    ranks.await_door("nobody.invalid", 29500, _LIMIT)
    assert time.monotonic() - began < 10
