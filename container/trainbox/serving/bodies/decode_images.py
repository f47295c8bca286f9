"""Images of a request: pixels as training has them, channels x height x width."""

import importlib
import importlib.util
import io
import struct
import zlib
from http import HTTPStatus
from typing import Any

import numpy as np
import numpy.typing as npt

from trainbox.serving.bodies.decode_tables import as_floats, read_npy
from trainbox.serving.bodies.features import FeaturePlan, Floats, check_size
from trainbox.serving.bodies.request_errors import RequestError

#: What Pillow raises for a file that is torn or made to harm.
_DAMAGED = (
    OSError,
    ValueError,
    LookupError,
    ArithmeticError,
    EOFError,
    SyntaxError,
    RuntimeError,
    struct.error,
    zlib.error,
)
_FORMATS = ("PNG", "JPEG")
_IMAGE, _IMAGES = 3, 4


def decode_image(body: bytes, plan: FeaturePlan) -> Floats:
    """Return one image, a PNG or JPEG file: (1, channels, height, width).

    Raises:
        RequestError: It cannot be read, or has another size than the images of training.
    """
    if importlib.util.find_spec("PIL") is None:
        raise RequestError(
            "PNG and JPEG need Pillow, which is not installed",
            status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            hint="add pillow to requirements.txt, or send application/x-npy",
        )
    pillow = importlib.import_module("PIL.Image")
    channels, height, width = plan.shape
    try:
        with pillow.open(io.BytesIO(body), formats=_FORMATS) as image:
            # The size is in the header: nothing is decompressed for an image of another size.
            if image.size != (width, height):
                raise _wrong_shape(f"{image.size[1]} x {image.size[0]}", plan)
            is_grey = image.mode in {"1", "L", "LA"}
            if is_grey != (channels == 1):
                raise _wrong_shape(f"{'grey' if is_grey else 'of colours'}", plan)
            pixels = np.asarray(image.convert("L" if is_grey else "RGB"))
    except (*_DAMAGED, pillow.DecompressionBombError) as error:
        raise RequestError(
            f"the body cannot be read as an image: {error}", hint="send a whole PNG or JPEG file"
        ) from error
    return _placed(pixels[None] if not is_grey else pixels[None, :, :, None], plan)


def decode_image_array(body: bytes, plan: FeaturePlan) -> Floats:
    """Return the images of an array: one or several, with the channels last as in training, or first.

    Raises:
        RequestError: It is no array of numbers, or its images have another size.
    """
    array = read_npy(body)
    channels, height, width = plan.shape
    if array.ndim == _IMAGE and array.shape in {(height, width, channels), plan.shape}:
        array = array[None]
    elif channels == 1 and array.shape[-2:] == (height, width) and array.ndim < _IMAGES:
        array = array.reshape(-1, height, width, 1)
    if array.shape[1:] == (height, width, channels):
        return _placed(array, plan)
    if array.shape[1:] == plan.shape:
        return _placed(np.moveaxis(array, 1, -1), plan)
    raise _wrong_shape(f"of the shape {array.shape}", plan)


def _placed(images: npt.NDArray[Any], plan: FeaturePlan) -> Floats:
    """Return images with the channels first, from those with the channels last."""
    check_size(plan, len(images), int(np.prod(plan.shape)))
    pixels = as_floats(np.moveaxis(images, -1, 1))
    finite = np.isfinite(pixels).reshape(len(pixels), -1).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite)) + 1
        raise RequestError(f"image {row}: a pixel is not a finite number", hint="send finite numbers", row=row)
    return pixels


def _wrong_shape(found: str, plan: FeaturePlan) -> RequestError:
    channels, height, width = plan.shape
    colours = "one channel (grey)" if channels == 1 else f"{channels} channels"
    return RequestError(
        f"the image is {found}; the model takes {height} x {width} with {colours}",
        hint="bring it to the size of the images of training",
    )
