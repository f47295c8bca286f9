"""The requests of SageMaker to an endpoint of many models, and their answers. Pure; names are what anybody may send."""

import base64
import binascii
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Literal, TypeAlias
from urllib.parse import unquote

import msgspec

from trainbox.contract.text import short
from trainbox.serving.bodies.request_errors import RequestError
from trainbox.serving.responder import Response

TARGET_MODEL = "x-amzn-sagemaker-target-model"
#: Of a name, a path, the body of `POST /models`.
MOST_NAME_CHARACTERS = 1024
MOST_URL_CHARACTERS = 4096
MOST_LOAD_BYTES = 64 * 1024
#: As many models are on a page of the list.
PAGE_MODELS = 100
#: As multi-model-server calls them.
_TYPES: Mapping[int, str] = {
    400: "BadRequestException",
    404: "ModelNotFoundException",
    405: "MethodNotAllowedException",
    409: "ConflictStatusException",
    413: "RequestEntityTooLargeException",
    503: "ServiceUnavailableException",
    507: "InsufficientMemoryException",
}
_NAMES = f"a name has 1 to {MOST_NAME_CHARACTERS:,} printable characters"

Action: TypeAlias = Literal["list", "describe", "invoke"]


class Target(msgspec.Struct, frozen=True):
    """What a path below `/models` is about."""

    action: Action
    name: str = ""


class LoadModel(msgspec.Struct, frozen=True, tag="load"):
    """Load the model of a directory."""

    name: str
    url: str


class UnloadModel(msgspec.Struct, frozen=True, tag="unload"):
    """Unload a model."""

    name: str


class Reply(msgspec.Struct, frozen=True):
    """What became of either."""

    status: int
    #: What is answered: a status, or what went wrong.
    text: str
    hint: str = ""


class _Load(msgspec.Struct, frozen=True):
    """The body of `POST /models`."""

    model_name: str
    url: str


class _Listed(msgspec.Struct, frozen=True, rename="camel"):
    """A model as it is listed."""

    model_name: str
    model_url: str


class _Page(msgspec.Struct, frozen=True, rename="camel"):
    """A page of the list; without a token it is the last."""

    models: tuple[_Listed, ...]
    next_page_token: str | msgspec.UnsetType = msgspec.UNSET


class _Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """An answer that is an error, as multi-model-server has it, with what to do."""

    code: int
    type: str
    message: str
    hint: str = ""


# ---- requests ----


def read_target(raw_path: bytes) -> Target | None:
    """Read a path, percent-encoded as it came: `/models`, `/models/{name}`, `/models/{name}/invoke`; None for others.

    Args:
        raw_path: Without the query.

    Raises:
        RequestError: The name is none.
    """
    match raw_path.split(b"/"):
        case [b"", b"models"] | [b"", b"models", b""]:
            return Target("list")
        case [b"", b"models", name]:
            return Target("describe", _decode_name(name))
        case [b"", b"models", name, b"invoke"]:
            return Target("invoke", _decode_name(name))
        case _:
            return None


def _decode_name(segment: bytes) -> str:
    try:
        name = unquote(segment.decode("ascii"), errors="strict")
    except UnicodeDecodeError as error:
        raise RequestError(f"the name of the model is not UTF-8: {short(repr(segment))}", hint=_NAMES) from error
    return check_name(name)


def check_name(name: str) -> str:
    """Return a name that can be used: any text that can be shown. It is a key, and never a path.

    Raises:
        RequestError: It is none.
    """
    if not name or len(name) > MOST_NAME_CHARACTERS or not name.isprintable():
        raise RequestError(f"{short(name)} cannot be the name of a model", hint=_NAMES)
    return name


def read_load(body: bytes) -> LoadModel:
    """Read the body of `POST /models`.

    Raises:
        RequestError: It is not of that form.
    """
    if len(body) > MOST_LOAD_BYTES:
        raise RequestError(
            f"the body has {len(body):,} bytes, at most {MOST_LOAD_BYTES:,} are taken",
            status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        )
    form = 'it is {"model_name": "…", "url": "/opt/ml/models/…/model"}'
    try:
        found = msgspec.json.decode(body, type=_Load)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"the body of POST /models cannot be read: {error}", hint=form) from error
    url = found.url.removeprefix("file://")
    if not url.startswith("/") or len(url) > MOST_URL_CHARACTERS or not url.isprintable():
        raise RequestError(f"url={short(found.url)} is not the absolute path of a directory", hint=form)
    return LoadModel(check_name(found.model_name), url)


# ---- answers ----


def list_page(models: Mapping[str, str], query: bytes) -> bytes:
    """Return a page of the list of models, sorted by their names; a token is where the page before has ended.

    Args:
        models: Their names and urls.
        query: Of the request: `next_page_token`, and `limit` as multi-model-server has it.

    Raises:
        RequestError: Either is malformed.
    """
    given = {name: value for name, _, value in (part.partition("=") for part in query.decode("latin-1").split("&"))}
    limit = given.get("limit", str(PAGE_MODELS))
    if not re.fullmatch(r"[1-9][0-9]{0,8}", limit):
        raise RequestError(f"limit={short(limit)} is not a number of models", hint=f"it is 1 to {PAGE_MODELS}")
    count = min(int(limit), PAGE_MODELS)
    after = _read_token(unquote(given.get("next_page_token", "")))
    names = sorted(name for name in models if name > after)
    token = base64.urlsafe_b64encode(names[count - 1].encode()).decode() if len(names) > count else msgspec.UNSET
    listed = tuple(_Listed(name, models[name]) for name in names[:count])
    return msgspec.json.encode(_Page(listed, token))


def _read_token(token: str) -> str:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise RequestError(
            f"next_page_token={short(token)} is none that was given", hint="begin again without a token"
        ) from error


def describe_model(name: str, url: str) -> bytes:
    """Return what is answered about a model."""
    return msgspec.json.encode(_Listed(name, url))


def as_response(reply: Reply) -> Response:
    """Return the answer to a load or an unload."""
    if reply.status != HTTPStatus.OK:
        return problem(reply.status, reply.text, reply.hint)
    return json_response(msgspec.json.encode({"status": reply.text}))


def json_response(body: bytes) -> Response:
    """Return an answer that is JSON."""
    return Response(HTTPStatus.OK, body, (("content-type", "application/json"),))


def problem(status: int, text: str, hint: str = "") -> Response:
    """Return an answer that says what went wrong."""
    body = msgspec.json.encode(_Problem(status, _TYPES.get(status, "InternalServerException"), text, hint))
    return Response(status, body, (("content-type", "application/json"),), note=text)


def stopping() -> Reply:
    """Return what becomes of any change once the server has been asked to stop."""
    return Reply(HTTPStatus.SERVICE_UNAVAILABLE, "the server is stopping")


def loaded() -> Reply:
    """Return what became of a load that went well; the word is multi-model-server's."""
    return Reply(HTTPStatus.OK, "Workers scaled")


def unloaded(name: str) -> Reply:
    """Return what became of an unload that went well."""
    return Reply(HTTPStatus.OK, f'Model "{name}" unregistered')


def not_found(name: str) -> Reply:
    """Return what becomes of a request for a model that is not loaded."""
    return Reply(HTTPStatus.NOT_FOUND, f"Model not found: {name}", "POST /models loads it")


def loaded_already(name: str) -> Reply:
    """Return what becomes of a load of a model that is loaded."""
    return Reply(HTTPStatus.CONFLICT, f"Model {name} is already registered.", "DELETE unloads it")
