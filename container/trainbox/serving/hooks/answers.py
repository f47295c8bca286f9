"""Answers by the user's hooks: the body as they get it, what stands for those that are missing, what they return."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any

import msgspec

from trainbox.serving.hooks.calls import HookError, Hooks, as_hook_error, call
from trainbox.serving.hooks.context import Context
from trainbox.serving.hooks.defaults import as_model_input

#: Content types whose body a hook gets as text.
_TEXTS = frozenset({"application/json", "text/csv"})


class Defaults(msgspec.Struct, frozen=True):
    """What stands for the hooks that the user's module lacks."""

    #: From body and content type to rows.
    decode: Callable[[bytes, str], Any]
    #: From rows and model to predictions.
    predict: Callable[[Any, Any], Any]
    #: From predictions and `Accept` to a body and its content type.
    encode: Callable[[Any, str], tuple[bytes, str]]


class HookAnswer(msgspec.Struct, frozen=True):
    """What the hooks answer."""

    body: bytes | Iterator[bytes]
    content_type: str
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()


def answer_with_hooks(
    hooks: Hooks,
    model: Any,  # noqa: ANN401 - whatever model_fn returns
    body: bytes,
    content_type: str,
    accept: str,
    *,
    context: Context,
    defaults: Defaults,
) -> HookAnswer:
    """Answer one request with the user's hooks, and ours where there is none.

    Args:
        hooks: The hooks.
        model: What `load_user_model` has returned.
        body: The request, decompressed.
        content_type: Its header of this name.
        accept: What the answer is to be, the default where the request leaves it open.
        context: Of this request.
        defaults: Ours.

    Raises:
        HookError: A hook has raised an error, or returned what is no answer.
        DataError: The body cannot be used by ours.
    """
    if "transform_fn" in hooks:
        given = _as_text(body, content_type)
        said = call(hooks, "transform_fn", model, given, content_type, accept, context=context)
        return _as_answer(hooks, "transform_fn", said, accept, context)
    if "input_fn" in hooks:
        data = call(hooks, "input_fn", _as_text(body, content_type), content_type, context=context)
    else:
        data = as_model_input(defaults.decode(body, content_type), model)
    if "predict_fn" in hooks:
        prediction = call(hooks, "predict_fn", data, model, context=context)
    else:
        prediction = defaults.predict(data, model)
    if "output_fn" in hooks:
        said = call(hooks, "output_fn", prediction, accept, context=context)
        return _as_answer(hooks, "output_fn", said, accept, context)
    if _is_stream(prediction):  # what a model makes bit by bit is sent so
        return _as_answer(hooks, "predict_fn", prediction, accept, context)
    content, kind = defaults.encode(prediction, accept)
    return _finish(content, kind, context)


def _as_text(body: bytes, content_type: str) -> bytes | str:
    """Return the body as a hook gets it.

    Raises:
        HookError: A text is not UTF-8.
    """
    if content_type.partition(";")[0].strip().lower() not in _TEXTS:
        return body
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise HookError(
            f"the body is no UTF-8: byte {error.start} is 0x{body[error.start]:02x}",
            hint=f"encode {content_type} as UTF-8",
            status=HTTPStatus.BAD_REQUEST,
        ) from error


def _is_stream(said: object) -> bool:
    return isinstance(said, Iterator | AsyncIterator)


def _as_answer(hooks: Hooks, name: str, said: Any, accept: str, context: Context) -> HookAnswer:  # noqa: ANN401
    """Return the answer that a hook has given: a body, or a pair of body and content type."""
    kind = accept
    if isinstance(said, tuple) and len(said) == 2 and isinstance(said[1], str):  # noqa: PLR2004 - a pair
        said, kind = said
    if _is_stream(said):
        return _finish(_encode_parts(hooks, name, said), kind, context)
    content = _as_bytes(said)
    if content is None:
        raise HookError(
            f"{name} of {hooks.path.name} returned {type(said).__name__}, expected bytes, text or an iterator of these",
            hint="encode the prediction, as with json.dumps",
        )
    return _finish(content, kind, context)


def _as_bytes(said: object) -> bytes | None:
    match said:
        case str():
            return said.encode()
        case bytes() | bytearray() | memoryview():
            return bytes(said)
        case _:
            return None


def _encode_parts(hooks: Hooks, name: str, parts: Iterable[object]) -> Iterator[bytes]:
    """Yield the parts of a stream; the user's generator is closed with it."""
    parts = _await_each(parts) if isinstance(parts, AsyncIterator) else parts
    try:
        for part in parts:
            content = _as_bytes(part)
            if content is None:
                break
            yield content
        else:
            return
    except Exception as error:
        raise as_hook_error(hooks, name, error) from error
    finally:
        close = getattr(parts, "close", None)
        if close is not None:
            close()
    raise HookError(f"a part of the answer of {name} is {type(part).__name__}, expected bytes or text")


def _await_each(parts: AsyncIterator[object]) -> Iterator[object]:
    """Yield the parts of an asynchronous generator, by an event loop of its own: that of the worker has other work."""
    with asyncio.Runner() as runner:
        try:
            while True:
                yield runner.run(_next(parts))
        except StopAsyncIteration:
            return
        finally:
            close = getattr(parts, "aclose", None)
            if close is not None:
                runner.run(close())


async def _next(parts: AsyncIterator[object]) -> object:
    return await anext(parts)


def _finish(body: bytes | Iterator[bytes], kind: str, context: Context) -> HookAnswer:
    headers = context.response_headers
    chosen = next((value for name, value in headers if name.lower() == "content-type"), kind)
    others = tuple((name, value) for name, value in headers if name.lower() != "content-type")
    return HookAnswer(body, chosen, context.response_status, others)


def encode_parameters(hooks: Hooks, context: Context) -> bytes | None:
    """Return what `execution_parameters_fn` says of a batch transform job, as JSON; None where there is no such hook.

    In the scikit-learn container it is a view of Flask, so that a response of Flask will do, too.

    Raises:
        HookError: It has raised an error, or returned no object of JSON.
    """
    name = "execution_parameters_fn"
    if name not in hooks:
        return None
    said = call(hooks, name, context=context)
    said = said.get_data() if callable(getattr(said, "get_data", None)) else said
    try:
        content = msgspec.json.encode(said) if isinstance(said, Mapping) else _as_bytes(said) or b""
        msgspec.json.decode(content, type=dict[str, Any])
    except (TypeError, ValueError, NotImplementedError) as error:  # msgspec's are of these
        raise HookError(
            f"{name} of {hooks.path.name} returned {type(said).__name__} that is no object of JSON",
            hint='return {"MaxConcurrentTransforms": 4, "BatchStrategy": "MULTI_RECORD", "MaxPayloadInMB": 6}',
        ) from error
    return content
