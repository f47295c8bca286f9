"""Why a process failed, found in what it wrote: the last traceback, and only where there is none the last words.

sagemaker-training keeps everything from the first line that *mentions* an error (its `process.watch`), so that an early
warning becomes the reason. Apart from `failure`, which every job needs: most jobs have nothing to look for here.
"""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

#: What stands between the message of an error of ours and its hint.
HINT = "\n  hint: "
_LONGEST_MESSAGE_LINES = 12
_LINES_BEFORE = 3
_MOST_LINES_BELOW = 4

# Every expression is linear in the length of a line, whatever a script has written: no repetition can take over what
# another one has given back (possessive `++` and `*+` give nothing back).

_HEADER = "Traceback (most recent call last):"
_GROUP_HEADER = "+ Exception Group "
# What Python prints when `__del__` or an exit handler fails; it does not end the process.
_IGNORED = re.compile(r"Exception ignored (?:in|on|while)\b")
_FRAME = re.compile(r'^\s+File "(?P<file>[^"]+)", line (?P<line>\d+)(?:,? in (?P<function>.+))?$')
_SYNTAX_ERROR = re.compile(r"^(?:SyntaxError|IndentationError|TabError): ")
# How programs in other languages begin to say what is wrong: R, shells, compilers, Rust, Go, Java.
_ERROR_WORD = r"(?:error|fatal|panic|exception)\b"
_ERROR_LINE = re.compile(
    # The word comes first, behind punctuation; or behind a word with a colon, which punctuation may precede.
    rf"\W*+{_ERROR_WORD}|\s*+(?:[^\w\s]++\s++)*+\S++(?<=\S:)\s++{_ERROR_WORD}",
    re.IGNORECASE,
)
_FATAL = re.compile(r"Fatal Python error: .*")
#: How Python's `warnings` begins what it prints; the line of code that warns may follow, two blanks further in.
_WARNING = re.compile(r":\d++: \w*Warning: ")
_EXCEPTION = re.compile(r"^(?P<type>[A-Za-z_][\w.]*)(?::|$)")
_GROUP_LINE = re.compile(r"^\s*[|+]")
_GROUP_BORDER = re.compile(r"^\s*\+[-+]*(?: (?:\d+|\.\.\.) -+)?$")
_GROUP_MARGIN = re.compile(r"^\s*\| ?")
_NOT_THE_USERS = re.compile(r"(?:site|dist)-packages[/\\]|[/\\]lib[/\\]python3\.\d+[/\\]|^<|[/\\]trainbox[/\\]\w+\.py$")
#: How what `errors.last_words` makes begins in a log.
_TOLD = re.compile(r"trainbox: FAILED: (?:ClientError|AlgorithmError|CONFIGURATION|HARDWARE): (?P<name>\w+): ")
_SAID = "trainbox: "
_HINT, _AT = f"{_SAID}hint: ", f"{_SAID}at "
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_LINE_END = re.compile(r"\r\n|\r|\n")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")

#: From the end of a traceback to the header of the one that follows from it: an empty line, the words, an empty line.
_LINES_OF_CHAIN = 4
_FOLLOWS = "The above exception was the direct cause of the following exception:"
#: How pools of processes quote what a worker has raised, above the exception that they raise in its place.
_QUOTE = '"""'
#: What says of a worker only that it is gone; the exception that caused it says how.
_IN_WORKER = re.compile(r"Caught \S+ in (?:DataLoader worker process|replica|pin memory thread)")
_SAYS_LESS = re.compile(r"DataLoader worker \(pid\(s\) [\d, ]+\) exited unexpectedly$")


class Cause(msgspec.Struct, frozen=True):
    """What a log says about why its process failed: a fact, which is one of several that decide a `Diagnosis`."""

    #: The exception and its message, or the last words.
    text: str
    #: `train.py:14 in main`, empty where no frame is known.
    where: str = ""
    #: The exception's type, empty where there was none.
    exception: str = ""


