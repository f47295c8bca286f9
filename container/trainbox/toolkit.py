"""What a training script asks of its container; `import trainbox` gives these names.

Every function reads the contract when it is called: below `/opt/ml` in a container, below `TRAINBOX_ROOT` where that is
set, and from flags (`--max_depth 5 --channel train=DIR`) where a script is started by hand.
"""

import functools
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import SupportsFloat, TypeVar

import msgspec

from trainbox import atomic_write, metrics, stopping
from trainbox.checkpoint.store import Checkpoints
from trainbox.contract import params
from trainbox.contract.cluster.ranks import Ranks, read_ranks
from trainbox.contract.cluster.world import world_hosts
from trainbox.contract.credentials.checkpoint_keys import read_checkpoint_keys
from trainbox.contract.job import Channel, Job, read_environment, read_job
from trainbox.contract.layout import DEFAULT_ROOT, ROOT_VARIABLE
from trainbox.contract.params.script_flags import parse_flags, read_flags, refuse_misspelt_channel, usage
from trainbox.contract.text import did_you_mean
from trainbox.errors import DataError, HyperparameterError, end_as_declared
from trainbox.files import keep_out_of_git
from trainbox.log_lines import emit
from trainbox.system.procfs import read_start

P = TypeVar("P")

#: Where a script that is started by hand, outside of any container, puts what it makes; each start its own.
ALONE_ROOT = Path("trainbox-out")


#: The hyperparameter by which a tuning job names its objective.
OBJECTIVE = "_tuning_objective_metric"


def _read_channels(arguments: Sequence[str], env: Mapping[str, str]) -> Mapping[str, Path]:
    """Return the channels among the flags of this process; none where the script has a parser of its own kind."""
    try:
        return read_flags(arguments, env).channels
    except HyperparameterError:  # `hyperparameters`, which is asked for them all, says which it is
        return {}


@functools.cache
def current_job() -> Job:
    """Return the job that this process belongs to; it is read once.

    >>> job = trainbox.current_job()
    >>> job.host_rank, job.hosts, sorted(job.channels)
    (0, ('algo-1',), ['train', 'validation'])

    Raises:
        ContractError: A file SageMaker gave is malformed.
    """
    _install_exit_codes()
    env = read_environment()
    job = read_job(_root(env), env)
    channels = _read_channels(sys.argv[1:], env)
    given = {name: Channel(name=name, path=path.absolute()) for name, path in channels.items()}
    return msgspec.structs.replace(job, channels={**job.channels, **given}) if given else job


@functools.cache
def _install_exit_codes() -> None:
    """Make errors of ours end the process with their exit codes; once, so that a hook that the script sets stays."""
    sys.excepthook = end_as_declared


def _root(env: Mapping[str, str]) -> Path:
    """The tree: the one that the supervisor names, the container's, or one of its own for a script by itself."""
    chosen = env.get(ROOT_VARIABLE)
    if chosen:
        return Path(chosen).absolute()
    if (DEFAULT_ROOT / "input").is_dir():
        return DEFAULT_ROOT
    if (DEFAULT_ROOT / "model").is_dir():  # a volume of a container whose command is the script itself
        emit(f"results go to {DEFAULT_ROOT}, as it has a directory 'model' ({ROOT_VARIABLE}=DIR puts them elsewhere)")
        return DEFAULT_ROOT
    began = time.localtime(_begin(env))
    program = Path(sys.argv[0])
    name = program.parent.name if program.stem == "__main__" else program.stem
    root = ALONE_ROOT / f"{name}-{time.strftime('%Y%m%d-%H%M%S', began)}"
    keep_out_of_git(ALONE_ROOT)
    emit(f"no {DEFAULT_ROOT}/input here and no {ROOT_VARIABLE}: this script runs alone, its results go to {root}")
    return root.absolute()


def _begin(env: Mapping[str, str]) -> float | None:
    """When this run began: its processes, each of which asks, must agree. None is now."""
    if "TORCHELASTIC_RUN_ID" in env:  # torchrun, started by hand, is the parent of all ranks
        return read_start(os.getppid())
    spawned = sys.modules.get("multiprocessing.process")
    parent = spawned.parent_process() if spawned else None
    return read_start(os.getpid() if parent is None else parent.pid)


def hyperparameters(params_type: type[P]) -> P:
    """Return the checked hyperparameters of the job: flags override `hyperparameters.json`, which overrides defaults.

    >>> class Params(msgspec.Struct, frozen=True, kw_only=True):
    ...     epochs: Annotated[int, msgspec.Meta(ge=1)] = 10
    >>> trainbox.hyperparameters(Params)
    Params(epochs=3)

    Raises:
        HyperparameterError: Names all mistakes at once: unknown or missing names, wrong types, values out of range.
    """
    _install_exit_codes()
    flags = read_flags(sys.argv[1:], read_environment())
    program = Path(sys.argv[0]).name
    if flags.help:
        print(usage(params.fields(params_type), program))
        raise SystemExit(0)
    refuse_misspelt_channel(flags, params.names(params_type), program)
    job = current_job()
    if job.settings.raw_arguments and not flags.hyperparameters:
        flags = parse_flags(job.settings.raw_arguments)
    replaced = {name.replace("-", "_") for name in flags.hyperparameters}
    # Some names are the container's unless the script declares them (`_tuning_objective_metric`).
    own = {name: job.reserved[name] for name in params.names(params_type) if name in job.reserved}
    given = {**job.raw_hyperparameters, **own}
    kept = {name: value for name, value in given.items() if name.replace("-", "_") not in replaced}
    return params.parse(params_type, {**kept, **flags.hyperparameters}, program=program, also=job.secret_names)


