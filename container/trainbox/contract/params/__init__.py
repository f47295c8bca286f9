"""Hyperparameters as SageMaker passes them into the typed, frozen struct that a script declares.

The type of a field decides how its text is read, not the text: `0123`, `1e5` and `true` stay text in a field of text.
"""

import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from trainbox.contract.credentials.secrets import REDACTED, is_secret, secrets, without_secrets
from trainbox.contract.params.problems import Problem, alike, find_meant, hint_for, wrong
from trainbox.contract.params.values import LIST_TYPES, options, read, unquote, unwrap
from trainbox.errors import HyperparameterError

P = TypeVar("P")

_SHOWN_LENGTH = 100
_SIMPLE_NAMES = {
    inspect.BoolType: "bool",
    inspect.IntType: "int",
    inspect.FloatType: "float",
    inspect.StrType: "str",
    inspect.NoneType: "null",
    inspect.LiteralType: "one of",
    inspect.EnumType: "one of",
}
_BOUNDS = {
    "gt": ">",
    "ge": ">=",
    "lt": "<",
    "le": "<=",
    "multiple_of": "a multiple of",
    "min_length": "length >=",
    "max_length": "length <=",
    "pattern": "matching",
}


class Field(msgspec.Struct, frozen=True):
    """One hyperparameter of a script, in words; `default` is empty where it is `required`."""

    name: str
    type: str
    required: bool
    default: str
    range: str
    description: str


class ParamSlot(msgspec.Struct, frozen=True):
    """A field of the declaration with what is needed to fill it."""

    attribute: str
    name: str
    kind: inspect.Type
    annotation: Any
    required: bool
    default: object
    description: str


def parse(
    params_type: type[P],
    values: Mapping[str, object],
    *,
    program: str = "",
    partial: bool = False,
    also: Collection[str] = (),
) -> P:
    """Fill a declaration with values, or say at once everything that is wrong with them.

    Args:
        params_type: A `msgspec.Struct` (or dataclass); ranges by `Annotated[float, msgspec.Meta(gt=0, le=1)]`. Where it
            has `instead`, those are names that it does not take, each with what to do instead.
        values: By name, `-` and `_` alike: text as SageMaker gives it, or values decoded already.
        program: Who asks, for the message about a name nobody knows.
        partial: Leave required ones that are not given `msgspec.UNSET`: for a question about a script, not for a job.
        also: Names whose values no message holds, whatever they say.

    Raises:
        HyperparameterError: Lists every unknown, missing, doubled and unreadable hyperparameter.
    """
    slots = _slots(params_type)
    program = program or params_type.__name__
    given, problems = _match(slots, values, getattr(params_type, "instead", {}))
    arguments: dict[str, object] = {}
    for slot in slots:
        if slot.attribute not in given:
            if slot.required and partial:
                arguments[slot.attribute] = msgspec.UNSET
            elif slot.required:
                text = f"'{slot.name}' is missing, expected {_expected(slot.kind)}"
                problems.append(Problem(slot.name, "missing", text))
            continue
        name = given[slot.attribute]
        try:
            arguments[slot.attribute] = msgspec.convert(
                read(slot.kind, values[name]), slot.annotation, dec_hook=_construct
            )
        except (ValueError, OverflowError, RecursionError):
            secret = is_secret(name) or is_secret(slot.name) or name in also
            found = REDACTED if secret else _shown(values[name])
            problems.append(Problem(name, "wrong value", f"'{name}' is {found}, expected {_expected(slot.kind)}"))
    if problems:
        raise wrong(problems, [slot.name for slot in slots], program)
    try:
        return params_type(**arguments)
    except ValueError as error:  # what the declaration's own __post_init__ found
        hidden = secrets({name: unquote(value) for name, value in values.items()}, also)
        raise HyperparameterError(
            f"the hyperparameters do not fit together: {without_secrets(str(error), hidden)}", hint=hint_for(program)
        ) from None


def fields(params_type: type) -> tuple[Field, ...]:
    """The hyperparameters of a declaration in words, in the order declared."""
    return tuple(
        Field(
            name=slot.name,
            type=_type_text(slot.kind),
            required=slot.required,
            default=_default_text(slot),
            range=_range_text(slot.kind),
            description=slot.description,
        )
        for slot in _slots(params_type)
    )


def find_slot(params_type: type, name: str) -> ParamSlot | None:
    """The field of a declaration that a name means, `-` and `_` alike; None where there is none."""
    return next(
        (slot for slot in _slots(params_type) if alike(name) in (alike(slot.attribute), alike(slot.name))), None
    )


def names(params_type: type) -> tuple[str, ...]:
    """The names of the hyperparameters that a script declares."""
    return tuple(slot.name for slot in _slots(params_type))


def json_schema(params_type: type) -> dict[str, Any]:
    """The declaration as JSON schema (draft 2020-12), with the declaration itself at the root."""
    schema = msgspec.json.schema(params_type, schema_hook=lambda _: {"type": "string"})
    definitions = dict(schema.get("$defs", {}))
    root = definitions.pop(str(schema.get("$ref", "")).removeprefix("#/$defs/"), schema)
    for slot in _slots(params_type):
        if is_secret(slot.name) and root["properties"][slot.name].get("default"):
            root["properties"][slot.name]["default"] = REDACTED
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **root,
        **({"$defs": definitions} if definitions else {}),
    }


# --- the declaration ---


