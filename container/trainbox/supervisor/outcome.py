"""How a plan ended: the facts that `failure_reason` makes a diagnosis from."""

from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from trainbox.diagnostics.finding import Finding


#: Of one child of a plan.
ChildState = Literal["started", "ready", "ended"]


class Exit(msgspec.Struct, frozen=True):
    """How one child ended."""

    name: str
    #: The exit code as a shell gives it: 128 + n for signal n.
    code: int
    #: The number of the signal that killed it, or 0.
    signal: int
    #: The ends of what it wrote.
    stderr: str
    stdout: str
    #: Why it was killed, where it was because its process stood still.
    hung: str = ""
    #: Likewise where it was not ready in time.
    unready: str = ""
    #: How often it has ended, where that was too often to start it again.
    gave_up: str = ""

    @property
    def has_failed(self) -> bool:
        """Whether the plan has failed with it."""
        return bool(self.code or self.gave_up)


class Change(msgspec.Struct, frozen=True):
    """The new state of a child, for a listener: a server whose workers are ready, or are not."""

    name: str
    pid: int
    state: ChildState


class Outcome(msgspec.Struct, frozen=True):
    """How a plan ended."""

    #: In the order in which they ended; of a child that was started again the last end alone.
    exits: tuple[Exit, ...]
    #: The signal that asked for the end, or 0.
    stopped_by: int
    #: Whether the grace was over before all had left.
    killed_after_grace: bool
    #: Processes the kernel killed for memory in the meantime; 0 also where that cannot be told.
    memory_kills: int
    memory_limit: int | None
    #: Processes that the children left behind, and which were ended.
    leftovers: int
    seconds: float
    #: Whether both streams ended with a newline: who writes next may have to begin a line.
    ends_line: bool = True
    #: Why our own output could not be written to its end, where it could not.
    lost_output: tuple[str, ...] = ()
    #: What the sidecars have found.
    findings: "tuple[Finding, ...]" = ()
    #: How often a child was started again.
    restarts: int = 0

    @property
    def first_failure(self) -> Exit | None:
        """The process that failed first: the others may only have been stopped for it."""
        return next((exit_ for exit_ in self.exits if exit_.has_failed), None)

    @property
    def code(self) -> int:
        """The exit code of the job."""
        failure = self.first_failure
        return (failure.code or 1) if failure else 0
