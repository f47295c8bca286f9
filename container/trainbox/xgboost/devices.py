"""Where a process trains: on the processor, or on the GPU of its place."""

from trainbox.errors import HyperparameterError


def choose_device(asked: str, *, local_rank: int, gpus: int, has_cuda: bool) -> str:
    """The device of one process; several processes of a host have a GPU each.

    XGBoost without a GPU trains on the processor after a warning, at the price of a GPU instance.

    Args:
        asked: `cpu`, `cuda` or `cuda:N`.
        local_rank: The place of this process on its host.
        gpus: How many GPUs the host has.
        has_cuda: Whether this XGBoost was built for GPUs.

    Raises:
        HyperparameterError: There is no such GPU, or this XGBoost cannot use any.
    """
    if asked == "cpu":
        return asked
    if not has_cuda:
        raise HyperparameterError(
            f"device is {asked}, and the XGBoost of this image was built without CUDA",
            hint="device=cpu, or an image of VARIANT=gpu",
        )
    number = int(asked.partition(":")[2] or local_rank)
    if number >= gpus:
        raise HyperparameterError(
            f"device is {asked}, and process {local_rank} of this host finds {gpus} GPU(s), no cuda:{number}",
            hint="device=cpu, an instance with more GPUs, or fewer processes_per_host",
        )
    return f"cuda:{number}"
