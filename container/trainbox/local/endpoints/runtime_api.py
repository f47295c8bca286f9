"""How a client of the AWS API asks an endpoint: its paths, headers and errors, and the frames of an event stream. Pure.

Sources: the service model `sagemaker-runtime` of botocore (protocol rest-json), and for the frames
https://smithy.io/2.0/aws/amazon-eventstream.html
"""

import re
import struct
import zlib
from collections.abc import Iterable, Mapping

import msgspec

Headers = Mapping[str, str]

_OURS = "x-amzn-sagemaker-"
_ACCEPT, _CONTENT_TYPE = f"{_OURS}accept", f"{_OURS}content-type"
#: Headers of an answer that reach the client.
_ANSWERED = (f"{_OURS}custom-attributes", f"{_OURS}new-session-id", f"{_OURS}closed-session-id")
_PATH = re.compile(r"/endpoints/([a-zA-Z0-9](?:-*[a-zA-Z0-9]){0,62})/(invocations|invocations-response-stream)")
_STRING = 7
_FIRST_SERVER_ERROR = 500
_JSON = "application/json"
EVENT_STREAM = "application/vnd.amazon.eventstream"


class Invocation(msgspec.Struct, frozen=True):
    """What a path asks for: InvokeEndpoint, or InvokeEndpointWithResponseStream."""

    endpoint: str
    is_stream: bool = False


class ApiAnswer(msgspec.Struct, frozen=True):
    """What the client gets."""

    status: int
    headers: Headers
    body: bytes = b""


def read_invocation(path: str) -> Invocation | None:
    """Return what a path asks for; None where it is neither of the two operations."""
    match = _PATH.fullmatch(path.partition("?")[0])
    return Invocation(match[1], match[2] != "invocations") if match else None


def headers_for_model(given: Iterable[tuple[str, str]], invocation: Invocation) -> dict[str, str]:
    """Return the headers that reach the container: SageMaker strips all others.

    Args:
        given: Of the client.
        invocation: What it asks for; a stream has its Accept under another name.
    """
    lowered = {name.lower(): value for name, value in given}
    if invocation.is_stream:
        lowered.pop("accept", None)
        lowered |= {"accept": lowered.pop(_ACCEPT)} if _ACCEPT in lowered else {}
    return {n: value for n, value in lowered.items() if n in {"content-type", "accept"} or n.startswith(_OURS)}


def headers_for_client(answered: Iterable[tuple[str, str]], invocation: Invocation) -> dict[str, str]:
    """Return the headers of a prediction.

    Args:
        answered: Of the container.
        invocation: What the client asks for; a stream has its content type under another name.
    """
    lowered = {name.lower(): value for name, value in answered}
    kept = {name: lowered[name] for name in _ANSWERED if name in lowered}
    kept["x-amzn-invoked-production-variant"] = "AllTraffic"
    if "content-type" in lowered:
        kept[_CONTENT_TYPE if invocation.is_stream else "content-type"] = lowered["content-type"]
    return kept | ({"content-type": EVENT_STREAM} if invocation.is_stream else {})


def model_error(status: int, body: bytes) -> ApiAnswer:
    """Return the answer to what the container did not answer with 2xx.

    Args:
        status: Of the container; 0 where it did not answer.
        body: Of the container.
    """
    original = body.decode(errors="replace")
    whose = "server" if not status or status >= _FIRST_SERVER_ERROR else "client"
    message = (
        f'Received {whose} error ({status}) from primary with message "{original}". See the log of trainbox serve.'
    )
    members = {"OriginalStatusCode": status, "OriginalMessage": original, "LogStreamArn": ""}
    return api_error(424, "ModelError", message, members)


def api_error(status: int, code: str, message: str, members: Mapping[str, object] = {}) -> ApiAnswer:
    """Return an error of the API itself.

    Args:
        status: Of HTTP.
        code: The name of the exception.
        message: For people.
        members: What the exception has beside it.
    """
    body = msgspec.json.encode({"Message": message, **members})
    return ApiAnswer(status, {"content-type": _JSON, "x-amzn-errortype": code}, body)


def payload_part(part: bytes) -> bytes:
    """Return the frame of a part of an answer."""
    return _frame(
        {":message-type": "event", ":event-type": "PayloadPart", ":content-type": "application/octet-stream"}, part
    )


def stream_error(message: str) -> bytes:
    """Return the frame that ends a stream which the container has not ended.

    Args:
        message: Why.
    """
    headers = {":message-type": "exception", ":exception-type": "ModelStreamError", ":content-type": _JSON}
    return _frame(headers, msgspec.json.encode({"Message": message, "ErrorCode": "StreamBroken"}))


def _frame(headers: Headers, payload: bytes) -> bytes:
    block = b"".join(
        struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", _STRING, len(value)) + value.encode()
        for name, value in headers.items()
    )
    prelude = struct.pack("!II", 12 + len(block) + len(payload) + 4, len(block))
    head = prelude + struct.pack("!I", zlib.crc32(prelude)) + block
    return head + payload + struct.pack("!I", zlib.crc32(payload, zlib.crc32(head)))
