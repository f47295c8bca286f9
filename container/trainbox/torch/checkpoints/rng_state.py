"""RNG state: the exact states of all random generators of a rank, of torch (CPU and GPU), numpy and Python."""

import random
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from trainbox.errors import CheckpointError
from trainbox.log_lines import emit
from trainbox.torch.checkpoints.codec import unpack


def capture() -> dict[str, Any]:
    """Return the states of the generators of this process: numpy's only if it is loaded, CUDA's only if in use."""
    states: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if (numpy := sys.modules.get("numpy")) is not None:
        states["numpy"] = numpy.random.get_state()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore(states: Mapping[str, Any]) -> None:
    """Restore the states that `capture` returned.

    Raises:
        CheckpointError: `capture` does not return such states.
    """
    try:
        random.setstate(states["python"])
        torch.set_rng_state(states["torch"])
        if "numpy" in states:
            _numpy_random().set_state(states["numpy"])
        if "cuda" in states and torch.cuda.is_available():
            torch.cuda.set_rng_state(states["cuda"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the state of a random generator cannot be restored: {error}") from error


def resume(packed: Sequence[torch.Tensor], rank: int, ranks: int, seeds: tuple[int, ...]) -> None:
    """Restore the generators of this rank from a checkpoint, or seed them anew on another number of ranks.

    Args:
        packed: The states of each rank of the checkpoint (`codec.pack`), dtype uint8.
        rank: This rank.
        ranks: The number of ranks now.
        seeds: Numbers that tell this step of this training from others, to seed from with the rank.

    Raises:
        CheckpointError: A state cannot be restored.
    """
    if len(packed) == ranks:
        restore(unpack(packed[rank].numpy().tobytes()))
        return
    if rank == 0:
        emit(f"the checkpoint is from {len(packed)} ranks, now there are {ranks}: random generators are seeded anew")
    reseed(*seeds, rank)


def reseed(*parts: int) -> None:
    """Seed all generators from some numbers; other numbers give other seeds."""
    # A linear combination would give two ranks the same seed at different steps.
    seed = random.Random(repr(parts)).getrandbits(64)  # noqa: S311 - not for secrets; a string is hashed with SHA-512
    random.seed(seed)
    torch.manual_seed(seed)  # CUDA's, too
    if "numpy" in sys.modules:
        _numpy_random().seed(seed & 0xFFFFFFFF)


def _numpy_random() -> Any:  # noqa: ANN401 - not every environment has numpy
    return __import__("numpy").random
