"""The public toolkit: what a training script imports. The rest serves the container and the command line."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainbox.checkpoint.store import Checkpoint, Checkpoints
    from trainbox.contract.job import Channel, Job
    from trainbox.errors import TrainboxError
    from trainbox.former import former_model
    from trainbox.metrics import Metric
    from trainbox.toolkit import (
        channel,
        checkpoints,
        current_job,
        final,
        hyperparameters,
        log,
        model_dir,
        save,
        seconds_left,
        stop_requested,
    )

__version__ = "0.1.0"

__all__ = [
    "Channel",
    "Checkpoint",
    "Checkpoints",
    "Job",
    "Metric",
    "TrainboxError",
    "channel",
    "checkpoints",
    "current_job",
    "final",
    "former_model",
    "hyperparameters",
    "log",
    "model_dir",
    "save",
    "seconds_left",
    "stop_requested",
]

#: Where the names live that are not in `trainbox.toolkit`.
_HOMES = {
    "Channel": "trainbox.contract.job",
    "Checkpoint": "trainbox.checkpoint.store",
    "Checkpoints": "trainbox.checkpoint.store",
    "Job": "trainbox.contract.job",
    "Metric": "trainbox.metrics",
    "TrainboxError": "trainbox.errors",
    "former_model": "trainbox.former",
}


def __getattr__(name: str) -> object:
    """Load a public name when it is first asked for: the supervisor is in this package too and wants none of them."""
    if name not in __all__:
        # A module of the package that nobody has imported yet is not ours to load: PEP 562.
        raise AttributeError(f"module 'trainbox' has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "trainbox.toolkit")), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
