"""Pure: `--range` and `--choice` become the ranges of a search, checked against what the script declares."""

import json
import math
from collections.abc import Callable, Iterable, Sequence

from trainbox.contract import params
from trainbox.contract.params.ranges import DeclaredRange, find_range, is_accepted
from trainbox.contract.text import did_you_mean, some
from trainbox.errors import RunError
from trainbox.tuning.planning.declared import Declared
from trainbox.tuning.planning.script_arguments import flag_of, takes
from trainbox.tuning.search_space import CategoricalRange, ContinuousRange, IntegerRange, ParameterRange, Scaling

_SCALES: dict[str, Scaling] = {
    "": "Auto",
    "auto": "Auto",
    "linear": "Linear",
    "log": "Logarithmic",
    "reverse-log": "ReverseLogarithmic",
}
_HINT = "write --range NAME=LOW:HIGH, with :log or :reverse-log where the scale is not linear"
#: API ParameterRanges, and CategoricalParameterRange.Values.
MOST_RANGES = 30
MOST_CHOICES = 30


def read_ranges(ranges: Sequence[str], choices: Sequence[str], declared: Declared) -> tuple[ParameterRange, ...]:
    """Return the ranges of a search.

    Args:
        ranges: Of `--range`: `NAME=LOW:HIGH[:SCALE]`, or the name alone where the script declares both bounds.
        choices: Of `--choice`: `NAME=VALUE,VALUE`, or a list as JSON.
        declared: What the script declares.

    Raises:
        RunError: One is malformed, or the script does not take it; the message names it.
    """
    found = [*(_read_range(text, declared) for text in ranges), *(_read_choice(text, declared) for text in choices)]
    if not found:
        found = [*_declared_ranges(declared)]
    names = [each.name for each in found]
    twice = next((name for name in names if names.count(name) > 1), "")
    if twice:
        raise RunError(f"{twice} is given twice", hint="give each hyperparameter one --range or one --choice")
    if len(found) > MOST_RANGES:
        raise RunError(f"{len(found)} hyperparameters are tuned; SageMaker takes {MOST_RANGES}")
    for each in found:
        _check(each, declared)
    return tuple(found)


def _declared_ranges(declared: Declared) -> Iterable[ParameterRange]:
    """The numbers that a script of the user's own declares both bounds of."""
    if declared.params is None or declared.is_bundled:
        return
    for name in params.names(declared.params):
        known = find_range(declared.params, name)
        if known is None or known.kind not in ("int", "float") or name.replace("-", "_") in ("seed", "random_state"):
            continue
        if known.low is not None and known.high is not None:
            yield _whole(known)


def _whole(known: DeclaredRange) -> ParameterRange:
    assert known.low is not None  # noqa: S101 - both bounds are declared
    assert known.high is not None  # noqa: S101
    if known.kind == "int":
        return IntegerRange(known.name, int(known.low), int(known.high))
    return ContinuousRange(known.name, known.low, known.high)


def _read_range(text: str, declared: Declared) -> ParameterRange:
    name, equals, bounds = text.partition("=")
    known = _known(name, declared, "--range")
    if not equals:
        if known is None or known.kind not in ("int", "float") or known.low is None or known.high is None:
            raise RunError(f"--range {name}: the script declares no bounds for it", hint=_HINT)
        return _whole(known)
    parts = [part.strip() for part in bounds.split(":")]
    if not name or len(parts) not in (2, 3):
        raise RunError(f"--range {text!r}: expected NAME=LOW:HIGH or NAME=LOW:HIGH:SCALE", hint=_HINT)
    scale = parts[2] if len(parts) > 2 else ""  # noqa: PLR2004 - low, high, scale
    if scale not in _SCALES:
        like = did_you_mean(scale, [each for each in _SCALES if each])
        raise RunError(f"--range {name}: unknown scale {scale!r}{like}", hint="linear, log or reverse-log")
    low, high = (_number(part, name) for part in parts[:2])
    is_whole = all(_is_integer(part) for part in parts[:2])
    if known is not None and known.kind == "int" and not is_whole:
        raise RunError(f"--range {name}={bounds}: the script takes whole numbers", hint=f"--range {name}=1:10")
    scaling = _SCALES[scale]
    if is_whole and (known is None or known.kind != "float") and scaling != "ReverseLogarithmic":
        return IntegerRange(name, int(parts[0]), int(parts[1]), scaling)
    return ContinuousRange(name, low, high, scaling)


