"""What a finished network leaves: its files, and the card with what it says once it is read again."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import trainbox
from trainbox.contract.model_card import CARD_FILE, ModelCard, SampleRow, encode_card
from trainbox.tabular.samples import as_matrix, make_rows, sample_rows, thin_out

_MOST_IMAGES = 32


def save_files(files: Mapping[str, bytes], card: ModelCard, inputs: Tensor, *, program: str) -> None:
    """Write the files of a model, and its card, with what the program among them says once it is read again.

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
