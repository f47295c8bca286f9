"""The weights of a former model from the channel `model`, from which training starts."""

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from io import BytesIO

import torch
from torch import Tensor, nn

from trainbox.contract.text import short
from trainbox.errors import DataError
from trainbox.former import MODEL_CHANNEL, check_columns, find_file, former_model
from trainbox.log_lines import emit
from trainbox.torch.checkpoints.pickles import DAMAGED, names_in

_FILE = "model.pt"
_SOURCE = f"{_FILE} of the channel {MODEL_CHANNEL}"
#: Of a SHA-256: 60 bits, which a session compares between ranks.
_DIGITS = 15


def load_former(
    net: nn.Module,
    columns: Sequence[str] = (),
    texts: Mapping[str, Sequence[str]] | None = None,
    classes: Sequence[str] = (),
) -> str:
    """Load the weights of a former model into a network, before `wrap`; they include statistics of its data.

    Args:
        net: The network, on the processor.
        columns: Those of a table, which must be the former model's.
        texts: By column, the texts that its numbers stand for.
        classes: Of labels that are texts, and of images, likewise.

    Returns:
        A digest of the file in hexadecimal digits; empty where the job has no channel `model`.

    Raises:
        DataError: The file asks for code, is damaged, or has other weights than the network.
    """
    directory = former_model()
    if directory is None:
        return ""
    content = find_file(directory, _FILE).read_bytes()
    weights = read_weights(content)
    if columns or classes:
        check_columns(directory, columns, texts, classes)
    _compare(weights, net.state_dict())
    net.load_state_dict(weights)
    emit(f"channel {MODEL_CHANNEL}: training starts from {len(weights)} tensors of a former model")
    return hashlib.sha256(content).hexdigest()[:_DIGITS]


def read_weights(content: bytes) -> dict[str, Tensor]:
    """Tensors by name, as `torch.save(model.state_dict(), …)` writes them; nothing in the file is run.

    Raises:
        DataError: It asks for code, is damaged, or holds something else.
    """
    try:
        found = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        listed = ", ".join(map(short, names_in(content)[:5])) or "more than plain data"
        raise DataError(
            f"{_SOURCE} asks for {listed}, which no weights need: it is not loaded, and nothing of it has run",
            hint="save the weights alone: torch.save(model.state_dict(), 'model.pt')",
        ) from None
    except (*DAMAGED, RuntimeError, OSError) as error:
        raise DataError(f"{_SOURCE} cannot be read: {short(str(error), 200)}", hint="is the file whole?") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise DataError(
            f"{_SOURCE} holds no weights by name", hint="save them with torch.save(model.state_dict(), 'model.pt')"
        )
    return {str(name): value for name, value in found.items()}


def _compare(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Refuse the weights of another network.

    Raises:
        DataError: Names, shapes or types differ; the first few are named.
    """
    differing = [f"{name} is missing" for name in expected if name not in weights]
    differing += [f"{name} is unknown" for name in weights if name not in expected]
    for name, value in expected.items():
        found = weights.get(name)
        if found is not None and (found.shape, found.dtype) != (value.shape, value.dtype):
            differing.append(f"{name} is {_shape(found)}, expected {_shape(value)}")
    if differing:
        most = 5
        more = f" and {len(differing) - most} more" if len(differing) > most else ""
        raise DataError(
            f"{_SOURCE} is of another network: {'; '.join(differing[:most])}{more}",
            hint="take the columns, classes and layers (hidden, model, categorical) of the former job",
        )


def _shape(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
