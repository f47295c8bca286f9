"""The images of a channel become one array of pixels and one of labels, or an error that names the file.

Two forms:

* a folder for each class, with PNG or JPEG files in it (needs Pillow); the sorted names of the folders are the classes;
* arrays: `*.npz` files with `images` and `labels`, or pairs `NAME.npy` and `NAME-labels.npy`.

Pixels are n x height x width, or with a last axis of 1, 3 or 4 channels; all images of a channel have one size.
"""

import importlib
import importlib.util
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile

import msgspec
import numpy as np
import numpy.typing as npt

from trainbox.contract.text import printable
from trainbox.data.resource_errors import translate_resource_errors
from trainbox.errors import DataError
from trainbox.log_lines import emit

PICTURES = frozenset({".png", ".jpg", ".jpeg"})
ARRAYS = frozenset({".npz", ".npy"})
_LABELS = "-labels"
#: A network has an output for each class: a larger label is an identifier, or a damaged file.
_MOST_CLASSES = 1_000_000
_CHANNELS = (1, 3, 4)
_NUMBERS = "biuf"

# What numpy, zipfile and Pillow raise for a file that is torn or made to harm.
_DAMAGED = (
    OSError,
    ValueError,
    LookupError,
    ArithmeticError,
    EOFError,
    SyntaxError,
    RuntimeError,  # with NotImplementedError: encrypted, or packed in a way that zipfile does not know
    BadZipFile,
    TokenError,
    struct.error,
    zlib.error,
)

Array = npt.NDArray[Any]


class Images(msgspec.Struct, frozen=True, eq=False):
    """A channel in memory: `pixels` is n x channels x height x width, `labels` n whole numbers from 0."""

    pixels: Array
    labels: npt.NDArray[np.int64]
    #: The names of the classes; their numbers as text where they have no names.
    classes: tuple[str, ...]


def holds_images(channel_dir: Path) -> bool:
    """Whether a channel has files of images or arrays."""
    return any(path.suffix.lower() in PICTURES | ARRAYS for path in _files(channel_dir))


def read_images(channel_dir: Path, *, like: Images | None = None) -> Images:
    """Read every image of a channel.

    Args:
        channel_dir: The channel's directory.
        like: The images of another channel, whose size and classes these must have.

    Raises:
        DataError: With the file, and what to do.
    """
    files = [path for path in _files(channel_dir) if path.suffix.lower() in PICTURES | ARRAYS]
    pictures = [path for path in files if path.suffix.lower() in PICTURES]
    if not files:
        raise DataError(f"the channel {channel_dir} holds no images", hint="PNG, JPEG, .npz or .npy files")
    if pictures and len(pictures) < len(files):
        raise DataError(f"the channel {channel_dir} holds pictures and arrays", hint="one kind of files in a channel")
    pixels, labels, classes = _read_pictures(pictures, channel_dir, like) if pictures else _read_arrays(files, like)
    if like is not None:
        _compare(pixels, labels, classes, like, channel_dir)
    height, width = pixels.shape[2:]
    emit(
        f"{channel_dir.name}: {len(pixels):,} images of {height} x {width}, {len(classes)} classes, {len(files)} files"
    )
    return Images(pixels, labels, classes)


def _files(channel_dir: Path) -> list[Path]:
    found = [path for path in channel_dir.rglob("*") if path.is_file()]
    return sorted(
        path for path in found if not any(part.startswith(".") for part in path.relative_to(channel_dir).parts)
    )


# ---- a folder for each class ----


def _read_pictures(
    paths: Sequence[Path], channel_dir: Path, like: Images | None
) -> tuple[Array, npt.NDArray[np.int64], tuple[str, ...]]:
    if importlib.util.find_spec("PIL") is None:
        raise DataError(f"{paths[0]} needs Pillow, which is not installed", hint="add pillow to requirements.txt")
    loose = [path for path in paths if path.parent == channel_dir]
    if loose:
        raise DataError(f"{loose[0]} lies in no folder, so it has no class", hint="one folder for each class")
    names = [path.relative_to(channel_dir).parts[0] for path in paths]
    odd = [name for name in names if printable(name) != name]
    if odd:
        raise DataError(f"the folder {printable(odd[0])} has a name that is not UTF-8", hint="rename it: it is a class")
    classes = tuple(sorted(set(names))) if like is None else like.classes
    unknown = sorted(set(names) - set(classes))
    if unknown:
        raise DataError(f"{channel_dir.name}: the class {unknown[0]!r} does not occur in training")
    images = [_read_picture(path) for path in paths]
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            raise DataError(
                f"{path} is {_size(image)}, {paths[0]} is {_size(images[0])}", hint="bring them to one size"
            )
    return np.stack(images), np.array([classes.index(name) for name in names], np.int64), classes


