"""Pure: what of each channel a host gets, what its `inputdataconfig.json` says, and what a person should be told."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from trainbox.local.inputs.hosts import Cluster
from trainbox.local.inputs.manifest import Entry, Piece, Record
from trainbox.local.inputs.source import ChannelSource

_SHOWN = 3


class Stream(msgspec.Struct, frozen=True):
    """What comes through the pipes of a channel on one host, in each epoch the same."""

    pieces: tuple[Piece, ...]
    #: Whether each piece lies in a record of its own (RecordIO).
    wrapped: bool = False


class Share(msgspec.Struct, frozen=True):
    """What one host gets of a channel: the place as it lies, some files, or a pipe."""

    source: Path
    #: The same for people: of S3, the URI.
    place: str = ""
    is_file: bool = False
    files: tuple[Entry, ...] | None = None
    stream: Stream | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it is the place as it lies."""
        return self.files is None and self.stream is None

    @property
    def sentence(self) -> str:
        """What it is, in a few words."""
        if self.is_whole:
            return str(self.source)
        if self.stream is not None:
            count = len({piece.path for piece in self.stream.pieces if piece.path is not None})
            return f"a pipe for each epoch: {count} file{'' if count == 1 else 's'} of {self.place}"
        files = self.files or ()
        names = ", ".join(entry.name for entry in files[:_SHOWN])
        more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
        return f"{names}{more} of {self.place}" if files else f"no file of {self.place}"


def shares(channels: Mapping[str, ChannelSource], cluster: Cluster, host: str) -> dict[str, Share]:
    """What a host gets of each channel that it gets."""
    found = {}
    for name, channel in channels.items():
        among = cluster.hosts_of(channel.options.groups)
        if host in among:
            found[name] = _share(channel, among.index(host), len(among))
    return found


def _share(channel: ChannelSource, index: int, count: int) -> Share:
    """Sharded, each host gets every n-th object: AWS says "1/n of the objects", and not which."""
    step = count if channel.options.sharded else 1
    first = index if channel.options.sharded else 0
    files = None if channel.files is None else channel.files[first::step]
    if channel.options.mode != "Pipe":
        return Share(channel.path, channel.place, is_file=channel.is_file and files is None, files=files)
    wrapped = channel.options.record_wrapper == "RecordIO"
    if channel.records is not None:
        return Share(channel.path, channel.place, stream=Stream(_pieces(channel.records[first::step]), wrapped))
    return Share(
        channel.path, channel.place, stream=Stream(tuple(Piece(path=entry.path) for entry in files or ()), wrapped)
    )


def _pieces(records: Sequence[Record]) -> tuple[Piece, ...]:
    return tuple(piece for record in records for piece in record)


def input_data_config(channels: Mapping[str, ChannelSource], names: Sequence[str]) -> dict[str, dict[str, str]]:
    """The content of `inputdataconfig.json` of a host that gets these channels.

    FastFile is reported as File (AWS, "How Amazon SageMaker AI provides training information").
    """
    return {name: _config(channels[name]) for name in names}


def _config(channel: ChannelSource) -> dict[str, str]:
    options = channel.options
    return {
        **({"ContentType": options.content_type} if options.content_type else {}),
        "TrainingInputMode": "Pipe" if options.mode == "Pipe" else "File",
        "S3DistributionType": "ShardedByS3Key" if options.sharded else "FullyReplicated",
        "RecordWrapperType": options.record_wrapper,
    }


def notes(channels: Mapping[str, ChannelSource], cluster: Cluster) -> Iterator[str]:
    """What a person may not expect: hosts without a file, a shard that is everything."""
    for name, channel in channels.items():
        among = cluster.hosts_of(channel.options.groups)
        count = len(channel.files or ()) if channel.records is None else len(channel.records)
        what = "file" if channel.records is None else "line"
        beside = next((each for each in channel.objects if each.is_beside(channel.uri)), None)
        if beside is not None:
            yield (
                f"channel {name}: {channel.uri} is the beginning of {beside.key}, too, which SageMaker takes as well;"
                f" {channel.uri}/ leaves it out"
            )
        if not channel.options.sharded:
            continue
        if len(among) == 1:
            yield f"channel {name} is sharded over one host, which gets all of it"
        elif count < len(among):
            without = among[count:]
            verb = "gets" if len(without) == 1 else "get"
            yield (
                f"channel {name} has {count} {what}{'' if count == 1 else 's'} for {len(among)} hosts:"
                f" {', '.join(without)} {verb} none, as on SageMaker"
            )
