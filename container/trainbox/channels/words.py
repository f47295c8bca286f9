"""What is found out about columns with words in them while a channel is read, block by block.

`True` and `False` are numbers, 1 and 0, as in Parquet. A column of other words is one of texts if no cell of it is a
number, however it is spelled, or if the caller names it; which it is shows with its first cell that is not missing,
and holds from there on.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trainbox.channels.arrays import values_of
from trainbox.channels.coding import LONGEST_TEXT, MOST_CATEGORIES, Coding
from trainbox.channels.layout import Layout
from trainbox.channels.odd import hint_for_cell, is_word_for_missing, spells_number
from trainbox.channels.spelling import BLANKS, FLAGS, NOT_A_NUMBER, Kind, kind_of
from trainbox.channels.table import Columns
from trainbox.contract.text import short
from trainbox.errors import DataError

Floats = npt.NDArray[np.float32]
Fault = tuple[str, str]

_TO_CODE = "name the column in the hyperparameter categorical, or use input mode File or FastFile"


class Words:
    """The columns of texts so far, with the codes of their texts, and those with `True` and `False`.

    Args:
        layout: Where the columns stand; None where rows have numbers alone.
        columns: What the caller says about them.
        shown: The first file, for messages.
        coding: Of another channel, which these rows must follow.
        is_pipe: Whether the rows come once, so that nobody can look for texts first.
    """

    def __init__(
        self,
        layout: Layout | None,
        columns: Columns,
        shown: str,
        *,
        coding: Coding | None = None,
        is_pipe: bool = False,
    ) -> None:
        self._layout = layout
        self._columns = columns
        self._missing = frozenset(columns.missing)
        self._shown = shown
        self._is_fixed = coding is not None
        self._is_pipe = is_pipe
        #: By column the code of each text, in the order in which they came.
        self._codes: dict[int, dict[str, int]] = {}
        #: What numbers are to be texts, too.
        self._named: frozenset[int] = frozenset()
        self._flags: set[int] = set()
        #: The columns that may turn out to be of texts: no cell of theirs has told yet.
        self._open: set[int] = set()
        #: By column, of the features.
        self._places = {column: place for place, column in enumerate(layout.features)} if layout is not None else {}
        if layout is not None:
            self._begin(layout, columns, coding)

    def _begin(self, layout: Layout, columns: Columns, coding: Coding | None) -> None:
        if coding is not None:
            texts = {layout.features[place]: texts for place, texts in coding.features.items()}
            if coding.labels:
                texts[layout.labels[0]] = coding.labels
            self._codes = {column: {text: code for code, text in enumerate(known)} for column, known in texts.items()}
        elif columns.texts:
            self._named = frozenset(layout.find_named(columns.categorical, self._shown))
            self._codes = {column: {} for column in sorted(self._named)}
            labels = layout.labels if len(layout.labels) == 1 else ()
            self._open = {*layout.features, *labels} - self._named

    # -- what is known ---------------------------------------------------------------------------------------------

    @property
    def columns(self) -> frozenset[int]:
        """The columns to be read as words."""
        return frozenset(self._codes) | self._flags

    def is_text(self, column: int) -> bool:
        """Whether a column is one of texts."""
        return column in self._codes

    def is_open(self, column: int) -> bool:
        """Whether a column may be one of texts or of numbers: all of its cells were missing."""
        return column in self._open

    def coding(self) -> Coding:
        """The texts so far, in the order in which they came."""
        if not self._codes:
            return Coding()
        places = self._places
        features = {places[column]: tuple(codes) for column, codes in self._codes.items() if column in places}
        labels = [tuple(codes) for column, codes in self._codes.items() if column not in places]
        return Coding(dict(sorted(features.items())), labels[0] if labels else ())

    # -- what is found out -----------------------------------------------------------------------------------------

    def learn(self, column: int, texts: Iterable[str]) -> None:
        """Hear of the cells of a column that cannot be read as a number each.

        Raises:
            DataError: It is one of texts, and comes through a pipe.
        """
        words = {word for text in texts if not self.is_missing(word := text.strip(BLANKS))}
        kinds: set[Kind] = {kind_of(word) for word in words}
        if kinds == {"text"} and column in self._open:
            if not all(map(spells_number, words)):  # which is refused with a hint
                self.begin_text(column, min(words))
        elif "flag" in kinds and column not in self._codes:
            self._flags.add(column)

    def begin_text(self, column: int, example: str) -> None:
        """Take a column that is open for one of texts.

        Raises:
            DataError: It comes through a pipe.
        """
        if self._is_pipe:
            raise DataError(
                f"{self._shown}: {self._describe(column)} holds texts such as {short(example)},"
                " and what comes through a pipe cannot be looked through first",
                hint=_TO_CODE,
            )
        self._open.discard(column)
        self._codes[column] = {}

    def close(self, features: Any, labels: Floats) -> None:  # noqa: ANN401 - dense or sparse
        """Hear of numbers: a column that has one is no column of texts any more."""
        if not self._open or not len(labels):
            return
        for column in sorted(self._open):
            place = self._places.get(column)
            values = labels if place is None else features[:, place]
            if not np.isnan(values[0]) or not np.isnan(values).all():
                self._open.discard(column)

    def is_missing(self, word: str) -> bool:
        """Whether a word stands for a missing value."""
        return word in self._missing or NOT_A_NUMBER.fullmatch(word) is not None

    # -- numbers for words -----------------------------------------------------------------------------------------

    def number_column(self, column: int, texts: Any) -> Any:  # noqa: ANN401 - pyarrow has no types
        """The cells of a column, a chunked array of dictionaries, as 32-bit floats; nothing where one breaks a rule.

        Raises:
            DataError: The column has too many texts.
        """
        chunks = []
        for chunk in texts.chunks:
            used, places = _used(chunk)
            found = self._numbers(column, used)
            if found is None:
                return None
            chunks.append(pa.array(np.append(found, np.float32(np.nan))[places]))
        return pa.chunked_array(chunks, pa.float32())

    def _numbers(self, column: int, texts: Sequence[str]) -> Floats | None:
        """The number of each of these texts, NaN for a missing one."""
        words = [text.strip(BLANKS) for text in texts]
        if column not in self._codes:
            return self._numbers_of_flags(words)
        found = np.full(len(words), np.nan, np.float32)
        for place, word in enumerate(words):
            if self.is_missing(word):
                continue
            if self._fault_of_word(column, word) is not None:
                return None
            code = self._code(column, word)
            found[place] = np.nan if code is None else code
        return found

    def _numbers_of_flags(self, words: Sequence[str]) -> Floats | None:
        flags = [FLAGS.get(word.lower()) for word in words]
        try:
            spelled = pa.array([word if flag is None else "0" for word, flag in zip(words, flags, strict=True)])
            found = values_of(spelled.cast(pa.float32())).copy() if len(words) else np.empty(0, np.float32)
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

    # -- what is wrong ---------------------------------------------------------------------------------------------

    def fault(self, column: int, cell: str) -> Fault | None:
        """What is wrong with a cell of a column of texts that is not missing, and what to do."""
        return self._fault_of_word(column, cell.strip(BLANKS))

    def _fault_of_word(self, column: int, word: str) -> Fault | None:
        codes = self._codes[column]
        if self._is_fixed:
            is_label = self._layout is not None and column in self._layout.labels
            if word in codes or (self._columns.unseen == "missing" and not is_label):
                return None
            known = ", ".join(map(repr, sorted(codes)[:5])) + (", …" if len(codes) > 5 else "")  # noqa: PLR2004 - shown
            return (
                f"{short(word)} is not among the texts of training: {known}",
                "check how the rows were split"
                + ("" if is_label else "; unseen=missing takes such a text for a missing value"),
            )
        if column not in self._named and kind_of(word) != "text":
            return number_among_texts(word, next(iter(codes), ""), self._columns.missing)
        return None

    def _describe(self, column: int) -> str:
        return f"column {column + 1}" if self._layout is None else self._layout.describe(column)


def number_among_texts(word: str, example: str, missing: Sequence[str]) -> Fault:
    """What is wrong where a column of texts has a number, and what to do."""
    if is_word_for_missing(example):
        return (
            f"{short(word)} is a number, and the rows before have {short(example)}",
            hint_for_cell(example, missing),
        )
    rows = f", and the rows before have texts such as {short(example)}" if example else " in a column of texts"
    return (
        f"{short(word)} is a {'truth value' if kind_of(word) == 'flag' else 'number'}{rows}",
        "write either numbers or texts; or name the column in the hyperparameter categorical: then all are texts",
    )


# ---- Arrow's tables ----


def learn_columns(table: Any, words: Words, columns: Iterable[int]) -> None:  # noqa: ANN401 - pyarrow has no types
    """Let columns of dictionaries tell which words they have.

    Raises:
        DataError: One is of texts, and comes through a pipe.
    """
    for column in columns:
        chunks = table.column(column).chunks
        if not all(_are_numbers(chunk.dictionary) for chunk in chunks):
            words.learn(column, (text for chunk in chunks for text in _used(chunk)[0]))


def _are_numbers(texts: Any) -> bool:  # noqa: ANN401 - pyarrow has no types
    """Whether all texts of an array are numbers, found out quickly."""
    try:
        texts.cast(pa.float32())
    except pa.ArrowInvalid:
        return False
    return True


def number_columns(table: Any, words: Words) -> Any:  # noqa: ANN401 - pyarrow has no types
    """The table with 32-bit floats in place of words; nothing where a word breaks a rule."""
    for column in sorted(words.columns):
        found = words.number_column(column, table.column(column))
        if found is None:
            return None
        table = table.set_column(column, str(column), found)
    return table


def _used(chunk: Any) -> tuple[list[str], npt.NDArray[np.int64]]:  # noqa: ANN401 - pyarrow has no types
    """The texts that the rows of a dictionary have, and for each row the place of its own; of a missing one the end."""
    if chunk.dictionary.null_count:  # a text of none, to which rows may point
        chunk = chunk.dictionary_decode().dictionary_encode()
    dictionary = chunk.dictionary
    places = values_of(chunk.indices.cast(pa.int32()).fill_null(len(dictionary)))
    kept, rows = np.unique(places, return_inverse=True)
    texts: list[str] = dictionary.take(pa.array(kept[kept < len(dictionary)])).to_pylist()
    return texts, rows
