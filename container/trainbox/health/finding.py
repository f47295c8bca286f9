"""What a check finds."""

from typing import Literal

import msgspec

Status = Literal["pass", "warn", "fail"]
#: Whose affair a finding is: the node's (it must be repaired), the request's or image's (a retry changes nothing), or
#: nobody's, because it passes.
Kind = Literal["hardware", "configuration", "transient"]
Value = str | int | float | None


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
