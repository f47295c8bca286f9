"""Read a request of CreateTrainingJob into a `JobSpec`, and write a `JobSpec` as a request.

A request body, or a file for `aws sagemaker create-training-job --cli-input-json`, is JSON with the API's own names.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import msgspec

from trainbox.contract.job_spec import IGNORED, UNSUPPORTED, IgnoredMember, JobSpec, LocalScript
from trainbox.contract.text import did_you_mean
from trainbox.errors import ContractError

#: The fields of a JobSpec that the request does not have.
_OWN_FIELDS = ("Script", "Ignored")
_FILE, _SOURCE, _NAME, _MODULE, _ARGUMENTS = (
    *("sagemaker_program", "sagemaker_submit_directory", "trainbox_script", "trainbox_module"),
    "trainbox_raw_arguments",
)
#: Hyperparameters that say what runs: `LocalScript` has them.
SCRIPT_HYPERPARAMETERS = (_FILE, _SOURCE, _NAME, _MODULE, _ARGUMENTS)


def from_request(body: Mapping[str, Any]) -> JobSpec:
    """Read a request of CreateTrainingJob, as boto3 and the AWS CLI take it.

    Raises:
        ContractError: A member is unknown, unsupported here or malformed; the message names it.
    """
    problems = [*_unknown(body, JobSpec, "")]
    if problems:
        raise ContractError(f"CreateTrainingJob: {'; '.join(problems)}", hint="the names are those of the API")
    members, ignored = _without_ignored(body)
    given = _convert(members.pop("HyperParameters", {}), dict[str, str], "HyperParameters")
    own = {name: given.pop(name) for name in SCRIPT_HYPERPARAMETERS if name in given}
    fields = {"HyperParameters": given, "Ignored": ignored, "Script": _read_script(own)}
    spec: JobSpec = _convert({**members, **fields}, JobSpec, "")
    for channel in spec.input_data_config:
        sources = (channel.data_source.s3_data_source, channel.data_source.file_system_data_source)
        if sources.count(None) != 1:
            where = f"InputDataConfig, channel {channel.channel_name!r}: DataSource"
            raise ContractError(f"{where} has {2 - sources.count(None)} of S3DataSource and FileSystemDataSource")
    return spec


def to_request(spec: JobSpec) -> dict[str, Any]:
    """Write a job as a request of CreateTrainingJob.

    Raises:
        ContractError: The API has no way to say it.
    """
    try:
        body: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(spec))
    except UnicodeEncodeError as error:
        raise ContractError(f"CreateTrainingJob: {error.object!a} is not UTF-8", hint="rename it") from None
    for name in _OWN_FIELDS:
        body.pop(name, None)
    reserved = sorted(set(spec.hyper_parameters) & set(SCRIPT_HYPERPARAMETERS))
    if reserved:
        raise ContractError(f"HyperParameters.{reserved[0]}: a JobSpec has this one in its script")
    hyperparameters = {**spec.hyper_parameters, **script_hyperparameters(spec.script)}
    if hyperparameters:
        body["HyperParameters"] = hyperparameters
    body["AlgorithmSpecification"] = {"TrainingInputMode": "File", **body.get("AlgorithmSpecification", {})}
    condition = body.get("StoppingCondition", {})
    if (seconds := condition.get("MaxRuntimeInSeconds")) is not None:
        if seconds != int(seconds):
            raise ContractError(f"StoppingCondition.MaxRuntimeInSeconds {seconds:g}: the API takes whole seconds")
        condition["MaxRuntimeInSeconds"] = int(seconds)
    for member in spec.ignored:
        outer, _, inner = member.name.rpartition(".")
        place = body.setdefault(outer, {}) if outer else body
        place[inner] = json.loads(member.value)
    return body


def read_spec(path: Path) -> JobSpec:
    """Read the file of a request: the JSON that `aws sagemaker create-training-job --cli-input-json` takes.

    Raises:
        ContractError: It cannot be read, is not a JSON object, or is not a request of CreateTrainingJob.
    """
    try:
        body = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise ContractError(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ContractError(f"{path} is not a JSON object: {error}") from error
    try:
        return from_request(body)
    except ContractError as error:
        raise ContractError(f"{path}: {error.message}", hint=error.hint) from None


def _convert(value: object, kind: Any, where: str) -> Any:  # noqa: ANN401 - the type that was asked for
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        what, _, path = str(error).replace(" | null", "").partition(" - at `$")
        place = f"{where}{path.rstrip('`')}".strip(".") or "the request"
        raise ContractError(f"CreateTrainingJob: {place}: {what[:1].lower()}{what[1:]}") from error


def _unknown(value: object, kind: type[msgspec.Struct], path: str) -> Iterator[str]:
    """Yield what is wrong with the names of members, at any depth."""
    if not isinstance(value, Mapping):
        return
    known = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    known = {name: found for name, found in known.items() if kind is not JobSpec or name not in _OWN_FIELDS}
    for name, inner in value.items():
        place = f"{path}{name}"
        if place in UNSUPPORTED:
            yield f"{place} is not supported here: {UNSUPPORTED[place]}"
        elif name in known:
            struct = _struct_of(known[name])
            if struct is not None:
                for each in inner if isinstance(inner, list | tuple) else [inner]:
                    yield from _unknown(each, struct, f"{place}.")
        elif place not in IGNORED:
            there = [each.removeprefix(path) for each in (*IGNORED, *UNSUPPORTED) if each.startswith(path)]
            names = [*known, *(each for each in there if "." not in each)]
            owner = f"{path.rstrip('.')} has" if path else "it has"
            yield f"{owner} no member {str(name)!r}{did_you_mean(str(name), names)}"


def _struct_of(kind: Any) -> type[msgspec.Struct] | None:  # noqa: ANN401 - any annotation
    """The struct in an annotation such as `tuple[InputChannel, ...]`."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind
    return next((found for each in get_args(kind) if (found := _struct_of(each)) is not None), None)


