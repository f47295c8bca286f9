"""Encode texts as numbers: the categories of each column of texts, collected while rows are read.

`True` and `False` are the numbers 1 and 0, as in Parquet. A column is one of texts if none of its cells is a number,
however it is spelled, or if the caller names it; its first cell that is not missing decides.

The final codes are the places of the sorted texts over all rows of all hosts: they do not depend on the order of rows.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from trainbox.contract.text import short
from trainbox.data.formats.cell_types import (
    BLANKS,
    BOOLEANS,
    NOT_A_NUMBER,
    Fault,
    classify_cell,
    describe_mixed_column,
    looks_like_number,
)
from trainbox.data.formats.row_block import to_numpy
from trainbox.data.formats.schema import ColumnSpec, RowSchema, SourceInfo
from trainbox.errors import DataError
from trainbox.lazy_names import lazy_module

if TYPE_CHECKING:
    import pyarrow as pa
else:
    pa = lazy_module("pyarrow")

Floats = npt.NDArray[np.float32]
#: A column with more different texts holds names or sentences, not categories.
MOST_CATEGORIES = 10_000
#: In bytes: messages between the members of a job have a limit.
LONGEST_TEXT = 1_000
_TO_CODE = "name the column in the hyperparameter categorical, or use input mode File or FastFile"


class Coding(msgspec.Struct, frozen=True):
    """The columns of texts and their texts: the code of a text is its place among those of its column."""

    #: The texts by the position of the feature.
    features: Mapping[int, tuple[str, ...]] = {}
    #: The classes if labels are texts.
    labels: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.features or self.labels)


def sort_coding(coding: Coding) -> Coding:
    """Return the same texts, sorted by Unicode code points."""
    return merge_codings([coding])


def merge_codings(codings: Sequence[Coding]) -> Coding:
    """Return the union of codings, sorted."""
    places = sorted({place for coding in codings for place in coding.features})
    return Coding(
        {place: _union([coding.features.get(place, ()) for coding in codings]) for place in places},
        _union([coding.labels for coding in codings]),
    )


def digest_coding(coding: Coding) -> str:
    """Return a BLAKE2b digest of all texts and their order, 16 hex digits."""
    content = msgspec.json.encode([sorted(coding.features.items()), coding.labels])
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _union(texts: Sequence[Sequence[str]]) -> tuple[str, ...]:
    return tuple(sorted({text for part in texts for text in part}))


def recode(codes: Floats, old: Sequence[str], new: Sequence[str]) -> None:
    """Replace the codes of one order of texts by those of another, in place; NaN stays.

    Args:
        codes: Indices into `old`, or NaN.
        old: The texts.
        new: The same texts, and perhaps others.
    """
    if tuple(old) == tuple(new[: len(old)]):
        return
    places = {text: place for place, text in enumerate(new)}
    moved = np.array([places[text] for text in old], np.float32)
    known = ~np.isnan(codes)
    codes[known] = moved[codes[known].astype(np.int64)]


class CategoryEncoder:
    """Encodes the texts of a reading: it knows the columns of texts so far, and those with `True` and `False`.

    Args:
        schema: The columns of a row; None for formats with numbers alone.
        columns: The caller's specification.
        shown: The first file, for messages.
        coding: The fixed codes that these rows must have.
        is_pipe: Whether the rows can be read once only, so that they cannot be searched for texts first.
    """

    def __init__(
        self,
        schema: RowSchema | None,
        columns: ColumnSpec,
        shown: str,
        *,
        coding: Coding | None = None,
        is_pipe: bool = False,
    ) -> None:
        self.schema = schema
        self.columns = columns
        self._missing = frozenset(columns.missing)
        self._shown = shown
        self._is_fixed = coding is not None
        self._is_pipe = is_pipe
        #: By column the code of each text, in order of appearance.
        self._codes: dict[int, dict[str, int]] = {}
        #: Columns whose numbers are texts, too.
        self._named: frozenset[int] = frozenset()
        self._booleans: set[int] = set()
        #: Columns whose type is not known yet: all their cells were missing.
        self._undecided: set[int] = set()
        #: The position among the features by column.
        self._places = {column: place for place, column in enumerate(schema.features)} if schema is not None else {}
        if schema is not None:
            self._begin(schema, columns, coding)

    def _begin(self, schema: RowSchema, columns: ColumnSpec, coding: Coding | None) -> None:
        if coding is not None:
            known = {place: texts for place, texts in coding.features.items() if place < len(schema.features)}
            texts = {schema.features[place]: texts for place, texts in known.items()}
            if coding.labels and schema.labels:
                texts[schema.labels[0]] = coding.labels
            self._codes = {column: {text: code for code, text in enumerate(each)} for column, each in texts.items()}
        elif columns.texts:
            self._named = frozenset(schema.find_named(columns.categorical, self._shown))
            self._codes = {column: {} for column in sorted(self._named)}
            labels = schema.labels if len(schema.labels) == 1 else ()
            self._undecided = {*schema.features, *labels} - self._named

    @property
    def word_columns(self) -> frozenset[int]:
        """The columns to parse as words: texts and booleans."""
        return frozenset(self._codes) | self._booleans

    def is_text(self, column: int) -> bool:
        """Return whether a column is one of texts."""
        return column in self._codes

    def is_undecided(self, column: int) -> bool:
        """Return whether a column may hold texts or numbers: all its cells were missing."""
        return column in self._undecided

    def coding(self) -> Coding:
        """Return the texts so far, in order of appearance."""
        if not self._codes:
            return Coding()
        features = {
            self._places[column]: tuple(codes) for column, codes in self._codes.items() if column in self._places
        }
        labels = [tuple(codes) for column, codes in self._codes.items() if column not in self._places]
        return Coding(dict(sorted(features.items())), labels[0] if labels else ())

    def observe_texts(self, column: int, texts: Iterable[str]) -> None:
        """Take the cells of a column that are not all numbers.

        Raises:
            DataError: The column is one of texts, and is read from a pipe.
        """
        words = {word for text in texts if not self.is_missing(word := text.strip(BLANKS))}
        types = {classify_cell(word) for word in words}
        if types == {"text"} and column in self._undecided:
            if not all(map(looks_like_number, words)):  # which is refused with a hint
                self.mark_as_text(column, min(words))
        elif "boolean" in types and column not in self._codes:
            self._booleans.add(column)

    def mark_as_text(self, column: int, example: str) -> None:
        """Mark an undecided column as one of texts.

        Raises:
            DataError: It is read from a pipe.
        """
        if self._is_pipe:
            raise DataError(
                f"{self._shown}: {self._describe(column)} holds texts such as {short(example)},"
                " and a pipe cannot be searched for them first",
                hint=_TO_CODE,
            )
        self._undecided.discard(column)
        self._codes[column] = {}

    def observe_numbers(self, features: Any, labels: Floats | None) -> None:  # noqa: ANN401 - dense or sparse
        """Take rows of numbers: an undecided column with a number in it is not one of texts."""
        if not self._undecided or not features.shape[0]:
            return
        for column in sorted(self._undecided):
            place = self._places.get(column)
            values = labels if place is None else features[:, place]
            if values is not None and (not np.isnan(values[0]) or not np.isnan(values).all()):
                self._undecided.discard(column)

    def is_missing(self, word: str) -> bool:
        """Return whether a word is a marker of a missing value."""
        return word in self._missing or NOT_A_NUMBER.fullmatch(word) is not None

    def encode_column(self, column: int, texts: Any) -> Any:  # noqa: ANN401 - pyarrow has no types
        """Encode a column, a chunked array of dictionaries, as 32-bit floats; None if a cell is invalid.

        Raises:
            DataError: The column has too many texts.
        """
        chunks = []
        for chunk in texts.chunks:
            used, places = _used(chunk)
            found = self._encode(column, used)
            if found is None:
                return None
            chunks.append(pa.array(np.append(found, np.float32(np.nan))[places]))
        return pa.chunked_array(chunks, pa.float32())

    def _encode(self, column: int, texts: Sequence[str]) -> Floats | None:
        """Return the number of each text, NaN for a missing one."""
        words = [text.strip(BLANKS) for text in texts]
        if column not in self._codes:
            return self._encode_booleans(words)
        found = np.full(len(words), np.nan, np.float32)
        for place, word in enumerate(words):
            if self.is_missing(word):
                continue
            if self.find_fault(column, word) is not None:
                return None
            code = self._code(column, word)
            found[place] = np.nan if code is None else code
        return found

    def _encode_booleans(self, words: Sequence[str]) -> Floats | None:
        flags = [BOOLEANS.get(word.lower()) for word in words]
        try:
            spelled = pa.array([word if flag is None else "0" for word, flag in zip(words, flags, strict=True)])
            found = to_numpy(spelled.cast(pa.float32())).copy() if len(words) else np.empty(0, np.float32)
        except pa.ArrowInvalid:
            return None
        for place, flag in enumerate(flags):
            if flag is not None:
                found[place] = flag
        return found

    def _code(self, column: int, word: str) -> int | None:
        codes = self._codes[column]
        if self._is_fixed:
            return codes.get(word)
        code = codes.setdefault(word, len(codes))
        if code + 1 == len(codes) and (size := len(word.encode())) > LONGEST_TEXT:
            raise DataError(
                f"{self._shown}: {self._describe(column)} has a text of {size:,} bytes, {short(word)};"
                f" one of a category has {LONGEST_TEXT:,} at most",
                hint="leave the column out",
            )
        if code >= MOST_CATEGORIES:
            raise DataError(
                f"{self._shown}: {self._describe(column)} has more than {MOST_CATEGORIES:,} different texts",
                hint="leave the column out, or put its texts into fewer groups",
            )
        return code

    def find_fault(self, column: int, cell: str) -> Fault | None:
        """Return what is wrong with a cell of a column of texts that is not missing, and what to do."""
        word, codes = cell.strip(BLANKS), self._codes[column]
        if self._is_fixed:
            is_label = self.schema is not None and column in self.schema.labels
            if word in codes or (self.columns.unseen == "missing" and not is_label):
                return None
            known = ", ".join(map(repr, sorted(codes)[:5])) + (", …" if len(codes) > 5 else "")  # noqa: PLR2004 - shown
            return (
                f"{short(word)} is not among the texts of training: {known}",
                "check how the rows were split"
                + ("" if is_label else "; unseen=missing takes such a text for a missing value"),
            )
        if column not in self._named and classify_cell(word) != "text":
            return describe_mixed_column(word, next(iter(codes), ""), self.columns.missing)
        return None

    def _describe(self, column: int) -> str:
        return f"column {column + 1}" if self.schema is None else self.schema.describe(column)


class RowFormat(msgspec.Struct, frozen=True):
    """How the rows of CSV or Parquet are parsed and encoded."""

    source: SourceInfo
    schema: RowSchema
    columns: ColumnSpec
    #: Shared by all files of a reading.
    encoder: CategoryEncoder


def observe_columns(table: Any, encoder: CategoryEncoder, columns: Iterable[int]) -> None:  # noqa: ANN401 - pyarrow has no types
    """Find out which columns of an Arrow table hold texts or booleans.

    Raises:
        DataError: A column is one of texts, and is read from a pipe.
    """
    for column in columns:
        chunks = table.column(column).chunks
        if not all(_are_numbers(chunk.dictionary) for chunk in chunks):
            encoder.observe_texts(column, (text for chunk in chunks for text in _used(chunk)[0]))


def _are_numbers(texts: Any) -> bool:  # noqa: ANN401 - pyarrow has no types
    """Return whether all texts of an array are numbers; fast."""
    try:
        texts.cast(pa.float32())
    except pa.ArrowInvalid:
        return False
    return True


def encode_columns(table: Any, encoder: CategoryEncoder) -> Any:  # noqa: ANN401 - pyarrow has no types
    """Return the table with its words encoded as 32-bit floats; None if a word is invalid."""
    for column in sorted(encoder.word_columns):
        found = encoder.encode_column(column, table.column(column))
        if found is None:
            return None
        table = table.set_column(column, str(column), found)
    return table


def _used(chunk: Any) -> tuple[list[str], npt.NDArray[np.int64]]:  # noqa: ANN401 - pyarrow has no types
    """Return the texts in use by a dictionary array, and the index of each row's text; a missing one has the length."""
    if chunk.dictionary.null_count:  # a null text, to which rows may point
        chunk = chunk.dictionary_decode().dictionary_encode()
    dictionary = chunk.dictionary
    places = to_numpy(chunk.indices.cast(pa.int32()).fill_null(len(dictionary)))
    kept, rows = np.unique(places, return_inverse=True)
    texts: list[str] = dictionary.take(pa.array(kept[kept < len(dictionary)])).to_pylist()
    return texts, rows
