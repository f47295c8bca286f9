"""Find the first row of a channel that breaks a rule, by file and row, and raise the same error on every host."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import msgspec

from trainbox.comm import Communicator
from trainbox.contract.job import Channel
from trainbox.data import Block, ColumnSpec, read_blocks
from trainbox.errors import ConfigurationError, DataError, HyperparameterError, PeerError, Stopped


class Fault(msgspec.Struct, frozen=True):
    """What is wrong with the rows of one member."""

    message: str
    hint: str = ""


class BadRow(msgspec.Struct, frozen=True):
    """A row of a block that breaks a rule."""

    row: int
    message: str
    hint: str = ""


#: The first row of a block that breaks it, if any does.
RowRule: TypeAlias = Callable[[Block, Sequence[str] | None], BadRow | None]


class Scan:
    """Looks at the rows of a channel as they are read, and keeps the first that breaks a rule.

    Args:
        rules: For the rows.
    """

    def __init__(self, *rules: RowRule) -> None:
        self._rules = rules
        self.fault: Fault | None = None

    def __call__(self, block: Block, names: Sequence[str] | None) -> None:
        """Look at more rows."""
        if self.fault is not None:
            return
        found = [bad for rule in self._rules if (bad := rule(block, names)) is not None]
        if found:
            first = min(found, key=lambda bad: bad.row)
            self.fault = Fault(f"{block.where(first.row)}: {first.message}", first.hint)

    def check(self) -> None:
        """Raise the error of the first row that breaks a rule.

        Raises:
            DataError: With file, row and value.
        """
        if self.fault is not None:
            raise DataError(self.fault.message, hint=self.fault.hint)


def find_place(channel: Channel, row: int, columns: ColumnSpec) -> str:
    """Name a row of a channel by its file and line; for a message, as it reads the channel once more up to there.

    Args:
        channel: Its rows were read once.
        row: Counted from 0 over all files.
        columns: What stands where in a row.
    """
    if channel.input_mode == "Pipe":
        return f"channel {channel.name}, row {row + 1}"
    place, before = "", 0

    def inspect(block: Block, _names: Sequence[str] | None) -> None:
        nonlocal place, before
        if before <= row < before + len(block.labels):
            place = block.where(row - before)
        before += len(block.labels)

    for _ in read_blocks(channel, columns=columns, inspect=inspect):
        if place:
            break
    return place


class _Word(msgspec.Struct, frozen=True):
    """What a member says after its part of the work."""

    fault: Fault | None = None


@contextmanager
def raising_everywhere(communicator: Communicator) -> Iterator[None]:
    """Raise a data error of one member on all members, with the same text; members work independently in the block.

    Nothing in the block may call the communicator: a member that fails does not come to that call.

    Raises:
        DataError: That of the first member that has one, which is named.
    """
    if communicator.size == 1:
        yield
        return
    fault = None
    try:
        yield
    except DataError as error:
        fault = Fault(error.message, error.hint)
    words = communicator.gather(_Word(fault), _Word)
    with raising_together(communicator):
        raise_first(communicator.members.names, [word.fault for word in words])


@contextmanager
def raising_together(communicator: Communicator) -> Iterator[None]:
    """Let all members raise the same error, which each of them derives in the block from the same reports.

    None leaves before all know it: the others would hear that it has given up, and raise that instead.
    """
    try:
        yield
    except (ConfigurationError, DataError, HyperparameterError) as error:
        with contextlib.suppress(PeerError, Stopped):
            communicator.gather(_Word(), _Word)
        communicator.fail(error)  # before files are removed on the way out: from here on this one is leaving
        raise


def raise_first(members: Sequence[str], faults: Sequence[Fault | None]) -> None:
    """Raise the first of the members' faults, if there is one.

    Args:
        members: Their names, by rank.
        faults: By rank.

    Raises:
        DataError: It names the member where there are several.
    """
    for member, fault in zip(members, faults, strict=True):
        if fault is not None:
            prefix = f"{member}: " if len(members) > 1 else ""
            raise DataError(prefix + fault.message, hint=fault.hint)
