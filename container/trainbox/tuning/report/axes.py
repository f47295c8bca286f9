"""Axes of parallel coordinates: a range on its scale, with ticks that show its own values."""

import math
from collections.abc import Callable, Sequence

import msgspec

from trainbox.contract.text import six_digits
from trainbox.tuning.report.texts import axis_name, axis_value
from trainbox.tuning.search_space import CategoricalRange, IntegerRange, ParameterRange, Scaling

_TICKS = 5


class Axis(msgspec.Struct, frozen=True):
    """One axis: where each trial meets it, its ends, and its ticks."""

    label: str
    values: tuple[float, ...]
    ends: tuple[float, float]
    ticks: tuple[float, ...]
    tick_texts: tuple[str, ...]


def parameter_axis(given: ParameterRange, texts: Sequence[str]) -> Axis:
    """Pure: the axis of a hyperparameter.

    Args:
        given: Its range.
        texts: Its value in each trial; those of a categorical range are among its values.
    """
    label = axis_name(given.name)
    if isinstance(given, CategoricalRange):
        places = {value: float(place) for place, value in enumerate(given.values)}
        return Axis(
            label=label,
            values=tuple(places[text] for text in texts),
            ends=_apart(0.0, len(given.values) - 1.0),
            ticks=tuple(places.values()),
            tick_texts=tuple(axis_value(value) for value in given.values),
        )
    scale, inverse = _SCALES[given.scaling]
    ends = _apart(scale(given.low), scale(given.high))
    ticks = [ends[0] + place * (ends[1] - ends[0]) / (_TICKS - 1) for place in range(_TICKS)]
    if isinstance(given, IntegerRange):
        ticks = sorted({scale(float(round(inverse(tick)))) for tick in ticks})
    return Axis(
        label=label,
        values=tuple(scale(float(text)) for text in texts),
        ends=ends,
        ticks=tuple(ticks),
        tick_texts=tuple(f"{inverse(tick):.3g}" for tick in ticks),
    )


def number_axis(label: str, values: Sequence[float]) -> Axis:
    """Pure: the axis of the objective, from its lowest to its highest value."""
    ends = _apart(min(values), max(values))
    ticks = [ends[0] + place * (ends[1] - ends[0]) / (_TICKS - 1) for place in range(_TICKS)]
    return Axis(axis_name(label), tuple(values), ends, tuple(ticks), tuple(map(six_digits, ticks)))


def _apart(low: float, high: float) -> tuple[float, float]:
    """Ends that differ: an axis of one value has room on both sides."""
    if high > low:
        return low, high
    room = abs(low) * 0.01 or 1.0
    return low - room, high + room


def _same(value: float) -> float:
    return value


def _reverse_log(value: float) -> float:
    return -math.log10(1 - value)


_Scale = Callable[[float], float]
#: The scale and its inverse.
_SCALES: dict[Scaling, tuple[_Scale, _Scale]] = {
    "Auto": (_same, _same),
    "Linear": (_same, _same),
    "Logarithmic": (math.log10, lambda place: 10.0**place),
    "ReverseLogarithmic": (_reverse_log, lambda place: 1 - 10.0**-place),
}
