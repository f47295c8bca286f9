"""A script as a user writes it: a session, steps that take a moment, a checkpoint now and then."""

import time

import torch

import trainbox
from trainbox.torch import session

STEPS = 40


def main() -> None:
    """Train a linear model, one line a step."""
    loss_metric = trainbox.Metric("train:loss", "minimize")
    with session(seed=1) as run:
        model = run.wrap(torch.nn.Linear(16, 1))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        batches = run.batches(STEPS * 12, batch_size=12)
        run.resume(every_seconds=0.2, model=model, optimizer=optimizer, batches=batches)
        samples = list(torch.randn(STEPS * 12, 16, generator=torch.Generator().manual_seed(3)))
        for inputs in run.steps(batches.loader(samples)):
            time.sleep(0.05)
            loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
            run.backward(loss)
            run.update(optimizer)
            total = run.total(loss.detach()).item()
            if run.rank == 0:
                trainbox.log(run.step, {loss_metric: total})
        if not run.stopped:
            run.save()
        if run.rank == 0 and not run.stopped:
            weights = b"".join(part.detach().numpy().tobytes() for part in model.parameters())
            trainbox.save("weights.bin", weights)
            trainbox.save("trainbox/model.json", '{"complete": true}')


if __name__ == "__main__":
    main()
