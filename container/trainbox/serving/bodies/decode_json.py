"""JSON and JSON Lines of a request, in the forms that people send.

| form | example |
|---|---|
| rows; one row | `[[1, 2], [3, 4]]`; `[1, 2]` |
| records; one record | `[{"age": 1, "pay": 2}]`; `{"age": 1, "pay": 2}` |
| a list under a name | `{"instances": …}`, also `inputs`, `data`, `rows`, `dataframe_records`: rows or records |
| SageMaker's common formats | `{"instances": [{"features": [1, 2]}]}`, `{"data": {"features": {"values": [1, 2]}}}` |
| sparse ones | `{"features": {"keys": [0, 7], "shape": [9], "values": [1, 2]}}` |
| pandas' `orient="split"` | `{"columns": ["age", "pay"], "data": [[1, 2]]}`, also under `dataframe_split` |
| columns | `{"age": [1, 3], "pay": [2, 4]}` |
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from trainbox.contract.text import short
from trainbox.lazy_names import lazy_module
from trainbox.serving.bodies.features import FeaturePlan, Floats, check_cells, check_count, check_size, order_of
from trainbox.serving.bodies.request_errors import RequestError, describe_place

if TYPE_CHECKING:
    import pyarrow as pa
else:
    pa = lazy_module("pyarrow")

_LISTS = ("instances", "inputs", "data", "rows", "dataframe_records", "records")
_SPLIT = "dataframe_split"
_ROWS = msgspec.json.Decoder(list[list[float | None]])
_FORMS = 'rows such as [[1, 2], [3, 4]], or records such as [{"age": 1}]'
_LONGEST = 80


def decode_json(body: bytes, plan: FeaturePlan) -> Floats:
    """Return the rows of a body of JSON.

    Raises:
        RequestError: With row, column, name and value of the first cell that cannot be used.
    """
    rows = _read_quickly(body, plan)
    return rows if rows is not None else _rows_of(_parse(body, "the body", None), plan)


def decode_json_lines(body: bytes, plan: FeaturePlan, first: int = 1) -> Floats:
    """Return the rows of JSON Lines: a row or a record in each; blank lines are skipped.

    Args:
        body: Whole lines.
        plan: What the model expects.
        first: The number of the first line.

    Raises:
        RequestError: As `decode_json`; the row is the number of the line.
    """
    lines = [(number, line) for number, line in enumerate(body.split(b"\n"), first) if line.strip()]
    found = [_parse(line, f"line {number}", number) for number, line in lines]
    numbers = [number for number, _ in lines]
    for number, item in zip(numbers, found, strict=True):
        if isinstance(item, list) and item and isinstance(item[0], (list, dict)):
            raise RequestError(f"line {number} has several rows", hint="send one row a line", row=number)
    return _as_matrix([_unwrapped(item, plan, len(found)) for item in found], plan, numbers)


def _read_quickly(body: bytes, plan: FeaturePlan) -> Floats | None:
    """Read a list of rows of numbers; None for anything else."""
    if plan.coded or plan.markers or plan.is_open or body[:1] != b"[":
        return None
    try:
        found = _ROWS.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    if not found or any(len(row) != plan.count for row in found):
        return None
    rows = _rounded(found)
    return rows if np.isfinite(rows).all() or not np.isinf(rows).any() else None


def _rounded(found: Sequence[Sequence[float | None]]) -> Floats:
    with np.errstate(over="ignore"):  # reported with its place
        return np.array(found, np.float64).astype(np.float32)


def _parse(body: bytes, shown: str, row: int | None) -> Any:  # noqa: ANN401 - JSON
    """Parse JSON; `NaN`, which Python writes, is missing."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        first = error
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(first)
        raise RequestError(
            f"{shown} is not JSON: {reason}", hint=f"send {_FORMS}", row=row, redacted=f"{shown} is not JSON"
        ) from error


def _rows_of(found: Any, plan: FeaturePlan) -> Floats:  # noqa: ANN401 - JSON
    items = _items_of(found, plan)
    return _as_matrix([_unwrapped(item, plan, len(items)) for item in items], plan, range(1, len(items) + 1))


