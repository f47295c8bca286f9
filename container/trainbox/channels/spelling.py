"""How a cell of text spells a number, a truth value, or something else."""

import re
from typing import Literal

Kind = Literal["number", "flag", "text"]

NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
NOT_A_NUMBER = re.compile(r"[+-]?nan", re.IGNORECASE)
INFINITE = re.compile(r"[+-]?inf(?:inity)?", re.IGNORECASE)
#: What pandas writes for a column of bool, as `get_dummies` makes them; in any case.
FLAGS = {"true": 1.0, "false": 0.0}
#: What may stand around a number, as Arrow has it, and around any other word.
BLANKS = " \t"


def kind_of(text: str) -> Kind:
    """What a cell is that is not missing; blanks around it do not count."""
    word = text.strip(BLANKS)
    if any(kind.fullmatch(word) for kind in (NUMBER, NOT_A_NUMBER, INFINITE)):
        return "number"
    return "flag" if word.lower() in FLAGS else "text"
