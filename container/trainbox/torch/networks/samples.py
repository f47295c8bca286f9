"""The channels of a job as data sets in memory: rows of tables, or images."""

import functools
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

import trainbox
from trainbox.contract.model_card import FeatureType
from trainbox.data import Coding, ColumnSpec, Table, digest_coding, log_unread
from trainbox.errors import DataError
from trainbox.tabular.texts import by_name
from trainbox.torch.batches import Batches, Loader
from trainbox.torch.networks import encoders
from trainbox.torch.networks.architectures import export
from trainbox.torch.networks.former import load_former
from trainbox.torch.networks.hyperparameters import NetworkParams, shaping
from trainbox.torch.networks.images import Images, holds_images, read_images
from trainbox.torch.networks.rows import read_rows
from trainbox.torch.training import Session


class Samples(Dataset[Any]):
    """A channel in memory: a data set that is indexed a batch at a time.

    Attributes:
        inputs: (n, features) for rows, (n, channels, height, width) for images.
        targets: (n,): class numbers, or the values to predict.
        outputs: How many numbers a network returns for a sample.
        is_table: Whether the samples are rows.
        names: The feature names of rows.
        classes: The class names.
    """

    def __init__(self, source: Table | Images, params: NetworkParams) -> None:
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
        self.outputs = len(self.classes) if params.task == "classification" else 1
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

    def encoder(self) -> tuple[nn.Module, tuple[int, ...]]:
        """Make the first layer of a network, which takes raw samples, and return it with its output shape.

        It standardizes numbers and pixels with the statistics of these samples, and embeds codes.

        Raises:
            HyperparameterError: `categorical` names an unknown column.
        """
        if not self.is_table:
            return encoders.Pixels(self.inputs), tuple(self.inputs.shape[1:])
        counts = {name: len(found) for name, found in self.texts.items()}
        layer = encoders.Columns(self.inputs, self.names, tuple(self.codes), counts)
        return layer, (layer.width,)

    def loader(self, batches: Batches, params: NetworkParams) -> Loader:
        """Make the loader of the training batches; with `augment` it shifts images at random."""
        if params.augment:
            moved = functools.partial(shift, reach=params.augment)
            return batches.loader(self, workers=params.workers, augment=moved)
        return batches.loader(self, workers=params.workers, collate=tuple)


def read_samples(params: NetworkParams) -> dict[str, Samples]:
    """Read the channel `train`, and as `validation` the channel of that name, or else `test`.

    Raises:
        DataError: A channel cannot be read, or `patience` is set without a validation channel.
    """
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
    log_unread(job.channels, ["train", *held_out])
    for name in held_out:
        sources["validation"] = read(trainbox.channel(name), like=sources["train"])
    if params.patience and len(sources) == 1:
        raise DataError("patience needs a channel 'validation' or 'test'", hint="add one, or leave it out")
    return {name: Samples(source, params) for name, source in sources.items()}


def shift(sample: tuple[Tensor, Tensor], generator: torch.Generator, reach: int) -> tuple[Tensor, Tensor]:
    """Shift an image by up to `reach` pixels each way, at random."""
    pixels, target = sample
    top, left = torch.randint(0, 2 * reach + 1, (2,), generator=generator).tolist()
    height, width = pixels.shape[-2:]
    return functional.pad(pixels, (reach,) * 4)[..., top : top + height, left : left + width], target


def prepare(
    run: Session, net: nn.Module, data: Mapping[str, Samples], params: NetworkParams, *, is_own: bool | None = None
) -> dict[str, Any]:
    """Load the weights of the channel `model`, if there is one, and check that all ranks have the same data.

    All ranks call this, before `Session.wrap`.

    Args:
        run: The session.
        net: The network.
        data: The samples of each channel.
        params: The hyperparameters.
        is_own: Export the network once, so that one that cannot be exported fails now and not after the training. By
            default for a network that the hyperparameter `model` names.

    Returns:
        Options of `Session.resume`: the identity of the training, so that a checkpoint of another one is refused, and
        the seconds between checkpoints.

    Raises:
        DataError: The former model does not fit the network, or ranks have read different data.
    """
    train = data["train"]
    former = load_former(net, train.names, train.texts, train.coding.labels if train.is_table else train.classes)
    run.require_same("the weights of channel model", int(former or "0", 16))
    if run.rank == 0 and (params.model is not None if is_own is None else is_own):
        export(net, train.inputs)
    for name, part in data.items():
        run.require_same(f"the samples of channel {name}", int(part.digest, 16))
    samples = {f"channel {name}": f"{len(part)} samples, SHA-256 {part.digest}" for name, part in data.items()}
    identity = {**shaping(params), **samples, **({"channel model": f"SHA-256 {former}"} if former else {})}
    return {"identity": identity, "every_seconds": params.checkpoint_seconds}
