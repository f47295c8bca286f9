"""The public toolkit: what a training script imports. The rest serves the container and the command line."""

from typing import TYPE_CHECKING

from trainbox.lazy_names import lazy_names

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

#: The module of each name; loaded on first use, as the supervisor is in this package too and needs none of them.
_MODULES = {
    **dict.fromkeys(__all__, "trainbox.toolkit"),
    "Channel": "trainbox.contract.job",
    "Checkpoint": "trainbox.checkpoint.store",
    "Checkpoints": "trainbox.checkpoint.store",
    "Job": "trainbox.contract.job",
    "Metric": "trainbox.metrics",
    "TrainboxError": "trainbox.errors",
    "former_model": "trainbox.former",
}

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
