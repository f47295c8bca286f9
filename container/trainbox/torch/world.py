"""Which rank this is, on which device, and how it reaches the others: joined before the work, left after it."""

import errno
import importlib
import importlib.util
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed import distributed_c10d
from torch.distributed.rendezvous import rendezvous

from trainbox.comm.sockets import serve_store
from trainbox.contract.cluster.ranks import RANK_VARIABLES, Ranks, find_members_beyond, read_port, read_ranks
from trainbox.contract.cluster.world import in_world
from trainbox.contract.job import Job
from trainbox.errors import ContractError, HyperparameterError
from trainbox.log_lines import emit
from trainbox.system import gloo_threads

#: Others may still be compiling or reading when this rank arrives.
JOIN_TIMEOUT = timedelta(seconds=300)
#: From the end of the first step on; the watch of the launcher, which names the rank that hangs, must come first.
STEP_TIMEOUT_SECONDS = 100.0
_START = "let trainbox start the processes (processes_per_host, trainbox_launcher=torchrun), which sets RANK"
_SMDDP = "smdistributed.dataparallel.torch.torch_smddp"


class Backend(msgspec.Struct, frozen=True):
    """How the ranks talk and compute, and why so."""

    name: str
    device: torch.device
    reason: str


def find_ranks(job: Job, env: Mapping[str, str]) -> Ranks:
    """Pure: this rank from torchrun's variables; alone where the job has one host and nothing names another process.

    Args:
        job: The contract.
        env: The environment of the process.

    Raises:
        ContractError: A variable is missing or malformed, variables contradict each other, or this process would train
            without other members of its job.
    """
    hosts = in_world(job).hosts
    if not env.get("RANK"):
        _require_alone(hosts if len(job.hosts) > 1 else _named_hosts(env) or hosts, env)
        return Ranks()
    missing = [name for name in RANK_VARIABLES if not env.get(name)]
    one_per_host = missing == ["LOCAL_RANK", "LOCAL_WORLD_SIZE"] and env["WORLD_SIZE"] == str(len(hosts))
    if missing and not (one_per_host and len(hosts) > 1):
        raise ContractError(
            f"the variable {missing[0]} is not set, though RANK is", hint="torchrun sets RANK and all it goes with"
        )
    ranks = read_ranks(env, hosts=len(hosts))
    if _count_hosts(ranks, env) < len(hosts):
        raise ContractError(
            f"rank {ranks.rank} of {ranks.world_size} would train without other hosts of this job, which has"
            f" {len(hosts)}: {', '.join(hosts)}",
            hint=f"{_START}; torchrun inside a script: --nnodes={len(hosts)} --node-rank=$NODE_RANK"
            " --master-addr=$MASTER_ADDR --master-port=$MASTER_PORT",
        )
    return ranks


def _require_alone(hosts: Sequence[str], env: Mapping[str, str]) -> None:
    """A process without a rank may train if it has no others to train with; else all would write one checkpoint."""
    others = find_members_beyond(env, 1)
    if others:
        raise ContractError(
            f"the variable RANK is not set, though {others}: each process would train alone",
            hint=f"{_START}; torchrun, srun or mpirun inside a script: set RANK, WORLD_SIZE, LOCAL_RANK,"
            " LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT from the variables of that launcher, or unset the variable"
            " for processes that have nothing to do with each other",
        )
    if len(hosts) > 1:
        raise ContractError(
            f"the variable RANK is not set, though the job has {len(hosts)} hosts ({', '.join(hosts)}): each would"
            " train alone",
            hint=f"{_START}, also in `docker run`: start the container with `train`, not the script",
        )


def _named_hosts(env: Mapping[str, str]) -> list[str]:
    """The hosts in `SM_HOSTS`, for a script that is given the variables of its job but not its files."""
    try:
        named = json.loads(env.get("SM_HOSTS") or "[]")
    except ValueError:
        named = None
    if not isinstance(named, list):
        raise ContractError(
            f"the variable SM_HOSTS: found {env['SM_HOSTS']!r}, expected a JSON list of hosts",
            hint="leave it out, or start the container with `train`, which sets it",
        )
    return [str(host) for host in named]


def _count_hosts(ranks: Ranks, env: Mapping[str, str]) -> int:
    """Return the largest possible number of hosts of a world, from the variables of one rank."""
    if env.get("GROUP_WORLD_SIZE", "").isdecimal():  # torchrun's: how many agents there are
        return int(env["GROUP_WORLD_SIZE"])
    return 1 if ranks.world_size == ranks.local_world_size else ranks.world_size


def choose_backend(asked: str | None, ranks: Ranks, *, gpus: int, nccl: bool) -> Backend:
    """Pure: GPUs and NCCL where there are GPUs, else processors and gloo, unless the request names another backend.

    Raises:
        HyperparameterError: A GPU or a library that this needs is not there.
    """
    name = asked or ("nccl" if gpus and nccl else "gloo")
    if name == "nccl" and not gpus:
        raise HyperparameterError(
            "the backend nccl needs a GPU, and there is none here", hint="use gloo, or a GPU instance"
        )
    if name == "smddp" and importlib.util.find_spec(_SMDDP.partition(".")[0]) is None:
        raise HyperparameterError("the backend smddp needs a module that is not installed", hint="use nccl")
    if not gpus:
        return Backend(name, torch.device("cpu"), "as asked" if asked else "there is no GPU here")
    if ranks.local_rank >= gpus:
        raise HyperparameterError(
            f"rank {ranks.rank} is number {ranks.local_rank} on its host, which has {gpus} GPUs",
            hint=f"processes_per_host of at most {gpus}; a GPU fewer than the instance should have is a broken one",
        )
    reason = "as asked" if asked else f"{gpus} GPUs on this host"
    return Backend(name, torch.device("cuda", ranks.local_rank), reason)


