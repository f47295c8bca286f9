"""A small network whose parameters are spread over the ranks (FSDP2): for a sharded checkpoint, and its weights."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

import trainbox
from trainbox.torch import session


class Rows(torch.utils.data.Dataset[Any]):
    """Inputs and targets that every machine makes alike."""

    def __len__(self) -> int:
        return 48

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        numbers = torch.tensor(indices).unsqueeze(1)
        inputs = (numbers * torch.arange(1, 9) % 17 - 8) / 8
        return inputs, inputs[:, :2] - inputs[:, 2:4]


def main() -> None:
    """Three epochs of four steps; the weights, whole, become the model."""
    with session(seed=3) as run:
        net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        model = run.wrap(net, sharded=True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        batches = run.batches(48, batch_size=12)
        run.resume(model=model, optimizer=optimizer, batches=batches, every_seconds=0.0)
        loader = batches.loader(Rows(), collate=tuple)
        while batches.epoch < 3:
            for inputs, targets in run.steps(loader):
                run.backward(functional.mse_loss(model(inputs), targets))
                run.update(optimizer, clip=1.0)
            batches.next_epoch()
        run.save()
        weights = {name: _whole(value) for name, value in net.state_dict().items()}
        if run.rank == 0:
            path = trainbox.model_dir() / "model.pt"
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(weights, path)


def _whole(value: Any) -> torch.Tensor:
    whole: torch.Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return whole.detach()


if __name__ == "__main__":
    main()
