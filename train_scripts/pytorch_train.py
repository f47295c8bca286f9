"""A neural network with PyTorch, on one process or many, from the channel `train` to `model.pt` and `model.pt2`.

    trainbox run pytorch --channel train=DIR --channel validation=DIR --hp epochs=10 --hp categorical=carrier,origin
    python train_scripts/pytorch_train.py --epochs 10 --channel train=DIR --channel validation=DIR
    torchrun --nproc-per-node 2 train_scripts/pytorch_train.py --epochs 10 --channel train=DIR

Channels: `train`, and `validation` or `test`: tables (CSV or Parquet, the label first), images in a folder for each
class, or images as arrays (.npz with `images` and `labels`). A table trains a multilayer perceptron, images train a
small convolutional network, and `model=module:factory` whatever `factory(shape, outputs)` of the user's module makes.

Stopped, killed, or restarted on another number of processes, every sample comes once in each epoch; on the same number
the weights are those of a job that went through, to the bit.
"""

import torch
from torch import Tensor, nn

import trainbox
from trainbox.torch import (
    BestEpoch,
    EpochScores,
    NetworkParams,
    Samples,
    Session,
    convolutions,
    evaluate,
    learning_rate,
    load_factory,
    perceptron,
    prepare,
    read_samples,
    save_network,
    session,
)


class Params(NetworkParams, frozen=True, kw_only=True):
    """The hyperparameters, `-` and `_` alike: those of the bundled networks, and here those of your own."""


def metrics(params: Params) -> tuple[trainbox.Metric, ...]:
    """What this script logs: `trainbox metrics pytorch` prints it for SageMaker."""
    losses = [trainbox.Metric(f"{channel}:loss", "minimize") for channel in ("train", "validation")]
    quality = trainbox.Metric("validation:rmse", "minimize")
    if params.task == "classification":
        quality = trainbox.Metric("validation:accuracy", "maximize")
    return (*losses, quality, trainbox.Metric("train:samples_per_second", "maximize"))


def main() -> None:
    """Read, resume, train epoch by epoch, save."""
    params = trainbox.hyperparameters(Params)
    data = read_samples(params)  # by channel: `train`, and `validation` if there is one
    with session(seed=params.seed, precision=params.precision, on_nan=params.on_nan) as run:
        net = build(data["train"], params)
        best = train(run, net, data, params)
    if run.rank == 0 and best.epoch >= 0:  # the weights, a program of them, the model card, learning curves
        final = declared(best.scores, params)
        save_network(net.cpu(), best, data["train"], params, complete=not run.stopped, final=final)


def build(train: Samples, params: Params) -> nn.Module:
    """What looks at the data, and behind it the network."""
    encoder, shape = train.encoder()  # standardizes numbers and pixels, embeds codes
    if params.model:
        return nn.Sequential(encoder, load_factory(params.model)(shape, train.outputs))
    body = perceptron if train.is_table else convolutions
    return nn.Sequential(encoder, body(shape, train.outputs, params))


def criterion(outputs: Tensor, targets: Tensor, params: Params) -> Tensor:
    """What training makes small: cross entropy, or the squared error."""
    if params.task == "classification":
        return nn.functional.cross_entropy(outputs.float(), targets)
    return nn.functional.mse_loss(outputs.float().squeeze(1), targets)


def train(run: Session, net: nn.Module, data: dict[str, Samples], params: Params) -> BestEpoch:
    """Train until all epochs are done, early stopping ends it, or the job is asked to stop; `net` is the best then."""
    checkpoints = prepare(run, net, data, params)  # a former model's weights; of what and how often to save
    model = run.wrap(net)
    optimizer = torch.optim.AdamW(model.parameters(), lr=params.learning_rate, weight_decay=params.weight_decay)
    batches = run.batches(len(data["train"]), batch_size=params.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate(params, batches.steps(params.epochs)))
    best = BestEpoch(net, has_validation="validation" in data, patience=params.patience)
    run.resume(model=net, optimizer=optimizer, schedule=schedule, batches=batches, best=best.state, **checkpoints)
    loader = data["train"].loader(batches, params)
    while batches.epoch < params.epochs and not best.ends_before(batches.epoch):
        losses = EpochScores(run)
        for batch in run.steps(loader):  # ends early, with `run.stopped`, on all ranks after the same step
            for inputs, targets in run.micro_batches(batch, params.accumulate):
                with run.autocast():
                    loss = criterion(model(inputs), targets, params)
                run.backward(loss)
                losses.add(loss, len(inputs))
            run.update(optimizer, clip=params.clip)
            schedule.step()
        scores = losses.total()
        if "validation" in data and not run.stopped:
            scores |= evaluate(run, net, data["validation"], criterion, params)
        if run.stopped:
            break
        if scores:  # a checkpoint of the last step of an epoch leaves nothing of it to be done
            trainbox.log(batches.epoch, declared(scores, params))
        best.update(batches.epoch, scores)
        batches.next_epoch()
    best.finish(run, batches.epoch)
    return best


def declared(scores: dict[str, float], params: Params) -> dict[trainbox.Metric, float]:
    """Scores by the metrics that they are values of."""
    known = {metric.name: metric for metric in metrics(params)}
    return {known[name]: value for name, value in scores.items()}


if __name__ == "__main__":
    main()
