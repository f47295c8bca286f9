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

import functools
import hashlib
import importlib
import io
import json
import math
import sys
import time
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

import trainbox
from trainbox.channels import Coding, ColumnSpec, Table, digest_coding, say_unread
from trainbox.contract.model_card import FeatureType, ModelCard, features_of
from trainbox.errors import CheckpointError, DataError, HyperparameterError, TrainingError
from trainbox.tabular.curves import save_curves
from trainbox.tabular.plots import draw_pictures
from trainbox.tabular.texts import by_name, explain
from trainbox.torch import (
    Batches,
    Columns,
    Images,
    Pixels,
    Session,
    holds_images,
    load_former,
    read_images,
    read_rows,
    save_files,
    session,
)

#: What a resumed job may change, because it does not shape the weights.
FREE = {"workers", "checkpoint-seconds", "patience", "on-nan", "missing", "delimiter", "unseen"}
#: Logged, but no part of the learning curves.
SPEED = "train:samples_per_second"

Share = Annotated[float, Meta(ge=0, lt=1)]
Width = Annotated[int, Meta(ge=1)]


class Params(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The hyperparameters; `-` and `_` are alike."""

    task: Annotated[Literal["classification", "regression"], Meta(description="what the label is")] = "classification"
    model: Annotated[str, Meta(description="the user's own, as module:factory")] | None = None
    epochs: Annotated[int, Meta(ge=1, description="passes over the training data")] = 10
    batch_size: Annotated[int, Meta(ge=1, description="samples of a step, on all processes together")] = 256
    accumulate: Annotated[int, Meta(ge=1, description="pieces of a process's batch, one after the other")] = 1
    learning_rate: Annotated[float, Meta(gt=0, description="of AdamW")] = 1e-3
    weight_decay: Annotated[float, Meta(ge=0, description="of AdamW")] = 0.01
    schedule: Annotated[Literal["constant", "cosine"], Meta(description="of the learning rate")] = "cosine"
    clip: Annotated[float, Meta(gt=0, description="largest norm of the gradients")] | None = 1.0
    hidden: Annotated[tuple[Width, ...], Meta(description="widths of the hidden layers, for tables")] = (128, 64)
    dropout: Annotated[Share, Meta(description="share of the activations left out")] = 0.1
    categorical: Annotated[tuple[str, ...], Meta(description="columns whose numbers are codes, or texts")] = ()
    unseen: Annotated[
        Literal["error", "missing"], Meta(description="what a text is that `train` has not, in rows to be judged")
    ] = "error"
    missing: Annotated[tuple[str, ...], Meta(description="texts of CSV that stand for a missing value")] = (
        ColumnSpec().missing
    )
    delimiter: Annotated[str, Meta(min_length=1, max_length=1, description="of CSV; else it is found out")] | None = (
        None
    )
    augment: Annotated[int, Meta(ge=0, description="pixels by which images are shifted at random")] = 0
    precision: Annotated[Literal["fp32", "bf16", "fp16"], Meta(description="of the computation")] = "fp32"
    patience: Annotated[int, Meta(ge=1, description="epochs without gain before it ends")] | None = None
    checkpoint_seconds: Annotated[float, Meta(ge=0, description="from one checkpoint to the next")] = 300.0
    workers: Annotated[int, Meta(ge=0, description="processes that load data; 0 is none beside the training")] = 0
    on_nan: Annotated[Literal["stop", "continue"], Meta(description="when the loss is not finite")] = "stop"
    seed: Annotated[int, Meta(ge=0, lt=2**31, description="of every random choice")] = 0


def metrics(params: Params) -> tuple[trainbox.Metric, ...]:
    """What this script logs: `trainbox metrics pytorch` prints it for SageMaker."""
    quality = trainbox.Metric("validation:rmse", "minimize")
    if params.task == "classification":
        quality = trainbox.Metric("validation:accuracy", "maximize")
    losses = [trainbox.Metric(f"{channel}:loss", "minimize") for channel in ("train", "validation")]
    return (*losses, quality, trainbox.Metric(SPEED, "maximize"))


def main() -> None:
    """Read, resume, train epoch by epoch, save."""
    params = trainbox.hyperparameters(Params)
    data = read_channels(params)
    with session(seed=params.seed, precision=params.precision, on_nan=params.on_nan) as run:
        net = build(data["train"], params)
        rows = data["train"]
        former = load_former(net, rows.names, rows.texts, rows.coding.labels if rows.is_table else rows.classes)
        run.require_same("the weights of channel model", int(former or "0", 16))
        if run.rank == 0 and params.model:
            export(net, data["train"])  # a model that cannot be exported must not be found out at the end
        best = train(run, net, data, params, former)
        complete = not run.stopped
    if run.rank == 0 and best["epoch"] >= 0:
        save(net.cpu(), best, data["train"], params, complete=complete)


# ---- data ----


class Samples(Dataset[Any]):
    """A channel in memory: inputs and targets, asked for a batch at a time."""

    def __init__(self, source: Table | Images, params: Params) -> None:
        if isinstance(source, Table):
            self.inputs, labels = torch.from_numpy(source.features), source.labels
            count = int(labels.max()) + 1 if params.task == "classification" else 0
            self.names, self.coding = source.feature_names, source.coding
            self.classes = source.coding.labels or tuple(map(str, range(count)))
        else:
            self.inputs, labels = torch.from_numpy(source.pixels), source.labels.astype(np.float32)
            self.names, self.coding, self.classes = (), Coding(), source.classes
        self.is_table = isinstance(source, Table)
        self.texts = by_name(self.coding, self.names)
        #: The columns that have embeddings.
        self.codes: dict[str, FeatureType] = {
            **dict.fromkeys(params.categorical, "code"),
            **dict.fromkeys(self.texts, "text"),
        }
        self.targets = torch.from_numpy(labels)
        if params.task == "classification":
            self.targets = self.targets.long()
        digest = hashlib.sha256(np.ascontiguousarray(self.inputs.numpy()).data)
        digest.update(self.targets.numpy().data)
        if self.coding:
            digest.update(digest_coding(self.coding).encode())
        self.digest = digest.hexdigest()[:15]

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return self.inputs[indices], self.targets[indices]


def read_channels(params: Params) -> dict[str, Samples]:
    """`train`, and `validation` where there is a channel of that name or `test`."""
    job = trainbox.current_job()
    first = trainbox.channel("train")
    read: Any = read_images
    if not holds_images(first):
        columns = ColumnSpec(
            missing=params.missing,
            delimiter=params.delimiter,
            texts=True,
            categorical=params.categorical,
            unseen=params.unseen,
        )
        is_class = params.task == "classification"
        read = functools.partial(read_rows, columns=columns, has_classes=is_class, codes=params.categorical)
    sources = {"train": read(first)}
    held_out = [name for name in ("validation", "test") if name in job.channels][:1]
    say_unread(job.channels, ["train", *held_out])
    for name in held_out:
        sources["validation"] = read(trainbox.channel(name), like=sources["train"])
    if params.patience and len(sources) == 1:
        raise DataError("patience needs a channel 'validation' or 'test'", hint="add one, or leave it out")
    return {name: Samples(source, params) for name, source in sources.items()}


def shift(sample: tuple[Tensor, Tensor], generator: torch.Generator, reach: int) -> tuple[Tensor, Tensor]:
    """An image moved by up to `reach` pixels each way, at random."""
    pixels, target = sample
    top, left = torch.randint(0, 2 * reach + 1, (2,), generator=generator).tolist()
    height, width = pixels.shape[-2:]
    return functional.pad(pixels, (reach,) * 4)[..., top : top + height, left : left + width], target


# ---- model ----


def build(train: Samples, params: Params) -> nn.Module:
    """What looks at the data, and behind it the network."""
    outputs = len(train.classes) if params.task == "classification" else 1
    texts = {name: len(found) for name, found in train.texts.items()}
    encoder: Any = Columns(train.inputs, train.names, tuple(train.codes), texts) if train.is_table else None
    encoder = encoder or Pixels(train.inputs)
    shape = (encoder.width,) if train.is_table else tuple(train.inputs.shape[1:])
    if params.model:
        return nn.Sequential(encoder, load_factory(params.model)(shape, outputs))
    body = perceptron(shape[0], outputs, params) if train.is_table else convolutions(shape[0], outputs, params)
    return nn.Sequential(encoder, body)


def load_factory(name: str) -> Any:  # noqa: ANN401 - the user's own
    """The function that `module:factory` names, in the source that came with the job."""
    job = trainbox.current_job()
    sys.path[:0] = [
        "",
        str(job.layout.code_dir),
        *(str(job.channels[name].path) for name in job.channels if name == "code"),
    ]
    module, _, factory = name.partition(":")
    try:
        return getattr(importlib.import_module(module), factory)
    except (ModuleNotFoundError, AttributeError) as error:
        raise HyperparameterError(f"model {name!r}: {error}", hint="module:factory, in the channel `code`") from error


def perceptron(width: int, outputs: int, params: Params) -> nn.Module:
    """Fully connected layers."""
    layers: list[nn.Module] = []
    for size in params.hidden:
        layers += [nn.Linear(width, size), nn.ReLU(), nn.Dropout(params.dropout)]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def convolutions(channels: int, outputs: int, params: Params) -> nn.Module:
    """Three convolutions; normalized within each image, so that an image's result depends on no other."""
    layers: list[nn.Module] = []
    for size, stride in ((32, 1), (64, 2), (128, 2)):
        layers += [nn.Conv2d(channels, size, 3, stride, 1, bias=False), nn.GroupNorm(8, size), nn.ReLU()]
        channels = size
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(params.dropout), nn.Linear(channels, outputs)
    )