@contextmanager
def joined(
    ranks: Ranks, backend: Backend, *, pauses: float, env: Mapping[str, str]
) -> Iterator[dist.ProcessGroup | None]:
    """Be one of the process group; gives a second group, on gloo, for what the ranks agree on. None where one is alone.

    Leaves behind a barrier, so that none takes down what another still needs; but not after an exception, when the
    others may never come to it.

    Args:
        ranks: The place of this one.
        backend: What the gradients go through.
        pauses: Seconds that one rank may work while the others wait: saving, evaluating.
        env: The environment of the process.
    """
    if backend.device.type == "cuda":
        torch.cuda.set_device(backend.device)
    if ranks.world_size == 1:
        yield None
        return
    if backend.name == "smddp":
        importlib.import_module(_SMDDP)
    gloo_threads.wait_at_exit()
    options: dict[str, Any] = {"device_id": backend.device} if backend.name == "nccl" else {}
    hook = sys.excepthook
    served = _serve_ranks(ranks, env)
    store, rank, world_size = next(rendezvous("env://", ranks.rank, ranks.world_size, timeout=JOIN_TIMEOUT))
    del served  # torch holds it from here on
    store.set_timeout(JOIN_TIMEOUT)
    # The store outlives a session, and torch names the groups of the next one alike: each session has keys of its own,
    # lest a rank connects to the addresses of the one before.
    store = PrefixStore(f"session {next(_SESSIONS)}", store)
    dist.init_process_group(
        backend.name, store=store, rank=rank, world_size=world_size, timeout=JOIN_TIMEOUT, **options
    )
    sys.excepthook = hook  # torch's loses the traceback of an error that has an exit code of its own (trainbox.toolkit)
    failed = True
    try:
        control = dist.new_group(backend="gloo", timeout=max(JOIN_TIMEOUT, timedelta(seconds=pauses)))
        yield control
        dist.barrier(group=control)
        failed = False
    finally:
        _keep_backends()
        if failed and backend.name == "nccl":
            # To destroy a group waits for its kernels, which wait for ranks that may be gone.
            distributed_c10d._abort_process_group()  # noqa: SLF001 - there is no public name for it as of torch 2.13
        else:
            dist.destroy_process_group()


def _serve_ranks(ranks: Ranks, env: Mapping[str, str]) -> TCPStore | None:
    """The store that rank 0 serves, listening on MASTER_ADDR alone; None where another process does, or torch has to.

    Torch's `env://` takes a store of this process at its port for its own; the one it makes itself listens on every
    address of the host.
    """
    address = env.get("MASTER_ADDR", "")
    if ranks.rank != 0 or not address or env.get("TORCHELASTIC_USE_AGENT_STORE") == str(True):
        return None
    try:
        return serve_store(address, read_port(env), timeout=JOIN_TIMEOUT, shared=True)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:  # else it is that of an earlier session, or torch says whose it is not
            emit(
                f"WARNING: MASTER_ADDR={address} is no address of this host ({error.strerror}): the store of the ranks"
                " listens on all of its addresses"
            )
        return None


#: Of this process, in the order in which all ranks begin theirs.
_SESSIONS = itertools.count()

#: Gloo's backends, to the end of the process. Else DDP's reducer may free the last reference to one after the group was
#: destroyed, and wait, holding the GIL, for a thread that waits for the GIL (torch 2.13; a script then never ends).
_KEPT: list[object] = []


def _keep_backends() -> None:
    groups = distributed_c10d._world.pg_map  # noqa: SLF001 - there is no public list of them as of torch 2.13
    on_gloo = [group for group in groups if "gloo" in dist.get_backend_config(group)]
    _KEPT.extend(group._get_backend(torch.device("cpu")) for group in on_gloo)  # noqa: SLF001 - likewise


def tighten(control: dist.ProcessGroup | None, longest: float, hang_seconds: float) -> float:
    """After the first step: wait less long for others, though longer than the launcher's watch waits for them.

    All ranks call this at the same step.

    Args:
        control: The group to agree through.
        longest: Seconds of this rank's first step.
        hang_seconds: The floor of the watch's limit; the limit itself is five times the longest step.

    Returns:
        The seconds after which a collective of the gradients gives up.
    """
    if control is None:
        return 0.0
    slowest = torch.tensor([longest], dtype=torch.float64)
    dist.all_reduce(slowest, dist.ReduceOp.MAX, group=control)  # none is left in a collective begun before
    seconds = max(STEP_TIMEOUT_SECONDS, 2 * hang_seconds, 10 * slowest.item())
    distributed_c10d._set_pg_timeout(timedelta(seconds=seconds))  # noqa: SLF001 - as torchtitan's set_pg_timeouts
    return seconds
