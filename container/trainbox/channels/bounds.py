"""Two labels that are the bounds of one number, as survival analysis with censored rows has them.

A row whose event has not come yet has no upper bound (right-censored), one whose event came before anybody looked no
lower one (left-censored): both may be written as an infinite number, and as a missing one.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

HINT = "a row is lower,upper,…: both alike where the time is known, no upper one where the event has not come yet"


def fill_bounds(labels: Floats) -> Floats:
    """The bounds with 0 for a lower one that is missing, and infinity for an upper one; both missing stay so.

    Args:
        labels: (n, 2): the lower and the upper bound of each row.
    """
    filled = labels.copy()
    lower, upper = filled.T
    known = ~(np.isnan(lower) & np.isnan(upper))
    lower[known & (np.isnan(lower) | np.isneginf(lower))] = 0
    upper[known & np.isnan(upper)] = np.inf
    return filled


def find_faults(labels: Floats) -> dict[str, npt.NDArray[np.bool_]]:
    """By what is wrong with them, the rows whose bounds are those of no time.

    Args:
        labels: (n, 2), filled.
    """
    lower, upper = labels.T
    return {
        "both bounds of the label are missing": np.isnan(lower) | np.isnan(upper),
        "the lower bound of the label is infinite": np.isposinf(lower),
        "the lower bound of the label is negative": lower < 0,
        "the upper bound of the label is not above 0": upper <= 0,
        "the upper bound of the label is below the lower one": upper < lower,
    }


def are_sound(labels: Floats) -> bool:
    """Whether `find_faults` finds none, found out quickly."""
    lower, upper = labels.T
    return bool(((lower >= 0) & (lower <= upper) & (upper > 0) & np.isfinite(lower)).all())
