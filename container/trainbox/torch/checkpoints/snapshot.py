"""Where a state is copied to while the training waits: memory made once, which the writer sees as well."""

import mmap
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from trainbox.errors import CheckpointError
from trainbox.torch.checkpoints.codec import Entry, flat

_PAGE = mmap.PAGESIZE

#: A tensor is cut at this many bytes. Not at less: glibc writes past the caches, which is 1.6 times as fast, but only
#: from some size on, by default three quarters of the last cache (measured: 6.9 GB/s at 128 MiB, 10.6 at 256).
_PIECE_BYTES = 256 << 20
#: Less than this for each thread is copied sooner than a thread starts.
_BYTES_OF_A_THREAD = 16 << 20

#: Where to copy to, and what.
_Piece = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


class Buffer:
    """Anonymous memory with a descriptor (memfd): not in /dev/shm, of which a container has 64 MB.

    All pages are there when it is made: the first copy is as fast as the tenth. For CUDA it is pinned.
    """

    def __init__(self, size: int, *, pinned: bool) -> None:
        self.size = -(-size // _PAGE) * _PAGE
        self.descriptor = os.memfd_create("trainbox-checkpoint")
        try:
            os.posix_fallocate(self.descriptor, 0, self.size)
            self._memory = mmap.mmap(self.descriptor, self.size)
        except OSError as error:
            os.close(self.descriptor)
            raise CheckpointError(
                f"no {self.size:,} bytes of memory to copy the state into: {error.strerror}",
                hint="take an instance with more memory: a checkpoint wants the size of the state once more",
            ) from error
        # A data loader's worker that is forked has no use for it.
        self._memory.madvise(mmap.MADV_DONTFORK)
        self.bytes: torch.Tensor = torch.frombuffer(self._memory, dtype=torch.uint8)
        self.bytes[::_PAGE] = 0
        self._pinned = pinned and _pin(self.bytes)

    def copy(self, tensors: Sequence[torch.Tensor], table: Sequence[Entry]) -> None:
        """Copy tensors to the places that the table gives them; when this returns, they may change."""
        waiting: dict[torch.device, None] = {}
        in_memory: list[_Piece] = []
        for tensor, entry in zip(tensors, table, strict=True):
            if not entry.size:
                continue
            place = self.bytes[entry.offset : entry.offset + entry.size]
            if tensor.is_cuda:
                # Made plain on the GPU: where a conjugate is copied, torch turns the signs in memory as soon as it has
                # asked for the copy, which may come later (the end of copy_kernel_cuda, ATen/native/cuda/Copy.cu).
                plain = tensor.resolve_conj().resolve_neg().contiguous()
                place.copy_(flat(plain), non_blocking=self._pinned)
                waiting[tensor.device] = None
            elif tensor.is_contiguous() and not (tensor.is_conj() or tensor.is_neg()):
                in_memory.append((place.numpy(), flat(tensor).numpy()))
            else:
                place.view(tensor.dtype).view(entry.shape).copy_(tensor)
        _copy(in_memory, threads=torch.get_num_threads())
        for device in waiting:
            torch.cuda.current_stream(device).synchronize()

    def put(self, offset: int, content: bytes) -> None:
        """Write bytes at a place."""
        self._memory[offset : offset + len(content)] = content

    def close(self) -> None:
        """Give the memory back; what a writer has of it stays until it closes its own descriptor."""
        if self._pinned:
            _cudart().cudaHostUnregister(self.bytes.data_ptr())
        self.bytes = torch.empty(0, dtype=torch.uint8)
        with suppress(BufferError):  # somebody holds a view: the memory goes with it
            self._memory.close()
        os.close(self.descriptor)


def cut(pieces: Iterable[_Piece]) -> list[_Piece]:
    """The same bytes in pieces of bounded size, the largest first: whoever copies the last one is done soon."""
    parts = [
        (target[at : at + _PIECE_BYTES], source[at : at + _PIECE_BYTES])
        for target, source in pieces
        for at in range(0, len(source), _PIECE_BYTES)
    ]
    return sorted(parts, key=lambda part: -len(part[1]))


def _copy(pieces: Iterable[_Piece], *, threads: int) -> None:
    """Copy in some threads, each of which takes the next piece when it has copied one.

    Not torch's copy: its threads meet at a barrier, and where the machine is busy with other ranks and their loaders,
    they wait for each other 10 times as long as one thread takes (measured).
    """
    parts = cut(pieces)
    following = iter(parts)

    def work() -> None:
        for target, source in following:
            np.copyto(target, source)

    useful = min(threads, sum(len(source) for _, source in parts) // _BYTES_OF_A_THREAD)
    if useful <= 1:
        work()
    else:
        with ThreadPoolExecutor(useful, thread_name_prefix="trainbox-copy") as pool:
            for one in [pool.submit(work) for _ in range(useful)]:
                one.result()


# See the CUDA Runtime API, section 6.9 (cudaHostRegister), and how torch does it itself:
# torch/distributed/_state_dict_utils.py, _create_cpu_state_dict.


def _pin(memory: torch.Tensor) -> bool:
    """Page-lock memory, so that a GPU copies into it at full speed; whether it worked."""
    return int(_cudart().cudaHostRegister(memory.data_ptr(), memory.numel(), 0)) == 0


def _cudart() -> Any:  # noqa: ANN401 - a C module without types
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