# ---- training ----
def train(run: Session, net: nn.Module, data: dict[str, Samples], params: Params, former: str = "") -> dict[str, Any]:
    """Train epoch by epoch until all are done, early stopping ends it, or the job is asked to stop.

    Returns:
        Of the best epoch by validation loss, or of the last one without validation: epoch, scores, and the weights,
        which `net` has now.

    Raises:
        TrainingError: No epoch has a finite validation loss, so none is the best.
    """
    declared = {metric.name: metric for metric in metrics(params)}
    for name, part in data.items():
        run.require_same(f"the samples of channel {name}", int(part.digest, 16))
    model = run.wrap(net)
    optimizer = torch.optim.AdamW(model.parameters(), lr=params.learning_rate, weight_decay=params.weight_decay)
    batches = run.batches(len(data["train"]), batch_size=params.batch_size)
    total = batches.steps(params.epochs)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: decay(step, total, params))
    best: dict[str, Any] = {"epoch": -1, "scores": {}, "weights": copy_weights(net)}

    run.resume(
        model=net,
        optimizer=optimizer,
        schedule=schedule,
        batches=batches,
        best=best,
        every_seconds=params.checkpoint_seconds,
        identity=identify(params, data) | ({"channel model": f"SHA-256 {former}"} if former else {}),
    )
    loader = load(batches, data["train"], params)

    while batches.epoch < params.epochs and not has_waited(batches.epoch, best, params):
        scores = train_epoch(run, model, optimizer=optimizer, schedule=schedule, loader=loader, params=params)
        if run.stopped:
            break
        if "validation" in data:
            found = evaluate(run, net, data["validation"], params)
            if found is None:
                break
            scores |= found
        if scores:  # a checkpoint of the last step of an epoch leaves nothing of it to be done
            trainbox.log(batches.epoch, {declared[name]: value for name, value in scores.items()})
            best["history"] = [*best.get("history", []), [batches.epoch, curve_points(scores)]]
        if is_better(scores, best["scores"]):
            best |= {"epoch": batches.epoch, "scores": scores or best["scores"], "weights": copy_weights(net)}
        batches.next_epoch()
    if "validation" in data and best["epoch"] < 0 and not run.stopped:
        raise TrainingError(
            f"there is no best epoch: validation:loss was not a finite number in any of {batches.epoch} epochs",
            hint="check the rows of channel validation, or lower the learning rate",
        )
    if not run.stopped:
        save_last(run)
    net.load_state_dict(best["weights"])
    return best


