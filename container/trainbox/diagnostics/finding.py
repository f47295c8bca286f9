"""What a check finds, and the fixed words in which a job that ends for it says so: by them rules can match."""

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from trainbox.contract.failures.diagnosis import Diagnosis, kind_of
from trainbox.errors import ConfigurationError, HardwareError

Status = Literal["pass", "warn", "fail"]
#: Who has to act on a finding: repair the node, or change the request or the image (a retry changes nothing); of what
#: passes by itself, nobody.
Kind = Literal["hardware", "configuration", "transient"]
Value = str | int | float | None
#: Words for a value of a check.
Amount = Callable[[str, Value], str]

_MOST_FURTHER = 5


class Finding(msgspec.Struct, frozen=True, rename={"kind": "class"}):
    """The verdict of one check on one device; one line of JSON."""

    check: str
    host: str
    #: What of the host: `gpu3`, a directory, a channel, another host; empty where it is the host itself.
    device: str
    status: Status
    #: What was found, in the unit of `limit`; None where nothing could be measured.
    value: Value
    limit: Value
    kind: Kind
    #: What to do about it, or why nothing was measured.
    hint: str = ""

    @property
    def place(self) -> str:
        """Host, device and check, as they begin the failure text."""
        return f"{self.host} {self.device or '-'} {self.check}"

    @property
    def is_hard(self) -> bool:
        """Whether the node must be repaired: a job that fails at the same time failed because of it."""
        return self.status == "fail" and self.kind == "hardware"


def as_it_is(_check: str, value: Value) -> str:
    """A value of a check that has no unit; those of NVML have none."""
    return "" if value is None else f"{value}"


def in_words(finding: Finding, amount: Amount = as_it_is) -> str:
    """What was found, and against what, for people."""
    value, limit = amount(finding.check, finding.value), amount(finding.check, finding.limit)
    return f"{value} (limit: {limit})" if limit and limit != value else value


def list_places(findings: Sequence[Finding]) -> str:
    """Where each is; of many the first."""
    more = len(findings) - _MOST_FURTHER
    return ", ".join(finding.place for finding in findings[:_MOST_FURTHER]) + (f" and {more} more" if more > 0 else "")


def as_hint(finding: Finding) -> str:
    """A finding that decides nothing, as something to think of."""
    return f"{finding.host} {finding.device} reported {as_it_is(finding.check, finding.value)}, {finding.hint}"


def blame(findings: Sequence[Finding], amount: Amount = as_it_is, *, followed: Diagnosis | None = None) -> Diagnosis:
    """`HARDWARE <host> <device> <check>: <value> (limit: <limit>); also …`: the first one says who has to act.

    Args:
        findings: At least one.
        amount: Words for the values.
        followed: What would be the diagnosis without them.
    """
    first, *rest = findings
    error = ConfigurationError if first.kind == "configuration" else HardwareError
    cause = f"{error.fault} {first.place}: {in_words(first, amount)}" + (f"; also {list_places(rest)}" if rest else "")
    found = Diagnosis(kind_of(error), cause, error.exit_code, hint=first.hint, host=first.host, device=first.device)
    if followed is None:
        return found
    cause += f"\nwhat followed: {followed.cause}"
    return msgspec.structs.replace(found, cause=cause, where=followed.where, rank=followed.rank)
