"""What is not a number, and why: words that stand for missing values elsewhere, units, dates, other separators."""

import itertools
import json
import re
from collections.abc import Sequence

from trainbox.channels.tokens import NUMBER
from trainbox.contract.text import short

#: What other programs write for a missing value.
_WORDS = frozenset(
    {
        *("?", "-", "--", "---", ".", "..", "*", "null", "none", "nil", "na", "n/a", "n.a.", "nan", "<na>", "<nan>"),
        *("(null)", "\\n", "missing", "unknown", "undefined", "not available", "not applicable", "no data", "nd"),
        *("#n/a", "#na", "#null!", "#div/0!", "#value!", "#ref!", "#num!", "#name?", "1.#ind", "1.#qnan", "-1.#ind"),
    }
)
_N = NUMBER.pattern
#: Numbers, as they are not read.
_SPELLINGS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(rf"{_N}\s*[%‰]", re.ASCII), "write the number without a percent sign"),
    (re.compile(r"[$€£¥₹]\s*[\d.,]+|[\d.,]+\s*[$€£¥₹]"), "write the amount without a currency sign"),
    (
        re.compile(r"[+-]?\d{1,3}(?:[,'\u2019 \u00a0\u202f]\d{3})+(?:\.\d*)?"),
        "write thousands without separators, and decimals with a point",
    ),
    (re.compile(r"[+-]?\d{1,3}(?:\.\d{3})+,\d+|[+-]?\d*,\d+"), "write numbers with a decimal point"),
    (re.compile(r"[+-]?0x[0-9a-f]+", re.IGNORECASE), "write plain decimal numbers"),
    (re.compile(r"[+-]?\d+(?:_\d+)+"), "write thousands without separators"),
    (re.compile(r"[+-]?\d*\.?\d*d[+-]?\d+", re.IGNORECASE), "write exponents with e: 1.5e3"),
    (re.compile(r"[\u2212\u2013]\s*[\d.]+"), "write a minus as '-'"),
)
#: What is no number: other cells that hint at how a file was written.
_OTHERS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"'.*'", re.DOTALL), "quote with double quotes, or not at all"),
    (
        re.compile(
            r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}.{0,40}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}.{0,40}|\d{1,2}:\d{2}(?::.*)?"
        ),
        "write a time as seconds, or as parts such as the month and the hour",
    ),
    (
        re.compile(rf"\d+:{_N}", re.ASCII),
        "this looks like libsvm: separate the pairs by blanks, and set the content type to text/libsvm",
    ),
    (re.compile(r"[(\[{].*|.*[)\]}]", re.DOTALL), "write rows without brackets"),
    (re.compile(rf"{_N}\s*#.*", re.ASCII | re.DOTALL), "a comment needs a line of its own, which begins with #"),
)
#: As data frames name columns, also where the numbers are floats.
_NAME_OF_NUMBER = re.compile(r"(?:0|[1-9]\d{0,8})(?:\.0)?", re.ASCII)
_NAME = re.compile(r"[^\W\d].*", re.DOTALL)
#: A longer cell is no number that somebody has written in another way.
_LONGEST = 100
#: So many ascending numbers in a line of names are names; fewer only where they count from 0 or 1.
_FEWEST_NAMES = 3


def is_word_for_missing(cell: str) -> bool:
    """Whether other programs write this for a missing value."""
    return cell.strip().lower() in _WORDS


def spells_number(word: str) -> bool:
    """Whether a word is a number to people, though not here: `1,234`, `50%`, `$5`."""
    return len(word) <= _LONGEST and any(form.fullmatch(word) for form, _ in _SPELLINGS)


def hint_for_cell(cell: str, missing: Sequence[str]) -> str:
    """What to do about a cell that is not a number; empty where nothing about it is known."""
    text = cell.strip()
    if NUMBER.fullmatch(text):
        return "write no blanks but ordinary ones around numbers"
    if len(text) > _LONGEST:
        return ""
    if is_word_for_missing(text):
        words = json.dumps([*missing, text], ensure_ascii=False, separators=(",", ":"))
        return f"if {short(text)} stands for a missing value, say so with the hyperparameter missing={words}"
    return next((hint for form, hint in (*_SPELLINGS, *_OTHERS) if form.fullmatch(text)), "")


def numbers_are_names(cells: Sequence[str], words: Sequence[str], numbers: Sequence[str]) -> bool:
    """Whether numbers in a first line that also has words are names of columns, as `target,0,1,2` has them.

    Args:
        cells: All of the line.
        words: Those that are no numbers.
        numbers: Those that are.
    """
    if len(words) + len(numbers) != len(cells) or not all(map(_NAME_OF_NUMBER.fullmatch, numbers)):
        return False
    if not all(_NAME.fullmatch(word) and not is_word_for_missing(word) for word in words):
        return False
    values = [int(float(number)) for number in numbers]
    counts = values[0] in {0, 1} and values == list(range(values[0], values[0] + len(values)))
    ascends = all(one < other for one, other in itertools.pairwise(values))
    return counts or (ascends and len(values) >= _FEWEST_NAMES)


def find_delimiter(line: str, cells_of: str = r"A-Za-z0-9+\-.\"' \t") -> str:
    """A character that cuts a line into numbers where none of the usual ones does; empty where there is none."""
    for character in dict.fromkeys(re.sub(f"[{cells_of}]", "", line)):
        cells = [cell.strip() for cell in line.split(character)]
        if len(cells) > 1 and all(not cell or NUMBER.fullmatch(cell) for cell in cells) and any(cells):
            return character
    return ""