def _slots(params_type: type) -> tuple[ParamSlot, ...]:
    # Mistakes in the declaration itself are the script author's: msgspec's TypeError says which field, and passes.
    declared = inspect.type_info(params_type)
    if not isinstance(declared, inspect.StructType | inspect.DataclassType):
        raise TypeError(f"{params_type!r} is no msgspec.Struct and no dataclass")
    annotations = typing.get_type_hints(params_type, include_extras=True)
    return tuple(
        ParamSlot(
            attribute=field.name,
            name=field.encode_name,
            kind=unwrap(field.type),
            annotation=annotations[field.name],
            required=field.required,
            default=field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory(),
            description=_description(field.type),
        )
        for field in declared.fields
    )


def _description(kind: inspect.Type) -> str:
    if isinstance(kind, inspect.Metadata):
        return str((kind.extra_json_schema or {}).get("description", "")) or _description(kind.type)
    if isinstance(kind, inspect.UnionType):  # Annotated[int, Meta(description="...")] | None
        return next((text for text in map(_description, kind.types) if text), "")
    return ""


def _construct(wanted: type, text: str) -> object:
    """An instance of a class that msgspec does not know: Path, or the script's own that takes one text."""
    return wanted(text)


# --- names ---


def _match(
    slots: Sequence[ParamSlot], values: Mapping[str, object], instead: Mapping[str, str]
) -> tuple[dict[str, str], list[Problem]]:
    """Which given name fills which attribute, and what is wrong with the names."""
    known = {alike(slot.attribute): slot for slot in slots} | {alike(slot.name): slot for slot in slots}
    given: dict[str, str] = {}
    problems: list[Problem] = []
    for name in values:
        slot = known.get(alike(name))
        if slot is None and alike(name) in instead:
            problems.append(Problem(name, "not taken", f"{_shown(name)} is not taken: {instead[alike(name)]}"))
        elif slot is None:
            meant = find_meant(name, [slot.name for slot in slots])
            problems.append(Problem(name, "unknown", f"{_shown(name)} is not known", meant))
        elif slot.attribute in given:
            text = f"'{given[slot.attribute]}' and '{name}' are both given, but they are the same one"
            problems.append(Problem(name, "given twice", text))
        else:
            given[slot.attribute] = name
    return given, problems


# --- words ---


def _shown(value: object) -> str:
    text = without_secrets(repr(value), ())
    return text if len(text) <= _SHOWN_LENGTH else f"{text[:_SHOWN_LENGTH]}… ({len(text)} characters)"


def _expected(kind: inspect.Type) -> str:
    """What to write, as the end of "expected …"."""
    kind = unwrap(kind)
    if isinstance(kind, inspect.UnionType):
        return " or ".join([*map(_expected, _members(kind)), *["null"] * _is_nullable(kind)])
    if isinstance(kind, LIST_TYPES):
        return f"list of {_expected(kind.item_type)} {_bounds_text(kind)}".rstrip() + " (JSON, or separated by commas)"
    text = f"{_type_text(kind)} {_range_text(kind)}".rstrip()
    note = {inspect.BoolType: "true or false", inspect.DictType: "JSON", inspect.TupleType: "JSON"}.get(type(kind))
    return f"{text} ({note})" if note else text


def _type_text(kind: inspect.Type) -> str:
    kind = unwrap(kind)
    if isinstance(kind, inspect.UnionType):
        return _union_text(kind)
    if isinstance(kind, inspect.DictType):
        return f"dict of {_type_text(kind.key_type)} to {_type_text(kind.value_type)}"
    if isinstance(kind, inspect.TupleType):
        return f"tuple of {', '.join(map(_type_text, kind.item_types))}"
    if isinstance(kind, LIST_TYPES):
        return "list" if _is_choice(kind.item_type) else f"list of {_type_text(kind.item_type)}"
    named = getattr(kind, "cls", None)
    if named is None or isinstance(kind, inspect.EnumType):
        return _SIMPLE_NAMES.get(type(kind)) or type(kind).__name__.removesuffix("Type").lower()
    return str(named.__name__)


def _union_text(kind: inspect.UnionType) -> str:
    members = _members(kind)
    if len(members) == 1:  # its range has the column to itself
        return f"{_type_text(members[0])} or null"
    texts = [f"{_type_text(member)} {_range_text(member)}".strip() for member in members]
    return " or ".join([*texts, *["null"] * _is_nullable(kind)])


def _is_choice(kind: inspect.Type) -> bool:
    return isinstance(unwrap(kind), inspect.LiteralType | inspect.EnumType)


def _members(kind: inspect.UnionType) -> list[inspect.Type]:
    return [member for member in map(unwrap, kind.types) if not isinstance(member, inspect.NoneType)]


def _is_nullable(kind: inspect.UnionType) -> bool:
    return len(_members(kind)) < len(kind.types)


def _range_text(kind: inspect.Type) -> str:
    kind = unwrap(kind)
    if isinstance(kind, inspect.LiteralType | inspect.EnumType):
        return ", ".join(options(kind))
    if isinstance(kind, inspect.UnionType):  # several members have their ranges within the text of the type
        members = _members(kind)
        return _range_text(members[0]) if len(members) == 1 else ""
    each = _range_text(kind.item_type) if isinstance(kind, LIST_TYPES) else ""
    choice = "one of " * (isinstance(kind, LIST_TYPES) and _is_choice(kind.item_type))
    return " and ".join(filter(None, [_bounds_text(kind), each and f"each {choice}{each}"]))


def _bounds_text(kind: inspect.Type) -> str:
    bounds = {sign: getattr(kind, name, None) for name, sign in _BOUNDS.items()}
    return " and ".join(f"{sign} {bound}" for sign, bound in bounds.items() if bound is not None)


def _default_text(slot: ParamSlot) -> str:
    if slot.required:
        return ""
    if is_secret(slot.name) and slot.default:
        return REDACTED
    if isinstance(slot.default, float):
        return repr(slot.default)
    written = msgspec.json.encode(slot.default, enc_hook=str).decode()
    return unquote(written)