def channel(name: str) -> Path:
    """Return the directory with the data of a channel (in Pipe mode the stem of its FIFOs).

    >>> trainbox.channel("train")
    PosixPath('.../input/data/train')

    Raises:
        DataError: The job has no such channel; the message names those it has.
    """
    channels = current_job().channels
    if name not in channels:
        like = did_you_mean(name, channels)
        raise DataError(
            f"the job has no channel {name!r}{like}; its channels: {', '.join(channels) or 'none'}",
            hint=f"add it to the request (InputDataConfig), or run with --channel {name}=DIRECTORY",
        )
    return channels[name].path


def log(step: int, values: Mapping[metrics.Metric, SupportsFloat]) -> None:
    """Log one line of metrics, from rank 0 only; the regexes of `trainbox metrics SCRIPT` find the values.

    >>> AUC = trainbox.Metric("validation:auc", "maximize")
    >>> trainbox.log(5, {AUC: 0.84081})
    [metrics] step=5 validation:auc=0.84081

    Raises:
        MetricError: Nothing to log, a metric named twice, or a value that is not a number.
    """
    _emit(metrics.line(step, values), values)


def final(values: Mapping[metrics.Metric, SupportsFloat]) -> None:
    """Log the selected values, last of all: SageMaker's tuner takes the last value that it finds.

    >>> AUC = trainbox.Metric("validation:auc", "maximize")
    >>> trainbox.final({AUC: 0.8512})
    [metrics] final validation:auc=0.8512

    Raises:
        MetricError: As for `log`; or this is a job of a tuner, and its objective is not a finite number.
    """
    _emit(metrics.final_line(values), values)
    metrics.check_objective(current_job().reserved.get(OBJECTIVE), values)


def _emit(line: str, values: Mapping[metrics.Metric, SupportsFloat]) -> None:
    if current_ranks().rank == 0:
        metrics.emit(line)
        for warning in metrics.warnings(values):
            emit(warning)


def current_ranks() -> Ranks:
    """The place of this process in its job: what its launcher says, else one process on each host.

    Hosts that do not take part in the training come after those that do.

    Raises:
        ContractError: The launcher's variables are malformed or contradict each other.
    """
    job = current_job()
    world = world_hosts(job)
    hosts = world if job.current_host in world else (*world, *(host for host in job.hosts if host not in world))
    return read_ranks(read_environment(), hosts=len(hosts), host_rank=hosts.index(job.current_host))


def checkpoints(*, keep: int = 3) -> Checkpoints:
    """Return the store of this job's checkpoints, which SageMaker uploads while the job runs and restores at a restart.

    >>> store = trainbox.checkpoints()
    >>> store.latest()  # None at the first start
    >>> with store.writing(20, info={"best": 0.5}) as directory:
    ...     written = (directory / "weights.bin").write_bytes(b"weights")
    >>> found = store.latest()  # every file verified
    >>> found.step, found.info, (found.path / "weights.bin").read_bytes()
    (20, {'best': 0.5}, b'weights')

    Args:
        keep: How many of the newest to keep.

    Raises:
        ContractError: `TRAINBOX_CHECKPOINT_KEY` is not a key.
    """
    job = current_job()
    if not job.has_checkpoint_config:
        emit(f"the job has no CheckpointConfig: what is written to {job.checkpoints_dir} will not be uploaded")
    return Checkpoints(job.checkpoints_dir, keep=keep, keys=read_checkpoint_keys(read_environment()))


def stop_requested() -> bool:
    """Return whether a stop was requested (SIGTERM); call it at the end of every step, from the main thread.

    >>> for step in range(3):
    ...     if trainbox.stop_requested():
    ...         break  # save a checkpoint and leave
    """
    return _stop_flag().requested


def seconds_left() -> float | None:
    """Return the seconds until this process is killed; None if no stop was requested.

    >>> trainbox.seconds_left()
    >>> os.kill(os.getpid(), signal.SIGTERM)
    >>> trainbox.stop_requested(), 90 < trainbox.seconds_left() <= 100
    (True, True)
    """
    return _stop_flag().seconds_left()


def _stop_flag() -> stopping.StopFlag:
    return stopping.install(current_job().settings.grace_seconds)


def save(name: str, content: bytes | str) -> Path:
    """Write one file of the model atomically: a stop at any moment leaves the old file or the new one.

    >>> trainbox.save("model.json", json.dumps({"rounds": 20}))
    PosixPath('.../model/model.json')

    Raises:
        OSError: It cannot be written (no space, no permission); a former file of that name is unchanged.
    """
    path = model_dir() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write.write(path, content.encode() if isinstance(content, str) else content)
    return path


def model_dir() -> Path:
    """Return the directory that becomes `model.tar.gz`; `save` writes a file into it atomically.

    >>> trainbox.model_dir()
    PosixPath('.../model')
    """
    directory = current_job().layout.model_dir
    directory.mkdir(parents=True, exist_ok=True)
    return directory