def _known(name: str, declared: Declared, flag: str) -> DeclaredRange | None:
    """What the script declares of a hyperparameter; None where it declares nothing at all."""
    if declared.params is None:
        _check_flag(name, declared, flag)
        return None
    known = find_range(declared.params, name)
    if known is None:
        like = did_you_mean(name, params.names(declared.params))
        raise RunError(
            f"{flag} {name}: {declared.script} does not take it{like}",
            hint=f"trainbox describe {declared.place} lists its hyperparameters",
        )
    return known


def _check_flag(name: str, declared: Declared, flag: str) -> None:
    """A script with an argument parser of its own takes the hyperparameter."""
    if declared.flags is not None and not takes(declared.flags, name):
        like = did_you_mean(flag_of(name), declared.flags, prefix="--")
        raise RunError(
            f"{flag} {name}: {declared.script} has no argument {flag_of(name)}{like}",
            hint=f"its arguments are {some(sorted(declared.flags), 12)}",
        )


def _number(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise RunError(f"--range {name}: {text!r} is not a number", hint=_HINT) from None
    if not math.isfinite(value):
        raise RunError(f"--range {name}: {text!r} is not finite", hint=_HINT)
    return value


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").removeprefix("+").isdecimal() and text.isascii()


def _read_choice(text: str, declared: Declared) -> ParameterRange:
    name, equals, listed = text.partition("=")
    if not name or not equals:
        raise RunError(f"--choice {text!r}: expected NAME=VALUE,VALUE", hint="--choice booster=gbtree,dart")
    _known(name, declared, "--choice")
    values = _listed(name, listed)
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise RunError(f"--choice {name}: the value {twice!r} is given twice")
    if len(values) < 2:  # noqa: PLR2004 - one is no choice
        raise RunError(f"--choice {name}={listed}: one value is no choice", hint=f"--hp {name}={listed}")
    if len(values) > MOST_CHOICES:
        raise RunError(f"--choice {name}: {len(values)} values; SageMaker takes {MOST_CHOICES}")
    return CategoricalRange(name, values)


def _listed(name: str, text: str) -> tuple[str, ...]:
    if not text.startswith("["):
        return tuple(text.split(","))
    try:
        values = json.loads(text)
    except ValueError as error:
        raise RunError(f"--choice {name}: {text!r} is not a JSON list: {error}") from None
    return tuple(value if isinstance(value, str) else json.dumps(value) for value in values)


# -- checks --


def _check(given: ParameterRange, declared: Declared) -> None:
    match given:
        case CategoricalRange(name=name, values=values):
            _check_values(name, values, declared, "--choice")
        case IntegerRange(name=name, low=low, high=high, scaling=scaling):
            _check_bounds(name, low, high, scaling, str)
            _check_values(name, (str(low), str(high)), declared, "--range")
        case ContinuousRange(name=name, low=low, high=high, scaling=scaling):
            _check_bounds(name, low, high, scaling, repr)
            _check_values(name, (repr(low), repr(high)), declared, "--range")


def _check_bounds(name: str, low: float, high: float, scaling: Scaling, text: Callable[[float], str]) -> None:
    bounds = f"--range {name}={text(low)}:{text(high)}"
    if low > high:
        raise RunError(f"{bounds}: the low end is above the high end", hint=f"--range {name}={text(high)}:{text(low)}")
    if low == high:
        raise RunError(f"{bounds}: there is one value", hint=f"--hp {name}={text(low)}")
    if scaling == "Logarithmic" and low <= 0:
        raise RunError(
            f"{bounds}:log: a logarithmic scale needs a low end above 0", hint=f"--range {name}=0.001:{text(high)}:log"
        )
    if scaling == "ReverseLogarithmic" and not (low >= 0 and high < 1):
        raise RunError(
            f"{bounds}:reverse-log: a reverse logarithmic scale needs 0 <= LOW and HIGH < 1",
            hint=f"--range {name}=0.9:0.999:reverse-log",
        )


def _check_values(name: str, values: Sequence[str], declared: Declared, flag: str) -> None:
    """The script takes the ends of a range, and each choice."""
    if declared.params is None:
        return
    refused = [value for value in values if not is_accepted(declared.params, name, value)]
    if refused:
        field = next(each for each in params.fields(declared.params) if each.name == _name_of(declared.params, name))
        expected = f"{field.type} {field.range}".strip()
        raise RunError(f"{flag} {name}: {declared.script} does not take {some(refused)}, it takes {expected}")


def _name_of(params_type: type, name: str) -> str:
    known = find_range(params_type, name)
    return name if known is None else known.name
