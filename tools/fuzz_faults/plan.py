"""Pure: which job event number k of a seed runs, and which faults hit it where and when.

Event k depends on (seed, k) alone. A fault is tied to a mark (a process appears, a line of metrics, a checkpoint, a
checkpoint that is being written), never to a time, so that a seed repeats it on another machine.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

import msgspec

T = TypeVar("T")

Algorithm = Literal["pytorch", "session", "xgboost", "forest"]
Kind = Literal["rank", "agent", "fork server", "writer", "script", "tracker", "supervisor", "run", "disk"]
Blow = Literal["kill", "freeze", "stop", "memory", "file size", "full disk", "read-only disk"]
Sign = Literal["start", "process", "step", "checkpoint", "saving"]


class Job(msgspec.Struct, frozen=True):
    """One job of the catalogue: always the same data, hyperparameters and seed, so always the same model."""

    algorithm: Algorithm
    hosts: int
    #: Per host, where the algorithm has ranks.
    ranks: int = 1

    @property
    def name(self) -> str:
        """`xgboost-3x1`: the algorithm, hosts and ranks per host."""
        return f"{self.algorithm}-{self.hosts}x{self.ranks}"


class Mark(msgspec.Struct, frozen=True):
    """What has to be seen before a fault: the `count`-th of a sign, or a process of a kind."""

    sign: Sign
    count: int = 1
    process: Kind = "run"

    def __str__(self) -> str:
        """As a person reads it: `at step 7`, `when tracker appears`."""
        texts = {
            "start": "before the start",
            "process": f"when {self.process} appears",
            "step": f"at line {self.count} of metrics",
            "checkpoint": f"after checkpoint {self.count}",
            "saving": f"while checkpoint {self.count} is written",
        }
        return texts[self.sign]


class Fault(msgspec.Struct, frozen=True):
    """What is done to which process."""

    blow: Blow
    kind: Kind
    #: Number of the host, from 1 on; the local rank.
    host: int = 1
    rank: int = 0
    #: Of limits: what is left, in KiB.
    left: int = 0

    def __str__(self) -> str:
        """As a person reads it: `kill rank 1 of algo-2`."""
        left = f" ({self.left} KiB left)" if self.blow in {"memory", "file size", "full disk"} else ""
        if self.kind in {"run", "disk"}:
            return f"{self.blow}{left}" if self.kind == "disk" else f"{self.blow} run{left}"
        return f"{self.blow} {self.kind}{f' {self.rank}' if self.kind == 'rank' else ''} of algo-{self.host}{left}"


class Event(msgspec.Struct, frozen=True):
    """One job, and what happens to it; all faults come at the same mark."""

    seed: int
    number: int
    job: Job
    mark: Mark
    faults: tuple[Fault, ...]
    #: Whether the job has completed once before, and its next attempt is hit.
    again: bool = False
    #: Whether the attempt after that is hit as well: what trains is killed as soon as it is there.
    twice: bool = False

    def __str__(self) -> str:
        """As a person reads it."""
        what = " and ".join(str(fault) for fault in self.faults)
        later = ", attempt 2 of a completed job" if self.again else ""
        return f"{what} {self.mark}{later}{', the next killed' if self.twice else ''}"

    @property
    def trains(self) -> Kind:
        """The process of this job that a host's supervisor starts."""
        return "agent" if self.job.algorithm in {"pytorch", "session"} else "script"

    def second(self) -> "Event":
        """What hits the attempt after the one that is hit first."""
        mark = Mark("process", process=self.trains)
        return Event(self.seed, self.number, self.job, mark, (Fault("kill", self.trains),))