def save_last(run: Session) -> None:
    """Who starts this job again gets the same model at once; a disk that is full by now must not cost the model."""
    try:
        run.save()
    except CheckpointError as error:
        run.say(f"{error}\nthe model is saved all the same")


def train_epoch(
    run: Session,
    model: nn.Module,
    *,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    loader: Iterable[tuple[Tensor, Tensor]],
    params: Params,
) -> dict[str, float]:
    """What is left of an epoch; no scores where a resumed job had all of it behind it."""
    began, seen, losses = time.monotonic(), 0, torch.zeros((), device=run.device)
    for batch in run.steps(loader):
        for inputs, targets in run.micro_batches(batch, params.accumulate):
            with run.autocast():
                loss = criterion(model(inputs), targets, params)
            run.backward(loss)
            losses += loss.detach() * len(inputs)
            seen += len(inputs)
        run.update(optimizer, clip=params.clip)
        schedule.step()
    # The mean time of the ranks: scores that differ between them would be kept for each in checkpoints.
    seconds = (time.monotonic() - began) / run.world_size
    loss_sum, count, mean = run.total(torch.tensor([losses.item(), seen, seconds], dtype=torch.float64)).tolist()
    if not count:
        return {}
    return {"train:loss": loss_sum / count, SPEED: count / mean}


