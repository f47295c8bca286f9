"""Parse `--channel NAME=PLACE[,OPTION…]` into channels of a JobSpec; the place must exist."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from trainbox.contract.job_spec import FILE_SCHEME, DataSource, InputChannel, S3DataSource
from trainbox.errors import RunError
from trainbox.local.given import pairs
from trainbox.local.inputs import manifest
from trainbox.local.inputs.options import Options, read_options, split, without_options
from trainbox.local.inputs.s3 import SCHEME, Bucket, object_exists
from trainbox.local.inputs.source import MOST_CHANNELS, check_name, exists


class GivenChannels(msgspec.Struct, frozen=True):
    """The channels of a command line."""

    channels: tuple[InputChannel, ...] = ()
    #: By channel, where the objects of its manifest lie.
    places: Mapping[str, str] = {}


def read_channel_flags(given: Sequence[str], *, env: Mapping[str, str], cwd: Path) -> GivenChannels:
    """Parse `--channel NAME=PLACE[,OPTION…]`, sorted by name.

    Args:
        given: What the flag was given.
        env: The environment of `trainbox run`.
        cwd: Where relative paths begin.

    Raises:
        RunError: A place does not exist, or an option is wrong or has no effect.
    """
    if len(given) > MOST_CHANNELS:
        raise RunError(f"{len(given)} channels", hint=f"SageMaker refuses more than {MOST_CHANNELS}")
    named = dict(sorted(pairs(given, "--channel").items()))
    for name in named:
        check_name(name, "--channel")
    channels = []
    places = {}
    for name, value in named.items():
        flag = f"--channel {name}"
        place, parts = _split_s3(value, flag, env) if value.startswith(SCHEME) else _split_local(value, flag, cwd)
        options = read_options(parts, flag)
        channels.append(_channel(name, place, options, flag, cwd))
        if options.manifest:
            places[name] = place
    return GivenChannels(tuple(channels), places)


def _split_local(value: str, flag: str, cwd: Path) -> tuple[str, tuple[str, ...]]:
    found = split(value, lambda place: exists(_path(place, cwd)))
    if found is None:
        place = _path(without_options(value), cwd)
        raise RunError(f"{flag}={value}: there is no {place}", hint="give a directory or a file")
    return f"{FILE_SCHEME}{_path(found[0], cwd).resolve()}", found[1]


def _split_s3(value: str, flag: str, env: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    bucket = Bucket.of(value, env)
    found = split(value, lambda uri: object_exists(bucket, uri)) if "," in value else (value, ())
    if found is None:
        raise RunError(f"{flag}={value}: there is no object at {without_options(value)}", hint="aws s3 ls lists them")
    return found


def _channel(name: str, place: str, options: Options, flag: str, cwd: Path) -> InputChannel:
    source = S3DataSource(
        s3_data_type="S3Prefix",
        s3_uri=place,
        s3_data_distribution_type="ShardedByS3Key" if options.sharded else "FullyReplicated",
        attribute_names=options.attributes,
        instance_group_names=options.groups,
    )
    if options.manifest:
        path = _path(options.manifest, cwd)
        is_augmented = manifest.is_augmented(manifest.read_manifest(path, flag))
        kind = "AugmentedManifestFile" if is_augmented else "ManifestFile"
        source = msgspec.structs.replace(source, s3_data_type=kind, s3_uri=f"{FILE_SCHEME}{path}")
    return InputChannel(
        channel_name=name,
        data_source=DataSource(s3_data_source=source),
        content_type=options.content_type,
        record_wrapper_type=options.record_wrapper,
        input_mode=None if options.mode == "File" else options.mode,
    )


def _path(place: str, cwd: Path) -> Path:
    try:
        return cwd / Path(place).expanduser()
    except RuntimeError:  # there is no such user, whose home `~name` would be
        return cwd / place
