"""Hyperparameters as SageMaker passes them, strings all, and the ways to hand them on to a script as arguments.

The typed route, `trainbox.hyperparameters(Params)`, is in `params.py`: it needs more of msgspec than a supervisor.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

ArgumentStyle = Literal["toolkit", "json", "flags", "equals", "hydra"]

#: Names that are settings of the container, not hyperparameters of the algorithm. Those of sagemaker-training 5.1.4
#: (`params.SAGEMAKER_HYPERPARAMETERS`, and everything that begins with `sagemaker_`), and trainbox's own.
RESERVED_NAMES = frozenset({"default_user_module_name", "_tuning_objective_metric", "processes_per_host"})
RESERVED_PREFIXES = ("sagemaker_", "trainbox_")

#: Half of what Python parses at most: what was read has to be written again, some levels deeper.
DEEPEST_VALUE = 500

#: What Hydra takes for syntax in a value, and blanks at its ends, which it drops.
_HYDRA_SPECIAL = re.compile(r"[^A-Za-z0-9_ ./+$%*@?|:-]|\A | \Z")
_HYDRA_SPECIAL_IN_KEY = re.compile(r"[\\()\[\]{}:=, \t]")
_EMPTY = "''"
_BEFORE_QUOTE = re.compile(r"(\\*)('|\Z)")


def decode(raw: object) -> object:
    """A value as sagemaker-training reads it: JSON where it parses, else the string as it came.

    SDK v2 JSON-encodes every value, text too (within quotes of its own), SDK v3 and the API send plain strings.
    A value nested too deeply to be handled is a string too; sagemaker-training dies of it.
    """
    if not isinstance(raw, str):
        return raw
    try:
        decoded: object = json.loads(raw)
    except (ValueError, RecursionError):
        return raw
    return raw if is_too_deep(decoded) else decoded


def is_too_deep(value: object) -> bool:
    """Whether a value is nested deeper than `DEEPEST_VALUE`."""
    level = [value]
    for _ in range(DEEPEST_VALUE):
        level = [inner for outer in level for inner in _within(outer)]
        if not level:
            return False
    return True


def _within(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def is_reserved(name: str) -> bool:
    """Whether a hyperparameter is meant for the container and is not passed to the script."""
    return name in RESERVED_NAMES or name.startswith(RESERVED_PREFIXES)


def arguments(values: Mapping[str, object], style: ArgumentStyle) -> list[str]:
    """The command line arguments of a script.

    Args:
        values: The user's hyperparameters, decoded.
        style: `toolkit` as sagemaker-training 5.1.4 writes them (sorted by name; `True`, `[1, 'a']`, `a=1,b=2`),
            `json` as the drivers of SDK v3 do (in the order given; `true`, `[1, "a"]`, `{"a": 1}`). The others keep
            the order, too: `flags` as argparse has them (`--name` for true, nothing for false and null, else as
            `json`), `equals` (`--name=value`, as Python writes the value), `hydra` (`name=value` by Hydra's grammar).
    """
    return list(_STYLES[style](values))


def _toolkit_arguments(values: Mapping[str, object]) -> Iterable[str]:
    for name in sorted(values):
        yield _toolkit_flag(name)
        yield _toolkit_value(values[name])


def _toolkit_flag(name: str) -> str:
    if not name:
        return ""
    return f"--{name}" if len(name) > 1 else f"-{name}"


def _toolkit_value(value: object) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}={item}" for key, item in sorted(value.items()))
    return "" if value is None else str(value)


def _json_arguments(values: Mapping[str, object]) -> Iterable[str]:
    for name, value in values.items():
        yield f"--{name}"
        yield value if isinstance(value, str) else json.dumps(value)


def _flag_arguments(values: Mapping[str, object]) -> Iterable[str]:
    for name, value in values.items():
        if value is True:
            yield f"--{name}"
        elif value is not False and value is not None:
            text = value if isinstance(value, str) else json.dumps(value)
            # A value that begins with a dash would be taken for the next flag.
            yield from [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]


def _equals_arguments(values: Mapping[str, object]) -> Iterable[str]:
    """What `ast.literal_eval` reads back, but for text, which stands there as it is."""
    return (f"--{name}={value}" for name, value in values.items())


def _hydra_arguments(values: Mapping[str, object]) -> Iterable[str]:
    return (f"{name}={_hydra_value(value)}" for name, value in values.items())


def _hydra_value(value: object) -> str:
    """One value in the grammar of Hydra 1.1 and later (`OverrideParser.g4`); `${…}` stays an interpolation."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{_hydra_key(key)}:{_hydra_value(item) or _EMPTY}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_hydra_value(item) or _EMPTY for item in value) + "]"
    if not isinstance(value, str):
        return json.dumps(value).replace("Infinity", "inf").replace("NaN", "nan")
    return _hydra_quoted(value) if _HYDRA_SPECIAL.search(value) else value


def _hydra_key(key: str) -> str:
    return _HYDRA_SPECIAL_IN_KEY.sub(r"\\\g<0>", key)


def _hydra_quoted(text: str) -> str:
    """Within quotes backslashes count only where a quote follows: there each of them is doubled."""
    escaped = _BEFORE_QUOTE.sub(lambda found: found[1] * 2 + (found[2] and "\\'"), text)
    return f"'{escaped}'"


_STYLES: Mapping[ArgumentStyle, Callable[[Mapping[str, object]], Iterable[str]]] = {
    "toolkit": _toolkit_arguments,
    "json": _json_arguments,
    "flags": _flag_arguments,
    "equals": _equals_arguments,
    "hydra": _hydra_arguments,
}


def flags_of(arguments: Iterable[str]) -> dict[str, str]:
    """The values that arguments of any style seem to give, by name: `--name value`, `--name=value`, `name=value`."""
    found: dict[str, str] = {}
    last = ""
    for argument in arguments:
        name, has_value, value = argument.partition("=")
        if has_value:
            found[name.lstrip("-+")] = value
        elif last and not argument.startswith("-"):
            found[last] = argument
        last = argument.lstrip("-") if argument.startswith("-") and not has_value else ""
    return found
