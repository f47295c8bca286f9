"""Images of a request: the pixels that training has of the same files."""

import io
import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.serving.test_answer import npy
from tests.support.serving import Linear, ask, service
from trainbox.serving.bodies.decode import decode
from trainbox.serving.bodies.media_types import read_input_type

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4)
COLOURS = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)


def network(*shape: int) -> Linear:
    names = tuple(f"f{place}" for place in range(shape[0]))
    return Linear(names=names, framework="pytorch", algorithm="convolutions", objective="classification", shape=shape)


def picture(pixels: Any, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


#: A grey picture of 20,000 by 20,000 pixels, whose rows nobody should begin to read.
BOMB = (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0))
    + chunk(b"IDAT", zlib.compress(bytes(20_001)))
    + chunk(b"IEND", b"")
)


@pytest.mark.parametrize("content_type", ["image/png", "application/x-image"])
@pytest.mark.parametrize("pixels", [GREY, COLOURS])
def test_a_picture_has_its_pixels_with_the_channels_first(content_type: str, pixels: Any) -> None:
    whole = pixels.reshape(3, 4, -1)
    plan = service(network(whole.shape[-1], 3, 4)).plan
    found = decode(picture(pixels), read_input_type(content_type, takes_images=True), plan).rows
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, np.moveaxis(whole, -1, 0)[None])


def test_a_jpeg_is_read_too() -> None:
    found = ask(picture(np.full((3, 4), 7, np.uint8), "JPEG"), "image/jpeg", "text/csv", model=network(1, 3, 4))
    assert found.status == 200


@pytest.mark.parametrize(
    "array",
    [
        COLOURS,
        COLOURS[None],
        np.moveaxis(COLOURS, -1, 0),
        np.moveaxis(COLOURS, -1, 0)[None],
        COLOURS.astype(np.float64),
        np.asfortranarray(COLOURS),
    ],
)
def test_arrays_have_the_channels_last_or_first(array: Any) -> None:
    plan = service(network(3, 3, 4)).plan
    found = decode(npy(array), read_input_type("application/x-npy", takes_images=True), plan).rows
    np.testing.assert_array_equal(found, np.moveaxis(COLOURS, -1, 0)[None])


def test_grey_arrays_need_no_channel() -> None:
    plan = service(network(1, 3, 4)).plan
    kind = read_input_type("application/x-npy", takes_images=True)
    for array in (GREY, np.stack([GREY, GREY]), GREY[..., None], GREY[None, None]):
        found = decode(npy(array), kind, plan).rows
        assert found.shape == (2 if array.shape == (2, 3, 4) else 1, 1, 3, 4)
        np.testing.assert_array_equal(found[0, 0], GREY)


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("image/png", picture(GREY), 400),
        ("image/png", picture(COLOURS[:2]), 400),
        ("image/png", picture(COLOURS)[:40], 400),
        ("image/png", b"GIF89a", 400),
        ("image/png", BOMB, 400),
        ("application/x-npy", npy(GREY), 400),
        ("application/x-npy", npy(np.full((3, 4, 3), np.inf)), 400),
        ("text/csv", b"1,2,3", 415),
        ("", b"1,2,3", 415),
    ],
)
def test_other_bodies_are_refused(content_type: str, body: bytes, status: int) -> None:
    found = ask(body, content_type, model=network(3, 3, 4))
    assert found.status == status
    assert json.loads(found.body)["hint"]
