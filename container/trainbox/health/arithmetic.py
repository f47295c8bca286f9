"""Program that checks the arithmetic of one device and measures its copies. Prints one JSON line.

    python -P -m trainbox.health.arithmetic cuda fast

The integers are so small that every product and sum is exact in fp32, also with TF32 (10 bits of mantissa) and in
any order of summation: each bit that differs from the result of the CPU is a fault. The caller compares the
bandwidths of all devices of the job.
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
#: Another process holds the memory. torch's allocator, the driver (new context) and cuBLAS (new handle) report it with
#: different messages (torch 2.11 on a GPU with 64 MiB left: `CUDA error: out of memory`).
_NO_MEMORY = re.compile("out of memory|CUBLAS_STATUS_(ALLOC_FAILED|NOT_INITIALIZED)")


class Measured(msgspec.Struct, frozen=True):
    """Results of one device."""

    #: Numbers that differ from the reference, summed over all repeats.
    wrong: int = 0
    repeats: int = 0
    #: GB/s (1e9 bytes), by direction: `device`, and with a GPU `to device`, `from device`.
    bandwidths: dict[str, float] = {}
    #: Why torch cannot use the device; often not a fault of the device.
    unusable: str = ""
    #: The error of the computation, if it failed.
    failed: str = ""


def measure(kind: str, stage: str) -> Measured:
    """Check the arithmetic and measure the copies of `cuda` (the one visible GPU) or `cpu`."""
    import torch  # noqa: PLC0415 - takes a second; only this program needs it

    try:
        if kind == "cuda":
            torch.cuda.init()  # type: ignore[no-untyped-call]
    except (AssertionError, RuntimeError) as error:  # built without CUDA; no driver, or one that is too old or broken
        return Measured(unusable=_first_line(error))
    try:
        wrong = _compute(kind, _REPEATS[stage])
        return Measured(wrong, _REPEATS[stage], _copy(kind))
    except RuntimeError as error:
        message = _first_line(error)
        return Measured(unusable=message) if _NO_MEMORY.search(message) else Measured(failed=message)


def _first_line(error: Exception) -> str:
    return f"{error}".partition("\n")[0]


def _compute(kind: str, repeats: int) -> int:
    """Return the number of wrong values of all repeats."""
    import torch  # noqa: PLC0415

    generator = torch.Generator().manual_seed(0)
    side = _SIDES[kind]
    left, right = (
        torch.randint(-_LARGEST, _LARGEST + 1, (side, side), generator=generator).to(torch.float32) for _ in range(2)
    )
    # fp64 uses other kernels, so that the comparison is meaningful on the CPU, too.
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
    """Return the GB/s of the fastest of several copies; slower ones were disturbed."""
    best = float("inf")
    for _ in range(_COPIES):
        finish()
        started = time.perf_counter()
        copy()
        finish()
        best = min(best, time.perf_counter() - started)
    return round(size / best / 1e9, 2)


def _nothing() -> None:
    """Do nothing: copies on the CPU are synchronous."""


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.encode({"measured": measure(sys.argv[1], sys.argv[2])}).decode() + "\n")