def find_cause(log: str, code_dir: Path) -> Cause | None:
    """The last traceback in the tail of a log; without one its last line; `None` when the log is empty.

    The last words of a script that an error of ours has ended count as its traceback, which they stand for.

    Args:
        log: The end of what the process wrote to stderr (or stdout).
        code_dir: Where the user's code lies: its frames are preferred, and shown relative to it.
    """
    lines = [_CONTROL.sub("\N{REPLACEMENT CHARACTER}", line) for line in _LINE_END.split(_COLOUR.sub("", log))]
    end = len(lines)
    for index in range(len(lines) - 1, -1, -1):
        # Anything may stand before a traceback: "[rank0]: " (torch), or the open line of a progress bar.
        is_header, prefix = lines[index].endswith(_HEADER), lines[index].removesuffix(_HEADER)
        if is_header and index and _IGNORED.search(lines[index - 1]):
            end = index - 1
        elif is_header and prefix.endswith(_GROUP_HEADER):
            prefix = prefix.removesuffix(_GROUP_HEADER)
            return _from_group(_unprefixed(lines[index + 1 : end], prefix), code_dir)
        elif is_header and not prefix.rstrip().endswith("|"):  # else it is a part of a group: look for its head
            found = _unprefixed(lines[index + 1 : end], prefix)
            return _from_traceback(found, code_dir, above=_above(lines, index, prefix))
        elif found_here := _without_header(lines, index, end, code_dir):
            return found_here
    if _frames(lines[:end]):  # a traceback so long that its head is not in the tail
        return _from_traceback(lines[:end], code_dir)
    words = _last_lines(lines[:end]) or _last_lines(lines)
    return Cause(text=words) if words else None


def _without_header(lines: Sequence[str], index: int, end: int, code_dir: Path) -> Cause | None:
    """What a line says that no traceback's header stands above; None where it says nothing of an end."""
    if told := _TOLD.search(lines[index]):
        return _from_last_words(told, lines[index + 1 : end])
    if _SYNTAX_ERROR.match(lines[index]) and _frames(lines[max(0, index - 4) : index]):
        return _cause(lines[index:end], _frames(lines[max(0, index - 4) : index]), code_dir)
    if fatal := _FATAL.search(lines[index]):
        return _cause([fatal[0]], _crash_frames(lines[index + 1 : end]), code_dir)
    return None


def _from_last_words(told: re.Match[str], below: Sequence[str]) -> Cause:
    """An error of ours as Python would have written it, with its place."""
    exception = f"trainbox.errors.{told['name']}"
    said = list(itertools.takewhile(lambda line: line.startswith(_SAID), below))
    place = next((number for number, line in enumerate(said) if line.startswith(_AT)), len(said))
    hint = next((number for number in range(place - 1, -1, -1) if said[number].startswith(_HINT)), place)
    message = [told.string[told.end() :], *(line.removeprefix(_SAID) for line in said[:hint])]
    text = "\n".join([f"{exception}: {message[0]}", *message[1:]])
    if hint < place:
        advice = [said[hint].removeprefix(_HINT), *(line.removeprefix(_SAID) for line in said[hint + 1 : place])]
        text += f"{HINT}{' '.join(advice)}"
    where = said[place].removeprefix(_AT) if place < len(said) else ""
    return Cause(text=text, where=where, exception=exception)


def _unprefixed(lines: Sequence[str], prefix: str) -> list[str]:
    return [line.removeprefix(prefix) for line in lines]


def _above(lines: Sequence[str], index: int, prefix: str) -> Sequence[str]:
    """What stands between the header before the one at `index`, and that; empty where the two do not belong together.

    An exception of a worker of torch holds the text of the worker's own traceback: then it is the outer one's frames.
    """
    follows = index >= _LINES_OF_CHAIN and lines[index - 2].endswith(_FOLLOWS)
    if not follows and not prefix.endswith("Original "):
        return ()
    end = index - 2 if follows else index
    start = next((at for at in range(end - 1, -1, -1) if lines[at].endswith(_HEADER)), end - 1)
    return _unprefixed(lines[start + 1 : end], prefix.removesuffix("Original "))


def _from_traceback(lines: Sequence[str], code_dir: Path, *, above: Sequence[str] = ()) -> Cause:
    """What follows a header. Another thread may have written between the frames: the message is behind the last.

    Args:
        lines: From the header on.
        code_dir: The user's own.
        above: The traceback that was printed before, where this one belongs to it.
    """
    after_frames = max((i for i, line in enumerate(lines) if _FRAME.match(line)), default=-1) + 1
    behind = (i for i in range(after_frames, len(lines)) if lines[i] and not lines[i][0].isspace())
    start = next(behind, len(lines))
    frames, said = _frames(lines[:start]), [line for line in above if line]
    if said and said[-1] == _QUOTE:  # raised in a worker: its frames are the inner ones
        return _cause(lines[start:], [*frames, *_frames(above)], code_dir)
    if said and lines[start:] and _SAYS_LESS.search(lines[start]):
        return msgspec.structs.replace(_cause(lines[start:], frames, code_dir), text=said[-1].rstrip())
    if said and _IN_WORKER.search(said[-1]):
        frames = [*_frames(above), *frames]
    return _cause(lines[start:], frames, code_dir)


