"""What a declaration says of the values of one hyperparameter: its kind and its bounds; for a search."""

import math
from typing import Literal

import msgspec
from msgspec import inspect

from trainbox.contract.params import ParamSlot, find_slot
from trainbox.contract.params.values import options, read, unwrap

Kind = Literal["int", "float", "choice", "other"]
#: How far from a bound that is excluded a search stays, as a part of the whole.
_MARGIN = 1e-4


class DeclaredRange(msgspec.Struct, frozen=True):
    """The values of a hyperparameter."""

    name: str
    kind: Kind
    #: None where there is no bound.
    low: float | None = None
    high: float | None = None
    options: tuple[str, ...] = ()


def find_range(params_type: type, name: str) -> DeclaredRange | None:
    """Return what a declaration says of a hyperparameter, `-` and `_` alike; None where it does not have it."""
    slot = find_slot(params_type, name)
    return None if slot is None else _range(slot)


def _range(slot: ParamSlot) -> DeclaredRange:
    kinds = slot.kind.types if isinstance(slot.kind, inspect.UnionType) else (slot.kind,)
    kinds = tuple(kind for kind in map(unwrap, kinds) if not isinstance(kind, inspect.NoneType))
    kind = kinds[0] if len(kinds) == 1 else None
    match kind:
        case inspect.IntType():
            low = kind.ge if kind.ge is not None else kind.gt + 1 if kind.gt is not None else None
            high = kind.le if kind.le is not None else kind.lt - 1 if kind.lt is not None else None
            return DeclaredRange(slot.name, "int", low, high)
        case inspect.FloatType():
            return DeclaredRange(slot.name, "float", *_inside(kind))
        case inspect.LiteralType() | inspect.EnumType():
            return DeclaredRange(slot.name, "choice", options=tuple(options(kind)))
        case inspect.BoolType():
            return DeclaredRange(slot.name, "choice", options=("true", "false"))
        case _:
            return DeclaredRange(slot.name, "other")


def _inside(kind: inspect.FloatType) -> tuple[float | None, float | None]:
    """The bounds, both included; what is excluded is left by a small part of the whole."""
    low = kind.ge if kind.ge is not None else kind.gt
    high = kind.le if kind.le is not None else kind.lt
    if low is None or high is None:
        return low, high
    margin = (high - low) * _MARGIN
    return low + margin * (kind.ge is None), high - margin * (kind.le is None)


def is_accepted(params_type: type, name: str, text: str) -> bool:
    """Return whether a declaration takes a text as the value of a hyperparameter that it has."""
    slot = find_slot(params_type, name)
    if slot is None:
        return False
    try:
        value = msgspec.convert(read(slot.kind, text), slot.annotation, dec_hook=lambda wanted, given: wanted(given))
    except (ValueError, OverflowError, RecursionError):
        return False
    return not (isinstance(value, float) and not math.isfinite(value))
