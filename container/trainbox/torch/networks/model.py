"""Save a trained network: its files, and the model card with predictions of the saved program."""

import hashlib
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import trainbox
from trainbox.contract.model_card import CARD_FILE, ModelCard, SampleRow, encode_card, features_of
from trainbox.model.curves import save_curves
from trainbox.model.plots import draw_pictures
from trainbox.model.samples import as_matrix, make_rows, sample_rows, thin_out
from trainbox.tabular.script import log_line
from trainbox.tabular.texts import note_on_texts
from trainbox.torch.networks.architectures import export
from trainbox.torch.networks.epochs import BestEpoch
from trainbox.torch.networks.hyperparameters import NetworkParams
from trainbox.torch.networks.samples import Samples

_MOST_IMAGES = 32


def save_network(
    net: nn.Module,
    best: BestEpoch,
    train: Samples,
    params: NetworkParams,
    *,
    complete: bool,
    final: Mapping[trainbox.Metric, float],
    algorithm: str = "",
) -> None:
    """Save the weights as `model.pt`, the exported network as `model.pt2`, the model card, and the learning curves.

    Pictures are drawn last, and only if the job was not stopped.

    Args:
        net: The network with the weights of the best epoch, on the CPU.
        best: The best epoch.
        train: The training samples.
        params: The hyperparameters.
        complete: Whether the training was finished.
        final: The scores of the best epoch, to be logged as the last ones; they may be empty.
        algorithm: The name of the network in the card; by default `model`, or the bundled network's name.

    Raises:
        OSError: A file cannot be written.
    """
    weights = io.BytesIO()
    torch.save(net.state_dict(), weights)
    card = ModelCard(
        framework="pytorch",
        algorithm=algorithm or params.model or ("perceptron" if train.is_table else "convolutions"),
        objective=params.task,
        features=features_of(train.names, train.codes if train.is_table else {}),
        shape=tuple(train.inputs.shape[1:]),
        classes=train.classes if params.task == "classification" else (),
        categories=train.texts,
        unseen=params.unseen,
        missing=params.missing if train.is_table else (),
        delimiter=params.delimiter if train.is_table else None,
        complete=complete,
        iterations=best.epoch + 1,
        best_iteration=best.epoch,
        metrics=best.scores,
        hyperparameters=msgspec.to_builtins(params),
        versions={"trainbox": trainbox.__version__, "torch": str(torch.__version__), "python": sys.version.split()[0]},
        details={
            "parameters": sum(parameter.numel() for parameter in net.parameters()),
            "statistics": {name: value.flatten().tolist() for name, value in net.named_buffers()},
        },
    )
    files = {"model.pt": weights.getvalue(), "model.pt2": export(net, train.inputs)}
    save_files(files, card, train.inputs, program="model.pt2")
    curves = save_curves(best.history, unit="epochs", selected=best.epoch)
    for text in note_on_texts(train.coding, train.names, params.unseen):
        log_line(text)
    if final:
        trainbox.final(final)
    if complete:
        draw_pictures(curves)


def save_files(files: Mapping[str, bytes], card: ModelCard, inputs: Tensor, *, program: str) -> None:
    """Write the files of a model, and its card, with predictions of the exported program after it is read again.

    Args:
        files: By name.
        card: What else one must know; it is written last.
        inputs: (n, features) of rows, or (n, channels, height, width) of images: what was learnt from.
        program: The name of the exported one.

    Raises:
        OSError: A file cannot be written.
    """
    written = {name: trainbox.save(name, content) for name, content in files.items()}
    card = msgspec.structs.replace(
        card, files={name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in written.items()}
    )
    samples = _samples(written[program], card, inputs)
    trainbox.save(CARD_FILE, encode_card(msgspec.structs.replace(card, samples=samples)))


def _samples(path: Path, card: ModelCard, inputs: Tensor) -> tuple[SampleRow, ...]:
    images = inputs.ndim > 2  # noqa: PLR2004 - rows have two dimensions
    columns = _pixels(inputs) if images else inputs.numpy()
    made = make_rows(thin_out(columns), codes=card.features.coded(), zeros=False)
    rows: Any = torch.from_numpy(as_matrix(made, columns.shape[1], absent=np.nan, sparse=False))
    if images:
        rows = rows[:, :, None, None].expand(-1, -1, *inputs.shape[2:]).contiguous()
    module: Any = torch.export.load(path).module()
    with torch.no_grad():
        said: npt.NDArray[Any] = module(rows).float().numpy()
    return sample_rows(made, said, card)


def _pixels(images: Tensor) -> npt.NDArray[Any]:
    """Of some images what the pixels of each channel have: (pixels, channels)."""
    some = images[:: max(1, len(images) // _MOST_IMAGES)]
    found: npt.NDArray[Any] = some.transpose(0, 1).flatten(1).T.float().numpy()
    return found
