"""What kind of model a file is, by its name and its first bytes."""

import re
import zipfile
from pathlib import Path
from typing import Literal, TypeAlias

from trainbox import files
from trainbox.contract.model_file import unreadable

#: `other` is no model that can be served.
Form: TypeAlias = Literal[
    "xgboost", "booster-pickle", "skops", "pickle", "torch-export", "torchscript", "onnx", "other"
]

_HEAD_BYTES = 512
_LEARNER = re.compile(rb'\s*\{\s*"(?:learner|version|Config)"')
_SUFFIXES: dict[str, Form] = {
    ".skops": "skops",
    ".joblib": "pickle",
    ".pkl": "pickle",
    ".pickle": "pickle",
    ".pt2": "torch-export",
    ".onnx": "onnx",
}
_PICKLE = b"\x80"


def form_of(path: Path) -> Form:
    """Return what kind of model a regular file is; nothing of it is loaded.

    Args:
        path: The file.

    Raises:
        DataError: It cannot be read.
    """
    suffix = path.suffix.lower()
    if re.fullmatch(r"xgboost-model(-\d+)?", path.name) or suffix in {".ubj", ".bst"}:
        return "booster-pickle" if _head(path).startswith(_PICKLE) else "xgboost"
    if suffix == ".json":
        head = _head(path)
        return "xgboost" if _LEARNER.match(head) or head.startswith(b"{L") else "other"
    if suffix in {".pt", ".pth"}:
        return "torchscript" if _head(path) and _is_torchscript(path) else "other"
    form = _SUFFIXES.get(suffix, "other")
    if form == "pickle" and b"xgboost.core" in (head := _head(path)) and b"Booster" in head:
        return "booster-pickle"
    return form


def _head(path: Path) -> bytes:
    try:
        return files.read_regular(path, _HEAD_BYTES)
    except OSError as error:
        raise unreadable(path, error) from error


def _is_torchscript(path: Path) -> bool:
    """Return whether it is a program; a file of weights alone has no code."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False
    return any(name.endswith("/constants.pkl") for name in names)
