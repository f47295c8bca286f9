"""What a transform job is asked for, completed by what the model's server offers, into a plan. Pure."""

import re
from typing import Literal, TypeAlias

import msgspec

from trainbox.errors import ContractError, RunError
from trainbox.local.endpoints.content_types import media_type
from trainbox.local.transform.json_path import parse_path
from trainbox.local.transform.processing import Processing, RecordFormat
from trainbox.local.transform.records import MB, SplitType, Strategy

#: TransformOutput.AssembleWith and DataProcessing.JoinSource, as the API spells them.
AssembleType: TypeAlias = Literal["None", "Line"]
JoinSource: TypeAlias = Literal["None", "Input"]
#: API CreateTransformJob: MaxPayloadInMB, and MaxConcurrentTransforms times that.
MOST_MB = 100
DEFAULT_MB = 6
_FORMATS: dict[str, RecordFormat] = {
    "text/csv": "csv",
    "application/json": "json",
    "application/jsonlines": "json",
    "application/x-ndjson": "json",
    "application/x-jsonlines": "json",
}
_WHOLE = "application/json"


class TransformOptions(msgspec.Struct, frozen=True, kw_only=True):
    """CreateTransformJob, as far as it says how; None where the model's server is to be asked."""

    content_type: str = ""
    accept: str = ""
    strategy: Strategy | None = None
    max_payload_mb: int | None = None
    workers: int | None = None
    split: SplitType = "None"
    assemble: AssembleType = "None"
    join: JoinSource = "None"
    input_filter: str = "$"
    output_filter: str = "$"


class ExecutionParameters(msgspec.Struct, frozen=True, rename="pascal"):
    """The answer to `GET /execution-parameters`, which a container need not give."""

    max_concurrent_transforms: int | None = None
    batch_strategy: Literal["MULTI_RECORD", "SINGLE_RECORD"] | None = None
    max_payload_in_mb: int | None = msgspec.field(default=None, name="MaxPayloadInMB")


class TransformPlan(msgspec.Struct, frozen=True, kw_only=True):
    """How every input is transformed."""

    content_type: str
    accept: str
    strategy: Strategy
    #: 0 is a chunked body of any length.
    max_payload_bytes: int
    #: Requests at the same time.
    workers: int
    split: SplitType
    assemble: AssembleType
    processing: Processing | None

    def __str__(self) -> str:
        size = f"at most {self.max_payload_bytes // MB} MB" if self.max_payload_bytes else "any length"
        accept = f"; answers as {self.accept}" if self.accept else ""
        return f"{self.strategy}, requests of {size}, {self.workers} at the same time{accept}"

    @property
    def counts_lines(self) -> bool:
        """Whether one line is written for each record: else the answers are written as they come."""
        return self.split != "None" and (self.assemble == "Line" or self.changes_output)

    @property
    def longest_record(self) -> int:
        """The limit of a record in bytes before it is filtered; 0 is any length."""
        is_filtered = self.processing is not None and self.processing.changes_input
        return MOST_MB * MB if is_filtered and self.max_payload_bytes else self.max_payload_bytes

    @property
    def changes_output(self) -> bool:
        """Whether answers are filtered or joined."""
        return self.processing is not None and self.processing.changes_output


def batch_variables(options: TransformOptions) -> dict[str, str]:
    """Return what SageMaker tells a container of a transform job: that it is one, and what the request sets."""
    strategies = {"MultiRecord": "MULTI_RECORD", "SingleRecord": "SINGLE_RECORD"}
    given = {
        "SAGEMAKER_BATCH_STRATEGY": strategies[options.strategy] if options.strategy else None,
        "SAGEMAKER_MAX_PAYLOAD_IN_MB": options.max_payload_mb,
        "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS": options.workers,
    }
    return {"SAGEMAKER_BATCH": "true", **{name: str(value) for name, value in given.items() if value is not None}}


def parse_execution_parameters(body: bytes) -> ExecutionParameters:
    """Parse the answer to `GET /execution-parameters`.

    Raises:
        ContractError: It is not what SageMaker reads.
    """
    try:
        return msgspec.json.decode(body, type=ExecutionParameters)
    except msgspec.DecodeError as error:
        raise ContractError(f"the answer to /execution-parameters cannot be used: {error}") from error


