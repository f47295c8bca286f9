"""What is to be read: a channel or a path, what its content type says, and what the caller says about its columns."""

from pathlib import Path

import msgspec

from trainbox.channels.coding import Coding
from trainbox.channels.kinds import ContentType, read_content_type
from trainbox.channels.streams import block_bytes
from trainbox.channels.table import Columns
from trainbox.contract.job import Channel

#: Label first, features behind it.
LABEL_FIRST = Columns()
#: SageMaker makes a channel's pipes before it starts the container, or soon after.
PATIENCE = 300.0


class Request(msgspec.Struct, frozen=True):
    """One reading of a channel, with everything decided that can be decided without its data."""

    name: str
    path: Path
    columns: Columns
    #: None: each file's name or first bytes say what it is.
    said: ContentType | None
    is_pipe: bool
    #: Whether each file lies whole in a record of its own (Pipe mode with the record wrapper RecordIO).
    is_wrapped: bool
    #: How long to wait for a pipe to be there and for its writer, in seconds.
    patience: float
    #: How many bytes of text or records to parse at a time.
    size: int
    #: What was decided for the user.
    notes: tuple[str, ...] = ()
    #: The codes of texts that these rows must follow.
    coding: Coding | None = None


def ask(
    channel: Path | Channel,
    columns: Columns = LABEL_FIRST,
    content_type: str | None = None,
    patience: float = PATIENCE,
    coding: Coding | None = None,
) -> Request:
    """Bring together what the job, the content type and the caller say; the caller has the last word.

    Raises:
        DataError: The content type is not known.
    """
    if isinstance(channel, Path):
        channel = Channel(channel.name, channel)
    text = content_type or channel.content_type
    said = read_content_type(text) if text else None
    notes = []
    if said is not None and said.labels is not None and said.labels != columns.labels:
        if columns.labels == LABEL_FIRST.labels:
            notes.append(f"the first {said.labels} columns are labels, as the content type {said.text!r} says")
            columns = msgspec.structs.replace(columns, labels=said.labels)
        else:
            notes.append(f"{columns.labels} columns are labels; the content type {said.text!r} is not heeded")
    is_pipe = channel.input_mode == "Pipe"
    is_text = said is not None and said.kind in {"CSV", "libsvm"}
    is_wrapped = is_pipe and is_text and channel.record_wrapper == "RecordIO"
    return Request(
        channel.name, channel.path, columns, said, is_pipe, is_wrapped, patience, block_bytes(), tuple(notes), coding
    )