def _read_picture(path: Path) -> Array:
    """Channels x height x width: 1 channel for shades of grey, else 3."""
    pillow = importlib.import_module("PIL.Image")  # only folders of pictures need it
    try:
        with translate_resource_errors(str(path)), pillow.open(path) as image:
            grey = image.mode in {"1", "L", "LA"}
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except (*_DAMAGED, pillow.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image: {error}", hint="is the file whole?") from error
    return pixels[None] if grey else np.moveaxis(pixels, -1, 0)


def _size(image: Array) -> str:
    channels, height, width = image.shape
    return f"{height} x {width} with {channels} channels"


# ---- arrays ----


def _read_arrays(paths: Sequence[Path], like: Images | None) -> tuple[Array, npt.NDArray[np.int64], tuple[str, ...]]:
    parts = [_read_array(path) for path in paths if not path.stem.endswith(_LABELS)]
    if not parts:
        raise DataError(f"{paths[0]} holds labels, and no file holds their images")
    shapes = sorted({images.shape[1:] for images, _ in parts})
    if len(shapes) > 1:
        raise DataError(f"the images of {paths[0].parent} are of the shapes {shapes}", hint="bring them to one size")
    labels = np.concatenate([labels for _, labels in parts])
    count = int(labels.max()) + 1
    classes = tuple(map(str, range(count))) if like is None else like.classes
    return np.concatenate([images for images, _ in parts]), labels, classes


def _read_array(path: Path) -> tuple[Array, npt.NDArray[np.int64]]:
    try:
        with translate_resource_errors(str(path)), path.open("rb") as file:  # numpy leaves a torn archive open
            if path.suffix.lower() == ".npz":
                archive = np.load(file, allow_pickle=False)
                images, labels = archive["images"], archive["labels"]
            else:
                images, labels = _load(path), _load(path.with_name(f"{path.stem}{_LABELS}.npy"))
    except KeyError as error:
        raise DataError(f"{path}: {error.args[0]}", hint="it must hold arrays called 'images' and 'labels'") from error
    except _DAMAGED as error:
        raise DataError(
            f"{path} cannot be read: {error}", hint="arrays of numbers, as numpy.save writes them"
        ) from error
    for array in (images, labels):
        if array.dtype.kind not in _NUMBERS:
            raise DataError(f"{path}: an array of the type {array.dtype}", hint="write numbers: whole, or floats")
    return _with_channels(images, path), _checked(labels, len(images), path)


def _load(path: Path) -> Array:
    """An array, whose header is not believed to more than the file holds: memory for it is what a mapping needs."""
    return np.array(np.load(path, mmap_mode="r", allow_pickle=False))


def _with_channels(images: Array, path: Path) -> Array:
    """From n x h x w or n x h x w x c to n x c x h x w."""
    if images.ndim == 3:  # noqa: PLR2004
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in _CHANNELS or not len(images):  # noqa: PLR2004
        raise DataError(
            f"{path}: images of the shape {images.shape}", hint="n x height x width, or with 1, 3 or 4 channels last"
        )
    if images.dtype != np.uint8 and not np.isfinite(images).all():
        raise DataError(f"{path}: a pixel is not a finite number")
    return np.ascontiguousarray(np.moveaxis(images, -1, 1))


def _checked(labels: Array, count: int, path: Path) -> npt.NDArray[np.int64]:
    if labels.shape != (count,):
        raise DataError(f"{path}: {count} images and labels of the shape {labels.shape}", hint="one label an image")
    whole = labels.astype(np.int64)
    wrong = (whole != labels) | (whole < 0)
    if wrong.any():
        place = int(wrong.argmax())
        raise DataError(
            f"{path}: label {labels[place]:g} of image {place} (counted from 0) is no class",
            hint="classes are whole numbers from 0",
        )
    if whole.max() >= _MOST_CLASSES:
        raise DataError(
            f"{path}: the label {whole.max()} exceeds the limit of {_MOST_CLASSES:,} classes",
            hint="number the classes from 0, without gaps",
        )
    return whole


def _compare(pixels: Array, labels: Array, classes: tuple[str, ...], like: Images, channel_dir: Path) -> None:
    if pixels.shape[1:] != like.pixels.shape[1:]:
        raise DataError(
            f"{channel_dir.name}: images of the shape {pixels.shape[1:]}, in training {like.pixels.shape[1:]}",
            hint="bring them to one size",
        )
    if labels.max() >= len(classes):
        raise DataError(f"{channel_dir.name}: the class {labels.max()} does not occur in training")
