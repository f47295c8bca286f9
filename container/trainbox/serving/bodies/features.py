"""What a model expects of each feature: the columns of a body are matched with it, reordered and checked."""

from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from trainbox.contract.model_card import MISSING, Features, ModelCard
from trainbox.contract.text import did_you_mean, short, some
from trainbox.data.formats import ColumnSpec, RowError
from trainbox.data.formats.categories import Coding
from trainbox.data.formats.cell_types import NUMBER, hint_for_cell, is_missing_marker
from trainbox.errors import DataError
from trainbox.lazy_names import lazy_module
from trainbox.serving.bodies.request_errors import RequestError, describe_place

if TYPE_CHECKING:
    import scipy.sparse
else:
    scipy = lazy_module("scipy")

Floats: TypeAlias = npt.NDArray[np.float32]
#: What a predictor takes.
Matrix: TypeAlias = "Floats | scipy.sparse.csr_matrix"
#: The number of a row, counted from 0, in the body: of its line, row or record.
Numbering: TypeAlias = Callable[[int], int]
_MOST_NAMES = 20
#: XGBoost takes no larger code of a category.
_MOST_CODES = 2**24
#: Where a body may be of any length.
_MOST_CELLS = 100 * 2**20


class FeaturePlan(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """What a model expects, derived once from its card."""

    count: int
    #: Empty where training had no names.
    names: tuple[str, ...] = ()
    places: Mapping[str, int] = {}
    #: Of CSV, Parquet and Arrow.
    columns: ColumnSpec
    #: The codes of texts; None where the model has no texts.
    coding: Coding | None = None
    #: By position the code of each text.
    codes: Mapping[int, Mapping[str, int]] = {}
    #: The positions of features whose numbers are codes, and the first code that each has not.
    coded: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    #: Numbers that stand for a missing value in texts such as CSV.
    markers: tuple[float, ...] = ()
    #: Whether CSV may be read as plain numbers, and texts with codes, that commas separate.
    is_plain: bool = True
    #: By position of a feature of texts the JSON of each cell of CSV.
    words: Mapping[int, Mapping[bytes, bytes]] = {}
    #: Whether a header is no row without an answer: in batch transform answers are joined with lines.
    refuses_header: bool = False
    #: What a feature is that a sparse row does not name.
    is_absent_zero: bool = False
    #: (channels, height, width) of a network that takes images; empty for rows.
    shape: tuple[int, ...] = ()
    #: The most cells that a body may be decoded to.
    most_cells: int = 2**28

    @property
    def is_open(self) -> bool:
        """Whether nothing is known of the features: a foreign model's file may not say; the model itself refuses."""
        return not self.count and not self.shape

    def name(self, place: int) -> str:
        """Return the name of a feature."""
        return self.names[place] if self.names else f"f{place}"

    def place(self, name: str) -> int | None:
        """Return where a feature is; None where there is none of this name."""
        return self.places.get(name) if self.names else Features(self.count).place(name)


def plan_features(card: ModelCard, *, most_bytes: int = 0, is_batch: bool = False) -> FeaturePlan:
    """Derive from a model's card what a request must have.

    Args:
        card: The card.
        most_bytes: The limit of a body, which bounds what it may be decoded to; 0 is any length.
        is_batch: Whether requests are those of a batch transform job.
    """
    places = {name: place for place, name in enumerate(card.features.names)}
    texts = {places.get(name, card.features.place(name) or 0): tuple(each) for name, each in card.categories.items()}
    coded = tuple(sorted(card.features.coded() | set(texts)))
    missing = card.missing or MISSING
    markers = tuple(float(text) for text in card.missing if NUMBER.fullmatch(text.strip()))
    return FeaturePlan(
        count=card.features.count,
        names=card.features.names,
        places=places,
        columns=ColumnSpec(
            labels=0,
            missing=missing,
            delimiter=card.delimiter,
            texts=bool(texts),
            unseen=card.unseen,
        ),
        coding=Coding(texts) if texts else None,
        codes={place: {text: code for code, text in enumerate(each)} for place, each in texts.items()},
        coded=coded,
        markers=markers,
        is_plain=_is_plain(card, missing, markers),
        words={place: _words(each, missing) for place, each in texts.items()},
        refuses_header=is_batch,
        ends=tuple(len(texts[place]) if place in texts else _MOST_CODES for place in coded),
        is_absent_zero=card.absent == "zero",
        shape=card.shape if len(card.shape) == 3 else (),  # noqa: PLR2004 - channels, height, width
        most_cells=max(most_bytes or _MOST_CELLS, 2**20),
    )


def _is_plain(card: ModelCard, missing: Sequence[str], markers: Sequence[float]) -> bool:
    """Return whether lines of numbers are rows; not where a number may be missing, or a header be of numbers."""
    names = card.features.names
    has_words = not names or any(NUMBER.fullmatch(name) is None for name in names)
    can_replace = not card.categories or {"", "null"} <= set(missing)
    return card.features.count > 0 and has_words and can_replace and not markers and card.delimiter in {None, ","}


def _words(texts: Sequence[str], missing: Sequence[str]) -> Mapping[bytes, bytes]:
    """Return the JSON of the cells of a feature of texts; what needs quotes or blanks around it is left out."""
    cells = {text.encode(): str(code).encode() for code, text in enumerate(texts) if "," not in text}
    return cells | {marker.encode(): b"null" for marker in (*missing, "NaN", "nan")}


# ---- names ----


def order_of(
    plan: FeaturePlan, names: Sequence[str], shown: str = "the body", *, is_ordered: bool = True
) -> list[int] | None:
    """Return for each feature the position of its column; None where the columns are in order already.

    Args:
        plan: What the model expects.
        names: The names of the columns.
        shown: The body or its part, for messages.
        is_ordered: Whether columns have an order, so that a model without names may take them as they come.

    Raises:
        RequestError: A name is unknown, repeated or missing; one error tells all of them.
    """
    if tuple(names) == plan.names or (plan.is_open and is_ordered):
        return None
    if not plan.names and len(names) != plan.count:
        check_count(plan, len(names), shown)
    known = plan.names or tuple(f"f{place}" for place in range(plan.count))
    expected = set(known)
    unknown = [name for name in names if name not in expected]
    if (
        is_ordered and not plan.names and len(unknown) == len(names)
    ):  # training had no names: the header only names positions
        check_count(plan, len(names), shown)
        return None
    given = set(names)
    missing = [name for name in known if name not in given]
    if unknown or missing or len(given) < len(names):
        raise _wrong_names(names, unknown, missing, known, shown)
    places = {name: place for place, name in enumerate(names)}
    return [places[name] for name in known]


def _wrong_names(
    names: Sequence[str], unknown: Sequence[str], missing: Sequence[str], known: Sequence[str], shown: str
) -> RequestError:
    repeated = sorted({name for name in names if names.count(name) > 1}) if len(names) < 10_000 else []  # noqa: PLR2004
    faults = {"unknown": unknown, "missing": missing, "repeated": repeated}
    told = "; ".join(
        f"{some([short(name) for name in found], _MOST_NAMES)} {'is' if len(found) == 1 else 'are'} {what}"
        for what, found in faults.items()
        if found
    )
    first = next((name for name in (*unknown, *repeated) if name), (*missing, "")[0])
    guess = did_you_mean(unknown[0], missing) if len(unknown) == 1 and missing else ""
    is_extra = bool(unknown) and not missing
    return RequestError(
        f"columns of {shown} do not match the features of the model: {told}{guess}",
        hint=("a request has features alone: leave out labels and ids; " if is_extra else "")
        + f"the features are {some(known, _MOST_NAMES)}",
        column=names.index(first) + 1 if first in names else None,
        name=first,
        redacted=f"columns of {shown} do not match the features of the model: "
        + ", ".join(f"{len(found)} {what}" for what, found in faults.items() if found),
        is_name_given=first not in known,
    )


def check_count(plan: FeaturePlan, count: int, shown: str, row: int | None = None) -> None:
    """Check the number of columns where nothing names them.

    Raises:
        RequestError: There are more or fewer than features.
    """
    if count == plan.count or plan.is_open:
        return
    extra = " (features alone: leave out labels and ids)" if count > plan.count else ""
    raise RequestError(
        f"{shown} has {count:,} columns; the model has {plan.count:,} features",
        hint=f"send {plan.count:,} columns{extra}: {some([plan.name(i) for i in range(min(plan.count, 30))], 30)}"
        if plan.count <= 30  # noqa: PLR2004 - shown
        else f"send {plan.count:,} columns, in the order of training{extra}",
        row=row,
    )


# ---- cells ----


def from_one(row: int) -> int:
    """Return the number of a row, where rows are counted from 1."""
    return row + 1


def check_cells(plan: FeaturePlan, rows: Floats, number: Numbering = from_one) -> None:
    """Check that numbers are finite, and codes those of a category.

    Args:
        plan: What the model expects.
        rows: (n, m), in the order of the model.
        number: Numbers the rows, for messages.

    Raises:
        RequestError: With the row and column of the first that is not.
    """
    infinite = np.isinf(rows)
    if infinite.any():
        raise _bad_cell(plan, infinite, number, "is infinite or out of the range of a 32-bit float")
    check_codes(plan, rows, number)


def check_codes(plan: FeaturePlan, rows: Floats, number: Numbering = from_one) -> None:
    """Check that the features whose numbers are codes have those of a category.

    Raises:
        RequestError: With the row and column of the first that has not.
    """
    if plan.coded:
        codes = rows[:, plan.coded]
        wrong = (codes < 0) | (codes >= np.array(plan.ends)) | ((codes != np.floor(codes)) & ~np.isnan(codes))
        if wrong.any():
            whole = np.zeros(rows.shape, bool)
            whole[:, plan.coded] = wrong
            raise _bad_cell(plan, whole, number, "is not the number of a category", rows)


def check_size(plan: FeaturePlan, rows: int, columns: int) -> None:
    """Check that a body is not decoded to more cells than there is memory for.

    Raises:
        RequestError: It is; 413.
    """
    if rows * max(1, columns) > plan.most_cells:
        raise RequestError(
            f"the body has {rows:,} rows of {columns:,} columns; at most {plan.most_cells:,} cells are decoded",
            status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            hint="send fewer rows in a request",
        )


def _bad_cell(
    plan: FeaturePlan, wrong: npt.NDArray[np.bool_], number: Numbering, what: str, rows: Floats | None = None
) -> RequestError:
    row, place = (int(each) for each in np.argwhere(wrong)[0])
    where = describe_place(number(row), place + 1, plan.name(place))
    value = None if rows is None else f"{rows[row, place]:g}"
    return RequestError(
        f"{where}: the value{'' if value is None else ' ' + value} {what}",
        hint="send a whole number from 0"
        if value is not None
        else "send null, NaN or an empty cell for what is missing",
        row=number(row),
        column=place + 1,
        name=plan.name(place),
        value=value,
        redacted=f"{where}: the value {what}",
    )


def translate(plan: FeaturePlan, error: DataError) -> RequestError:
    """Return the error of a request for one of the reader that training uses, too."""
    if isinstance(error, RequestError):
        return error
    if not isinstance(error, RowError):
        return RequestError(error.message, hint=error.hint, redacted="the body cannot be read as its content type says")
    place = None if error.column is None else error.column - 1
    known = place is not None and 0 <= place < plan.count
    name = error.name or (plan.name(place) if place is not None and known else "")
    return RequestError(
        error.message,
        hint=error.hint if error.value is None else _hint_for_value(plan, name, error.value),
        row=error.row,
        column=error.column,
        name=name,
        value=error.value,
        redacted=f"{describe_place(error.row, error.column, name)} cannot be used",
    )


def _hint_for_value(plan: FeaturePlan, name: str, value: str) -> str:
    place = plan.place(name)
    if place is not None and place in plan.codes:
        return f"send one of {some([repr(text) for text in plan.codes[place]], _MOST_NAMES)}"
    missing = ", ".join(text or "an empty cell" for text in plan.columns.missing)
    if not is_missing_marker(value) and (hint := hint_for_cell(value, plan.columns.missing)):
        return hint
    return f"send a number; a missing value is {missing}"
