"""Calls of AWS in documentation, checked against botocore's models: operations, parameters, types, limits, patterns."""

import ast
import functools
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import botocore.session
import msgspec
from botocore import xform_name
from botocore.model import ListShape, MapShape, ServiceModel, Shape, StringShape, StructureShape
from botocore.validate import ParamValidator

#: In place of a value that only a run would make.
UNKNOWN = "a value of the run"
#: Methods of boto3's clients that are no operation of a service.
_HELPERS = {"get_waiter", "get_paginator", "generate_presigned_url", "upload_file", "download_file"}
#: Commands of the CLI that are no operation of a service.
_CUSTOM = {("s3", "*"), ("configure", "*"), ("sso", "*"), ("ecr", "get-login-password"), ("logs", "tail")}
_GLOBAL_OPTIONS = {"region", "profile", "query", "output", "no-cli-pager", "cli-input-json"}


class Call(msgspec.Struct, frozen=True):
    """One call of a client of boto3."""

    service: str
    method: str
    parameters: Mapping[str, Any]


def find_calls(source: str) -> list[Call]:
    """The calls that a Python example makes: methods of `….client("x")`, or of a variable that holds one."""
    tree = ast.parse(source)
    clients: dict[str, str] = {}
    values: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name, service = node.targets[0].id, _service(node.value)
            if service:
                clients[name] = service
            else:
                values[name] = _evaluate(node.value, values)
    return list(_calls(tree, clients, values))


def _calls(tree: ast.AST, clients: Mapping[str, str], values: Mapping[str, Any]) -> Iterator[Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            service = clients.get(owner.id) if isinstance(owner, ast.Name) else _service(owner)
            if service and node.func.attr not in _HELPERS:
                pairs = [(None if each.arg is None else ast.Constant(each.arg), each.value) for each in node.keywords]
                given = _join(pairs, values)
                given.update(
                    {f"argument {place + 1}": UNKNOWN for place in range(len(node.args))}
                )  # clients take names
                yield Call(service, node.func.attr, given)


def _service(node: ast.expr) -> str | None:
    """The service of a client that an expression makes, by boto3 itself or by a session."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "client":
        first = node.args[0] if node.args else None
        return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None
    return None


def _evaluate(node: ast.expr, values: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return values.get(node.id, UNKNOWN)
        case ast.Dict():
            return _join(zip(node.keys, node.values, strict=True), values)
        case ast.List() | ast.Tuple():
            return [_evaluate(each, values) for each in node.elts]
        case _:
            return UNKNOWN


def _join(pairs: Iterable[tuple[ast.expr | None, ast.expr]], values: Mapping[str, Any]) -> dict[Any, Any]:
    """A dict of keys and values; what has no key (`**x`) is joined with it, or is unknown by its text."""
    joined: dict[Any, Any] = {}
    for key, each in pairs:
        value = _evaluate(each, values)
        if key is not None:
            joined[_evaluate(key, values)] = value
        elif isinstance(value, dict):
            joined.update(value)
        else:
            joined[f"**{ast.unparse(each)}"] = UNKNOWN
    return joined


def check_call(call: Call) -> list[str]:
    """What the model of the service says against a call; empty if nothing."""
    model = _model(call.service)
    operations = {xform_name(name): name for name in model.operation_names}
    if call.method not in operations:
        return [f"{call.service} has no {call.method}"]
    shape = model.operation_model(operations[call.method]).input_shape
    if shape is None:
        return [f"{call.method} takes no {name}" for name in call.parameters]
    report = ParamValidator().validate(dict(call.parameters), shape)
    wrong = [report.generate_report()] if report.has_errors() else list(_beyond(call.parameters, shape, call.method))
    return [f"{call.service}.{call.method}: {each}" for each in wrong]


def _beyond(value: Any, shape: Shape, where: str) -> Iterator[str]:
    """Values that botocore sends and the service rejects: beyond a limit, not of an enumeration or a pattern."""
    for inner, below, name in _inside(value, shape):
        yield from _beyond(inner, below, f"{where}.{name}")
    if isinstance(shape, StringShape) and value != UNKNOWN:
        if shape.enum and value not in shape.enum:
            yield f"{where}: {value!r} is none of {', '.join(shape.enum)}"
        pattern = _pattern(shape)
        if pattern and not pattern.fullmatch(value):
            yield f"{where}: {value!r} does not match {pattern.pattern}"
    most = shape.metadata.get("max")
    if most is not None and (len(value) if hasattr(value, "__len__") else value) > most:
        yield f"{where}: {value!r} exceeds {most}"


def _inside(value: Any, shape: Shape) -> Iterator[tuple[Any, Shape, object]]:
    """The values that a value holds, with their shapes and names."""
    if isinstance(shape, StructureShape):
        yield from ((each, shape.members[name], name) for name, each in value.items())
    elif isinstance(shape, ListShape):
        yield from ((each, shape.member, place) for place, each in enumerate(value))
    elif isinstance(shape, MapShape):
        for name, each in value.items():
            yield name, shape.key, "key"
            yield each, shape.value, name


def _pattern(shape: Shape) -> "re.Pattern[str] | None":
    try:
        # Java's names of classes, where Python has others.
        return re.compile(shape.metadata["pattern"].replace(r"\p{Alnum}", "A-Za-z0-9"), re.DOTALL)
    except (KeyError, re.error):
        return None


@functools.cache
def _model(service: str) -> ServiceModel:
    return botocore.session.get_session().get_service_model(service)


def check_command(line: str) -> list[str]:
    """What the models say against a command `aws SERVICE OPERATION --option …`; empty if nothing."""
    _, service, operation, *rest = shlex.split(line.partition("|")[0])
    if {(service, "*"), (service, operation)} & _CUSTOM:
        return []
    model = _model(service)
    operations = {xform_name(name, "-"): name for name in model.operation_names}
    if operation == "wait":
        waiters = botocore.session.get_session().get_waiter_model(service)
        waits = {xform_name(name, "-"): waiters.get_waiter(name).operation for name in waiters.waiter_names}
        if rest[0] not in waits:
            return [f"{line}: no waiter {rest[0]}"]
        operation = xform_name(waits[rest[0]], "-")
    if operation not in operations:
        return [f"{line}: {service} has no {operation}"]
    shape = model.operation_model(operations[operation]).input_shape
    options = {xform_name(name, "-") for name in shape.members} if shape else set()
    needed = {xform_name(name, "-") for name in shape.required_members} if shape else set()
    given = {word.removeprefix("--") for word in rest if word.startswith("--")}
    wrong = [f"{line}: no option --{name}" for name in sorted(given - options - _GLOBAL_OPTIONS)]
    if "cli-input-json" not in given:
        wrong += [f"{line}: --{name} is missing" for name in sorted(needed - given)]
    return wrong
