"""A trial's job for SageMaker: directories become places in S3; a placeholder stands for what is not known here."""

import math
import posixpath
import re
import shlex
from collections.abc import Mapping

import msgspec

from trainbox.contract.credentials.secrets import REDACTED, redact, redact_arguments, without_secrets
from trainbox.contract.job_request import script_hyperparameters
from trainbox.contract.job_spec import FILE_SCHEME, DataSource, InputChannel, JobSpec, LocalScript
from trainbox.errors import RunError
from trainbox.tuning.printed.tuning_job_spec import TuningJobSpec

#: What the user replaces begins so.
MARK = "YOUR-"
REGION = "eu-central-1"
IMAGE = f"111122223333.dkr.ecr.{REGION}.amazonaws.com/trainbox:YOUR-TAG"
ROLE = "arn:aws:iam::111122223333:role/YOUR-ROLE"
INSTANCE_TYPE = "ml.m5.xlarge"
#: SageMaker's own limit where a job has none.
MAX_RUN_SECONDS = 86400
_BUCKET = "s3://YOUR-BUCKET"
_SECRET = "{{resolve:secretsmanager:YOUR-SECRET}}"  # noqa: S105 - a reference to one
_ARCHIVE = "sourcedir.tar.gz"
_LONGEST_NAME = 32


class LocalSource(msgspec.Struct, frozen=True):
    """A script of this machine, which the SDKs upload themselves."""

    directory: str
    file: str


class RemoteJob(msgspec.Struct, frozen=True, kw_only=True):
    """The job of a trial as SageMaker can run it, with placeholders."""

    name: str
    image: str
    role: str
    #: The hyperparameters that are not tuned, as text; with those that say what runs.
    static: Mapping[str, str]
    #: Given where `static` names the archive of its directory, which an SDK can upload in its place.
    source: LocalSource | None
    environment: Mapping[str, str]
    channels: tuple[InputChannel, ...]
    output: str
    instance_type: str
    instance_count: int
    max_run: int
    #: Commands that bring files of this machine to their places.
    uploads: tuple[str, ...]
    #: The command among them, perhaps two, that brings the source.
    source_uploads: tuple[str, ...]


def to_remote(spec: TuningJobSpec) -> RemoteJob:
    """Pure: replace the places of this machine by places in S3, and secrets by references to them.

    Raises:
        RunError: A tuning job of SageMaker has no member for it.
    """
    job, name = spec.job, short_name(spec.name)
    _refuse_unknown(job)
    script, source, source_uploads = _remote_script(job.script, name)
    tuned = {each.name for each in spec.search.ranges}
    static = {key: text for key, text in job.hyper_parameters.items() if key not in tuned}
    channels = [_remote_channel(each, name) for each in job.input_data_config]
    seconds = job.stopping_condition.max_runtime_in_seconds
    image = job.algorithm_specification.training_image
    return RemoteJob(
        name=name,
        image=image if ".dkr.ecr." in image else IMAGE,
        role=job.role_arn or ROLE,
        static={**_without_secrets(static, spec.hide), **script_hyperparameters(script)},
        source=source,
        environment=_without_secrets(job.environment, spec.hide),
        channels=tuple(channel for channel, _ in channels),
        output=job.output_data_config.s3_output_path if job.output_data_config else f"{_BUCKET}/{name}/models/",
        instance_type=job.resource_config.instance_type or INSTANCE_TYPE,
        instance_count=job.resource_config.instance_count or 1,
        max_run=MAX_RUN_SECONDS if seconds is None else math.ceil(seconds),
        uploads=tuple(command for _, command in channels if command),
        source_uploads=source_uploads,
    )


def short_name(name: str) -> str:
    """Pure: a name that SageMaker takes for a tuning job: letters, digits and single hyphens, at most 32.

    >>> short_name("_my search: eta")
    'my-search-eta'
    """
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:_LONGEST_NAME].rstrip("-") or "tuning"


def _refuse_unknown(job: JobSpec) -> None:
    """SageMaker's definition of a trial lacks these members of CreateTrainingJob, or an SDK's tuner does."""
    algorithm = job.algorithm_specification
    given = {
        "ContainerEntrypoint": bool(algorithm.container_entrypoint or algorithm.container_arguments),
        "instance groups": bool(job.resource_config.instance_groups),
    }
    for what, is_given in given.items():
        if is_given:
            raise RunError(f"--print: a tuning job of SageMaker has no {what}", hint="leave it out")


def _remote_script(
    script: LocalScript | None, name: str
) -> tuple[LocalScript | None, LocalSource | None, tuple[str, ...]]:
    if script is None:
        return None, None, ()
    shown = (without_secrets(each, ()) for each in redact_arguments(script.arguments))
    script = msgspec.structs.replace(script, arguments=tuple(each.replace(REDACTED, f"{MARK}SECRET") for each in shown))
    if not script.source_dir.startswith(FILE_SCHEME):
        return script, None, ()
    directory = script.source_dir.removeprefix(FILE_SCHEME)
    place = f"{_BUCKET}/{name}/source/{_ARCHIVE}"
    source = LocalSource(directory, script.file) if script.file else None
    uploads = (f"tar -czf {_ARCHIVE} -C {shlex.quote(directory)} .", f"aws s3 cp {_ARCHIVE} {place}")
    return msgspec.structs.replace(script, source_dir=place), source, uploads


def _remote_channel(channel: InputChannel, name: str) -> tuple[InputChannel, str]:
    """The channel with a place in S3, and the command that uploads it; empty where it is there already."""
    source = channel.data_source.s3_data_source
    if source is None or not source.s3_uri.startswith(FILE_SCHEME):
        return channel, ""
    path = source.s3_uri.removeprefix(FILE_SCHEME)
    base = posixpath.basename(path)
    if source.s3_data_type != "S3Prefix":
        uri = f"{_BUCKET}/{name}/data/{channel.channel_name}/YOUR-MANIFEST"
        command = (
            f"channel {channel.channel_name}: a manifest whose entries are objects in S3 takes the place of {path}"
        )
    elif posixpath.splitext(base)[1]:
        uri = f"{_BUCKET}/{name}/data/{channel.channel_name}/"
        command = f"aws s3 cp --recursive {shlex.quote(path)} {uri}  (of a single file: without --recursive)"
    else:
        uri = f"{_BUCKET}/{name}/data/{channel.channel_name}/"
        command = f"aws s3 cp --recursive {shlex.quote(path)} {uri}"
    moved = DataSource(s3_data_source=msgspec.structs.replace(source, s3_uri=uri))
    return msgspec.structs.replace(channel, data_source=moved), command


def _without_secrets(values: Mapping[str, str], hide: tuple[str, ...]) -> dict[str, str]:
    """The same values; in place of a secret a reference, which `train` resolves in the container."""
    hidden = redact(values, hide)
    return {
        name: text if hidden[name] == text == without_secrets(text, ()) else _SECRET for name, text in values.items()
    }
