"""Pure: `--channel NAME=PLACE[,OPTION…]` as text: where the place ends, and what the options say."""

import re
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from trainbox.contract.text import did_you_mean
from trainbox.errors import RunError

Mode = Literal["File", "Pipe", "FastFile"]
Wrapper = Literal["None", "RecordIO"]

_FLAGS = ("sharded", "pipe", "fastfile")
_VALUES = ("manifest", "attributes", "content_type", "record_wrapper", "groups")
#: What stands behind these may have commas: a part that begins no option goes on with the value.
_LISTS = ("manifest", "attributes", "groups")
_WRAPPERS: tuple[Wrapper, ...] = ("None", "RecordIO")
#: API Channel.ContentType, S3DataSource.AttributeNames.
_LONGEST_CONTENT_TYPE = 256
_MOST_ATTRIBUTES = 16
_CONTENT_TYPE = re.compile(r"[!-~](?:[ -~]*[!-~])?")
_KNOWN = (
    "sharded, pipe, fastfile, manifest=FILE, attributes=NAME,…, content_type=TYPE, record_wrapper=RecordIO, groups=…"
)


class Options(msgspec.Struct, frozen=True):
    """What stands behind the place of a channel."""

    mode: Mode = "File"
    sharded: bool = False
    #: A file as it is written there.
    manifest: str = ""
    #: Of each line of an augmented manifest.
    attributes: tuple[str, ...] = ()
    content_type: str = ""
    record_wrapper: Wrapper = "None"
    #: Instance groups that get the channel; none: all hosts.
    groups: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """The options as the command line has them."""
        return (
            *(["sharded"] if self.sharded else []),
            *([self.mode.lower()] if self.mode != "File" else []),
            *([f"manifest={self.manifest}"] if self.manifest else []),
            *([f"attributes={','.join(self.attributes)}"] if self.attributes else []),
            *([f"content_type={self.content_type}"] if self.content_type else []),
            *([f"record_wrapper={self.record_wrapper}"] if self.record_wrapper != "None" else []),
            *([f"groups={','.join(self.groups)}"] if self.groups else []),
        )


def is_option(part: str) -> bool:
    """Whether a part between two commas begins an option."""
    name, equals, _ = part.partition("=")
    return part in _FLAGS or (bool(equals) and name in _VALUES)


def split(text: str, exists: Callable[[str], bool]) -> tuple[str, tuple[str, ...]] | None:
    """The place, which exists, and the parts behind it; None where nothing of the text is a place.

    The longest place wins: a comma may be part of its name, and so may a word that elsewhere is an option.
    """
    parts = text.split(",")
    for end in range(len(parts), 0, -1):
        place = ",".join(parts[:end])
        if place and exists(place):
            return place, tuple(parts[end:])
    return None


def without_options(text: str) -> str:
    """What was probably meant as the place, for a message."""
    parts = text.split(",")
    end = next((number for number, part in enumerate(parts) if number and is_option(part)), len(parts))
    return ",".join(parts[:end])


def read_options(parts: Sequence[str], flag: str) -> Options:
    """The options, each of which has an effect together with the others.

    Args:
        parts: What stands between the commas.
        flag: How messages name the channel: `--channel train`.

    Raises:
        RunError: One is unknown, given twice, malformed, or without effect.
    """
    flags, values = _sort(parts, flag)
    if "pipe" in flags and "fastfile" in flags:
        raise RunError(f"{flag}: pipe and fastfile are two input modes", hint="a channel has one: leave one out")
    options = Options(
        mode="Pipe" if "pipe" in flags else "FastFile" if "fastfile" in flags else "File",
        sharded="sharded" in flags,
        manifest=values.get("manifest", ""),
        attributes=_names(values, "attributes", flag),
        content_type=_content_type(values.get("content_type"), flag),
        record_wrapper=_wrapper(values.get("record_wrapper"), flag),
        groups=_names(values, "groups", flag),
    )
    _check_together(options, values, flag)
    return options


def _sort(parts: Sequence[str], flag: str) -> tuple[set[str], dict[str, str]]:
    flags: set[str] = set()
    values: dict[str, str] = {}
    last = ""
    for part in parts:
        name, equals, value = part.partition("=")
        if part in flags or (name in values and equals):
            raise RunError(f"{flag}: the option {name} is given twice", hint="give it once")
        if part in _FLAGS:
            flags.add(part)
            last = ""
        elif equals and name in _VALUES:
            values[name], last = value, name
        elif last in _LISTS:
            values[last] += f",{part}"
        else:
            raise _unknown(part, flag)
    return flags, values


def _unknown(part: str, flag: str) -> RunError:
    name, equals, _ = part.partition("=")
    if equals and name in _FLAGS:
        return RunError(f"{flag}: the option {name} takes no value", hint=f"write ,{name}")
    if name in _VALUES:
        return RunError(f"{flag}: the option {name} needs a value", hint=f"write ,{name}=…")
    like = did_you_mean(name, (*_FLAGS, *_VALUES))
    return RunError(f"{flag}: {part!r} is not an option of a channel{like}", hint=f"the options are {_KNOWN}")


def _names(values: dict[str, str], option: str, flag: str) -> tuple[str, ...]:
    if option not in values:
        return ()
    names = tuple(values[option].split(","))
    if not all(names) or len(set(names)) < len(names):
        raise RunError(
            f"{flag}: {option}={values[option]} has an empty name or the same name twice",
            hint=f"write {option}=ONE,OTHER",
        )
    if option == "attributes" and len(names) > _MOST_ATTRIBUTES:
        raise RunError(f"{flag}: {len(names)} attributes", hint=f"SageMaker refuses more than {_MOST_ATTRIBUTES}")
    return names


def _content_type(text: str | None, flag: str) -> str:
    if text is None:
        return ""
    if not _CONTENT_TYPE.fullmatch(text) or len(text) > _LONGEST_CONTENT_TYPE:
        raise RunError(
            f"{flag}: content_type={text[:_LONGEST_CONTENT_TYPE]} is not a content type",
            hint=f"for example content_type=text/csv; SageMaker takes {_LONGEST_CONTENT_TYPE} characters",
        )
    return text


def _wrapper(text: str | None, flag: str) -> Wrapper:
    found = next((wrapper for wrapper in _WRAPPERS if wrapper == (text or "None")), None)
    if found is None or text == "":
        like = did_you_mean(text or "", _WRAPPERS)
        raise RunError(f"{flag}: record_wrapper={text}: expected None or RecordIO{like}", hint="None is the default")
    return found


def _check_together(options: Options, values: dict[str, str], flag: str) -> None:
    if options.record_wrapper == "RecordIO" and options.mode != "Pipe":
        raise RunError(
            f"{flag}: record_wrapper=RecordIO has no effect on files, which lie as they are",
            hint="add ,pipe: SageMaker wraps each object of a channel in Pipe mode",
        )
    if "manifest" in values and not options.manifest:
        raise RunError(f"{flag}: the option manifest needs a value", hint="write ,manifest=FILE")
    if options.manifest and options.mode == "FastFile":
        raise RunError(
            f"{flag}: FastFile mode takes no manifest", hint="leave fastfile out, or give the directory without one"
        )
    if options.attributes and not options.manifest:
        raise RunError(
            f"{flag}: attributes are those of an augmented manifest, and there is none", hint="add ,manifest=FILE"
        )
