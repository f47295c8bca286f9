"""`--channel` read against this machine: which files a channel has, listed where a host may not get them all."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from trainbox.contract.job import CHANNEL_NAME
from trainbox.contract.text import did_you_mean, short
from trainbox.errors import RunError
from trainbox.workbench.given import pairs
from trainbox.workbench.inputs import manifest
from trainbox.workbench.inputs.hosts import Hosts
from trainbox.workbench.inputs.manifest import Entry, Record
from trainbox.workbench.inputs.options import Options, read_options, split, without_options
from trainbox.workbench.inputs.s3 import SCHEME, Bucket, S3Object, list_objects, object_exists

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


def read_channels(given: Sequence[str], hosts: Hosts, *, env: Mapping[str, str], cwd: Path) -> dict[str, ChannelSource]:
    """Parse `--channel NAME=PLACE[,OPTION…]`, sorted by name; objects in S3 are listed and not fetched yet.

    Args:
        given: What the flag was given.
        hosts: Those of the job.
        env: The environment of `trainbox run`.
        cwd: Where relative paths begin.

    Raises:
        RunError: A place does not exist, an option is wrong or has no effect, or S3 does not answer.
    """
    if len(given) > MOST_CHANNELS:
        raise RunError(f"{len(given)} channels", hint=f"SageMaker refuses more than {MOST_CHANNELS}")
    named = dict(sorted(pairs(given, "--channel").items()))
    for name in named:
        if not CHANNEL_NAME.fullmatch(name):
            raise RunError(
                f"--channel {name}: SageMaker takes names of A-Z a-z 0-9 . - _, at most 64", hint="rename it"
            )
    channels = {name: _read(name, value, hosts, env=env, cwd=cwd) for name, value in named.items()}
    _check_names_of_pipes(channels)
    return channels


def _read(name: str, value: str, hosts: Hosts, *, env: Mapping[str, str], cwd: Path) -> ChannelSource:
    flag = f"--channel {name}"
    channel = _read_s3(value, flag, env, cwd) if value.startswith(SCHEME) else _read_local(value, flag, cwd)
    _check_groups(channel.options, hosts, flag)
    return channel


def _read_local(value: str, flag: str, cwd: Path) -> ChannelSource:
    found = split(value, lambda place: _exists(_path(place, cwd)))
    if found is None:
        place = _path(without_options(value), cwd)
        raise RunError(f"{flag}={value}: there is no {place}", hint="give a directory or a file")
    path = _path(found[0], cwd).resolve()
    options = _with_absolute_manifest(read_options(found[1], flag), cwd)
    channel = ChannelSource(path, is_file=not path.is_dir(), options=options)
    if options.manifest:
        return _with_manifest(channel, flag)
    if options.sharded or options.mode == "Pipe":
        return msgspec.structs.replace(channel, files=_list(path, flag))
    return channel


def _read_s3(value: str, flag: str, env: Mapping[str, str], cwd: Path) -> ChannelSource:
    bucket = Bucket.of(value, env)
    found = split(value, lambda uri: object_exists(bucket, uri)) if "," in value else (value, ())
    if found is None:
        raise RunError(f"{flag}={value}: there is no object at {without_options(value)}", hint="aws s3 ls lists them")
    uri, parts = found
    options = _with_absolute_manifest(read_options(parts, flag), cwd)
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


def _with_absolute_manifest(options: Options, cwd: Path) -> Options:
    if not options.manifest:
        return options
    return msgspec.structs.replace(options, manifest=str(_path(options.manifest, cwd)))


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


def _path(place: str, cwd: Path) -> Path:
    try:
        return cwd / Path(place).expanduser()
    except RuntimeError:  # there is no such user, whose home `~name` would be
        return cwd / place


def _exists(path: Path) -> bool:
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