JOBS: tuple[Job, ...] = (
    *(Job("pytorch", hosts, ranks) for hosts, ranks in ((1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (3, 1))),
    *(Job("session", hosts, ranks) for hosts, ranks in ((1, 2), (2, 1), (3, 1))),
    *(Job("xgboost", hosts) for hosts in (1, 2, 3)),
    *(Job("forest", hosts) for hosts in (1, 2, 3)),
)
#: The last line of metrics and the last checkpoint that serve as a mark: some are left, so that the job still runs.
_LAST_STEP: Mapping[Algorithm, int] = {"pytorch": 5, "session": 25, "xgboost": 120, "forest": 7}
_LAST_CHECKPOINT: Mapping[Algorithm, int] = {"pytorch": 3, "session": 2, "xgboost": 12, "forest": 6}
_TORCH: tuple[Kind, ...] = ("rank", "agent", "fork server", "writer", "supervisor", "run", "disk")
_TREES: tuple[Kind, ...] = ("script", "supervisor", "run", "disk")
_BLOWS: Mapping[Kind, tuple[Blow, ...]] = {
    "rank": ("kill", "freeze", "memory", "file size"),
    "agent": ("kill", "freeze", "memory"),
    "fork server": ("kill", "freeze", "memory"),
    "writer": ("kill", "freeze", "memory", "file size"),
    "script": ("kill", "freeze", "memory", "file size"),
    "tracker": ("kill", "freeze", "memory"),
    "supervisor": ("kill", "freeze", "stop", "stop", "memory", "file size"),
    "run": ("kill", "kill", "freeze", "stop", "stop", "memory", "file size"),
    "disk": ("full disk", "read-only disk"),
}
_LEFT: Mapping[Blow, tuple[int, ...]] = {
    "memory": (256, 4096, 65536),
    "file size": (0, 4, 64),
    "full disk": (0, 4, 64, 512),
}
#: Of 100 events so many hit two processes at once, and so many the next attempt of a job that has completed.
_TWO, _AGAIN, _TWICE = 20, 15, 5


def kinds_of(job: Job) -> tuple[Kind, ...]:
    """The kinds of process that a job has, and its disk."""
    if job.algorithm in {"pytorch", "session"}:
        return _TORCH
    return (*_TREES, "tracker") if job.algorithm == "xgboost" and job.hosts > 1 else _TREES


def draw(seed: int, number: int) -> Event:
    """Event `number` of a seed: the kind of process first, so that rare kinds are hit as often as common ones."""
    dice = random.Random(f"{seed}/{number}")  # noqa: S311 - the same again for the same seed
    kind = dice.choice(tuple(_BLOWS))
    job = dice.choice([job for job in JOBS if kind in kinds_of(job)])
    faults = [_fault(dice, job, kind)]
    again = dice.randrange(100) < _AGAIN
    mark = _mark(dice, job, faults[0], again=again)
    if faults[0].kind != "disk" and mark.sign != "start" and dice.randrange(100) < _TWO:
        others = [other for other in kinds_of(job) if other != "disk"]
        second = _fault(dice, job, dice.choice(others))
        if (second.kind, second.host, second.rank) != (faults[0].kind, faults[0].host, faults[0].rank):
            faults.append(second)
    twice = dice.randrange(100) < (50 if again else _TWICE)
    return Event(seed, number, job, mark, tuple(faults), again, twice)


def _fault(dice: random.Random, job: Job, kind: Kind) -> Fault:
    blow = dice.choice(_BLOWS[kind])
    #: These are beside the first host's processes alone.
    host = 1 if kind in {"tracker", "run", "writer"} else dice.randint(1, job.hosts)
    rank = dice.randrange(job.ranks) if kind == "rank" else 0
    return Fault(blow, kind, host, rank, _pick(dice, _LEFT.get(blow, (0,))))


def _pick(dice: random.Random, values: Sequence[T]) -> T:
    return values[dice.randrange(len(values))]


def _mark(dice: random.Random, job: Job, fault: Fault, *, again: bool) -> Mark:
    signs: list[Sign] = ["process", "step", "checkpoint", "saving"]
    if fault.kind == "disk":
        signs[0] = "start"
    if again:  # nothing is left to be trained: it reads, and saves the model anew
        signs = signs[:1]
    sign = _pick(dice, signs)
    if sign == "step":
        return Mark(sign, dice.randint(1, _LAST_STEP[job.algorithm]))
    if sign in {"checkpoint", "saving"}:
        return Mark(sign, dice.randint(1, _LAST_CHECKPOINT[job.algorithm]))
    if sign == "start":
        return Mark(sign)
    return Mark(sign, process=_pick(dice, _before(job, fault.kind)))


def _before(job: Job, kind: Kind) -> tuple[Kind, ...]:
    """The processes at whose appearance one of a kind may be hit: it is there by then, or soon."""
    if kind in {"run", "supervisor"}:
        return ("supervisor", "agent", "rank") if "agent" in kinds_of(job) else ("supervisor", "script")
    return (kind,)
