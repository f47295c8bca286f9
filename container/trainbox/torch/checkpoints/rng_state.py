"""The states of all random generators of a rank, to the bit: torch's on the CPU and the GPU, numpy's, Python's."""

import random
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from trainbox.errors import CheckpointError
from trainbox.say import say
from trainbox.torch.checkpoints.codec import unpack


def capture() -> dict[str, Any]:
    """The states of the generators that this process has: numpy's only if it is loaded, CUDA's only if in use."""
    states: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if (numpy := sys.modules.get("numpy")) is not None:
        states["numpy"] = numpy.random.get_state()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore(states: Mapping[str, Any]) -> None:
    """Put the generators into the states that `capture` gave.

    Raises:
        CheckpointError: They are no such states.
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
    """Go on with the generators of a checkpoint.

    Args:
        packed: The states of each of its ranks (`codec.pack`), type uint8.
        rank: This rank.
        ranks: How many there are now. If there were more or fewer, all are seeded anew, from `seeds` and the rank.
        seeds: Whatever tells this moment of this training from others.

    Raises:
        CheckpointError: A state cannot be restored.
    """
    if len(packed) == ranks:
        restore(unpack(packed[rank].numpy().tobytes()))
        return
    if rank == 0:
        say(f"the checkpoint is that of {len(packed)} ranks, now {ranks}: random generators are seeded anew")
    reseed(*seeds, rank)


def reseed(*parts: int) -> None:
    """Seed all generators from some numbers, differently for any other numbers."""
    # A linear mix of them would give two ranks one seed at different steps.
    seed = random.Random(repr(parts)).getrandbits(64)  # noqa: S311 - not for secrets; a string is hashed with SHA-512
    random.seed(seed)
    torch.manual_seed(seed)  # CUDA's, too
    if "numpy" in sys.modules:
        _numpy_random().seed(seed & 0xFFFFFFFF)


def _numpy_random() -> Any:  # noqa: ANN401 - numpy is not there in every environment
    return __import__("numpy").random