def _items_of(found: Any, plan: FeaturePlan) -> Sequence[Any]:  # noqa: ANN401 - JSON
    """Return rows or records, one for each answer."""
    if isinstance(found, list):
        return found if not found or isinstance(found[0], (list, dict)) else [found]
    if not isinstance(found, dict):
        raise RequestError(f"the body is {_kind(found)}", hint=f"send {_FORMS}")
    if _is_record(found, plan):
        return _columns(found, plan) if all(isinstance(each, list) for each in found.values()) else [found]
    if "columns" in found and "data" in found:
        return _split(found["columns"], found["data"])
    inner = next((found[name] for name in _LISTS if isinstance(found.get(name), list)), None)
    if inner is None and "features" not in found and not isinstance(found.get("data"), dict):
        inner = next((found[name] for name in (_SPLIT, *_LISTS) if isinstance(found.get(name), dict)), None)
    return [found] if inner is None else _items_of(inner, plan)


def _is_record(found: Mapping[str, Any], plan: FeaturePlan) -> bool:
    return bool(found) and all(plan.place(name) is not None for name in found)


def _columns(found: Mapping[str, Sequence[Any]], plan: FeaturePlan) -> Sequence[Any]:
    lengths = {name: len(values) for name, values in found.items()}
    if len(set(lengths.values())) > 1:
        one, other = min(lengths, key=lengths.__getitem__), max(lengths, key=lengths.__getitem__)
        raise RequestError(
            f"the column {one!r} has {lengths[one]:,} values, {other!r} has {lengths[other]:,}",
            hint="give each column a value for each row",
            name=one,
            column=(plan.place(one) or 0) + 1,
        )
    return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]


def _split(columns: Any, data: Any) -> Sequence[Any]:  # noqa: ANN401 - JSON
    if not isinstance(columns, list) or not isinstance(data, list):
        raise RequestError("columns and data must be lists", hint='send {"columns": ["age"], "data": [[1], [2]]}')
    for number, row in enumerate(data, start=1):
        if not isinstance(row, list) or len(row) != len(columns):
            what = f"{len(row):,} values" if isinstance(row, list) else _kind(row)
            raise RequestError(
                f"row {number} has {what} for {len(columns):,} columns", hint="give each column a value", row=number
            )
    names = [name if isinstance(name, str) else json.dumps(name) for name in columns]
    if len(set(names)) < len(names):
        name = next(name for name in names if names.count(name) > 1)
        raise RequestError(f"the column {name!r} is repeated", hint="name each once", name=name)
    return [dict(zip(names, row, strict=True)) for row in data]


def _unwrapped(item: Any, plan: FeaturePlan, rows: int) -> Any:  # noqa: ANN401 - JSON
    """Return the values of one row: a list, or a record by name; sparse ones become a list."""
    if not isinstance(item, dict) or _is_record(item, plan):
        return item
    for name in ("data", "features"):
        if name in item and isinstance(item[name], (dict, list)):
            item = item[name]
            if not isinstance(item, dict):
                return item
    if isinstance(item.get("values"), list):
        return _dense(item, plan, rows)
    return item


def _dense(tensor: Mapping[str, Any], plan: FeaturePlan, rows: int) -> Any:  # noqa: ANN401 - JSON
    """Return the values of a tensor of SageMaker's common formats."""
    values, keys = tensor["values"], tensor.get("keys")
    if keys is None:
        return values
    check_size(plan, rows, plan.count)
    row: list[Any] = [0.0 if plan.is_absent_zero else None] * plan.count
    is_valid = isinstance(keys, list) and len(keys) == len(values)
    if not is_valid or not all(type(key) is int and 0 <= key < plan.count for key in keys):
        raise RequestError(
            f"keys must be a list of {len(values):,} indices below {plan.count:,}",
            hint='send {"features": {"keys": [0, 7], "values": [1, 2]}}, counted from 0',
        )
    if len(set(keys)) < len(keys):
        raise RequestError("a key is repeated", hint="give each column one value")
    for key, value in zip(keys, values, strict=True):
        row[key] = value
    return row


# ---- rows and records ----


