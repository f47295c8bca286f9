"""The hyperparameters of a network on tables or images. Does not import torch."""

import json
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from trainbox.contract.model_card import MISSING

#: What a resumed job may change, because it does not shape the weights.
FREE = frozenset({"workers", "checkpoint-seconds", "patience", "on-nan", "missing", "delimiter", "unseen"})

Share = Annotated[float, Meta(ge=0, lt=1)]
Width = Annotated[int, Meta(ge=1)]


class NetworkParams(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The hyperparameters of the bundled networks; a script derives its own class from this one."""

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
    missing: Annotated[tuple[str, ...], Meta(description="texts of CSV that stand for a missing value")] = MISSING
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


def shaping(params: NetworkParams) -> Mapping[str, str]:
    """The values that shape the weights, as JSON by name: a checkpoint of other values is refused."""
    values = msgspec.to_builtins(params)
    return {name: json.dumps(value) for name, value in values.items() if name not in FREE}
