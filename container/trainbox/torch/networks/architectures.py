"""The bundled networks, the user's own by name, the learning rate schedule, and the export of a network."""

import importlib
import io
import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import trainbox
from trainbox.errors import HyperparameterError
from trainbox.torch.networks.hyperparameters import NetworkParams


def perceptron(shape: tuple[int, ...], outputs: int, params: NetworkParams) -> nn.Module:
    """Make a multilayer perceptron.

    Args:
        shape: The shape of an input: one number.
        outputs: The number of outputs.
        params: `hidden` and `dropout` are used.
    """
    layers: list[nn.Module] = []
    (width,) = shape
    for size in params.hidden:
        layers += [nn.Linear(width, size), nn.ReLU(), nn.Dropout(params.dropout)]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def convolutions(shape: tuple[int, ...], outputs: int, params: NetworkParams) -> nn.Module:
    """Make a small convolutional network; it normalizes within each image, so an output depends on one image only.

    Args:
        shape: The shape of an image, channels first.
        outputs: The number of outputs.
        params: `dropout` is used.
    """
    layers: list[nn.Module] = []
    channels = shape[0]
    for size, stride in ((32, 1), (64, 2), (128, 2)):
        layers += [nn.Conv2d(channels, size, 3, stride, 1, bias=False), nn.GroupNorm(8, size), nn.ReLU()]
        channels = size
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(params.dropout), nn.Linear(channels, outputs)
    )


def load_factory(name: str) -> Any:  # noqa: ANN401 - the user's own
    """Import the function `module:factory` from the source of the job.

    Raises:
        HyperparameterError: There is no such module, or it has no such function.
    """
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


def learning_rate(params: NetworkParams, total: int) -> Callable[[int], float]:
    """Return the factor of the learning rate by step, for `torch.optim.lr_scheduler.LambdaLR`.

    `cosine` warms up to 1 during the first 3% of the steps, then decays along half a cosine to 0.

    Args:
        params: `schedule` is used.
        total: The number of steps.
    """
    warm = max(1, total * 3 // 100)

    def factor(step: int) -> float:
        if params.schedule == "constant":
            return 1.0
        return min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / total)))

    return factor


def export(net: nn.Module, inputs: Tensor) -> bytes:
    """Export a network as a program that needs no source: `torch.export.load("model.pt2").module()(inputs)`.

    Args:
        net: The network, on the CPU.
        inputs: At least two samples.
    """
    example = inputs[:2].float().clone()  # a slice would bring all that it was cut from along
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(net.eval(), (example,), dynamic_shapes=shapes)
    net.train()
    content = io.BytesIO()
    torch.export.save(program, content)
    return content.getvalue()
