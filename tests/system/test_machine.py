"""Which GPUs a program may use: those of device nodes, and of these those that CUDA is told to show."""

from pathlib import Path

import pytest

from trainbox.system.machine import find_gpus, read_machine


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        (None, ("0", "1", "2")),
        ("2, 0", ("2", "0")),
        ("GPU-8932f937,1", ("GPU-8932f937", "1")),
        ("0,3,1", ("0",)),
        ("-1", ()),
        ("", ()),
        ("NoDevFiles", ()),
    ],
)
def test_gpus_are_counted_up_to_the_first_that_is_not_there(
    listed: str | None, found: tuple[str, ...], tmp_path: Path
) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert find_gpus(listed, tmp_path) == found
    assert read_machine(tmp_path, listed_gpus=listed).gpus == len(found)


def test_where_there_is_no_gpu_none_is_found(tmp_path: Path) -> None:
    assert find_gpus("0,GPU-8932f937", tmp_path) == ()
    assert find_gpus(None, tmp_path / "nowhere") == ()