def check_options(options: TransformOptions) -> Processing | None:
    """Check what needs no server, and parse the filters; None where records are neither filtered nor joined.

    Raises:
        RunError: SageMaker would refuse this job, or it would fail.
    """
    if options.strategy == "SingleRecord" and options.split == "None":
        raise RunError("--strategy SingleRecord needs records", hint="set --split Line or --split RecordIO")
    if options.split != "None" and re.search(r";\s*header\s*=\s*\"?present", options.content_type, re.IGNORECASE):
        raise RunError(
            f"--content-type {options.content_type!r}: only the first request of an input has its header",
            hint="leave header=present out, and remove the header from the inputs",
        )
    size = options.max_payload_mb
    if size is not None and not 0 <= size <= MOST_MB:
        raise RunError(f"--max-payload {size} is not between 0 and {MOST_MB}", hint="it is in MB; 0 is any length")
    if options.workers is not None and options.workers < 1:
        raise RunError(f"--workers {options.workers} is less than 1")
    asked = {"--input-filter": options.input_filter, "--output-filter": options.output_filter}
    paths = {flag: parse_path(text, flag=flag) for flag, text in asked.items()}
    if options.join == "None" and all(path.is_root for path in paths.values()):
        return None
    kind = media_type(options.content_type)
    record_format = _FORMATS.get(kind)
    if record_format is None:
        raise RunError(
            f"records of {kind or 'an unknown content type'} cannot be filtered or joined",
            hint=f"--content-type is one of {', '.join(_FORMATS)}",
        )
    _check_processing(options, kind)
    if record_format == "csv":
        for flag, path in paths.items():
            if not path.fits_rows:
                raise RunError(f"{flag} {path.text} does not select cells", hint="a row of CSV is an array: '$[1:]'")
    return Processing(record_format, paths["--input-filter"], paths["--output-filter"], joins=options.join == "Input")


def _check_processing(options: TransformOptions, kind: str) -> None:
    accept = media_type(options.accept)
    if accept and _FORMATS.get(accept) is None:
        raise RunError(f"answers of {accept} cannot be filtered or joined", hint=f"set --accept {kind}")
    if accept and _FORMATS[accept] != _FORMATS[kind]:
        raise RunError(f"records of {kind} cannot be joined with answers of {accept}", hint=f"set --accept {kind}")
    if kind == _WHOLE and options.split == "None":
        return
    if options.split != "Line" or options.assemble != "Line":
        raise RunError(
            f"filters and joins of {kind} need lines", hint="set --split Line and --assemble Line, as in SageMaker"
        )


def make_plan(options: TransformOptions, offered: ExecutionParameters) -> TransformPlan:
    """Complete what was asked for: the job's own value, else the server's, else SageMaker's default.

    Raises:
        RunError: SageMaker would refuse this job, or it would fail.
    """
    processing = check_options(options)
    strategy = options.strategy or ("SingleRecord" if offered.batch_strategy == "SINGLE_RECORD" else "MultiRecord")
    size = _first(options.max_payload_mb, offered.max_payload_in_mb, DEFAULT_MB)
    workers = max(1, _first(options.workers or None, offered.max_concurrent_transforms, 1))
    if workers * size > MOST_MB:
        if options.workers is not None and options.max_payload_mb is not None:
            raise RunError(
                f"{workers} requests of {size} MB at the same time exceed {MOST_MB} MB",
                hint="SageMaker refuses this job: lower --workers or --max-payload",
            )
        # One of them is the server's own, for another value of the other.
        workers, size = (max(1, MOST_MB // size), size) if options.workers is None else (workers, MOST_MB // workers)
    return TransformPlan(
        content_type=options.content_type,
        accept=options.accept or (media_type(options.content_type) if processing else ""),
        strategy=strategy if options.split != "None" else "MultiRecord",
        max_payload_bytes=size * MB,
        workers=workers,
        split=options.split,
        assemble=options.assemble,
        processing=processing,
    )


def _first(*values: int | None) -> int:
    return next(value for value in values if value is not None)
