"""The hyperparameters of a network on tables or images. Does not import torch."""

import json
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from trainbox.contract.model_card import MISSING

#: What a resumed job may change: it does not influence the weights.
FREE = frozenset({"workers", "checkpoint-seconds", "patience", "on-nan", "missing", "delimiter", "unseen"})

Share = Annotated[float, Meta(ge=0, lt=1)]
Width = Annotated[int, Meta(ge=1)]


class NetworkParams(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The hyperparameters of the bundled networks; a script derives its own class from this one."""

    task: Annotated[
        Literal["classification", "regression"], Meta(description="kind of the label: a class or a number")
    ] = "classification"
    model: Annotated[str, Meta(description="your own network, as module:factory")] | None = None
    epochs: Annotated[int, Meta(ge=1, description="passes over the training data")] = 10
    batch_size: Annotated[int, Meta(ge=1, description="samples in each step, summed over all ranks")] = 256
    accumulate: Annotated[int, Meta(ge=1, description="micro-batches into which each rank splits its batch")] = 1
    learning_rate: Annotated[float, Meta(gt=0, description="learning rate of AdamW")] = 1e-3
    weight_decay: Annotated[float, Meta(ge=0, description="weight decay of AdamW")] = 0.01
    schedule: Annotated[Literal["constant", "cosine"], Meta(description="schedule of the learning rate")] = "cosine"
    clip: Annotated[float, Meta(gt=0, description="largest norm of the gradients; null does not clip")] | None = 1.0
    hidden: Annotated[tuple[Width, ...], Meta(description="widths of the hidden layers, for tables")] = (128, 64)
    dropout: Annotated[Share, Meta(description="dropout rate")] = 0.1
    categorical: Annotated[tuple[str, ...], Meta(description="columns with categories, as integer codes or texts")] = ()
    unseen: Annotated[
        Literal["error", "missing"], Meta(description="what to do with a validation text that `train` does not have")
    ] = "error"
    missing: Annotated[tuple[str, ...], Meta(description="texts of CSV that mean a missing value")] = MISSING
    delimiter: Annotated[str, Meta(min_length=1, max_length=1, description="of CSV; detected by default")] | None = None
    augment: Annotated[int, Meta(ge=0, description="random shift of training images, in pixels")] = 0
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"], Meta(description="precision of the forward and backward pass")
    ] = "fp32"
    patience: Annotated[int, Meta(ge=1, description="epochs without improvement before early stopping")] | None = None
    checkpoint_seconds: Annotated[float, Meta(ge=0, description="seconds between two checkpoints")] = 300.0
    workers: Annotated[int, Meta(ge=0, description="loader processes per rank; 0 loads in the rank itself")] = 0
    on_nan: Annotated[Literal["stop", "continue"], Meta(description="what to do when the loss is not finite")] = "stop"
    seed: Annotated[int, Meta(ge=0, lt=2**31, description="seed of every random choice")] = 0


def shaping(params: NetworkParams) -> Mapping[str, str]:
    """The values that shape the weights, as JSON by name: a checkpoint of other values is refused."""
    values = msgspec.to_builtins(params)
    return {name: json.dumps(value) for name, value in values.items() if name not in FREE}