def _without_ignored(body: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[IgnoredMember, ...]]:
    members = dict(body)
    ignored = []
    for place in IGNORED:
        outer, _, inner = place.rpartition(".")
        owner = members.get(outer) if outer else members
        if isinstance(owner, Mapping) and inner in owner:
            ignored.append(IgnoredMember(place, json.dumps(owner[inner])))
            left = {name: value for name, value in owner.items() if name != inner}
            members = {**members, outer: left} if outer else left
    return members, tuple(ignored)


def _read_script(given: Mapping[str, str]) -> LocalScript | None:
    """What the reserved hyperparameters say; the SDK writes each as JSON, in quotes."""
    if not given:
        return None
    plain = {name: _unquoted(text) for name, text in given.items() if name != _ARGUMENTS}
    names = [name for name in (_FILE, _MODULE, _NAME) if name in plain]
    if len(names) > 1:
        raise ContractError(f"HyperParameters: {' and '.join(names)} both say what runs", hint="give one of them")
    arguments: tuple[str, ...] = ()
    if _ARGUMENTS in given:
        try:
            arguments = msgspec.json.decode(given[_ARGUMENTS], type=tuple[str, ...])
        except (msgspec.DecodeError, UnicodeEncodeError):
            raise ContractError(f"HyperParameters.{_ARGUMENTS}: expected a JSON list of strings") from None
    file, module, name, source = (plain.get(each, "") for each in (_FILE, _MODULE, _NAME, _SOURCE))
    return LocalScript(file=file, module=module, name=name, source_dir=source, arguments=arguments)


def _unquoted(text: str) -> str:
    if not text.startswith('"'):
        return text
    try:
        return msgspec.json.decode(text, type=str)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return text


def script_hyperparameters(script: LocalScript | None) -> dict[str, str]:
    """The reserved hyperparameters that say what runs."""
    if script is None:
        return {}
    values = {_FILE: script.file, _MODULE: script.module, _NAME: script.name, _SOURCE: script.source_dir}
    written = {name: json.dumps(text) if text.startswith('"') else text for name, text in values.items() if text}
    return written | ({_ARGUMENTS: json.dumps(script.arguments)} if script.arguments else {})
