"""PyTorch: a session for training scripts, its batches, and what reads and encodes data for the bundled one."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainbox.torch.batches import Batches
    from trainbox.torch.encoders import Columns, Pixels
    from trainbox.torch.former import load_former
    from trainbox.torch.images import Images, holds_images, read_images
    from trainbox.torch.model import save_files
    from trainbox.torch.rows import read_rows
    from trainbox.torch.training import Session, session

__all__ = [
    "Batches",
    "Columns",
    "Images",
    "Pixels",
    "Session",
    "holds_images",
    "load_former",
    "read_images",
    "read_rows",
    "save_files",
    "session",
]

_HOMES = {
    "Batches": "batches",
    "Columns": "encoders",
    "Images": "images",
    "Pixels": "encoders",
    "Session": "training",
    "holds_images": "images",
    "load_former": "former",
    "read_images": "images",
    "save_files": "model",
    "read_rows": "rows",
    "session": "training",
}


def __getattr__(name: str) -> object:
    """Load a public name when it is first asked for: the agent and the writer of checkpoints do without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'trainbox.torch' has no attribute {name!r}")
    return getattr(import_module(f"trainbox.torch.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
