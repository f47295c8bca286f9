"""Rehearsed faults: what is done to a rank, and at which step, as `kill 1@20, freeze 0@40` of `trainbox run` says."""

import re
import signal
from typing import Literal, cast

import msgspec

Fault = Literal["kill", "freeze"]
#: What each fault is, as a signal: nothing in the rank can prepare for either.
SIGNALS: dict[Fault, signal.Signals] = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP}

_DRILL = re.compile(r"(kill|freeze) ([0-9]+)@([0-9]+)")


class Drill(msgspec.Struct, frozen=True):
    """One fault, done once: when the rank has finished so many steps."""

    fault: Fault
    rank: int
    step: int

    def __str__(self) -> str:
        return f"{self.fault} {self.rank}@{self.step}"


def read_drills(text: str) -> tuple[Drill, ...]:
    """The drills of a setting, several separated by commas.

    Raises:
        ValueError: One is not of the form `kill RANK@STEP` or `freeze RANK@STEP`, or stands there twice.
    """
    drills = tuple(_read_drill(part.strip()) for part in text.split(","))
    if len(set(drills)) < len(drills):
        raise ValueError(text)
    return drills


def _read_drill(text: str) -> Drill:
    match = _DRILL.fullmatch(text)
    if not match:
        raise ValueError(text)
    return Drill(cast("Fault", match[1]), int(match[2]), int(match[3]))