def _as_matrix(items: Sequence[Any], plan: FeaturePlan, numbers: Sequence[int]) -> Floats:
    """Return lists or records as rows, in the order of the model.

    Args:
        items: A list or record for each row.
        plan: What the model expects.
        numbers: The number of each row, for messages.
    """
    if plan.is_open and items and all(isinstance(item, list) for item in items):
        return _as_array(items)
    cells = [list(_cells(item, plan, number)) for item, number in zip(items, numbers, strict=True)]
    for row, number in zip(cells, numbers, strict=True):
        _replace_texts(row, plan, number)
    if not cells:
        return np.empty((0, plan.count), np.float32)
    rows = _rounded(cells)
    for marker in plan.markers:
        rows[rows == np.float32(marker)] = np.nan
    check_cells(plan, rows, numbers.__getitem__)
    return rows


def _as_array(items: Sequence[Any]) -> Floats:
    """Return lists, which may have lists in them, as an array; for a model that does not say what it takes."""
    wrong = RequestError(
        "the rows are not an array of numbers", hint="send lists of numbers, each as long as the others"
    )
    try:
        kind = np.array(items).dtype.kind
        rows = _rounded(items)
    except (ValueError, TypeError, OverflowError) as error:
        raise wrong from error
    if kind in "US":  # texts, which were parsed
        raise wrong
    if np.isinf(rows).any():
        raise RequestError("a value is infinite or out of the range of a 32-bit float", hint="send finite numbers")
    return rows


def _cells(item: Any, plan: FeaturePlan, number: int) -> Iterator[Any]:  # noqa: ANN401 - JSON
    if isinstance(item, list):
        check_count(plan, len(item), f"row {number}", number)
        yield from item
    elif isinstance(item, dict):
        names = list(item)
        try:
            order = order_of(plan, names, f"row {number}", is_ordered=False)
        except RequestError as error:
            error.row, error.column = number, None
            raise
        values = list(item.values())
        yield from values if order is None else (values[place] for place in order)
    else:
        raise RequestError(f"row {number} is {_kind(item)}", hint=f"send {_FORMS}", row=number)


def _replace_texts(row: list[Any], plan: FeaturePlan, number: int) -> None:
    """Replace texts and truth values by numbers, in place."""
    for place, value in enumerate(row):
        kind = type(value)
        if place in plan.codes:
            row[place] = _code(value, plan, place, number)
        elif kind is bool:
            row[place] = float(value)
        elif kind is int:
            row[place] = _float(value)
        elif kind is not float and value is not None:
            raise _bad_value(value, plan, place, number, "a number is expected")


def _float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf  # reported with its place


def _code(value: Any, plan: FeaturePlan, place: int, number: int) -> float | None:  # noqa: ANN401 - JSON
    """Return the code of a text; a number is the text that it has in CSV."""
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return None
    if isinstance(value, (list, dict)):
        raise _bad_value(value, plan, place, number, "a text is expected")
    text = value if isinstance(value, str) else str(pa.scalar(value).cast(pa.string()).as_py())
    text = {True: "True", False: "False"}[value] if isinstance(value, bool) else text.strip(" \t")
    if text in plan.columns.missing:
        return None
    code = plan.codes[place].get(text)
    if code is None and plan.columns.unseen == "error":
        raise _bad_value(value, plan, place, number, "it is not among the texts of training")
    return None if code is None else float(code)


def _bad_value(value: Any, plan: FeaturePlan, place: int, number: int, why: str) -> RequestError:  # noqa: ANN401 - JSON
    where = describe_place(number, place + 1, plan.name(place))
    text = value if isinstance(value, str) else json.dumps(value)[:_LONGEST]
    known = ", ".join(repr(each) for each in list(plan.codes.get(place, ()))[:20])
    return RequestError(
        f"{where}: {short(text)}: {why}",
        hint=f"send one of {known}" if known else "send a number; null is a missing value",
        row=number,
        column=place + 1,
        name=plan.name(place),
        value=text,
        redacted=f"{where}: {why}",
    )


def _kind(value: Any) -> str:  # noqa: ANN401 - JSON
    kinds = {
        str: "a text",
        bool: "a truth value",
        int: "a number",
        float: "a number",
        dict: "an object",
        list: "a list",
    }
    return kinds.get(type(value), "null")
