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

from typing import TYPE_CHECKING

from trainbox.lazy_names import lazy_names

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

#: The module of each name; loaded on first use, so that the agent and the writer of checkpoints do not import torch.
_MODULES = {
    "Batches": "trainbox.torch.batches",
    "BestEpoch": "trainbox.torch.networks.epochs",
    "EpochScores": "trainbox.torch.networks.epochs",
    "NetworkParams": "trainbox.torch.networks.hyperparameters",
    "Samples": "trainbox.torch.networks.samples",
    "Session": "trainbox.torch.training",
    "convolutions": "trainbox.torch.networks.architectures",
    "evaluate": "trainbox.torch.networks.epochs",
    "learning_rate": "trainbox.torch.networks.architectures",
    "load_factory": "trainbox.torch.networks.architectures",
    "load_former": "trainbox.torch.networks.former",
    "perceptron": "trainbox.torch.networks.architectures",
    "prepare": "trainbox.torch.networks.samples",
    "read_samples": "trainbox.torch.networks.samples",
    "save_network": "trainbox.torch.networks.model",
    "session": "trainbox.torch.start_session",
}

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
