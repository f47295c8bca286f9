"""A job that asks for a GPU trains on one, or not at all."""

import pytest

from trainbox.errors import HyperparameterError
from trainbox.xgboost.training import choose_device


@pytest.mark.parametrize(
    ("asked", "local_rank", "expected"),
    [("cpu", 3, "cpu"), ("cuda", 0, "cuda:0"), ("cuda", 3, "cuda:3"), ("cuda:1", 0, "cuda:1")],
)
def test_each_process_has_the_gpu_of_its_place(asked: str, local_rank: int, expected: str) -> None:
    assert choose_device(asked, local_rank=local_rank, gpus=4, has_cuda=True) == expected


@pytest.mark.parametrize(
    ("asked", "local_rank", "gpus", "has_cuda", "said"),
    [
        ("cuda", 0, 4, False, "built without CUDA"),
        ("cuda", 0, 0, True, "finds 0 GPU"),
        ("cuda", 4, 4, True, "no cuda:4"),
        ("cuda:7", 0, 4, True, "no cuda:7"),
    ],
)
def test_a_gpu_that_is_not_there_is_an_error_and_not_a_slow_job(
    asked: str, local_rank: int, gpus: int, has_cuda: bool, said: str
) -> None:
    with pytest.raises(HyperparameterError, match=said):
        choose_device(asked, local_rank=local_rank, gpus=gpus, has_cuda=has_cuda)
