"""Everything that is wrong with the hyperparameters of a job, in one message that fits the reason of a failure."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias, get_args

import msgspec

from trainbox.contract.credentials.secrets import without_secrets
from trainbox.errors import HyperparameterError

What: TypeAlias = Literal["unknown", "not taken", "missing", "given twice", "wrong value"]

#: Of the names that there are, together: longer lists are for `trainbox describe`.
_LISTED_LENGTH = 150
#: Of the reason of a failure (`failure.LONGEST_FAILURE`), without its class, place and hint.
_MOST_CHARACTERS = 800
_LONGEST_NAME, _SHORTEST_NAME = 40, 4


class Problem(msgspec.Struct, frozen=True):
    """What is wrong with one hyperparameter."""

    name: str
    what: What
    #: In a sentence whose subject is the name.
    text: str
    #: Of one that is unknown: the one that may be meant.
    meant: str = ""

    @property
    def line(self) -> str:
        """All of it."""
        return self.text + (f" - did you mean '{self.meant}'?" if self.meant else "")


def alike(name: str) -> str:
    """A name in the spelling in which names are compared."""
    return name.replace("-", "_")


def find_meant(name: str, known: Iterable[str]) -> str:
    """The hyperparameter that a name is like; empty where none is."""
    names = {alike(one).lower(): one for one in known}
    close = difflib.get_close_matches(alike(name).lower(), names, n=1)
    return names[close[0]] if close else ""


def hint_for(program: str) -> str:
    """Where all hyperparameters of a script are described."""
    return f"`trainbox describe {program}` lists every hyperparameter"


def wrong(problems: Sequence[Problem], known: Sequence[str], program: str) -> HyperparameterError:
    """All problems in one error; with many of them it has their names alone.

    Args:
        problems: One or more.
        known: The names that there are: said once, at the end, where they are few and a name is like none of them.
        program: The script.
    """
    begin = "; known: "
    if len(problems) == 1:
        to_whom = f" to {program}" if problems[0].what == "unknown" else ""
        like = problems[0].line.removeprefix(problems[0].text)
        text = f"hyperparameter {problems[0].text}{to_whom}{like}"
    else:
        begin = "\n  known: "
        listed = "".join(f"\n  - {problem.line}" for problem in problems)
        text = f"{len(problems)} hyperparameters of {program} are wrong:{listed}"
        if len(text) > _MOST_CHARACTERS:
            text = _in_short(problems, f"{len(problems)} hyperparameters of {program} are wrong:")
    names = ", ".join(sorted(known)) or "none"
    is_puzzling = any(problem.what == "unknown" and not problem.meant for problem in problems)
    if is_puzzling and len(names) <= _LISTED_LENGTH and len(text) + len(names) <= _MOST_CHARACTERS:
        text += begin + names
    return HyperparameterError(text, hint=hint_for(program))


def _in_short(problems: Sequence[Problem], head: str) -> str:
    """A line for each kind of problem: suggestions where there is room, and each name at least by its beginning."""
    kinds = sum(len(what) + len("\n  - : ") for what in get_args(What))
    room = (_MOST_CHARACTERS - len(head) - kinds) // len(problems) - len(", ")
    text = ""
    for longest, suggests in ((_LONGEST_NAME, True), (_LONGEST_NAME, False), (max(room, _SHORTEST_NAME), False)):
        text = head + "".join(_line(what, problems, longest, suggests=suggests) for what in get_args(What))
        if len(text) <= _MOST_CHARACTERS:
            break
    return text


def _line(what: What, problems: Sequence[Problem], longest: int, *, suggests: bool) -> str:
    names = [
        _cut(repr(without_secrets(problem.name, ()))[1:-1], longest)
        + (f" ({problem.meant}?)" if suggests and problem.meant else "")
        for problem in problems
        if problem.what == what
    ]
    return f"\n  - {what}: {', '.join(names)}" if names else ""


def _cut(name: str, longest: int) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
