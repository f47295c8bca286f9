"""Images and arrays that are torn, changed or made to harm are read, or refused with their name."""

import contextlib
import io
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trainbox.errors import DataError, ResourceError
from trainbox.torch.networks.images import read_images

PIXELS, LABELS = np.arange(48, dtype=np.uint8).reshape(3, 4, 4), np.array([0, 1, 0])


def npy(array: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def npz(images: Any = PIXELS, labels: Any = LABELS, *, compressed: bool = False) -> bytes:
    content = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(content, images=images, labels=labels)
    return content.getvalue()


def picture(form: str) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(content, form)
    return content.getvalue()


FILES = {
    "npy": ("a.npy", npy(PIXELS)),
    "npz": ("a.npz", npz()),
    "compressed npz": ("a.npz", npz(compressed=True)),
    "PNG": ("zero/a.png", picture("PNG")),
    "JPEG": ("zero/a.jpg", picture("JPEG")),
}


def channel(root: Path, name: str, content: bytes) -> Path:
    path = root / "train" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    if name == "a.npy":
        (root / "train/a-labels.npy").write_bytes(npy(LABELS))
    return root / "train"


@pytest.mark.parametrize(("name", "content"), FILES.values(), ids=FILES.keys())
def test_a_changed_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes) -> None:
    directory = channel(tmp_path_factory.mktemp("data"), name, content)
    assert len(read_images(directory).labels)

    @given(st.lists(st.tuples(st.integers(0, 9999), st.binary(max_size=4)), min_size=1, max_size=4), st.booleans())
    @settings(max_examples=200)
    def check(changes: list[tuple[int, bytes]], torn: bool) -> None:
        changed = bytearray(content)
        for place, with_what in changes:
            at = place % len(changed)
            changed[at : at + len(with_what)] = with_what
        (directory / name).write_bytes(changed[: changes[0][0] % len(changed)] if torn else changed)
        with contextlib.suppress(DataError):  # anything else fails the test
            read_images(directory)

    check()


def test_a_label_that_cannot_be_a_class_is_refused_before_classes_are_made(tmp_path: Path) -> None:
    directory = channel(tmp_path, "a.npz", npz(labels=np.array([0, 1, 10**12])))
    with pytest.raises(DataError, match=r"a\.npz: the label 1000000000000 exceeds the limit of 1,000,000 classes"):
        read_images(directory)


def test_a_shape_that_the_file_does_not_hold_is_refused(tmp_path: Path) -> None:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 28, 28), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 784
    with pytest.raises(DataError, match=r"a\.npy cannot be read"):
        read_images(channel(tmp_path, "a.npy", content))


@pytest.mark.parametrize("odd", [np.array(["a", "b", "c"]), np.array([1j, 2, 3]), np.zeros(3, "M8[s]")])
def test_an_array_of_no_numbers_is_refused(tmp_path: Path, odd: Any) -> None:
    with pytest.raises(DataError, match=r"a\.npz: an array of the type"):
        read_images(channel(tmp_path, "a.npz", npz(labels=odd)))
    with pytest.raises(DataError, match=r"a\.npz: an array of the type"):
        read_images(channel(tmp_path, "a.npz", npz(images=odd)))


def test_a_class_whose_name_is_not_utf8_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    directory = channel(tmp_path, os.fsdecode(b"cl\xffss/a.png"), picture("PNG"))
    with pytest.raises(DataError, match=r"the folder cl\\udcffss has a name that is not UTF-8"):
        read_images(directory)


def test_a_lack_of_memory_blames_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 7 GiB")

    directory = channel(tmp_path, "a.npz", npz())
    monkeypatch.setattr(np, "load", fail)
    with pytest.raises(ResourceError, match=r"a\.npz: not enough memory to read it: Unable to allocate 7 GiB"):
        read_images(directory)
