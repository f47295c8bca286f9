"""The channels of a job read against this machine: which files each has, listed where a host may not get them all."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from trainbox.contract.job import CHANNEL_NAME
from trainbox.contract.job_spec import FILE_SCHEME, InputChannel
from trainbox.contract.text import did_you_mean, short
from trainbox.errors import RunError
from trainbox.local.inputs import manifest
from trainbox.local.inputs.hosts import Hosts
from trainbox.local.inputs.manifest import Entry, Record
from trainbox.local.inputs.options import Mode, Options
from trainbox.local.inputs.s3 import SCHEME, Bucket, S3Object, list_objects

#: API CreateTrainingJob.InputDataConfig.
MOST_CHANNELS = 20


class ChannelSource(msgspec.Struct, frozen=True):
    """A directory or a single file that becomes a channel."""

    #: Of a channel in S3 its directory in the cache, where nothing else lies.
    path: Path
    is_file: bool = False
    options: Options = Options()
    #: All of it in the order of S3, where it is not the directory as it lies.
    files: tuple[Entry, ...] | None = None
    #: Of an augmented manifest: what each line brings.
    records: tuple[Record, ...] | None = None
    #: Where it lies in S3, and what is fetched from there.
    uri: str = ""
    bucket: Bucket | None = None
    objects: tuple[S3Object, ...] = ()

    @property
    def place(self) -> str:
        """Where it lies, as messages and the command line name it."""
        return self.uri or str(self.path)

    def as_flag(self) -> str:
        """What stands behind `NAME=`, from wherever the command is given."""
        return ",".join([self.place, *self.options.words])


def as_flags(channels: Mapping[str, ChannelSource]) -> dict[str, str]:
    """Return what stands behind `NAME=` of each channel."""
    return {name: channel.as_flag() for name, channel in channels.items()}


def read_channels(
    channels: Sequence[InputChannel],
    hosts: Hosts,
    *,
    env: Mapping[str, str],
    mode: Mode = "File",
    places: Mapping[str, str] | None = None,
    flag: str = "--channel",
) -> dict[str, ChannelSource]:
    """Find what channels bring, sorted by name; objects in S3 are listed and not fetched yet.

    Args:
        channels: As the job has them; what is not in S3 has an absolute path.
        hosts: Those of the job.
        env: The environment.
        mode: Of channels that say none.
        places: By channel, where the objects of its manifest lie.
        flag: How messages name a channel, before its name.

    Raises:
        RunError: A place does not exist, an option has no effect, or S3 does not answer.
    """
    if len(channels) > MOST_CHANNELS:
        raise RunError(f"{len(channels)} channels", hint=f"SageMaker refuses more than {MOST_CHANNELS}")
    found: dict[str, ChannelSource] = {}
    for channel in sorted(channels, key=lambda each: each.channel_name):
        name = channel.channel_name
        check_name(name, flag)
        if name in found:
            raise RunError(f"{flag} {name}: given twice", hint="give it once")
        source = _read(channel, f"{flag} {name}", (places or {}).get(name, ""), mode, env)
        _check_groups(source.options, hosts, f"{flag} {name}")
        found[name] = source
    _check_names_of_pipes(found)
    return found


def check_name(name: str, flag: str) -> None:
    """Refuse a name that no channel can have.

    Raises:
        RunError: It is one.
    """
    if not CHANNEL_NAME.fullmatch(name):
        raise RunError(f"{flag} {name}: SageMaker takes names of A-Z a-z 0-9 . - _, at most 64", hint="rename it")


def _read(channel: InputChannel, flag: str, place: str, mode: Mode, env: Mapping[str, str]) -> ChannelSource:
    options = _options_of(channel, mode, flag)
    source = channel.data_source.s3_data_source
    if source is None:
        file_system = channel.data_source.file_system_data_source
        place = file_system.directory_path if file_system else ""
    elif source.s3_data_type == "S3Prefix":
        place = source.s3_uri
    elif not place:
        place = manifest.prefix_of(manifest.read_manifest(Path(options.manifest), flag), f"{flag}: {options.manifest}")
    if place.startswith(SCHEME):
        return _read_s3(place, options, flag, env)
    path = Path(place.removeprefix(FILE_SCHEME))
    if not path.is_absolute():
        raise RunError(f"{flag}: {place!r} is no place", hint="give file:///DIRECTORY or s3://BUCKET/PREFIX")
    return _read_local(path.resolve(), options, flag)


def _options_of(channel: InputChannel, default: Mode, flag: str) -> Options:
    """What a channel says beyond its place; refuses what has no effect here."""
    mode = channel.input_mode or default
    if channel.compression_type == "Gzip":
        raise RunError(
            f"{flag}: CompressionType Gzip: nothing is decompressed on this machine",
            hint="decompress the files, and leave it out",
        )
    if channel.record_wrapper_type == "RecordIO" and mode != "Pipe":
        raise RunError(
            f"{flag}: RecordWrapperType RecordIO has no effect on files, which lie as they are",
            hint="InputMode Pipe goes with it",
        )
    source = channel.data_source.s3_data_source
    if source is None:
        return Options(mode=mode, content_type=channel.content_type, record_wrapper=channel.record_wrapper_type)
    is_manifest = source.s3_data_type != "S3Prefix"
    if is_manifest and not source.s3_uri.startswith(FILE_SCHEME):
        raise RunError(f"{flag}: the manifest {source.s3_uri} is not on this machine", hint="download it: file:///PATH")
    if is_manifest and mode == "FastFile":
        raise RunError(f"{flag}: FastFile mode takes no manifest", hint="InputMode File or Pipe does")
    return Options(
        mode=mode,
        sharded=source.s3_data_distribution_type == "ShardedByS3Key",
        manifest=source.s3_uri.removeprefix(FILE_SCHEME) if is_manifest else "",
        attributes=source.attribute_names,
        content_type=channel.content_type,
        record_wrapper=channel.record_wrapper_type,
        groups=source.instance_group_names,
    )


def _read_local(path: Path, options: Options, flag: str) -> ChannelSource:
    if not exists(path):
        raise RunError(f"{flag}: there is no {path}", hint="give a directory or a file")
    channel = ChannelSource(path, is_file=not path.is_dir(), options=options)
    if options.manifest:
        return _with_manifest(channel, flag)
    if options.sharded or options.mode == "Pipe":
        return msgspec.structs.replace(channel, files=_list(path, flag))
    return channel


def _read_s3(uri: str, options: Options, flag: str, env: Mapping[str, str]) -> ChannelSource:
    bucket = Bucket.of(uri, env)
    if options.manifest and manifest.is_augmented(manifest.read_manifest(Path(options.manifest), flag)):
        raise RunError(
            f"{flag}: an augmented manifest names objects of its own, not those at {uri}",
            hint="download them into a directory, and give that in place of the URI",
        )
    objects = list_objects(bucket, uri, flag)
    if options.manifest:
        where = f"{flag}: {options.manifest}"
        wanted = manifest.names_of(manifest.read_manifest(Path(options.manifest), flag), where)
        by_name = {each.name: each for each in objects}
        missing = next((name for name in wanted if name not in by_name), None)
        if missing is not None:
            raise RunError(f"{where}: there is no object {short(missing, 200)} at {uri}", hint="aws s3 ls lists them")
        objects = tuple(by_name[name] for name in wanted)
    files = tuple(Entry(each.name, each.path) for each in objects)
    return ChannelSource(bucket.cache, options=options, files=files, uri=uri, bucket=bucket, objects=objects)


def _with_manifest(channel: ChannelSource, flag: str) -> ChannelSource:
    options = channel.options
    where = f"{flag}: {options.manifest}"
    if channel.is_file:
        raise RunError(f"{flag}: manifest= needs a directory, {channel.path} is a file", hint="give its directory")
    content = manifest.read_manifest(Path(options.manifest), flag)
    if not manifest.is_augmented(content):
        if options.attributes:
            raise RunError(
                f"{where} is a plain manifest: it has no attributes", hint="leave ,attributes= out, or give JSON Lines"
            )
        entries = manifest.entries_of(manifest.names_of(content, where), channel.path, where)
        return msgspec.structs.replace(channel, files=entries)
    if options.mode != "Pipe":
        raise RunError(f"{where} is an augmented manifest, which comes through a pipe alone", hint="add ,pipe")
    if not options.attributes:
        raise RunError(
            f"{where} is an augmented manifest: which attributes?", hint="add ,attributes=NAME,… in their order"
        )
    records = manifest.records_of(content, options.attributes, channel.path, where)
    return msgspec.structs.replace(channel, files=(), records=records)


def exists(path: Path) -> bool:
    """Whether there is something at a path, which may be none."""
    try:
        return path.exists()
    except (OSError, ValueError):  # longer than Linux takes, or with a NUL
        return False


def _list(path: Path, flag: str) -> tuple[Entry, ...]:
    """Every file, in the order in which S3 has the keys.

    Raises:
        RunError: There is none, one cannot be read, or has a name that S3 does not take.
    """
    if not path.is_dir():
        return (Entry(path.name, path),)
    found = [Entry(each.relative_to(path).as_posix(), each) for each in _walk(path, (), flag)]
    if not found:
        raise RunError(f"{flag}: there is no file in {path}", hint="SageMaker refuses a channel without an object, too")
    for entry in found:
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            raise RunError(f"{flag}: the name {entry.name!a} is not UTF-8", hint="rename the file") from None
    return tuple(sorted(found, key=lambda entry: entry.name.encode()))


def _walk(directory: Path, above: tuple[Path, ...], flag: str) -> Iterator[Path]:
    """Every file below a directory, through links too, as an upload takes them."""
    real = directory.resolve()
    if real in above:
        raise RunError(f"{flag}: {directory} links back to {real}, which contains it", hint="remove the link")
    try:
        with os.scandir(directory) as entries:
            found = [(Path(entry.path), entry.is_dir(), entry.is_file()) for entry in entries]
    except OSError as error:
        raise RunError(f"{flag}: {directory} cannot be read: {error.strerror}", hint="check its permissions") from None
    for path, is_directory, is_file in found:
        if is_directory:
            yield from _walk(path, (*above, real), flag)
        elif is_file:
            yield path
        else:
            raise RunError(f"{flag}: {path} is a broken link, a pipe or a device", hint="remove it")


def _check_groups(options: Options, hosts: Hosts, flag: str) -> None:
    names = [group.name for group in hosts.groups]
    for name in options.groups:
        if not names:
            raise RunError(
                f"{flag}: groups={name}: the hosts form no groups", hint="name them: --hosts workers=2,evaluators=1"
            )
        if name not in names:
            raise RunError(
                f"{flag}: there is no group {name!r}{did_you_mean(name, names)}", hint=f"--hosts has {', '.join(names)}"
            )


def _check_names_of_pipes(channels: Mapping[str, ChannelSource]) -> None:
    """A pipe is called like its channel, with a number: no other channel may lie there."""
    for name, channel in channels.items():
        stem, _, number = name.rpartition("_")
        piped = channels.get(stem)
        if piped is not None and piped.options.mode == "Pipe" and number.isdecimal() and channel is not piped:
            raise RunError(
                f"--channel {name}: the pipe of epoch {number} of channel {stem} has this name", hint="rename one"
            )
