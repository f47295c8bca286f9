"""What the first two lines of CSV show of how it was written: titles, doubled delimiters, quoted lines, libsvm."""

import re
from collections.abc import Sequence

import msgspec

from trainbox.channels.odd import find_delimiter
from trainbox.channels.tokens import FORM, NUMBER
from trainbox.contract.text import short
from trainbox.errors import DataError

#: Pairs behind a first word: libsvm, but for a label or an index that is no number.
_PAIRS = re.compile(rf"\s*(?P<label>[^\s:,;|]+)(?:[ \t]+[^\s:,;|]+:{NUMBER.pattern})+\s*")
_QUOTED = re.compile(rf"'{NUMBER.pattern}'", re.ASCII)
#: Of a line: label and some pairs.
_LOOKED_AT = 4096


class FirstLines(msgspec.Struct, frozen=True):
    """The first line with something in it and the next one, whole and cut; the same where there is one alone."""

    where: str
    first: str
    second: str
    cells: Sequence[str]
    following: Sequence[str]
    delimiter: str

    def refuse_odd(self, *, is_guessed: bool) -> None:
        """Refuse what is no table, or would be read as another one.

        Args:
            is_guessed: Whether nobody has said what separates the columns.

        Raises:
            DataError: With what to do.
        """
        self._refuse_wrapped()
        if is_guessed:
            self._refuse_libsvm()
            self._refuse_doubled()
        if len(self.cells) == 1:
            self._refuse_one_column(is_guessed=is_guessed)

    def notes(self) -> list[str]:
        """What is read, and may not be meant."""
        ends = [len(cells) > 1 and not cells[-1].strip() for cells in (self.cells, self.following)]
        if not all(ends):
            return []
        return [
            f"{self.where}: lines end with a delimiter: column {len(self.cells)}, behind it, is a feature without value"
        ]

    def _refuse_wrapped(self) -> None:
        """Refuse brackets around rows, and single quotes around numbers."""
        for signs in ("()", "[]", "{}"):
            if all(
                line.strip()[:1] == signs[0] and line.strip()[-1:] == signs[1] for line in (self.first, self.second)
            ):
                raise DataError(f"{self.where}: brackets are around {short(self.first)}", hint="write CSV without them")
        if all(_QUOTED.fullmatch(cell.strip()) for cell in self.following):
            raise DataError(
                f"{self.where}: single quotes are around numbers: {short(self.second)}",
                hint="quote with double quotes, or not at all",
            )

    def _refuse_libsvm(self) -> None:
        for line in (self.first, self.second):
            found = _PAIRS.match(line, 0, _LOOKED_AT)
            if found is not None:
                what = "an index" if NUMBER.fullmatch(found["label"]) else f"the label {short(found['label'])}"
                raise DataError(f"{self.where}: this looks like libsvm, but {what} is not a number", hint=FORM)

    def _refuse_doubled(self) -> None:
        both = (self.cells, self.following)
        is_odd = len(self.cells) > 2 and len(self.cells) % 2 == 1  # noqa: PLR2004 - two columns and what is between them
        if self.delimiter == "|" and is_odd and not any(cell.strip() for cells in both for cell in cells[1::2]):
            raise DataError(
                f"{self.where}: columns are separated by '||': {short(self.first)}",
                hint="separate columns by one character",
            )

    def _refuse_one_column(self, *, is_guessed: bool) -> None:
        if len(self.following) > 1:
            raise DataError(
                f"{self.where}: {short(self.first)} is no header of the {len(self.following)} columns below it",
                hint="remove the line, or let it begin with #, as comments do",
            )
        inner = self.second.strip()[1:-1]
        if self.second.strip() == f'"{inner}"' and '"' not in inner and any(sign in inner for sign in ",;\t|"):
            raise DataError(
                f"{self.where}: each line is one cell, as quotes are around it: {short(self.second)}",
                hint="remove the quotes around the lines",
            )
        found = find_delimiter(self.second) if is_guessed else ""
        if found:
            raise DataError(
                f"{self.where}: columns seem to be separated by {found!r}: {short(self.second)}",
                hint=f"set the hyperparameter delimiter to {found!r}, or write CSV with commas",
            )
