"""What of a model cannot be read is named, with why and what to do."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from trainbox.contract.model_file import read_model_file, unreadable
from trainbox.errors import DataError


def make_link(path: Path) -> None:
    path.with_name("elsewhere").write_bytes(b"x")
    path.symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda _path: None, "cannot be read: No such file or directory"),
        (Path.mkdir, "cannot be read: is no regular file"),
        (make_link, "cannot be read: Too many levels of symbolic links"),
        (Path.touch, "is empty"),
    ],
)
def test_a_file_that_is_none_is_named_and_the_model_is_to_be_copied_again(
    make: Callable[[Path], object], why: str, tmp_path: Path
) -> None:
    make(tmp_path / "model.skops")
    with pytest.raises(DataError) as caught:
        read_model_file(tmp_path, "model.skops")
    assert caught.value.message == f"{tmp_path}/model.skops {why}"
    assert caught.value.hint == "copy the model again, or unpack its model.tar.gz again"


def test_a_disk_that_fails_and_a_file_that_is_closed_have_hints_of_their_own() -> None:
    error = unreadable(Path("m/xgboost-model"), OSError(errno.EIO, os.strerror(errno.EIO)))
    assert (error.message, error.hint) == (
        "m/xgboost-model cannot be read: Input/output error",
        "copy the model again, or unpack its model.tar.gz again",
    )
    error = unreadable(Path("m/xgboost-model"), OSError(errno.EACCES, os.strerror(errno.EACCES)))
    assert error.hint == f"allow uid {os.geteuid()} to use it"


def test_what_is_there_is_read_up_to_a_limit(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"abc")
    assert (read_model_file(tmp_path, "model.onnx"), read_model_file(tmp_path, "model.onnx", 1)) == (b"abc", b"a")
