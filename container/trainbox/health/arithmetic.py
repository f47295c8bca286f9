"""A program of its own: does one device compute exactly, and how fast does it copy? Prints one JSON line.

    python -P -m trainbox.health.arithmetic cuda fast

The integers are so small that every product and sum is exact in fp32, also through TF32 (10 bits of mantissa) and in
whatever order they are summed: each bit that differs from the processor's own result is a fault. A device that is
slower than the others of the job is found by whoever compares them.
"""

import re
import sys
import time
from collections.abc import Callable

import msgspec

_LARGEST = 8
#: Side of the matrices: sums stay below 8 · 8 · 2048 = 2^17.
_SIDES = {"cuda": 2048, "cpu": 512}
_REPEATS = {"fast": 20, "full": 100}
_COPIED_BYTES = {"cuda": 256 * 1024 * 1024, "cpu": 64 * 1024 * 1024}
_COPIES = 5
#: Somebody else holds the memory: torch's allocator, the driver as it makes a context and cuBLAS as it makes a handle
#: say so in words of their own (torch 2.11 on a GPU with 64 MiB left: `CUDA error: out of memory`).
_NO_MEMORY = re.compile("out of memory|CUBLAS_STATUS_(ALLOC_FAILED|NOT_INITIALIZED)")


class Measured(msgspec.Struct, frozen=True):
    """What one device did."""

    #: Numbers that differ from the reference, of all repeats.
    wrong: int = 0
    repeats: int = 0
    #: Bytes per second / 1e9, by what was copied: `device`, and with a GPU `to device`, `from device`.
    bandwidths: dict[str, float] = {}
    #: Why torch cannot use the device at all, which need not be the device's fault.
    unusable: str = ""
    #: What the device did instead of computing.
    failed: str = ""


def measure(kind: str, stage: str) -> Measured:
    """Compute and copy on `cuda` (the one visible GPU) or `cpu`."""
    import torch  # noqa: PLC0415 - a second that only this program pays

    try:
        if kind == "cuda":
            torch.cuda.init()  # type: ignore[no-untyped-call]
    except (AssertionError, RuntimeError) as error:  # built without CUDA; no driver, too old a one, none that works
        return Measured(unusable=_first_line(error))
    try:
        wrong = _compute(kind, _REPEATS[stage])
        return Measured(wrong, _REPEATS[stage], _copy(kind))
    except RuntimeError as error:
        said = _first_line(error)
        return Measured(unusable=said) if _NO_MEMORY.search(said) else Measured(failed=said)


def _first_line(error: Exception) -> str:
    return f"{error}".partition("\n")[0]


def _compute(kind: str, repeats: int) -> int:
    """Numbers that differ, of all repeats."""
    import torch  # noqa: PLC0415

    generator = torch.Generator().manual_seed(0)
    side = _SIDES[kind]
    left, right = (
        torch.randint(-_LARGEST, _LARGEST + 1, (side, side), generator=generator).to(torch.float32) for _ in range(2)
    )
    # In fp64, whose kernels are others: on the processor itself the comparison means something, too.
    reference = (left.double() @ right.double()).float().to(kind)
    left, right = left.to(kind), right.to(kind)
    return sum(int(((left @ right) != reference).sum()) for _ in range(repeats))


def _copy(kind: str) -> dict[str, float]:
    import torch  # noqa: PLC0415

    size = _COPIED_BYTES[kind]
    here, there = (torch.zeros(size, dtype=torch.uint8, device=kind) for _ in range(2))
    finish: Callable[[], None] = torch.cuda.synchronize if kind == "cuda" else _nothing
    bandwidths = {"device": _fastest(lambda: there.copy_(here), size, finish)}
    if kind == "cuda":
        host = torch.zeros(size, dtype=torch.uint8, pin_memory=True)
        bandwidths["to device"] = _fastest(lambda: there.copy_(host, non_blocking=True), size, finish)
        bandwidths["from device"] = _fastest(lambda: host.copy_(there, non_blocking=True), size, finish)
    return bandwidths


def _fastest(copy: Callable[[], object], size: int, finish: Callable[[], None]) -> float:
    """Gigabytes per second of the best of some tries: the others were disturbed."""
    best = float("inf")
    for _ in range(_COPIES):
        finish()
        started = time.perf_counter()
        copy()
        finish()
        best = min(best, time.perf_counter() - started)
    return round(size / best / 1e9, 2)


def _nothing() -> None:
    """The processor has finished when the call returns."""


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.encode({"measured": measure(sys.argv[1], sys.argv[2])}).decode() + "\n")