def load(batches: Batches, samples: Samples, params: Params) -> Any:  # noqa: ANN401 - a data loader of any samples
    """The loader of training batches, with images shifted where that is asked for."""
    if params.augment:
        moved = functools.partial(shift, reach=params.augment)
        return batches.loader(samples, workers=params.workers, augment=moved)
    return batches.loader(samples, workers=params.workers, collate=tuple)


def decay(step: int, total: int, params: Params) -> float:
    """The factor of the learning rate: up to 1 within the first 3%, then along half a cosine to 0, or constant."""
    warm = max(1, total * 3 // 100)
    if params.schedule == "constant":
        return 1.0
    return min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / total)))


def criterion(outputs: Tensor, targets: Tensor, params: Params) -> Tensor:
    """What training makes small: cross entropy, or the squared error."""
    if params.task == "classification":
        return functional.cross_entropy(outputs.float(), targets)
    return functional.mse_loss(outputs.float().squeeze(1), targets)


def evaluate(run: Session, net: nn.Module, samples: Samples, params: Params) -> dict[str, float] | None:
    """The scores of a channel, each of its samples counted once on some rank; None if the job is to stop meanwhile."""
    size = 4 * run.world_size * math.ceil(params.batch_size / run.world_size)
    batches = run.batches(len(samples), batch_size=size, tail="keep", shuffle=False)
    # Of losses, of what is right or of squared errors, of samples.
    sums = torch.zeros(3, dtype=torch.float64, device=run.device)
    net.eval()
    with torch.no_grad():
        for inputs, targets in run.evaluation(batches.loader(samples, collate=tuple)):
            with run.autocast():
                outputs = net(inputs)
            good = (
                (outputs.argmax(1) == targets)
                if params.task == "classification"
                else (outputs.squeeze(1) - targets) ** 2
            )
            loss = criterion(outputs, targets, params) * len(inputs)
            sums += torch.stack([loss, good.sum(), torch.full_like(loss, len(inputs))])
    net.train()
    if run.stopped:
        return None
    losses, good_sum, count = run.total(sums).tolist()
    if params.task == "classification":
        return {"validation:loss": losses / count, "validation:accuracy": good_sum / count}
    return {"validation:loss": losses / count, "validation:rmse": math.sqrt(good_sum / count)}


