"""The public names for scripts that train with PyTorch; `train_scripts/pytorch_train.py` is one to copy.

with session(seed=1) as run:
model = run.wrap(net)
optimizer = torch.optim.AdamW(model.parameters())
batches = run.batches(len(dataset), batch_size=256)
run.resume(model=net, optimizer=optimizer, batches=batches)
while batches.epoch < epochs and not run.stopped:
for inputs, targets in run.steps(batches.loader(dataset)):
run.backward(criterion(model(inputs), targets))
run.update(optimizer)
if not run.stopped:
batches.next_epoch()
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainbox.torch.batches import Batches
    from trainbox.torch.networks.architectures import convolutions, learning_rate, load_factory, perceptron
    from trainbox.torch.networks.epochs import BestEpoch, EpochScores, evaluate
    from trainbox.torch.networks.former import load_former
    from trainbox.torch.networks.hyperparameters import NetworkParams
    from trainbox.torch.networks.model import save_network
    from trainbox.torch.networks.samples import Samples, prepare, read_samples
    from trainbox.torch.start_session import session
    from trainbox.torch.training import Session

__all__ = [
    "Batches",
    "BestEpoch",
    "EpochScores",
    "NetworkParams",
    "Samples",
    "Session",
    "convolutions",
    "evaluate",
    "learning_rate",
    "load_factory",
    "load_former",
    "perceptron",
    "prepare",
    "read_samples",
    "save_network",
    "session",
]

_HOMES = {
    "Batches": "batches",
    "BestEpoch": "networks.epochs",
    "EpochScores": "networks.epochs",
    "NetworkParams": "networks.hyperparameters",
    "Samples": "networks.samples",
    "Session": "training",
    "convolutions": "networks.architectures",
    "evaluate": "networks.epochs",
    "learning_rate": "networks.architectures",
    "load_factory": "networks.architectures",
    "load_former": "networks.former",
    "perceptron": "networks.architectures",
    "prepare": "networks.samples",
    "read_samples": "networks.samples",
    "save_network": "networks.model",
    "session": "start_session",
}


def __getattr__(name: str) -> object:
    """Load a public name when it is first asked for: the agent and the writer of checkpoints do without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'trainbox.torch' has no attribute {name!r}")
    return getattr(import_module(f"trainbox.torch.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
