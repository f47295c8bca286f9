"""Snapshots: copy a state into memory that is allocated once and shared with the writer, while the training waits."""

import mmap
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from trainbox.errors import CheckpointError
from trainbox.torch.checkpoints.codec import TensorEntry, flat

_PAGE = mmap.PAGESIZE

#: The largest piece that a thread copies. Not smaller: glibc bypasses the caches, which is 1.6 times as fast, only for
#: sizes above three quarters of the last-level cache (measured: 6.9 GB/s at 128 MiB, 10.6 at 256).
_PIECE_BYTES = 256 << 20
#: Below this size per thread, starting a thread takes longer than the copy.
_BYTES_OF_A_THREAD = 16 << 20

#: A target and its source, as arrays of bytes.
_Piece = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


class SnapshotBuffer:
    """Anonymous memory with a descriptor (memfd): not in /dev/shm, of which a container has 64 MB.

    All pages are allocated at once: the first copy is as fast as the tenth. With CUDA it is pinned.
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
                f"cannot allocate {self.size:,} bytes of memory for a copy of the state: {error.strerror}",
                hint="use an instance with more memory: a checkpoint needs the size of the state once more",
            ) from error
        # Forked workers of data loaders do not need it.
        self._memory.madvise(mmap.MADV_DONTFORK)
        self.bytes: torch.Tensor = torch.frombuffer(self._memory, dtype=torch.uint8)
        self.bytes[::_PAGE] = 0
        self._pinned = pinned and _pin(self.bytes)

    def copy(self, tensors: Sequence[torch.Tensor], table: Sequence[TensorEntry]) -> None:
        """Copy tensors to their positions in the table; when this returns, they may change."""
        waiting: dict[torch.device, None] = {}
        in_memory: list[_Piece] = []
        for tensor, entry in zip(tensors, table, strict=True):
            if not entry.size:
                continue
            place = self.bytes[entry.offset : entry.offset + entry.size]
            if tensor.is_cuda:
                # Resolved on the GPU: for a conjugate, torch flips signs in host memory right after it has queued the
                # copy, maybe before that is done (the end of copy_kernel_cuda, ATen/native/cuda/Copy.cu).
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
        """Write bytes at an offset."""
        self._memory[offset : offset + len(content)] = content

    def close(self) -> None:
        """Free the memory; a writer keeps it until it closes its own descriptor."""
        if self._pinned:
            _cudart().cudaHostUnregister(self.bytes.data_ptr())
        self.bytes = torch.empty(0, dtype=torch.uint8)
        with suppress(BufferError):  # there is a view of it: the memory is freed with the view
            self._memory.close()
        os.close(self.descriptor)


def make_buffer(size: int) -> Future[SnapshotBuffer]:
    """Make a buffer in a thread of its own, while the training continues."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-memory")
    future = pool.submit(SnapshotBuffer, size, pinned=torch.cuda.is_available())
    pool.shutdown(wait=False)  # the thread ends with its only task
    return future


def cut(pieces: Iterable[_Piece]) -> list[_Piece]:
    """Split copies into pieces of bounded size, the largest first: so that all threads end at about the same time."""
    parts = [
        (target[at : at + _PIECE_BYTES], source[at : at + _PIECE_BYTES])
        for target, source in pieces
        for at in range(0, len(source), _PIECE_BYTES)
    ]
    return sorted(parts, key=lambda part: -len(part[1]))


def _copy(pieces: Iterable[_Piece], *, threads: int) -> None:
    """Copy with some threads, each of which takes the next piece after it has copied one.

    Not torch's copy: its threads wait for each other at a barrier, on a machine that is busy with other ranks and their
    loaders for 10 times as long as one thread takes (measured).
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
    """Page-lock memory, so that a GPU copies into it at full speed; return whether it worked."""
    return int(_cudart().cudaHostRegister(memory.data_ptr(), memory.numel(), 0)) == 0


def _cudart() -> Any:  # noqa: ANN401 - a C module without types
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