def is_better(scores: dict[str, float], best: dict[str, float]) -> bool:
    """Whether the validation loss is the lowest so far; without validation the latest is the best."""
    return scores.get("validation:loss", 0.0) < best.get("validation:loss", math.inf) or "validation:loss" not in scores


def has_waited(epoch: int, best: dict[str, Any], params: Params) -> bool:
    """Whether early stopping ends the training before this epoch."""
    return params.patience is not None and epoch - 1 - best["epoch"] >= params.patience


def curve_points(scores: dict[str, float]) -> dict[str, float]:
    """What is drawn of the scores of an epoch."""
    return {name: value for name, value in scores.items() if name != SPEED and math.isfinite(value)}


def copy_weights(net: nn.Module) -> dict[str, Tensor]:
    """A copy that training does not change."""
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def identify(params: Params, data: dict[str, Samples]) -> dict[str, str]:
    """Everything that shapes the weights: a checkpoint of something else must not be continued."""
    values = msgspec.to_builtins(params)
    identity = {name: json.dumps(value) for name, value in values.items() if name not in FREE}
    return identity | {f"channel {name}": f"{len(part)} samples, SHA-256 {part.digest}" for name, part in data.items()}


# ---- result ----


def export(net: nn.Module, train: Samples) -> bytes:
    """The model as a program that needs no source: `torch.export.load("model.pt2").module()(inputs)`."""
    example = train.inputs[:2].float().clone()  # a slice would bring all that it was cut from along
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(net.eval(), (example,), dynamic_shapes=shapes)
    net.train()
    content = io.BytesIO()
    torch.export.save(program, content)
    return content.getvalue()


def save(net: nn.Module, best: dict[str, Any], train: Samples, params: Params, *, complete: bool) -> None:
    """`model.pt`, `model.pt2`, and what one must know to use them, the model card; in `output/data` the curves."""
    weights = io.BytesIO()
    torch.save(net.state_dict(), weights)
    classes = train.classes if params.task == "classification" else ()
    card = ModelCard(
        framework="pytorch",
        algorithm=params.model or ("perceptron" if train.is_table else "convolutions"),
        objective=params.task,
        features=features_of(train.names, train.codes if train.is_table else {}),
        shape=tuple(train.inputs.shape[1:]),
        classes=classes,
        categories=train.texts,
        unseen=params.unseen,
        missing=params.missing if train.is_table else (),
        delimiter=params.delimiter if train.is_table else None,
        complete=complete,
        iterations=best["epoch"] + 1,
        best_iteration=best["epoch"],
        metrics=best["scores"],
        hyperparameters=msgspec.to_builtins(params),
        versions={"trainbox": trainbox.__version__, "torch": str(torch.__version__), "python": sys.version.split()[0]},
        details={
            "parameters": sum(parameter.numel() for parameter in net.parameters()),
            "statistics": {name: value.flatten().tolist() for name, value in net.named_buffers()},
        },
    )
    files = {"model.pt": weights.getvalue(), "model.pt2": export(net, train)}
    save_files(files, card, train.inputs, program="model.pt2")
    curves = save_curves(best.get("history", []), unit="epochs", selected=best["epoch"])
    for text in explain(train.coding, train.names, params.unseen):
        print(f"pytorch_train: {text}", file=sys.stderr, flush=True)
    declared = {metric.name: metric for metric in metrics(params)}
    if best["scores"]:
        trainbox.final({declared[name]: value for name, value in best["scores"].items()})
    if complete:
        draw_pictures(curves)


if __name__ == "__main__":
    main()