def _from_group(lines: Sequence[str], code_dir: Path) -> Cause:
    """An exception group: its own message, then those of its members; where the first member was raised."""
    sections: list[list[str]] = [[]]
    for line in lines:
        if _GROUP_BORDER.match(line):
            sections.append([])
        elif _GROUP_LINE.match(line):  # the further lines of a message may have no margin
            sections[-1].append(_GROUP_MARGIN.sub("", line))
    causes = [_from_traceback(section, code_dir) for section in sections if section]
    if not causes:
        return Cause(text="an exception group whose message is lost")
    members = "; ".join(cause.text.partition("\n")[0] for cause in causes[1:])
    first = causes[min(1, len(causes) - 1)]
    text = f"{causes[0].text}: {members}" if members else causes[0].text
    return Cause(text=text, where=first.where or causes[0].where, exception=first.exception)


def _frames(lines: Sequence[str]) -> list[re.Match[str]]:
    return [frame for frame in map(_FRAME.match, lines) if frame]


def _crash_frames(lines: Sequence[str]) -> list[re.Match[str]]:
    """The frames of the thread that crashed. Python's `faulthandler` lists all threads, innermost frame first."""
    start = next((i for i, line in enumerate(lines) if line.startswith("Current thread")), 0)
    end = next((i for i, line in enumerate(lines) if i > start and not line.strip()), len(lines))
    return _frames(lines[start:end])[::-1]


def _cause(message: Sequence[str], frames: Sequence[re.Match[str]], code_dir: Path) -> Cause:
    text = [message[0].rstrip()] if message else ["an exception whose message is lost"]
    below = _without_warnings(message[1:])
    further = list(itertools.takewhile(str.strip, below))
    is_ours = text[0].startswith("trainbox.errors.")  # which has a line for each of many problems
    if is_ours or len(further) < _LONGEST_MESSAGE_LINES:  # else these are no message, but a log that goes on
        text += [line.rstrip() for line in further]
    kind = _EXCEPTION.match(text[0])
    # A script that goes on after a traceback may have handled it, and say in the end what it really died of.
    last = _last_words(below[len(text) - 1 :])
    words = "\n".join(text) + (f"\nand last: {last}" if last else "")
    return Cause(text=words, where=_where(frames, code_dir), exception=kind["type"] if kind else "")


def _without_warnings(lines: Sequence[str]) -> list[str]:
    """Leave out what other processes and exit handlers warn of below an exception: joblib's resource tracker does."""
    kept: list[str] = []
    is_below = False
    for line in lines:
        warns = _WARNING.search(line) is not None
        if not warns and not (is_below and line.startswith("  ")):
            kept.append(line)
        is_below = warns
    return kept


def _last_lines(lines: Sequence[str]) -> str:
    """What a program without a traceback said in the end: its error and what follows, else its last line first."""
    said = [line.strip() for line in lines if line.strip()]
    recent = said[-_LONGEST_MESSAGE_LINES:]
    error = max((i for i, line in enumerate(recent) if _ERROR_LINE.match(line)), default=None)
    if error is not None:
        return "\n".join(recent[error : error + 1 + _MOST_LINES_BELOW])
    before = said[-_LINES_BEFORE - 1 : -1]
    return "\n".join([*said[-1:], *(["before it: " + " | ".join(before)] if before else [])])


def _last_words(lines: Sequence[str]) -> str:
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _where(frames: Sequence[re.Match[str]], code_dir: Path) -> str:
    """The innermost frame in the user's own directory, else the innermost outside libraries."""
    own = [frame for frame in frames if Path(frame["file"]).is_relative_to(code_dir)]
    outside = [frame for frame in frames if not _NOT_THE_USERS.search(frame["file"])]
    chosen = (own or outside or list(frames))[-1:]
    if not chosen:
        return ""
    frame = chosen[0]
    path = Path(frame["file"])
    shown = path.relative_to(code_dir) if path.is_relative_to(code_dir) else path
    function = frame["function"]
    return f"{shown}:{frame['line']}" + (f" in {function}" if function and function != "<module>" else "")
